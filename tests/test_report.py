# SPDX-License-Identifier: MIT
"""Statistics of eval.py, comparisons, and the report."""

import json
import re
import shutil
import tarfile
from unittest.mock import MagicMock

import numpy as np
import picture
import pytest
from conftest import ROOT, write_all_runs, write_run
from intervals import coverage, detectable, simulate
from matplotlib.axes import Axes

import eval as renio_eval
import renio
from eval import bootstrap_interval, holm, interval, paired_p_value, seeds_p_value, t_p_value, t_quantile

# --- statistics -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("df, quantile", [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (4, 2.7764451),
                                          (7, 2.3646243), (15, 2.1314495), (29, 2.0452296), (499, 1.9647293)])
def test_students_t_has_the_quantiles_of_its_tables(df, quantile):
    assert t_quantile(df) == pytest.approx(quantile, abs=1e-6)
    assert t_p_value(-quantile, df) == t_p_value(quantile, df) == pytest.approx(0.05, abs=1e-6)


def test_students_t_has_known_p_values():
    assert t_p_value(1, 1) == pytest.approx(0.5) and t_p_value(0, 5) == 1.0  # Cauchy: 1 - 2 atan(1) / pi
    assert t_p_value(2, 2) == pytest.approx(1 - 2 / np.sqrt(6))  # closed form of 2 degrees of freedom
    assert t_p_value(4.032143, 5) == pytest.approx(0.01, abs=1e-6)
    assert 0 <= t_p_value(1e9, 7) < 1e-15
    by_seed = np.array([0.1, 0.2, 0.3])
    assert seeds_p_value(by_seed) == pytest.approx(t_p_value(0.2 / (0.1 / np.sqrt(3)), 2))
    assert all(np.isnan(seeds_p_value(np.full(seeds, 0.1))) for seeds in (0, 1, 3))  # without a spread no test


def test_holm_keeps_what_its_steps_keep():
    assert holm([0.04, 0.001, 0.012, 0.03]) == [False, True, True, False]  # against 0.0125, 0.0167, 0.025, 0.05
    assert holm([0.02, np.nan, 0.04]) == [True, False, True]  # what is not tested is not counted
    assert holm([0.03, 0.03]) == [False, False] and holm([]) == []


def test_the_bootstrap_interval_covers_the_mean_in_about_95_percent():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.binomial(4, 0.6, size=100) / 4, resamples=1000)
        covered += low <= 0.6 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval([0.25] * 30) == pytest.approx((0.25, 0.25))


def test_the_interval_over_seeds_is_students():
    values = np.repeat([[0.2], [0.5], [0.8]], 50, axis=1)
    half = 4.3026527 * 0.3 / np.sqrt(3)
    assert interval(values) == pytest.approx((0.5 - half, 0.5 + half))
    assert interval(values, within=(0, 1)) == (0.0, 1.0)
    assert interval(values, values - 0.2) == pytest.approx((0.4 - half, 0.4 + half))  # the mean of two benchmarks


def test_the_interval_of_one_seed_is_the_bootstrap_over_problems():
    values = np.random.default_rng(0).binomial(4, 0.6, size=100) / 4
    assert interval(values[None]) == pytest.approx(bootstrap_interval(values))


def test_the_interval_for_other_problems_adds_their_spread_once():
    # without noise: seeds shift all problems, problems differ alike in each seed
    values = np.array([[-0.1], [0.0], [0.1]]) + np.array([0.2, 0.4, 0.6, 0.8])
    of_seeds, of_problems = t_quantile(2) * 0.1 / np.sqrt(3), t_quantile(3) * np.std([2, 4, 6, 8], ddof=1) / 10 / 2
    assert interval(values) == pytest.approx((0.5 - of_seeds, 0.5 + of_seeds))
    half = np.hypot(of_seeds, of_problems)
    assert interval(values, other_problems=True) == pytest.approx((0.5 - half, 0.5 + half))
    half = np.hypot(of_seeds, of_problems / np.sqrt(2))  # of two benchmarks' mean
    assert interval(values, values, other_problems=True) == pytest.approx((0.5 - half, 0.5 + half))
    assert interval(values[:, :1], other_problems=True) == interval(values[:, :1])  # of one problem no spread is known
    rng = np.random.default_rng(6)
    for _ in range(20):  # never narrower than for these problems
        values = simulate(rng, 3, 0.05, 30)[0]
        (low, high), (lower, higher) = interval(values), interval(values, other_problems=True)
        assert lower <= low <= high <= higher


@pytest.mark.parametrize("seeds, seed_sd, problems", [(3, 0, 500), (8, 0, 500), (5, 0.05, 30)])
def test_both_intervals_hold_the_truth_in_about_95_percent(seeds, seed_sd, problems):
    held, half = coverage(400, seeds, seed_sd, problems)
    assert (0.92 <= held).all() and (held <= 0.985).all()
    assert half[0] <= half[1]


