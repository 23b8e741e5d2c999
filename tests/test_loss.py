# SPDX-License-Identifier: MIT
"""The divergence and the weights: golden figures of the released code, values by hand, and properties."""

import json
import math

import numpy as np
import pytest
import torch

import renio
from renio import (
    fused_divergence,
    official_sample_weights,
    sample_weights,
    sampled_divergence,
    token_divergence,
    token_logprobs,
)


def random_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_golden_case_agrees_in_values_and_gradients(shared):
    file = np.load(shared / "golden" / "official_loss_public.npz")
    cases = json.loads(file["meta"].item())
    assert len(cases) == 24
    for i, case in enumerate(cases):
        def golden(name, i=i):
            return torch.tensor(file[f"{i}/{name}"])

        def close(ours, theirs):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

        student = golden("student_logits").requires_grad_()
        mask = golden("mask").bool()
        divergence = token_divergence(student, golden("teacher_logits"), case["beta"], case["temperature"],
                                      case["token_clip"], "official" if case["token_clip"] else "none")
        close(divergence[mask], golden("per_token_divergence")[mask])
        student_logprobs = token_logprobs(student, golden("tokens"), case["temperature"])
        teacher_logprobs = token_logprobs(golden("teacher_logits"), golden("tokens"), case["temperature"])
        close(student_logprobs[mask], golden("student_token_logprobs")[mask])
        close(teacher_logprobs[mask], golden("teacher_token_logprobs")[mask])
        weights = torch.ones(len(mask), dtype=torch.float64)
        if case["renio"]:
            weights = official_sample_weights(student_logprobs, teacher_logprobs, mask, case["threshold"],
                                              case["log_ratio_clip"], case["weight_temperature"],
                                              case["weight_norm"].removesuffix("_mean"))
        close(weights, golden("sample_weights"))
        per_sample = (divergence * mask).sum(1) / mask.sum(1)
        close(per_sample, golden("per_sample_divergence"))
        loss = (per_sample * weights).mean()
        assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
        loss.backward()
        close(student.grad, golden("grad_student_logits"))


def test_divergence_by_hand():
    student = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64).log()
    teacher = torch.tensor([[[0.9, 0.1]]], dtype=torch.float64).log()
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    reverse = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    mixture = [0.75 * 0.5 + 0.25 * 0.9, 0.75 * 0.5 + 0.25 * 0.1]
    jsd = (0.25 * (0.9 * math.log(0.9 / mixture[0]) + 0.1 * math.log(0.1 / mixture[1]))
           + 0.75 * (0.5 * math.log(0.5 / mixture[0]) + 0.5 * math.log(0.5 / mixture[1])))
    for beta, expected in ((0, forward), (1, reverse), (0.25, jsd)):
        assert token_divergence(student, teacher, beta).item() == pytest.approx(expected, rel=1e-12)
        logits = 1.3 * student + 5, 1.3 * teacher - 3  # of the same probabilities at temperature 1.3
        assert token_divergence(*logits, beta, temperature=1.3).item() == pytest.approx(expected, rel=1e-12)
    # the terms of the forward divergence are 0.529 and -0.161
    clipped = token_divergence(student, teacher, 0, entry_clip=0.3, clip_mode="opsd").item()
    assert clipped == pytest.approx(0.3 + 0.1 * math.log(0.2), rel=1e-12)
    assert token_divergence(student, teacher, 0, entry_clip=0.3, clip_mode="official").item() == pytest.approx(0.3)


# --- the fused divergence ---------------------------------------------------------------------------------------------

SETTINGS = [dict(beta=0), dict(beta=0, temperature=1.3), dict(beta=0.3), dict(beta=1, temperature=0.8),
            dict(beta=0, entry_clip=0.05, clip_mode="official"), dict(beta=0, entry_clip=0.05, clip_mode="opsd"),
            dict(beta=0.5, entry_clip=0.02, clip_mode="official"), dict(beta=1, entry_clip=0.05, clip_mode="opsd")]


