# SPDX-License-Identifier: MIT
"""The weightings that ReNIO is compared with, and GRPO, against values worked by hand."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import distilled, examples_of, rollouts_of
from test_devices import in_processes

import renio
from renio import Devices, UserError, sample

SETTINGS = SimpleNamespace(threshold=0.8, log_ratio_clip=2.0, log_ratio_clip_min=None, variant="paper")
# log p_S - log p_T: [1, 0.5, 3] and [-1, -4], and a padded place that nothing may read
STUDENT = torch.tensor([[-1.0, -0.5, -1.0], [-2.0, -5.0, 9.0]])
TEACHER = torch.tensor([[-2.0, -1.0, -4.0], [-1.0, -1.0, -9.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
E, S = math.exp, lambda x: 1 / (1 + math.exp(-x))


def columns(student, teacher, mask, right):
    """TokenColumns with these log-probabilities."""
    return renio.TokenColumns(torch.zeros_like(student), student, teacher, torch.zeros_like(student), mask, right)


@pytest.mark.parametrize("name, expected", [
    ("none", [[1.0], [1.0]]),
    ("renio", [[E(1.5)], [1.0]]),  # key tokens 1 and 3, clipped to 2: mean of 1 and 2
    ("ts_sample", [[1.0], [E(1.5)]]),  # log-ratios of teacher to student 1 and 4: mean of 1 and 2
    ("st_token", [[E(1.0), 1.0, E(2.0)], [1.0, 1.0]]),
    ("iw", [[1.5, 1 + 0.5 * (1 - 1 / 1.5), 1.0], [1.5, 1.0]]),
    ("pw", [[0.25 + 0.75 * S((t / 3 - 0.3) / 0.1) for t in (1, 2, 3)],
            [0.25 + 0.75 * S((t / 2 - 0.3) / 0.1) for t in (1, 2)]]),
    ("correctness", [[1.0], [E(2.0)]]),
])
def test_each_weighting_gives_the_weights_worked_by_hand(name, expected):
    weigh, _ = renio.WEIGHTINGS[name]
    weights = weigh(columns(STUDENT, TEACHER, MASK, [None, False]), SETTINGS)
    for row, numbers in zip(weights.tolist(), expected, strict=True):
        assert row[: len(numbers)] == pytest.approx(numbers, rel=1e-6)


def test_an_agreeing_or_one_token_sample_has_finite_weights():
    same = torch.zeros(2, 1)
    for weigh, _ in renio.WEIGHTINGS.values():
        tokens = columns(same, same, torch.ones(2, 1, dtype=torch.bool), [True, False])
        assert weigh(tokens, SETTINGS).isfinite().all()


def test_the_area_under_the_curve_by_hand():
    assert renio.area_under_curve([3, 2], [1, 2]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert renio.area_under_curve([1, 2], []) is None


@pytest.fixture
def batch(config, tokenizer, model):
    examples = examples_of(config("--method", "opsd"), tokenizer, 8)
    completions = sample(model, [e.student_prompt for e in examples], 14, list(range(20, 30)), seed=2)
    return rollouts_of(examples, completions, right=[True, False, None, False] * 2)


def step(config, tokenizer, model, batch, *words):
    """The update's gradient and the records of one distillation step."""
    flags = config("--method", "opsd", "--threshold", 0.01, *words)
    model.zero_grad()
    teacher = renio.Teacher(flags, model, tokenizer, Devices("cpu"))
    total, records = distilled(model, teacher, batch, flags)
    return torch.cat([p.grad.flatten() for p in model.parameters()]) / total, records


@pytest.mark.parametrize("name", ["st_token", "iw", "pw", "ts_sample", "correctness", "renio_shuffled"])
def test_every_weighting_gives_one_update_however_the_batch_is_split(config, tokenizer, model, batch, name):
    whole, _ = step(config, tokenizer, model, batch, "--weighting", name)
    for size in (1, 3):
        split, _ = step(config, tokenizer, model, batch, "--weighting", name, "--micro_batch_size", size)
        assert (split - whole).norm() < 2e-6 * whole.norm(), size