def test_the_power_that_the_report_states(whole):
    stated = re.search(r"chance of 80 %: (3) a difference of ([\d.]+) standard deviations of the paired differences, "
                       r"(5) of ([\d.]+), (8) of ([\d.]+), (16) of ([\d.]+)\.", whole[1]).groups()
    for seeds, shown in zip(stated[::2], stated[1::2], strict=True):
        assert detectable(int(seeds)) == pytest.approx(float(shown), abs=0.06)


def test_the_p_value_of_a_null_is_uniform_and_of_an_effect_small():
    rng = np.random.default_rng(4)
    nulls = np.array([paired_p_value(rng.normal(0, 1, 30), resamples=500) for _ in range(400)])
    for level in (0.05, 0.25, 0.5, 0.75):
        assert abs((nulls <= level).mean() - level) < 0.08
    assert paired_p_value(rng.normal(1, 1, 30)) < 0.001
    assert paired_p_value([0.0] * 10) == 1.0
    assert paired_p_value([1.0] * 40, resamples=99) == 0.01  # the observed signs alone are as extreme
    assert paired_p_value([1, 1, 1]) == pytest.approx(0.25, abs=0.02)  # 2 of the 8 signs are as extreme


def test_rank_correlation_by_hand():
    assert renio_eval.rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert renio_eval.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert renio_eval.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(renio_eval.rank_correlation([1, 1], [1, 2]))


# --- the report -------------------------------------------------------------------------------------------------------

