# SPDX-License-Identifier: MIT
"""The filter study (Section 2, Figures 1, 7 and 8): distillation on correct-only against incorrect-only rollouts.

    python filter_experiments.py --arm incorrect --method opd --model runs/base/final --teacher runs/teacher/final \\
        --output_dir runs/opd-incorrect
    python filter_experiments.py --design matched --method opd --model runs/base/final --teacher runs/teacher/final \\
        --output_dir runs/opd-matched
    bash run_all.sh figure1        # the arms of OPD and OPSD, scored and reported

Arms train on the rollouts of their own current student: `correct`, `incorrect`, and `unfiltered`, which takes them
without regard to correctness. All arms train on the same number of rollouts and updates. Three designs:

free      the paper's, one arm a run. A problem is sampled once and taken if its rollout is of the arm. So the correct
          arm also trains on easier problems than the incorrect one, and never on those that its student can't solve.
matched   a control that the paper lacks. The correct and the incorrect arm train side by side on the same problems, for
          each of which both students have given a right and a wrong rollout: what differs is correctness alone.
hard      another one. The incorrect and the unfiltered arm train on the same problems, solvable or not: both students
          have given a wrong rollout. In free only the incorrect arm prefers those never solved; matched has none.

Problems are found round by round (`find_problems`). Each arm trains on its student's first rollout of its kind. A
rollout is correct where its last box equals the answer. One that was cut before it gave an answer is neither: it is
left out of every arm and counted, so prefix_tokens must hold whole solutions. One that ends without a box is incorrect,
as it is in the evaluation. Everything else is renio.py's. matched and hard write an output folder an arm.
"""

import contextlib
import math
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from renio import (
    Config,
    Run,
    StopSignal,
    Stopwatch,
    UserError,
    check_split,
    checkpoints,
    flag,
    main,
    need,
    newest_checkpoint,
    only_run_in,
    open_output,
    rollout_seed,
    step_of,
)

DESIGNS = {  # of --design -> its arms, and the kinds of rollouts that a problem needs from the student of each
    "matched": (("correct", "incorrect"), ("correct", "incorrect")),
    "hard": (("incorrect", "unfiltered"), ("incorrect",)),
}


@dataclass
class FilterConfig(Config):
    """The flags of renio.py and those of the study."""

    design: Literal["free", "matched", "hard"] = flag("free", "each arm on its own problems, or all on the same ones")
    arm: Literal["correct", "incorrect", "unfiltered"] = flag("unfiltered", "free: which rollouts to train on")
    max_draws: int = flag(16, "matched, hard: rollouts of a problem at most from each student", low=1)
    max_problems: int = flag(16, "problems tried at most for each one that an update takes", low=1)
    success_draws: int = flag(0, "further rollouts of each problem at a checkpoint, whose right ones are logged", low=0)

    @property
    def students(self):
        return len(arms_of(self))


def arms_of(config):
    return (config.arm,) if config.design == "free" else DESIGNS[config.design][0]


def kinds_of(config):
    """The kinds of rollouts that a problem needs from the student of each arm."""
    return (config.arm,) if config.design == "free" else DESIGNS[config.design][1]


def belongs(right, kind):
    """Whether a rollout that is right, wrong (False) or can't be graded (None) is of a kind."""
    return right is not None and kind in ("unfiltered", "correct" if right else "incorrect")


