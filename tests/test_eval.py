"""Graders, statistics, benchmarks and the report."""

import itertools
import json

import numpy as np
import pytest
from conftest import write_run

import eval as renio_eval
from eval import (UserError, area_under_curve, bootstrap_interval, count_markers, extract_boxed, grade_math,
                  majority_answer, pass_at_k)


# --- graders ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, boxed", [
    (r"so \boxed{5}", "5"),
    (r"\boxed{1} or rather \boxed{2}", "2"),
    (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{3} and an open \boxed{4", "3"),
    (r"\boxed {7}", "7"),
    (r"<think>\boxed{1}</think> the answer is \boxed{2}", "2"),
    (r"<think>perhaps \boxed{1}</think> I am done", "1"),
    (r"perhaps \boxed{1}</think> the answer is \boxed{2}", "2"),
    (r"\boxed{2} <think>or \boxed{1}", "2"),
    (r"<think>only \boxed{3", None),
    (r"\boxed{}", ""),
    ("no box 5", None),
])
def test_the_last_complete_box_outside_thinking_is_the_answer(text, boxed):
    assert extract_boxed(text) == boxed


@pytest.mark.parametrize("answer, gold, equal", [
    ("5", "5", True), ("5", "6", False), ("5.0", "5", True), ("012", "12", True), ("1,234", "1234", True),
    ("1 234", "1234", True), ("12 000", "12000", True), ("1,2", "12", False), ("$70$", "70", True), ("70.", "70", True),
    ("-3", "3", False), ("+3", "3", True), (".5", "0.5", True), (r"\frac{1}{2}", "0.5", True),
    (r"\dfrac12", r"\frac{1}{2}", True), (r"\frac{2}{4}", r"\frac{1}{2}", True), (r"\frac{1}{3}", "0.5", False),
    (r"\sqrt{8}", r"2\sqrt{2}", True), (r"2\sqrt{3}", r"3\sqrt{2}", False), ("4.5e33", r"4.5 \times 10^{33}", True),
    ("4.5e33", "4.5e33", True), ("4.5e33", "4.5e32", False), ("1e3", "1000", True), (r"4.5 \times 10^{33}", "4.5e33", True),
    ("x^2+2x+1", "(x+1)^2", True), ("x^2+1", "(x+1)^2", False), (r"\left( 3, \frac{\pi}{2} \right)",
                                                                  r"(3,\pi/2)", True),
    ("(1,2)", "(2,1)", False), (r"\{1,2\}", r"\{2,1\}", True), ("[0,1]", "(0,1)", False), (r"\pi", "3.14", False),
    (r"50\%", "50", True), (r"\$5", "5", True), (r"\text{east}", r"\text{east}", True), ("A", "B", False),
    (r"x=5", "5", True), (r"\infty", "5", False), (r"\frac{\pi}{4}", r"\pi/4", True), ("2^{10}", "1024", True),
    (r"\binom{5}{2}", "10", True), (r"\log_2 8", "3", True), ("", "5", False), ("(", "5", False), ("}{", "5", False),
])
def test_answers_are_compared_as_mathematics(answer, gold, equal):
    assert grade_math(f"so \\boxed{{{answer}}}", gold) is equal


@pytest.mark.parametrize("answer", ["9^{9^{9}}", "(" * 400 + ")" * 400, "9" * 5000, r"\frac{1}{" * 200, "x" * 900,
                                    "10^{10^{10}}!", "1e999999", "\x00"])
def test_no_answer_hangs_or_crashes_the_grader(answer):
    assert grade_math(f"\\boxed{{{answer}}}", "5", timeout=3.0) is False
    assert grade_math(r"\boxed{\frac{10}{2}}", "5") is True  # and the next one is graded as ever


def test_markers_are_whole_words_in_any_case():
    assert count_markers("Wait, but maybe. HMM: again and Again") == 6
    assert count_markers("waiting, buttons, checked, however") == 1
    assert count_markers("") == 0


# --- statistics -------------------------------------------------------------------------------------------------------

def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))
    for bad in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError):
            pass_at_k(*bad)


def test_the_bootstrap_interval_covers_the_mean_in_about_95_percent():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.binomial(4, 0.6, size=100) / 4, resamples=1000)
        covered += low <= 0.6 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval([0.25] * 30) == pytest.approx((0.25, 0.25))


def test_the_interval_counts_the_spread_over_seeds():
    low, high = bootstrap_interval(np.repeat([[0.2], [0.5], [0.8]], 50, axis=1))
    assert (low, high) == pytest.approx((0.2, 0.8))  # one of the three seeds drawn thrice has a chance of 1/27


