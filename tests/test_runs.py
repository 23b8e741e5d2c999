# SPDX-License-Identifier: MIT
"""Whole runs: micro-batches and processes, kills, full disks, broken numbers, flags, files, and the filter study."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import fields

import pytest
from conftest import ROOT, assert_close, assert_equal, outcome, run, train, write_rows

import filter_experiments
import renio

# --- micro-batches and processes --------------------------------------------------------------------------------------

SPLITS = {  # name -> flags of a run that ends the same however its batch is split
    "opsd": "--method opsd --weighting renio --lora_r 4 --threshold 0.1",
    "shuffled": "--method opsd --weighting renio_shuffled --threshold 0.1 --token_reduction mean",
    "grpo": "--method grpo --generations 4 --iterations 2 --temperature 2",
    "sft": "--method sft --dataset arith-gaps --prefix_tokens 30",
}


def same_rollouts(sampler, examples, step, config, devices):
    """However many processes there are: each samples the whole batch and takes its part."""
    rollouts, _ = renio.draw_rollouts(sampler, examples, step, config, renio.Devices("cpu"))
    return devices.part_of(rollouts), {}


def run_split(name, micro_batch_size, model, folder):
    words = f"{SPLITS[name]} --model {model} --batch_size 8 --micro_batch_size {micro_batch_size} --max_steps 3"
    renio.arith_verdict = lambda text, answer: (
        "equal" if sum(text.encode()) % 2 else "different"
    )  # so that rewards differ
    renio.extract_boxed = lambda text: text
    train(folder, words, run=lambda config: renio.train(config, draw=same_rollouts))


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, micro_model):
    """The folder of the runs of SPLITS that two processes made together."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, __file__, micro_model, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", SPLITS)
def test_any_split_over_micro_batches_and_processes_ends_in_the_same_weights(
    tmp_path, micro_model, in_two_processes, name, monkeypatch
):
    for function in ("arith_verdict", "extract_boxed"):
        monkeypatch.setattr(renio, function, None)  # which run_split sets; taken back afterwards
    for size in (8, 3, 1):
        run_split(name, size, micro_model, tmp_path / str(size))
    expected = outcome(tmp_path / "8")
    assert all(row["grad_norm"] > 0 for row in expected.metrics)
    for folder in (tmp_path / "3", tmp_path / "1"):
        assert_close(outcome(folder), expected, 1e-5)
    if name == "shuffled":  # two processes deal the same weights, in another order
        first, other = (outcome(folder).metrics[0] for folder in (tmp_path / "8", in_two_processes / name))
        assert first["weight_mean"] == pytest.approx(other["weight_mean"]) and first["weight_max"] > 1.01
    else:
        assert_close(outcome(in_two_processes / name), expected, 1e-5)


def test_ranks_draw_different_rollouts_of_their_own_problems(micro_model, tmp_path):
    words = f"--method opsd --model {micro_model} --scale micro --output_dir {tmp_path} --batch_size 4"
    config = renio.parse_config(words.split())
    sampler = lambda examples, seed: [(example, seed) for example in examples]  # noqa: E731
    drawn = [renio.draw_rollouts(sampler, range(8), 1, config, renio.Devices("cpu", rank, 2))[0] for rank in (0, 1)]
    assert [example for example, _ in drawn[0] + drawn[1]] == [4, 5, 6, 7] and drawn[0][0][1] != drawn[1][0][1]


# --- interruptions ----------------------------------------------------------------------------------------------------

KINDS = {
    "sft": "--method sft --dataset arith-gaps",
    "grpo": "--method grpo --generations 2 --max_grad_norm 0.5",
    "opsd LoRA": "--method opsd --weighting renio_shuffled --lora_r 4 --dtype bfloat16 --gradient_checkpointing True "
    "--save_rollouts True",
}


FORKS = multiprocessing.get_context("forkserver")  # a fork of this process would inherit torch's dead threads
FORKS.set_forkserver_preload(["conftest"])


def killed(words, folder, step, delay):
    """Run in a process of its own that gets SIGKILL so many seconds after a step; False if it ended before."""
    process, metrics, steps = FORKS.Process(target=train, args=(folder, words)), folder / "metrics.jsonl", 0
    process.start()
    while steps < step and process.is_alive():
        steps = metrics.read_text().count("\n") if metrics.exists() else 0
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "the run failed by itself"
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_random_moments_ends_as_the_uninterrupted_one(tmp_path, micro_model, kind):
    words, rng = f"{KINDS[kind]} --model {micro_model} --max_steps 12 --save_steps 2", random.Random(kind)
    whole, resumed = run(tmp_path / "whole", words), f"{words} --resume"
    kills = [killed(resumed, tmp_path / "killed", rng.randrange(8), rng.uniform(0, 0.05)) for _ in range(3)]
    assert sum(kills) > 1
    assert_equal(run(tmp_path / "killed", resumed), whole)


