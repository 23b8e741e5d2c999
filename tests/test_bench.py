# SPDX-License-Identifier: MIT
"""The bench of a GPU, at tiny sizes on a CPU."""

import json
import math
from collections import Counter

import bench_gpu
import pytest
import torch

import renio


def measure(folder, *points):
    """The figures that `bench.py gpu --tiny` appends, and its exit code."""
    with pytest.raises(SystemExit) as exit:
        bench_gpu.main([*points, "--tiny", "--models", str(folder / "models"), "--output", str(folder / "figures")])
    return [json.loads(line) for line in open(folder / "figures", encoding="utf-8")], exit.value.code


def test_every_point_gives_all_its_figures(tmp_path, capsys):
    figures, code = measure(tmp_path)
    said = capsys.readouterr().out
    assert code == 0 and not [row for row in figures if "failed" in row]
    counts = Counter(row["point"] for row in figures)
    golden = 0 if "no folder shared/golden" in said else 2
    # step: 2 methods x (2 of the rollout, 6 cases x 3 phases and a memory, 2 ratios); loss: 4 divergences x 4 ways
    assert counts == dict(machine=2, right=3 * 4 * 2 + golden, loss=4 * 4, step=2 * (2 + 6 * 4 + 2), sample=4, grpo=5)
    for row in figures:
        assert math.isfinite(row["value"]) and row["value"] >= 0 and row["torch"] == torch.__version__
        assert row["value"] > 0 or row["point"] == "right"
        assert f"{row['figure']}: " in said
    assert len({(row["point"], row["figure"]) for row in figures}) == len(figures)
    assert "bash run_all.sh" in said
    step = {row["figure"]: row for row in figures if row["point"] == "step"}
    whole = step["opd, ReNIO / none, micro-batches of 2"]
    phases = [step[f"opd, renio, micro-batches of 2: {name}"]["value"] for name in ("teacher", "student", "optimizer")]
    assert whole["seconds_with_renio"] > step["opd, rollout"]["value"]
    assert sum(phases) <= whole["seconds_with_renio"]
    # one pass over both rollouts, or one over each: the same work but for the padding
    of_one, of_two = (step[f"opd, renio, micro-batches of {n}: student"]["teraflop"] for n in (1, 2))
    assert of_one < of_two < 2 * of_one


def test_a_wrong_divergence_is_reported(tmp_path, monkeypatch):
    fused = renio.fused_divergence

    def forward_kl_always(*tensors, beta, **settings):
        return fused(*tensors, beta=0.0, **settings)

    monkeypatch.setattr(renio, "fused_divergence", forward_kl_always)
    figures, code = measure(tmp_path, "right")
    assert code == 1
    wrong = [row["figure"] for row in figures if row["point"] == "right" and not row["right"]]
    assert wrong == [f"{name}, {dtype}, {of}" for dtype in ("float64", "float32", "bfloat16")
                     for name in ("JSD 0.5", "reverse KL") for of in ("values", "gradients")]


def test_what_does_not_fit_or_fails_spares_the_other_figures(tmp_path, monkeypatch, capsys):
    def too_large(*args, **settings):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(renio, "token_divergence", too_large)
    monkeypatch.setattr(renio, "grpo_step", too_large)
    monkeypatch.setitem(bench_gpu.POINTS, "sample", lambda bench: 1 / 0)
    figures, code = measure(tmp_path, "sample", "loss", "grpo")
    assert code == 1 and "sample  failed: ZeroDivisionError: division by zero" in capsys.readouterr().out
    failed = [row["figure"] for row in figures if row.get("failed") == "out of memory"]
    assert [name for name in failed if name.endswith("full logits")] == [
        f"{name}: full logits" for name in ("forward KL", "forward KL, entries clipped", "JSD 0.5",
                                            "forward KL, head trains")]
    assert len(failed) == 4 + 2 * 2
    fused = [row for row in figures if row["figure"].endswith("rows a chunk")]
    assert len(fused) == 4 * 2 and all(row["value"] > 0 and row["of_full_logits"] is None for row in fused)


def test_wrong_words_are_named(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, text in ((["lose", "--tiny"], "unknown: lose; known are right, loss"), (["loss"], "no GPU; --tiny")):
        with pytest.raises(SystemExit) as exit:
            bench_gpu.main(words)
        assert exit.value.code == 2 and text in capsys.readouterr().err