def test_area_under_the_curve_by_hand():
    assert area_under_curve([3, 1, 2, 2], [True, False, True, False]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert area_under_curve([1, 2], [True, True]) is None


def test_the_majority_is_the_earliest_of_the_most_frequent_answers():
    assert majority_answer(["2", "1", None, "1", "2", None, None]) == "2"
    assert majority_answer([None, None]) is None


def test_scores_of_answers_worked_by_hand():
    def answer(boxed, right, tokens, truncated=False):
        return dict(boxed=boxed, right=right, reason="", tokens=tokens, truncated=truncated, markers=1)

    scores = renio_eval.summarize([
        [answer("1", True, 10), answer("1", True, 20), answer("2", False, 30), answer(None, False, 40, True)],
        [answer("3", False, 10), answer("4", True, 10), answer("3", False, 10), answer(None, False, 10)]])
    assert scores["avg"] == 0.375 and scores["majority"] == 0.5
    assert scores["pass@2"] == pytest.approx(((1 - 1 / 6) + 0.5) / 2) and scores["pass@4"] == 1.0
    assert (scores["length"], scores["truncation_rate"], scores["format_rate"]) == (17.5, 0.125, 0.75)


# --- benchmarks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, rows", [("aime24", 30), ("aime25", 30), ("hmmt25", 30), ("amc23", 40),
                                        ("math500", 500), ("minerva", 272), ("gsm8k", 1319)])
def test_benchmark_files_have_a_problem_and_an_answer_in_every_row(shared, name, rows):
    loaded = renio_eval.load_benchmark(name, shared / "data")
    assert len(loaded) == rows
    for row in loaded[:5]:
        assert row["problem"] and grade_math(f"\\boxed{{{row['answer']}}}", row["answer"])


def test_an_unknown_benchmark_lists_the_known_ones():
    with pytest.raises(UserError, match="aime26: unknown; known are arith, aime24"):
        renio_eval.load_benchmark("aime26")


# --- the report -------------------------------------------------------------------------------------------------------

def test_the_report_shows_means_over_seeds_paired_differences_and_published_figures(tmp_path):
    write_run(tmp_path / "seed0" / "base", "base", 0, [1] * 20)
    write_run(tmp_path / "seed0" / "opd", "opd", 0, [2] * 10 + [1] * 10)
    write_run(tmp_path / "seed1" / "opd", "opd", 1, [2] * 20)
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}" / "opd+renio", "opd+renio", seed, [2] * 20)
    renio_eval.main(["report", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in text.splitlines() if line.startswith("|")}
    assert rows["base"][:3] == ["1", "50.0 [50.0, 50.0]", ""] and rows["base"][-1] == "36.89"
    # opd: 75 and 100 percent, so 25 and 50 points over the base
    seeds, score, difference, spread = rows["opd"][:4]
    assert seeds == "2" and score.startswith("87.5 [6") and score.endswith("100.0]") and spread == "17.7"
    assert difference.startswith("+37.5 [+1") and difference.endswith("+50.0]")
    assert rows["opd"][-1] == "40.37"
    # opd+renio: 25 and 0 points over opd of the same seed
    assert rows["opd+renio − opd"][0].startswith("+12.5 [+0.0") and rows["opd+renio − opd"][1] == ""
    assert "20 problems (checksum same)" in text and "training seeds 0, 1" in text
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_runs_on_different_problems_are_not_compared(tmp_path):
    write_run(tmp_path / "base", "base", 0, [1] * 20)
    write_run(tmp_path / "opd", "opd", 0, [1] * 20, problems="other")
    with pytest.raises(SystemExit, match="base and opd were scored on different problems"):
        renio_eval.main(["report", str(tmp_path)])


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no eval.json below it"):
        renio_eval.main(["report", str(tmp_path)])


# --- the command ------------------------------------------------------------------------------------------------------

def test_an_interrupted_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, micro_model, monkeypatch):
    words = ["--model", str(micro_model), "--limit", "12", "--n", "2", "--batch_size", "8", "--max_new_tokens", "10",
             "--decoding", "sampled", "greedy"]
    renio_eval.main([*words, "--output", str(tmp_path / "whole.json")])
    real, calls = renio_eval.sample, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(renio_eval, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        renio_eval.main([*words, "--output", str(tmp_path / "cut.json")])
    assert not (tmp_path / "cut.json").exists()
    renio_eval.main([*words, "--output", str(tmp_path / "cut.json")])
    assert len(calls) == 3 + 3  # 24 answers of 8 and 12 of 8 are 5 batches, 2 of which were done
    whole, cut = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "cut.json"))
    for result in whole["results"] + cut["results"]:
        del result["seconds"]
    assert whole == cut
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("words, message", [
    ("--model x --output o --nn 3", "unrecognized arguments: --nn 3"),
    ("--model x --output o --n 0", "--n 0: must be at least 1"),
    ("--model x --output o --temperature 0", "greedy: --decoding greedy"),
    ("--model nowhere --output {0}/o.json", "no tokenizer in nowhere"),
    ("--model x --output {0}/o.json --benchmarks aime24 --data_dir {0}", "aime_2024.jsonl: no such file"),
    ("--model x --output {0}/o.json --benchmarks amc23 --data_dir {0} --privileged", "amc23 has no worked solutions"),
    ("--model {1} --output {0}/o.json --adapter {0}", "no adapter_config.json in it"),
])
def test_mistakes_end_with_one_line(tmp_path, micro_model, words, message):
    (tmp_path / "amc23.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    with pytest.raises(SystemExit, match=message) as error:
        renio_eval.main(words.format(tmp_path, micro_model).split())
    assert "\n" not in str(error.value)
