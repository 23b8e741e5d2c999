# SPDX-License-Identifier: MIT
"""How often the intervals of eval.py hold the truth, and what difference a number of seeds can show.

    python tests/intervals.py                # both tables, 4,000 simulated comparisons a row; about 2 minutes
    python tests/intervals.py --draws 200

Each comparison is of two methods without a difference in expectation: a problem is solved with a chance between 0.3 and
0.7, on which the methods differ by up to 17 points either way; training adds to each method's chances a normal shift of
its own a seed; each problem is answered 4 times.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import eval as renio_eval  # noqa: E402


def simulate(rng, seeds, seed_sd, problems):
    """Paired differences (seeds, problems) of two methods, and their truth on these problems; on others it is 0."""
    difficulty, advantage = rng.uniform(0.3, 0.7, problems), rng.uniform(-0.17, 0.17, problems)
    right = [rng.binomial(4, np.clip(chance + rng.normal(0, seed_sd, (seeds, 1)), 0, 1)) / 4
             for chance in (difficulty, difficulty + advantage)]
    return right[1] - right[0], advantage.mean()


def coverage(draws, seeds, seed_sd, problems, resamples=2_000):
    """Shares of intervals that hold the truth: on these problems, and on others; and half their mean widths."""
    rng, held, half = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for _ in range(draws):
        values, truth = simulate(rng, seeds, seed_sd, problems)
        for i, (other_problems, target) in enumerate(((False, truth), (True, 0))):
            low, high = (renio_eval.bootstrap_interval(values[0], resamples) if seeds == 1 else
                         renio_eval.interval(values, other_problems=other_problems))
            held[i] += low <= target <= high
            half[i] += (high - low) / 2
    return held / draws, half / draws


def detectable(seeds, power=0.8, draws=200_000):
    """The difference, in standard deviations of the seeds' paired differences, that a verdict shows with that chance.
    """
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, draws) / np.sqrt(seeds)
    half = renio_eval.t_quantile(seeds - 1) * np.sqrt(rng.chisquare(seeds - 1, draws) / (seeds - 1) / seeds)
    return float(np.quantile(half - means, power))  # mean + difference > half


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4_000, help="simulated comparisons a row")
    draws = parser.parse_args().draws
    print("| seeds | seed sd, points | problems | holds the truth on these problems, % | half width, points "
          "| on other problems too, % | half width, points |")
    print("| --- " * 7 + "|")
    for seeds in (1, 3, 5, 8):
        for seed_sd in (0, 0.05):
            for problems in (30, 500):
                held, half = 100 * np.array(coverage(draws, seeds, seed_sd, problems))
                print(f"| {seeds} | {100 * seed_sd:g} | {problems} | {held[0]:.1f} | {half[0]:.1f} | {held[1]:.1f} "
                      f"| {half[1]:.1f} |", flush=True)
    print("\n| seeds | difference shown with a chance of 80 %, in sd of the paired differences "
          "| points at an sd of 2 | of 5 | of 7 |")
    print("| --- " * 5 + "|")
    for seeds in (3, 5, 8, 16):
        d = detectable(seeds)
        print(f"| {seeds} | {d:.2f} | {2 * d:.1f} | {5 * d:.1f} | {7 * d:.1f} |")


if __name__ == "__main__":
    main()