def test_the_sampled_estimator_sums_log_ratios(config, tokenizer, model, batch):
    flags = config("--method", "opsd")
    teacher = renio.Teacher(flags, model, tokenizer, Devices("cpu"))
    log_ratio = renio.token_columns(model, teacher, batch, flags, renio.Stopwatch("cpu")).log_ratio
    gradient, records = step(config, tokenizer, model, batch, "--estimator", "sampled", "--beta", 1,
                             "--weighting", "renio")
    assert gradient.norm() > 0
    assert [record["divergence"] for record in records] == pytest.approx(log_ratio.sum(1).tolist(), rel=1e-3, abs=1e-5)
    assert [record["counted"] for record in records] == [len(rollout.completion) for rollout in batch]


@pytest.mark.parametrize("name", ["renio", "st_token", "correctness", "renio_shuffled"])
def test_the_official_variant_normalizes_every_weighting_in_its_micro_batch(config, tokenizer, model, batch, name):
    def weights(*words):
        _, records = step(config, tokenizer, model, batch, "--weighting", name, "--micro_batch_size", 4,
                          "--variant", "official", *words)
        return torch.tensor([record["weight"] for record in records]).view(2, 4)

    own, normalized = weights("--weight_norm", "none"), weights()
    torch.testing.assert_close(normalized, own / own.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert (normalized.mean(1) - 1).abs().max() < 1e-4 < own.std()


def test_official_normalizing_is_that_of_the_released_weights_and_caps_at_ten():
    mask = torch.ones(31, 4, dtype=torch.bool)
    student, teacher = torch.zeros(31, 4), torch.zeros(31, 4)
    teacher[0] = -9.0
    own = renio.official_sample_weights(student, teacher, mask, 0.8, 9.0, norm="none")[:, None]
    released = renio.official_sample_weights(student, teacher, mask, 0.8, 9.0)[:, None]
    torch.testing.assert_close(renio.official_normalized(own, mask), released)
    assert released.max() == 10


def test_skipped_tokens_count_in_neither_loss_nor_weight(config, tokenizer, model, batch):
    flags = config("--method", "opsd")
    teacher = renio.Teacher(flags, model, tokenizer, Devices("cpu"))
    tokens = renio.token_columns(model, teacher, batch, flags, renio.Stopwatch("cpu"))
    for skip in (1, 2):
        kept = tokens.mask.clone()
        kept[:, :skip] = False
        weights = renio.sample_weights(tokens.student_logprobs, tokens.teacher_logprobs, kept, 0.01, 3.0)
        _, records = step(config, tokenizer, model, batch, "--weighting", "renio", "--skip_tokens", skip)
        assert [r["weight"] for r in records] == pytest.approx(weights.tolist(), rel=1e-4)
        losses = weights * (tokens.divergence * kept).sum(1)
        assert [r["loss"] for r in records] == pytest.approx(losses.tolist(), rel=1e-3, abs=1e-6)
        assert [r["counted"] for r in records] == [max(0, len(r.completion) - skip) for r in batch]


def test_a_batch_of_which_every_token_is_skipped_changes_nothing(config, tokenizer, model, batch):
    for name in ("none", "renio", "renio_shuffled", "correctness"):
        gradient, records = step(config, tokenizer, model, batch, "--weighting", name, "--skip_tokens", 39)
        assert gradient.eq(0).all() and gradient.isfinite().all()
        metrics = renio.step_metrics(records, 1.0, config("--method", "opsd"))
        assert metrics["divergence"] == 0 and metrics["first_token_divergence_share"] is None


def test_the_first_tokens_shares_by_hand(config, tokenizer, model, batch):
    flags = config("--method", "opsd", "--threshold", -0.01)  # padding, whose log-ratio is 0, exceeds it too
    teacher = renio.Teacher(flags, model, tokenizer, Devices("cpu"))
    tokens = renio.token_columns(model, teacher, batch, flags, renio.Stopwatch("cpu"))
    _, records = step(config, tokenizer, model, batch, "--threshold", -0.01)
    metrics = renio.step_metrics(records, 1.0, flags)
    key = (tokens.log_ratio > -0.01) & tokens.mask
    first, whole = tokens.divergence[:, 0].sum().item(), tokens.divergence.sum().item()
    assert metrics["first_token_divergence_share"] == pytest.approx(first / whole, rel=1e-3)
    assert metrics["first_token_key_share"] == key[:, 0].sum().item() / key.sum().item()


def test_self_distillation_from_the_same_prompt_has_nothing_to_say(config, tokenizer, model, batch):
    taught, _ = step(config, tokenizer, model, batch)
    alike = [rollout._replace(example=replace(rollout.example, teacher_prompt=rollout.example.student_prompt))
             for rollout in batch]
    gradient, records = step(config, tokenizer, model, alike)
    assert gradient.norm() < 1e-5 * taught.norm()
    assert max(abs(record["divergence"]) for record in records) < 1e-5


def test_token_weights_multiply_each_tokens_divergence(config, tokenizer, model, batch):
    flags = config("--method", "opsd")
    teacher = renio.Teacher(flags, model, tokenizer, Devices("cpu"))
    tokens = renio.token_columns(model, teacher, batch, flags, renio.Stopwatch("cpu"))
    expected = (tokens.divergence * renio.pw_weights(tokens, flags)).sum(1)
    _, records = step(config, tokenizer, model, batch, "--weighting", "pw")
    assert [record["loss"] for record in records] == pytest.approx(expected.tolist(), rel=1e-4)


def test_shuffled_weights_are_those_of_the_batch_on_other_samples(config, tokenizer, model, batch):
    _, plain = step(config, tokenizer, model, batch, "--weighting", "renio")
    _, shuffled = step(config, tokenizer, model, batch, "--weighting", "renio_shuffled", "--micro_batch_size", 3)
    weights = [[record["weight"] for record in records] for records in (plain, shuffled)]
    assert sorted(weights[0]) == pytest.approx(sorted(weights[1]), rel=1e-5)
    assert weights[0] != pytest.approx(weights[1], rel=1e-3)
    # each record still says what its weight would have been
    assert [record["renio_weight"] for record in shuffled] == pytest.approx(weights[0], rel=1e-5)


def shuffled_over_ranks(devices, flags, rollouts, path):
    student, tokenizer = renio.load_student(flags, "cpu")
    teacher = renio.Teacher(flags, student, tokenizer, devices)
    _, records = renio.distillation_step(student, teacher, devices.part_of(rollouts), flags, devices,
                                         renio.Stopwatch("cpu"))
    records = devices.gather(records)
    if devices.rank == 0:
        torch.save([(record["renio_weight"], record["weight"]) for record in records], path)


def test_weights_are_shuffled_over_all_ranks(tmp_path, config, batch, micro_model):
    flags = config("--method", "opsd", "--threshold", 0.01, "--weighting", "renio_shuffled", "--model", micro_model)
    in_processes(2, tmp_path, shuffled_over_ranks, flags, batch, tmp_path / "weights.pt")
    own, used = zip(*torch.load(tmp_path / "weights.pt"), strict=True)
    assert sorted(own) == pytest.approx(sorted(used), rel=1e-5)
    assert sorted(own[:4]) != pytest.approx(sorted(used[:4]), rel=1e-3)


# --- GRPO -------------------------------------------------------------------------------------------------------------

def test_advantages_compare_each_reward_with_its_group():
    advantages = renio.grpo_advantages([1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0], 4)
    sd = math.sqrt(1 / 3)  # of two of four; with one of four it is 1/2
    expected = [0.5 / sd, -0.5 / sd, -0.5 / sd, 0.5 / sd, 0, 0, 0, 0, 0.5, 0.5, 0.5, -1.5]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-3)


