# SPDX-License-Identifier: MIT
"""What several test files share: the project on the path, tiny models, and a run of the command line."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no folder fails at once, with or without a network
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import renio  # noqa: E402

torch.set_num_threads(1)
TIMES = ("seconds", "peak_memory_gb")  # metrics that differ from run to run


@pytest.fixture(scope="session")
def shared():
    """A folder `shared` beside the repository: golden figures, benchmark files and the Qwen3 tokenizer."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` with reference data beside the repository")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return renio.arith_tokenizer()


@pytest.fixture
def model(tokenizer):
    return loud(renio.init_model("init:micro", tokenizer, seed=0))


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory, tokenizer):
    """A folder with a random micro model."""
    model = renio.init_model("init:micro", tokenizer, seed=1)
    return save(model, tmp_path_factory.mktemp("models") / "micro", tokenizer)


def loud(model):
    """The model with larger weights. Fresh ones would echo the last token for ever, or draw all tokens alike."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
        for p in model.get_decoder().layers.parameters():
            if p.dim() > 1:
                p.mul_(6)
    return model.eval()


def is_equal(text, gold):
    return renio.math_verdict(text, gold) == "equal"


def save(model, folder, tokenizer):
    """Write a model and a tokenizer to a folder; returns its name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path, *rows):
    """Write a file of JSON lines; returns its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def train(folder, words, **more):
    """Train in this process, two steps unless the words say otherwise. Mistakes raise SystemExit, as for a user.

    words: flags in one text. more: further arguments of main.
    """
    first = "--scale micro --max_steps 2 --schedule_steps 0 --batch_size 4 --prefix_tokens 8 --save_steps 0"
    renio.main([*first.split(), *words.split(), "--output_dir", str(folder)], **more)


def run(folder, words, **more):
    """Train; returns what the folder then holds."""
    train(folder, words, **more)
    return outcome(folder)


def outcome(folder):
    """Metrics without times, rollouts, and the final weights of a run's folder."""
    from safetensors.torch import load_file

    metrics = [
        {k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_rows(Path(folder, "metrics.jsonl"))
    ]
    rollouts = Path(folder, "rollouts.jsonl")
    [file] = Path(folder, "final").glob("*.safetensors")
    return SimpleNamespace(
        metrics=metrics, rollouts=read_rows(rollouts) if rollouts.exists() else [], weights=load_file(file)
    )


def assert_equal(one, other):
    """Two runs have the same metrics, rollouts and weights to the bit."""
    assert one.metrics == other.metrics and one.rollouts == other.rollouts
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def assert_close(one, other, tolerance):
    """Two runs have the same losses and weights to rounding. tolerance: of a weight, less than a step's length."""
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-3
        )
    for name in one.weights:
        torch.testing.assert_close(one.weights[name], other.weights[name], rtol=0, atol=tolerance)
