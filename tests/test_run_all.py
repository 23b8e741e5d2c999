# SPDX-License-Identifier: MIT
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
           "batch", "controls"]


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
        assert scales in ("all", "official") or set(scales.split(",")) <= {"micro", "small", "one", "paper"}
        assert kind in {"prepare", "train", "curve", "filter", "matched", "hard", "eval"} and len(flags) >= 2


def test_the_list_is_the_targets_table_and_counts_what_a_target_runs(tmp_path):
    listed = run("bash", "run_all.sh", "--list").splitlines()
    for name, minutes, hours, gpu, *_ in (line for line in table("TARGETS") if line[1] != "-"):
        [line] = [line for line in listed if line.split()[:1] == [name]]
        _, micro, its_minutes, one, paper, *figures = line.split()[:7]
        assert [its_minutes, *figures] == [minutes, hours, gpu]
        for scale, runs in (("micro", micro), ("one", one), ("paper", paper)):
            trained = [words for words in commands(tmp_path, name, SCALE=scale) if "--output_dir" in words]
            assert len([words for words in trained if "sft" not in words]) == int(runs), (name, scale)
    assert "by arithmetic" in listed[-1] + listed[-2]


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
    for name in ("TRAINING", "training", "SIZED", "less"):  # an empty array counts as unset under set -u
        uses = [line for line in code.splitlines() if f'"${{{name}[@]}}"' in line]
        assert uses and all(f'${{{name}[@]+"${{{name}[@]}}"}}' in line for line in uses), name


def test_run_all_names_its_targets_and_refuses_others():
    listed = run("bash", "run_all.sh", "--list")
    for target in (*TARGETS, "main", "all", "test", "setup"):
        assert re.search(rf"^{target} +", listed, re.MULTILINE), target
    for words, environment in ((["nonsense"], {}), (["preflight", "nonsense"], {}), (["privileged"], {}),
                               ([], dict(SCALE="huge")), ([], dict(VARIANT="other"))):
        done = subprocess.run(["bash", "run_all.sh", *words], cwd=ROOT, capture_output=True, text=True,
                              env={**ENVIRONMENT, **environment})
        assert done.returncode == 2 and "known" in done.stderr or "unknown" in done.stderr


def run_all(out, *targets, **environment):
    return subprocess.run(["bash", "run_all.sh", *targets], cwd=ROOT, capture_output=True, text=True,
                          env={**ENVIRONMENT, "SCALE": "micro", "OUT": str(out), "SEEDS": "3", **environment})