def test_the_clipped_objective_stops_pulling_where_the_ratio_has_gone_far_enough():
    ratios = torch.tensor([[0.5, 1.0, 1.5]]).repeat(2, 1)
    logprobs = ratios.log().requires_grad_()
    objective = renio.clipped_objective(logprobs, torch.zeros(2, 3), torch.tensor([2.0, -2.0]), 0.2)
    assert objective.tolist() == [pytest.approx([1.0, 2.0, 2.4]), pytest.approx([-1.6, -2.0, -3.0])]
    objective.sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([1.0, 2.0, 0.0])
    assert logprobs.grad[1].tolist() == pytest.approx([0.0, -2.0, -3.0])


def test_the_first_update_follows_the_policy_gradient(config, tokenizer, model):
    flags = config("--method", "grpo", "--batch_size", 8, "--generations", 4, "--micro_batch_size", 3)
    examples = [e for e in examples_of(flags, tokenizer, 2) for _ in range(4)]
    completions = sample(model, [e.student_prompt for e in examples], 14, list(range(20, 30)), seed=2)
    verdicts = [True, False, None, True, False, False, True, False]
    rollouts, old = rollouts_of(examples, completions, right=verdicts), []
    total, records = renio.grpo_step(model, rollouts, old, flags, Devices("cpu"), renio.Stopwatch("cpu"))
    ours = torch.cat([p.grad.flatten() for p in model.parameters()]) / total
    model.zero_grad()
    advantages = renio.grpo_advantages([1, 0, 0, 1, 0, 0, 1, 0], 4)
    for example, completion, advantage in zip(examples, completions, advantages, strict=True):
        ids = torch.tensor([example.student_prompt + completion])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-len(completion):]
        (-advantage * logprobs.mean() / 8).backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert all(record["clipped"] == 0 for record in records)
    assert [row.shape[1] for row in old] == [max(map(len, completions[i : i + 3])) for i in (0, 3, 6)]


