# SPDX-License-Identifier: MIT
"""README's numbers are those of the published scores; what it names exists."""

import re
from pathlib import Path

import pytest

import eval as renio_eval

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / ".github/results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = [[cell.strip("*` ") for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("|")]
ROWS = {first: cells for first, *cells in ROWS}
CLAIMS = {  # a row of README's scorecard: the two runs that it compares
    "OPD over the base": ("opd", "base"),
    "OPSD over the base": ("opsd", "base"),
    "ReNIO over OPD": ("opd+renio", "opd"),
    "ReNIO over OPSD": ("opsd+renio", "opsd"),
    "the clip, in ReNIO": ("opd+renio", "opd+renio-noclip"),
    "incorrect over correct rollouts, OPD": ("opd-incorrect", "opd-correct"),
    "the same, on the same problems": ("opd-matched-incorrect", "opd-matched-correct"),
}
SCORES = {name: renio_eval.read_scores(PUBLISHED / name) for name in ("micro", "small")}
TABLES = {name: renio_eval.by_seed(scores, "sampled") for name, scores in SCORES.items()}


@pytest.mark.parametrize("place, scale", [(1, "micro"), (2, "small")])
def test_the_scorecard_is_recomputed_from_the_published_scores(place, scale):
    for row, pair in CLAIMS.items():
        gains = renio_eval.difference(TABLES[scale], *pair)
        assert ROWS[row][place] == (renio_eval.cell(gains) if len(gains) else "not run"), row
    rho = renio_eval.run_values(SCORES[scale], "opd", "entropy_rho")
    assert ROWS["correlation of weight and teacher's entropy"][place] == renio_eval.cell(rho, "+.2f")


def test_the_output_to_expect_and_the_numbers_in_sentences_are_the_published_ones():
    micro, table = SCORES["micro"], TABLES["micro"]
    for row in renio_eval.score_rows(
        micro[micro.seed == 0], ["base", "opsd", "opsd+renio", "opd", "opd+renio", "grpo"]
    ):
        assert "".join(f"{text:<30}" for text in row).rstrip() in README.splitlines()
    gains = renio_eval.difference(table, "opd+renio", "opd")
    assert gains.argmax() == 0 and len(gains) == 10  # seed 0 is the luckiest of ten
    shuffled = renio_eval.difference(table, "opd+renio_shuffled", "opd").mean()
    opsd = renio_eval.difference(table, "opsd-matched-incorrect", "opsd-matched-correct")
    later = [renio_eval.difference(table[2:], f"{m}+renio", m).mean() for m in ("opd", "opsd")]
    shares = [renio_eval.run_values(micro, "opd", f"incorrect_{x}").mean() for x in ("rollouts", "weight")]
    counts = re.findall(r"gains in (\d+ of \d+) settings", (PUBLISHED / "micro/report.md").read_text(encoding="utf-8"))
    texts = [f"at random cost OPD {-shuffled:.1f} points", f"OPSD gives {renio_eval.cell(opsd)}"]
    texts += ["OPD {:.1f}, OPSD {:.1f})".format(*later).replace("-", "−")]
    texts += ["{:.0f}% of rollouts are incorrect and get {:.0f}% of the weight".format(*shares)]
    texts += ["gains in {} tiny settings at temperature 1, in {} greedily".format(*counts)]
    assert not [text for text in texts if text not in README]


def test_every_target_link_and_message_exists_and_readme_is_short():
    runs = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    code = runs + "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    table = re.findall(r"^\|`(\w+)`\|.*?\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|$", README, re.MULTILINE)
    assert len(table) == 10
    for target, *costs in table:
        hours = [f"{int(x) // 60} h" if int(x) % 60 == 0 else f"{x} min" for x in costs[:2]] + [
            f"{x} h" for x in costs[2:]
        ]
        assert re.search(rf"^{target}\(\) .*: {re.escape(' | '.join(hours))}$", runs, re.MULTILINE), target
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) > 8 and not [link for link in links if not (ROOT / link).exists()]
    messages = re.findall(r"^\|`([^`]+)`\|[^|]+\|$", README, re.MULTILINE)
    assert len(messages) > 3 and not [message for message in messages if message not in code]
    assert len(README.split()) <= 1200
