# SPDX-License-Identifier: MIT
"""What goes wrong at night: kills, damaged and locked folders, full disks, broken numbers, bad input."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kill import command, kill_at, outcome, start
from test_devices import in_processes, run_train

import eval as renio_eval
import filter_experiments
import renio
from renio import UserError, read_problems


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- kills ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["opsd-lora", "two-ranks"])
def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one(tmp_path, micro_model, kind):
    """One kill; tests/kill.py makes many, of every method, and starts each run as a user does."""
    def train(folder):
        words = command(kind, micro_model, folder)
        words = words[words.index(str(ROOT / "renio.py")) + 1:]
        if "two-ranks" in kind:
            in_processes(2, tmp_path, run_train, renio.parse_config(words))
        else:
            renio.main(words)

    train(tmp_path / "whole")
    assert kill_at(command(kind, micro_model, tmp_path / "killed"), tmp_path / "killed", 6, 0.02)
    train(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.fixture
def heeded():
    """Ctrl-C is not ignored, as it is where the tests are a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_stopped_run_writes_a_checkpoint_and_goes_on(tmp_path, micro_model, monkeypatch, capsys, heeded):
    words = [*command("opsd", micro_model, tmp_path / "stopped"), "--max_steps", "300", "--schedule_steps", "0",
             "--save_steps", "0"]
    process = start(words)
    while not (tmp_path / "stopped" / "metrics.jsonl").exists() or len(rows_of(tmp_path / "stopped")) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    steps = len(rows_of(tmp_path / "stopped"))
    assert process.returncode == 1
    assert f"stopped after step {steps} of 300; the same command with --resume goes on" in said
    assert (tmp_path / "stopped" / f"checkpoint-{steps}" / "trainer_state.pt").exists()
    real = renio.distillation_step
    monkeypatch.setattr(renio, "distillation_step",
                        lambda *args, **words: os.kill(os.getpid(), signal.SIGINT) or real(*args, **words))
    with pytest.raises(SystemExit, match=f"stopped after step {steps + 1} of 300"):
        renio.main(words[2:])
    assert f"going on after step {steps}" in capsys.readouterr().out
    assert [row["step"] for row in rows_of(tmp_path / "stopped")] == list(range(1, steps + 2))


# --- checkpoints ------------------------------------------------------------------------------------------------------

