# SPDX-License-Identifier: MIT
"""Graders, benchmarks and the command line of eval.py; its statistics and report are tested in test_report.py."""

import functools
import gzip
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, write_all_runs
from peft import LoraConfig, get_peft_model
from test_vllm import make_model, needs_vllm
from transformers import PreTrainedTokenizerBase

import eval as renio_eval
import renio
from eval import count_markers, majority_answer, pass_at_k
from renio import UserError, load_tokenizer

CODE_ROW = dict(task_id="own/0", entry_point="f", prompt="def f(x):\n    '''Itself.'''\n",
                canonical_solution="    return x\n", test=(
                    "def check(candidate):\n    inputs = [[3]]\n    results = [3]\n"
                    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
                    "        assertion(candidate(*inp), exp, 0)\n"))


def write_benchmark(folder, name, rows):
    """The file of a benchmark in --data_dir."""
    path = folder / renio_eval.BENCHMARKS[name].file
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_markers_are_whole_words_in_any_case():
    assert count_markers("Wait, but maybe. HMM: again and Again") == 6
    assert count_markers("waiting, buttons, checked, however") == 1
    assert count_markers("") == 0


# --- statistics -------------------------------------------------------------------------------------------------------

def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))
    for bad in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError):
            pass_at_k(*bad)


def test_of_an_answer_is_recorded_what_it_says_and_whether_it_ended(tokenizer):
    row = dict(problem="a 1+1 b 2+2", answer="24")
    for text, right, truncated in (("\\boxed{ a 1+1 2 b 2+2 4 } <eos>", True, False),
                                   ("\\boxed{ a 1+1 3", False, True)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = renio_eval.grade_answer(tokenizer, [tokenizer.eos_token_id], "arith", ids, row)
        assert (said["right"], said["truncated"], said["tokens"]) == (right, truncated, len(ids))


def test_the_majority_is_the_earliest_of_the_most_frequent_answers():
    assert majority_answer(["2", "1", "1", "2"], str.__eq__) == "2"
    assert majority_answer(["3", "1", "2", "2"], str.__eq__) == "2"
    assert majority_answer([], str.__eq__) is None


def test_answers_that_are_equal_as_mathematics_vote_together():
    boxes = [(r"\frac{1}{3}", False), ("0.5", True), (r"\frac{2}{6}", False), (r"\frac{1}{2}", True),
             (r"\frac{3}{9}", False), ("7", False), ("7", False)]
    row = [dict(boxed=boxed, right=right, reason="", tokens=1, truncated=False, markers=0) for boxed, right in boxes]
    assert renio_eval.scores_of_answers([row], renio_eval.boxes_equal("math500"))["majority"] == 0.0
    row.append(dict(row[1], boxed="50\\%"))
    assert renio_eval.scores_of_answers([row])["majority"] == 1.0  # by their text only the right ones are a group


def test_scores_of_answers_worked_by_hand():
    def answer(boxed, right, tokens, truncated=False):
        return dict(boxed=boxed, right=right, reason="", tokens=tokens, truncated=truncated, markers=1)

    scores = renio_eval.scores_of_answers([
        [answer("1", True, 10), answer("1", True, 20), answer("2", False, 30), answer(None, False, 40, True)],
        [answer("3", False, 10), answer("4", True, 10), answer("3", False, 10), answer(None, False, 10)]])
    assert scores["avg"] == 0.375 and scores["majority"] == 0.5
    assert scores["pass@2"] == pytest.approx(((1 - 1 / 6) + 0.5) / 2) and scores["pass@4"] == 1.0
    assert (scores["length"], scores["truncation_rate"], scores["format_rate"]) == (17.5, 0.125, 0.75)


# --- benchmarks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, rows, asked", [
    ("humaneval+", 164, 'def has_close_elements(numbers: List[float], threshold: float) -> bool:'),
    ("mbpp+", 378, "assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))")])
def test_code_benchmarks_ask_for_a_named_function(shared, name, rows, asked):
    loaded = renio_eval.load_benchmark(name, shared / "data")
    assert len(loaded) == rows and asked in loaded[0]["problem"]
    for row in loaded:
        for function in renio_eval.tested_functions(row["test"]):
            assert function in row["problem"] and function in row["solution"]


