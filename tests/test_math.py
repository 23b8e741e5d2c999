# SPDX-License-Identifier: MIT
"""The math grader: which box is the answer, what counts as equal, real gold answers, answers that would hang it."""

import random
import re
import sys
import time

import pytest
from conftest import is_equal

import eval as renio_eval
from renio import UserError, answer_verdict, extract_boxed, math_verdict

BOXES = r"""
\boxed{1} or rather \boxed{2} -> 2   \boxed{\frac{1}{\sqrt{2}}}. -> \frac{1}{\sqrt{2}}   \boxed{\{1, 2\}} -> \{1, 2\}
\boxed{\{1} -> \{1   \boxed{3} and an open \boxed{4 -> 3   \boxed{3 and \boxed{4} -> 4   \boxed{1 + \boxed{2}} -> 2
} \boxed{{7}} } -> {7}   \\boxed{8} -> 8   \boxed {7} -> 7   \boxed 42 -> 42   so $\boxed 42$, as \boxed{asked -> 42
\boxed -1.5. -> -1.5   \boxed{5} is what the \boxed command holds -> 5   \boxed{5}, not \boxed 6 -> 6
<think>\boxed{1}</think> it is \boxed{2} -> 2   <think>\boxed{1}</think> done -> 1   \boxed{1}</think> \boxed{2} -> 2
<think>only \boxed{3 -> None   no box 5 -> None
"""
EQUAL = r"""
5.0 == 5   +3 == 3   .5 == 0.5   $70$ == 70   \$5 == 5   50\% == 0.5   10,\!080 == 10080   1 234 == 1234
12\,000 == 12000   12~000 == 12000   0.333333 == 1/3   52_8 == 52_{8}   2^{10} == 1024   \frac{1}{2} == 0.5
\frac{2}{4} == \frac{1}{2}   3\frac12 == 7/2   \sqrt{8} == 2\sqrt{2}   \binom{5}{2} == 10   \sin(\pi) == 0
4.5e33 == 4.5 \times 10^{33}   1e3 == 1000   (1e3, 2e-3) == (1000, 0.002)   \frac{288}{10^{21}} == 2.88e-19
x^2+2x+1 == (x+1)^2   x=5 == 5   5 == x=5   2x+3 == y=2x+3   \gamma == γ   \{1,2\} == \{2,1\}   C == \text{(C)}
90 == 90^\circ   x_1 == x_{1}   T_{\max} == T_{\text{max}}   v_\text{esc} == v_{\text{esc}}
\frac{E_1 + 2E_2}{3} == \frac{1}{3} E_{1}+\frac{2}{3} E_{2}   −3 == -3   –3 == -3   ½ == \frac{1}{2}   3½ == 7/2
√2 == \sqrt{2}   √12 == 2\sqrt{3}   2√(3) == 2\sqrt{3}   √x == \sqrt{x}   90° == 90^\circ   ∞ == \infty   -1/3 == -1./3
-0.333333 == -1./3   -1.5 == -3./2   \arcsin(10/13) == np.arcsin(10/13)   \arcsin\frac{10}{13} == np.arcsin(10/13)
3**4 == 81   np.sqrt(2) == \sqrt{2}   (1., 2.) == (1,2)
m \geq \sqrt{2} == m \in [\sqrt{2}, +\infty)   e^{i\pi/4} == \frac{\sqrt{2}}{2} + \frac{\sqrt{2}}{2}i
0.\overline{36} == \frac{4}{11}   N = \textbf{6} == 6   1 - \frac{1}{e} == 1 - \frac{1}{\mathrm{e}}
6-5\mathrm{i} == 6 - 5i   29.00 dollars == 29   \pi rad == \pi   June 20 == \text{June 20}   12^{\text{th}} == 12
(1010)_2 == 1010_2   \text{1010}_2 == 1010_2   = 5 == 5   5 \pmod{7} == 5   pi/2 == \dfrac{\pi}{2}   -2*pi == -2\pi
A ∪ B == A \cup B   \tan 30^\circ == \frac{\sqrt{3}}{3}
\frac{1}{2}+\frac{1}{2\cdot 3^{50}} == \frac{3^{50}+1}{2\cdot 3^{50}}   x > 2 == (2,\infty)   1 < x \leq 3 == (1,3]
x \le 4 == (-\infty, 4]   e^{i\pi/3} == \frac{1}{2}+\frac{\sqrt{3}}{2}i
0.5+0.866025i == \frac{1}{2}+\frac{\sqrt{3}}{2}i   0.\overline{3} == \frac{1}{3}   0.1\overline{6} == \frac16
\mathbf{42} == 42   {\bf 6} == 6   \boldsymbol{42} == 42   5 apples == 5   12 hours == 12   10 cm == 10
1^{\text{st}} == 1
(52)_8 == 52_8   =7 == 7   = \frac12 == 0.5   pi == \pi   3/2*pi == \frac{3\pi}{2}   2*sqrt(3) == 2\sqrt{3}
(−∞, 2) ∪ (3, ∞) == (-\infty, 2) \cup (3, \infty)   x² + 1 == x^2+1   2·3 == 6   3×4 == 12   \sin 30^\circ == \frac12
\cos(60^\circ) == 0.5   -1 1/2 == -\frac32
"""

