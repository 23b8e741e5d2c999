# SPDX-License-Identifier: MIT
"""Draw one rollout of a run: its tokens shaded by log-ratio, its key tokens framed, its weight. README shows it.

    python renio.py --method opsd --weighting renio --model results/micro/seed0/base/final --max_steps 1 \\
        --schedule_steps 1 --save_rollouts True --output_dir runs/picture
    python tests/picture.py runs/picture .github/pictures/rollout    # rollout-light.png and rollout-dark.png

It takes, of the wrong rollouts of the run's first step, that of median length.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import renio  # noqa: E402

THEMES = dict(light=dict(text="#1f2328", shade="#d1242f"), dark=dict(text="#e6edf3", shade="#f85149"))
WIDTH, SIZE = 9.0, 13  # of the picture in inches, of a word in points
LETTER = 0.602 * SIZE / 72  # inches that a letter of matplotlib's monospace takes


def layout(words, gap=1.4):
    """Where each word begins, (inches, line), in lines of WIDTH; gap: letters between words."""
    places, column, line = [], 0.1, 0
    for word in words:
        if column + len(word) * LETTER > WIDTH - 0.2:
            column, line = 0.1, line + 1
        places.append((column, line))
        column += (len(word) + gap) * LETTER
    return places


def draw(rollout, words, flags, text, shade, path):
    """One picture: the problem, the words, the weight. flags: those of the run; text, shade: colours."""
    places, most = layout(words), flags["log_ratio_clip"]
    height = 0.52 * (places[-1][1] + 1) + 0.75
    figure = plt.figure(figsize=(WIDTH, height))
    axis = figure.add_axes([0, 0, 1, 1], xlim=(0, WIDTH), ylim=(height, 0))  # in inches, from the top
    axis.axis("off")

    def write(x, y, said, **style):
        axis.text(x, y, said, **dict(color=text, va="center", size=10) | style)

    write(0.1, 0.2, f"asked: {rollout['problem']}")
    for word, log_ratio, (column, line) in zip(words, rollout["log_ratios"], places, strict=True):
        y, key = 0.62 + 0.52 * line, log_ratio > flags["threshold"]
        box = dict(boxstyle="round,pad=0.22", edgecolor=text if key else "none", linewidth=1.5,
                   facecolor=(*matplotlib.colors.to_rgb(shade), 0.75 * min(max(log_ratio, 0), most) / most))
        write(column, y, word, family="monospace", size=SIZE, bbox=box)
        if key:
            write(column + len(word) * LETTER / 2, y + 0.24, f"{log_ratio:+.1f}", size=8, ha="center")
    keys = ", ".join(f"{min(x, most):.1f}" for x in rollout["log_ratios"] if x > flags["threshold"])
    write(0.1, height - 0.18, f"framed: key tokens, $\\ell > {flags['threshold']:g}$; "
          f"weight $w = \\exp(\\mathrm{{mean\\ of}}\\ {keys}) = {rollout['renio_weight']:.1f}$" if keys else
          "no key token: weight 1")
    figure.savefig(path, dpi=160, transparent=True)
    plt.close(figure)


def main(folder, target):
    flags = json.loads((Path(folder) / "config.json").read_text())["flags"]
    rollouts = [json.loads(line) for line in (Path(folder) / "rollouts.jsonl").read_text().splitlines()]
    wrong = [rollout for rollout in rollouts if rollout["step"] == 1 and rollout["right"] is False]
    rollout = sorted(wrong, key=lambda rollout: len(rollout["completion"]))[len(wrong) // 2]
    tokenizer = renio.load_tokenizer(str(Path(folder) / "final"))
    words = tokenizer.convert_ids_to_tokens(rollout["completion"])
    for name, theme in THEMES.items():
        draw(rollout, words, flags, **theme, path=f"{target}-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
