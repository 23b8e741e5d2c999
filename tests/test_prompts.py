# SPDX-License-Identifier: MIT
"""What student and teacher are told: templates, the solution in the teacher's prompt, and the first token behind it."""

import json
import random

import pytest
import torch
from conftest import examples_of
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import renio
from renio import Devices, UserError, fill_prompt, prompt_ids

ROW = dict(problem="What is 2 + 2?", solution="It is four.", answer="4")


@pytest.fixture(scope="session")
def qwen3_tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "data" / "qwen3-tokenizer")


def test_qwen3_template_renders_with_thinking_on_and_off(qwen3_tokenizer):
    (student, teacher), (_, code_teacher) = renio.PROMPTS["math"], renio.PROMPTS["code"]

    def rendered(template, thinking):
        return qwen3_tokenizer.decode(prompt_ids(qwen3_tokenizer, fill_prompt(template, ROW), thinking))

    off, on = rendered(student, False), rendered(teacher, True)
    assert off.startswith("<|im_start|>user\nWhat is 2 + 2?") and "\\boxed{}" in off
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and "four" not in off
    assert on.endswith("<|im_start|>assistant\n") and "It is four." in on
    code = rendered(code_teacher, False)
    assert "```python" in code and "It is four." in code


def test_a_template_is_filled_once_and_keeps_all_other_braces():
    row = dict(problem=r"Is {solution} in \frac{1}{2}?", solution="{problem}")
    assert fill_prompt(r"{problem} Put it in \boxed{}. {solution} {x}", row) == (
        r"Is {solution} in \frac{1}{2}? Put it in \boxed{}. {problem} {x}")


