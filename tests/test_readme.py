# SPDX-License-Identifier: MIT
"""README's numbers are those of the published scores; what it names exists."""

import re
from pathlib import Path

import pytest

import eval as renio_eval

ROOT = Path(__file__).parent.parent
README, PUBLISHED = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / ".github/results"
PAIRS = "opd:base opsd:base opd+renio:opd opsd+renio:opsd opd+renio:opd+renio-noclip opd-incorrect:opd-correct"
PAIRS = [pair.split(":") for pair in f"{PAIRS} opd-incorrect-mixed:opd-correct-mixed".split()]  # in order
SCORES = {name: renio_eval.read_scores(PUBLISHED / name) for name in ("micro", "small")}
TABLES = {name: renio_eval.by_seed(scores, "sampled") for name, scores in SCORES.items()}


def gain(label, other, scale="micro", seeds=slice(None)):
    return renio_eval.difference(TABLES[scale][seeds], label, other)


@pytest.mark.parametrize("column, scale", [(3, "micro"), (4, "small")])
def test_the_scorecard_is_recomputed_from_the_published_scores(column, scale):
    section = README.partition("|points gained|")[2].partition("\n\n")[0]
    found = [line.split("|")[column] for line in section.splitlines()[2:]]
    rho = renio_eval.run_values(SCORES[scale], "opd", "entropy_rho")
    assert found == [*(renio_eval.cell(gain(*pair, scale)) for pair in PAIRS), renio_eval.cell(rho, "+.2f")]


def test_the_output_to_expect_and_the_numbers_in_sentences_are_the_published_ones():
    micro = SCORES["micro"]
    labels = ["base", "opsd", "opsd+renio", "opd", "opd+renio", "grpo"]
    for row in renio_eval.score_rows(micro[micro.seed == 0], labels):
        assert "".join(f"{text:<30}" for text in row).rstrip() in README.splitlines()
    gains, shuffled = gain("opd+renio", "opd"), gain("opd+renio_shuffled", "opd").mean()
    assert gains.argmax() == 0 and len(gains) == 10  # seed 0 is the luckiest of ten
    shares = [renio_eval.run_values(micro, "opd", f"incorrect_{x}").mean() for x in ("rollouts", "weight")]
    counts = re.findall(
        r"above 0 in (\d+ of \d+) settings", (PUBLISHED / "micro/report.md").read_text(encoding="utf-8")
    )
    later = [gain(f"{method}+renio", method, seeds=slice(2, None)).mean() for method in ("opd", "opsd")]
    opsd = renio_eval.cell(gain("opsd-incorrect-mixed", "opsd-correct-mixed"))
    aucs = []
    for name in ("teacher", "weight"):
        aucs += [renio_eval.run_values(scores, "opd", f"auc_{name}").mean() for scores in SCORES.values()]
    texts = [f"at random cost OPD {-shuffled:.1f} points", f"OPSD gives {opsd} there"]
    texts += ["(AUC {:.2f}; SmolLM2 {:.2f}) than ReNIO's weight ({:.2f}; {:.2f})".format(*aucs)]
    texts += ["OPD {:.1f}, OPSD {:.1f})".format(*later).replace("-", "−")]
    texts += ["{:.0f}% of rollouts are incorrect and get {:.0f}% of the weight".format(*shares)]
    texts += ["above 0 in {} tiny settings at temperature 1, in {} greedy".format(*counts)]
    words = " ".join(README.split())
    assert not [text for text in texts if text not in words]


def test_every_target_link_and_message_exists_and_readme_is_short():
    runs = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    code = runs + "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for target, *costs in re.findall(r"^\|`(\w+)`\|.*?\|(\d+)\|(\d+)\|(\d+)\|(\d+)\|$", README, re.MULTILINE):
        costs = [f"{x} min" if int(x) % 60 else f"{int(x) // 60} h" for x in costs[:2]] + [f"{x} h" for x in costs[2:]]
        assert re.search(rf"^{target}\(\) .*: {re.escape(' | '.join(costs))}$", runs, re.MULTILINE), target
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) > 8 and not [link for link in links if not (ROOT / link).exists()]
    messages = re.findall(r"^\|`([^`]+)`\|[^|]+\|$", README, re.MULTILINE)
    assert len(messages) > 3 and not [message for message in messages if message not in code]
    assert len(README.split()) <= 1200