class Candidate:
    """A problem that an update may take, with what the arms' students have drawn for it so far."""

    def __init__(self, number, config):
        self.number, self.kinds = number, kinds_of(config)  # number: of its example
        self.max_draws = 1 if config.design == "free" else config.max_draws
        self.rollouts = {arm: [] for arm in arms_of(config)}  # in drawing order

    def lacks(self, arm):
        """The kinds of rollouts that it still needs from the student of an arm."""
        return [kind for kind in self.kinds if not any(belongs(r.right, kind) for r in self.rollouts[arm])]

    def complete(self):
        return not any(map(self.lacks, self.rollouts))

    def exhausted(self):
        return any(len(drawn) >= self.max_draws and self.lacks(arm) for arm, drawn in self.rollouts.items())

    def expected_draws(self, arm):
        """That it takes until the student of an arm has given all kinds, by the share of right rollouts of all so far.

        To these a right and a wrong one are added, so that a new problem counts as one of even chances.
        """
        verdicts = [r.right for drawn in self.rollouts.values() for r in drawn if r.right is not None]
        right = (verdicts.count(True) + 1) / (len(verdicts) + 2)
        chances = dict(correct=right, incorrect=1 - right, unfiltered=1)
        lacking = self.lacks(arm)
        return sum(1 / chances[kind] for kind in lacking) - (len(lacking) == 2)  # the first draw gives one of two

    def draws(self, arm):
        """How many rollouts of an arm the next round draws: one less than expected, as the next may do with fewer."""
        expected = round(self.expected_draws(arm))
        return min(max(1, expected - 1), self.max_draws - len(self.rollouts[arm])) if expected else 0


def find_problems(samplers, examples, numbers, needed, config, seed):
    """Candidates for the problems `numbers`, of which `needed` or more are complete, and how many rounds that took.

    samplers: {arm: RolloutSampler}. A round takes the problems that are expected to need the fewest draws, twice as
    many as are missing, and each student draws for them what it still lacks. So new problems go before ones whose
    rollouts have all been alike, and no draw is spent on more of a kind that is there. All arms' rollouts count alike.
    In free, where one draw decides on a problem, it takes for each missing one as many as it took for each so far.
    Raises UserError where too few problems are complete when all have had their draws.
    """
    candidates, rounds = [Candidate(number, config) for number in numbers], 0
    spare = 1 if kinds_of(config) == ("unfiltered",) else 2  # there nearly every rollout will do
    while (missing := needed - sum(candidate.complete() for candidate in candidates)) > 0:
        open_ones = [c for c in candidates if not c.complete() and not c.exhausted()]
        if not open_ones:
            counts = sum((verdicts_of(candidates, arm) for arm in samplers), Counter())
            raise UserError(
                f"{needed - missing} of {needed} problems had {' and '.join(kinds_of(config))} rollouts from each of "
                f"the students ({', '.join(samplers)}), in {len(candidates)} problems and {counts.total()} draws "
                f"({counts[True]} correct, {counts[False]} incorrect, {counts[None]} cut, or with no answer to "
                "compare with); raise --max_draws, --max_problems or --prefix_tokens, or take a data set of another "
                "difficulty. The last checkpoint is intact")
        open_ones.sort(key=lambda c: sum(map(c.expected_draws, samplers)))
        if config.design == "free" and rounds:
            spare = (len(candidates) - len(open_ones) + 2) / (needed - missing + 1)  # decided, and of these complete
        chosen = open_ones[: math.ceil(spare * missing)]
        plan = {arm: [c for c in chosen for _ in range(c.draws(arm))] for arm in samplers}  # before any is drawn
        for arm, batch in plan.items():
            if batch:
                seed += 10**12
                drawn = samplers[arm]([examples[candidate.number] for candidate in batch], seed)
                for candidate, rollout in zip(batch, drawn, strict=True):
                    candidate.rollouts[arm].append(rollout)
        rounds += 1
    return candidates, rounds


def verdicts_of(candidates, arm):
    """How many rollouts of an arm were right, wrong and not to be graded (a Counter)."""
    return Counter(rollout.right for candidate in candidates for rollout in candidate.rollouts[arm])