def heads_and_hidden(biases=False, padded=0, dtype=torch.float64):
    """Student (N, D) and teacher (N, D') hidden states, their heads, tokens, biases; `padded` more teacher words."""
    draw = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    tensors = [normal(23, 6), normal(23, 9), normal(31, 6), normal(31 + padded, 9)]
    tokens = torch.randint(31, (23,), generator=draw)
    return tensors, tokens, [normal(31), normal(31 + padded)] if biases else [None, None]


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("biases, padded", [(False, 0), (True, 5)])
def test_the_fused_divergence_has_the_values_and_gradients_of_the_plain_one(settings, chunk, biases, padded):
    (hidden, teacher_hidden, head, teacher_head), tokens, (bias, teacher_bias) = heads_and_hidden(biases, padded)
    trained = [x.requires_grad_() for x in (hidden, head, bias) if x is not None]
    factors = torch.linspace(-1, 2, 23, dtype=torch.float64)  # what the weighting makes of the tokens

    student_logits = torch.nn.functional.linear(hidden, head, bias)
    teacher_logits = torch.nn.functional.linear(teacher_hidden, teacher_head, teacher_bias)[:, :31]
    temperature = settings.get("temperature", 1.0)
    plain = token_divergence(student_logits[None], teacher_logits[None], **settings)[0]
    log_t = (teacher_logits / temperature).log_softmax(-1)
    expected = (plain, token_logprobs(student_logits, tokens, temperature),
                token_logprobs(teacher_logits, tokens, temperature), -(log_t.exp() * log_t).sum(-1))
    expected_gradients = torch.autograd.grad(plain @ factors, trained)

    heads = ((head, bias), (teacher_head, teacher_bias)) if biases else (head, teacher_head)
    fused = fused_divergence(hidden, teacher_hidden, *heads, tokens, **settings, chunk=chunk)
    for ours, theirs in zip(fused, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12, check_stride=False)
    gradients = torch.autograd.grad(fused.divergence @ factors, trained)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_fused_divergence_takes_a_chunk_in_parts(monkeypatch):
    (hidden, teacher_hidden, head, teacher_head), tokens, _ = heads_and_hidden()
    hidden.requires_grad_()
    results = []
    for part in (31, 3 * 31, 23 * 31):
        monkeypatch.setitem(renio.PART, "cpu", part)
        fused = fused_divergence(hidden, teacher_hidden, head, teacher_head, tokens, beta=0.5)
        results.append([*fused, *torch.autograd.grad(fused.divergence.sum(), hidden)])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("trained", [[0], [1], [2], [0, 1], [1, 2]], ids=str)
