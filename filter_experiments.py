"""The filter study (Section 2, Figures 1, 7 and 8): distillation on correct-only against incorrect-only rollouts.

    python filter_experiments.py --arm incorrect --method opd --model runs/base/final --teacher runs/teacher/final \\
        --output_dir runs/opd-incorrect
    torchrun --nproc_per_node 3 filter_experiments.py --design matched --method opd --model runs/base/final \\
        --teacher runs/teacher/final --output_dir runs/opd-matched
    bash run_all.sh figure1        # the arms of OPD and OPSD, scored and reported

Three arms train on the rollouts of their own current student: `correct`, `incorrect`, and `unfiltered`, which takes
them without regard to correctness. All arms train on the same number of rollouts and updates. Two designs:

free      the paper's. An update takes rollouts, a problem each, until its batch is full of rollouts of the arm. So the
          correct arm also trains on easier problems than the incorrect one.
matched   the control that the paper lacks. The arms train side by side, a process each. Each problem is sampled until
          it has a right and a wrong rollout from each of the three students, and every arm trains on these problems:
          what differs is correctness alone. Writes an output folder an arm.

A rollout is correct where its last box equals the answer. One that was cut before it gave an answer is neither: it is
left out of every arm and counted, so prefix_tokens must hold whole solutions. One that ends without a box is incorrect,
as it is in the evaluation. Everything else is renio.py's.
"""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from renio import (
    Config,
    Devices,
    UserError,
    checkpoints,
    flag,
    main,
    need,
    newest_checkpoint,
    rollout_seed,
    step_of,
    train,
)

ARMS = ("correct", "incorrect", "unfiltered")


@dataclass
class FilterConfig(Config):
    """The flags of renio.py and those of the study."""

    design: Literal["free", "matched"] = flag("free", "each arm on its own problems, or all on the same ones")
    arm: Literal["correct", "incorrect", "unfiltered"] = flag("unfiltered", "which rollouts to train on; matched: all")
    max_draws: int = flag(16, "free: rollouts at most for each that an update takes; matched: for each problem", low=1)
    max_problems: int = flag(8, "matched: problems tried at most for each one that an update takes", low=1)

    @property
    def shares_devices(self):
        return self.design == "matched"


def belongs(right, arm):
    """Whether an arm trains on a rollout that is right, wrong (False) or can't be graded (None)."""
    return right is not None and arm in ("unfiltered", "correct" if right else "incorrect")


def draw_metrics(counts):
    return dict(drawn=counts.total(), drawn_right=counts[True], drawn_ungradable=counts[None])


def described(counts):
    return (f"{counts.total()} draws ({counts[True]} correct, {counts[False]} incorrect, {counts[None]} cut before an "
            "answer)")


def draw_free(sampler, examples, step, config, devices):
    """This rank's rollouts of update `step` that belong to the arm, and how many were drawn, right and ungradable.

    Problems come from the step's own stretch of the data set, so that a resumed run sees what an uninterrupted one
    does. Raises UserError where max_draws rollouts for each that is needed do not fill the batch.
    """
    needed = config.batch_size // devices.world
    stretch = config.max_draws * config.batch_size
    problems = devices.part_of(examples[step * stretch : (step + 1) * stretch])
    taken, counts = [], Counter()
    for start in range(0, len(problems), needed):
        drawn = sampler(problems[start : start + needed], rollout_seed(config, step, devices.rank) + start * 10**9)
        counts.update(rollout.right for rollout in drawn)
        taken += [rollout for rollout in drawn if belongs(rollout.right, config.arm)]
        if len(taken) >= needed:
            counts = sum(devices.gather([counts]), Counter())
            return taken[:needed], draw_metrics(counts)
    raise UserError(
        f"step {step + 1}: the {config.arm} arm starves: {len(taken)} of {needed} rollouts in {described(counts)}; "
        "raise --max_draws or --prefix_tokens, or take a data set of another difficulty. The last checkpoint is intact")


def draw_matched(sampler, examples, step, config, arms):
    """This arm's rollouts of update `step`, on problems for which every arm's student gave a right and a wrong one.

    arms: Devices of the processes, an arm each. The unfiltered arm takes a problem's first rollout with an answer.
    Raises UserError where max_problems for each that is needed do not fill the batch.
    """
    stretch = config.max_problems * config.batch_size
    problems = range(step * stretch, (step + 1) * stretch)  # numbers of the examples
    block = 3 * config.batch_size  # at once: fewer would mostly not do, and small batches sample slowly
    taken, counts = {}, Counter()
    for start in range(0, stretch, block):
        seed = rollout_seed(config, step, arms.rank) + start * config.max_draws * 10**9
        found = draw_both_kinds(sampler, examples, problems[start : start + block], seed, config.max_draws, counts)
        for number in sorted(set.intersection(*arms.gather([set(found)]))):
            taken[number] = next(rollout for right, rollout in found[number].items() if belongs(right, config.arm))
        if len(taken) >= config.batch_size:
            numbers = sorted(taken)[: config.batch_size]
            return [taken[number] for number in numbers], dict(
                draw_metrics(counts), tried=min(start + block, stretch), problems=numbers)
    raise UserError(
        f"step {step + 1}: {len(taken)} of {config.batch_size} problems had a right and a wrong rollout from every "
        f"arm, in {stretch} problems and {described(counts)} of the {config.arm} arm; raise --max_draws, "
        "--max_problems or --prefix_tokens, or take a data set of another difficulty. The last checkpoint is intact")


def draw_both_kinds(sampler, examples, problems, seed, max_draws, counts):
    """The first right and the first wrong rollout of each problem that gets both within max_draws, in drawing order.

    problems: numbers of the examples. Returns {number: {right: rollout}}; adds the verdicts to `counts`.
    """
    found, attempts = {number: {} for number in problems}, 0
    while attempts < max_draws:
        batch = [number for number, by_verdict in found.items() if len(by_verdict) < 2]
        if not batch:
            break
        repeats = min(max(2, attempts), max_draws - attempts)  # ever more at once: few large batches are faster
        drawn = sampler([examples[number] for number in batch * repeats], seed + (attempts + 1) * 10**9)
        attempts += repeats
        for number, rollout in zip(batch * repeats, drawn, strict=True):
            counts[rollout.right] += 1
            if rollout.right is not None:
                found[number].setdefault(rollout.right, rollout)
    return {number: by_verdict for number, by_verdict in found.items() if len(by_verdict) == 2}


def study(config, devices):
    """Train one arm, or with design matched all of them."""
    need(config.method in ("opd", "opsd"), f"--method {config.method}: the study is of opd and opsd")
    if config.design == "free":
        return train(config, devices, draw_free, config.max_draws)
    need(devices.world == len(ARMS) and not config.fsdp,
         f"--design matched: trains {len(ARMS)} arms side by side, a process each; start with torchrun "
         f"--nproc_per_node {len(ARMS)} and without --fsdp")
    config = replace(config, arm=ARMS[devices.rank], output_dir=f"{config.output_dir}/{ARMS[devices.rank]}")
    newest = newest_checkpoint(Path(config.output_dir))
    common = min(devices.gather([step_of(newest) if newest else 0]))
    for folder in checkpoints(Path(config.output_dir)):
        if config.resume and step_of(folder) > common:  # another arm was stopped before its own
            shutil.rmtree(folder)

    def draw_arm(sampler, examples, step, config, _):
        return draw_matched(sampler, examples, step, config, devices)

    train(config, Devices(devices.device, lock=devices.lock), draw_arm, config.max_problems)


if __name__ == "__main__":
    main(config_class=FilterConfig, run=study)