def draw(samplers, examples, step, config, devices):
    """This rank's rollouts of update `step` for each arm, and what the log tells of the drawing: two dicts by arm.

    Problems come from the step's own stretch of the data set, so that a resumed run sees what an uninterrupted one
    does; of those that are complete the first ones are taken.
    """
    stretch = config.max_problems * config.batch_size
    numbers = devices.part_of(range(step * stretch, (step + 1) * stretch))
    needed = config.batch_size // devices.world
    try:
        candidates, rounds = find_problems(samplers, examples, numbers, needed, config,
                                           rollout_seed(config, step, devices.rank))
    except UserError as error:
        raise UserError(f"step {step + 1}: {error}") from None
    taken = [candidate for candidate in candidates if candidate.complete()][:needed]
    tried = devices.gather([candidate.number for candidate in candidates if any(candidate.rollouts.values())])
    common = dict(tried=len(tried), problems=devices.gather([candidate.number for candidate in taken]),
                  draw_rounds=max(devices.gather([rounds])))
    rollouts, metrics = {}, {}
    for arm in samplers:
        counts = sum(devices.gather([verdicts_of(candidates, arm)]), Counter())
        rollouts[arm] = [next(rollout for rollout in candidate.rollouts[arm] if belongs(rollout.right, arm))
                         for candidate in taken]
        metrics[arm] = dict(drawn=counts.total(), drawn_right=counts[True], drawn_ungradable=counts[None], **common)
    if config.success_draws and config.save_steps and (step + 1) % config.save_steps == 0:
        for i, arm in enumerate(samplers):
            seed = rollout_seed(config, step, devices.rank) + (10**6 + i) * 10**12  # beyond those of find_problems
            counts = success_counts(samplers[arm], [rollout.example for rollout in rollouts[arm]], config, seed)
            metrics[arm]["success_counts"] = devices.gather(counts)
    return rollouts, metrics


def success_counts(sampler, examples, config, seed):
    """How many of success_draws further rollouts of each example are right: how hard it is for the present student."""
    drawn = sampler(examples * config.success_draws, seed)
    return [sum(rollout.right is True for rollout in drawn[i :: len(examples)]) for i in range(len(examples))]


def study(config, devices):
    """Train the arms of a design side by side."""
    need(config.method in ("opd", "opsd"), f"--method {config.method}: the study is of opd and opsd")
    check_split(config, devices)
    folders = {arm: Path(config.output_dir, arm if config.design != "free" else "") for arm in arms_of(config)}
    with contextlib.ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(only_run_in(folder, devices))
        configs = {arm: replace(config, arm=arm, output_dir=str(folder)) for arm, folder in folders.items()}
        if config.resume:
            for its_config in configs.values():  # one made with other settings ends it before anything is removed
                open_output(its_config, devices)
            begin_alike(folders.values(), devices)
        stop, runs = stack.enter_context(StopSignal(devices)), {}
        for arm, its_config in configs.items():
            runs[arm] = Run(its_config, devices, config.max_problems, beside=next(iter(runs.values()), None))
        first = next(iter(runs.values()))
        for step in first.log.progress_bar():
            watch = Stopwatch(devices.device)
            with contextlib.ExitStack() as present:
                for run in runs.values():
                    present.enter_context(run.sampler.of_present_student(watch))
                samplers = {arm: run.sampler for arm, run in runs.items()}
                rollouts, drawn = draw(samplers, first.examples, step, config, devices)
            share = {phase: seconds / len(runs) for phase, seconds in watch.seconds.items()}
            for arm, run in runs.items():
                watch.seconds = dict(share)  # an arm's of the drawing, to which its update comes
                run.make_step(step, rollouts[arm], watch, **drawn[arm])
            stopped = stop.came()
            for run in runs.values():
                run.checkpoint(step, stopped)
            if stopped:
                break
        for run in runs.values():
            run.finish()


def begin_alike(folders, devices):
    """Remove the checkpoints later than the newest that all arms have, where a kill came between those of a step."""
    if devices.rank == 0:
        while len(steps := {step_of(newest) if newest else 0 for newest in map(newest_checkpoint, folders)}) > 1:
            for folder in folders:
                for checkpoint in checkpoints(folder):
                    if step_of(checkpoint) > min(steps):
                        shutil.rmtree(checkpoint)
    devices.gather([])  # nobody goes on before


if __name__ == "__main__":
    main(config_class=FilterConfig, run=study)