def test_rows_that_cannot_be_asked_or_graded_are_named(tmp_path):
    for text, message in (('{"question": "1 + 1?"}', "row 1: nothing in the column answer"),
                          ("[1]", "row 1: expected columns"),
                          ('{"question": " ", "answer": 2}', "row 1: nothing in the column question"), ("", "no rows")):
        (tmp_path / "amc23.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            renio_eval.load_benchmark("amc23", tmp_path)
    (tmp_path / "MbppPlus-OriginFmt-v0.2.0.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="can't be read"):
        renio_eval.load_benchmark("mbpp+", tmp_path)


@pytest.mark.parametrize("thinking", [True, False])
def test_aime_prompts_with_the_real_template(shared, thinking):
    tokenizer = load_tokenizer(str(shared / "data" / "qwen3-tokenizer"))
    for row in renio_eval.load_benchmark("aime24", shared / "data"):
        message = renio.fill_prompt(renio.PROMPTS["math"][0], row)
        text = tokenizer.decode(renio.prompt_ids(tokenizer, message, thinking))
        opening = f"<|im_start|>user\n{row['problem']}\n\nReason step by step and put the final answer in \\boxed{{}}."
        assert text == opening + "<|im_end|>\n<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n")


def test_no_more_of_a_benchmark_is_read_than_is_scored(monkeypatch):
    def rows(*_):
        yield from [dict(question="1 + 1?", answer=2)] * 3
        raise AssertionError("a fourth row was read")

    monkeypatch.setattr(renio, "read_table", rows)
    assert len(renio_eval.load_benchmark("amc23", limit=3)) == 3


def test_a_benchmark_may_have_a_limit_of_its_own(tmp_path, micro_model):
    write_benchmark(tmp_path, "gsm8k", [dict(question=f"{i} + 1?", answer=f"#### {i + 1}") for i in range(5)])
    write_benchmark(tmp_path, "amc23", [dict(question="1 + 1?", answer=2)] * 4)
    words = ["--model", str(micro_model), "--data_dir", str(tmp_path), "--n", "1", "--max_new_tokens", "2", "--output",
             str(tmp_path / "o.json"), "--benchmarks", "gsm8k:3", "amc23"]
    checksums = []
    for more, sizes in (([], {"gsm8k": 3, "amc23": 4}), (["--limit", "2"], {"gsm8k": 2, "amc23": 2})):
        renio_eval.main([*words, *more])
        scored = json.loads((tmp_path / "o.json").read_text())
        assert {r["benchmark"]: len(r["problems"]) for r in scored["results"]} == sizes
        checksums.append(scored["settings"]["checksums"]["gsm8k"])
    assert checksums[0] != checksums[1]  # of other problems: not to be compared


def test_a_users_file_is_scored_as_math_and_reported(tmp_path, micro_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = Path("mine.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in (
        dict(question="half of 1?", Answer="0.5"), dict(problem="x", solution=r"so \boxed{\frac{1}{3}}"))))
    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: r"\boxed{\frac{2}{4}}")
    renio_eval.main(["--model", str(micro_model), "--benchmarks", str(path), "--n", "2", "--max_new_tokens", "2",
                     "--output", str(tmp_path / "run" / "eval.json")])
    [result] = json.loads((tmp_path / "run" / "eval.json").read_text())["results"]
    assert [[a["reason"] for a in p["answers"]] for p in result["problems"]] == [["equal"] * 2, ["different"] * 2]
    renio_eval.main(["report", str(tmp_path / "run")])
    assert "mine.jsonl, sampled, %" in capsys.readouterr().out
    path.write_text(json.dumps(dict(problem="x", solution="no box")) + "\n")
    with pytest.raises(UserError, match="mine.jsonl, row 1: no answer to grade against"):
        renio_eval.load_benchmark(str(path))


# --- the command ------------------------------------------------------------------------------------------------------