def tables(text):
    """The rows of every table of a Markdown text by their first cell, later tables after earlier ones."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            first, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
            rows.setdefault(first, []).append(cells)
    return rows


def report_on(folder):
    """The text of a report on the folder, and its tables."""
    renio_eval.main(["report", str(folder)])
    text = (folder / "report.md").read_text()
    return text, tables(text)


def test_the_report_shows_means_over_seeds_paired_differences_and_published_figures(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"seed{seed}" / "base", "base", seed, [1] * 20)
        write_run(tmp_path / f"seed{seed}" / "opd", "opd", seed, [[2] * 10 + [1] * 10, [2] * 20, [1] * 20][seed])
        write_run(tmp_path / f"seed{seed}" / "opd+renio", "opd+renio", seed, [2] * 20)
    text, rows = report_on(tmp_path)
    assert rows["base"][0] == ["3", "50.0 [50.0, 50.0]", "0.0", "36.89"]
    # opd: 75, 100 and 50 percent, an sd of 25 points over seeds, so 4.303 x 25 / sqrt(3) = 62.1. A score ends at 100
    assert rows["opd"][0] == ["3", "75.0 [12.9, 100.0]", "25.0", "40.37"]
    # for other problems: 10 differences of 1/3 and 10 of 1/6, a variance of 73.1 points²; within a problem they vary by
    # 219.3 from seed to seed, which alone gives means of 3 seeds that variance: nothing to add
    assert rows["OPD improves the base"][0] == [
        "opd − base", "arith, sampled, points", "3", "+25.0 [-37.1, +87.1]", "[-37.1, +87.1]",
        "undecided (the interval holds 0)", "", "+3.48"]
    assert rows["ReNIO improves OPD"][0][3].startswith("+25.0 [")
    assert "- arith, sampled: 20 problems (checksum same), 2 answers each at temperature 1, top-p 0.95" in text
    assert "training seeds 0, 1, 2" in text and (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_best_is_one_checkpoint_a_run_by_the_mean_of_its_columns(tmp_path):
    write_run(tmp_path / "base", "base", 0, [1] * 20)
    sampled, greedy = ({10: 4, 20: 20, 30: 10}, {10: 20, 20: 12, 30: 4})  # right ones of 20
    for step in sampled:
        path = tmp_path / "opd" / f"checkpoint-{step}"
        write_run(path, "opd", 0, [2] * sampled[step] + [0] * (20 - sampled[step]))
        run = json.loads((path / "eval.json").read_text())
        shutil.rmtree(path)
        write_run(path, "opd", 0, [2] * greedy[step] + [0] * (20 - greedy[step]), decodings=("greedy",))
        run["results"] += json.loads((path / "eval.json").read_text())["results"]
        (path / "eval.json").write_text(json.dumps(run))
    _, rows = report_on(tmp_path)
    # step 20, of mean (100 + 60) / 2, in both columns, though greedily step 10 has 100
    assert [rows["opd"][0][i] for i in (3, 6)] == ["100.0 of 3", "60.0 of 3"]
    assert rows["opd"][0][1].startswith("50.0 [") and rows["opd"][0][4].startswith("20.0 [")  # the last step


def test_seeds_count_where_both_methods_have_them(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"seed{seed}" / "base", "base", seed, [seed] * 20)
    for seed in (1, 2, 3):
        write_run(tmp_path / f"seed{seed}" / "opd", "opd", seed, [1] * 20)
    for seed in (2, 3):
        write_run(tmp_path / f"seed{seed}" / "opsd", "opsd", seed, [2] * 20)
    for seed in (4, 5, 6):
        write_run(tmp_path / f"seed{seed}" / "opd+renio", "opd+renio", seed, [2] * 20)
    _, rows = report_on(tmp_path)
    # on seeds 1 and 2: 0 and -50 points
    assert rows["OPD improves the base"][0][2:4] == ["2", "-25.0 [-342.7, +292.7]"]
    assert [rows["OPSD improves the base"][0][i] for i in (2, 5)] == ["1", "undecided (one seed)"]
    assert rows["ReNIO improves OPD"][0][2:7] == ["0", "", "", "undecided (no seed in common)", ""]


def test_one_seed_decides_nothing(tmp_path):
    write_run(tmp_path / "base", "base", 0, [0] * 20)
    write_run(tmp_path / "opd", "opd", 0, [2] * 20)
    text, rows = report_on(tmp_path)
    assert rows["OPD improves the base"][0][2:7] == ["1", "+100.0 [+100.0, +100.0]", "", "undecided (one seed)", ""]
    assert "Of 1 verdicts: 0 supported" in text and "1 undecided." in text


@pytest.mark.parametrize("ends, said", [
    ((0.1, 0.2), "supported"), ((-0.2, -0.1), "not supported: the opposite"),
    ((0.5, 0.5), "undecided (no spread over seeds)"),
    ((0.0, 0.1), "undecided (the interval holds 0)"), ((-0.1, 0.0), "undecided (the interval holds 0)")])
def test_a_verdict_is_where_the_interval_lies(ends, said):
    assert renio_eval.verdict(3, ends) == said


def test_beside_a_verdict_stands_whether_it_survives_all_of_them(tmp_path):
    scores = {"base": (5, 5, 5), "opd": (15, 17, 20), "opsd": (25, 30, 37), "opd+renio": (30, 15, 22)}
    for label, right in scores.items():
        for seed in (0, 1, 2):
            write_run(tmp_path / f"seed{seed}" / label, label, seed, [2] * right[seed] + [0] * (40 - right[seed]))
    text, rows = report_on(tmp_path)
    claims = ["OPSD improves the base", "OPD improves the base", "ReNIO improves OPD"]
    p = [seeds_p_value(np.array(scores[a]) - scores[b]) for a, b in (("opsd", "base"), ("opd", "base"),
                                                                    ("opd+renio", "opd"))]
    assert [rows[claim][0][6] for claim in claims] == ["stands", "stands", ""]
    assert p == pytest.approx([0.0179, 0.0136, 0.433], rel=0.02)  # below 0.05 / 2, 0.05 / 3, not 0.05
    assert holm(p) == [True, True, False] and "2 supported (2 after Holm's correction)" in text
    for label in ("opd+renio-noclip", "opd+renio-nothreshold", "opd+iw", "opd+correctness"):  # four more: 0.05 / 7
        for seed in (0, 1, 2):
            write_run(tmp_path / f"seed{seed}" / label, label, seed, [2] * (10 + 9 * seed) + [0] * (30 - 9 * seed))
    text, rows = report_on(tmp_path)
    assert [rows[claim][0][5:7] for claim in claims[:2]] == [["supported", "does not stand"]] * 2
    assert "(0 after Holm's correction)" in text


def test_aiming_and_variance_are_judged_by_the_errors_that_shuffled_weights_leave(tmp_path):
    for seed in range(4):
        for label, right in (("opd", [2, 2, 1, 1]), ("opd+renio", [2, 2, 2, 1]),
                             ("opd+renio_shuffled", [1, 1, 1, seed % 2])):
            write_run(tmp_path / f"{label}{seed}", label, seed, right)
    _, rows = report_on(tmp_path)
    for claim, compared in (("aiming: shuffled weights leave more errors on gaps than ReNIO's in OPD",
                             "opd+renio_shuffled − opd+renio"),
                            ("variance: shuffled weights leave more errors on gaps than none in OPD",
                             "opd+renio_shuffled − opd")):
        [row] = rows[claim]
        assert row[:3] == [compared, "arith, sampled, % wrong of gaps", "4"] and row[5] == "supported"
        assert float(row[3].split()[0]) > 0
    shares = {label: 100 - float(rows[label][0][1].split()[0]) for label in ("opd", "opd+renio", "opd+renio_shuffled")}
    for label, share in shares.items():
        [(_, taught, gaps)] = [cells for cells in rows[label] if len(cells) == 3]
        assert (float(taught.split()[0]), float(gaps.split()[0])) == (0, pytest.approx(share, abs=0.06))


def test_runs_with_other_settings_are_not_in_one_table(tmp_path):
    for seed in (0, 1):
        for label in ("base", "opd"):
            write_run(tmp_path / f"seed{seed}" / label, label, seed, [1] * 20)
    write_run(tmp_path / "cool" / "opsd", "opsd", 0, [2] * 20, temperature=0.6)
    write_run(tmp_path / "other" / "opd", "opd", 0, [2] * 30, problems="other")
    text, _ = report_on(tmp_path)
    first, *others = text.split("\n# Scores")
    assert len(others) == 2 and all(chapter.startswith(" at micro scale made with other") for chapter in others)
    assert "temperature 1," in first and "temperature 0.6" not in first and "a chapter of their own" in first
    assert {*tables(first)} >= {"base", "opd"} and "opsd" not in tables(first)
    for chapter in others:
        labels = {*tables(chapter)} & {"base", "opd", "opsd"}
        assert labels == ({"opsd"} if "temperature 0.6" in chapter else {"opd"})
    assert {"scores.png", "scores-2.png", "scores-3.png"} <= {path.name for path in tmp_path.glob("*.png")}


def test_runs_asked_in_other_words_are_not_in_one_table_but_the_solution_may_be_added(tmp_path):
    for label, settings in (("base", dict(prompt="go: {problem}")), ("opd", dict(prompt="go: {problem}")), ("opsd", {}),
                            ("base with solution", dict(privileged=True, prompt="{problem} {solution}"))):
        write_run(tmp_path / label, label, 0, [1] * 20, **settings)
    write_run(tmp_path / "other", "base with solution", 0, [1] * 20, privileged=True, prompt="{solution} {problem}")
    first, *others = report_on(tmp_path)[0].split("\n# Scores")
    assert {*tables(first)} & {"base", "opd", "opsd", "base with solution"} == {"base", "opd", "base with solution"}
    assert "; asked by 'go: {problem}', '{problem} {solution}'" in first
    assert [{*tables(other)} & {"opsd", "base with solution"} for other in others] == [{"opsd", "base with solution"}]
    for a, b, name in (("base", "opsd", "prompt"), ("base with solution", "other", "prompt with the solution")):
        with pytest.raises(SystemExit, match=f"differ in {name}; --other_settings"):
            renio_eval.main(["compare", *(str(tmp_path / folder / "eval.json") for folder in (a, b))])


def test_the_settings_say_how_many_runs_are_of_the_released_codes_variant(tmp_path):
    def said(**variants):
        for label, variant in variants.items():
            (tmp_path / label / "config.json").write_text(json.dumps(dict(flags=dict(method=label, variant=variant))))
        return re.findall("- training: .*", report_on(tmp_path)[0])

    for label in ("base", "opd", "opsd"):
        write_run(tmp_path / label, label, 0, [1] * 20)
    assert said(opd="paper", opsd="paper") == []
    assert said(opd="official") == ["- training: 1 of 2 runs with --variant official, the released code's settings"]


def test_teachers_with_and_without_the_solution_have_rows_but_no_published_figures(tmp_path):
    labels = ["base", "opd", "opd-privileged", "opd+renio-privileged", "opsd", "opsd-nosolution"]
    for seed in (0, 1):
        for label in labels:
            write_run(tmp_path / f"seed{seed}" / label, label, seed, [1] * 20, benchmark="aime24",
                      model="Qwen/Qwen3-1.7B")
    text, rows = report_on(tmp_path)
    assert "## Other runs" not in text
    first, controls = (tables(text[text.index(title):]) for title in ("## Tables 1 and 2", "## Controls"))
    assert [first[label][0][-1] for label in labels[:5]] == ["51.33", "54.44", "", "", "53.06"]
    assert "opsd-nosolution" in controls and controls["opsd-nosolution"][0][-1] == ""
    for claim in ("ReNIO improves OPD whose teacher reads the solution", "the solution improves OPSD",
                  "OPSD improves the base without the solution too"):
        assert rows[claim][0][2] == "2"


@pytest.mark.parametrize("centre", ["opd+renio", "opd+renio-clip3.0"])
def test_the_sweeps_centre_is_the_main_run_unless_there_is_one_of_its_own(tmp_path, monkeypatch, centre):
    write_run(tmp_path / "main", "opd+renio", 0, [0] * 20)
    write_run(tmp_path / "centre", centre, 0 if centre != "opd+renio" else 1, [2] * 20)
    for end in ("clip2.0", "clip2.5", "threshold0.6", "threshold1.0"):
        write_run(tmp_path / end, f"opd+renio-{end}", 0, [1] * 20)
    drawn, draw = [], renio_eval.draw_intervals
    monkeypatch.setattr(renio_eval, "draw_intervals", lambda axis, points, *args, **style: drawn.append(
        [(x, values[0].mean()) for x, values in points if values]) or draw(axis, points, *args, **style))
    _, rows = report_on(tmp_path)
    middle = 1.0 if centre == "opd+renio-clip3.0" else 0.5  # of the main run's seeds, 0 and 1
    assert [(2.0, 0.5), (2.5, 0.5), (3.0, middle)] in drawn and [(0.6, 0.5), (0.8, middle), (1.0, 0.5)] in drawn
    assert rows["clip 3.0 beats 2.0"][0][0] == f"{centre} − opd+renio-clip2.0"


def test_figure_3_has_the_threshold_and_clip_of_its_runs(tmp_path, monkeypatch):
    write_all_runs(tmp_path, seeds=(0,))
    path = tmp_path / "seed0" / "opd" / "config.json"
    path.write_text(json.dumps(dict(flags=dict(method="opd", threshold=1.0, log_ratio_clip=2.0))))
    [scores] = renio_eval.read_folder(tmp_path)
    axis = MagicMock()
    monkeypatch.setattr(renio_eval, "figure", lambda scores, name, panels, draw, *_, **__: [
        draw(axis, *panel) for panel in panels])
    renio_eval.plot_log_ratios(scores, {label: scores.logs(label, "rollouts.jsonl") for label in ("opd", "opsd")})
    assert [call.args[0] for call in axis.axvline.call_args_list] == [1.0, 2.0, 0.8, 3.0]


def test_checkpoints_scored_with_other_settings_than_the_last_are_left_out(tmp_path, capsys):
    write_run(tmp_path / "base", "base", 0, [1] * 20)
    for step, right in ((10, 2), (20, 1), (30, 1)):
        write_run(tmp_path / "opd" / f"checkpoint-{step}", "opd", 0, [right] * 20,
                  max_new_tokens=128 if step == 10 else 64)
    _, rows = report_on(tmp_path)
    assert rows["opd"][0][:4] == ["1", "50.0 [50.0, 50.0]", "", "50.0 of 2"]
    assert re.search("warning: .*checkpoint-10/eval.json differs from checkpoint-30 in max_new_tokens; left out",
                     capsys.readouterr().err)


def test_two_runs_with_one_label_and_seed_are_an_error_that_names_both(tmp_path):
    for folder in ("a", "b"):
        write_run(tmp_path / folder, "opd", 3, [1] * 20)
    with pytest.raises(SystemExit, match="a/eval.json and .*b/eval.json are both opd with training seed 3"):
        renio_eval.main(["report", str(tmp_path)])
    shutil.rmtree(tmp_path / "b")
    write_run(tmp_path / "b", "opd", 3, [1] * 20, benchmark="aime24")  # trained for math beside arith: no error
    report_on(tmp_path)


@pytest.mark.parametrize("model, benchmark, titles", [
    ("runs/base", "arith", ["the paper's Qwen3-1.7B in math, for the order alone"]),
    ("Qwen/Qwen3-1.7B", "aime24", ["paper"]), ("Qwen/Qwen3-4B", "aime24", ["paper"]), ("my/model", "aime24", []),
    ("Qwen/Qwen3-1.7B", "amc23", ["paper"])])
def test_the_papers_figures_stand_only_beside_its_models(tmp_path, model, benchmark, titles):
    for label in ("base", "opsd"):
        write_run(tmp_path / label, label, 0, [1] * 20, benchmark=benchmark, model=model)
        (tmp_path / label / "metrics.jsonl").write_text(json.dumps(dict(step=1, seconds=1.0)) + "\n"
                                                        + json.dumps(dict(step=2, seconds=1.0)) + "\n")
    text, rows = report_on(tmp_path)
    assert [title for title in rows["method"][0] if "paper" in title] == titles
    figures = {"arith": "40.83", "aime24": {"Qwen/Qwen3-1.7B": "53.06", "Qwen/Qwen3-4B": "75.56"}.get(model, "")}
    if titles:
        assert rows["opsd"][0][-1] == figures.get(benchmark, "")  # amc23 is none of its benchmarks
    assert ("4.61" in text) == (model != "my/model" and "4B" not in model)  # Figure 4 is of 1.7B
    assert "paper" in rows["claim"][0][-1] or figures.get(benchmark, "") == ""


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no eval.json below it"):
        renio_eval.main(["report", str(tmp_path)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with runs of every label, the text of its report, and the report's tables."""
    folder = tmp_path_factory.mktemp("whole")
    write_all_runs(folder)
    return folder, *report_on(folder)


