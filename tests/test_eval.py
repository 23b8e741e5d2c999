"""Graders, benchmarks and the command line of eval.py; its statistics and report are tested in test_report.py."""

import gzip
import itertools
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, write_all_runs
from transformers import PreTrainedTokenizerBase

import eval as renio_eval
import renio
from eval import count_markers, majority_answer, pass_at_k
from renio import UserError, load_tokenizer


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
        text = tokenizer.decode(renio.prompt_ids(tokenizer, "math", row, thinking))
        opening = f"<|im_start|>user\n{row['problem']}\n\nReason step by step and put the final answer in \\boxed{{}}."
        assert text == opening + "<|im_end|>\n<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n")


def test_an_unknown_benchmark_lists_the_known_ones():
    with pytest.raises(UserError, match="aime26: unknown; known are arith, aime24"):
        renio_eval.load_benchmark("aime26")


# --- the command ------------------------------------------------------------------------------------------------------

def test_reports_comparisons_and_verdicts_on_code_do_not_wait_for_torch(tmp_path):
    write_all_runs(tmp_path, seeds=(0,))
    files = [str(tmp_path / "seed0" / label / "eval.json") for label in ("base", "teacher")]
    row = dict(task_id="own/0", entry_point="f", prompt="def f(x):\n    '''Itself.'''\n", test=(
        "def check(candidate):\n    inputs = [[3]]\n    results = [3]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n"))
    for command in (f"eval.main(['report', {str(tmp_path)!r}])", f"eval.main(['compare', *{files!r}])",
                    f"assert eval.grade_code({row!r}, 'return x').passed"):
        program = f"import eval, sys\n{command}\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, micro_model):
    words = [sys.executable, "eval.py", "--model", micro_model, "--limit", 40, "--n", 4, "--batch_size", 8,
             "--max_new_tokens", 20, "--output"]

    def start(name):
        return subprocess.Popen(list(map(str, [*words, tmp_path / name])), cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    assert start("whole.json").wait() == 0
    process, partial = start("cut.json"), tmp_path / "cut.json.partial"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut.json").exists()
    with partial.open("a") as file:
        file.write('{"key": "arith sampled 999", "answ')  # a line that the kill cut short
    assert start("cut.json").wait() == 0
    whole, cut = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "cut.json"))
    for result in whole["results"] + cut["results"]:
        del result["seconds"]
    assert whole == cut


def test_code_answers_are_scored_by_their_tests(tmp_path, micro_model, monkeypatch):
    rows = [dict(task_id="own/0", entry_point="f", prompt="def f(x):\n    '''Itself.'''\n",
                 canonical_solution="    return x\n", test=(
                     "def check(candidate):\n    inputs = [[3]]\n    results = [3]\n"
                     "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
                     "        assertion(candidate(*inp), exp, 0)\n"))] * 2
    with gzip.open(tmp_path / renio_eval.BENCHMARKS["humaneval+"].file, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: "```python\ndef f(x):\n    return x\n```")
    renio_eval.main(["--model", str(micro_model), "--benchmarks", "humaneval+", "--data_dir", str(tmp_path), "--n", "2",
                     "--max_new_tokens", "3", "--output", str(tmp_path / "o.json")])
    [result] = json.loads((tmp_path / "o.json").read_text())["results"]
    assert (result["avg"], result["pass@2"], result["majority"], result["n"]) == (1.0, 1.0, None, 2)
    assert [a["reason"] for p in result["problems"] for a in p["answers"]] == ["passed"] * 4


def test_every_checkpoint_of_a_run_is_scored_once(tmp_path, micro_model, capsys):
    for step in (2, 10):
        shutil.copytree(micro_model, tmp_path / "run" / f"checkpoint-{step}")
    words = ["--checkpoints", str(tmp_path / "run"), "--limit", "2", "--n", "1", "--max_new_tokens", "3",
             "--label", "x"]
    renio_eval.main(words)
    assert capsys.readouterr().out.count("Avg@1") == 2
    for step in (2, 10):
        scored = json.loads((tmp_path / "run" / f"checkpoint-{step}" / "eval.json").read_text())
        assert (scored["label"], scored["step"]) == ("x", step)
    renio_eval.main(words)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="no checkpoint-N in it"):
        renio_eval.main(["--checkpoints", str(tmp_path)])


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
    assert f"{folder / 'eval.json'}: made with other n; scored anew\n" in said("--n", "2")
    assert said("--n", "2") == ""
    model.save_pretrained(folder)
    assert "made with other weights; scored anew" in said("--n", "2")
    assert weights()["model"] != before["model"] and said("--n", "2") == ""
    # the checksums that renio.py left are taken as they are
    (folder / "checksums.json").write_text(json.dumps({"model.safetensors": "of the run"}))
    assert "made with other weights" in said("--n", "2")


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
    assert 1 <= rows < 256 and f"--batch_size 256: {rows} instead" in said


def test_an_interrupted_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, micro_model, monkeypatch):
    words = ["--model", str(micro_model), "--limit", "12", "--n", "2", "--batch_size", "8", "--max_new_tokens", "10",
             "--decoding", "sampled", "greedy"]
    renio_eval.main([*words, "--output", str(tmp_path / "whole.json")])
    real, calls = renio.sample, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(renio, "sample", dying)
    with pytest.raises(SystemExit, match="interrupted; batches that were done are kept"):
        renio_eval.main([*words, "--output", str(tmp_path / "cut.json")])
    assert not (tmp_path / "cut.json").exists()
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
    ("--model x --output o --limit 0", r"--limit 0: must lie in \[1, 2147483647\]"),
    ("--model x --output o --temperature 0", "greedy: --decoding greedy"),
    ("--model nowhere --output {0}/o.json", "no tokenizer in nowhere"),
    ("--model x --output {0}/o.json --benchmarks aime24 --data_dir {0}", "aime_2024.jsonl: no such file"),
    ("--model x --output {0}/o.json --benchmarks amc23 --data_dir {0} --privileged", "amc23 has no worked solutions"),
    ("--model {1} --output {0}/o.json --adapter {0}", "no adapter_config.json in it"),
    ("--model {1} --output {0}/amc23.jsonl/o.json --limit 1", "File exists: .*amc23.jsonl"),
    ("--model {1}", "need --model and --output, or --checkpoints"),
    ("--checkpoints {0} --output {0}/o.json", "leave out --output and --adapter"),
    ("--checkpoints {0}", "these are adapters; name their --model"),
])
def test_mistakes_end_with_one_line(tmp_path, micro_model, words, message):
    (tmp_path / "amc23.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match=message) as error:
        renio_eval.main(words.format(tmp_path, micro_model).split())
    assert "\n" not in str(error.value)