def lines_of(out, *targets, **environment):
    """The commands that DRY=1 prints, each as its words."""
    done = run_all(out, *targets, DRY="1", **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def commands(out, *targets, **environment):
    """Likewise, without Python and its launcher: script first."""
    return [words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
            for words in lines_of(out, *targets, **environment)]


def runs_of(out, *targets, **environment):
    """Of the training commands: {the folder that it makes, below OUT: its flags}."""
    found = {}
    for words in commands(out, *targets, **environment):
        if "--output_dir" in words:
            flags = flags_of(words)
            found[flags["--output_dir"].removeprefix(f"{out}/").replace("seed3/", "")] = flags
    return found


def flags_of(words):
    """{flag: its value} of a command, the last where one stands twice."""
    flags = {}
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, joined = word.partition("=")
            flags[name] = joined if equals else value
    return flags


def picked(flags, *names):
    return [flags.get(f"--{name}") for name in names]


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
    for label in labels:  # as in published runs, which have scores but no weights
        (tmp_path / "seed3" / label / "final").rmdir()
    assert [words[1] for words in commands(tmp_path)] == ["report"]
    (tmp_path / "seed3" / "opd" / "checkpoint-50" / "eval.json").unlink()
    (tmp_path / "seed3" / "base" / "final").rmdir()  # from which runs start, whether it is scored or not
    trained = [words[words.index("--output_dir") + 1] for words in commands(tmp_path) if "--output_dir" in words]
    assert [Path(folder).name for folder in trained] == ["base", "opd"]


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("scale", ["micro", "small", "one", "paper"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_command_of_every_target_is_one_that_its_script_takes(tmp_path, target, scale, variant):
    found = commands(tmp_path, target, SCALE=scale, VARIANT=variant, ENGINE="transformers", PRIVILEGED_OPD="1")
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
    assert kinds["filter_experiments.py"] == (target == "figure1") * (3 if scale == "small" else 10)
    folders = [words[words.index("--output_dir") + 1] for words in found if "--output_dir" in words]
    assert len(folders) == len(set(folders)), "a run is made twice"


def test_all_makes_every_run_of_every_target_once(tmp_path):
    together = [" ".join(words) for words in commands(tmp_path, "all")]
    assert len(together) == len(set(together))
    for target in TARGETS:
        assert {" ".join(words) for words in commands(tmp_path, target)} <= set(together), target


RELEASED = {  # student: entry clip, gradient norm, samples a device, OPSD's threshold and clip, GRPO's samples
    "Qwen/Qwen3-1.7B": ("0.05", "1.0", "8", "0.8", "2.5", "4"),
    "Qwen/Qwen3-4B": ("0.05", "0.1", "4", "0.01", "2.0", "2"),
    "Qwen/Qwen3-8B": ("0.06", "0.1", "2", "0.01", "2.0", "1"),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("0.05", "1.0", "8", "0.8", "2.5", "4"),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("0.06", "0.1", "2", "0.01", "2.0", "1")}
VARIED = ("variant", "entry_clip", "max_grad_norm", "micro_batch_size", "threshold", "log_ratio_clip")


@pytest.mark.parametrize("student", RELEASED)
def test_the_official_variant_has_the_releases_values_by_size_and_method(tmp_path, student):
    entry, norm, samples, threshold, clip, of_grpo = RELEASED[student]
    found = runs_of(tmp_path, "table1", "table2", SCALE="paper", STUDENTS=student)
    name = student.split("/")[1]
    for run_name in ("opsd", "opsd+renio", "code-opsd", "code-opsd+renio"):
        assert picked(found[f"{name}/{run_name}"], *VARIED) == ["official", entry, norm, samples, threshold, clip]
    for run_name in ("opd", "opd+renio", "code-opd", "code-opd+renio"):
        assert picked(found[f"{name}/{run_name}"], *VARIED) == ["official", "0.05", "1.0", "8", "1.0", "2.0"]
    assert picked(found[f"{name}/grpo"], *VARIED) == ["official", None, None, of_grpo, None, None]
    found = runs_of(tmp_path, "table1", "table2", SCALE="paper", STUDENTS=student, VARIANT="paper")
    assert picked(found[f"{name}/opsd+renio"], *VARIED) == [None, None, None, samples, "0.8", "3.0"]
    assert picked(found[f"{name}/opd+renio"], *VARIED) == [None, None, None, "8", "0.8", "3.0"]
    assert picked(found[f"{name}/grpo"], *VARIED) == [None, None, None, of_grpo, None, None]


def test_the_variant_is_official_at_scales_one_and_paper_where_none_is_named(tmp_path):
    for scale in ("micro", "small", "one", "paper"):
        for variant in ("", "official", "paper"):
            words = commands(tmp_path, "figure3", SCALE=scale, VARIANT=variant)
            official = ["official" in flags for flags in words if flags[0] == "renio.py" and "sft" not in flags]
            expected = (variant or ("official" if scale in ("one", "paper") else "paper")) == "official"
            assert set(official) == {expected}, (scale, variant)
    assert not any("official" in words for words in commands(tmp_path, "figure3", VARIANT="official") if "sft" in words)


def test_another_variant_than_the_scales_own_has_a_folder_of_its_own():
    for scale, variant, folder in (("micro", "paper", "results/micro"), ("micro", "official", "results/micro-official"),
                                   ("one", "official", "results/one/Qwen3-0.6B"),
                                   ("one", "paper", "results/one-paper/Qwen3-0.6B")):
        assert commands("", "figure3", SCALE=scale, VARIANT=variant)[-1] == ["eval.py", "report", folder]


def test_a_runs_own_flags_win_over_those_of_the_variant(tmp_path):
    for variant in ("official", "paper"):
        found = runs_of(tmp_path, "table4", SCALE="one", VARIANT=variant, STUDENTS="Qwen/Qwen3-0.6B")
        usual = picked(found["Qwen3-0.6B/opd+renio"], "threshold", "log_ratio_clip")
        assert usual == (["1.0", "2.0"] if variant == "official" else ["0.8", "3.0"])
        assert picked(found["Qwen3-0.6B/opd+renio-noclip"], "threshold", "log_ratio_clip") == [usual[0], "inf"]
        assert picked(found["Qwen3-0.6B/opd+renio-nothreshold"], "threshold", "log_ratio_clip") == ["-inf", usual[1]]


@pytest.mark.parametrize("scale, variant", [("micro", "paper"), ("paper", "paper"), ("micro", "official"),
                                            ("paper", "official")])
def test_the_sweeps_cross_at_threshold_08_and_clip_3_in_one_run_under_either_variant(tmp_path, scale, variant):
    found = runs_of(tmp_path, "figure6", SCALE=scale, VARIANT=variant, STUDENTS="Qwen/Qwen3-1.7B")
    swept = {name.rpartition("opd+renio")[2]: [float(value or default) for value, default in zip(
        picked(flags, "threshold", "log_ratio_clip"), (0.8, 3.0), strict=True)]
             for name, flags in found.items() if "opd+renio" in name}
    centre = {"": [1.0, 2.0], "-clip3.0": [0.8, 3.0]} if variant == "official" else {"": [0.8, 3.0]}
    assert swept == centre | {"-clip2.0": [0.8, 2.0], "-clip2.5": [0.8, 2.5], "-threshold0.6": [0.6, 3.0],
                              "-threshold1.0": [1.0, 3.0]}


def test_grpo_alone_trains_with_thinking_on_at_paper_scale(tmp_path):
    found = runs_of(tmp_path, "all", SCALE="paper")
    assert len(found) > 50
    for name, flags in found.items():
        assert flags["--student_thinking"] == str(flags["--method"] == "grpo"), name
        if flags["--method"] == "grpo":  # 300 updates, two on each batch of rollouts
            assert picked(flags, "max_steps", "iterations", "temperature", "generations") == ["150", "2", "1.2", "8"]


def test_samples_a_device_shrink_where_more_devices_share_the_batch(tmp_path):
    for devices, samples in (("1", "8"), ("4", "8"), ("8", "4")):
        words = dict(SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B", NGPU=devices)
        assert runs_of(tmp_path, "table1", **words)["Qwen3-1.7B/opsd"]["--micro_batch_size"] == samples
        [launcher] = [" ".join(line) for line in lines_of(tmp_path, "table1", **words) if line[-2].endswith("/opsd")]
        assert ("torch.distributed.run" in launcher) is (devices != "1")
        assert devices == "1" or f"--nproc_per_node {devices} renio.py" in launcher


def test_privileged_opd_adds_its_rows_to_table_2_and_nowhere_else(tmp_path):
    for scale, code in (("micro", False), ("one", False), ("paper", True)):
        words = dict(SCALE=scale, STUDENTS="Qwen/Qwen3-1.7B" if scale == "paper" else "")
        plain, more = runs_of(tmp_path, "all", **words), runs_of(tmp_path, "all", **words, PRIVILEGED_OPD="1")
        added = {name.rpartition("/")[2]: flags for name, flags in more.items() if name not in plain}
        expected = {"opd-privileged", "opd+renio-privileged"}
        assert set(added) == expected | ({f"code-{name}" for name in expected} if code else set())
        for name, flags in added.items():
            like = next(f for n, f in plain.items() if n.endswith("/" + name.removesuffix("-privileged")) or
                        n == name.removesuffix("-privileged"))
            differing = {flag for flag in like | flags if like.get(flag) != flags.get(flag)}
            assert flags["--privileged"] == "True" and differing <= {"--privileged", "--output_dir", "--save_rollouts"}
        assert runs_of(tmp_path, "table1", **words) == runs_of(tmp_path, "table1", **words, PRIVILEGED_OPD="1")


def test_self_distillation_without_the_solution_is_a_control(tmp_path):
    for scale in ("micro", "small", "one", "paper"):
        found = {name.rpartition("/")[2]: flags for name, flags in runs_of(tmp_path, "controls", SCALE=scale).items()}
        assert ("opsd-nosolution" in found) is (scale != "small")
        if "opsd-nosolution" in found:
            assert picked(found["opsd-nosolution"], "method", "privileged", "weighting", "teacher_thinking") == [
                "opsd", "False", None, "False" if scale == "micro" else "True"]  # at micro both are asked alike
            assert "--privileged" not in found["opsd"]


def test_scale_small_has_one_base_and_one_teacher_for_all_seeds(tmp_path):
    found = commands(tmp_path, "main", SCALE="small", SEEDS="3 4")
    prepared = [words for words in found if "sft" in words]
    assert [words[words.index("--output_dir") + 1] for words in prepared] == [f"{tmp_path}/base", f"{tmp_path}/teacher"]
    assert all(picked(flags_of(words), "seed", "model") == ["0", renio.SMALL["model"]] for words in prepared)
    trained = [flags_of(words) for words in found if "--method" in words and "sft" not in words]
    assert len(trained) == 8 and {flags["--model"] for flags in trained} == {f"{tmp_path}/base/final"}
    assert {flags["--teacher"] for flags in trained if flags["--method"] == "opd"} == {f"{tmp_path}/teacher/final"}
    assert {flags["--seed"] for flags in trained} == {"3", "4"}


def test_scale_small_trains_and_scores_on_the_task_that_is_asked_for():
    for asked, task, folder in (("", "products", "results/small"), ("chain", "chain", "results/small-chain")):
        found = lines_of("", "main", SCALE="small", DATASET=asked)
        assert len(found) == 14 and found[-1][-2:] == ["report", folder]
        for words in found[:-1]:
            assert words[words.index("--dataset" if "renio.py" in words else "--benchmarks") + 1] == task
            assert f" {folder}/" in " ".join(words)


def test_scale_one_shows_each_student_with_its_own_method_on_one_device(tmp_path):
    found = runs_of(tmp_path, "all", SCALE="one")
    assert {(name.split("/")[0], *picked(flags, "model", "method", "teacher")) for name, flags in found.items()} == {
        ("Qwen3-1.7B", "Qwen/Qwen3-1.7B", "opsd", None), ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", "opd", "Qwen/Qwen3-4B")}
    assert "Qwen3-1.7B/opsd+renio@4096" in found and "Qwen3-0.6B/opd+renio@4096" in found
    for name, flags in found.items():
        batch = "128" if name.endswith("-batch128") else "32"
        assert picked(flags, "scale", "lora_r", "dtype", "max_prompt_tokens", "rollout_engine", "learning_rate",
                      "batch_size", "micro_batch_size") == ["one", "64", "bfloat16", "2048", "vllm", "5e-6", batch, "8"]
    assert found["Qwen3-1.7B/opsd"]["--prefix_tokens"] == "1024"
    lines = lines_of(tmp_path, "main", SCALE="one", CUDA_VISIBLE_DEVICES="")
    assert [line[1] for line in lines].count("renio.py") == 4
    scored = [line for line in lines if line[1] == "eval.py" and line[2] != "report"]
    assert {line[line.index("--model") + 1] for line in scored} == {"Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B",
                                                                   "Qwen/Qwen3-4B"}
    assert all("--benchmarks" not in line and "one" in line for line in scored)  # eval.py's preset
    done = run_all(tmp_path, "main", DRY="1", SCALE="one", STUDENTS="Qwen/Qwen3-8B")
    assert done.returncode == 2 and "Qwen/Qwen3-8B is not of scale one" in done.stderr


def test_files_take_the_place_of_the_hub_where_they_are_named(tmp_path):
    words = dict(SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B", DATASET="m.jsonl", CODE_DATASET="c.jsonl", DATA_DIR="b c")
    for script, *flags in commands(tmp_path, "table2", **words):
        if script == "eval.py":
            assert flags[0] == "report" or flags[flags.index("--data_dir") + 1] == "b c"
        else:
            code = flags[flags.index("--output_dir") + 1].split("/")[-1].startswith("code-")
            assert flags[flags.index("--dataset") + 1] == ("c.jsonl" if code else "m.jsonl")
    assert not any("--data_dir" in words for words in commands(tmp_path, "table2", SCALE="paper"))


# --- machines: GPUs and Python environments ---------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """Gives an environment with these programs in tmp_path/bin before all others, and without a choice of GPUs."""
    def environment(**programs):
        for name, text in programs.items():
            path = tmp_path / "bin" / name.replace("_", "-")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{text}\n")
            path.chmod(0o755)
        chosen = ("CUDA_VISIBLE_DEVICES", "SCALE", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "NGPU", "JOBS")
        return {name: value for name, value in os.environ.items() if name not in chosen} | {
            "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    return environment


def driver(*memory):
    """An nvidia-smi of GPUs with so many MiB; without any its error, which goes to stdout."""
    indices = f"seq 0 {len(memory) - 1}" if memory else "echo NVIDIA-SMI has failed; exit 9"
    return f"""case "$*" in
  *memory.total*) printf '%s\\n' {" ".join(map(str, memory))} ;;
  *index*) {indices} ;;
  *) exit 1 ;;
esac"""


def said(environment, *words, folder=ROOT):
    done = subprocess.run(["bash", "run_all.sh", *words], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("memory, scales", [
    ([], None), ([8188], "SCALE=small"), ([24564], "SCALE=one"), ([81559], "SCALE=one, or SCALE=paper NGPU=1"),
    ([81559] * 8, "SCALE=one, or SCALE=paper NGPU=4"), ([81559, 24564], "SCALE=one")])
def test_the_machine_never_chooses_the_scale_but_says_which_would_use_its_gpus(machine, memory, scales):
    environment = machine(nvidia_smi=driver(*memory), python="") | {"VIRTUAL_ENV": "active"}
    planned = said(environment | {"DRY": "1"}, "figure3")
    assert sum("--scale micro" in line for line in planned) == len(planned) - 1 > 5  # but for the report
    hint = f"GPUs of {min(memory)} MiB and more: {len(memory)}; what would use them: {scales}" if scales else None
    for target in ("figure3", "--list") if len(memory) == 1 else ("figure3",):
        assert [line for line in said(environment, target)[-1:] if "would use them" in line] == [hint] * bool(hint)
    assert not any("would use them" in line for line in said(environment | {"SCALE": "micro"}, "figure3"))


@pytest.mark.parametrize("chosen, devices", [
    (None, ["0", "1", "2", "3"]), ("2,5", ["2", "5"]), ("GPU-8f6a,GPU-11bc", ["GPU-8f6a", "GPU-11bc"]), ("3", ["3"]),
    ("", []), ("-1", [])])
def test_the_gpus_that_the_user_made_visible_are_counted_and_used(machine, chosen, devices):
    environment = machine(nvidia_smi=driver(*[81559] * 4))
    if chosen is not None:
        environment["CUDA_VISIBLE_DEVICES"] = chosen
    planned = said(environment | dict(SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B", DRY="1"), "table3")
    pinned = [line.split()[1] for line in planned if line.startswith("env ") and "eval.py" in line]
    assert list(dict.fromkeys(pinned)) == [f"CUDA_VISIBLE_DEVICES={device}" for device in devices]
    spread = {re.search(r"(?:nproc_per_node (\d))? renio.py", line)[1] for line in planned if "renio.py" in line}
    assert spread == {{0: "4", 1: None, 2: "2", 4: "4"}[len(devices)]}


def test_runs_side_by_side_have_a_gpu_each(machine):
    environment = machine(nvidia_smi=driver(24564, 24564))
    planned = said(environment | dict(SCALE="one", DRY="1", JOBS="2"), "main")
    pins = [line.split()[1] for line in planned if "renio.py" in line]  # two runs of each student
    for pair in (pins[:2], pins[2:]):
        assert {*pair} == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}


PYTHON = """echo "$(basename "$0") $@" >>"$CALLS"
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "- "*) exit 1 ;;  # something is missing
  "-m pip --version") [ -z "${NO_PIP:-}" ] ;;
  "-m ensurepip") [ -z "${NO_ENSUREPIP:-}" ] ;;
esac"""


@pytest.fixture
def set_up(machine, tmp_path):
    """Runs `run_all.sh setup` in a folder of its own with a Python that lacks every package; gives the calls too."""
    def setup(uv=None, **environment):
        programs = dict(python=PYTHON, python3=PYTHON) | (dict(uv=uv) if uv else {})
        (tmp_path / "calls").write_text("")
        for name in ("run_all.sh", "requirements.txt"):
            (tmp_path / name).write_text((ROOT / name).read_text())
        words = machine(**programs) | {"CALLS": str(tmp_path / "calls"), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
        done = subprocess.run(["bash", "run_all.sh", "setup"], cwd=tmp_path, capture_output=True, text=True,
                              env=words | environment)
        return done, (tmp_path / "calls").read_text().splitlines()
    return setup


def test_vllm_is_installed_where_the_scale_and_the_engine_use_it(set_up):
    for scale, engine, wanted in (("micro", "", False), ("small", "vllm", False), ("one", "", True),
                                  ("paper", "vllm", True), ("paper", "transformers", False)):
        done, calls = set_up(SCALE=scale, ENGINE=engine, VIRTUAL_ENV="active")
        [installed] = [call for call in calls if " -m pip install" in call]
        assert done.returncode == 0 and ("vllm==0.32.0" in installed) is wanted and "torch==" in installed, scale


@pytest.mark.parametrize("environment, python", [
    (dict(VIRTUAL_ENV="active"), "python"), (dict(CONDA_PREFIX="c", CONDA_DEFAULT_ENV="renio"), "python"),
    (dict(CONDA_PREFIX="c", CONDA_DEFAULT_ENV="base"), ".venv/bin/python"), ({}, ".venv/bin/python"),
    (dict(CONDA_PREFIX="c", CONDA_DEFAULT_ENV="base", VIRTUAL_ENV="active"), "python")])
def test_an_active_environment_is_used_but_for_condas_base(set_up, tmp_path, environment, python):
    done, _ = set_up(**environment)
    assert done.returncode == 0 and (tmp_path / ".venv").exists() is (python != "python")
    in_base = "CONDA_PREFIX" in environment and python != "python"
    assert ("conda's base environment stays as it is" in done.stdout) is in_base


def test_an_environment_without_pip_is_filled_by_uv_or_gets_pip_or_an_error_says_so(set_up):
    lacking = dict(VIRTUAL_ENV="active", NO_PIP="1")
    done, calls = set_up(**lacking)
    assert done.returncode == 0 and "python -m ensurepip" in calls and "python -m pip install" in calls[-1]
    done, calls = set_up(**lacking, NO_ENSUREPIP="1")
    assert done.returncode == 1 and "python has no pip" in done.stderr and "install pip or uv" in done.stderr
    assert "pip install" not in calls[-1]
    done, calls = set_up(uv='echo "uv $@" >>"$CALLS"', **lacking)
    assert done.returncode == 0 and calls[-1].startswith("uv pip install --quiet --python python torch==")
    assert "python -m ensurepip" not in calls


# --- the preflight ----------------------------------------------------------------------------------------------------

CHECKS = """case " $* " in
  *" --preflight "*)
    echo "$@" >>"$CALLS.checks"
    echo "some library's chatter"
    echo "ok      device: the same in every check"
    [[ " $* " != *${FAILS:-none}* ]] || { echo "${SAYS:-FAILED  memory: too little}"; exit 1; }
    case "$*" in *eval.py*) echo "expected: 0.20 hours" ;; *) echo "expected: 0.50 hours" ;; esac ;;
  *.py*) echo "$@" >>"$CALLS" ;;
esac"""


@pytest.fixture
def checked(machine, tmp_path):
    """Runs run_all.sh at paper scale with a stub of Python that passes its checks; gives them and other calls too."""
    def run_it(*words, **environment):
        for name in ("calls", "calls.checks"):
            (tmp_path / name).write_text("")
        usual = machine(python=CHECKS, nvidia_smi=driver()) | dict(
            VIRTUAL_ENV="active", CALLS=str(tmp_path / "calls"), SCALE="paper", STUDENTS="Qwen/Qwen3-1.7B")
        done = subprocess.run(["bash", "run_all.sh", *words], cwd=ROOT, capture_output=True, text=True,
                              env=usual | environment)
        return done, *((tmp_path / name).read_text().splitlines() for name in ("calls.checks", "calls"))
    return run_it


def test_the_preflight_checks_each_kind_of_run_once_and_adds_up_their_hours(checked, tmp_path):
    done, checks, calls = checked("preflight", "table2", SEEDS="0 1")
    assert done.returncode == 0 and calls == []
    flags = [" ".join(check.split()) for check in checks]
    assert sum("--method opd" in check for check in flags) == 2 == sum("--preflight True" in check for check in flags)
    assert [re.findall(r"--(?:task|benchmarks) (\S+)", check) for check in flags] == [
        ["math"], ["code"], ["aime24"], ["aime24"], ["humaneval+"]]
    assert [re.search(r"eval.py .* --model (\S+)", check)[1] for check in flags[2:]] == [
        "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B"]
    assert not any("--checkpoints" in check or "--adapter" in check for check in flags)
    assert done.stdout.count("ok      device: the same in every check\n") == 1 and "chatter" not in done.stdout
    assert "chatter" in (tmp_path / "out" / "preflight" / "1.log").read_text()
    # a seed: 4 runs, and of base and 4 checkpoints of each of 2 runs in math, the same in code, the teacher once
    assert f"expected: {2 * (4 * 0.5 + (9 + 9 + 1) * 0.2):.1f} hours" in done.stdout.splitlines()[-1]
    assert [line.split()[1:] for line in checked("preflight", "table2", SEEDS="0 1", DRY="1")[0].stdout.splitlines()] \
        == [check.split() for check in checks]
    done, *_ = checked("preflight", "table2", SEEDS="0 1", CUDA_VISIBLE_DEVICES="0,1")
    assert f"expected: {2 * (4 * 0.5 + (9 + 9 + 1) * 0.2 / 2):.1f} hours" in done.stdout  # scores on both at once


def test_what_decides_a_kind_of_run_is_what_its_cost_depends_on(checked):
    def kinds(*targets):
        return [re.findall(r"--(?:method|teacher|privileged|design|prefix_tokens) (\S+)", check)
                for check in checked("preflight", *targets)[1] if "eval.py" not in check]

    assert kinds("table4", "table8", "figure6") == kinds("figure3") == [
        ["1024", "opsd"], ["1024", "opd", "Qwen/Qwen3-8B"]]
    assert ["1024", "opsd", "False"] in kinds("controls") and len(kinds("controls")) == 3
    assert kinds("figure1") == [
        ["1024", "opd", "Qwen/Qwen3-8B", "4096"], ["1024", "matched", "opd", "Qwen/Qwen3-8B", "4096"],
        ["1024", "hard", "opd", "Qwen/Qwen3-8B", "4096"],
        ["1024", "opsd", "4096"], ["1024", "matched", "opsd", "4096"], ["1024", "hard", "opsd", "4096"]]
    assert len(kinds("table3", "figure1")) == 8


def test_a_failed_check_ends_it_before_anything_is_started_but_not_before_the_other_checks(checked):
    everything = checked("preflight", "table2")[1]
    for says, shown in (("", "FAILED  memory: too little"),
                        ("Killed", "FAILED  Qwen3-1.7B, code-opd, seed 0: Killed")):  # by another than itself
        done, checks, calls = checked("table2", FAILS="--task?code", SAYS=says)
        assert done.returncode == 1 and calls == [] and len(checks) == len(everything)
        assert shown in done.stdout.splitlines() and "hours" not in done.stdout
        assert "failed checks: 1; nothing was started" in done.stderr


def test_runs_on_gpus_begin_with_the_preflight_unless_told_otherwise(checked):
    for words, begins in ((dict(), True), (dict(SCALE="one", STUDENTS=""), True), (dict(SKIP_PREFLIGHT="1"), False),
                          (dict(REHEARSE="1"), False), (dict(SCALE="micro"), False)):
        done, checks, calls = checked("figure3", **words)
        assert done.returncode == 0 and bool(checks) is begins and len(calls) > 5, words
    for scale in ("micro", "small"):
        done, checks, calls = checked("preflight", SCALE=scale)
        assert done.returncode == 0 and checks == calls == [] and "nothing to check" in done.stdout


def test_what_is_made_is_neither_checked_nor_counted(checked, tmp_path):
    seed = tmp_path / "out" / "Qwen3-1.7B" / "seed0"
    for name in ("opd", "opd+renio", "code-opd", "code-opd+renio"):
        (seed / name / "final").mkdir(parents=True)
    for name in ("base", "code-base", "teacher"):
        (seed / name).mkdir()
        (seed / name / "eval.json").touch()
    done, checks, _ = checked("preflight", "table2")
    assert [re.search(r"--benchmarks (\S+)", check)[1] for check in checks] == ["aime24", "humaneval+"]
    assert f"expected: {16 * 0.2:.1f} hours" in done.stdout


# --- the rehearsal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["one", "paper"])
def test_a_rehearsal_makes_every_run_of_the_target_with_a_tiny_model_and_local_data(tmp_path, scale):
    real = commands(tmp_path, "all", SCALE=scale)
    first, *rehearsed = commands(tmp_path, "all", SCALE=scale, REHEARSE="1")
    assert first[:5] == ["renio.py", "--method", "sft", "--model", "init:micro-teacher"]
    assert len(rehearsed) == len(real)
    for (script, *before), (same, *words) in zip(real, rehearsed, strict=True):
        assert script == same
        if words[0] == "report":
            assert words == before
            continue
        flags = dict(zip(words, words[1:], strict=False))
        models = {flags.get(f"--{name}") for name in ("model", "teacher")} - {None}
        assert models == {f"{tmp_path}/model/final"} and flags["--dtype"] == "float32"
        if script == "eval.py":
            assert (flags["--data_dir"], flags["--limit"], flags["--engine"]) == (
                f"{tmp_path}/data", "4", "transformers")
        else:
            assert flags["--dataset"].startswith(f"{tmp_path}/data/") and flags["--rollout_engine"] == "transformers"
            assert (flags["--max_steps"], flags["--save_steps"], flags["--prefix_tokens"]) == ("4", "1", "8")
            assert words[words.index("--output_dir") + 1] == before[before.index("--output_dir") + 1]
    assert ("--nproc_per_node 2 renio.py" in run_all(tmp_path, "table1", DRY="1", REHEARSE="1", SCALE="paper",
                                                     CUDA_VISIBLE_DEVICES="").stdout)


def test_a_rehearsal_is_of_the_scales_that_need_one_and_has_a_folder_of_its_own(tmp_path):
    for scale in ("micro", "small"):
        done = run_all(tmp_path, "main", SCALE=scale, REHEARSE="1")
        assert done.returncode == 2 and "SCALE=one and SCALE=paper" in done.stderr
    assert commands("", "figure3", SCALE="one", REHEARSE="1")[-1] == [
        "eval.py", "report", "results/rehearsal-one/Qwen3-0.6B"]


def test_a_rehearsal_goes_from_the_data_to_the_report(tmp_path):
    words = dict(SCALE="one", REHEARSE="1", STUDENTS="Qwen/Qwen3-1.7B", CUDA_VISIBLE_DEVICES="")
    done = run_all(tmp_path, "figure3", **words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "Qwen3-1.7B"
    report = (folder / "report.md").read_text()
    assert "| opsd+renio | 1 |" in report and (folder / "figure3.png").exists()
    rows = rows_of(folder / "seed3" / "opsd")
    assert len(rows) == 4 and all(0 < row["rollout_accuracy"] < 1 for row in rows)  # for the filter study's arms
    for name, task in (("math", "math"), ("code", "code")):
        assert len(renio.read_problems(str(tmp_path / "data" / f"{name}.jsonl"), need_solution=True, task=task)) == 4
    benchmarks = [name for name, benchmark in renio_eval.BENCHMARKS.items()
                  if (tmp_path / "data" / benchmark.file).is_file()]
    assert {"aime24", "aime25", "hmmt25", "math500", "gsm8k", "humaneval+", "mbpp+"} <= {*benchmarks}
    for name in benchmarks:
        rows = renio_eval.load_benchmark(name, tmp_path / "data")
        assert len(rows) == 4
        if renio_eval.BENCHMARKS[name].task == "code":
            assert renio_eval.grade_code(rows[0]["test"], f"```python\n{rows[0]['solution']}```").passed
    checked = run_all(tmp_path, "preflight", "table8", **words)  # by the real scripts, on the tiny model
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("checking ") == 2 and checked.stdout.count("ok      ") > 8
    assert re.fullmatch(r"all checks passed; expected: \d+\.\d hours for what is to be made",
                        checked.stdout.splitlines()[-1])


# --- jobs ------------------------------------------------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
# in place of Python: makes what a run would make, hangs in one run until interrupted; on demand fails or dawdles
echo "$@" >>"$CALLS"
train() {
  case "$1" in
    ${FAILING:-none}) sleep 1; echo "out of luck"; exit 1 ;;
    ${SLOW:-none}) sleep 2 ;;
    */opsd+renio) [ -e "$CALLS.again" ] || { echo $$ >"$CALLS.pid"; touch "$CALLS.hangs"; exec sleep 60; } ;;
    */*-matched) mkdir -p "$1"/{correct,incorrect}/final ;;
    */*-hard) mkdir -p "$1"/{incorrect,unfiltered}/final ;;
  esac
  mkdir -p "$1/final"
}
words=("$@")
for ((i = 0; i < $#; i++)); do
  case "${words[i]}" in
    --output_dir) train "${words[i + 1]}" ;;
    --output) mkdir -p "$(dirname "${words[i + 1]}")" && touch "${words[i + 1]}" ;;
    --checkpoints) mkdir -p "${words[i + 1]}/checkpoint-50" && touch "${words[i + 1]}/checkpoint-50/eval.json" ;;
  esac
done
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
    made = re.findall(r"--output_dir (\S+)", " ".join(after))
    assert f"{tmp_path}/out/seed0/opsd+renio" in made and f"{tmp_path}/out/seed0/opsd-matched" in made
    assert " ".join(after).count("--resume") == len(made)
    assert any("seed0/base" in line for line in before) and not any(folder.endswith("/base") for folder in made)
    assert len(made) == len(set(made))
    calls.unlink()
    assert subprocess.run(["bash", "run_all.sh", "table8", "figure1"], **words).returncode == 0
    assert [line for line in calls.read_text().splitlines() if "--output" in line or "--checkpoints" in line] == []


def test_progress_says_which_of_how_many_and_about_how_long(stub):
    environment, calls = stub
    calls.with_suffix(".again").touch()
    done = subprocess.run(["bash", "run_all.sh", "table2"], cwd=ROOT, capture_output=True, text=True,
                          env={**environment, "JOBS": "1", "SLOW": "*/opd*"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("9 runs and scores, 9 to make")
    lines = re.findall(r"^\[(\d) of 9\] (.*), seed 0: made in (\d+) s(.*)$", done.stdout, re.MULTILINE)
    assert [int(number) for number, *_ in lines] == [*range(1, 10)]
    assert [name for _, name, *_ in lines] == [
        "base", "teacher", "opd", "opd+renio", "scores of base", "scores of base-with-solution", "scores of teacher",
        "scores of opd", "scores of opd+renio"]
    assert lines[0][3] == lines[1][3] == lines[-1][3] == ""  # no run of the table's kind yet; nothing left
    assert lines[2][2] in ("2", "3", "4")  # of each of the two runs that one process makes
    assert lines[2][3] == lines[3][3] == f"; about {5 * int(lines[2][2])} s left"


def test_runs_of_a_script_share_processes_without_a_gpu_and_leave_none_idle(stub):
    environment, calls = stub
    calls.with_suffix(".again").touch()
    for target, jobs, shares in (("main", "2", [2, 3]), ("main", "5", [1] * 5), ("figure1", "2", [1, 3, 3, 3])):
        calls.write_text("")
        done = subprocess.run(["bash", "run_all.sh", target], cwd=ROOT, capture_output=True, text=True, env={
            **environment, "JOBS": jobs, "OUT": f"{environment['OUT']}/{target}{jobs}", "CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
        trained = [call for call in calls.read_text().splitlines() if "--method o" in call or "--method grpo" in call]
        assert sorted(call.count("--output_dir") for call in trained) == shares
        assert all(call.count(".py") == 1 and call.count(" then ") + 1 == call.count("--output_dir")
                   for call in trained)


def test_scores_that_are_not_there_share_processes_without_a_gpu(tmp_path, stub):
    environment, calls = stub
    environment["CUDA_VISIBLE_DEVICES"] = ""
    calls.with_suffix(".again").touch()

    def scored():
        calls.write_text("")
        done = subprocess.run(["bash", "run_all.sh", "table2"], cwd=ROOT, capture_output=True, text=True,
                              env=environment)
        assert done.returncode == 0, done.stderr
        return [re.findall(r"--(?:output|checkpoints) \S+/seed0/(\S+)", call)
                for call in calls.read_text().splitlines() if call.startswith("eval.py --")]

    assert sorted(scored()) == [["base/eval.json", "base-with-solution/eval.json", "teacher/eval.json"],
                                ["opd", "opd+renio"]]
    for name in ("base-with-solution", "opd+renio/checkpoint-50"):
        (tmp_path / "out" / "seed0" / name / "eval.json").unlink()
    assert sorted(scored()) == [["base-with-solution/eval.json"], ["opd+renio"]]
    assert scored() == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_stopped_script_leaves_no_job_behind(stub, fails):
    """Stopped by a signal, or by another job that fails while one hangs."""
    environment, calls = stub
    environment = environment | ({"FAILING": "*/grpo"} if fails else {})
    first = subprocess.Popen(["bash", "run_all.sh", "table1"], cwd=ROOT, env=environment, text=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while not calls.with_suffix(".hangs").exists():
        assert first.poll() is None
        time.sleep(0.02)
    if not fails:
        first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=20)
    assert first.returncode == 1
    assert "stopped; once the steps at work have ended, the same command goes on from here\n" in said
    assert not fails or ("last lines of" in said and "out of luck" in said)
    assert "eval.py report" not in calls.read_text()
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
    ("table1", "opsd+renio"), ("table1", "grpo"), ("table1", "code-opsd+renio"), ("table4", "opd+renio-nothreshold"),
    ("figure1", "opsd-unfiltered")])
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
            "--save_steps", 1, "--batch_size", 4, "--micro_batch_size", 2, "--generations", 2, "--prefix_tokens", 6,
            "--dtype", "float32", "--device", "cpu", "--model", tiny_qwen3]
    less += ["--teacher", tiny_qwen3] if "--teacher" in words else []
    if script == "filter_experiments.py":  # a random model ends no answer, so that all its rollouts would be left out
        less += ["--top_k", 1, "--max_draws", 1]
        with pytest.raises(SystemExit, match="step 1: 0 of 4 problems had "):
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
