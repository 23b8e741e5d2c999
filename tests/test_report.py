# SPDX-License-Identifier: MIT
"""Scores as one DataFrame, their statistics, comparisons, and the report."""

import itertools
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import eval as renio_eval
import renio

BASE, PLAIN, RENIO = [0.2, 0.25, 0.3, 0.2], [0.5, 0.6, 0.7, 0.6], [0.45, 0.58, 0.6, 0.57]


def write_run(folder, label, seed, correct, steps=(None,), benchmark="arith", problems="same", flags=None, **settings):
    """A run whose score is the same share of 20 problems correct in both decodings, at each of the steps."""
    run = folder / f"seed{seed}" / label
    run.mkdir(parents=True)
    per_problem = [1.0] * round(20 * correct) + [0.0] * (20 - round(20 * correct))
    result = dict(benchmark=benchmark, n=1, avg=float(np.mean(per_problem)), per_problem=per_problem, length=9.0)
    result |= dict(truncation_rate=0.0, format_rate=1.0, markers=0.0, seconds=6.0)
    results = [result | dict(step=step, decoding=how) for step in steps for how in ("sampled", "greedy")]
    settings = dict(model="m", max_new_tokens=64, checksums={benchmark: problems}) | settings
    text = json.dumps(dict(label=label, train_seed=seed, settings=settings, results=results))
    (run / "eval.json").write_text(text)
    if flags:
        (run / "config.json").write_text(json.dumps(dict(flags=flags)))
    return run


def write_runs(folder, seeds, **scores):
    for label, values in scores.items():
        for seed, value in zip(seeds, values, strict=False):
            write_run(folder, label.replace("_", "+"), seed, value)


def rollout(step, correct, weight=1.0, **values):
    row = dict(step=step, problem="a 1+2", completion=[1, 2], correct=correct, truncated=False, renio_weight=weight)
    row |= dict(key_tokens=0, log_ratios=[0.0, 0.0], student_logprob=-1.0, teacher_logprob=-1.0, teacher_entropy=0.5)
    return row | values


def arith_completions(results):
    """Answers to "a 1+2 b 3+4" as token ids, with each of these results of the second operation."""
    texts = [rf"\boxed{{ a 1+2 3 b 3+4 {result} }}" for result in results]
    return [renio.arith_tokenizer()(text)["input_ids"] + [1] for text in texts]


def section(text, title):
    return text.split(f"## {title}")[1].split("\n## ")[0]


def test_an_interval_over_seeds_is_students():
    low, high, p = renio_eval.interval(np.array([1.0, 2.0, 3.0]))
    half = 4.3026527 / math.sqrt(3)  # the 97.5 % quantile of 2 degrees of freedom, from the tables
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    assert p == pytest.approx(0.0741799, abs=1e-6)


def test_there_is_no_interval_over_two_seeds_nor_over_equal_values():
    assert renio_eval.interval(np.array([1.0, 2.0])) is None
    assert renio_eval.interval(np.array([1.0, 1.0, 1.0])) is None
    assert renio_eval.cell(np.array([6.41, -0.4])) == "+6.4, −0.4"
    assert renio_eval.cell(np.array([2.0])) == "+2.0" and renio_eval.cell(np.array([])) == "–"


@pytest.mark.parametrize(
    "values, verdict",
    [([1.0, 1.1, 1.2], "holds"), ([-1.0, -1.1, -1.2], "opposite"), ([-1.0, 0.5, 1.0], "no effect"),
     ([5.0, 5.1], "two seeds"), ([5.0], "one seed"), ([], "not run"), ([2.0, 2.0, 2.0], "no spread")],
)  # fmt: skip
def test_a_verdict_needs_three_seeds_and_an_interval_without_zero(values, verdict):
    assert renio_eval.verdict(np.array(values)) == verdict


def test_a_difference_is_paired_by_seed(tmp_path):
    write_runs(tmp_path, [0, 1, 2], opd=[0.5, 0.6, 0.9])
    write_runs(tmp_path, [2, 0, 7], opd_renio=[0.95, 0.6, 0.1])
    table = renio_eval.by_seed(renio_eval.read_scores(tmp_path), "sampled")
    assert renio_eval.difference(table, "opd+renio", "opd").tolist() == pytest.approx([10.0, 5.0])
    assert len(renio_eval.difference(table, "opd+renio", "grpo")) == 0