def prompts(config, tokenizer, tmp_path, *words, **columns):
    """The first example's prompts, decoded, of data with these columns."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict(problem="a 1+1", solution="b 2", answer="2") | columns))
    flags = config("--dataset", tmp_path / "rows.jsonl", *words)
    [example] = examples_of(flags, tokenizer, 1)
    return [tokenizer.decode(ids) for ids in (example.student_prompt, example.teacher_prompt)]


@pytest.mark.parametrize("words, student, teacher", [
    ("--method opsd", "a 1+1", "reference b 2 again a 1+1"),
    ("--method opsd --privileged False", "a 1+1", "a 1+1"),
    ("--method opd --teacher x", "a 1+1", "a 1+1"),
    ("--method opd --teacher x --privileged True", "a 1+1", "reference b 2 again a 1+1"),
    ("--method opd --teacher x --student_prompt again=STUDENT", "again a 1+1", "again a 1+1"),
    ("--method opsd --teacher_prompt wait=TEACHER", "a 1+1", "wait b 2 a 1+1"),
    ("--method opsd --teacher_prompt @FILE", "a 1+1", "a 1+1 wait b 2"),
])
def test_each_side_is_told_what_the_flags_say(config, tokenizer, tmp_path, words, student, teacher):
    (tmp_path / "prompt.txt").write_text("{problem} wait {solution}")
    words = [word.replace("=STUDENT", " {problem}").replace("=TEACHER", " {solution} {problem}")
             .replace("@FILE", f"@{tmp_path}/prompt.txt") for word in words.split()]
    found = prompts(config, tokenizer, tmp_path, *words)
    assert found[0] == f"<user> {student} <assistant> <think> </think>" and found[1] == f"<user> {teacher} <assistant>"


def test_a_teacher_prompt_in_the_data_wins_and_needs_no_solution(config, tokenizer, tmp_path):
    _, teacher = prompts(config, tokenizer, tmp_path, "--method", "opsd", teacher_prompt="c 3 {problem}", solution=None)
    assert teacher == "<user> c 3 <unk> <assistant>"  # as it is, not filled in


def test_fine_tuning_needs_the_solution_whatever_the_teacher_is_told(config, tokenizer, tmp_path):
    with pytest.raises(UserError, match="each is without a solution"):
        prompts(config, tokenizer, tmp_path, "--method", "sft", teacher_prompt="c 3", solution=None)


def test_the_text_of_a_template_file_is_what_a_run_is_made_with(config, tmp_path):
    (tmp_path / "prompt.txt").write_text("{problem}?")
    flags = config("--method", "opsd", "--student_prompt", f"@{tmp_path}/prompt.txt")
    (tmp_path / "prompt.txt").unlink()
    assert flags.student_prompt == "{problem}?" == renio.prompt_templates(flags)[0]


@pytest.mark.parametrize("words, message", [
    ("--method opsd --teacher_prompt {problem}", "no {solution} in it; add it, or pass --privileged False"),
    ("--method opd --teacher x --teacher_prompt {problem}{solution}", "pass --privileged True with it"),
    ("--method opsd --teacher_prompt {solution}", "--teacher_prompt: has no {problem}"),
    ("--method opsd --student_prompt {problem}{solution}", "which the student must not see"),
    ("--method opsd --student_prompt solve", "--student_prompt: has no {problem}"),
    ("--method opsd --student_prompt @nowhere.txt", "--student_prompt @nowhere.txt: can't be read"),
    ("--method grpo --privileged True", "--privileged: only for --method opd and opsd"),
])
def test_prompts_that_contradict_other_flags_are_refused(config, words, message):
    with pytest.raises(UserError, match=message):
        config(*words.split())


def test_the_released_codes_variant_cuts_long_prompts_where_ours_skips_them(config, tokenizer, tmp_path):
    long = "a 1+1 " * 20
    words = "--method", "opsd", "--max_prompt_tokens", "30"
    with pytest.raises(UserError, match="longer than 30 tokens"):
        prompts(config, tokenizer, tmp_path, *words, problem=long)
    student, teacher = prompts(config, tokenizer, tmp_path, *words, "--variant", "official", problem=long)
    assert student == " ".join(["<user>", *long.split()][:30])
    assert teacher == " ".join(["<user>", "reference", "b", "2", "again", *long.split()][:30])


# --- the first token --------------------------------------------------------------------------------------------------

ANSWERS = ["The answer is 4.", "So it is 4.", "We add 2 and 2."]


@pytest.fixture(scope="session")
def fitted_qwen3(qwen3_tokenizer):
    """A tiny Qwen3 that does as the template has it: `<think>` behind a bare opening, an answer behind an empty one."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(qwen3_tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True,
        eos_token_id=qwen3_tokenizer.eos_token_id))
    rows = []
    for answer in ANSWERS:
        for template in renio.PROMPTS["math"]:
            for thinking in (True, False):
                prompt = prompt_ids(qwen3_tokenizer, fill_prompt(template, ROW), thinking)
                text = "<think>\n" if thinking else answer + qwen3_tokenizer.eos_token
                rows.append((prompt, qwen3_tokenizer(text)["input_ids"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        hidden, tokens = renio.completion_hidden(model, *zip(*rows, strict=True))
        torch.nn.functional.cross_entropy(model.lm_head(hidden), tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def first_token_metrics(config, tokenizer, model, tmp_path, *words):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    flags = config("--method", "opsd", "--task", "math", "--dataset", tmp_path / "rows.jsonl", "--weighting", "renio",
                   "--max_prompt_tokens", 1000, *words)
    teacher = renio.Teacher(flags, model, tokenizer, Devices("cpu"))
    teacher.model = model  # as it is, since the folder that `flags` names has none
    completions = [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for answer in ANSWERS]
    rollouts = [renio.Rollout(example, completion) for example, completion in
                zip(examples_of(flags, tokenizer, len(ANSWERS)), completions, strict=True)]
    total, records = renio.distillation_step(model, teacher, rollouts, flags, Devices("cpu"), renio.Stopwatch("cpu"))
    return renio.step_metrics(records, total.item(), flags), records


def test_with_qwen3s_template_the_first_token_disagrees_most_and_is_key_in_every_rollout(
        config, qwen3_tokenizer, fitted_qwen3, tmp_path):
    """The teacher, with thinking on, expects `<think>` where the student, with thinking off, already answers."""
    metrics, records = first_token_metrics(config, qwen3_tokenizer, fitted_qwen3, tmp_path)
    assert metrics["first_token_divergence_share"] > 3 * len(records) / sum(record["length"] for record in records)
    assert all(record["first_key"] for record in records)  # so that no rollout is without key tokens
    alike, _ = first_token_metrics(config, qwen3_tokenizer, fitted_qwen3, tmp_path, "--teacher_thinking", "False")
    assert alike["divergence"] < 0.1 * metrics["divergence"] and not alike["first_token_key_share"]
    skipped, _ = first_token_metrics(config, qwen3_tokenizer, fitted_qwen3, tmp_path, "--skip_tokens", 1)
    assert skipped["divergence"] < 0.7 * metrics["divergence"] and skipped["first_token_divergence_share"] == 0
    assert skipped["weight_mean"] < metrics["weight_mean"]


def test_fine_tuning_shows_the_solution_in_the_prompt_of_its_share_of_rows(config, tokenizer):
    flags = config("--method", "sft", "--dataset", "products", "--task", "math", "--privileged_share", 0.5)
    rows, shown = renio.read_rows(flags, random.Random(0), 40), []
    for row in rows:
        prompt = renio.render(flags, row, tokenizer, None, random.Random(0)).student_prompt
        shown.append(prompt == prompt_ids(tokenizer, fill_prompt(renio.PROMPTS["math"][True], row), False))
        assert shown[-1] or prompt == prompt_ids(tokenizer, fill_prompt(renio.PROMPTS["math"][False], row), False)
    assert 10 < sum(shown) < 30


def test_fine_tuning_divides_by_tokens(config, tokenizer, model):
    flags = config("--method", "sft", "--micro_batch_size", 2)
    batch = [renio.Rollout(renio.Example({}, [3, 14, 4]), completion) for completion in ([20, 30, 1], [20, 1], [1])]
    total, records = renio.sft_step(model, batch, flags, Devices("cpu"), renio.Stopwatch("cpu"))
    assert total == 6 and [record["length"] for record in records] == [3, 2, 1]


def test_fine_tuning_teaches_the_demonstration_and_its_end(config, tokenizer):
    flags = config("--method", "sft", "--batch_size", 2, "--prefix_tokens", 6)
    rows = [dict(solution="a 1+1 2"), dict(solution="not this", demonstration="a 1+1 3 b 2+2 4")]
    taught = renio.draw_solutions(tokenizer, [renio.Example(row, [3]) for row in rows], 0, flags, renio.Devices("cpu"))
    assert [tokenizer.decode(rollout.completion) for rollout in taught] == ["a 1+1 2 <eos>", "a 1+1 3 b 2+2 4"]
