"""run_all.sh: what its tables ask for, what it skips, resumes, stops and says."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_run
from test_commands import ENVIRONMENT, rows_of, run

import eval as renio_eval
import filter_experiments
import renio
from renio import load_tokenizer

TARGETS = ["table1", "table2", "table3", "table4", "table8", "figure1", "figure3", "figure4", "figure5", "figure6",
           "controls"]


def table(name):
    """The lines of a table at the head of run_all.sh, each as its words."""
    text = (ROOT / "run_all.sh").read_text().split(f"read -r -d '' {name} <<'END' || true\n")[1].split("\nEND\n")[0]
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def needs(line):
    """The runs and targets that a line of the targets table names."""
    return line[next(i for i, word in enumerate(line) if word.endswith(":")) + 1 :]


def test_every_run_of_the_table_belongs_to_a_target_and_every_target_to_known_runs():
    runs, targets = table("RUNS"), {line[0]: needs(line) for line in table("TARGETS")}
    assert len({(name, scales, kind) for name, scales, kind, *_ in runs}) == len(runs), "a run stands twice"
    reached, to_do = set(), ["main", "all"]
    while to_do:
        reached.update(to_do)
        to_do = [name for target in to_do for name in targets.get(target, []) if name not in reached]
    assert {line[0] for line in runs} == reached - set(targets)
    assert {*TARGETS, "main", "all"} == {name for name, *rest in table("TARGETS") if rest[0] != "-"}
    for _, scales, kind, *flags in runs:
        assert scales == "all" or set(scales.split(",")) <= {"micro", "small", "paper"}
        assert kind in {"prepare", "train", "curve", "filter", "matched", "eval"} and len(flags) >= 2


def test_the_list_is_the_targets_table_and_counts_what_a_target_runs(tmp_path):
    listed = run("bash", "run_all.sh", "--list").splitlines()
    for name, minutes, hours, *_ in (line for line in table("TARGETS") if line[1] != "-"):
        [line] = [line for line in listed if line.split()[:1] == [name]]
        _, runs, *figures = line.split()[:4]
        assert figures == [minutes, hours]
        for scale in ("micro", "paper"):
            trained = [words for words in commands(tmp_path, name, SCALE=scale) if "--output_dir" in words]
            prepared = [words for words in trained if "sft" in words]
            at_paper = re.search(r"at paper scale (\d+) runs", line)
            expected = at_paper[1] if scale == "paper" and at_paper else runs
            assert len(trained) - len(prepared) == int(expected), (name, scale)


def test_a_flag_edited_in_the_table_reaches_its_run_and_no_other(tmp_path):
    text = (ROOT / "run_all.sh").read_text()
    (tmp_path / "run_all.sh").write_text(text.replace("--log_ratio_clip inf", "--max_steps 7"))
    done = subprocess.run(["bash", tmp_path / "run_all.sh", "table4"], capture_output=True, text=True,
                          env={**ENVIRONMENT, "SCALE": "small", "DRY": "1", "OUT": "out"})
    before = commands("out", "table4", SCALE="small", SEEDS="0")
    after = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    [(old, new)] = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert "out/seed0/opd+renio-noclip" in new and new[-5:-2] == ["--max_steps", "7", "--output_dir"]


def test_bash_3_2_which_macos_has_knows_every_construct():
    """By name: where no bash 3.2 is, nothing else tells; where `bash` is one, all tests here run in it."""
    text = (ROOT / "run_all.sh").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    newer = (r"declare -[a-zA-Z]*[AngluN]|local -[a-zA-Z]*[Anglu]|mapfile|readarray|wait -n|coproc|globstar|\|&|&>>"
             r"|\$\{\w+(\[[^]]*\])?(,|\^|@[A-Z])|printf '%\(|\bEPOCH|\bBASHPID|\[-\d+\]|\[\[ -v|-v \w+\[")
    assert re.findall(newer, code) == []
    for name in ("WHOLE", "TRAINING", "training", "device"):  # an empty array counts as unset under set -u
        uses = [line for line in code.splitlines() if f'"${{{name}[@]}}"' in line]
        assert uses and all(f'${{{name}[@]+"${{{name}[@]}}"}}' in line for line in uses), name


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
    assert done.stdout.count("is there, skipped") == 2 * len(labels) + 2 * 2 + 1 and "started" not in done.stdout
    for number in range(1, 16):
        assert f"[{number} of 15] " in done.stdout
    assert "[1 of 15] base, seed 3: is there, skipped\n" in done.stdout
    assert "[15 of 15] scores of grpo, seed 3: is there, skipped\n" in done.stdout and " left" not in done.stdout
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
# in place of Python: makes what a run would make, hangs in one run until interrupted; on demand fails or dawdles
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
  ${FAILING:-none}) sleep 1; echo "out of luck"; exit 1 ;;
  ${SLOW:-none}) sleep 2 ;;
  */opsd+renio) [ -e "$CALLS.again" ] || { echo $$ >"$CALLS.pid"; touch "$CALLS.hangs"; exec sleep 60; } ;;
  */*-matched) mkdir -p "$folder"/{correct,incorrect,unfiltered}/final ;;
esac
[ -z "${folder:-}" ] || mkdir -p "$folder/final"
"""


