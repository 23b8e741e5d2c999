# SPDX-License-Identifier: MIT
"""The training loop's parts on random micro models: sampling, teachers, gradients, data, prompts, flags."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    completion_logits,
    distilled,
    examples_of,
    rollouts_of,
    teacher_logits,
)
from transformers import AutoTokenizer, TopKLogitsWarper, TopPLogitsWarper

import renio
from renio import (
    Devices,
    Teacher,
    UserError,
    completion_hidden,
    filter_logits,
    read_problems,
    sample,
    sample_weights,
    token_divergence,
    token_logprobs,
)

PROMPTS = [[3, 14, 20, 40, 4], [3, 15, 4], [3, 15, 21, 41, 16, 22, 42, 4]]


# --- sampling ---------------------------------------------------------------------------------------------------------

def test_the_trainer_gives_every_token_the_log_probability_it_was_sampled_with(model, monkeypatch):
    seen, last_logits = [], renio.last_logits
    monkeypatch.setattr(renio, "last_logits", lambda *args: seen.append(last_logits(*args)) or seen[-1])
    completions = sample(model, PROMPTS, 12, eos_ids=[-1], temperature=1.1, seed=3)  # no eos: rows stay in place
    tokens = torch.tensor(completions)
    sampler = token_logprobs(torch.stack(seen, 1), tokens, 1.1)
    hidden, ids = completion_hidden(model, PROMPTS, completions)
    assert (ids == tokens.flatten()).all()
    torch.testing.assert_close(token_logprobs(model.lm_head(hidden), ids, 1.1), sampler.flatten(), rtol=1e-4, atol=1e-5)


def test_a_batch_gives_each_prompt_what_it_gets_alone(model):
    with torch.no_grad():
        for p in model.model.layers.parameters():  # fresh weights would echo the last token for ever
            p.mul_(10)
    ends = list(range(20, 40))  # so many that rows end at different steps and are dropped on the way
    together = sample(model, PROMPTS * 3, 20, ends, temperature=0)
    alone = [sample(model, [prompt], 20, ends, temperature=0)[0] for prompt in PROMPTS]
    assert together == alone * 3
    assert len({len(completion) for completion in alone}) > 1


def test_a_completion_ends_with_the_first_eos_and_keeps_it(model):
    ends = list(range(20, 40))
    completions = sample(model, PROMPTS * 20, 30, ends, seed=1)
    for completion in completions:
        assert not set(completion[:-1]) & set(ends)
        assert completion[-1] in ends or len(completion) == 30
    assert any(completion[-1] in ends for completion in completions)


def test_sampling_is_a_function_of_the_seed(model):
    draws = [sample(model, PROMPTS, 10, [1], seed=seed) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("uniform, token", [(0.0, 2), (1 - 2**-53, 5)])  # the least and the most that torch.rand gives
def test_a_token_without_probability_is_never_drawn(monkeypatch, uniform, token):
    probs = torch.tensor([[0, 0, 1e-6, 0, 0.2, 0.8, 0]])
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, uniform, dtype=torch.float64))
    assert renio.draw_tokens(probs, None).tolist() == [token]


def test_sampling_merges_an_adapter_for_its_time_only(config, micro_model):
    adapted, _ = renio.load_student(config("--method", "opsd", "--model", micro_model, "--lora_r", 4), "cpu")
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            p.normal_(std=0.3) if "lora_" in name else p.mul_(2)
    hidden = completion_hidden(adapted, PROMPTS, [[5], [6], [7]])[0]
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    merged = []
    hook = renio.decoder_of(adapted).register_forward_pre_hook(
        lambda *_: merged.append(adapted.get_model_status().merged_adapters))
    adapted.train()
    completions = sample(adapted, PROMPTS, 12, [-1], temperature=0)
    hook.remove()
    assert merged == [["default"]] * 12 and adapted.training
    logits = completion_logits(adapted, PROMPTS, completions)[0]
    assert (logits.argmax(-1) == torch.tensor(completions)).all()  # the adapter's tokens, unmerged again
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())
    assert torch.equal(completion_hidden(adapted, PROMPTS, [[5], [6], [7]])[0], hidden)


def test_samples_follow_the_distribution(model):
    n = 4000
    drawn = torch.tensor(sample(model, [PROMPTS[0]] * n, 1, [-1], temperature=1.3)).flatten()
    logits = completion_logits(model, [PROMPTS[0]], [[0]])[0][0, 0] / 1.3
    frequency = torch.bincount(drawn, minlength=len(logits)) / n
    spread = (logits.softmax(-1) / n).sqrt()
    assert ((frequency - logits.softmax(-1)).abs() < 5 * spread).all()


def test_top_p_and_top_k_agree_with_transformers():
    for words, top_p, top_k in ((30, 0.9, 0), (30, 1.0, 7), (30, 0.7, 5), (30, 1e-6, 0), (3000, 0.5, 0),
                                (3000, 0.95, 0)):  # the 1,000 likeliest hold the half, but not all of the rest
        logits = torch.randn(50, words, generator=torch.Generator().manual_seed(0))
        assert logits.softmax(-1).sort().values[:, -1000:].sum(-1).lt(0.95).all() == (words > 1000)
        expected = logits
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        torch.testing.assert_close(filter_logits(logits, top_p, top_k), expected)


# --- one update -------------------------------------------------------------------------------------------------------

def make_teacher(student, tokenizer, seed=1):
    start = SimpleNamespace(method="opsd", lora_r=0, model="init:micro", seed=seed, dtype="float32", fsdp=False)
    return Teacher(start, student, tokenizer, Devices("cpu"))


def rollouts(config, model, tokenizer, n=8):
    examples = examples_of(config, tokenizer, n)
    completions = sample(model, [example.student_prompt for example in examples], 14, list(range(20, 30)), seed=2)
    return rollouts_of(examples, completions)


@pytest.mark.parametrize("micro_batch_size, reduction", [(3, "sum"), (3, "mean")])
def test_the_update_is_that_of_equation_9_however_the_batch_is_split(
        model, tokenizer, config, micro_batch_size, reduction):
    flags = config("--method", "opd", "--teacher", "none", "--weighting", "renio", "--threshold", 0.01,
                   "--micro_batch_size", micro_batch_size, "--token_reduction", reduction)
    model = model.double()
    teacher = make_teacher(model, tokenizer)
    teacher.model.double()
    batch = rollouts(flags, model, tokenizer)
    total, _ = distilled(model, teacher, batch, flags)
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    renio.update(torch.optim.SGD(parameters, lr=1.0), parameters, total.double(), flags, Devices("cpu"))
    ours = torch.cat([(old - p.detach()).flatten() for old, p in zip(before, parameters, strict=True)])

    # Eq. 2-9 written out for the whole batch at once
    with torch.no_grad():
        for old, p in zip(before, parameters, strict=True):
            p.copy_(old)
    completions = [r.completion for r in batch]
    logits, tokens, mask = completion_logits(model, [r.example.student_prompt for r in batch], completions)
    theirs = teacher_logits(teacher, [r.example.teacher_prompt for r in batch], completions)
    divergence = (token_divergence(logits, theirs) * mask).sum(1)
    if reduction == "mean":
        divergence = divergence / mask.sum(1)
    weights = sample_weights(token_logprobs(logits, tokens, 1.0), token_logprobs(theirs, tokens, 1.0), mask, 0.01, 3.0)
    assert weights.std() > 0.01
    (weights / weights.mean() * divergence).mean().backward()
    written_out = torch.cat([p.grad.flatten() for p in parameters])
    assert (ours - written_out).norm() < 1e-6 * ours.norm()  # some of the model computes in float32


def test_the_gradient_never_reaches_the_teacher(model, tokenizer, config, micro_model):
    flags = config("--method", "opd", "--teacher", micro_model)
    teacher = Teacher(flags, model, tokenizer, Devices("cpu"))
    distilled(model, teacher, rollouts(flags, model, tokenizer), flags)
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_the_teacher_of_an_adapter_is_the_student_as_it_started(tokenizer, config, micro_model):
    flags = config("--method", "opsd", "--model", micro_model, "--lora_r", 4)
    student, _ = renio.load_student(flags, "cpu")
    teacher = Teacher(flags, student, tokenizer, Devices("cpu"))
    prompt, completion = [PROMPTS[0]], [[20, 30, 40]]
    before = teacher_logits(teacher, prompt, completion)
    with torch.no_grad():
        for p in renio.trained_parameters(student):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    moved = completion_logits(student, prompt, completion)[0]
    assert (moved - before).abs().max() > 1e-3
    torch.testing.assert_close(teacher_logits(teacher, prompt, completion), before)
    torch.testing.assert_close(completion_logits(student, prompt, completion)[0], moved)  # the student is unharmed


def test_the_initial_teacher_stays_the_initial_model_through_training(tokenizer, config, micro_model, monkeypatch):
    flags = config("--method", "opsd", "--model", micro_model, "--max_steps", 3, "--batch_size", 4)
    kept = []
    monkeypatch.setattr(renio, "Teacher", lambda *args: kept.append(Teacher(*args)) or kept[0])
    renio.train(flags, Devices("cpu"))
    start = renio.load_model(str(micro_model))
    end = renio.load_model(f"{flags.output_dir}/final")
    logits = [completion_logits(m, [PROMPTS[0]], [[20, 30]])[0] for m in (start, end)]
    torch.testing.assert_close(teacher_logits(kept[0], [PROMPTS[0]], [[20, 30]]), logits[0])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_distillation_brings_the_student_nearer_to_the_teacher(config, micro_model):
    flags = config("--method", "opd", "--teacher", micro_model, "--max_steps", 12, "--batch_size", 8,
                   "--prefix_tokens", 16, "--weighting", "renio")
    renio.train(flags, Devices("cpu"))
    rows = [json.loads(line) for line in open(f"{flags.output_dir}/metrics.jsonl")]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["divergence"] < 0.8 * rows[0]["divergence"]


def test_runs_joined_by_then_end_as_each_alone(tmp_path, micro_model):
    def words(way, seed, *more):
        return ["--method", "opsd", "--model", str(micro_model), "--seed", str(seed), "--max_steps", "1",
                "--schedule_steps", "1", "--batch_size", "2", "--output_dir", str(tmp_path / way / str(seed)), *more]

    with pytest.raises(SystemExit, match="--top_p 0"):
        renio.main([*words("together", 0), "then", *words("together", 1, "--top_p", "0")])
    assert not (tmp_path / "together").exists()  # a wrong flag anywhere ends it before a run has begun
    renio.main([*words("together", 0), "then", *words("together", 1)])
    for seed in (0, 1):
        renio.main(words("alone", seed))
        whole, alone = (renio.load_model(str(tmp_path / way / str(seed) / "final")).state_dict()
                        for way in ("together", "alone"))
        assert all(torch.equal(whole[name], alone[name]) for name in whole)


def test_adapters_and_whole_models_load_with_from_pretrained(config, micro_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = config("--method", "opsd", "--model", micro_model, "--max_steps", 1, "--batch_size", 4, "--lora_r", 4,
                   "--save_steps", 1, "--learning_rate", 0.01)
    renio.train(flags, Devices("cpu"))
    base = AutoModelForCausalLM.from_pretrained(micro_model)
    for folder in ("final", "checkpoint-1"):
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(micro_model),
                                            f"{flags.output_dir}/{folder}")
        change = [completion_logits(m, [PROMPTS[0]], [[20]])[0] for m in (base, adapted)]
        assert (change[0] - change[1]).abs().max() > 1e-4
        teacher = renio.load_model(f"{flags.output_dir}/{folder}")  # as --teacher takes it
        torch.testing.assert_close(completion_logits(teacher, [PROMPTS[0]], [[20]])[0], change[1])
        assert sample(teacher, PROMPTS, 6, [-1], seed=1) == sample(adapted, PROMPTS, 6, [-1], seed=1)
        assert AutoTokenizer.from_pretrained(f"{flags.output_dir}/{folder}").chat_template


# --- data ------------------------------------------------------------------------------------------------

def test_odd_end_tokens_are_warned_of(model, tokenizer):
    teacher = SimpleNamespace(model=renio.init_model("init:micro", tokenizer, 1), tokenizer=tokenizer)
    assert renio.end_warnings(model, tokenizer, teacher) == []
    teacher.model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("wait")]
    [warning] = renio.end_warnings(model, tokenizer, teacher)
    assert "the student ends answers with ['<eos>'], the teacher with ['<eos>', 'wait']" in warning
    tokenizer.pad_token = "<eos>"
    [warning] = renio.end_warnings(model, tokenizer)
    tokenizer.pad_token = "<pad>"  # the fixture is shared
    assert "the pad token <eos> also ends answers" in warning


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("row, expected", [
    (dict(problem="p", solution="s", Answer="7"), dict(problem="p", solution="s", answer="7")),
    (dict(question="q", answer="2 + 2 = 4\n#### 4"), dict(problem="q", solution="2 + 2 = 4\n#### 4", answer="4")),
    (dict(prompt="q", solution=r"so \boxed{\frac{1}{2}}"),
     dict(problem="q", solution=r"so \boxed{\frac{1}{2}}", answer=r"\frac{1}{2}")),
    (dict(problem="p", solution="no box"), dict(problem="p", solution="no box", answer=None)),
    (dict(problem="p", answer=5), dict(problem="p", solution=None, answer="5")),
])
def test_columns_are_found_under_their_usual_names(tmp_path, row, expected):
    assert read_problems(write_rows(tmp_path / "rows.jsonl", [row])) == [expected]


def test_json_jsonl_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [dict(problem="p é", solution="s", answer="1"), dict(problem="q", solution="t", answer="2")]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_problems(str(tmp_path / "a.jsonl")) == read_problems(str(tmp_path / "a.json")) == read_problems(
        str(tmp_path / "a.parquet")) == rows


def test_real_training_sets_have_solutions_and_answers(shared):
    gsm8k = read_problems(str(shared / "data" / "gsm8k_train_400.jsonl"), need_solution=True)
    math = read_problems(str(shared / "data" / "math_train_400.jsonl"), need_solution=True)
    assert len(gsm8k) == len(math) == 400
    assert gsm8k[0]["answer"] == "72" and all(row["answer"] for row in gsm8k + math)


def test_every_problem_comes_once_an_epoch_in_an_order_of_the_seed(tmp_path, tokenizer, config):
    rows = [dict(problem=f"a {i} +1", solution="a", answer="2") for i in range(10)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    orders = []
    for seed in (0, 0, 1):
        flags = config("--method", "opsd", "--dataset", path, "--seed", seed)
        orders.append([e.row["problem"] for e in renio.load_examples(flags, tokenizer, tokenizer, 20)[0]])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0][:10]) == sorted(orders[0][10:]) == sorted(row["problem"] for row in rows)


# --- the arithmetic world ---------------------------------------------------------------------------------------------

def test_arithmetic_solutions_are_right_and_training_leaves_the_test_problems_out():
    rows = renio.arith_rows(300, split="test")
    for row in rows:
        words = row["problem"].split()
        results = [str(eval(operation) % 10) for operation in words[1::2]]
        assert row["answer"] == "".join(results)
        assert renio.arith_verdict(row["solution"], row["answer"]) == "equal"
    assert not {row["problem"] for row in rows} & {row["problem"] for row in renio.arith_rows(3000)}


@pytest.mark.parametrize("name", ["products", "chain"])
def test_problems_in_english_are_right_and_hardly_any_is_both_trained_and_tested(name):
    rows = renio.SYNTHETIC[name](200, split="test")
    for row in rows:
        asked = row["problem"].split(" ", 2 if name == "products" else 1)[-1].rstrip(".").split(", ")
        assert row["answer"] == ", ".join(str(eval(part)) for part in asked), row
        steps = [step.split(" = ") for step in re.findall(r"[^,.]+ = -?\d+", row["solution"])]
        assert len(steps) == 3 and all(eval(left) == int(right) for left, right in steps)
    assert all(renio.grade_math(row["solution"], row["answer"]) for row in rows[:20])
    trained = {row["problem"] for seed in (0, 1) for row in renio.SYNTHETIC[name](500, seed)}
    assert len({row["problem"] for row in rows} & trained) <= 2  # by chance


def test_results_of_gaps_are_guesses_and_a_recheck_mends_half_of_them():
    gaps = renio.operation_gaps()
    kinds = {gap: "unknown" if i % 2 == 0 else "doubted" for i, gap in enumerate(gaps)}
    assert len(set(gaps)) == 54
    firsts, seconds = ({"taught": [], "unknown": [], "doubted": []} for _ in range(2))
    for row in renio.arith_rows(1500, gaps=True):
        before = None
        words = renio.extract_boxed(row["demonstration"]).replace("wait ", "").split()
        for name, operation, result in zip(*[iter(words)] * 3, strict=True):
            right = renio.result_of(operation) == int(result)
            of = seconds if name == before else firsts
            of[kinds.get(operation, "taught")].append(right)
            before = name
    share = {(of is firsts, kind): sum(x) / len(x) for of in (firsts, seconds) for kind, x in of.items()}
    assert share[False, "taught"] == share[False, "doubted"] == 1 and 0.97 < share[True, "taught"] < 1
    for guessed in ((True, "unknown"), (True, "doubted"), (False, "unknown")):
        assert 0.05 < share[guessed] < 0.15, guessed
    for kind in ("unknown", "doubted"):
        assert 0.25 < len(seconds[kind]) / len(firsts[kind]) < 0.35
        assert 0.08 < len(firsts[kind]) / sum(map(len, firsts.values())) < 0.12


@pytest.mark.parametrize("box, results", [
    ("a 3+8 1 b 7-5 2", dict(a="1", b="2")), ("a 3+8 4 wait a 3+8 1 b 7-5 2", dict(a="1", b="2")),  # the last counts
    ("a 3+8 1 b 7-5 2 wait a 3+8 4", dict(a="4", b="2")), ("a 3+8 1 b 7-5", dict(a="1")), ("", {})])
def test_the_last_result_of_each_step_in_the_box_is_its_answer(box, results):
    text = f"b 7-5 9 \\boxed{{ {box} }}"  # nothing in front of the box counts
    assert renio.arith_results(text) == results
    assert renio.arith_results(text.removesuffix("}")) == {}
    assert renio.arith_verdict(text, "12") == ("equal" if list(results.values()) == ["1", "2"] else "different")
    assert renio.arith_verdict(text.removesuffix("}"), "12") == "no box"


def test_the_tokenizer_knows_every_word_and_gives_the_text_back(tokenizer):
    for row in renio.arith_rows(50, slips=0.5):
        ids = tokenizer(row["demonstration"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["demonstration"]


# --- flags ------------------------------------------------------------------------------------------------------------

def test_explicit_flags_win_over_variant_and_variant_over_scale(config):
    flags = config("--scale", "paper", "--method", "opsd", "--variant", "official", "--top_k", 7)
    assert (flags.learning_rate, flags.prefix_tokens, flags.lora_r, flags.temperature) == (5e-6, 1024, 64, 1.1)
    assert (flags.entry_clip, flags.top_p, flags.top_k) == (0.05, 0.95, 7)
    assert (flags.max_prompt_tokens, flags.schedule_steps, flags.max_grad_norm) == (20_000, 126, 1.0)
    grpo = config("--scale", "paper", "--method", "grpo", "--variant", "official")
    assert (grpo.student_thinking, grpo.top_p, grpo.entry_clip, grpo.schedule_steps) == (True, 1.0, None, 150)
    assert not config("--scale", "paper", "--method", "opd", "--student_thinking", "False").student_thinking
    assert config("--method", "sft").learning_rate == 2e-3
    assert config("--scale", "paper").teacher == "Qwen/Qwen3-8B"


@pytest.mark.parametrize("words, message", [
    ("--learning_rat 1", "unrecognized arguments: --learning_rat"),
    ("--method ppo", "invalid choice: 'ppo'"),
    ("--method opd", "--method opd: give a --teacher"),
    ("--method opsd --teacher x", "--teacher: not used by opsd, whose teacher is its own start"),
    ("--method sft --weighting renio", "--weighting: sft"),
    ("--method opsd --privileged_share 0.5", "--privileged_share: only for --method sft"),
    ("--method opsd --entry_clip 0", "--entry_clip 0.0: must be at least 1e-09"),
    ("--method opsd --variant official --log_ratio_clip_min 0", "no lower clip"),
    ("--method opsd --estimator sampled", "--estimator sampled: estimates the reverse KL; give --beta 1"),
    ("--method opsd --estimator sampled --beta 1 --entry_clip 1", "drop --entry_clip or --variant official"),
    ("--method opsd --log_ratio_clip_min 4", "--log_ratio_clip_min 4.0: must be below"),
    ("--method opsd --batch_size 0", "--batch_size 0: must be at least 1"),
    ("--method opsd --temperature 0", "--temperature 0.0: must be at least 0.01"),
    ("--method opsd --temperature nan", "--temperature nan: must be a number"),
    ("--method opsd --top_p 0", "--top_p 0.0: must be at least 1e-06"),
    ("--method opsd --beta 2", "--beta 2.0: must be at most 1"),
    ("--method opsd --top_k -1", "--top_k -1: must be at least 0"),
    ("--method opsd --schedule_steps 10", "--schedule_steps 10: the rate would be 0"),
    ("--method opsd --model init:huge", "--model init:huge: known are init:micro"),
    ("--method opsd --device cuda", "--device cuda: this machine has no CUDA device"),
    ("--method opsd --dataset rows.jsonl", "rows.jsonl: no such file"),
])
def test_each_mistake_ends_with_one_line_that_names_the_flag(tmp_path, words, message):
    if "--device cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SystemExit, match=message) as error:
        renio.main(["--output_dir", str(tmp_path / "run"), *words.split()])
    assert "\n" not in str(error.value)


def test_a_folder_in_use_and_changed_settings_are_refused(tmp_path, micro_model):
    words = ["--output_dir", str(tmp_path), "--method", "opsd", "--model", str(micro_model), "--max_steps", "1",
             "--batch_size", "2"]
    renio.main(words)
    with pytest.raises(SystemExit, match="holds a run already"):
        renio.main(words)
    with pytest.raises(SystemExit, match=r"other settings: --beta 0.0 \(now 0.5\)"):
        renio.main([*words, "--resume", "--beta", "0.5"])


def test_a_mistake_found_while_loading_does_not_spoil_the_folder(tmp_path, micro_model):
    words = ["--output_dir", str(tmp_path), "--method", "opsd", "--max_steps", "1", "--batch_size", "2", "--model"]
    with pytest.raises(SystemExit, match="no tokenizer in nowhere"):
        renio.main([*words, "nowhere"])
    renio.main([*words, str(micro_model)])
    assert json.loads((tmp_path / "config.json").read_text())["flags"]["model"] == str(micro_model)


def test_the_learning_rate_warms_up_and_falls_to_zero_behind_the_last_step(config):
    flags = config("--method", "opsd", "--learning_rate", 8, "--warmup_steps", 2, "--schedule_steps", 4,
                   "--max_steps", 4)
    assert [renio.learning_rate(flags, step) for step in range(5)] == [4, 6, 4, 2, 0]
    assert renio.learning_rate(config("--scale", "one", "--method", "opsd", "--learning_rate", 8), 99) == 8  # constant


def test_an_output_folder_is_required():
    with pytest.raises(SystemExit, match="--output_dir: required"):
        renio.main(["--method", "opsd"])


@pytest.mark.parametrize("device, cuda, nodes, visible, expected", [
    (None, True, True, None, "cuda"), ("cpu", True, True, None, "cpu"), (None, False, False, None, "cpu"),
    (None, False, True, None, "can't use it"), (None, False, True, "", "cpu"), ("cpu", False, True, None, "cpu"),
    ("cuda", False, True, None, "has no CUDA device"), ("cuda:1", True, True, None, "cuda:1"),
    ("mps", False, False, None, "known are cuda and cpu")])
def test_a_gpu_that_torch_cannot_use_is_never_replaced_silently(monkeypatch, device, cuda, nodes, visible, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(renio.Path, "glob", lambda *_: iter(["/dev/nvidia0"] * nodes))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if " " in expected:
        with pytest.raises(UserError, match=expected):
            renio.pick_device(device)
    else:
        assert renio.pick_device(device) == expected


@pytest.mark.parametrize("device, dtype, installed, attention", [
    ("cuda", "bfloat16", True, "flash_attention_2"), ("cuda", "bfloat16", False, "sdpa"),
    ("cuda", "float32", True, "sdpa"), ("cpu", "bfloat16", True, "eager"), ("cpu", "float32", True, "sdpa")])
def test_flash_attention_is_used_where_it_can_be_and_never_needed(monkeypatch, device, dtype, installed, attention):
    asked = []
    monkeypatch.setattr(renio, "is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(renio.AutoModelForCausalLM, "from_pretrained",
                        lambda name, **words: asked.append(words["attn_implementation"]) or torch.nn.Linear(1, 1))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    renio.load_model("any", dtype, device)
    assert asked == [attention]