def test_the_report_holds_every_table_and_figure(whole):
    tmp_path, text, rows = whole
    for section in renio_eval.SECTIONS:
        assert f"## {section.title}" in text
    for name in ("scores", "figure1", "figure1-matched", "figure1-hard", "success", "figure3", "figure4", "figure5",
                 "figure6", "weights", "steps", "errors"):
        assert f"({name}.png)" in text and (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    for claim in (claim for section in renio_eval.SECTIONS for claim in section.claims if claim.micro):
        sampled, greedy = rows[claim.text.replace("*", "16")]
        for row in (sampled, greedy):
            assert row[5] in ("supported", "undecided (the interval holds 0)", "undecided (no spread over seeds)",
                              "not supported: the opposite")
            assert (row[6] == "") == row[5].startswith("undecided") and row[2] == "3" and row[4].startswith("[")
    # the planted effects
    for row in rows["incorrect-only beats correct-only in OPD"]:
        assert row[5] == "supported"
    assert rows["incorrect-only beats correct-only in OPD"][0][-1] == "+2.60"
    assert rows["incorrect-only makes longer answers than correct-only in OPSD"][0][1:7] == [
        "arith, sampled, tokens an answer", "3", "+10.33 [+8.90, +11.77]", "[+8.90, +11.77]", "supported",
        "does not stand"]
    # AUCs of 0.9, 0.92, 0.9 a seed: 0.40667 +- 4.303 x 0.011547 / sqrt(3)
    assert rows["the weight ranks wrong rollouts above right ones in OPD"][0][:7] == [
        "AUC − 0.5 within a batch", "rollouts", "3", "+0.407 [+0.378, +0.435]", "", "supported", "stands"]
    row = rows["higher weights go with lower entropy of the teacher in OPSD"][0]
    assert row[:3] == ["− rank correlation", "rollouts", "3"] and row[4:] == ["", "supported", "stands", "above 0"]
    assert re.search(r"OPSD: rank correlation -0.9\d over 300 rollouts, by seed -0.9\d, -0.9\d, -0.9\d\.", text)
    # the paper's short rollouts are ours with @16
    assert rows["opd@16"][0][-1] == "40.37" and [row[-1] for row in rows["opd"]][1] == "41.38"
    assert "## Other runs" in text and rows["my own"][0][0] == "3"
    assert text.index("## Verdicts") < text.index("## Tables 1 and 2")


def test_problems_are_counted_by_the_success_rate_of_the_student(whole):
    folder, text, _ = whole
    [scores] = renio_eval.read_folder(folder)
    # 8 draws: 8 and 8 always, 7 below always, 4 half; and 0 never, 1 and 2 up to a quarter, 8 always
    assert renio_eval.success_shares(scores, "opd-hard-unfiltered").tolist() == [0.25, 0.5, 0, 0, 0, 0.25]
    assert renio_eval.success_shares(scores, "opd-correct").tolist() == [0, 0, 0.25, 0, 0.25, 0.5]
    assert len(renio_eval.success_shares(scores, "opd")) == 0
    assert "| opsd-matched-correct | 0.0 | 0.0 | 25.0 | 0.0 | 25.0 | 50.0 |" in text
    assert "| opd-hard-incorrect |" in text and "opd-hard-correct" not in text


def test_what_is_published_gives_the_same_report_again_and_holds_no_answers(whole, tmp_path, monkeypatch):
    runs, first, _ = whole
    real = renio_eval.report
    monkeypatch.setattr(renio_eval, "report", lambda folder: None)  # it is there
    partial = runs / "seed0" / "opd" / "eval.json.partial"  # of an evaluation that was interrupted, with its answers
    partial.write_text('{"answers": [{"boxed": "1"}]}')
    renio_eval.main(["publish", str(runs), str(tmp_path / "published")])
    assert (tmp_path / "published" / "report.md").read_text() == first
    packed = sorted((tmp_path / "published").glob("*.tar.gz"))
    assert [path.name for path in packed] == ["seed0.tar.gz", "seed1.tar.gz", "seed2.tar.gz"]
    for path in packed:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "again", filter="data")
    assert len(list((tmp_path / "again").rglob("eval.json"))) == len(list(runs.rglob("eval.json")))
    partial.unlink()
    assert not any('"boxed"' in path.read_text() for path in (tmp_path / "again").rglob("*.json*"))
    before = [path.read_bytes() for path in packed]
    renio_eval.main(["publish", str(runs), str(tmp_path / "published")])
    assert [path.read_bytes() for path in packed] == before
    renio_eval.main(["publish", str(tmp_path / "again"), str(tmp_path / "published")])  # seeds may have come
    assert [path.read_bytes() for path in packed] == before
    monkeypatch.setattr(renio_eval, "report", real)
    assert report_on(tmp_path / "again")[0] == first


