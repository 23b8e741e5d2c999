# SPDX-License-Identifier: MIT
"""run_all.sh: what it plans, runs, skips, stops, says. No test depends on the flags of a line that users edit."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import Qwen3Config, Qwen3ForCausalLM

import renio

TARGETS = "main table1 table2 table3 table4 table8 figure1 figure3 figure4 figure5 figure6 controls all".split()
CHOICES = {"CUDA_VISIBLE_DEVICES", "SCALE", "VARIANT", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "NGPU", "JOBS", "ENGINE"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in CHOICES} | {
    "VIRTUAL_ENV": sys.prefix,  # the environment that runs the tests is the active one
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}

STUB = """#!/usr/bin/env bash
# in place of python: takes unequal times, makes what a run would make; FAILS names a folder whose job fails, HANGS ...
case "$*" in
  *" report "*) echo "report of ${*:3}"; exit ;;
  *importlib*) exit "${PACKAGES:-0}" ;;
  *.py*) ;;
  *) exit ;;
esac
echo "start ${CUDA_VISIBLE_DEVICES-none} $*" >>"$CALLS"
trap 'kill $!; exit 1' TERM
folder=$(sed -E 's#.*--(output_dir|output|checkpoints) ([^ ]*) .*#\\2#; s#/eval.json##' <<<"$* ")
case "$folder" in
  *"/${FAILS:-none}") sleep 0.3; echo out of luck; exit 1 ;;
  *"/${HANGS:-none}") echo $$ >"$CALLS.hangs"; sleep 60 & wait $! ;;
esac
sleep "0.$((1 + $(cksum <<<"$*" | cut -c 1-3) % 3))"
trap '' TERM # what is made is also logged
mkdir -p "$folder"
case "$*" in *eval.py*) touch "$folder/eval.json" ;; *) mkdir -p "$folder/final"; touch "$folder/rollouts.jsonl" ;; esac
echo "end ${CUDA_VISIBLE_DEVICES-none} $*" >>"$CALLS"
"""


def driver(count, memory=81559, version="580.65.06"):
    """The text of an nvidia-smi that knows so many GPUs; without any its error, which goes to stdout."""
    indices = f"seq 0 {count - 1}" if count else "echo NVIDIA-SMI has failed; exit 9"
    return f"""#!/usr/bin/env bash