@pytest.fixture
def stub(tmp_path):
    """The environment in which `python` is the stub, and the file in which it keeps its calls."""
    calls, python = tmp_path / "calls", tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STUB)
    python.chmod(0o755)
    return {**ENVIRONMENT, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls),
            "OUT": str(tmp_path / "out"), "SCALE": "micro"}, calls


def test_a_killed_target_goes_on_where_it_was(tmp_path, stub):
    environment, calls = stub
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


def test_progress_says_which_of_how_many_and_about_how_long(stub):
    environment, calls = stub
    calls.with_suffix(".again").touch()
    done = subprocess.run(["bash", "run_all.sh", "table2"], cwd=ROOT, capture_output=True, text=True,
                          env={**environment, "JOBS": "1", "SLOW": "*/opd"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("9 runs and scores, 9 to make")
    lines = re.findall(r"^\[(\d) of 9\] (.*), seed 0: made in (\d+) s(.*)$", done.stdout, re.MULTILINE)
    assert [int(number) for number, *_ in lines] == [*range(1, 10)]
    assert [name for _, name, *_ in lines] == [
        "base", "teacher", "opd", "opd+renio", "scores of base", "scores of base-with-solution", "scores of teacher",
        "scores of opd", "scores of opd+renio"]
    assert lines[0][3] == lines[1][3] == lines[-1][3] == ""  # no run of the table's kind yet; nothing left
    assert lines[2][2] in ("2", "3", "4") and lines[2][3] == f"; about {6 * int(lines[2][2])} s left"


@pytest.mark.parametrize("fails", [False, True])
def test_a_stopped_script_leaves_no_job_behind(stub, fails):
    """Stopped by a signal, or by another job that fails while one hangs."""
    environment, calls = stub
    environment = environment | ({"FAILING": "*/opsd"} if fails else {})
    first = subprocess.Popen(["bash", "run_all.sh", "table1"], cwd=ROOT, env=environment, text=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while not calls.with_suffix(".hangs").exists():
        assert first.poll() is None
        time.sleep(0.02)
    if not fails:
        first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=20)
    assert first.returncode == 1 and "stopped; the same command goes on from here\n" in said
    assert not fails or ("last lines of" in said and "out of luck" in said)
    hanging = calls.with_suffix(".pid").read_text().strip()
    for _ in range(100):
        if subprocess.run(["ps", "-p", hanging], stdout=subprocess.DEVNULL).returncode:
            return
        time.sleep(0.05)
    raise AssertionError("a job goes on")


def test_paper_commands_name_the_papers_settings(tmp_path):
    [opd] = [words for words in commands(tmp_path, "table2", SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B")
             if words[-2].endswith("Qwen3-1.7B/seed3/opd+renio") and "--weighting" in words]
    for pair in ("--model Qwen/Qwen3-1.7B", "--teacher Qwen/Qwen3-8B", "--dataset siyanzhao/Openthoughts_math_30k_opsd",
                 "--max_steps 100", "--lora_r 64", "--lora_alpha 128", "--prefix_tokens 1024", "--batch_size 32",
                 "--learning_rate 5e-6", "--temperature 1.1", "--rollout_engine vllm", "--weighting renio"):
        assert pair in " ".join(opd), pair
    found = [" ".join(words) for words in commands(tmp_path, "table1", SCALE="paper")]
    scoring = [line for line in found if line.startswith("eval.py") and "aime24 aime25 hmmt25" in line]
    assert scoring and all("--n 12" in line and "--max_new_tokens 38912" in line and
                           "--temperature 1.0 --top_p 0.95" in line for line in scoring)
    for student, rate, prefix in (("Qwen/Qwen3-8B", "5e-6", 1024),
                                  ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "1e-6", 2048)):
        assert any(f"--model {student}" in line and f"--learning_rate {rate}" in line and
                   f"--prefix_tokens {prefix}" in line for line in found)
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
    """The command as run_all.sh gives it, but for a tiny model, short texts, a file in place of the hub, the CPU."""
    environment = dict(SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B", ENGINE="transformers", OUT=str(tmp_path))
    found = commands(tmp_path, target, **environment)
    [(script, *words)] = [words for words in found
                          if "--output_dir" in words and words[words.index("--output_dir") + 1].endswith(f"/{name}")]
    folder = Path(words[words.index("--output_dir") + 1])
    code = name.startswith("code-")
    data = tmp_path / "code.jsonl"
    data.write_text("".join(json.dumps(dict(problem=f"Add {i}.", deepseek_solution="x", domain=domain)) + "\n"
                            for i, domain in enumerate(["math", "code"] * 4)))
    less = ["--dataset", data if code else shared / "data" / "math_train_400.jsonl", "--max_steps", 1,
            "--save_steps", 1, "--batch_size", 4, "--generations", 2, "--prefix_tokens", 6, "--dtype", "float32",
            "--device", "cpu", "--model", tiny_qwen3]
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
    renio_eval.main([*scoring[1:], "--model", str(tiny_qwen3), "--data_dir", str(shared / "data"), "--limit", "1",
                     "--n", "1", "--max_new_tokens", "6", "--dtype", "float32", "--device", "cpu", "--batch_size", "2"])
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
