# SPDX-License-Identifier: MIT
"""--preflight: what a run needs is checked before its hours are spent, a line each."""

import json
import re
import time
from types import SimpleNamespace

import pytest
import torch
from test_devices import in_processes

import renio
from renio import UserError


@pytest.fixture
def words(tmp_path, micro_model):
    """Flags of a run of OPD on local models and data."""
    rows = [dict(problem="a 1+1", solution="a 1+1 2 \\boxed{ 2 }", Answer="2")] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--method", "opd", "--model", str(micro_model), "--teacher", str(micro_model), "--lora_r", "4", "--dataset",
            str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "run"), "--preflight"]


def lines_of(capsys, words, code):
    ended = 0
    try:
        renio.main(words)
    except SystemExit as exit:
        ended = exit.code
    assert ended == code
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("more", ["", "--variant official --schedule_steps 500", "--method grpo --teacher= ",
                                  "--method opsd --teacher= --weighting renio_shuffled", "--method sft --teacher= "])
def test_all_that_a_run_needs_gets_a_line_and_a_step(words, more, tmp_path, capsys):
    if "--teacher=" in more:
        place = words.index("--teacher")
        del words[place : place + 2]
    lines = lines_of(capsys, [*words, *more.replace("--teacher=", "").split()], 0)
    assert [line.split()[:2] for line in lines if line.startswith("ok")] == [
        ["ok", word] for word in ("device:", "rollouts", "student", "data", "memory:", "disk:", f"{method_of(more)}:")]
    assert re.fullmatch(r"expected: \d+\.\d\d hours", lines[-1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dataset", [*renio.SYNTHETIC])
def test_data_that_is_made_here_is_there(config, tokenizer, dataset):
    teacher = SimpleNamespace(tokenizer=tokenizer)
    examples, line = renio.check_data(config("--method", "opsd", "--dataset", dataset), (None, tokenizer, teacher))
    assert len(examples) == 8 and f"data {dataset}: the first 8 problems make prompts of " in line


def slow_preflight(devices, words, path):
    """A preflight in which the second process is late after all that the two do together."""
    gather = devices.gather

    def gathered(items):
        found = gather(items)
        time.sleep(0.2 * devices.rank)
        return found

    devices.gather = gathered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renio, "connect", lambda config: devices)
        patch.setenv("RANK", str(devices.rank))
        (path / f"code{devices.rank}").write_text(str(renio.preflight(renio.parse_config(words))))


def test_no_process_needs_what_another_has_cleared_away(words, tmp_path):
    (tmp_path / "codes").mkdir()
    in_processes(2, tmp_path, slow_preflight, words, tmp_path / "codes")
    assert [path.read_text() for path in (tmp_path / "codes").iterdir()] == ["0", "0"]


def method_of(more):
    return more.split()[1] if more.startswith("--method") else "opd"


def test_odd_end_tokens_are_noted(words, tokenizer, tmp_path, capsys):
    renio.init_model("init:micro", tokenizer, seed=2).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    path = tmp_path / "teacher" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(eos_token_id=[1, 9])))
    lines = lines_of(capsys, [*words, "--teacher", str(tmp_path / "teacher")], 0)
    [note] = [line for line in lines if line.startswith("note")]
    assert note.startswith("note    the student ends answers with ['<eos>'], the teacher with ['<eos>', 'wait']")


def too_old(*_):
    raise UserError("this machine has an NVIDIA GPU, but torch can't use it")


def out_of_memory(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("failing, message, still_made, more, patch", [
    ("devices", "can't use it", "rollouts student data disk:", "", ("pick_device", too_old)),
    ("engine", "pip install vllm==0.32.0", "device: student data memory: disk:", "--rollout_engine vllm",
     ("find_spec", lambda name: None)),
    ("models", "no model in .*TOKENIZER", "device: rollouts", "--teacher TOKENIZER", None),
    ("models", r"different vocabularies: '\+10'", "device: rollouts", "--teacher OTHER", None),
    ("data", "none.jsonl: no such file", "device: rollouts student disk:", "--dataset none.jsonl", None),
    ("data", "no text in a column problem", "device: rollouts student disk:", "--dataset QUIZ", None),
    ("data", "the first 8 rows have no solution", "device: rollouts student disk:", "--dataset BLANK --privileged",
     None),
    ("memory", "the device has 0 GB. Lower --micro_batch_size", "device: rollouts student data disk:", "",
     ("device_memory", lambda device: 0.001)),
    ("disk", "make room, name another --output_dir, or raise --save_steps", "device: rollouts student data memory:", "",
     ("shutil.disk_usage", lambda path: SimpleNamespace(free=10))),
    ("step", "CUDA out of memory", "device: rollouts student data memory: disk:", "", ("train", out_of_memory)),
])
def test_each_check_that_fails_says_what_to_do_and_leaves_the_others(
        words, tmp_path, capsys, monkeypatch, micro_model, failing, message, still_made, more, patch):
    other = renio.arith_tokenizer()
    other.save_pretrained(tmp_path / "TOKENIZER")
    other.add_tokens(["+10"])
    renio.init_model("init:micro", other, seed=0).save_pretrained(tmp_path / "OTHER")
    other.save_pretrained(tmp_path / "OTHER")
    (tmp_path / "QUIZ").with_suffix(".jsonl").write_text('{"quiz": "1 + 1?"}\n')
    (tmp_path / "BLANK").with_suffix(".jsonl").write_text('{"problem": "a 1+1", "solution": " "}\n')
    for name in ("QUIZ", "BLANK"):
        more = more.replace(name, f"{tmp_path}/{name}.jsonl")
    for name in ("TOKENIZER", "OTHER"):
        more = more.replace(name, f"{tmp_path}/{name}")
    if patch:
        monkeypatch.setattr(f"renio.{patch[0]}", patch[1])
    lines = lines_of(capsys, [*words, *more.split()], 1)
    [failed] = [line for line in lines if line.startswith("FAILED")]
    assert re.search(f"^FAILED  {failing}: .*{message}", failed)
    assert [line.split()[1] for line in lines if line.startswith("ok")] == still_made.split()
    assert not any(line.startswith("expected") for line in lines)


def test_only_as_much_of_a_set_on_the_hub_is_fetched_as_is_read(monkeypatch):
    import datasets

    asked, read = [], []

    def rows():
        for i in range(1000):
            read.append(i)
            yield dict(problem=f"p{i}", deepseek_solution="s", domain="code" if i % 2 else "math")

    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **flags: asked.append((words, flags)) or rows())
    first = renio.read_problems("open/set:metadata", task="code", limit=3)
    assert [row["problem"] for row in first] == ["p1", "p3", "p5"] and len(read) == 6
    assert asked == [(("open/set", "metadata"), dict(split="train", streaming=True))]
    assert len(renio.read_problems("open/set", task="code")) == 500
