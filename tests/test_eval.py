# SPDX-License-Identifier: MIT
"""Benchmarks, evaluations and the command line of eval.py; its statistics and report are tested in test_report.py."""

import itertools
import json
import random
import re
import shutil
import sys
import weakref
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import run
from peft import LoraConfig, get_peft_model
from test_code import ROW, THRICE, TWICE

import eval as renio_eval
import renio
from renio import UserError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def evaluate(*words):
    """Run eval.py's command line, an evaluation at scale micro."""
    words = [str(word) for word in words]
    renio_eval.main(words if words[0] == "show" else ["--scale", "micro", *words])


def results_of(path):
    """Results of an eval.json, but for the seconds, which differ."""
    return [{k: v for k, v in result.items() if k != "seconds"} for result in json.loads(path.read_text())["results"]]


def answers_of(path):
    """Rows of an answers.jsonl in a fixed order, but for the seconds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return sorted(json.dumps(row | dict(seconds=0)) for row in rows)


def forbid_models(monkeypatch):
    for name in ("load_model", "load_tokenizer", "VllmSampler"):
        monkeypatch.setattr(renio, name, lambda *_: pytest.fail("a model was loaded"))


def make_adapters(run, model_folder, *steps):
    for step in steps:
        torch.manual_seed(step)
        lora = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
        get_peft_model(renio.load_model(str(model_folder)), lora).save_pretrained(run / f"checkpoint-{step}")


class FakeVllm:
    generation_config = SimpleNamespace(eos_token_id=1)

    def __init__(self, *_):
        pass

    def __call__(self, prompts, max_new_tokens, eos_ids, temperature, top_p, top_k, seed):
        for index in sorted(range(len(prompts)), key=lambda index: index % 3):
            yield index, random.Random(seed[index]).choices(range(5, 40), k=max_new_tokens)

    @staticmethod
    def close():
        pass


@pytest.fixture
def any_prompt(monkeypatch):
    """Prompts in English for the micro model, whose tokenizer knows none: renio.prompt_ids refuses them."""
    monkeypatch.setattr(renio, "prompt_ids", lambda tokenizer, messages, thinking: tokenizer(messages)["input_ids"])


def test_scores_are_those_worked_by_hand():
    rows, one, two = [dict(answer="1"), dict(answer=r"\frac{1}{2}")], "Wait, but \\boxed{1} waiting", "\\boxed{2}"
    texts = [one, one, two, "again and AGAIN", "\\boxed{0.5}", two, two, two]
    answers = [
        dict(problem=i // 4, text=text, tokens=10, truncated=i == 3, seconds=0.5) for i, text in enumerate(texts)
    ]
    answers[0]["tokens"] = 30
    scores = renio_eval.score(None, "amc23", "sampled", rows, answers)
    assert (scores["n"], scores["avg"], scores["per_problem"]) == (4, 0.375, [0.5, 0.25])
    assert (scores["length"], scores["truncation_rate"], scores["format_rate"]) == (12.5, 1 / 8, 7 / 8)
    assert (scores["markers"], scores["seconds"]) == (6 / 8, 4)


def test_incorrect_results_are_counted_by_kind_and_the_last_one_written_counts():
    gaps = renio.operation_gaps()
    gap, taught = min(gaps), next(o for o in renio.OPERATIONS if o not in gaps and renio.result_of(o) != 0)
    good, good_gap, a, b = renio.result_of(taught), renio.result_of(gap), f"a {gap}", f"b {taught}"
    bad_gap = (good_gap + 1) % 10
    cases = {f"{a} {good_gap} {b} {good}": (0, 0), f"{a} {good_gap} {b} 0": (1, 0), "": (1, 1)}
    cases |= {f"{a} {bad_gap} {b} 0 wait {b} {good}": (0, 1), f"{a} {good_gap} wait {a} {bad_gap} {b} {good}": (0, 1)}
    for text, shares in cases.items():
        found = renio_eval.error_shares([(f"\\boxed{{ {text} }}", dict(problem=f"{a} {b}"))])
        assert (found["taught_error"], found["gap_error"]) == shares, text


def test_code_is_scored_by_its_tests():
    answers = [dict(problem=0, text=text, tokens=9, truncated=False, seconds=1) for text in (TWICE, THRICE)]
    assert renio_eval.score(None, "humaneval+", "sampled", [dict(test=ROW)], answers)["per_problem"] == [0.5]


def test_a_code_benchmark_comes_from_the_hub_and_a_row_that_is_none_is_named(monkeypatch):
    row = dict(entry_point="double", canonical_solution="    return 2 * x", test="inputs = [[1]]")
    rows = [row | dict(prompt=f"def double(x):  # {i}") for i in range(3)]
    hub = datasets.Dataset.from_list(rows)
    streamed = hub.to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, streaming, **__: streamed if streaming else hub)
    for limit, count in ((None, 3), (2, 2)):
        assert [row["test"]["prompt"] for row in renio_eval.load_benchmark("humaneval+", limit=limit)] == [
            row["prompt"] for row in rows[:count]
        ]
    hub = datasets.Dataset.from_list([rows[0], rows[1] | dict(test="")])
    with pytest.raises(UserError, match="row 2: not a row of humaneval"):
        renio_eval.load_benchmark("humaneval+")


def test_code_benchmarks_ask_for_a_named_function(shared):
    for name, count in (("humaneval+", 164), ("mbpp+", 378)):
        rows = renio_eval.load_benchmark(name, shared / "data")
        assert len(rows) == count
        assert all((row["test"].get("entry_point") or row["test"]["test_list"][0]) in row["problem"] for row in rows)


def test_rows_that_cannot_be_asked_or_graded_are_named(tmp_path):
    for row, text in (
        (dict(question="1 + 1?"), "it has no answer to grade"),
        (dict(question=" ", answer=2), "no text in"),
    ):
        write_rows(tmp_path / "amc23.jsonl", [dict(question="1?", answer=1), row])
        with pytest.raises(UserError, match=f"amc23.jsonl, row 2: {text}"):
            renio_eval.load_benchmark("amc23", tmp_path)
    write_rows(tmp_path / "mine.jsonl", [dict(problem="x", solution="no box")])
    with pytest.raises(UserError, match="mine.jsonl, row 1: it has no answer to grade against"):
        renio_eval.load_benchmark(str(tmp_path / "mine.jsonl"), tmp_path / "elsewhere")


@pytest.fixture
def words(micro_model, any_prompt):
    words = "--benchmarks arith:9 products:3 --n 2 --batch_size 8 --max_new_tokens 10 --model"
    return [*words.split(), micro_model]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, words, monkeypatch, engine):
    monkeypatch.setattr(renio, "need_vllm", lambda flag: None)
    monkeypatch.setattr(renio, "VllmSampler", FakeVllm)
    monkeypatch.setattr(renio, "version_of", lambda name: "1")
    words = [*words, "--engine", engine]
    evaluate(*words, "--output", tmp_path / "whole" / "eval.json")
    real, path = renio.decode, tmp_path / "cut" / "answers.jsonl"
    for written, there in ((5, 0), (15, 0 if engine == "transformers" else 5)):  # within a batch, then within another
        calls = itertools.count(there)

        def dying(*args, written=written, calls=calls):
            if next(calls) == written:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(renio, "decode", dying)
        with pytest.raises(SystemExit, match="finished answers are kept"):
            evaluate(*words, "--output", tmp_path / "cut" / "eval.json")
        assert len(path.read_text().splitlines()) == 1 + written and not (tmp_path / "cut" / "eval.json").exists()
        path.write_text(path.read_text() + '{"step": null, "benchm')  # as a kill within a line leaves it
    monkeypatch.setattr(renio, "decode", real)
    evaluate(*words, "--output", tmp_path / "cut" / "eval.json")
    assert answers_of(path) == answers_of(tmp_path / "whole" / "answers.jsonl")
    assert results_of(tmp_path / "cut" / "eval.json") == results_of(tmp_path / "whole" / "eval.json")


def test_what_is_there_is_not_sampled_again(tmp_path, words, monkeypatch, capsys):
    output = tmp_path / "eval.json"
    evaluate(*words, "--output", output)
    before = json.loads(output.read_text())
    forbid_models(monkeypatch)
    capsys.readouterr()
    evaluate(*words, "--output", output, "--batch_size", 3)
    assert capsys.readouterr().out == f"{output} is there, skipped (remove it to grade its answers again)\n"
    output.unlink()
    evaluate(*words, "--output", output)
    assert json.loads(output.read_text()) == before


def test_a_file_made_with_other_settings_is_refused(tmp_path, words, micro_model, monkeypatch):
    output, copy = tmp_path / "eval.json", tmp_path / "copy"
    shutil.copytree(micro_model, copy)
    evaluate(*words, "--output", output)
    forbid_models(monkeypatch)
    cases = {"--max_new_tokens 11": "--max_new_tokens 10, now 11", "--seed 1 --n 3": "--n 2, now 3; --seed 0, now 1"}
    cases |= {"--limit 2": "--limit None, now 2", f"--model {copy}": f"--model {micro_model}, now {copy}"}
    problems = renio.SYNTHETIC["arith"](9, split="test")
    for path, files in ((output, f"{output} and {tmp_path}/answers.jsonl"), (tmp_path / "answers.jsonl",) * 2):
        for more, changed in cases.items():
            message = f"{path} was made with {changed}: remove {files}, or name another --output"
            with pytest.raises(SystemExit, match=re.escape(message)):
                evaluate(*words, *more.split(), "--output", output)
        with monkeypatch.context() as patch:
            patch.setitem(renio.SYNTHETIC, "arith", lambda n, split: problems[::-1])
            with pytest.raises(SystemExit, match=f"{path} was made with other problems of arith"):
                evaluate(*words, "--output", output)
        output.unlink(missing_ok=True)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_model_is_gone_before_the_next_is_loaded(tmp_path, micro_model, monkeypatch, engine):
    alive, real = [], renio.load_model

    def made(model):
        assert all(reference() is None for reference in alive)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(renio, "need_vllm", lambda flag: None)
    monkeypatch.setattr(renio, "load_model", lambda *args, **words: made(real(*args, **words)))
    monkeypatch.setattr(FakeVllm, "__init__", lambda self, *_: made(self) and None)
    monkeypatch.setattr(renio, "VllmSampler", FakeVllm)
    for step in (1, 2, 3):
        shutil.copytree(micro_model, tmp_path / "run" / f"checkpoint-{step}")
    words = ["--benchmarks", "arith:3", "--n", 1, "--max_new_tokens", 5, "--engine", engine]
    evaluate(*words, "--checkpoints", tmp_path / "run")
    assert len(alive) == 3


def test_training_and_scoring_run_on_a_tuned_device(tmp_path, micro_model, monkeypatch):
    tuned = []
    monkeypatch.setattr(renio, "tune", tuned.append)
    run(tmp_path / "run", f"--method opsd --model {micro_model}")
    evaluate("--model", micro_model, "--limit", 1, "--max_new_tokens", 2, "--output", tmp_path / "eval.json")
    assert tuned == [renio.pick_device()] * 2


def test_adapters_are_scored_as_alone_and_a_later_one_is_added(tmp_path, micro_model, monkeypatch):
    run, steps = tmp_path / "run", (2, 4, 10)
    words = ["--limit", 4, "--max_new_tokens", 20]
    make_adapters(run, micro_model, *steps)
    for step in steps:
        evaluate(*words, "--model", run / f"checkpoint-{step}", "--output", tmp_path / f"{step}.json")
    moved = tmp_path / "moved"  # its base has another name now
    shutil.copytree(run / "checkpoint-10", moved)
    config = (moved / "adapter_config.json").read_text()
    (moved / "adapter_config.json").write_text(config.replace(str(micro_model), "gone"))
    evaluate(*words, "--model", micro_model, "--adapter", moved, "--output", tmp_path / "named.json")
    alone = {step: answers_of(tmp_path / f"{step}.answers.jsonl") for step in steps}
    assert answers_of(tmp_path / "named.answers.jsonl") == alone[10] and alone[2] != alone[10]
    real, loaded = renio.load_model, []
    monkeypatch.setattr(renio, "load_model", lambda *args, **words: loaded.append(args[0]) or real(*args, **words))
    (run / "checkpoint-10").rename(tmp_path / "later")
    for names in ("24", ["2", "4", "10"]):
        evaluate(*words, "--checkpoints", run)
        assert loaded == [str(run / f"checkpoint-{name}") for name in names]
        (tmp_path / "later").exists() and (tmp_path / "later").rename(run / "checkpoint-10")
    assert [result["step"] for result in results_of(run / "eval.json")] == [2, 2, 4, 4, 10, 10]
    together = [json.dumps(json.loads(row) | dict(step=step)) for step, rows in alone.items() for row in rows]
    assert answers_of(run / "answers.jsonl") == sorted(together)


def test_flags_win_over_the_scale():
    words = ["--scale", "one", "--model", "runs/opd/final", "--output", "o"]
    args = renio_eval.parse_args(words)
    assert (args.benchmarks, args.n, args.thinking, args.label) == (["gsm8k:250", "math500"], 4, False, "opd")
    assert renio_eval.benchmark_limits(args) == {"gsm8k": 250, "math500": None}
    args = renio_eval.parse_args([*words, "--thinking", "--decoding", "greedy", "--benchmarks", "amc23", "--n", "3"])
    assert (args.benchmarks, args.n, args.thinking, args.decoding) == (["amc23"], 3, True, ["greedy"])
    args = renio_eval.parse_args([*words, "--scale", "paper", "--task", "code"])
    assert (args.benchmarks, args.n, args.decoding) == (["humaneval+", "mbpp+"], 4, ["sampled"])
    with pytest.raises(UserError, match="--scale: name one of micro, small, one, paper"):
        renio_eval.parse_args(words[2:])


MISTAKES = """
--model ./typo | ./typo: no such folder
--model {1} --adapter {0} | --adapter .*: not an adapter
--model {1} --task code | --task code: scale micro has none
--model {1} --nn 3 | unrecognized arguments: --nn 3
--model {1} --n 0 | --n 0: must be above 0
--model {1} --benchmarks arith:0 | arith:0: no number after the colon
--model {1} --benchmarks arith:2 arith | --benchmarks arith: arith is named twice
--model {1} --benchmarks amc24 | amc24: neither a .jsonl file nor one of arith, products
--model {1} --benchmarks amc23 --data_dir {0} --privileged | amc23 has no solutions
--checkpoints {0} | --checkpoints: leave out --output and --adapter
"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_mistakes_end_with_one_line_and_without_a_model(tmp_path, micro_model, monkeypatch, line):
    words, message = line.split(" | ")
    monkeypatch.setattr(renio, "load_model", lambda *_: pytest.fail("a model was loaded"))
    write_rows(tmp_path / "amc23.jsonl", [dict(question="1 + 1?", answer="2")])
    with pytest.raises(SystemExit, match=message) as error:
        evaluate(*words.format(tmp_path, micro_model).split(), "--output", tmp_path / "o.json")
    assert "\n" not in str(error.value) and not (tmp_path / "o.json").exists()