def test_the_first_page_repeats_the_verdicts_of_the_main_claims(whole):
    _, text, rows = whole
    page = text.partition("## Findings")[2].partition("Settings of every row")[0].strip().splitlines()
    claims = [claim for claim in renio_eval.HEADLINES if claim in rows]
    assert len(page) == len(claims) == 10 and len(set(renio_eval.HEADLINES) - set(claims)) == 2
    for line, claim in zip(page, claims, strict=True):
        assert line.startswith(f"- {claim}: ")
        for row in rows[claim]:
            assert f"{row[5].partition(' (')[0]}, {row[3]} ({row[1]})" in line


def test_aiming_and_variance_are_judged_by_scores_where_errors_have_no_kinds(tmp_path):
    for seed in (0, 1, 2):
        for label, right in (("opd", 12), ("opd+renio", 14 + seed), ("opd+renio_shuffled", 10)):
            write_run(tmp_path / f"seed{seed}" / label, label, seed, [2] * right + [0] * (20 - right),
                      benchmark="products")
    text, rows = report_on(tmp_path)
    [aiming], [variance] = rows["aiming: ReNIO beats shuffled weights in OPD"], rows[
        "variance: none beats shuffled weights in OPD"]
    assert aiming[0] == "opd+renio − opd+renio_shuffled" and aiming[3].startswith("+25.0 [")
    assert variance[0] == "opd − opd+renio_shuffled" and variance[3] == "+10.0 [+10.0, +10.0]"
    assert "- aiming: ReNIO beats shuffled weights in OPD: supported, +25.0 [" in text.partition("## Verdicts")[0]