def test_grpo_lifts_the_reward(config, tmp_path, monkeypatch):
    """A reward that a micro model can learn from nothing: an answer that begins with "wait"."""
    monkeypatch.setattr(renio, "grade_rollout", lambda tokenizer, completion, *_: completion[0] == 9)
    flags = config("--method", "grpo", "--batch_size", 32, "--max_steps", 40, "--prefix_tokens", 2, "--save_steps", 0,
                   "--learning_rate", 1e-3)
    renio.train(flags, Devices("cpu"))
    rewards = [json.loads(line)["reward"] for line in open(tmp_path / "run" / "metrics.jsonl")]
    assert sum(rewards[:5]) / 5 < 0.2 and sum(rewards[-5:]) / 5 > 0.8, rewards


@pytest.mark.parametrize("words, message", [
    ("--generations 5", "--generations 5: must divide --batch_size 32"),
    ("--iterations 0", "--iterations 0"), ("--ratio_clip 1", "--ratio_clip 1.0"),
    ("--weighting renio", "grpo has no divergence"), ("--teacher x", "not used by grpo"),
])
def test_flags_of_grpo_are_checked(config, words, message):
    with pytest.raises(UserError, match=message):
        config("--method", "grpo", *words.split())


def grpo_gradient(devices, flags, rollouts, path):
    student, _ = renio.load_student(flags, "cpu")
    total, _ = renio.grpo_step(student, devices.part_of(rollouts), [], flags, devices, renio.Stopwatch("cpu"))
    gradients = [p.grad for p in student.parameters()]
    devices.sum([*gradients, total])
    if devices.rank == 0:
        torch.save(torch.cat([g.flatten() for g in gradients]) / total, path)


def test_a_group_may_lie_on_several_processes(tmp_path, config, tokenizer, batch, micro_model):
    flags = config("--method", "grpo", "--batch_size", 8, "--generations", 8, "--model", micro_model)

    def gradient(world):
        in_processes(world, tmp_path, grpo_gradient, flags, batch, tmp_path / "gradient.pt")
        return torch.load(tmp_path / "gradient.pt")

    whole = gradient(1)
    assert whole.norm() > 0
    assert (gradient(2) - whole).norm() < 1e-5 * whole.norm()  # more processes than groups
