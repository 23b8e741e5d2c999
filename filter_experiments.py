# SPDX-License-Identifier: MIT
"""The filter study (Section 2, Figures 1, 7 and 8): distillation on correct-only against incorrect-only rollouts.

    python filter_experiments.py --scale micro --keep incorrect --method opd --model runs/base/final \\
        --teacher runs/teacher/final --output_dir runs/opd-incorrect
    bash run_all.sh figure1        # every arm of OPD and OPSD, scored and reported

An arm trains on the rollouts of its own student that are of one kind: correct, incorrect, or any. A rollout is correct
if its last box equals the answer. A rollout that was cut before its answer is of no kind, so --prefix_tokens must hold
whole solutions. All arms train on the same number of rollouts. Everything else is renio.py's.

--problems all     as in the paper: a problem is sampled once, and kept if its rollout is of the kind. So the correct
                   arm also trains on easier problems than the incorrect arm.
--problems mixed   a control that the paper lacks: only problems of which --draws rollouts are neither all correct nor
                   all incorrect; of each the first rollout of the kind. Both arms train on problems of one difficulty.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from renio import Config, UserError, flag, main, need, rollout_seed, train


@dataclass
class FilterConfig(Config):
    """The flags of renio.py and those of the study."""

    keep: Literal["correct", "incorrect", "any"] = flag("any", "filter study: which rollouts to train on")
    problems: Literal["all", "mixed"] = flag("all", "filter study: all problems, or those that are solved at times")
    draws: int = flag(8, "filter study: rollouts of a problem with --problems mixed")
    max_problems: int = flag(16, "filter study: problems to sample from for each one that an update needs")

    @property
    def examples_needed(self):
        return self.max_problems * self.max_steps * self.batch_size


def is_kind(rollout, kind):
    """Whether a rollout is of a kind. One that was cut before its answer is of none."""
    if rollout.correct is None:
        return False
    return kind == "any" or rollout.correct == (kind == "correct")


def draw_kept(sampler, examples, step, config, devices):
    """This rank's rollouts of update `step`, and how many were drawn for them: of each problem that has one, the first
    rollout of the kind --keep.

    Each step has a stretch of problems of its own, so that a resumed run sees what an uninterrupted one does. Raises
    UserError where the stretch has too few rollouts of the kind.
    """
    needed, draws = config.batch_size // devices.world, 1
    if config.problems == "mixed":
        draws = config.draws
    stretch = config.max_problems * config.batch_size
    distinct = len({id(example) for example in examples[:stretch]})
    advice = "it would train on one problem several times; lower --max_problems or take more data"
    need(
        distinct == stretch, f"--dataset {config.dataset}: {distinct} problems for the {stretch} of a step, so {advice}"
    )
    problems = devices.part_of(examples[step * stretch : (step + 1) * stretch])
    problems = list({id(problem): problem for problem in problems}.values())  # a new epoch may begin in the stretch
    kept, verdicts = [], Counter()
    for start in range(0, len(problems), needed):
        batch = [problem for problem in problems[start : start + needed] for _ in range(draws)]
        rollouts = sampler(batch, rollout_seed(config, step, devices.rank) + start * 10**12)
        verdicts.update(rollout.correct for rollout in rollouts)
        for i in range(0, len(rollouts), draws):
            kept += chosen(rollouts[i : i + draws], config)
        if len(kept) >= needed:
            break
    enough = min(devices.gather([len(kept)])) >= needed  # all ranks go on, or none does
    counts = sum(devices.gather([verdicts]), Counter())
    if not enough:
        raise UserError(
            f"step {step + 1}: {len(kept)} of {needed} rollouts are {config.keep}, in {counts.total()} draws "
            f"({counts[True]} correct, {counts[False]} incorrect, {counts[None]} cut or without an answer to compare "
            "with); raise --max_problems, --draws or --prefix_tokens, or take other data. The last checkpoint is whole"
        )
    metrics = dict(drawn=counts.total(), drawn_correct=counts[True], drawn_ungradable=counts[None])
    return kept[:needed], metrics


def chosen(rollouts, config):
    """The rollout of one problem to train on, in a list; an empty list if none is of the kind."""
    verdicts = {rollout.correct for rollout in rollouts}
    if config.problems == "mixed" and not {True, False} <= verdicts:
        return []
    return [rollout for rollout in rollouts if is_kind(rollout, config.keep)][:1]


def study(config):
    """Train one arm."""
    need(config.method in ("opd", "opsd"), f"--method {config.method}: the study is of opd and opsd")
    need(config.draws > 1 and config.max_problems > 0, "--draws must be at least 2, --max_problems at least 1")
    train(config, draw=draw_kept)


if __name__ == "__main__":
    main(config_class=FilterConfig, run=study)