DIFFERENT = r"""
5 == 6   -3 == 3   1,2 == 12   1 2 == 12   1 2 8 4 == 1284   12 00 == 1200   1 1/2 == 11/2   \frac{1}{3} == 0.5
0.333 == 1/3   2\sqrt{3} == 3\sqrt{2}   4.5e33 == 4.5e32   0 == 2.88e-19   2.89 \times 10^{-19} == 2.88e-19
\frac{289}{10^{21}} == 2.88e-19   42 == 52_8   x^2+1 == (x+1)^2   (1,2) == (2,1)   [0,1] == (0,1)   \pi == 3.14
A == B   x=6 == 5   \infty == 5   \text{west} == \text{east}   x_1 == x_2   x_0 == x   E_2 == E_1   5 \ne x == 5
90° == 91   \frac{2}{3} E_1+\frac{1}{3} E_2 == \frac{1}{3} E_1+\frac{2}{3} E_2   10/13 == np.arcsin(10/13)
7.6 == 7.6 Z   123456789012345678901234567891 == 123456789012345678901234567890   ( == 5   }{ == 5   (.) == 5
1.2.3 == 1.2   no == 5   52_8 == 52_9   864 \mbox{ inches}^3 == 864 \mbox{ inches}^2   T_{\text{max}} == T_{\text{min}}
T_\text{max} == T_\text{min}   I_1 == I_2   0.577216 == \gamma   1 1/2 == 1   -1 == -1./3
a(\gamma^2-7)\theta == a(\gamma^2-1)\theta   2 == \omega(v+1 / 2)-E_{0}^{2}   0.0000673 == .0000672
6.73 \times 10^{-5} == .0000672   2 \cdot 10^{-20}\pi == 10^{-20}\pi   e^{-50} == e^{-51}
\frac{2}{3^{50}} == \frac{3^{50}+1}{2\cdot 3^{50}}   \frac{1}{3 \cdot 2^{2006}} == \frac{2^{2005}+1}{3 \cdot 2^{2006}}
\frac{1}{2^{100}} == \frac{2^{99}+1}{2^{100}}   \frac{3^{100}+1}{2^{100}} == \frac{3^{100}-1}{2^{100}}
(\frac{1}{2^{100}}, 1) == (\frac{1}{3^{99}}, 1)   1-\frac{1}{2018!} == 1-\frac{1}{2017!}
\frac{1}{3^{60}} == \frac{1}{3^{61}}   \frac{2^{80}+1}{2^{80}} == 1   1-\frac{1}{100!} == 1-\frac{1}{99!}
\begin{pmatrix} \frac{1}{2^{80}} \\ 1\end{pmatrix} == \begin{pmatrix} \frac{1}{3^{80}} \\ 1\end{pmatrix}
\sqrt{2}+\frac{1}{2^{100}} == \sqrt{2}   0.0000001 == 0.0000002   \{1, \frac{1}{2^{70}}\} == \{1, \frac{1}{2^{71}}\}
\frac{x}{2^{100}} == \frac{x}{3^{100}}   10^{-20} == 10^{-21}   1.5e-20\pi == 2.5e-20\pi   (1e-9, 2) == (2e-9, 2)
2^{-60} == 3^{-60}   M == m   x_M == x_m   GMm == gmm   a+B == A+b   \frac{dM}{dt} == \frac{dm}{dt}
\frac{\pi}{2018!} == \frac{\pi}{2017!}   52_8, 40_9 == 52_8, 40_7
"""
HANGS = ["9^{9^{9}}", "10^{10^{10}}!", r"\binom{10^9}{10^8}", "(x+1)^{100000}", "(" * 400 + ")" * 400, "9" * 5000]
HANGS += ["x" * 900, r"\frac{1}{" * 99, "1e999999", "\x00", "\ud800", "\\", "{" * 10**6 + "}" * 10**6, "5 " * 10**6]