def test_holm_counts_the_claims_that_are_tested_at_temperature_1_alone(tmp_path):
    """Two claims with p-values of 0.03 and 0.04: alone either would stand, together neither does (0.025 is needed)."""
    gains = {0.03: [5.0, 10.0, 9.7], 0.04: [5.0, 10.0, 11.3]}
    found = {p: renio_eval.interval(np.array(values))[2] for p, values in gains.items()}
    table = pd.DataFrame({"base": [0.0] * 3, "opd": gains[0.03], "opsd": gains[0.04]})
    scores = pd.DataFrame(dict(label=["opd"], seed=[0], task=["math"], prefix_tokens=[50]))
    assert all(0.025 < p < 0.05 for p in found.values())
    both = renio_eval.scorecard(scores, {"sampled": table, "greedy": table}, "micro")
    one = renio_eval.scorecard(scores, {"sampled": table.drop(columns="opsd"), "greedy": table}, "micro")
    assert len(both) == 16 and [claim["verdict"] for claim in both].count("holds") == 2
    assert not any(claim["stands"] for claim in both)
    assert [claim["claim"] for claim in one if claim["stands"]] == ["OPD beats the base (Table 2)"]


def test_a_run_is_scored_at_its_last_step_and_keeps_the_others(tmp_path):
    run = write_run(tmp_path, "opd", 0, 0.5, steps=(10, 20))
    data = json.loads((run / "eval.json").read_text())
    data["results"][0]["avg"] = 0.9  # step 10, sampled
    (run / "eval.json").write_text(json.dumps(data))
    scores = renio_eval.read_scores(tmp_path)
    assert scores.step.tolist() == [10, 10, 20, 20] and scores["last"].tolist() == [False, False, True, True]
    assert renio_eval.by_seed(scores, "sampled").loc[0, "opd"] == 50


def test_the_average_over_benchmarks_is_the_score_and_code_stands_apart(tmp_path):
    for benchmark, correct in (("aime24", 0.5), ("aime25", 0.25), ("humaneval+", 0.9)):
        run = write_run(tmp_path / benchmark, "opd", 0, correct, benchmark=benchmark)
        run.parent.parent.rename(tmp_path / f"x-{benchmark}")
    scores = renio_eval.read_scores(tmp_path)
    assert renio_eval.by_seed(scores, "sampled").loc[0, "opd"] == pytest.approx((50 + 25) / 2)
    assert renio_eval.by_seed(scores, "sampled", "code").loc[0, "opd"] == pytest.approx(90)


def test_a_model_that_was_scored_once_stands_beside_every_seed(tmp_path):
    write_runs(tmp_path, [0, 1, 2], opd=[0.5, 0.6, 0.7], base=[0.4])
    table = renio_eval.by_seed(renio_eval.read_scores(tmp_path), "sampled")
    assert renio_eval.difference(table, "opd", "base").tolist() == pytest.approx([10, 20, 30])


def test_a_foreign_file_and_a_second_run_of_a_seed_are_named(tmp_path):
    run = write_run(tmp_path, "opd", 0, 0.5)
    write_run(tmp_path / "copy", "opd", 0, 0.5)
    with pytest.raises(renio.UserError, match="two runs of one seed are called opd"):
        renio_eval.read_scores(tmp_path)
    (run / "eval.json").write_text("{}")
    with pytest.raises(renio.UserError, match="eval.json: it does not hold scores"):
        renio_eval.read_scores(tmp_path)