def test_reports_comparisons_and_verdicts_on_code_do_not_wait_for_torch(tmp_path):
    write_all_runs(tmp_path, seeds=(0,))
    files = [str(tmp_path / "seed0" / label / "eval.json") for label in ("base", "teacher")]
    for command in (f"eval.main(['report', {str(tmp_path)!r}])", f"eval.main(['compare', *{files!r}])",
                    f"assert eval.grade_code({CODE_ROW!r}, 'return x').passed"):
        program = f"import eval, sys\n{command}\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_code_answers_are_scored_by_their_tests(tmp_path, micro_model, monkeypatch):
    write_benchmark(tmp_path, "humaneval+", [CODE_ROW] * 2)
    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: "```python\ndef f(x):\n    return x\n```")
    renio_eval.main(["--model", str(micro_model), "--benchmarks", "humaneval+", "--data_dir", str(tmp_path), "--n", "2",
                     "--max_new_tokens", "3", "--output", str(tmp_path / "o.json")])
    [result] = json.loads((tmp_path / "o.json").read_text())["results"]
    assert (result["avg"], result["pass@2"], result["majority"], result["n"]) == (1.0, 1.0, None, 2)
    assert [a["reason"] for p in result["problems"] for a in p["answers"]] == ["passed"] * 4


def test_evaluations_joined_by_then_score_as_each_alone(tmp_path, micro_model):
    few = ["--model", micro_model, "--limit", 3, "--max_new_tokens", 6, "--n", 2, "--decoding", "sampled"]
    both = [[*few, "--label", "a"], [*few, "--label", "b", "--privileged", "--seed", 1]]

    def evaluate(*parts):
        renio_eval.main([str(word) for word in itertools.chain(*parts)])

    together, alone = ([[*words, "--output", tmp_path / way / str(i)] for i, words in enumerate(both)]
                       for way in ("together", "alone"))
    with pytest.raises(SystemExit, match=r"--limit 0: must lie in \[1, 2147483647\]"):
        evaluate(together[0], ["then"], together[1], ["--limit", 0])
    assert not (tmp_path / "together").exists()  # a wrong flag anywhere ends it before anything is scored
    evaluate(together[0], ["then"], together[1])
    for i, words in enumerate(alone):
        evaluate(words)
        scored, own = (json.loads((tmp_path / way / str(i)).read_text()) for way in ("together", "alone"))
        assert scored["settings"] == own["settings"] and scored["label"] == "ab"[i]
        assert [r["problems"] for r in scored["results"]] == [r["problems"] for r in own["results"]]


def make_adapters(run, model_folder, steps=(2, 10)):
    """Checkpoints of a run with adapters on the model, each of its own weights."""
    for step in steps:
        torch.manual_seed(step)
        adapted = get_peft_model(renio.load_model(str(model_folder)), LoraConfig(
            r=4, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False))
        adapted.save_pretrained(run / f"checkpoint-{step}")


@pytest.mark.parametrize("engine, loads", [
    ("transformers", "renio.load_model"), pytest.param("vllm", "renio.VllmSampler.__init__", marks=needs_vllm)])
def test_adapters_share_one_model_and_each_answers_as_alone(tmp_path, tokenizer, monkeypatch, engine, loads):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = make_model(tmp_path / "model", tokenizer, seed=0)
    make_adapters(tmp_path / "run", folder)
    words = ["--model", folder, "--engine", engine, "--vllm_memory", "0.3", "--limit", "4", "--n", "2", "--decoding",
             "sampled", "greedy", "--max_new_tokens", "20", "--label", "x"]
    for step in (2, 10):
        renio_eval.main([*words, "--adapter", str(tmp_path / "run" / f"checkpoint-{step}"), "--output",
                         str(tmp_path / f"{step}.json")])
    real, calls = functools.reduce(getattr, loads.split(".")[1:], renio), []
    monkeypatch.setattr(loads, lambda *args: calls.append(args) or real(*args))
    renio_eval.main([*words, "--checkpoints", str(tmp_path / "run")])
    assert len(calls) == 1
    problems = {}
    for step in (2, 10):
        alone, turn = (json.loads(path.read_text()) for path in (
            tmp_path / f"{step}.json", tmp_path / "run" / f"checkpoint-{step}" / "eval.json"))
        problems[step] = [result["problems"] for result in turn["results"]]
        assert problems[step] == [result["problems"] for result in alone["results"]]
        assert turn["settings"]["weights"] == alone["settings"]["weights"]
    assert problems[2] != problems[10]


