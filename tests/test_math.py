# SPDX-License-Identifier: MIT
"""The math grader: which box is the answer, what counts as equal, real gold answers, answers that would hang it."""

import concurrent.futures
import os
import random
import re
import signal
import time

import pytest

import eval as renio_eval
import renio
from renio import answer_verdict, extract_boxed, grade_math, math_verdict

MATH_SETS = dict(aime24=30, aime25=30, hmmt25=30, amc23=40, math500=500, minerva=272, gsm8k=1319)  # rows of each
ALL = os.environ.get("GOLDS") == "all"  # a minute or two; without it a sample of each set
HANGS = "(x+1)^{100000}"


# --- boxes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, boxed", [
    (r"so \boxed{5}", "5"),
    (r"\boxed{1} or rather \boxed{2}", "2"),
    (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\{1}", r"\{1"),
    (r"\boxed{3} and an open \boxed{4", "3"),
    (r"\boxed{3 and \boxed{4}", "4"),
    (r"\boxed{1 + \boxed{2}}", "2"),
    (r"} \boxed{{7}} }", "{7}"),
    (r"\\boxed{8}", "8"),
    (r"\boxed {7}", "7"),
    (r"\boxed 42", "42"),
    (r"so $\boxed 42$, as \boxed{asked", "42"),
    (r"\boxed -1.5.", "-1.5"),
    (r"\boxed{5} is what the \boxed command holds", "5"),
    (r"\boxed{5}, not \boxed 6", "6"),
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


# --- what is equal ----------------------------------------------------------------------------------------------------

EQUAL = [
    # numbers
    ("5", "5"), ("5.0", "5"), ("012", "12"), ("+3", "3"), ("-0", "0"), (".5", "0.5"), ("70.", "70"), ("$70$", "70"),
    (r"\(5\)", "5"), (r"\$5", "5"), (r"50\%", "50"), (r"50\%", "0.5"), ("1,234", "1234"), (r"10,\!080", "10080"),
    ("11,111,111,100", r"11,\! 111,\! 111,\! 100"), ("1 234", "1234"), ("12 000", "12000"), (r"12\,000", "12000"),
    (r"12\ 000", "12000"), ("12~000", "12000"), ("1 234 567.5", "1234567.5"), ("0.333333", "1/3"),
    ("0.3333333", "0.333333"), ("52_8", "52_{8}"), ("52", "52_8"), ("2^{10}", "1024"), ("1,000,000", "10^6"),
    # fractions, roots, functions
    (r"\frac{1}{2}", "0.5"), (r"\dfrac12", r"\frac{1}{2}"), (r"\frac{2}{4}", r"\frac{1}{2}"), ("1 1/2", r"\frac{3}{2}"),
    (r"3\frac12", "7/2"), ("3 1/2", "7/2"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"\sqrt(10)", r"\sqrt{10}"),
    (r"\binom{5}{2}", "10"), (r"\log_2 8", "3"), (r"\sin(\pi)", "0"), (r"\sqrt{3+2\sqrt{2}}-1-\sqrt{2}", "0"),
    # powers of ten, also tiny ones
    ("4.5e33", r"4.5 \times 10^{33}"), (r"4.5 \cdot 10^{33}", "4.5e33"), ("1e3", "1000"),
    (r"2.88 \times 10^{-19}", "2.88e-19"), ("(1e3, 2e-3)", "(1000, 0.002)"), (r"\frac{672}{10^7}", ".0000672"),
    (r"\frac{288}{10^{21}}", "2.88e-19"), (r"\pi \cdot 10^{-20}", r"10^{-20}\pi"),
    # formulas and equations
    ("x^2+2x+1", "(x+1)^2"), (r"\frac{\pi}{4}", r"\pi/4"), ("x=5", "5"), ("5=x", "5"), ("5", "x=5"), ("5=x", "x=5"),
    ("2x+3", "y=2x+3"), ("x = 2 or x = 3", "2,3"), (r"\gamma", "γ"),
    # sets, points, words, units
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"), (r"\{1,2\}", r"\{2,1\}"), (r"\text{east}", r"\text{east}"),
    ("C", r"\text{(C)}"), (r"5 \text{ cm}", "5"), ("90", r"90^\circ"), ("864", r"864 \mbox{ inches}^2"),
    # subscripts
    ("x_1", "x_{1}"), ("E_1, E_2", "E_{1},E_{2}"), (r"T_{\max}", r"T_{\text{max}}"),
    (r"v_\text{esc}", r"v_{\text{esc}}"), (r"\frac{E_1 + 2E_2}{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),
    # signs for which LaTeX has commands
    ("−3", "-3"), ("–3", "-3"), ("½", r"\frac{1}{2}"), ("3½", "7/2"), ("√2", r"\sqrt{2}"), ("√12", r"2\sqrt{3}"),
    ("2√(3)", r"2\sqrt{3}"), ("√x", r"\sqrt{x}"), ("90°", r"90^\circ"), ("∞", r"\infty"),
    # Python's
    ("-1/3", "-1./3"), ("-0.333333", "-1./3"), ("-1.5", "-3./2"), (r"\arcsin(10/13)", "np.arcsin(10/13)"),
    (r"\arcsin\frac{10}{13}", "np.arcsin(10/13)"), ("3**4", "81"), ("np.sqrt(2)", r"\sqrt{2}"),
    ("np.log(2)", r"\ln 2"), ("(1., 2.)", "(1,2)"),
]

DIFFERENT = [
    ("5", "6"), ("-3", "3"), ("1,2", "12"), ("1 2", "12"), ("1 2 8 4", "1284"), ("12 00", "1200"), ("1 1/2", "11/2"),
    (r"\frac{1}{3}", "0.5"), ("0.333", "1/3"), (r"2\sqrt{3}", r"3\sqrt{2}"), ("4.5e33", "4.5e32"), ("0", "2.88e-19"),
    (r"2.89 \times 10^{-19}", "2.88e-19"), (r"\frac{289}{10^{21}}", "2.88e-19"), ("42", "52_8"), ("x^2+1", "(x+1)^2"),
    ("(1,2)", "(2,1)"), ("[0,1]", "(0,1)"), (r"\pi", "3.14"), ("A", "B"), ("x=6", "5"), (r"\infty", "5"),
    (r"\text{west}", r"\text{east}"), ("x_1", "x_2"), ("x_0", "x"), ("E_2", "E_1"), (r"5 \ne x", "5"), ("90°", "91"),
    (r"\frac{2}{3} E_1+\frac{1}{3} E_2", r"\frac{1}{3} E_1+\frac{2}{3} E_2"), ("10/13", "np.arcsin(10/13)"),
    ("7.6", "7.6 Z"), ("123456789012345678901234567891", "123456789012345678901234567890"),
    ("", "5"), ("(", "5"), ("}{", "5"), ("(.)", "5"), ("1.2.3", "1.2"), ("no", "5"),
]

MISREAD = [  # which math-verify calls equal: it loses or misreads what makes them differ
    ("52_8", "52_9"), (r"864 \mbox{ inches}^3", r"864 \mbox{ inches}^2"), (r"T_{\text{max}}", r"T_{\text{min}}"),
    (r"T_\text{max}", r"T_\text{min}"), ("I_1", "I_2"), ("0.577216", r"\gamma"), ("1 1/2", "1"), ("-1", "-1./3"),
    (r"a(\gamma^2-7)\theta", r"a(\gamma^2-1)\theta"), ("2", r"\omega(v+1 / 2)-E_{0}^{2}"),
    ("0.0000673", ".0000672"), (r"6.73 \times 10^{-5}", ".0000672"), (r"2 \cdot 10^{-20}\pi", r"10^{-20}\pi"),
    ("e^{-50}", "e^{-51}"),
]


@pytest.mark.parametrize("answer, gold, equal", [(*pair, True) for pair in EQUAL] + [
    (*pair, False) for pair in DIFFERENT + MISREAD])
def test_answers_are_compared_as_mathematics(answer, gold, equal):
    assert grade_math(f"so \\boxed{{{answer}}}", gold) is equal


def test_a_verdict_says_why():
    texts = r"\boxed{x=5}", r"\boxed{x=6}", "5", r"\boxed{}"
    assert [math_verdict(text, "5") for text in texts] == ["equal", "different", "no box", "unparsable"]
    assert math_verdict(r"\boxed{5}", r"so \boxed{5}") == "equal"


# --- real golds -------------------------------------------------------------------------------------------------------

def golds(shared, name, most):
    """The set's different gold answers, without GOLDS=all at most so many, formulas as likely as numbers."""
    answers = sorted({row["answer"] for row in renio_eval.load_benchmark(name, shared / "data")})
    formulas = [answer for answer in answers if not answer.lstrip("-").isdigit()]
    numbers = [answer for answer in answers if answer.lstrip("-").isdigit()]
    if ALL:
        return answers
    rng = random.Random(name)
    return [gold for kind in (formulas, numbers) for gold in rng.sample(kind, min(len(kind), most // 2))]


@pytest.mark.parametrize("name", MATH_SETS)
def test_every_gold_can_be_read_and_is_itself(shared, name):
    assert len(renio_eval.load_benchmark(name, shared / "data")) == MATH_SETS[name]
    for gold in golds(shared, name, most=40):
        side = renio._as_latex(gold)
        assert renio._plain_number(side) is not None or renio._ask_worker(side, side, 10.0) is True, gold


@pytest.mark.parametrize("name", MATH_SETS)
def test_a_gold_with_another_digit_is_never_equal(shared, name):
    rng, tried = random.Random(name), 0
    for gold in golds(shared, name, most=24):
        places = [match.start() for match in re.finditer(r"\d", gold)]
        for i in places if ALL else rng.sample(places, min(1, len(places))):
            perturbed = gold[:i] + rng.choice([digit for digit in "0123456789" if digit != gold[i]]) + gold[i + 1 :]
            assert answer_verdict(perturbed, gold) != "equal", perturbed
            tried += 1
    assert tried >= 12


@pytest.mark.parametrize("name", ["hmmt25", "math500", "minerva"])
def test_a_formula_is_never_equal_to_a_number_in_it(shared, name):
    formulas = [gold for gold in golds(shared, name, most=40) if re.search("[a-zA-Z]", gold)
                and not re.search(r"^\d*\\?[.\d]*( ?\\(text|mbox)|\^\\circ|e)|^\w=\d+$|_\{?\d\}?$", gold)]
    for gold in formulas:
        for number in sorted({*re.findall(r"\d+\.?\d*", gold), "0", "1"}):
            assert answer_verdict(number, gold) != "equal", (number, gold)
    assert formulas


# --- answers that would hang or crash ---------------------------------------------------------------------------------

@pytest.mark.parametrize("answer", [
    "9^{9^{9}}", "10^{10^{10}}!", "(" * 400 + ")" * 400, r"\frac{1}{" * 200, "x" * 900, "9" * 5000, "1e999999",
    "1e9999", "\x00", "\ud800", "\\", "{" * 10**6 + "}" * 10**6, "5 " * 10**6])
def test_no_answer_hangs_or_crashes_the_grader(answer):
    assert grade_math(f"\\boxed{{{answer}}}", "5", timeout=1.0) is False
    assert grade_math(r"\boxed{\frac{10}{2}}", "5") is True  # and the next one is graded as ever


@pytest.mark.parametrize("text", [r"\boxed{" * 10**5, r"\boxed" * 10**5, "<think>" * 10**5, r"\boxed" + " " * 10**6,
                                  r"\boxed " + "-" * 10**6, "}" * 10**6])
def test_megabytes_without_an_answer_are_read_in_seconds(text):
    began = time.monotonic()
    assert math_verdict(text, "5") == "no box"
    assert time.monotonic() - began < 30


def test_the_limit_after_a_killed_answer_is_the_next_ones_own():
    for _ in range(2):  # the second finds a worker that has only just been started
        began = time.monotonic()
        assert math_verdict(f"\\boxed{{{HANGS}}}", "5", timeout=1.0) == "unparsable"
        assert 1.0 <= time.monotonic() - began < 30
    began = time.monotonic()
    assert math_verdict(r"\boxed{\frac{10}{2}}", "5", timeout=20.0) == "equal"
    assert time.monotonic() - began < 20


def test_a_worker_that_waited_or_died_is_no_matter():
    assert answer_verdict(r"\frac{10}{2}", "5") == "equal"
    renio._worker.kill()
    renio._worker.wait()
    assert answer_verdict(r"\frac{10}{2}", "5") == "equal"


def test_an_interruption_leaves_no_reply_for_the_next_answer():
    def interrupt(*_):
        raise KeyboardInterrupt

    assert answer_verdict(r"\frac{10}{2}", "5") == "equal"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            answer_verdict(HANGS, "5", timeout=1.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert answer_verdict(r"\frac{10}{2}", "5") == "equal"


def test_threads_get_their_own_answers():
    pairs = [(rf"\frac{{{2 * i}}}{{2}}", str(i + i % 2)) for i in range(2, 22)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda pair: answer_verdict(*pair), pairs))
    assert verdicts == ["equal", "different"] * 10


def test_without_math_verify_it_is_named(monkeypatch):
    monkeypatch.setattr(renio, "_worker", None)
    monkeypatch.setattr(renio, "find_spec", lambda name: None)
    assert answer_verdict("5.0", "5") == "equal"
    with pytest.raises(renio.UserError, match="pip install math-verify"):
        answer_verdict(r"\frac{10}{2}", "5")