def test_show_prints_rollouts_by_weight_with_their_key_tokens_marked(tmp_path, micro_model, capsys, monkeypatch):
    run, words = tmp_path / "run", f"--method opsd --scale micro --model {micro_model} --max_steps 2 --batch_size 16"
    renio.main([*words.split(), "--save_rollouts", "True", "--output_dir", str(run)])
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    first = sorted((r for r in rollouts if r["step"] == 1), key=lambda r: -r["renio_weight"])
    capsys.readouterr()
    evaluate("show", run, "--step", 1)
    verdicts = {True: ", correct", False: ", incorrect", None: "not graded"}
    head, *shown = capsys.readouterr().out.split("\n\n")
    assert "step 1: 16 rollouts" in head and len(shown) == 4
    for text, rollout in ((shown[0], first[0]), (shown[-1], first[-1])):
        title, prompt, student = text.splitlines()
        assert title.startswith(f"weight {rollout['renio_weight']:.2f} (#")
        assert title.endswith(f"key tokens: {rollout['key_tokens']}") and verdicts[rollout["correct"]] in title
        assert prompt.endswith(rollout["problem"]) and student.count("[") == rollout["key_tokens"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    evaluate("show", run, "--step", 1)
    assert capsys.readouterr().out.count(";1;4m") == sum(first[i]["key_tokens"] for i in (0, 5, 10, 15))


def test_an_answer_cannot_write_to_the_terminal(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "decode", lambda ids: "\033[2J\r" * len(ids), raising=False)
    assert not {"\033", "\r"} & set(renio_eval.shaded(tokenizer, [1, 2], [0.0, 9.0], 0.8, colour=False))
