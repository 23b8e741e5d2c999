"""Graders, statistics, benchmarks and the report."""

import gzip
import itertools
import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, write_run
from transformers import PreTrainedTokenizerBase

import eval as renio_eval
import renio
from eval import (
    bootstrap_interval,
    count_markers,
    interval,
    majority_answer,
    paired_p_value,
    pass_at_k,
)
from renio import UserError, area_under_curve, extract_boxed, grade_math, load_tokenizer

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
    ("4.5e33", "4.5e33", True), ("4.5e33", "4.5e32", False), ("1e3", "1000", True),
    (r"4.5 \times 10^{33}", "4.5e33", True), ("x^2+2x+1", "(x+1)^2", True), ("x^2+1", "(x+1)^2", False),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", True),
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


def test_the_interval_over_seeds_is_students():
    values = np.repeat([[0.2], [0.5], [0.8]], 50, axis=1)
    half = 4.303 * 0.3 / np.sqrt(3)
    assert interval(values) == pytest.approx((0.5 - half, 0.5 + half))
    assert interval(values, within=(0, 1)) == (0.0, 1.0)
    assert interval(values, values - 0.2) == pytest.approx((0.4 - half, 0.4 + half))  # the mean of two benchmarks


def test_the_interval_of_one_seed_is_the_bootstrap_over_problems():
    values = np.random.default_rng(0).binomial(4, 0.6, size=100) / 4
    assert interval(values[None]) == pytest.approx(bootstrap_interval(values))


@pytest.mark.parametrize("over_seeds, over_problems", [(0.1, 0.1), (0.1, 0.5), (0.0, 0.3)])
def test_the_interval_over_three_seeds_covers_the_mean_in_about_95_percent(over_seeds, over_problems):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        values = rng.normal(0, over_seeds, (3, 1)) + rng.normal(0, over_problems, (1, 50)) + rng.normal(0, 0.1, (3, 50))
        low, high = interval(values)
        covered += low <= 0 <= high
    assert covered / 400 >= 0.93


def test_the_p_value_of_a_null_is_uniform_and_of_an_effect_small():
    rng = np.random.default_rng(4)
    nulls = np.array([paired_p_value(rng.normal(0, 1, 30), resamples=500) for _ in range(400)])
    for level in (0.05, 0.25, 0.5, 0.75):
        assert abs((nulls <= level).mean() - level) < 0.08
    assert paired_p_value(rng.normal(1, 1, 30)) < 0.001
    assert paired_p_value([0.0] * 10) == 1.0
    assert paired_p_value([1, 1, 1]) == pytest.approx(0.25, abs=0.02)  # 2 of the 8 signs are as extreme


def test_rank_correlation_by_hand():
    assert renio_eval.rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert renio_eval.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert renio_eval.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(renio_eval.rank_correlation([1, 1], [1, 2]))


def test_area_under_the_curve_by_hand():
    assert area_under_curve([3, 1, 2, 2], [True, False, True, False]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert area_under_curve([1, 2], [True, True]) is None


def test_the_majority_is_the_earliest_of_the_most_frequent_answers():
    assert majority_answer(["2", "1", None, "1", "2", None, None]) == "2"
    assert majority_answer([None, None]) is None


def test_scores_of_answers_worked_by_hand():
    def answer(boxed, right, tokens, truncated=False):
        return dict(boxed=boxed, right=right, reason="", tokens=tokens, truncated=truncated, markers=1)

    scores = renio_eval.scores_of_answers([
        [answer("1", True, 10), answer("1", True, 20), answer("2", False, 30), answer(None, False, 40, True)],
        [answer("3", False, 10), answer("4", True, 10), answer("3", False, 10), answer(None, False, 10)]])
    assert scores["avg"] == 0.375 and scores["majority"] == 0.5
    assert scores["pass@2"] == pytest.approx(((1 - 1 / 6) + 0.5) / 2) and scores["pass@4"] == 1.0
    assert (scores["length"], scores["truncation_rate"], scores["format_rate"]) == (17.5, 0.125, 0.75)


# --- benchmarks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, rows", [("aime24", 30), ("aime25", 30), ("hmmt25", 30), ("amc23", 40),
                                        ("math500", 500), ("minerva", 272), ("gsm8k", 1319)])