def test_auc_compares_within_a_step_and_counts_ties_half(tmp_path):
    """Step 1: the incorrect rollout's weight 3 exceeds 1 and ties with 3: 0.75. Step 2: 1 is below 2: 0."""
    run = write_run(tmp_path, "opd", 0, 0.5)
    rows = [rollout(1, False, 3.0, student_logprob=-9.0), rollout(1, True, 1.0), rollout(1, True, 3.0)]
    rows += [rollout(2, False, 1.0, student_logprob=-9.0), rollout(2, True, 2.0), rollout(3, True, 1.0)]
    rows += [rollout(1, None, 99.0)]  # was cut before an answer
    (run / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    row = renio_eval.read_scores(tmp_path).iloc[0]
    assert row.auc_weight == pytest.approx((0.75 + 0) / 2)
    assert row.auc_student == 1.0 and row.auc_teacher == 0.5  # incorrect ones are unlikely to the student here
    assert row.incorrect_rollouts == pytest.approx(100 * 2 / 6)
    assert row.incorrect_weight == pytest.approx(100 * (3 / 7 + 1 / 3) / 3)  # Eq. 8: each batch's weights have mean 1


def made_report(folder):
    renio_eval.report(folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def test_rows_of_a_table_share_their_seeds(tmp_path):
    write_runs(tmp_path, range(4), base=BASE, opd=[0.5, 0.6, 0.7, 1.0], opd_renio=[0.6, 0.6, 0.7, 0.9])
    write_runs(tmp_path, range(3), **{"opd_renio-noclip": [0.3, 0.3, 0.4]})
    table = section(made_report(tmp_path), "Table 4")
    cells = [line.split("|") for line in table.splitlines() if line.startswith("|opd")]
    means = {cell[1]: float(cell[4]) for cell in cells}
    assert means == {"opd+renio": 63.3, "opd+renio-noclip": 33.3, "opd": 60.0}
    assert next(cell for cell in cells if cell[1] == "opd+renio-noclip")[5] == "−30.0"  # no spread
    assert "Seeds that all rows have: 0, 1, 2." in table and "opd+renio-nonorm" in table.split("Not run:")[1]


def test_one_seed_gives_no_verdict_and_the_command_for_more(tmp_path, capsys):
    write_runs(tmp_path, [0], base=[0.2], opd=[0.5], opd_renio=[0.6])
    run = tmp_path / "seed0" / "opd"
    (run / "final").mkdir()
    (run / "final" / "tokenizer.json").write_text("{}")
    (run / "rollouts.jsonl").write_text(json.dumps(rollout(1, True)))
    text = made_report(tmp_path)
    assert text.count("no verdict") == 1 and 'SEEDS="0 1 2" bash run_all.sh main' in text
    assert not re.search(r"\|(holds|opposite|no effect|one seed)\|", text) and "+10.0 in OPD" in text
    printed = capsys.readouterr().out.splitlines()
    assert printed[3].split() == ["opd+renio", "60.0", "60.0"]
    assert printed[4:] == [
        *(f"ReNIO − plain in points, {name}: +10.0 in OPD" for name in ("temperature 1", "greedy")),
        f"wrote {tmp_path / 'report.md'}",
        'one seed: no verdict; SEEDS="0 1 2" gives intervals',
        f"python eval.py show {run}",
    ]


def test_claims_without_runs_say_so_and_name_their_target(tmp_path):
    write_runs(tmp_path, range(3), base=BASE, opd=PLAIN, opd_renio=RENIO)
    text = made_report(tmp_path)
    assert "Not run: `bash run_all.sh table8`." in text
    assert re.search(r"\|not run\|the clip helps \(Table 4\)\|\+1\.95\|–\|–\|table4\|", text)
    assert re.search(r"\|holds\|OPD beats the base \(Table 2\)\|\+3\.48\|\*\*\+3[56]\.\d \[", text)


def test_settings_that_a_row_does_not_share_stand_at_the_row(tmp_path):
    write_runs(tmp_path, range(2), base=BASE)
    for label, clip in (("opd", 3.0), ("opsd", 3.0), ("opd+renio", 1.0), ("opd+renio-clip2.0", 2.0)):
        for seed in range(2):
            write_run(tmp_path, label, seed, 0.5, flags=dict(method="opd", log_ratio_clip=clip, seed=seed))
    text = made_report(tmp_path)
    assert "|opd+renio (log_ratio_clip 1.0, seeds 0, 1)|" in text and "|opd|" in text
    assert "|opd+renio-clip2.0|" in (tmp_path / "tables.md").read_text()  # its label says it


def test_published_files_give_the_same_report_and_figures_as_the_runs(tmp_path):
    """Published are scores.csv and, of seed 0, metrics.jsonl and rollouts.jsonl of the main runs; no eval.json."""
    write_runs(tmp_path / "a", range(3), base=BASE, opd=PLAIN, opd_renio=RENIO, opsd=PLAIN, **{"opd@16": RENIO})
    run, words = tmp_path / "a" / "seed0" / "opd", "a 1+2 b 3+4"
    completions = arith_completions("76")
    rows = [rollout(1, i == 0, 1.0 + i, problem=words, completion=completions[i], log_ratios=[0.9] * 9) for i in (0, 1)]
    (run / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = made_report(tmp_path / "a")
    published = tmp_path / "b" / "a"
    (published / "seed0").mkdir(parents=True)
    (tmp_path / "a" / "scores.csv").rename(published / "scores.csv")
    run.rename(published / "seed0" / "opd")
    (published / "seed0" / "opd" / "eval.json").unlink()
    assert made_report(published) == text and "![rollouts]" in text and "## How well do simpler scores" in text


def test_a_figure_is_drawn_where_its_runs_are_and_only_there(tmp_path):
    words = "a 1+2 b 3+4"
    completions = arith_completions("776")
    weights = zip((1.0, 2.0, 20.0), completions, strict=True)
    rows = [rollout(1, w < 2, w, problem=words, completion=c, log_ratios=[w] * 9) for w, c in weights]
    kinds = [f"-{kind}{tail}" for kind in ("correct", "incorrect") for tail in ("", "-mixed")]
    tails = ["", "+renio", "+correctness", "+renio-clip2.0", "+renio-threshold0.6", *kinds]
    for label, seed in itertools.product(["base", *(m + tail for m in ("opd", "opsd") for tail in tails)], range(2)):
        run = write_run(tmp_path / "all", label, seed, 0.5, steps=(None,) if label == "base" else (10, 20))
        (run / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_runs(tmp_path / "few", range(2), opd=PLAIN, opd_renio=RENIO)
    shutil.copytree(tmp_path / "all", tmp_path / "opd")  # as in a paper's run: one method, no greedy scores
    for path in tmp_path.glob("opd/seed*/opsd*/*"):
        path.unlink()
    for path in tmp_path.glob("opd/seed*/*/eval.json"):
        run = json.loads(path.read_text())
        run["results"] = [result for result in run["results"] if result["decoding"] == "sampled"]
        path.write_text(json.dumps(run))
    shutil.rmtree(tmp_path / "opd" / "seed0" / "opd+renio")
    for name, drawn in {"all": set(renio_eval.FIGURES), "opd": set(renio_eval.FIGURES), "few": {"scores"}}.items():
        text = made_report(tmp_path / name)
        assert {path.stem for path in (tmp_path / name).glob("*.png")} == drawn == set(re.findall(r"!\[(\w+)\]", text))


def test_one_model_that_was_scored_at_several_seeds_has_no_interval(tmp_path):
    write_runs(tmp_path, range(3), opd=PLAIN)
    for seed, correct in enumerate((0.2, 0.25, 0.3)):
        write_run(tmp_path, "base", seed, correct, model="results/small/base/final")
        write_run(tmp_path, "teacher", seed, correct, model=f"results/seed{seed}/teacher/final")
    rows = dict(row[:2] for row in renio_eval.score_rows(renio_eval.read_scores(tmp_path), ["base", "teacher"]))
    assert rows["base"] == "25.0" and rows["teacher"].startswith("25.0 [")


def test_each_student_has_a_report_of_its_own_with_its_published_scores(tmp_path):
    for student in ("Qwen3-1.7B", "Qwen3-8B"):
        write_runs(tmp_path / student, range(3), base=BASE, opsd=PLAIN)
    renio_eval.report(tmp_path)
    assert "|base|63.52|" in (tmp_path / "Qwen3-8B" / "report.md").read_text()
    assert "|base|36.89|" in (tmp_path / "Qwen3-1.7B" / "report.md").read_text()


def test_published_scores_are_those_of_the_paper(shared):
    tables = json.loads((shared / "paper" / "tables.json").read_text())
    for table in ("table1", "table2"):
        for student, rows in ((k.split(" <-")[0], v) for k, v in tables[table].items() if isinstance(v, dict)):
            for label, row in rows.items():
                name = student.replace("R1", "DeepSeek-R1")
                ours = [renio_eval.PUBLISHED[name, task][label] for task in ("math", "code")]
                assert ours == [row[3], row[6]]
    assert renio_eval.PUBLISHED["Qwen3-1.7B", "math"]["opd+renio-nonorm"] == 39.54  # Table 4


def test_compare_pairs_two_files_by_problem_at_their_last_step(tmp_path, capsys):
    first = write_run(tmp_path, "opd", 0, 0.5, steps=(10, 20)) / "eval.json"
    text = first.read_text()
    second = write_run(tmp_path, "opd+renio", 0, 0.45) / "eval.json"
    earlier = json.loads(text)
    for result in earlier["results"][:2]:
        result["per_problem"], result["avg"] = [0.0] * 20, 0.0
    earlier["results"].reverse()  # the last step counts, wherever it stands
    first.write_text(json.dumps(earlier))
    renio_eval.main(["compare", str(first), str(second)])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(",")[1].split(":")[0] for line in lines) == [" greedy", " temperature 1"]
    assert all("opd+renio 45.0 − opd 50.0 = −5.0 [−15.0, +0.0] points" in line for line in lines)


def test_compare_refuses_other_problems_and_names_other_settings(tmp_path, capsys):
    files = [write_run(tmp_path, "a", 0, 0.5), write_run(tmp_path, "b", 0, 0.5, problems="others")]
    files.append(write_run(tmp_path, "c", 0, 0.5, max_new_tokens=99))
    files = [str(folder / "eval.json") for folder in files]
    with pytest.raises(renio.UserError, match="different problems of arith"):
        renio_eval.compare(*files[:2])
    renio_eval.compare(*files[::2])
    assert "max_new_tokens 64 | max_new_tokens 99" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="compare A.json B.json"):
        renio_eval.main(["compare", *files])