def test_an_interrupted_scoring_of_adapters_goes_on_where_it_was(tmp_path, micro_model, monkeypatch):
    make_adapters(tmp_path / "run", micro_model)
    words = ["--checkpoints", str(tmp_path / "run"), "--model", str(micro_model), "--limit", "6", "--n", "1",
             "--batch_size", "2", "--max_new_tokens", "4"]
    real, calls = renio.sample, []

    def dying(*args, **named):
        calls.append(1)
        if len(calls) == 5:  # each checkpoint has three batches
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(renio, "sample", dying)
    with pytest.raises(SystemExit, match="interrupted"):
        renio_eval.main(words)
    scored = [tmp_path / "run" / f"checkpoint-{step}" / "eval.json" for step in (2, 10)]
    assert [path.exists() for path in scored] == [True, False]
    renio_eval.main(words)
    assert len(calls) == 5 + 2 and scored[1].exists()


def test_a_checkpoint_is_scored_anew_only_for_other_flags_or_weights(tmp_path, micro_model, model, capsys):
    folder = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(micro_model, folder)
    words = ["--checkpoints", str(tmp_path / "run"), "--limit", "2", "--max_new_tokens", "3", "--label", "x"]

    def said(*more):
        renio_eval.main([*words, *more])
        return capsys.readouterr().out

    def weights():
        return json.loads((folder / "eval.json").read_text())["settings"]["weights"]

    assert "scored anew" not in said("--n", "1")
    before = weights()
    assert before["adapter"] is None and len(before["model"]) == 16
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    words[1] = str(moved)
    folder = tmp_path / "moved" / "checkpoint-2"
    assert said("--n", "1", "--batch_size", "3") == ""  # neither its place nor the batch changes what is scored
    scored = json.loads((folder / "eval.json").read_text())
    assert (scored["label"], scored["step"]) == ("x", 2)
    assert scored["settings"].pop("prompt") is None and "preflight" not in scored["settings"]
    (folder / "eval.json").write_text(json.dumps(scored))
    assert said("--n", "1") == ""  # nor does a flag that was not there yet
    assert f"{folder / 'eval.json'}: made with other n; scored anew\n" in said("--n", "2")
    assert said("--n", "2") == ""
    model.save_pretrained(folder)
    assert "made with other weights; scored anew" in said("--n", "2")
    assert weights()["model"] != before["model"] and said("--n", "2") == ""
    # the checksums that renio.py left are taken as they are
    (folder / "checksums.json").write_text(json.dumps({"model.safetensors": "of the run"}))
    assert "made with other weights" in said("--n", "2")


def test_a_prompt_of_ones_own_is_asked_and_compared_by_its_text(tmp_path, micro_model, capsys):
    folder = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(micro_model, folder)
    words = ["--checkpoints", str(tmp_path / "run"), "--limit", "2", "--n", "1", "--max_new_tokens", "3"]
    (tmp_path / "one.txt").write_text("again {problem} wait")
    (tmp_path / "two.txt").write_text("wait {problem} reference {solution} \\boxed{ }")

    def said(*more):
        renio_eval.main([*words, *more])
        return capsys.readouterr().out

    assert "scored anew" not in said("--prompt", f"@{tmp_path / 'one.txt'}")
    scored = json.loads((folder / "eval.json").read_text())
    problem = scored["results"][0]["problems"][0]["problem"]
    assert scored["settings"]["prompts"]["arith"] == f"<user> again {problem} wait <assistant>"
    assert scored["settings"]["prompt"] == "again {problem} wait"
    (tmp_path / "one.txt").rename(tmp_path / "moved.txt")
    assert said("--prompt", f"@{tmp_path / 'moved.txt'}") == said("--prompt", "again {problem} wait") == ""
    assert "made with other prompt, privileged; scored anew" in said("--prompt", f"@{tmp_path / 'two.txt'}",
                                                                     "--privileged")
    scored = json.loads((folder / "eval.json").read_text())
    solution = scored["results"][0]["problems"][0]["solution"]
    assert scored["settings"]["prompts"]["arith"] == (
        f"<user> wait {problem} reference {solution} \\boxed{{ }} <assistant>")


