# SPDX-License-Identifier: MIT
"""The divergence and the weights: golden figures of the released code, values by hand, and properties."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from torch.nn.functional import linear

import renio
from renio import Head, chunked_divergence, float32_logits, sample_weights, token_divergence, token_logprobs

GOLDEN = np.load(ROOT / "tests" / "golden" / "official_loss.npz")
CASES = json.loads(GOLDEN["meta"].item())


def assert_close(ours, theirs, tolerance=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("i", range(len(CASES)))
def test_the_loss_of_the_released_code_is_ours_in_values_and_gradients(i):
    case, golden = CASES[i], {}
    for name in GOLDEN.files:
        if name.startswith(f"{i}/"):
            golden[name.removeprefix(f"{i}/")] = torch.tensor(GOLDEN[name])
    student, teacher = golden["student_logits"].requires_grad_(), golden["teacher_logits"]
    mask, tokens, temperature = golden["mask"].bool(), golden["tokens"], case["temperature"]
    settings = case["beta"], temperature, case["token_clip"]
    divergence = token_divergence(student, teacher, *settings)
    student_logprobs, teacher_logprobs = (token_logprobs(x, tokens, temperature) for x in (student, teacher))
    assert_close(divergence[mask], golden["per_token_divergence"][mask])
    assert_close(student_logprobs[mask], golden["student_token_logprobs"][mask])
    assert_close(teacher_logprobs[mask], golden["teacher_token_logprobs"][mask])
    weights = torch.ones(len(mask), dtype=torch.float64)
    if case["renio"]:
        settings_of_weight = dict(threshold=case["threshold"], clip_max=case["log_ratio_clip"], official=True)
        weights = sample_weights(student_logprobs, teacher_logprobs, mask, **settings_of_weight)
        weights = weights ** (1 / case["weight_temperature"])  # a knob of the release that its scripts leave at 1
        if case["weight_norm"] == "batch_mean":
            weights = weights / weights.mean()
        weights = weights.clamp(max=10.0) if case["weight_norm"] != "none" else weights
        if case["weight_norm"] == "clamp":
            weights = weights / weights.mean()
    assert_close(weights, golden["sample_weights"])
    per_sample = (divergence * mask).sum(1) / mask.sum(1)
    assert_close(per_sample, golden["per_sample_divergence"])
    loss = (per_sample * weights).mean()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    [gradient] = torch.autograd.grad(loss, student)
    assert_close(gradient, golden["grad_student_logits"])

    one_by_one = torch.eye(student.shape[-1], dtype=torch.float64)  # a head under which hidden states are logits
    hidden = student.detach()[mask].requires_grad_()
    chunked = chunked_divergence(hidden, teacher[mask], one_by_one, one_by_one, tokens[mask], *settings, chunk=7)
    assert_close(chunked.divergence, golden["per_token_divergence"][mask])
    factors = (weights / mask.sum(1) / len(mask))[:, None].expand_as(mask)[mask]
    [gradient] = torch.autograd.grad(chunked.divergence @ factors, hidden)
    assert_close(gradient, golden["grad_student_logits"][mask])


def test_divergence_by_hand():
    student = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    teacher = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    reverse = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    m = 0.75 * 0.5 + 0.25 * 0.9, 0.75 * 0.5 + 0.25 * 0.1  # the mixture at beta 0.25
    jsd = 0.25 * (0.9 * math.log(0.9 / m[0]) + 0.1 * math.log(0.1 / m[1]))
    jsd += 0.75 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]))
    for beta, expected in ((0, forward), (1, reverse), (0.25, jsd)):
        assert token_divergence(student, teacher, beta).item() == pytest.approx(expected, rel=1e-12)
        logits = 1.3 * student + 5, 1.3 * teacher - 3  # of the same probabilities at temperature 1.3
        assert token_divergence(*logits, beta, temperature=1.3).item() == pytest.approx(expected, rel=1e-12)
    # the terms of the forward divergence are 0.529 and -0.161
    assert token_divergence(student, teacher, entry_clip=0.3).item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="different shapes"):
        token_divergence(student, teacher[:1])


def hidden_and_heads(vocabularies, bias=False, tokens=23):
    """Hidden states (N, 6) and (N, 9) of student and teacher, both heads, and the tokens (N,)."""
    draw = torch.Generator().manual_seed(4)
    sizes, heads, hidden = zip((6, 9), vocabularies, strict=True), [], []
    for width, vocabulary in sizes:
        hidden.append(torch.randn(tokens, width, generator=draw, dtype=torch.float64))
        weight, offset = torch.randn(vocabulary, width + 1, generator=draw, dtype=torch.float64).split([width, 1], 1)
        heads.append(Head(weight.contiguous(), offset[:, 0].contiguous() if bias else None))
    return *hidden, *heads, torch.randint(min(vocabularies), (tokens,), generator=draw)


@pytest.mark.parametrize("trained", ["hidden", "both"])
@pytest.mark.parametrize("vocabularies, bias", [((31, 31), False), ((31, 36), True), ((36, 31), True)])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(temperature=1.3),
        dict(beta=0.3, temperature=0.7),
        dict(beta=1),
        dict(entry_clip=0.05),
        dict(beta=1, entry_clip=0.02),
    ],
    ids=str,
)
def test_chunks_have_the_values_and_gradients_of_all_tokens_at_once(settings, vocabularies, bias, trained, monkeypatch):
    hidden, teacher_hidden, head, teacher_head, tokens = hidden_and_heads(vocabularies, bias)
    leaves = [x for x in (hidden, *(head if trained == "both" else ())) if x is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    factors, temperature = torch.linspace(-1, 2, 23, dtype=torch.float64), settings.get("temperature", 1.0)
    logits, teacher_logits = linear(hidden, *head)[:, :31], linear(teacher_hidden, *teacher_head)[:, :31]
    log_t = (teacher_logits / temperature).log_softmax(-1)
    expected = [token_divergence(logits, teacher_logits, **settings)]
    expected += [token_logprobs(x, tokens, temperature) for x in (logits, teacher_logits)]
    expected.append(-(log_t.exp() * log_t).sum(-1))
    expected_gradients = torch.autograd.grad(expected[0] @ factors, leaves)
    for chunk, part in ((1, 31), (7, 2 * 31), (7, 10**6), (64, 5 * 31), (None, 10**6)):
        monkeypatch.setattr(renio, "CACHED", part)
        found = chunked_divergence(hidden, teacher_hidden, head, teacher_head, tokens, **settings, chunk=chunk)
        assert not any(column.requires_grad for column in found[1:])
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours.detach(), theirs.detach(), 1e-11)
        for ours, theirs in zip(torch.autograd.grad(found[0] @ factors, leaves), expected_gradients, strict=True):
            assert_close(ours, theirs, 1e-11)


def test_sixteen_bit_operands_give_the_gradients_and_log_ratios_of_float64():
    """Where student and teacher nearly agree, logits that are rounded to 16 bit are wrong by a tenth and more."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 128, generator=draw).bfloat16()
    weight = (torch.randn(1000, 128, generator=draw) * 0.3).bfloat16()
    teacher_hidden = (hidden.float() + 0.045 * torch.randn(64, 128, generator=draw)).bfloat16()
    tokens = torch.randint(1000, (64,), generator=draw)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        leaf = hidden.to(dtype).requires_grad_()
        columns = chunked_divergence(leaf, teacher_hidden.to(dtype), weight.to(dtype), weight.to(dtype), tokens)
        [gradient] = torch.autograd.grad(columns.divergence.sum(), leaf)
        results.append((columns, gradient.double()))
    (ours, gradient), (exact, exact_gradient) = results
    assert 0.005 < exact.divergence.mean() < 0.05
    assert (gradient - exact_gradient).norm() < 0.01 * exact_gradient.norm()
    log_ratios = [columns.student_logprob - columns.teacher_logprob for columns in (ours, exact)]
    assert (log_ratios[0] - log_ratios[1]).abs().max() < 1e-3
    assert float32_logits(hidden, Head(weight)).dtype == ours.divergence.dtype == torch.float32