def pairs(text, sign=" == "):
    return [tuple(pair.split(sign)) for line in text.strip().splitlines() for pair in line.split("   ")]


@pytest.mark.parametrize("text, boxed", pairs(BOXES, " -> "))
def test_the_last_complete_box_outside_thinking_is_the_answer(text, boxed):
    assert str(extract_boxed(text)) == boxed


@pytest.mark.parametrize("answer, gold", pairs(EQUAL))
def test_equal_answers_are_equal(answer, gold):
    assert is_equal(f"so \\boxed{{{answer}}}", gold)


@pytest.mark.parametrize("answer, gold", [*pairs(DIFFERENT), ("", "5")])
def test_different_answers_are_never_equal(answer, gold):
    assert not is_equal(f"so \\boxed{{{answer}}}", gold)


def test_several_boxes_in_one_sentence_are_one_list():
    assert is_equal(r"it is \boxed{(2, 2)} and \boxed{(6, 2)}.", "(2, 2), (6, 2)")
    assert not is_equal(r"\boxed{1}, \boxed{2}, \boxed{3}", "2, 3")
    assert not is_equal(r"\boxed{2} is too few. So \boxed{3}", "2, 3")


def test_a_verdict_says_why():
    verdicts = [math_verdict(text, "5") for text in (r"\boxed{x=5}", r"\boxed{x=6}", "5", r"\boxed{}")]
    assert verdicts == ["equal", "different", "no box", "unparsable"]


@pytest.mark.parametrize("name", ["aime24", "aime25", "hmmt25", "amc23", "math500", "gsm8k"])
def test_a_gold_is_itself_and_not_the_same_with_another_digit(shared, name):
    rng, rows = random.Random(name), renio_eval.load_benchmark(name, shared / "data")
    assert all(answer_verdict(row["answer"], row["answer"]) == "equal" for row in rows)
    golds = [gold for gold in sorted({row["answer"] for row in rows}) if re.search(r"\d", gold)]
    for gold in rng.sample(golds, min(len(golds), 20)):
        place = rng.choice([match.start() for match in re.finditer(r"\d", gold)])
        digit = str((int(gold[place]) + rng.randrange(1, 10)) % 10)
        assert answer_verdict(gold[:place] + digit + gold[place + 1 :], gold) != "equal", gold


@pytest.mark.parametrize("answer", HANGS)
def test_no_answer_hangs_or_crashes_the_grader(answer):
    began = time.monotonic()
    assert math_verdict(f"\\boxed{{{answer}}}", "7") != "equal"
    assert time.monotonic() - began < 60
    assert is_equal(r"\boxed{\frac{10}{2}}", "5")  # and the next one is graded as ever


@pytest.mark.parametrize("part", [r"\boxed{", r"\boxed", "<think>", r"\boxed ", r"\boxed -", "}"])
def test_a_megabyte_without_an_answer_is_read_in_seconds(part):
    began = time.monotonic()
    assert math_verdict(part * (10**6 // len(part)), "5") == "no box" and time.monotonic() - began < 60


def test_without_math_verify_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert answer_verdict("5.0", "5") == "equal"
    with pytest.raises(UserError, match="pip install math-verify"):
        answer_verdict(r"\frac{10}{2}x", "5x")