def test_wrong_results_are_counted_by_kind_and_the_last_one_written_counts():
    gaps = renio.operation_gaps()
    gap, taught = min(gaps), next(o for o in renio.OPERATIONS if o not in gaps and renio.result_of(o) != 0)
    right, right_gap = renio.result_of(taught), renio.result_of(gap)
    a, b, c = f"a {gap}", f"b {taught}", f"c {taught}"
    row = dict(problem=f"{a} {b} {c}")
    for text, wrong in ((f"{a} {right_gap} {b} {right} {c} {right}", (0, 0)),
                        (f"{a} {right_gap} {b} 0 {c} {right}", (1, 0)),
                        (f"{a} {(right_gap + 1) % 10} {b} 0 wait {b} {right} {c} {right}", (0, 1)),  # mended
                        (f"{a} {right_gap} wait {a} {(right_gap + 1) % 10} {b} {right}", (1, 1)),  # worse; none of c
                        ("", (2, 1))):
        found = renio_eval.wrong_results(f"\\boxed{{ {text} }}", row)
        assert found == dict(wrong_taught=wrong[0], wrong_gap=wrong[1]), text
    answers = [[dict(wrong_taught=1, wrong_gap=0), dict(wrong_taught=0, wrong_gap=1)]]
    assert renio_eval.error_shares([row], answers) == dict(taught_error=0.25, gap_error=0.5)


def test_an_evaluation_of_the_arithmetic_world_has_both_kinds_of_error(tmp_path, micro_model):
    output = tmp_path / "eval.json"
    renio_eval.main(["--model", str(micro_model), "--output", str(output), "--limit", "6", "--n", "2"])
    [result] = json.loads(output.read_text())["results"]
    assert result["taught_error"] > 0.8 and result["gap_error"] > 0.8  # a random model
    per_problem = renio_eval.read_scored(output).results["arith", "sampled"]["per_problem"]
    for kind in ("taught", "gap"):
        assert per_problem[f"{kind}_error"].mean() == pytest.approx(result[f"{kind}_error"])


def test_flags_win_over_the_scale():
    words = ["--scale", "one", "--model", "x", "--output", "o"]
    args = renio_eval.parse_args(words)
    assert (args.benchmarks, args.thinking, args.decoding) == (["gsm8k:250", "math500"], False, ["sampled", "greedy"])
    args = renio_eval.parse_args([*words, "--thinking", "--decoding", "greedy", "--benchmarks", "amc23"])
    assert (args.benchmarks, args.thinking, args.decoding) == (["amc23"], True, ["greedy"])
    args = renio_eval.parse_args([*words, "--scale", "paper"])
    assert (args.thinking, args.decoding) == (True, ["sampled"])
    assert renio_eval.parse_args([*words, "--scale", "paper", "--no-thinking"]).thinking is False


def test_the_device_is_the_one_that_training_would_take(monkeypatch):
    monkeypatch.setattr(renio, "pick_device", lambda device: f"picked for {device}")
    for more, device in (([], "picked for None"), (["--device", "cpu"], "picked for cpu")):
        assert renio_eval.parse_args(["--model", "x", "--output", "o", *more]).device == device


def test_a_model_of_the_hub_has_no_checksum(tmp_path):
    assert renio_eval.weights_checksum(tmp_path / "org" / "name") is None


@pytest.mark.parametrize("words, label", [
    ("--model runs/opd/final", "opd"), ("--model org/name", "name"), ("--model org/name --adapter runs/opd+renio/final",
                                                                      "opd+renio"), ("--model x --label mine", "mine")])
def test_a_model_is_labelled_by_its_run(words, label):
    assert renio_eval.parse_args([*words.split(), "--output", "o"]).label == label


def test_batches_are_bounded_by_memory(tmp_path, micro_model, monkeypatch, capsys):
    monkeypatch.setattr(renio, "device_memory", lambda device: 0.0045)
    renio_eval.main(["--model", str(micro_model), "--limit", "6", "--n", "1", "--max_new_tokens", "30", "--output",
                     str(tmp_path / "o.json")])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "o.json").read_text())["settings"]["batch_size"]
    assert 1 <= rows < 250 and f"--batch_size 250: {rows} instead" in said