def test_extreme_logits_stay_finite():
    hidden, teacher_hidden, head, teacher_head, tokens = hidden_and_heads((31, 31))
    hidden = (1000 * hidden).float().requires_grad_()
    heads = Head(head.weight.float()), Head(teacher_head.weight.float())
    for beta in (0.0, 0.5, 1.0):
        found = chunked_divergence(hidden, 1000 * teacher_hidden.float(), *heads, tokens, beta)
        [gradient] = torch.autograd.grad(found.divergence.sum(), hidden)
        assert all(column.isfinite().all() for column in (*found, gradient))


@pytest.mark.parametrize("lora_r", [0, 4])
def test_a_change_of_the_divergence_reaches_training(tmp_path, micro_model, monkeypatch, lora_r):
    monkeypatch.setattr(renio, "token_divergence", lambda student, *_: 0.0 * student.sum(-1))
    found = run(tmp_path, f"--method opsd --model {micro_model} --lora_r {lora_r} --weighting renio")
    assert [row["loss"] for row in found.metrics] == [row["grad_norm"] for row in found.metrics] == [0, 0]


def log_ratios(*rows):
    """Student and teacher log-probabilities with these differences, not a number elsewhere, and the mask."""
    student = torch.full((len(rows), max(map(len, rows))), float("nan"), dtype=torch.float64)
    mask = torch.zeros_like(student, dtype=torch.bool)
    for i, row in enumerate(rows):
        student[i, : len(row)] = torch.tensor(row, dtype=torch.float64) - 5
        mask[i, : len(row)] = True
    return student, torch.full_like(student, -5.0), mask


@pytest.mark.parametrize(
    "rows, settings, expected",
    [
        # 1 and 4 are key tokens, 4 is clipped to 3; 0.75 is not above the threshold
        (([1.0, 4.0, 0.5, -2.0], [0.75, 0.125], [2.0]), dict(threshold=0.75), [2.0, 0.0, 2.0]),
        (([1.0, 0.5, 0.0, 0.75], [2.0], [-0.25, 1.0]), dict(threshold=-math.inf), [2.25 / 4, 2.0, 0.375]),
        (([0.2, 4.0, -9.0],), dict(threshold=0.1, clip_min=1.0), [2.0]),  # the lower clip is for key tokens only
        (([0.75, 4.0], [0.125, 0.25]), dict(threshold=0.75, clip_max=2.0, official=True), [1.375, 0.0]),
        (([4.0],), dict(threshold=2.5, clip_max=2.0, official=True), [0.0]),  # clipped to 2, so it is no key token
        (([4.0],), dict(threshold=2.5, clip_max=2.0), [2.0]),
    ],
)
def test_weights_by_hand_and_what_stands_outside_the_mask_is_not_read(rows, settings, expected):
    weights = sample_weights(*log_ratios(*rows), **dict(clip_max=3.0) | settings)
    assert weights.log().tolist() == pytest.approx(expected)
    assert not weights.requires_grad