def test_seconds_are_means_over_steps_and_grpos_are_optimizer_steps(whole):
    _, _, rows = whole
    mean = np.mean([0.5 + 0.01 * step for step in range(2, 21)])  # without the first
    [opd], [grpo] = ([row for row in rows[label] if len(row) == 2] for label in ("opd", "grpo"))  # and the paper's
    assert (opd[0], grpo[0]) == (f"{mean:.3f}", f"{mean / 2:.3f}")  # --iterations 2


def panels_of(monkeypatch, draw):
    """The titles of the panels of each figure that draw() makes, by its name."""
    made = {}
    monkeypatch.setattr(renio_eval, "figure", lambda scores, name, panels, *_, **__: made.update({name: panels}) or [])
    draw()
    return made


def test_figures_have_a_panel_a_benchmark(tmp_path, monkeypatch):
    for label in ("base", "opd", "opd+renio", "opd-correct", "opd-incorrect", "opd+renio-clip2.0", "opsd"):
        for step in (10, 20) if label not in ("base", "opd+renio-clip2.0") else (None,):
            path = tmp_path / label / (f"checkpoint-{step}" if step else "")
            whole = None
            for benchmark in ("aime24", "aime25"):
                write_run(path, label, 0, [1] * 10, benchmark=benchmark)
                run = json.loads((path / "eval.json").read_text())
                if whole is None:
                    whole = run
                    shutil.rmtree(path)
            whole["results"] += run["results"]
            whole["settings"]["checksums"] |= run["settings"]["checksums"]
            (path / "eval.json").write_text(json.dumps(whole))
    [scores] = renio_eval.read_folder(tmp_path)
    made = panels_of(monkeypatch, lambda: [renio_eval.plot_filter(scores), renio_eval.plot_sweeps(scores),
                                           renio_eval.plot_steps(scores)])
    assert [panel[:3] for panel in made["figure1"]] == [
        ("opd", benchmark, key) for benchmark in ("aime24", "aime25") for key in ("right", "tokens", "markers")]
    titles = ["aime24, sampled", "aime25, sampled", "math mean, sampled"]
    assert [panel[2][0] for panel in made["figure6"]] == titles * 2
    assert [(method, column[0]) for method, column in made["steps"]] == [
        ("opd", "math mean, sampled"), ("opsd", "math mean, sampled")]
    monkeypatch.undo()
    report_on(tmp_path)  # and all of them can be drawn