def test_the_fused_divergence_has_the_gradients_of_whatever_trains(trained):
    (hidden, teacher_hidden, head, teacher_head), tokens, (bias, teacher_bias) = heads_and_hidden(biases=True)
    parts = [hidden, head, bias]
    trained = [parts[i].requires_grad_() for i in trained]
    factors = torch.linspace(-1, 2, 23, dtype=torch.float64)
    teacher_logits = torch.nn.functional.linear(teacher_hidden, teacher_head, teacher_bias)
    plain = token_divergence(torch.nn.functional.linear(*parts)[None], teacher_logits[None], temperature=1.3)[0]
    fused = fused_divergence(hidden, teacher_hidden, (head, bias), (teacher_head, teacher_bias), tokens,
                             temperature=1.3, chunk=7)
    for ours, theirs in zip(torch.autograd.grad(fused.divergence @ factors, trained),
                            torch.autograd.grad(plain @ factors, trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_sampled_divergence_has_the_gradient_of_the_reverse_kl_in_expectation():
    student, teacher = random_logits(1, 1, 13).requires_grad_(), random_logits(1, 1, 13, seed=1)
    full = token_divergence(student, teacher, beta=1, temperature=1.3).sum()
    [expected_gradient] = torch.autograd.grad(full, student)
    every = torch.arange(13)[None]  # each token of the vocabulary once, by its probability
    log_s, log_t = (token_logprobs(x.expand(1, 13, 13), every, 1.3) for x in (student, teacher))
    mean = (log_s.exp().detach() * sampled_divergence(log_s, log_t)).sum()
    torch.testing.assert_close(mean, full)
    torch.testing.assert_close(torch.autograd.grad(mean, student)[0], expected_gradient)


@pytest.mark.parametrize("chunk", [7, 64])
def test_the_fused_sampled_divergence_has_the_values_and_gradients_of_the_plain_one(chunk):
    (hidden, teacher_hidden, head, teacher_head), tokens, biases = heads_and_hidden(biases=True)
    trained = [x.requires_grad_() for x in (hidden, head, biases[0])]
    factors = torch.linspace(-1, 2, 23, dtype=torch.float64)
    log_s, log_t = (token_logprobs(torch.nn.functional.linear(h, w, b), tokens, 1.2) for h, w, b in
                    ((hidden, head, biases[0]), (teacher_hidden, teacher_head, biases[1])))
    plain = sampled_divergence(log_s, log_t)
    fused = fused_divergence(hidden, teacher_hidden, (head, biases[0]), (teacher_head, biases[1]), tokens, beta=1.0,
                             temperature=1.2, chunk=chunk, estimator="sampled")
    torch.testing.assert_close(fused.divergence, plain.detach())
    for ours, theirs in zip(torch.autograd.grad(fused.divergence @ factors, trained),
                            torch.autograd.grad(plain @ factors, trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_fused_divergence_computes_in_float32_for_bfloat16_weights():
    (hidden, teacher_hidden, head, teacher_head), tokens, _ = heads_and_hidden(dtype=torch.bfloat16)
    hidden.requires_grad_()
    fused = fused_divergence(hidden, teacher_hidden, head, teacher_head, tokens, temperature=1.3)
    assert fused.divergence.dtype == torch.float32
    plain = token_divergence((hidden @ head.T).float()[None], (teacher_hidden @ teacher_head.T).float()[None],
                             temperature=1.3)[0]
    torch.testing.assert_close(fused.divergence, plain)
    [ours], [theirs] = (torch.autograd.grad(x.sum(), hidden) for x in (fused.divergence, plain))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_extreme_logits_stay_finite():
    (hidden, teacher_hidden, head, teacher_head), tokens, _ = heads_and_hidden(dtype=torch.float32)
    hidden = (1000 * hidden).requires_grad_()
    for beta in (0.0, 0.5, 1.0):
        fused = fused_divergence(hidden, 1000 * teacher_hidden, head, teacher_head, tokens, beta)
        fused.divergence.sum().backward()
        assert all(column.isfinite().all() for column in fused) and hidden.grad.isfinite().all()


# --- the weights ------------------------------------------------------------------------------------------------------

def log_ratios(*rows):
    """Student and teacher log-probabilities with these differences, and a mask that is true on all of them."""
    student = torch.full((len(rows), max(map(len, rows))), float("nan"), dtype=torch.float64)
    mask = torch.zeros_like(student, dtype=torch.bool)
    for i, row in enumerate(rows):
        student[i, : len(row)] = torch.tensor(row, dtype=torch.float64) - 5
        mask[i, : len(row)] = True
    return student, torch.full_like(student, -5.0), mask


def test_weights_by_hand_and_what_stands_outside_the_mask_is_not_read():
    ratios = log_ratios([1.0, 4.0, 0.5, -2.0], [0.75, 0.125], [2.0])
    weights = sample_weights(*ratios, threshold=0.75, clip_max=3.0)
    # row 0: key tokens 1.0 and 4.0 -> 3.0; row 1: 0.75 is not above the threshold, no key token; row 2: 2.0
    torch.testing.assert_close(weights, torch.tensor([math.exp(2.0), 1.0, math.exp(2.0)], dtype=torch.float64))


def test_padding_is_never_key_however_low_the_threshold():
    ratios = log_ratios([1.0, 0.5, 0.0, 0.75], [2.0], [-0.25, 1.0])
    expected = torch.tensor([2.25 / 4, 2.0, 0.375], dtype=torch.float64).exp()  # of all tokens, and of no padding
    torch.testing.assert_close(sample_weights(*ratios, -math.inf, 3.0), expected)
    torch.testing.assert_close(official_sample_weights(*ratios, -math.inf, 3.0, norm="none"), expected)


def test_clip_from_below_counts_only_on_key_tokens():
    ratios = log_ratios([0.2, 3.0, -9.0])
    weights = sample_weights(*ratios, threshold=0.1, clip_max=3.0, clip_min=1.0)
    assert weights.item() == pytest.approx(math.exp((1.0 + 3.0) / 2))


def test_the_released_weight_clips_first_selects_with_equality_and_caps_at_ten():
    ratios = log_ratios([0.75, 4.0], [0.125, 0.25])  # binary fractions, so that equality is exact
    weights = official_sample_weights(*ratios, threshold=0.75, clip_max=2.0, norm="none")
    assert weights.tolist() == pytest.approx([math.exp((0.75 + 2.0) / 2), 1.0])
    starved = official_sample_weights(*ratios, threshold=2.5, clip_max=2.0, norm="none")
    assert starved.tolist() == [1.0, 1.0]  # clipped to 2.0 before the comparison with 2.5
    many = log_ratios([9.0], *[[0.0]] * 30)
    assert official_sample_weights(*many, threshold=0.8, clip_max=9.0).max().item() == 10.0
    assert sample_weights(*many, threshold=0.8, clip_max=9.0).max().item() == pytest.approx(math.exp(9.0))
    tempered = official_sample_weights(*many, threshold=0.8, clip_max=9.0, weight_temperature=4.5, norm="none")
    assert tempered[0].item() == pytest.approx(math.exp(2.0))
    clamped = official_sample_weights(*many, threshold=0.8, clip_max=9.0, norm="clamp")
    # clamped to 10, then divided by the mean of it and 30 ones
    assert clamped[0].item() == pytest.approx(10 / (40 / 31))


@pytest.mark.parametrize("call, words", [
    (lambda x: token_divergence(x, x[..., :-1]), "different shapes"),
    (lambda x: token_divergence(x, x, beta=1.5), "beta"),
    (lambda x: token_divergence(x, x, temperature=0), "temperature"),
    (lambda x: token_divergence(x, x, clip_mode="both"), "clip_mode"),
    (lambda x: token_divergence(x, x, entry_clip=0.1), "entry_clip"),
    (lambda x: fused_divergence(x[0], x[0], x[0], x[0], torch.zeros(3).long(), beta=-1), "beta"),
    (lambda x: fused_divergence(x[0], x[0], x[0], x[0], torch.zeros(3).long(), estimator="other"), "estimator"),
    (lambda x: fused_divergence(x[0], x[0], x[0], x[0], torch.zeros(3).long(), estimator="sampled", entry_clip=0.1,
                                clip_mode="official"), "estimator"),
    (lambda x: sample_weights(x[0], x[0], x[0, :, :2], 0.8, 3.0), "one shape"),
    (lambda x: official_sample_weights(x[0], x[0], x[0], 0.8, 3.0, norm="sum"), "norm"),
])
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(random_logits(2, 3, 5))