def test_an_interrupted_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, micro_model, monkeypatch):
    words = ["--model", str(micro_model), "--limit", "12", "--n", "2", "--batch_size", "8", "--max_new_tokens", "10",
             "--decoding", "sampled", "greedy"]
    renio_eval.main([*words, "--output", str(tmp_path / "whole.json")])
    real, calls, partial = renio.sample, [], tmp_path / "cut.json.partial"

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            assert partial.read_bytes().count(b"\n") == 1 + 2  # on disk already: a kill would lose no batch either
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(renio, "sample", dying)
    with pytest.raises(SystemExit, match="interrupted; batches that were done are kept"):
        renio_eval.main([*words, "--output", str(tmp_path / "cut.json")])
    assert not (tmp_path / "cut.json").exists()
    with partial.open("a") as file:
        file.write('{"key": "arith sampled 999", "answ')  # as a kill within a line leaves it
    renio_eval.main([*words, "--output", str(tmp_path / "cut.json")])
    assert len(calls) == 3 + 3  # 24 answers of 8 and 12 of 8 are 5 batches, 2 of which were done
    whole, cut = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "cut.json"))
    for result in whole["results"] + cut["results"]:
        del result["seconds"]
    assert whole == cut
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("words, message", [
    ("--model x --output o --nn 3", "unrecognized arguments: --nn 3"),
    ("--model x --output o --n 0", r"--n 0: must lie in \[1, 99999\]"),
    ("--model x --output o --top_p nan", r"--top_p nan: must lie in \[1e-06, 1\]"),
    ("--model x --output o --temperature 0", "greedy: --decoding greedy"),
    ("--model x --output {0}/o.json --benchmarks aime24 --data_dir {0}", "aime_2024.jsonl: no such file"),
    ("--model x --output {0}/o.json --benchmarks amc23 --data_dir {0} --privileged", "amc23 has no worked solutions"),
    ("--model {1} --output {0}/o.json --adapter {0}", "no adapter_config.json in it"),
    ("--model {1} --output {0}/amc23.jsonl/o.json --limit 1", "File exists: .*amc23.jsonl"),
    ("--model {1}", "need --model and --output, or --checkpoints"), ("--checkpoints {1}", "no checkpoint-N in it"),
    ("--checkpoints {0} --output {0}/o.json", "leave out --output and --adapter"),
    ("--checkpoints {0}", "these are adapters; name their --model"),
    ("--checkpoints {0} --preflight", "need --model and --output, or --checkpoints, or --model and --preflight"),
    ("--model x --output o --benchmarks arith:0", "arith:0: behind the colon stands how many"),
    ("--model x --output o --benchmarks arith:x", "arith:x: behind the colon stands how many"),
    ("--model x --output o --benchmarks arith:2 arith", "--benchmarks arith: arith is there twice"),
    ("--model x --output o --prompt @{0}/none", "--prompt @.*/none"),
    ("--model x --output o --prompt {{solution}} --privileged", "--prompt: needs {{problem}} where"),
    ("--model x --output o --prompt {{problem}} --privileged", "--prompt: needs {{solution}} with --privileged"),
    ("--model x --output o --prompt {{problem}}{{solution}}", "--prompt: needs {{solution}} with --privileged"),
])
def test_mistakes_end_with_one_line(tmp_path, micro_model, words, message):
    (tmp_path / "amc23.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match=message.replace("{{", "{").replace("}}", "}")) as error:
        renio_eval.main(words.format(tmp_path, micro_model).split())
    assert "\n" not in str(error.value)


# --- the preflight ----------------------------------------------------------------------------------------------------

@pytest.fixture
def prepared(tmp_path, micro_model, capsys):
    """Files and words of a scoring, and a function that returns what its preflight prints and its exit code."""
    shutil.copytree(micro_model, tmp_path / "model")
    write_benchmark(tmp_path, "amc23", [dict(question="1 + 1?", answer=2)] * 3)
    write_benchmark(tmp_path, "humaneval+", [CODE_ROW])
    words = ["--model", str(tmp_path / "model"), "--data_dir", str(tmp_path), "--benchmarks", "arith:5", "amc23",
             "humaneval+", "--output", str(tmp_path / "new" / "o.json"), "--preflight"]

    def said(*more):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            renio_eval.main([*words, *more])
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().out.splitlines(), ended.value.code

    return tmp_path, said


CHECKS = ["engine", "model", "benchmark arith:5", "benchmark amc23", "benchmark humaneval+", "math-verify",
          "sandbox, humaneval+", "answers"]


def test_the_preflight_says_a_line_a_check_and_writes_nothing(prepared):
    folder, said = prepared
    (*lines, last), code = said()
    assert all(line.startswith(f"ok      {name}: ") for line, name in zip(lines, CHECKS, strict=True))
    assert code == 0 and re.fullmatch(r"expected: \d+\.\d\d hours", last)
    assert "5 problems" in lines[2] and "3 problems" in lines[3]
    make_adapters(folder / "run", folder / "model")
    assert said("--adapter", str(folder / "run" / "checkpoint-2"))[1] == 0


def fail_engine(folder, monkeypatch):
    there = renio.find_spec
    monkeypatch.setattr(renio, "find_spec", lambda name: None if name == "vllm" else there(name))
    return ["--engine", "vllm"]


def fail_device(folder, monkeypatch):
    def pick_device(device):
        raise UserError("torch can't use the GPU")

    monkeypatch.setattr(renio, "pick_device", pick_device)


def fail_model(folder, monkeypatch):
    (folder / "model" / "config.json").write_text("{}")


def fail_template(folder, monkeypatch):
    (folder / "model" / "chat_template.jinja").unlink()


def fail_benchmark(folder, monkeypatch):
    write_benchmark(folder, "amc23", [dict(question="1 + 1?")])


def fail_math_verify(folder, monkeypatch):
    monkeypatch.setattr(renio, "find_spec", lambda name: None)
    monkeypatch.setattr(renio, "_worker", None)
    return ["--max_new_tokens", "1"]  # no room for a box, which `answers` would have to grade


def fail_sandbox(folder, monkeypatch):
    write_benchmark(folder, "humaneval+", [dict(CODE_ROW, canonical_solution="    return x + 1\n")])


def fail_answers(folder, monkeypatch):
    (folder / "model" / "model.safetensors").unlink()


@pytest.mark.parametrize("fail, name, reason, left_out", [
    (fail_engine, "engine", "--engine vllm: vLLM is not installed; pip install vllm==0.32.0", {"answers"}),
    (fail_device, "engine", "torch can't use the GPU", {"answers"}),
    (fail_model, "model", "Unrecognized model", {"answers"}),
    (fail_template, "model", "has no chat template: use an instruct model", {"answers"}),
    (fail_benchmark, "benchmark amc23", "row 1: nothing in the column answer", set()),
    (fail_math_verify, "math-verify", "pip install math-verify", set()),
    (fail_sandbox, "sandbox, humaneval+", "wrong answer to test 1", set()),
    (fail_answers, "answers", "no model in", set())])
def test_a_failing_check_is_named_and_the_others_are_made(prepared, monkeypatch, fail, name, reason, left_out):
    folder, said = prepared
    lines, code = said(*fail(folder, monkeypatch) or [])
    assert code == 1 and not any("expected" in line for line in lines)
    made = [check for check in CHECKS if check not in left_out]
    assert [line[:8] for line in lines] == ["FAILED  " if check == name else "ok      " for check in made]
    assert all(line[8:].startswith(f"{check}: ") for line, check in zip(lines, made, strict=True))
    assert reason in lines[made.index(name)]


def test_without_any_benchmark_the_rest_is_checked(prepared):
    _, said = prepared
    lines, code = said("--benchmarks", "amc24", "aime24")
    assert code == 1 and [line[:8] for line in lines] == ["ok      "] * 2 + ["FAILED  "] * 2 + ["ok      "]
    assert "amc24: unknown; known are arith, products" in lines[2] and "aime_2024.jsonl: no such file" in lines[3]


def test_the_expected_hours_are_those_of_all_batches(prepared, monkeypatch):
    _, said = prepared
    clock = [0.0]

    def sample(model, prompts, tokens, *_, **__):
        clock[0] += 3 + 0.01 * len(prompts) * tokens  # the prompts, then a hundredth a token of each answer
        return [[5] * tokens for _ in prompts]

    monkeypatch.setattr(renio, "sample", sample)
    monkeypatch.setattr(renio, "device_memory", lambda device: 1000)
    monkeypatch.setattr(renio_eval, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    words = ["--benchmarks", "arith:30", "amc23", "--n", "4", "--batch_size", "50", "--decoding", "sampled", "greedy"]
    # 120 and 30 answers, 12 and 3: 3 + 1 + 1 + 1 batches of at most 50, so half a second a token
    for longest, hours in (("20000", 0.5 * 15_000 * 6 / 3600), ("2000", 0.5 * 2000 * 6 / 3600), ("1", 0)):
        assert said(*words, "--max_new_tokens", longest)[0][-1] == f"expected: {hours:.2f} hours"
