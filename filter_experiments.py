"""The filter study (Section 2, Figure 1): distillation on correct-only against incorrect-only rollouts.

    python filter_experiments.py --arm incorrect --method opd --model runs/base/final --teacher runs/teacher/final \\
        --output_dir runs/opd-incorrect
    bash run_all.sh figure1        # both arms and the unfiltered control, OPD and OPSD, scored and reported

Each update takes rollouts of the current student, a problem each, until its batch is full of rollouts of the arm:
`correct`, `incorrect`, or `unfiltered`, which takes every rollout that can be graded. All arms train on the same
number of rollouts and updates. A rollout is correct where its last box equals the answer. One that was cut before it
gave an answer is neither: it is left out of every arm and counted, so prefix_tokens must hold whole solutions. One that
ends without a box is incorrect, as it is in the evaluation.

Everything else is renio.py's. As in the paper, correct-only also means easier problems here; a design that trains
both arms on the same problems is left out so far.
"""

from dataclasses import dataclass
from typing import Literal

from eval import UserError
from renio import Config, flag, grade_rollout, main, rollout_seed, train


@dataclass
class FilterConfig(Config):
    """The flags of renio.py and those of the study."""

    arm: Literal["correct", "incorrect", "unfiltered"] = flag("unfiltered", "which rollouts to train on")
    max_draws: int = flag(16, "rollouts drawn at most for each one that an update takes")


def draw_filtered(sampler, tokenizer, examples, step, eos_ids, config, devices):
    """This rank's rollouts of update `step` that belong to the arm, and how many were drawn, right and ungradable.

    Problems come from the step's own stretch of the data set, so that a resumed run sees what an uninterrupted one
    does. Raises UserError where max_draws rollouts for each that is needed do not fill the batch.
    """
    needed = config.batch_size // devices.world
    stretch = config.max_draws * config.batch_size
    problems = devices.share(examples[step * stretch : (step + 1) * stretch])
    taken, counts = [], {True: 0, False: 0, None: 0}
    for start in range(0, len(problems), needed):
        batch = problems[start : start + needed]
        completions = sampler([example.student_prompt for example in batch], config.prefix_tokens, eos_ids,
                              config.temperature, config.top_p, config.top_k,
                              seed=rollout_seed(config, step, devices.rank) + start * 10**9)
        for example, completion in zip(batch, completions):
            right = grade_rollout(tokenizer, completion, example.row, eos_ids)
            counts[right] += 1
            if right is not None and config.arm in ("unfiltered", "correct" if right else "incorrect"):
                taken.append((example, completion))
        if len(taken) >= needed:
            taken = taken[:needed]
            drawn = dict(drawn=sum(counts.values()), drawn_right=counts[True], drawn_ungradable=counts[None])
            return [example for example, _ in taken], [completion for _, completion in taken], drawn
    raise UserError(
        f"step {step + 1}: the {config.arm} arm starves: {len(taken)} of {needed} rollouts in {sum(counts.values())} "
        f"draws ({counts[True]} correct, {counts[False]} incorrect, {counts[None]} cut before an answer); raise "
        "--max_draws or --prefix_tokens, or take a data set of another difficulty. The last checkpoint is intact")


def study(config, devices):
    """Train one arm."""
    if config.method not in ("opd", "opsd"):
        raise UserError(f"--method {config.method}: the study is of opd and opsd")
    if config.max_draws < 1:
        raise UserError(f"--max_draws {config.max_draws}: must be at least 1")
    train(config, devices, draw_filtered, config.max_draws)


if __name__ == "__main__":
    main(kind=FilterConfig, run=study)