def test_every_gold_answer_of_a_math_benchmark_can_be_read_and_is_itself(shared, name, rows):
    loaded = renio_eval.load_benchmark(name, shared / "data")
    assert len(loaded) == rows and all(row["problem"].strip() for row in loaded)
    unread = []
    for row in loaded:
        gold = renio._clean(row["answer"])
        if renio._plain_number(gold) is None:  # those are compared without the parser
            if renio._ask_worker(renio._scientific(gold), renio._scientific(gold), 10.0) is not True:
                unread.append(row["answer"])
    assert unread == []


@pytest.mark.parametrize("name, rows, asked", [
    ("humaneval+", 164, 'def has_close_elements(numbers: List[float], threshold: float) -> bool:'),
    ("mbpp+", 378, "assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))")])
def test_code_benchmarks_ask_for_a_named_function(shared, name, rows, asked):
    loaded = renio_eval.load_benchmark(name, shared / "data")
    assert len(loaded) == rows and asked in loaded[0]["problem"]
    for row in loaded:
        for function in renio_eval.tested_functions(row["test"]):
            assert function in row["problem"] and function in row["solution"]


def test_rows_that_cannot_be_asked_or_graded_are_named(tmp_path):
    for text, message in (('{"question": "1 + 1?"}', "row 1: nothing in the column answer"),
                          ("[1]", "row 1: expected columns"),
                          ('{"question": " ", "answer": 2}', "row 1: nothing in the column question"), ("", "no rows")):
        (tmp_path / "amc23.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            renio_eval.load_benchmark("amc23", tmp_path)
    (tmp_path / "MbppPlus-OriginFmt-v0.2.0.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="can't be read"):
        renio_eval.load_benchmark("mbpp+", tmp_path)


@pytest.mark.parametrize("thinking", [True, False])
def test_aime_prompts_with_the_real_template(shared, thinking):
    tokenizer = load_tokenizer(str(shared / "data" / "qwen3-tokenizer"))
    for row in renio_eval.load_benchmark("aime24", shared / "data"):
        text = tokenizer.decode(renio.prompt_ids(tokenizer, "math", row, thinking))
        opening = f"<|im_start|>user\n{row['problem']}\n\nReason step by step and put the final answer in \\boxed{{}}."
        assert text == opening + "<|im_end|>\n<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n")


def test_an_unknown_benchmark_lists_the_known_ones():
    with pytest.raises(UserError, match="aime26: unknown; known are arith, aime24"):
        renio_eval.load_benchmark("aime26")


# --- the report -------------------------------------------------------------------------------------------------------

def tables(text):
    """The rows of every table of a Markdown text by their first cell, later tables after earlier ones."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            first, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
            rows.setdefault(first, []).append(cells)
    return rows


def test_the_report_shows_means_over_seeds_paired_differences_and_published_figures(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"seed{seed}" / "base", "base", seed, [1] * 20)
        write_run(tmp_path / f"seed{seed}" / "opd", "opd", seed, [[2] * 10 + [1] * 10, [2] * 20, [1] * 20][seed])
        write_run(tmp_path / f"seed{seed}" / "opd+renio", "opd+renio", seed, [2] * 20)
    renio_eval.main(["report", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    rows = tables(text)
    assert rows["base"][0] == ["3", "50.0 [50.0, 50.0]", "0.0", "36.89"]
    # opd: 75, 100 and 50 percent, an sd of 25 points over seeds, so 4.303 x 25 / sqrt(3) = 62.1; over problems 10 means
    # of 5/6 and 10 of 2/3, an sd of 8.55, so 1.96 x 8.55 / sqrt(20) = 3.7; both in squares 62.2. A score ends at 100
    assert rows["opd"][0] == ["3", "75.0 [12.8, 100.0]", "25.0", "40.37"]
    assert rows["OPD improves the base"][0] == [
        "opd − base", "+25.0 [-37.2, +87.2]: undecided at this scale", "+3.48"]
    assert rows["ReNIO improves OPD"][0][1].startswith("+25.0 [")
    assert "arith: 20 problems (checksum same), 2 answers each" in text and "training seeds 0, 1, 2" in text
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_show_their_best_beside_the_last(tmp_path):
    write_run(tmp_path / "base", "base", 0, [1] * 20)
    for step, right in ((10, 1), (20, 2), (30, 1)):
        write_run(tmp_path / "opd" / f"checkpoint-{step}", "opd", 0, [right] * 20)
    renio_eval.main(["report", str(tmp_path)])
    rows = tables((tmp_path / "report.md").read_text())
    assert rows["opd"][0][:4] == ["1", "50.0 [50.0, 50.0]", "", "100.0 of 3"]


def test_runs_on_different_problems_are_not_compared(tmp_path):
    write_run(tmp_path / "base", "base", 0, [1] * 20)
    write_run(tmp_path / "opd", "opd", 0, [1] * 20, problems="other")
    with pytest.raises(SystemExit, match="base and opd were scored on different problems"):
        renio_eval.main(["report", str(tmp_path)])


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no eval.json below it"):
        renio_eval.main(["report", str(tmp_path)])


def write_all_runs(folder, seeds=(0, 1, 2)):
    """Runs of every label of the report, with logs and rollouts; incorrect-only arms are better and longer."""
    rng = np.random.default_rng(0)
    labels = [label.replace("*", "16") for section in renio_eval.SECTIONS for label in section.labels]
    labels = dict.fromkeys([*labels, "my own"])
    for seed in seeds:
        for label in labels:
            better = 1.9 if "incorrect" in label else 1.0
            for step in (10, 20) if "correct" in label or "unfiltered" in label or label == "opd" else (None,):
                run = folder / f"seed{seed}" / label
                write_run(run / f"checkpoint-{step}" if step else run, label, seed,
                          rng.binomial(2, better / 2, 50).tolist(), decodings=("sampled", "greedy"),
                          tokens=10 + 10 * ("incorrect" in label) + seed % 2, markers=int(rng.integers(2)))
            row = dict(divergence=0.1, rollout_accuracy=0.5, key_token_share=0.1, weight_max=3.0,
                       effective_sample_size=20.0)
            (folder / f"seed{seed}" / label / "metrics.jsonl").write_text("".join(
                json.dumps(dict(row, step=step, seconds=0.5 + 0.01 * step,
                                weight_auc_wrong=None if step == 8 else 0.9 + 0.02 * (seed % 2))) + "\n"
                for step in range(1, 9)))
        for label in ("opd", "opsd"):
            with (folder / f"seed{seed}" / label / "rollouts.jsonl").open("w") as file:
                for _ in range(100):
                    right = bool(rng.integers(2))
                    weight = float(np.exp(rng.normal(0 if right else 1, 0.5)))
                    file.write(json.dumps(dict(
                        step=1, renio_weight=weight, right=right, truncated=False, teacher_entropy=1 / weight,
                        log_ratios=rng.normal(0, 1, 9).tolist())) + "\n")


def test_the_report_holds_every_table_and_figure(tmp_path):
    write_all_runs(tmp_path)
    renio_eval.main(["report", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    rows = tables(text)
    for section in renio_eval.SECTIONS:
        assert f"## {section.title}" in text
    for name in ("scores", "figure1", "figure1-matched", "figure3", "figure4", "figure5", "figure6", "weights"):
        assert f"({name}.png)" in text and (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    for claim, *_ in (claim for section in renio_eval.SECTIONS for claim in section.claims):
        for cell in rows[claim.replace("*", "16")][0][1:3]:  # sampled, greedy
            assert cell.partition(": ")[2] in ("supported", "undecided at this scale", "not supported: the opposite")
    # the planted effects
    for cell in rows["incorrect-only beats correct-only in OPD"][0][1:3]:
        assert cell.endswith("]: supported")
    assert rows["incorrect-only beats correct-only in OPD"][0][3] == "+2.60"
    assert rows["incorrect-only makes longer answers than correct-only in OPSD"][0][1] == (
        "+10.00 [+10.00, +10.00] tokens: supported")
    # AUCs of 0.9, 0.92, 0.9 a seed: 0.40667 +- 4.303 x 0.011547 / sqrt(3)
    assert rows["the weight ranks wrong rollouts above right ones in OPD"][0][:2] == [
        "AUC − 0.5 within a batch", "+0.407 [+0.378, +0.435]: supported"]
    assert "OPSD: rank correlation -1.00 over 300 rollouts" in text
    # the paper's short rollouts are ours with @16
    assert rows["opd@16"][0][-1] == "40.37" and [row[-1] for row in rows["opd"]][1] == "41.38"
    assert "## Other runs" in text and rows["my own"][0][0] == "3"


def test_the_weights_auc_of_one_seed_has_no_interval(tmp_path):
    write_all_runs(tmp_path, seeds=(0,))
    renio_eval.main(["report", str(tmp_path)])
    rows = tables((tmp_path / "report.md").read_text())
    for method in ("OPD", "OPSD"):
        assert rows[f"the weight ranks wrong rollouts above right ones in {method}"][0][1] == (
            "+0.400: undecided: one seed")


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


def test_one_seed_decides_nothing(tmp_path):
    write_run(tmp_path / "base", "base", 0, [0] * 20)
    write_run(tmp_path / "opd", "opd", 0, [2] * 20)
    renio_eval.main(["report", str(tmp_path)])
    assert tables((tmp_path / "report.md").read_text())["OPD improves the base"][0][1] == (
        "+100.0 [+100.0, +100.0]: undecided: one seed")


def test_verdicts_find_planted_effects_and_leave_nulls_undecided():
    rng = np.random.default_rng(3)

    def verdicts(effect):
        made = []
        for _ in range(300):
            seeds, problems = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.2, (1, 60))
            made.append(renio_eval.verdict(3, interval(effect + seeds + problems + rng.normal(0, 0.2, (3, 60)))))
        return made

    assert verdicts(0.3).count("supported") > 250
    assert verdicts(-0.3).count("not supported: the opposite") > 250
    assert verdicts(0.0).count("undecided at this scale") > 275


# --- the command ------------------------------------------------------------------------------------------------------

def test_reports_comparisons_and_verdicts_on_code_do_not_wait_for_torch(tmp_path):
    write_all_runs(tmp_path, seeds=(0,))
    files = [str(tmp_path / "seed0" / label / "eval.json") for label in ("base", "teacher")]
    row = dict(entry_point="f", prompt="def f(x):\n    '''Itself.'''\n", test="def check(f):\n    assert f(3) == 3\n")
    for command in (f"eval.main(['report', {str(tmp_path)!r}])", f"eval.main(['compare', *{files!r}])",
                    f"assert eval.grade_code({row!r}, 'return x').passed"):
        program = f"import eval, sys\n{command}\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, micro_model):
    words = [sys.executable, "eval.py", "--model", micro_model, "--limit", 40, "--n", 4, "--batch_size", 8,
             "--max_new_tokens", 20, "--output"]

    def start(name):
        return subprocess.Popen(list(map(str, [*words, tmp_path / name])), cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    assert start("whole.json").wait() == 0
    process, partial = start("cut.json"), tmp_path / "cut.json.partial"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut.json").exists()
    with partial.open("a") as file:
        file.write('{"key": "arith sampled 999", "answ')  # a line that the kill cut short
    assert start("cut.json").wait() == 0
    whole, cut = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "cut.json"))
    for result in whole["results"] + cut["results"]:
        del result["seconds"]
    assert whole == cut


def test_code_answers_are_scored_by_their_tests(tmp_path, micro_model, monkeypatch):
    rows = [dict(task_id="own/0", entry_point="f", prompt="def f(x):\n    '''Itself.'''\n",
                 canonical_solution="    return x\n", test="def check(candidate):\n    assert candidate(3) == 3\n")] * 2
    with gzip.open(tmp_path / renio_eval.BENCHMARKS["humaneval+"].file, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: "```python\ndef f(x):\n    return x\n```")
    renio_eval.main(["--model", str(micro_model), "--benchmarks", "humaneval+", "--data_dir", str(tmp_path), "--n", "2",
                     "--max_new_tokens", "3", "--output", str(tmp_path / "o.json")])
    [result] = json.loads((tmp_path / "o.json").read_text())["results"]
    assert (result["avg"], result["pass@2"], result["majority"], result["n"]) == (1.0, 1.0, None, 2)
    assert [a["reason"] for p in result["problems"] for a in p["answers"]] == ["passed"] * 4


def test_every_checkpoint_of_a_run_is_scored_once(tmp_path, micro_model, capsys):
    for step in (2, 10):
        shutil.copytree(micro_model, tmp_path / "run" / f"checkpoint-{step}")
    words = ["--checkpoints", str(tmp_path / "run"), "--limit", "2", "--n", "1", "--max_new_tokens", "3",
             "--label", "x"]
    renio_eval.main(words)
    assert capsys.readouterr().out.count("Avg@1") == 2
    for step in (2, 10):
        scored = json.loads((tmp_path / "run" / f"checkpoint-{step}" / "eval.json").read_text())
        assert (scored["label"], scored["step"]) == ("x", step)
    renio_eval.main(words)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="no checkpoint-N in it"):
        renio_eval.main(["--checkpoints", str(tmp_path)])


def test_a_checkpoint_is_scored_anew_only_for_other_flags_or_weights(tmp_path, micro_model, model, capsys):
    folder = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(micro_model, folder)
    words = ["--checkpoints", str(tmp_path / "run"), "--limit", "2", "--max_new_tokens", "3", "--label", "x"]

    def said(*more):
        renio_eval.main([*words, *more])
        return capsys.readouterr().out

    def weights():
        return json.loads((folder / "eval.json").read_text())["settings"]["weights"]

    assert "scored anew" not in said("--n", "1")
    before = weights()
    assert before["adapter"] is None and len(before["model"]) == 16
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    words[1] = str(moved)
    folder = tmp_path / "moved" / "checkpoint-2"
    assert said("--n", "1", "--batch_size", "3") == ""  # neither its place nor the batch changes what is scored
    assert f"{folder / 'eval.json'}: made with other n; scored anew\n" in said("--n", "2")
    assert said("--n", "2") == ""
    model.save_pretrained(folder)
    assert "made with other weights; scored anew" in said("--n", "2")
    assert weights()["model"] != before["model"] and said("--n", "2") == ""
    # the checksums that renio.py left are taken as they are
    (folder / "checksums.json").write_text(json.dumps({"model.safetensors": "of the run"}))
    assert "made with other weights" in said("--n", "2")


def test_a_model_of_the_hub_has_no_checksum(tmp_path):
    assert renio_eval.weights_checksum(tmp_path / "org" / "name") is None


@pytest.mark.parametrize("words, label", [
    ("--model runs/opd/final", "opd"), ("--model org/name", "name"), ("--model org/name --adapter runs/opd+renio/final",
                                                                      "opd+renio"), ("--model x --label mine", "mine")])
def test_a_model_is_labelled_by_its_run(words, label):
    assert renio_eval.parse_args([*words.split(), "--output", "o"]).label == label


def test_batches_are_bounded_by_memory(tmp_path, micro_model, monkeypatch, capsys):
    monkeypatch.setattr(renio, "device_memory", lambda device: 0.0045)
    renio_eval.main(["--model", str(micro_model), "--limit", "6", "--n", "1", "--max_new_tokens", "30", "--output",
                     str(tmp_path / "o.json")])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "o.json").read_text())["settings"]["batch_size"]
    assert 1 <= rows < 256 and f"--batch_size 256: {rows} instead" in said


def test_compare_pairs_two_evaluations_by_problem(tmp_path, capsys):
    write_run(tmp_path / "a", "opd", 0, [0, 1, 2, 1] * 5)
    write_run(tmp_path / "b", "opd+renio", 0, [1, 2, 2, 2] * 5)
    write_run(tmp_path / "c", "other", 0, [1] * 20, problems="other")
    files = {name: str(tmp_path / name / "eval.json") for name in "abc"}
    renio_eval.main(["compare", files["a"], files["b"]])
    assert re.fullmatch(r"arith sampled: opd\+renio 87.5 − opd 50.0 = \+37.5 \[\+2\d.\d, \+4\d.\d\] points, "
                        r"p = 0.000\d, 20 problems\n", capsys.readouterr().out)
    (tmp_path / "d.json").write_text("{}")
    for words, message in (([files["a"], files["c"]], "different problems of arith"),
                           ([files["a"]], "compare takes two"),
                           ([files["a"], str(tmp_path / "no.json")], "not a file that eval.py wrote"),
                           ([files["a"], str(tmp_path / "d.json")], "not a file that eval.py wrote")):
        with pytest.raises(SystemExit, match=message):
            renio_eval.main(["compare", *words])


def test_an_interrupted_evaluation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, micro_model, monkeypatch):
    words = ["--model", str(micro_model), "--limit", "12", "--n", "2", "--batch_size", "8", "--max_new_tokens", "10",
             "--decoding", "sampled", "greedy"]
    renio_eval.main([*words, "--output", str(tmp_path / "whole.json")])
    real, calls = renio.sample, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(renio, "sample", dying)
    with pytest.raises(SystemExit, match="interrupted; batches that were done are kept"):
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
    ("--model x --output o --n 0", r"--n 0: must lie in \[1, 99999\]"),
    ("--model x --output o --top_p nan", r"--top_p nan: must lie in \[1e-06, 1\]"),
    ("--model x --output o --limit 0", r"--limit 0: must lie in \[1, 2147483647\]"),
    ("--model x --output o --temperature 0", "greedy: --decoding greedy"),
    ("--model nowhere --output {0}/o.json", "no tokenizer in nowhere"),
    ("--model x --output {0}/o.json --benchmarks aime24 --data_dir {0}", "aime_2024.jsonl: no such file"),
    ("--model x --output {0}/o.json --benchmarks amc23 --data_dir {0} --privileged", "amc23 has no worked solutions"),
    ("--model {1} --output {0}/o.json --adapter {0}", "no adapter_config.json in it"),
    ("--model {1} --output {0}/amc23.jsonl/o.json --limit 1", "File exists: .*amc23.jsonl"),
    ("--model {1}", "need --model and --output, or --checkpoints"),
    ("--checkpoints {0} --output {0}/o.json", "leave out --output and --adapter"),
    ("--checkpoints {0}", "these are adapters; name their --model"),
])
def test_mistakes_end_with_one_line(tmp_path, micro_model, words, message):
    (tmp_path / "amc23.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit, match=message) as error:
        renio_eval.main(words.format(tmp_path, micro_model).split())
    assert "\n" not in str(error.value)