case "$*" in *=index*) {indices} ;; *memory*) echo {memory} ;; *driver_version*) echo {version} ;; esac"""


@pytest.fixture
def machine(tmp_path):
    """Returns run(*words, gpus=0, script=..., **environment) with the stub of python; has .environment, .calls."""
    (tmp_path / "bin").mkdir()

    def environment(gpus=0, smi=None, **words):
        for name, text in {"python": STUB, "nvidia-smi": smi or driver(gpus)}.items():
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
        path = f"{tmp_path / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}"
        return ENVIRONMENT | {"PATH": path, "CALLS": f"{tmp_path}/calls", "OUT": f"{tmp_path}/out", **words}

    def run(*words, script=ROOT / "run_all.sh", **wanted):
        wanted = environment(**wanted)
        return subprocess.run(["bash", script, *words], capture_output=True, text=True, timeout=120, env=wanted)

    (tmp_path / "calls").touch()
    run.environment, run.calls = environment, lambda: (tmp_path / "calls").read_text().splitlines()
    return run


def planned(machine, *targets, **environment):
    """What DRY=1 prints, each command as its words; the script comes first, then its flags."""
    done = machine(*targets, DRY="1", **environment)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    return [words[next(i for i, word in enumerate(words) if word.endswith(".py")) :] for words in lines]


def flags_of(words):
    """{flag: its value} of a command, the last where one stands twice."""
    flags = {}
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, joined = word.partition("=")
            flags[name] = joined if equals else value
    return flags


def folder_of(words):
    flags = flags_of(words)
    return flags.get("--output_dir") or flags.get("--checkpoints") or flags["--output"].removesuffix("/eval.json")


def edited(tmp_path, **functions):
    """A copy of run_all.sh in which these functions, of one line each, have another body."""
    text = (ROOT / "run_all.sh").read_text()
    for name, body in functions.items():
        text, found = re.subn(rf"^{name}\(\) {{ .*; }}", f"{name}() {{ {body}; }}", text, flags=re.MULTILINE)
        assert found == 1, name
    path = tmp_path / "run_all.sh"
    path.write_text(text)
    (tmp_path / "requirements.txt").touch()
    return path


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("scale", ["micro", "small", "one", "paper"])
def test_all_makes_every_run_of_every_target_once_and_scores_it_with_its_training_seed(machine, scale, variant):
    words = dict(SCALE=scale, VARIANT=variant, SEEDS="3 4", PRIVILEGED_OPD="1")
    together = planned(machine, "all", **words)
    assert len(together) == len({tuple(line) for line in together})
    trained = [folder_of(line) for line in together if line[0] != "eval.py"]
    scored = [folder_of(line) for line in together if line[0] == "eval.py"]
    assert len(trained) == len(set(trained)) and len(scored) == len(set(scored))
    prepared = {folder_of(line) for line in together if "sft" in line}
    assert len(trained) > 40 and {*trained} - prepared <= {*scored}
    for line in together:
        flags = flags_of(line)
        assert flags["--scale"] == scale
        if line[0] == "eval.py":
            assert flags["--seed"] == flags["--train_seed"] and f"/seed{flags['--seed']}/" in f"{folder_of(line)}/"
        else:
            assert ("official" in line) is (variant == "official" and "sft" not in line)
    for target in ("main", "table3", "figure4", "figure5"):
        some = [" ".join(line) for line in planned(machine, target, **words)]
        assert some and set(some) <= {" ".join(line) for line in together}, target


RELEASED = {  # student: entry clip, gradient norm, rollouts a device, OPSD's threshold and clip, GRPO's rollouts
    "Qwen/Qwen3-1.7B": (None, None, "8", "0.8", "2.5", "4"),
    "Qwen/Qwen3-4B": (None, "0.1", "4", "0.01", "2.0", "2"),
    "Qwen/Qwen3-8B": ("0.06", "0.1", "2", "0.01", "2.0", "1"),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (None, None, "8", "0.8", "2.5", "4"),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("0.06", "0.1", "2", "0.01", "2.0", "1"),
}
BY_SIZE = ["--entry_clip", "--max_grad_norm", "--micro_batch_size", "--threshold", "--log_ratio_clip"]


@pytest.mark.parametrize("student", RELEASED)
def test_the_official_variant_has_the_releases_values_by_size_and_method(machine, tmp_path, student):
    script = edited(tmp_path, main="train a opsd; train b opd; train c grpo")
    entry, norm, rollouts, threshold, clip, of_grpo = RELEASED[student]
    words = dict(script=script, SCALE="paper", STUDENTS=student)
    opsd, opd, grpo = (flags_of(line) for line in planned(machine, "main", **words) if line[0] == "renio.py")
    assert [opsd.get(flag) for flag in BY_SIZE] == [entry, norm, rollouts, threshold, clip]
    assert [opd.get(flag) for flag in BY_SIZE] == [None, None, "8", "1.0", "2.0"]
    assert [grpo.get(flag) for flag in BY_SIZE] == [None, None, of_grpo, None, None]
    r1 = "R1" in student  # Tables 5 and 6
    assert opd["--teacher"] == ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B" if r1 else "Qwen/Qwen3-8B")
    assert [line.get("--learning_rate") for line in (opsd, opd, grpo)] == ["1e-6" if r1 else None] * 3
    assert [line.get("--prefix_tokens") for line in (opsd, opd, grpo)] == ["2048" if r1 else None] * 2 + [None]
    plain, *_ = (flags_of(line) for line in planned(machine, "main", VARIANT="paper", **words))
    assert [plain.get(flag) for flag in BY_SIZE] == [None, None, rollouts, None, None]
    many, *_ = (flags_of(line) for line in planned(machine, "main", NGPU="8", **words))
    assert many["--micro_batch_size"] == str(min(4, int(rollouts)))  # of a batch of 32


def test_scale_one_trains_each_student_by_its_method_and_paper_has_the_papers_students(machine):
    found = [flags_of(line) for line in planned(machine, "all", SCALE="one") if line[0] != "eval.py"]
    found = {(line["--model"], line["--method"], line.get("--teacher")) for line in found}
    assert found == {("Qwen/Qwen3-1.7B", "opsd", None), ("Qwen/Qwen3-0.6B", "opd", "Qwen/Qwen3-4B")}
    for target, students in (("table1", 5), ("table2", 2), ("table8", 1)):
        found = [flags_of(line) for line in planned(machine, target, SCALE="paper") if line[0] == "renio.py"]
        assert len({line["--model"] for line in found}) == students


def test_scale_small_has_one_base_and_one_teacher_for_all_seeds(machine):
    words = dict(SCALE="small", SEEDS="3 4", PRETRAINED="mine", OUT="out")
    found = [flags_of(line) for line in planned(machine, "main", **words)]
    prepared = [line for line in found if line.get("--method") == "sft"]
    assert [(line["--seed"], line["--model"]) for line in prepared] == [("0", "mine")] * 2
    assert [line["--output_dir"] for line in prepared] == ["out/base", "out/teacher"]
    trained = [line for line in found if "--method" in line and line not in prepared]
    assert Counter((line["--seed"], line["--model"]) for line in trained) == {(s, "out/base/final"): 4 for s in "34"}


def test_models_files_and_the_engine_are_those_of_the_environment(machine):
    words = dict(SCALE="paper", STUDENTS="a/student", TEACHER="a/teacher", DATASET="m m.jsonl", CODE_DATASET="c.jsonl")
    for gpus, engine, expected in ((1, "", "vllm"), (1, "transformers", "transformers"), (0, "", None)):
        for line in planned(machine, "table2", gpus=gpus, ENGINE=engine, DATA_DIR="b b", **words):
            flags = flags_of(line)
            if line[0] == "eval.py":
                assert flags["--data_dir"] == "b b" and flags.get("--engine") == expected
            else:
                assert (flags["--model"], flags["--teacher"]) == ("a/student", "a/teacher")
                assert flags["--dataset"] == ("c.jsonl" if "/code/" in flags["--output_dir"] else "m m.jsonl")
                assert flags.get("--rollout_engine") == expected


def test_list_and_help_name_the_targets_and_other_words_are_refused(machine):
    listed = machine("--list").stdout
    assert re.findall(r"^(\w+): .*: \S+ \S+(?: \| \S+ \S+){3}$", listed, re.MULTILINE) == TARGETS[:-1] + ["all"]
    head = (ROOT / "run_all.sh").read_text().split("set -e")[0].splitlines()[2:]
    for word in ("-h", "--help"):
        assert machine(word).stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in head]
    for words, environment in ((["nonsense"], {}), ([], dict(SCALE="huge")), ([], dict(VARIANT="other"))):
        done = machine(*words, **environment)
        assert done.returncode == 1 and "known" in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
    assert machine.calls() == []


@pytest.mark.parametrize("chosen, devices, training", [
    ("NGPU=1", "0123", 1), ("", "0123", 4), ("NGPU=2", "0123", 2), ("NGPU=1 CUDA_VISIBLE_DEVICES=2,3,5,7", "2357", 1),
    ("NGPU=1 JOBS=2", "01", 1)])  # fmt: skip
def test_no_two_jobs_share_a_gpu_and_all_gpus_work(machine, chosen, devices, training):
    words = dict(word.split("=") for word in chosen.split())
    done = machine("main", gpus=4, SCALE="paper", STUDENTS="a/b-1.7B", SEEDS="0 1", **words)
    assert done.returncode == 0, done.stderr
    busy, seen = Counter(), {"renio.py": set(), "eval.py": set()}
    for call in machine.calls():
        kind, gpus, *words = call.split()
        script = next(word for word in words if word.endswith(".py"))
        assert len(gpus.split(",")) == (1 if script == "eval.py" else training), call
        seen[script].update(gpus.split(","))
        busy.update({gpu: 1 if kind == "start" else -1 for gpu in gpus.split(",")})
        assert max(busy.values()) == 1 or kind == "end", call
    assert seen == {"renio.py": set(devices), "eval.py": set(devices)}


def test_what_is_finished_is_skipped_and_the_report_ends_the_run(machine, tmp_path):
    done = machine("table1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "seed0" / "opsd"
    lines = done.stdout.splitlines()
    assert lines[0] == "runs and scores: 0 are there, 9 to make"
    assert f"train 1 of 3, {folder}: started, log in {folder}.log" in lines
    assert sum(bool(re.fullmatch(r"(prepare|train|score) \d of \d, \S+: made in \d+ s", line)) for line in lines) == 9
    assert lines[-1] == f"report of {tmp_path}/out base base-with-solution opsd opsd+renio grpo"
    before = machine.calls()
    (tmp_path / "out" / "seed0" / "grpo" / "eval.json").unlink()
    done = machine("table1", SEEDS="0")
    assert "8 are there, 1 to make" in done.stdout and len(machine.calls()) == len(before) + 2


def test_a_failed_job_stops_the_rest_with_the_end_of_its_log_and_the_same_command_goes_on(machine, tmp_path):
    done = machine("main", JOBS="3", FAILS="opsd", HANGS="opsd+renio")
    assert done.returncode == 1 and "failed: python renio.py" in done.stderr
    assert done.stderr.splitlines()[-2:] == ["out of luck", "stopped; the same command goes on from here"]
    assert "report of" not in done.stdout and not any("eval.py" in call for call in machine.calls())
    assert not running(int((tmp_path / "calls.hangs").read_text()))
    done = machine("main", JOBS="3")
    ended = Counter(call for call in machine.calls() if call.startswith("end "))
    assert done.returncode == 0 and len(ended) == 15 and set(ended.values()) == {1}


def running(process):
    return subprocess.run(["ps", "-p", str(process)], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("by", ["terminal", signal.SIGTERM])
def test_ctrl_c_ends_all_jobs_with_one_line_and_the_same_command_goes_on(machine, tmp_path, by):
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("bash", ["bash", str(ROOT / "run_all.sh"), "table1"], machine.environment(HANGS="opsd"))
    while not (tmp_path / "calls.hangs").exists():
        time.sleep(0.02)
    if by == "terminal":
        os.write(terminal, b"\x03")  # the terminal sends SIGINT to the whole process group
    else:
        os.kill(process, by)
    said = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            said += piece
    except OSError:  # the terminal's other end is closed: no process is left that holds it
        pass
    assert os.waitpid(process, 0)[1] != 0
    last = said.decode().replace("^C", "").split("started, log in ")[-1].splitlines()[1:]
    last = [line for line in last if "made in" not in line]
    assert last == ["stopped; the same command goes on from the last checkpoints"]
    assert not running(int((tmp_path / "calls.hangs").read_text()))
    assert machine("table1").returncode == 0


def test_an_edited_flag_is_noticed_and_both_commands_are_named(machine, tmp_path):
    before, after = "train a opsd --skip_tokens 1", "train a opsd --skip_tokens 2"
    assert machine("main", script=edited(tmp_path, main=before)).returncode == 0
    assert machine("main", script=edited(tmp_path, main=before), gpus=1, JOBS="1", NGPU="1").returncode == 0
    calls, folder = machine.calls(), tmp_path / "out" / "seed0" / "a"
    done = machine("main", script=edited(tmp_path, main=after))
    assert done.returncode == 1 and machine.calls() == calls
    assert all(text in done.stderr for text in ("--skip_tokens 1", "--skip_tokens 2", f"rm -r {folder}"))
    subprocess.run(["rm", "-r", folder], check=True)
    assert machine("main", script=edited(tmp_path, main=after)).returncode == 0
    assert "--skip_tokens 2" in " ".join(machine.calls()[len(calls) :])


def test_an_old_driver_is_named_before_anything_is_installed(machine):
    for scale, version, good in (("paper", "570.1", False), ("one", "570.1", False), ("one", "600", True)):
        done = machine("setup", smi=driver(1, version=version), SCALE=scale, PACKAGES="1")
        assert ("installing" in done.stdout) is good and ("570.1" in done.stderr) is not good


def test_micro_says_which_scale_would_use_the_gpus_unless_it_was_asked_for(machine):
    for memory, scale in ((8188, "small"), (24564, "one"), (81559, "one or SCALE=paper")):
        assert f"SCALE={scale}\n" in machine("setup", smi=driver(1, memory)).stdout
    assert "SCALE" not in machine("setup", smi=driver(1), SCALE="micro").stdout + machine("setup").stdout


@pytest.mark.xdist_group("rehearsal")
def test_a_rehearsal_of_tables_1_and_2_at_paper_scale_goes_to_the_reports(tmp_path, shared):
    """With a random model of the Qwen3 architecture, the real tokenizer, and files in place of the hub."""
    tiny_qwen3, data = tmp_path / "Qwen3-tiny", shared / "data"
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    tokenizer = renio.load_tokenizer(str(data / "qwen3-tokenizer"))
    tokenizer.save_pretrained(tiny_qwen3)
    ends = dict(eos_token_id=tokenizer.eos_token_id, num_key_value_heads=1)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=151_936, **sizes, **ends)).save_pretrained(tiny_qwen3)
    (tmp_path / "code.jsonl").write_text('{"problem": "Add.", "deepseek_solution": "x", "domain": "code"}\n' * 64)
    words = dict(SCALE="paper", REHEARSE="1", STUDENTS=str(tiny_qwen3), TEACHER=str(tiny_qwen3), OUT=str(tmp_path))
    files = dict(DATA_DIR=f"{data}", DATASET=f"{data}/math_train_400.jsonl", CODE_DATASET=f"{tmp_path}/code.jsonl")
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "", **words, **files}
    words = ["bash", "run_all.sh", "table1", "table2"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / tiny_qwen3.name
    assert (folder / "report.md").stat().st_size > 0
    for run in ("opsd+renio", "opd+renio", "grpo", "base", "teacher", "code/base", "code/opd+renio"):
        assert (folder / "seed0" / run / "eval.json").stat().st_size > 0, run