@pytest.fixture
def heeded():
    """Ctrl-C is not ignored, as it is where the tests are a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_in_one_line_that_says_what_is_saved(tmp_path, micro_model, monkeypatch, capsys, heeded):
    words, update, calls = f"--method opsd --model {micro_model} --save_steps 1 --max_steps 3", renio.update, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(*args)

    monkeypatch.setattr(renio, "update", interrupted)
    with pytest.raises(SystemExit) as error:
        run(tmp_path / "run", words)
    assert error.value.code == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert "interrupted; what was saved before is whole, and the same command with --resume goes on" in line
    monkeypatch.undo()
    assert_equal(run(tmp_path / "run", words + " --resume"), run(tmp_path / "whole", words))


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(tmp_path, micro_model):
    words = f"--method opsd --model {micro_model} --save_steps 1"
    run(tmp_path / "run", f"{words} --max_steps 2")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # bytes a file
    try:
        with pytest.raises(SystemExit, match="checkpoint-2 can't be written .*--resume goes on") as error:
            run(tmp_path / "run", f"{words} --resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert [path.name for path in renio.checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert_equal(run(tmp_path / "run", f"{words} --resume"), run(tmp_path / "whole", words))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"Not a directory: .*{tmp_path.name}/file"):
        run(tmp_path / "file" / "run", "--method sft")


def break_gradients(monkeypatch, steps):
    """Make the gradients of these updates (from 1) not a number."""
    sft_step, calls = renio.sft_step, []

    def broken(student, *others):
        result = sft_step(student, *others)
        calls.append(1)
        if len(calls) in steps:
            next(student.parameters()).grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(renio, "sft_step", broken)


def test_an_update_that_is_not_finite_is_skipped_and_the_third_in_a_row_ends_the_run(tmp_path, monkeypatch):
    break_gradients(monkeypatch, {2, 3, 5})
    found = run(tmp_path / "run", "--method sft --max_steps 6")
    assert [row["skipped"] for row in found.metrics] == [False, True, True, False, True, False]
    assert [row["grad_norm"] is None for row in found.metrics] == [False, True, True, False, True, False]
    assert all(weight.isfinite().all() for weight in found.weights.values())
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    break_gradients(monkeypatch, {3, 4, 5})
    with pytest.raises(SystemExit, match="step 5: the third gradient in a row that is not finite"):
        run(tmp_path / "other", "--method sft --max_steps 6")


def test_a_folder_in_use_a_second_run_and_changed_settings_are_refused(tmp_path, micro_model):
    words = f"--method opsd --model {micro_model}"
    with renio.only_run_in(tmp_path):
        with pytest.raises(SystemExit, match="another run is at work in it"):
            run(tmp_path, words)
    run(tmp_path, words)
    with pytest.raises(SystemExit, match="holds a run already; pass --resume"):
        run(tmp_path, words)
    with pytest.raises(SystemExit, match=r"other settings: --beta 0.0 \(now 0.5\)"):
        run(tmp_path, f"{words} --resume --beta 0.5")
    with pytest.raises(SystemExit, match="is finished; to train anew remove it"):  # and keeps its metrics
        run(tmp_path, f"{words} --resume")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_may_split_its_batches_anew_unless_the_split_decides_the_weights(tmp_path, micro_model):
    for variant, change in (("paper", None), ("official", "other settings: --micro_batch_size 16")):
        words = f"--method opsd --model {micro_model} --variant {variant} --save_steps 1 --batch_size 16 --max_steps 2"
        whole = run(tmp_path / variant, words)
        shutil.rmtree(tmp_path / variant / "checkpoint-2")
        with pytest.raises(SystemExit, match=change) if change else contextlib.nullcontext():
            resumed = run(tmp_path / variant, f"{words} --resume --micro_batch_size 8")
            assert resumed.metrics[1]["loss"] == pytest.approx(whole.metrics[1]["loss"], rel=1e-5)


def test_a_batch_whose_weights_are_all_0_is_skipped(tmp_path, micro_model, monkeypatch):
    monkeypatch.setitem(renio.WEIGHTINGS, "renio", lambda tokens, config: 0 * tokens.log_ratio[:, :1])
    rows = run(tmp_path, f"--method opsd --model {micro_model} --weighting renio").metrics
    assert [row["skipped"] for row in rows] == [True, True]


# --- flags and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ("--learning_rat 1", "unrecognized arguments: --learning_rat"),
        ("--method ppo", "invalid choice: 'ppo'"),
        ("--method opd", "--method opd: give a --teacher"),
        ("--method opsd --teacher x", "--teacher: only for --method opd"),
        ("--method sft --weighting renio", "--weighting: sft has no divergence to weight"),
        ("--method grpo --save_rollouts True", "--save_rollouts: grpo"),
        ("--method grpo --privileged True", "--privileged: only for --method opd and opsd"),
        ("--method opsd --privileged_share 0.5", "--privileged_share: only for --method sft"),
        ("--method grpo --generations 5", "--generations: must divide --batch_size"),
        ("--method grpo --generations 1", "--generations 1: a group of one has no advantage"),
        ("--method grpo --iterations 0", "batch sizes and steps must be positive"),
        ("--method opsd --schedule_steps 10", "--schedule_steps: the learning rate would be 0"),
        ("--method opsd --beta 2", r"--beta 2.0: must lie in \[0, 1\]"),
        ("--method opsd --beta nan", r"--beta nan: must lie in \[0, 1\]"),
        ("--method opsd --temperature 0", "--temperature 0.0: must be above 0"),
        ("--method opsd --log_ratio_clip_min 4", "--log_ratio_clip_min: must be below"),
        ("--method opsd --variant official --log_ratio_clip_min 0", "no lower clip"),
        ("--method opsd --weighting correctness --log_ratio_clip inf", "finite"),
        ("--method opsd --skip_tokens 50", "--skip_tokens: leaves nothing of --prefix_tokens"),
        ("--method opsd --dtype bfloat16", "--lora_r 0.*bfloat16"),
        ("--method opsd --teacher_prompt {problem}", "has no {solution}; or --privileged False"),
        (
            "--method opd --teacher x --teacher_prompt {problem}{solution}",
            "--teacher_prompt: .*{solution}.*--privileged",
        ),
        ("--method opsd --teacher_prompt {solution}", "--teacher_prompt: has no {problem}"),
        ("--method opsd --student_prompt {problem}{solution}", "which the student must not see"),
        ("--method opsd --student_prompt solve", "--student_prompt: has no {problem}"),
        ("--method sft --rollout_engine vllm", "--rollout_engine vllm: sft has no rollouts"),
        ("--method opsd --rollout_engine vllm", "--rollout_engine vllm: takes adapters only"),
        ("--method opsd --model init:huge", "--model init:huge: known are init:micro"),
        ("--method opsd --dataset rows.jsonl", "rows.jsonl: no such file"),
        ("--method opsd --variant official --batch_size 24", "--batch_size.*multiple of 16"),
        ("--method opsd --model x", r"--model x: name its --scale too \(micro, small, one, paper\)"),
        ("--method opsd --model=x", "--model x: name its --scale too"),
    ],
)
def test_each_mistake_ends_with_one_line_that_names_the_flag(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message) as error:
        renio.main(["--output_dir", str(tmp_path / "run"), *words.split()])
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="--output_dir: required"):
        renio.main(["--method", "opsd"])


def test_explicit_flags_win_over_variant_and_variant_over_scale(tmp_path):
    def parsed(words):
        return renio.parse_config(["--output_dir", str(tmp_path), *words.split()])

    flags = parsed("--scale paper --method opsd --variant official --top_k 7")
    assert (flags.learning_rate, flags.prefix_tokens, flags.lora_r, flags.temperature) == (5e-6, 1024, 64, 1.1)
    assert (flags.entry_clip, flags.top_p, flags.top_k, flags.max_grad_norm) == (0.05, 0.95, 7, 1.0)
    assert (flags.max_prompt_tokens, flags.schedule_steps, flags.token_reduction) == (20_000, 126, "mean")
    grpo = parsed("--scale paper --method grpo --variant official")
    assert (grpo.student_thinking, grpo.top_p, grpo.entry_clip, grpo.schedule_steps) == (True, 1.0, None, 150)
    assert parsed("--scale paper --method grpo").prefix_tokens == 16_000
    assert not parsed("--scale paper --method grpo --student_thinking False").student_thinking
    assert parsed("--scale paper").teacher == "Qwen/Qwen3-8B" and parsed("--method sft").learning_rate == 2e-3
    assert parsed("--method opsd").privileged and not parsed("--method opd --teacher x").privileged


def test_help_shows_every_flag_once_in_groups_with_example_commands(capsys):
    with pytest.raises(SystemExit) as error:
        filter_experiments.main(["--method", "opsd", "--help"], config_class=filter_experiments.FilterConfig)
    text = capsys.readouterr().out
    assert error.value.code == 0 and text.count("\n    python filter_experiments.py --") == 1
    listed = [word for line in text.splitlines() for word in line.split()[:1] if line.startswith("  --")]
    assert sorted(listed) == sorted(f"--{field.name}" for field in fields(filter_experiments.FilterConfig))
    assert all(f"\n{title}:\n" in text for title in renio.GROUPS.values())


def test_what_a_run_leaves_behind(tmp_path, micro_model, capsys):
    words = f"--method opsd --weighting renio --model {micro_model} --save_rollouts True --save_steps 2 --beta 0.3"
    found = run(tmp_path, words)
    assert "reference" in capsys.readouterr().out  # the first teacher prompt is shown
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["checkpoint-2", "config.json", "final", "lock", "metrics.jsonl", "rollouts.jsonl"]
    )
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["flags"]["beta"] == 0.3 and kept["flags"]["model"] == micro_model and "output_dir" not in kept["flags"]
    assert kept["versions"]["torch"].startswith("2.") and kept.keys() == {"flags", "versions", "commit"}
    names = "step problem completion correct truncated renio_weight key_tokens log_ratios student_logprob"
    assert len(found.rollouts) == 8
    for row in found.rollouts:
        assert row.keys() == {*names.split(), "teacher_logprob", "teacher_entropy"}
        assert len(row["log_ratios"]) == len(row["completion"]) <= 8 and row["teacher_entropy"] > 0
        mean = sum(row["log_ratios"]) / len(row["log_ratios"])
        assert row["student_logprob"] - row["teacher_logprob"] == pytest.approx(mean, abs=1e-4)
    documented = renio.step_metrics.__doc__.replace(",", " ").split()
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics.keys() <= {*documented} and all(value is None or value == value for value in metrics.values())


def test_metrics_are_those_worked_out_from_the_rollouts(tmp_path, micro_model, verdicts):
    words = "--method opsd --weighting renio --threshold 0.1 --batch_size 16 --save_rollouts True --prefix_tokens 20"
    found = run(tmp_path, f"{words} --model {micro_model}")
    for row in found.metrics:
        rollouts = [rollout for rollout in found.rollouts if rollout["step"] == row["step"]]
        keys = [[log_ratio > 0.1 for log_ratio in rollout["log_ratios"]] for rollout in rollouts]
        assert 0 < row["first_token_key_share"] == statistics.fmean(key[0] for key in keys) < 1
        assert row["key_token_share"] == pytest.approx(sum(map(sum, keys)) / sum(map(len, keys)))
        weights = [rollout["renio_weight"] for rollout in rollouts]
        assert row["effective_sample_size"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
        assert (row["weight_mean"], row["weight_max"]) == pytest.approx((statistics.fmean(weights), max(weights)))
        graded = [rollout for rollout in rollouts if rollout["correct"] is not None]
        assert row["rollout_accuracy"] == statistics.fmean(rollout["correct"] for rollout in graded)
        correct, incorrect = ([x["renio_weight"] for x in graded if x["correct"] is value] for value in (True, False))
        wins = [(larger > other) + (larger == other) / 2 for larger in incorrect for other in correct]
        assert wins and row["weight_auc_incorrect"] == pytest.approx(statistics.fmean(wins))


def test_distillation_brings_the_student_nearer_to_the_teacher(tmp_path, micro_model):
    words = f"--method opd --teacher {micro_model} --model init:micro --weighting renio --learning_rate 3e-3"
    found = run(tmp_path, f"{words} --max_steps 12 --batch_size 8")
    assert found.metrics[-1]["divergence"] < 0.8 * found.metrics[0]["divergence"]


def test_renio_trains_alone_in_a_folder_and_needs_no_git(tmp_path):
    shutil.copy(ROOT / "renio.py", tmp_path)
    words = "renio.py --method sft --max_steps 1 --schedule_steps 0 --batch_size 2 --output_dir base"
    done = subprocess.run([sys.executable, *words.split()], cwd=tmp_path, capture_output=True, text=True,
        env=dict(PATH=str(tmp_path), OMP_NUM_THREADS="1"))  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "base" / "final").exists(), done.stderr
    assert json.loads((tmp_path / "base" / "config.json").read_text())["commit"] is None
    without_packages = subprocess.run(
        [sys.executable, "-S", *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert "run `bash run_all.sh setup`, then `source .venv/bin/activate`" in without_packages.stderr
    assert "Traceback" not in without_packages.stderr


# --- the filter study -------------------------------------------------------------------------------------------------


@pytest.fixture
def verdicts(monkeypatch):
    """Makes a third of the rollouts correct, a third incorrect, a third without an answer; keeps them by problem."""
    kept, call = defaultdict(list), renio.Sampler.__call__

    def graded(sampler, examples, seed):
        rollouts = call(sampler, examples, seed)
        rollouts = [r._replace(correct=(True, False, None)[sum(r.completion) % 3]) for r in rollouts]
        for rollout in rollouts:
            kept[rollout.example.row["problem"]].append(rollout)
        return rollouts

    monkeypatch.setattr(renio.Sampler, "__call__", graded)
    return kept


def study(folder, model, words):
    words = f"--method opsd --model {model} --save_rollouts True --max_problems 8 {words}"
    return run(folder, words, config_class=filter_experiments.FilterConfig, run=filter_experiments.study)


@pytest.mark.parametrize("problems", ["all", "mixed"])
@pytest.mark.parametrize("keep", ["correct", "incorrect", "any"])
def test_an_arm_trains_only_on_the_first_rollout_of_its_kind_of_each_problem(
    tmp_path, micro_model, verdicts, keep, problems
):
    found = study(tmp_path, micro_model, f"--keep {keep} --problems {problems} --draws 6")
    kinds = dict(correct=[True], incorrect=[False], any=[True, False])[keep]
    assert len(found.rollouts) == 8 and len({row["problem"] for row in found.rollouts}) == 8
    for row in found.rollouts:
        drawn = verdicts[row["problem"]]
        assert len(drawn) == (1 if problems == "all" else 6)
        assert [r.completion for r in drawn if r.correct in kinds][0] == row["completion"] and row["correct"] in kinds
        if problems == "mixed":
            assert {True, False} <= {r.correct for r in drawn}
    drawn = [rollout.correct for rollouts in verdicts.values() for rollout in rollouts]
    for name, kind in (("drawn_correct", True), ("drawn_ungradable", None)):
        assert sum(row[name] for row in found.metrics) == drawn.count(kind)
    assert sum(row["drawn"] for row in found.metrics) == len(drawn) and drawn.count(True) > 0


def test_both_mixed_arms_train_on_the_same_problems(tmp_path, micro_model, verdicts):
    problems = []
    for keep in ("correct", "incorrect"):
        found = study(tmp_path / keep, micro_model, f"--keep {keep} --problems mixed --draws 6 --max_steps 1")
        problems.append([row["problem"] for row in found.rollouts])
    assert problems[0] == problems[1]


def test_an_arm_goes_on_as_if_it_had_not_stopped(tmp_path, micro_model, verdicts):
    whole = study(tmp_path / "run", micro_model, "--keep incorrect --save_steps 1")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    assert_equal(study(tmp_path / "run", micro_model, "--keep incorrect --save_steps 1 --resume"), whole)


def test_an_arm_without_enough_rollouts_or_problems_says_so(tmp_path, micro_model):
    def refused(words):
        with pytest.raises(SystemExit) as error:
            study(tmp_path / "run", micro_model, words)
        return str(error.value)

    starved = "step 1: 0 of 4 rollouts are correct, in 32 draws (0 correct, 0 incorrect, 32 cut or without an answer"
    assert starved in refused("--keep correct --prefix_tokens 2")
    rows = [dict(problem=f"a {i}+1", solution=f"a {i}+1", answer="1") for i in range(9)]
    source = write_rows(tmp_path / "rows.jsonl", *rows)
    assert f"--dataset {source}: 9 problems for the 32 of a step" in refused(f"--dataset {source}")
    assert "--method sft: the study is of opd and opsd" in refused("--method sft --save_rollouts False")


if __name__ == "__main__":  # a process of torchrun, whose process group serves all runs
    renio.dist.init_process_group("gloo")
    renio.dist.destroy_process_group = lambda: None
    for split in SPLITS:
        run_split(split, 3, sys.argv[1], f"{sys.argv[2]}/{split}")