def trained(config, *words):
    flags = config("--method", "sft", "--max_steps", 6, "--save_steps", 2, "--batch_size", 4, "--schedule_steps", 6,
                   *words)
    renio.train(flags, renio.Devices("cpu"))
    return flags


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(config, tmp_path, capsys):
    trained(config)
    whole = outcome(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint-6"
    assert renio.newest_checkpoint(tmp_path / "run") == newest
    for name in ("model.safetensors", "checksums.json"):
        damaged = newest / name
        before = damaged.read_bytes()
        damaged.write_bytes(before[:-9] + b"x" * 8 if name.endswith("s") else before[:9])
        assert renio.newest_checkpoint(tmp_path / "run").name == "checkpoint-4"
        assert f"{newest} is damaged" in capsys.readouterr().err
        damaged.write_bytes(before)
    (newest / "model.safetensors").unlink()
    trained(config, "--resume", "True")
    assert outcome(tmp_path / "run") == whole


def test_the_last_two_checkpoints_can_be_resumed_and_all_weights_stay(config, tmp_path):
    trained(config)
    kept = {path.name: (path / "trainer_state.pt").exists() for path in (tmp_path / "run").glob("checkpoint-*")}
    assert kept == {"checkpoint-2": False, "checkpoint-4": True, "checkpoint-6": True}
    assert len(renio.load_model(str(tmp_path / "run" / "checkpoint-2")).state_dict()) > 0


def test_the_checkpoint_of_a_stop_goes_once_it_is_passed_and_two_that_resume_stay(config, tmp_path):
    for step in (5, 10, 15, 17, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.pt").touch()
    renio.prune_checkpoints(tmp_path, config("--method", "sft", "--save_steps", 5), renio.Devices("cpu"))
    assert {path.name: (path / "trainer_state.pt").exists() for path in tmp_path.iterdir()} == {
        "checkpoint-5": False, "checkpoint-10": False, "checkpoint-15": True, "checkpoint-20": True}


def test_an_ignored_ctrl_c_stays_ignored_since_the_shell_that_ignores_it_sends_sigterm():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with renio.StopSignal(renio.Devices("cpu")) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.came() and stop.name == "SIGTERM"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_needs_no_git(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    trained(config)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["commit"] is None


def test_two_runs_in_one_folder_at_once_are_refused(config, tmp_path):
    with renio.only_run_in(tmp_path / "run", renio.Devices("cpu")):
        with pytest.raises(UserError, match="another run is at work in it"):
            trained(config)
    trained(config)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(config, tmp_path):
    trained(config)
    (tmp_path / "run" / "checkpoint-6" / "model.safetensors").unlink()  # so that there is something to do again
    words = "--method sft --max_steps 6 --save_steps 2 --batch_size 4 --schedule_steps 6 --resume True".split()
    words = [sys.executable, str(ROOT / "renio.py"), *words, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "checkpoint-6 can't be written" in done.stderr and "--resume goes on" in done.stderr
    assert renio.newest_checkpoint(tmp_path / "run").name == "checkpoint-4"
    trained(config, "--resume", "True")
    assert renio.newest_checkpoint(tmp_path / "run").name == "checkpoint-6"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"Not a directory: .*{tmp_path.name}/file"):
        renio.main(["--method", "sft", "--output_dir", str(tmp_path / "file" / "run")])


# --- numbers that are not finite --------------------------------------------------------------------------------------

def break_updates(monkeypatch, steps):
    """Make the gradients of these updates (from 1) not a number."""
    real, count = renio.sft_step, [0]

    def broken(student, *args):
        result = real(student, *args)
        count[0] += 1
        if count[0] in steps:
            next(student.parameters()).grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(renio, "sft_step", broken)


def test_an_update_that_is_not_finite_is_skipped_and_counted(config, tmp_path, monkeypatch):
    break_updates(monkeypatch, {2, 3, 5})
    trained(config)
    assert [row["skipped"] for row in rows_of(tmp_path / "run")] == [False, True, True, False, True, False]
    assert [row["grad_norm"] is None for row in rows_of(tmp_path / "run")] == [False, True, True, False, True, False]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    weights = renio.load_model(str(tmp_path / "run" / "final")).state_dict()
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_three_in_a_row_end_the_run_with_its_batch_on_disk(config, tmp_path, monkeypatch):
    break_updates(monkeypatch, {3, 4, 5})
    with pytest.raises(UserError, match="step 5: the third gradient in a row that is not finite"):
        trained(config)
    batch = json.loads((tmp_path / "run" / "nonfinite-rank0.json").read_text())
    assert len(batch) == 4 and batch[0]["problem"]
    assert renio.newest_checkpoint(tmp_path / "run").name == "checkpoint-4"
    break_updates(monkeypatch, {1})
    with pytest.raises(UserError, match="step 5: the third"):
        trained(config, "--resume", "True")  # from checkpoint-4, behind two of them


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD = {"problem": "1 + 1?", "solution": r"\boxed{2}", "answer": "2"}


@pytest.mark.parametrize("content, message", [
    (b"", "data.jsonl: no rows"),
    (b'{"problem": "1 + 1?"', "line 1: not JSON"),
    (b'{"problem": "x", "solution": "y"}\n\n{oops}', "line 3: not JSON"),
    ("{}".encode("utf-16"), "not UTF-8 text at byte 0"),
    (b"[1, 2]", "row 1: expected columns, found list"),
    (b'{"quiz": "1 + 1?", "solution": "2"}',
     r"row 1: no text in a column problem \(or question, prompt\); its columns are quiz"),
    (b'{"problem": "x", "solution": "y"}\n{"problem": null, "solution": "2"}', "row 2: no text in a column problem"),
    (b'{"problem": "1 + 1?", "answer": "2"}', "row 1: no text in a column solution; its columns are problem, answer"),
    (b'{"problem": "1 + 1?", "solution": 2}', "row 1: no text in a column solution"),
    (b'{"problem": "1 + 1?", "teacher_prompt": 2}', "row 1: no text in a column teacher_prompt"),
    (b'{"problem": 5, "solution": "2"}', "row 1: no text in a column problem"),
])
def test_bad_data_is_named_by_file_and_line(tmp_path, content, message):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_problems(str(tmp_path / "data.jsonl"), need_solution=True)
    assert "data.jsonl" in str(error.value) and "\n" not in str(error.value)


def train_on(tmp_path, rows, model, *words):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    renio.main(["--method", "opsd", "--model", str(model), "--dataset", str(tmp_path / "data.jsonl"),
                "--max_steps", "2", "--batch_size", "4", "--prefix_tokens", "4", "--save_steps", "0",
                "--output_dir", str(tmp_path / "run"), *map(str, words)])
    return rows_of(tmp_path / "run")


def test_odd_but_usable_rows_train(tmp_path, micro_model, capsys):
    """A single row, one twice, one of a megabyte, and answers that no grader can read."""
    odd = [GOOD, GOOD, dict(GOOD, problem="1+8 " * 200_000), dict(GOOD, answer="{{{"),
           dict(GOOD, answer=None, solution="so")]
    assert len(train_on(tmp_path, odd, micro_model)) == 2
    assert "problems skipped: longer than 256 tokens" in capsys.readouterr().out
    (tmp_path / "single").mkdir()
    assert len(train_on(tmp_path / "single", [GOOD], micro_model)) == 2


def test_rows_with_a_blank_solution_are_skipped_and_counted(tmp_path, micro_model, capsys):
    blank = [dict(GOOD, solution=""), dict(GOOD, solution=None), dict(GOOD, solution=" \n")]
    train_on(tmp_path, [GOOD, *blank, dict(GOOD, problem="1+8 " * 1000)], micro_model)
    said = capsys.readouterr().out  # 8 examples, 8 epochs, the last not always whole
    assert 21 <= int(re.search(r"(\d+) problems skipped: without a solution", said)[1]) <= 24
    assert 7 <= int(re.search(r"(\d+) problems skipped: longer than 256 tokens", said)[1]) <= 8
    (tmp_path / "blank").mkdir()
    with pytest.raises(SystemExit, match="of 3 problems none can be used: each is without a solution"):
        train_on(tmp_path / "blank", blank, micro_model)


def test_data_of_long_problems_only_is_refused(tmp_path, micro_model):
    with pytest.raises(SystemExit, match=r"of 1 .* none can be used: each is longer than 256 tokens \(--max_prompt"):
        train_on(tmp_path, [dict(GOOD, problem="1+8 " * 1000)], micro_model)


@pytest.mark.parametrize("lost, message", [
    ("config.json", "no (model|tokenizer) in"), ("model.safetensors", "no model in"),
    ("tokenizer.json", "no tokenizer in"), ("chat_template.jinja", "has no chat template")])
def test_a_model_folder_that_lacks_a_file_is_named(tmp_path, tokenizer, lost, message):
    renio.init_model("init:micro", tokenizer, seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(SystemExit, match=message) as error:
        train_on(tmp_path, [GOOD], tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_eos_is_refused_and_one_without_pad_pads_with_eos(tmp_path, tokenizer):
    renio.init_model("init:micro", tokenizer, seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    full = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in full.items() if k != "eos_token"}))
    with pytest.raises(SystemExit, match="has no eos token, so no answer could end"):
        train_on(tmp_path, [GOOD], tmp_path / "model")
    path.write_text(json.dumps({k: v for k, v in full.items() if k != "pad_token"}))
    assert renio.load_tokenizer(str(tmp_path / "model")).pad_token == "<eos>"
    assert len(train_on(tmp_path, [GOOD], tmp_path / "model")) == 2


def test_pickled_weights_are_not_loaded(tmp_path, tokenizer):
    model = renio.init_model("init:micro", tokenizer, seed=1)
    model.config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="no model in .*safetensors"):
        train_on(tmp_path, [GOOD], tmp_path / "model")


NUMBERS = [name for name, value in vars(renio.Config()).items() if type(value) in (int, float)]


@given(name=st.sampled_from([*NUMBERS, "max_draws", "max_problems", "entry_clip", "log_ratio_clip_min"]),
       value=st.one_of(st.integers(), st.floats(), st.sampled_from(["", "x", "1e400", "0x10", "١"])),
       method=st.sampled_from(["sft", "grpo", "opsd"]))
@settings(max_examples=300, deadline=None)
def test_any_value_of_a_numeric_flag_is_taken_or_refused_in_one_line(name, value, method):
    words = ["--method", method, "--output_dir", "x", f"--{name}={value}"]
    try:
        config = renio.parse_config(words, filter_experiments.FilterConfig)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        taken = getattr(config, name)
        assert taken is None or taken == taken


@given(name=st.sampled_from(["n", "limit", "temperature", "top_p", "top_k", "max_new_tokens", "batch_size",
                             "vllm_memory", "seed", "train_seed"]),
       value=st.one_of(st.integers(), st.floats(), st.sampled_from(["", "x", "1e400"])))
@settings(max_examples=200, deadline=None)
def test_any_value_of_a_numeric_flag_of_the_evaluation_is_taken_or_refused_in_one_line(name, value):
    try:
        args = renio_eval.parse_args(["--model", "x", "--output", "y", f"--{name}={value}"])
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert 0 <= getattr(args, name) < 2**31


COLUMNS = st.sampled_from(["problem", "question", "solution", "answer", "Answer", "domain", "x"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner:
                    st.lists(inner, max_size=3) | st.dictionaries(COLUMNS, inner, max_size=5), max_leaves=8)
ROW = st.fixed_dictionaries(dict(problem=st.text(min_size=1)), optional=dict.fromkeys(
    ["solution", "answer", "Answer", "domain", "deepseek_solution"], st.none() | st.text() | st.integers() | JSON))


@given(rows=st.lists(ROW | JSON, max_size=4), need_solution=st.booleans(), tail=st.binary(max_size=8))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_data_is_read_or_refused_in_one_line(tmp_path, rows, need_solution, tail):
    path = tmp_path / "data.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + tail)
    try:
        found = read_problems(str(path), need_solution=need_solution)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found
        for row in found:
            assert isinstance(row["problem"], str) and (row["answer"] is None or isinstance(row["answer"], str))
            assert row["solution"] is None or isinstance(row["solution"], str)


# --- what leaves the process ------------------------------------------------------------------------------------------

def test_nothing_of_the_environment_is_written(tmp_path, micro_model):
    words = [sys.executable, ROOT / "renio.py", "--method", "opsd", "--model", micro_model, "--max_steps", 1,
             "--batch_size", 2, "--save_steps", 1, "--save_rollouts", "True", "--output_dir", tmp_path / "run"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True,
                          env=dict(os.environ, HF_TOKEN="hf_secret_of_mine", MY_KEY="secret_of_mine"))
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(texts) > 8
    assert not any(b"secret_of_mine" in text for text in [*texts, done.stdout.encode(), done.stderr.encode()])


def test_metrics_go_to_the_tracker_that_a_flag_asks_for(config, tmp_path, monkeypatch):
    said = []
    fake = types.ModuleType("wandb")
    run = types.SimpleNamespace(log=lambda row, step: said.append((step, row["loss"])))
    fake.init = lambda **words: said.append(words["project"]) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trained(config, "--report_to", "wandb")
    assert said == ["renio", *((row["step"], row["loss"]) for row in rows_of(tmp_path / "run"))]


def test_a_tracker_that_is_not_installed_is_named(config, monkeypatch):
    for name in ("wandb", "trackio", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(UserError, match=f"--report_to {name}: not installed; pip install {name}"):
            renio.tracker_of(config("--method", "sft", "--report_to", name))