def test_the_report_prints_the_scores_of_the_methods_and_its_path(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}" / "base", "base", seed, [1] * 20, decodings=("sampled", "greedy"))
        write_run(tmp_path / f"seed{seed}" / "mine", "base with solution", seed, [2] * 20)
    renio_eval.main(["report", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        "method              arith, sampled, %     arith, greedy, %",
        "base                50.0 [50.0, 50.0]     50.0 [50.0, 50.0]",
        "base with solution  100.0 [100.0, 100.0]",
        "", f"wrote {tmp_path / 'report.md'}"]


def test_a_printed_table_leaves_out_columns_that_do_not_fit():
    rows = [[("method", "a"), *((f"column {i}", "x" * 40) for i in range(3))]] * 2
    assert {len(line) for line in renio_eval.plain_table(rows)} == {6 + 2 * 42, 6 + 2 + 40 + 2 + 8}


def test_a_file_that_is_no_evaluation_ends_the_report_with_one_line(tmp_path):
    (tmp_path / "eval.json").write_text('{"label": "opd"}')
    with pytest.raises(SystemExit, match=f"{tmp_path / 'eval.json'}: not a file that eval.py wrote") as error:
        renio_eval.main(["report", str(tmp_path)])
    assert "\n" not in str(error.value)


# --- compare ----------------------------------------------------------------------------------------------------------

def test_compare_pairs_two_evaluations_by_problem(tmp_path, capsys):
    write_run(tmp_path / "a", "opd", 0, [0, 1, 2, 1] * 5)
    write_run(tmp_path / "b", "opd+renio", 1, [1, 2, 2, 2] * 5)
    write_run(tmp_path / "c", "other", 0, [1] * 20, problems="other")
    files = {name: str(tmp_path / name / "eval.json") for name in "abc"}
    renio_eval.main(["compare", files["a"], files["b"]])
    assert re.fullmatch(r"arith, sampled: opd\+renio 87.5 − opd 50.0 = \+37.5 \[\+2\d.\d, \+4\d.\d\] points, "
                        r"p = 0.000\d over problems, which says nothing of another training\n", capsys.readouterr().out)
    (tmp_path / "d.json").write_text("{}")
    for words, message in (([files["a"], files["c"]], "differ in problems$"),
                           ([files["a"], files["c"], "--other_settings"], "differ in problems$"),
                           ([files["a"]], "compare takes two"), ([*files.values()], "compare takes two"),
                           (["vs", files["a"]], "compare takes two"),
                           ([files["a"], str(tmp_path / "no.json")], "not a file that eval.py wrote"),
                           ([files["a"], str(tmp_path / "d.json")], "not a file that eval.py wrote")):
        with pytest.raises(SystemExit, match=message):
            renio_eval.main(["compare", *words])


def test_compare_refuses_other_settings_unless_told(tmp_path, capsys):
    files = []
    for name, settings in (("a", {}), ("b", dict(temperature=0.6, engine="vllm")), ("c", dict(privileged=True))):
        write_run(tmp_path / name, name, 0, [1] * 20, **settings)
        files.append(str(tmp_path / name / "eval.json"))
    for other, names in ((files[1], "engine, temperature"), (files[2], "privileged")):
        with pytest.raises(SystemExit, match=f"differ in {names}; --other_settings compares them all the same"):
            renio_eval.main(["compare", files[0], other])
        renio_eval.main(["compare", files[0], other, "--other_settings"])
        assert "= +0.0 [+0.0, +0.0] points" in capsys.readouterr().out


def test_compare_takes_several_seeds_a_side(tmp_path, capsys):
    first, second = [], []
    for seed, right in enumerate((10, 12, 14, 16)):
        for side, label, more in ((first, "opd", 0), (second, "opsd", seed + 1)):
            write_run(tmp_path / f"{label}{seed}", label, seed, [2] * (right + more) + [0] * (20 - right - more))
            side.append(str(tmp_path / f"{label}{seed}" / "eval.json"))
    renio_eval.main(["compare", *first[:3], "vs", *second])  # seed 3 is on one side only
    values = np.array([0.05, 0.1, 0.15])
    half = t_quantile(2) * 5 / np.sqrt(3)
    assert re.fullmatch(
        rf"arith, sampled: opsd 70.0 − opd 60.0 = \+10.0 \[{10 - half:+.1f}, {10 + half:+.1f}\] points, "
        rf"p = {seeds_p_value(values):.4f} over 3 training seeds; other problems too \[-?\+?[\d.]+, \+[\d.]+\]\n"
        .replace("[+", r"[\+").replace(", +", r", \+"), said := capsys.readouterr().out)
    renio_eval.main(["compare", "--other_settings", *first[:3], "vs", *second])
    assert capsys.readouterr().out == said
    with pytest.raises(SystemExit, match="no training seed"):
        renio_eval.main(["compare", *first[:2], "vs", *second[2:]])
    with pytest.raises(SystemExit, match="are both the first side with training seed 0"):
        renio_eval.main(["compare", first[0], second[0], "vs", second[0]])


# --- the picture of a rollout -----------------------------------------------------------------------------------------

def test_a_rollout_of_a_run_is_drawn_with_its_words_key_tokens_and_weight(tmp_path, micro_model, monkeypatch):
    renio.main(["--method", "opsd", "--model", str(micro_model), "--max_steps", "1", "--batch_size", "4",
                "--schedule_steps", "1", "--save_rollouts", "True", "--output_dir", str(tmp_path / "run")])
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(len(row["completion"]) == len(row["log_ratios"]) for row in rows)
    log_ratios = [4.0, 0.8, 1.0, *[0.0] * (len(rows[0]["completion"]) - 3)]
    row = rows[0] | dict(right=False, log_ratios=log_ratios, renio_weight=np.exp(2))
    (tmp_path / "run" / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    said = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **style: said.append(text))
    picture.main(tmp_path / "run", tmp_path / "rollout")
    assert all((tmp_path / f"rollout-{theme}.png").stat().st_size > 1000 for theme in ("light", "dark"))
    asked, *words, weight = said[: len(said) // 2]  # of the first theme
    assert asked == f"asked: {row['problem']}" and [word for word in words if word[0] in "+-"] == ["+4.0", "+1.0"]
    assert len(words) == 2 + len(row["completion"]) and "3.0, 1.0" in weight and weight.endswith("= 7.4$")


def test_words_of_a_picture_stay_within_its_width():
    words = ["word"] * 40
    places = picture.layout(words)
    assert all(column + len(word) * picture.LETTER < picture.WIDTH for word, (column, _) in
               zip(words, places, strict=True))
    assert places[-1][1] == 2 and places == sorted(places, key=lambda place: place[::-1])


# --- what README says -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale, heading, tabled, cited", [
    ("micro", "## What came out", 8, 6), ("small", "### A pretrained model", 5, 5)])
def test_every_figure_of_readmes_results_is_in_the_published_report(scale, heading, tabled, cited):
    """Cells of a row are in the report's rows of that method or claim, and intervals of the text in any of its rows."""
    said = (ROOT / "README.md").read_text().partition(f"\n{heading}\n")[2].partition("\n##")[0]
    lines = (ROOT / ".github" / "results" / scale / "report.md").read_text().splitlines()
    published = [cells_of(line) for line in lines if line.startswith("|")]
    tables = [cells_of(line) for line in said.splitlines() if line.startswith("|") and "---" not in line]
    rows = [cells for cells in tables if re.match(r"[-+]?\d", cells[1])]
    assert len(rows) == tabled
    for name, *cells in rows:
        same = [cell for row in published if row[0] == name for cell in row[1:]]
        assert {cell for cell in cells if cell} <= {*same}, name
    text = " ".join(line for line in said.splitlines() if not line.startswith("|"))
    quoted = re.findall(r"[-+][\d.]+ \[[-+\d., ]+\]", text)
    assert len(quoted) == cited
    assert {*quoted} <= {cell for row in published for cell in row}


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]
