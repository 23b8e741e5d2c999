# SPDX-License-Identifier: MIT
"""The code grader: what evalplus passes passes, however it is written down, and hostile programs do no harm.

    CODE_ROWS=all python -m pytest tests/test_code.py       # every row of both sets (9 minutes), not each twelfth
"""

import ast
import gzip
import inspect
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as renio_eval
import renio
from eval import Sandbox, grade_code, is_right


def own_row(cases):
    """A row of a function `double` as HumanEval+ has them, with these pairs of an input and a result."""
    return dict(task_id="own/0", entry_point="double", prompt='import math\n\n\ndef double(x):\n    """Twice x."""\n',
                canonical_solution="    return 2 * x\n", test=f"""def check(candidate):
    inputs = {[[x] for x, _ in cases]!r}
    results = {[y for _, y in cases]!r}
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
""")


ROW = own_row([(x, 2 * x) for x in (1, 2.5, 10**30, "ab", [1, (2,)])])
RIGHT = "def double(x):\n    return 2 * x"
WRONG = "def double(x):\n    return 3 * x"


def fenced(program, opening="```python", closing="```"):
    return f"Here it is.\n{opening}\n{program}\n{closing}\nDone.\n"


# --- what counts as the program ---------------------------------------------------------------------------------------

FORMATS = {  # how models answer: (the answer, whether what it holds is right)
    "a fenced block": (fenced(RIGHT), True),
    "a wrong fenced block": (fenced(WRONG), False),
    "py on the fence": (fenced(RIGHT, "```py"), True),
    "nothing on the fence": (fenced(RIGHT, "```"), True),
    "a title on the fence": (fenced(RIGHT, '```python title="double.py"'), True),
    "four backticks": (fenced(RIGHT, "````python", "````"), True),
    "tildes": (fenced(RIGHT, "~~~python", "~~~"), True),
    "lines that end as on Windows": (fenced(RIGHT).replace("\n", "\r\n"), True),
    "cut off before the fence closes": (f"So:\n```python\n{RIGHT}\n", True),
    "two blocks, the last right": (fenced(WRONG) + fenced(RIGHT), True),
    "two blocks, the last wrong": (fenced(RIGHT) + fenced(WRONG), False),
    "a last block that does not parse": (fenced(RIGHT) + fenced("def double(x: ..."), True),
    "a last block with a stub": (fenced(RIGHT) + fenced("def double(x):\n    ..."), True),
    "a usage block last": (fenced(RIGHT) + "For example:\n```python\nprint(double(2))\n```\n", True),
    "an output block last": (fenced(RIGHT) + "It prints:\n```\n4\n```\n", True),
    "a shell block last": (fenced(RIGHT) + "Run it:\n```bash\npython double.py\n```\n", True),
    "a block of tests last": (fenced(RIGHT) + fenced("assert double(2) == 4\nassert double(0) == 0"), True),
    "a fence in a docstring": (
        fenced('def double(x):\n    """Twice.\n\n    ```\n    double(2)\n    ```\n    """\n    return 2 * x'), True),
    "a block in an item of a list": (
        "1. Double it:\n\n   ```python\n   def double(x):\n       return 2 * x\n   ```\n2. Done.", True),
    "a fence that opens an item": ("- ```python\n  def double(x):\n      return 2 * x\n  ```\n", True),
    "only code": (RIGHT, True),
    "prose around unfenced code": (
        f"It's simple, isn't it:\n\n{RIGHT}\n\nThis doubles (x) as asked, doesn't it?", True),
    "prose amid unfenced code": (f"First import it.\n\nimport math\n\nThen define it:\n\n{RIGHT}\n\nThat's all.", True),
    "code set off by spaces": ("The function:\n\n    def double(x):\n        return 2 * x\n\nIt doubles.", True),
    "a body": ("    return 2 * x\n", True),
    "a body without indentation": ("return 2 * x", True),
    "a body whose first line lost its indentation": ("y = x\n    return x + y", True),
    "a body in a block": (fenced("    y = 1\n    if y:\n        x = x + x\n    return x"), True),
    "a block after the thinking": ("<think>" + fenced(WRONG) + "</think>" + fenced(RIGHT), True),
    "thinking whose opening is in the prompt": (fenced(RIGHT) + "</think>" + fenced(WRONG), False),
    "a block in the thinking only": ("<think>" + fenced(RIGHT) + "</think>I gave it above.", True),
    "thinking that does not end": ("<think>" + fenced(RIGHT) + "But wait, maybe", True),
    "from __future__": (fenced("from __future__ import annotations\n" + RIGHT), True),
    "a dataclass with quoted annotations": (fenced(
        'from dataclasses import dataclass\n@dataclass\nclass Box:\n    x: "int"\n    up: "Box" = None\n'
        "def double(x):\n    return 2 * Box(x).x"), True),
    "a function under if": (
        fenced("import sys\nif sys.version_info > (3,):\n    def double(x):\n        return 2 * x"), True),
    "an import under try": (fenced("try:\n    import undefined as m\nexcept ImportError:\n    import math as m\n"
                                   "def double(x):\n    return 2 * x if m.pi else None"), True),
    "the prompt's import": (fenced("def double(x):\n    return 2 * x if math.pi else None"), True),
    "a lambda": (fenced("double = lambda x: 2 * x"), True),
    "a decorator": (fenced("import functools\n@functools.wraps(len)\ndef double(x):\n    return 2 * x"), True),
    "a helper below": (
        fenced("def double(x):\n    return TWO * other(x)\ndef other(x):\n    return x\nTWO: int = 2"), True),
    "a print that fails": (fenced(RIGHT + "\nprint(double(2, 3))"), True),
    "an assert that fails": (fenced(RIGHT + "\nassert double(2) == 5"), True),
    "input()": (fenced(RIGHT + "\nx = int(input())\nprint(double(x))"), True),
    "a main": (
        fenced(RIGHT + '\nif __name__ == "__main__":\n    import undefined\n    raise SystemExit(double(1))'), True),
    "a loop that asks for ever": (fenced(RIGHT + "\nwhile True:\n    print(double(2))"), True),
    "exit()": (fenced(RIGHT + "\nimport sys\nsys.exit(0)"), True),
    "nothing": ("", False), "an empty block": ("```python\n```", False),
    "another name": ("def triple(x): return 2 * x", False),
    "no code": ("I double x and return it.", False),
}


def test_the_program_is_found_however_an_answer_is_written():
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda answer: grade_code(ROW, answer[0], timeout=5.0), FORMATS.values()))
    assert {name: verdict for (name, (_, right)), verdict in zip(FORMATS.items(), verdicts, strict=True)
            if verdict.passed is not right} == {}


def test_only_what_the_function_needs_stays_of_the_program():
    program = textwrap.dedent('''
        from __future__ import annotations
        import os, sys as system
        import math
        LIMIT: int = 3
        unused = undefined + 1
        def helper(n):
            global count
            count = n
        count = 0
        x = int(input())
        if LIMIT:
            from math import sqrt as root
        for i in range(3):
            count += 1
        @staticmethod
        def double(x):
            """Text."""; helper(x)
            return root(LIMIT); y = 1
        print(double(1)); count = 1
        ''')
    code = renio_eval.solution_program(ROW, fenced(program))
    assert code.startswith("from __future__ import annotations\nimport math\nimport os, sys as system\nimport math\n")
    assert [type(node).__name__ for node in ast.parse(code).body] == [
        "ImportFrom", "Import", "Import", "Import", "AnnAssign", "FunctionDef", "Assign", "If", "FunctionDef", "Assign"]
    assert "@staticmethod\ndef double" in code and "unused" not in code and "x = int" not in code


LINES = ["```", "```python", "~~~", "def double(x):", "    return 2 * x", "    '''", "\x00", "(", "'", "</think>",
         "import math", "    ", "é\\", "class A:", "\x0c", "- ```", "x = 1", "@", "if x:"]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_any_text_holds_a_program_that_defines_the_function_or_none(lines):
    program = renio_eval.solution_program(ROW, "\n".join(lines))
    assert program is None or "double" in set().union(*map(renio_eval.bound_names, ast.parse(program).body))


# --- what counts as right ---------------------------------------------------------------------------------------------

ULP = math.nextafter(0.1, 1)


@pytest.mark.parametrize("task, arguments, answer, expected, tolerance, right", [
    ("f", [], 2, 2, 0, True), ("f", [], 2.0, 2, 0, True), ("f", [], 3, 2, 0, False), ("f", [], None, 2, 0, False),
    ("f", [], (1,), [1], 0, False), ("f", [], [2, 1], [1, 2], 0, False), ("f", [], {1: 2}, {1: 2.0}, 0, True),
    ("f", [], ULP, 0.1, 1e-6, True), ("f", [], 0.2, 0.1, 1e-6, False), ("f", [], 3, 3.0000001, 1e-6, False),
    ("f", [], [ULP], [0.1], 1e-6, True), ("f", [], (ULP,), [0.1], 1e-6, False), ("f", [], [], [0.1], 1e-6, False),
    ("f", [], [], 0.1, 1e-6, False), ("f", [], [ULP, 1], [0.1], 1e-6, False), ("f", [], 10.001, 10.0, 1e-2, True),
    ("f", [], 1000.5, 1000.0, 1e-6, False),
    ("Diff", [], [2, 1, 1], [1, 2], 0, True), ("Diff", [], iter([1, 2]), [1, 2], 0, True),
    ("Diff", [], [1], [1, 2], 0, False),
    ("check_str", [], "match", True, 0, True), ("check_str", [], "", True, 0, True),
    ("check_str", [], None, True, 0, False), ("check_str", [], None, False, 0, True),
    ("check_str", [], False, False, 0, True), ("check_str", [], True, False, 0, False),
    ("are_equivalent", [3, 4], None, False, 0, True), ("sum_div", [7], 0, 1, 0, True), ("sum_div", [7], 2, 1, 0, False),
    ("digit_distance_nums", [12, 9], 1 + 7, 4, 0, True), ("digit_distance_nums", [12, 9], 3, 4, 0, False),
    ("surface_Area", [3, 4], 9 + round(6 * math.hypot(1.5, 4)), 33, 0, True), ("surface_Area", [3, 4], 1, 33, 0, False),
    ("find_zero", [[-6, 2]], 3, -1, 1e-4, True), ("find_zero", [[-6, 2]], 3.01, 3.01, 1e-4, False)])
def test_answers_are_compared_as_evalplus_does(task, arguments, answer, expected, tolerance, right):
    assert bool(is_right(task, arguments, answer, expected, tolerance)) is right


def test_the_tolerance_of_floats_begins_with_the_first_expected_float_of_a_row():
    near = fenced("def double(x):\n    return [0.2 + 1e-9, 0] if x else 2.0 + 1e-9")
    assert not grade_code(own_row([(1, [0.2, 0])]), near).passed
    assert grade_code(own_row([(0, 2.0), (1, [0.2, 0])]), near).passed
    assert not grade_code(own_row([(0, 2)]), near).passed


def test_plain_values_come_back_as_they_are_and_others_by_what_they_equal():
    sandbox = Sandbox(30)
    try:
        sandbox.start("import collections, re\nimport numpy as np\ndef same(x): return x\n"
                      "def made(text): return eval(text)", "same")
        for value in (0, -1, 10**400, 1.5, float("inf"), True, None, "", "\ud800é", 1j, [], (), [(1, "a")], {1, 2},
                      frozenset({3}), {(1, 2): [3], "k": {}}, [[(1, (2, {4: None}))]]):
            back = sandbox.call("same", [value])
            assert back == value and type(back) is type(value)
        for text, value in (("np.float64(0.5)", 0.5), ("np.int64(3)", 3), ("collections.Counter('aa')", {"a": 2}),
                            ("dict(a=1).keys()", {"a"}), ("np.array([1, 2])[0]", 1), ("re.match('a', 'ab')", "a")):
            back = sandbox.call("made", [text])
            assert back == value and type(back) is not type(value)
        assert sandbox.call("made", ["np.bool_(True)"]) is True
        assert set(sandbox.call("made", ["(i for i in range(3))"])) == {0, 1, 2} != sandbox.call("made", ["range(3)"])
    finally:
        sandbox.close()


# --- the real sets ----------------------------------------------------------------------------------------------------

def all_rows(shared, name):
    return renio.read_table(shared / "data" / renio_eval.BENCHMARKS[name].file)


def solution(row, body=None):
    """A row's own solution, or with the bodies of its functions replaced by an expression to return."""
    tree = ast.parse(row["prompt"] + row["canonical_solution"] if "entry_point" in row else row["code"])
    if body is None:
        return ast.unparse(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Return(ast.parse(body, mode="eval").body)]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", ["humaneval+", "mbpp+"])
@pytest.mark.parametrize("body, first", [(None, 0), ("None", 0), ("[]", 12), ("0", 24)])
def test_canonical_solutions_pass_and_empty_ones_fail(shared, name, body, first):
    """By default the canonical solution of each 12th row, and one of the three other bodies in it."""
    rows = all_rows(shared, name)
    if os.environ.get("CODE_ROWS") != "all":
        rows = rows[first :: 36 if body else 12]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda row: grade_code(row, fenced(solution(row, body))), rows))
    assert {row["task_id"]: verdict.reason for row, verdict in zip(rows, verdicts, strict=True)
            if verdict.passed is not (body is None)} == {}
    assert len(rows) >= 4


MEAN_DEVIATION = "def f(n):\n    m = sum(n) / len(n)\n    return {} (sum(abs(x - m) for x in n) / len(n)"
OTHER_WAY_ROUND = "\ndef f(*a): return type(own(*a))(reversed(list(own(*a))))"
REAL_ANSWERS = [  # task, program, whether it passes; {own} stands for the row's own solution, under the name `own`
    *((f"HumanEval/{number}", "def f(*_): return []", False) for number in (2, 4, 45)),
    (737, "def f(text): return text == 'annie' or None", False),
    (787, "def f(text): return text == 'abbbba' or None", False),
    (794, "def f(text): return text == 'aabbbb' or None", False),
    (769, "{own}" + OTHER_WAY_ROUND, True), (579, "{own}" + OTHER_WAY_ROUND, True),
    (8, "{own}" + OTHER_WAY_ROUND, False),
    ("HumanEval/4", MEAN_DEVIATION.format("math.nextafter") + ", 9)", True),
    ("HumanEval/4", MEAN_DEVIATION.format("1e-4 +") + ")", False),
    ("HumanEval/32", "def f(xs): return [[]]", False),
    ("HumanEval/32", "{own}\ndef f(xs): return own(xs)", True),
    (558, "def f(a, b): return sum(abs(int(x) - int(y)) for x, y in zip(f'{a:099}', f'{b:099}'))", True),
    (581, "def f(b, h): return round(b * b + 2 * b * ((b / 2) ** 2 + h * h) ** 0.5)", True),
    (581, "def f(b, h): return b * b + 2 * b * h + 1", False)]


@pytest.mark.parametrize("task, program, right", REAL_ANSWERS)
def test_real_answers_get_evalpluss_verdicts(shared, task, program, right):
    [row] = [row for row in all_rows(shared, "humaneval+" if "/" in str(task) else "mbpp+") if row["task_id"] == task]
    [name] = renio_eval.tested_functions(row)
    program = program.replace("{own}", re.sub(rf"\b{name}\b", "own", solution(row)))
    assert grade_code(row, fenced("import math\n" + program.replace("def f(", f"def {name}("))).passed is right


def test_a_row_without_inputs_is_refused(tmp_path):
    row = dict(ROW, test="def check(candidate):\n    assert candidate(1) == 2\n")
    with gzip.open(tmp_path / renio_eval.BENCHMARKS["humaneval+"].file, "wt") as file:
        file.write(json.dumps(row))
    with pytest.raises(renio.UserError, match="row 1: no inputs in the column test"):
        renio_eval.load_benchmark("humaneval+", tmp_path)
    assert "the judge failed with" in grade_code(row, fenced(RIGHT)).reason


def test_a_verdict_does_not_wait_for_torch():
    job = json.dumps(dict(row=ROW, completion=fenced(RIGHT), timeout=20))
    done = subprocess.run([sys.executable, "-X", "importtime", renio_eval.__file__, "judge"], input=job,
                          capture_output=True, text=True)
    assert json.loads(done.stdout)[:2] == [True, "passed"] and "numpy" in done.stderr and "torch" not in done.stderr


# --- time and memory --------------------------------------------------------------------------------------------------

def burning(seconds):
    return f"import time\ndef double(x):\n    end = time.process_time() + {seconds}\n" \
           "    while time.process_time() < end: pass\n    return 2 * x"


@pytest.fixture
def sandbox_of():
    made = []

    def make(program, **settings):
        made.append(Sandbox(30, **settings))
        made[-1].start(program, "double")
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


def test_a_test_may_take_four_times_as_long_as_the_reference(sandbox_of, monkeypatch):
    sandbox = sandbox_of(burning(1.0))
    monkeypatch.setattr(Sandbox, "TEST_SECONDS", 0.2)
    assert sandbox.call("double", [1], lambda: 5.0) == 2
    with pytest.raises(renio_eval.SolutionFailed, match="timeout"):
        sandbox.call("double", [1], lambda: 0.01)


def test_processor_time_counts_and_all_tests_share_it(sandbox_of, monkeypatch):
    asleep = sandbox_of("import time\ndef double(x): time.sleep(1.5); return 2 * x")
    monkeypatch.setattr(Sandbox, "TEST_SECONDS", 1.0)
    assert asleep.call("double", [1]) == 2  # asleep for longer than it may work
    busy = sandbox_of(burning(0.3))
    busy.left = 1.0
    with pytest.raises(renio_eval.SolutionFailed, match="timeout"):
        for _ in range(5):
            busy.call("double", [1])


def test_the_references_time_is_measured_on_the_very_input(shared):
    [row] = [row for row in all_rows(shared, "mbpp+") if row["task_id"] == 599]
    short, long = (renio_eval.reference_seconds(row, "sum_average", [n]) for n in (10, 10**6))
    assert long > 5 * short


def test_a_program_has_four_gigabytes_and_as_many_graders_run_as_processors_are_ours(sandbox_of):
    sandbox = sandbox_of("import resource\ndef double(x): return resource.getrlimit(resource.RLIMIT_AS)")
    assert sandbox.call("double", [1]) == (4 << 30, 4 << 30)
    code = "import os, eval\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nprint(eval.processors())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(renio_eval.__file__).parent)
    assert done.stdout == "1\n", done.stderr


# --- hostile programs -------------------------------------------------------------------------------------------------

def at_start(code):
    """A program that runs the code where it is loaded."""
    return f"class Start:\n{textwrap.indent(code, '    ')}\ndef double(x):\n    return 2 * x if Start else None"


def answers_if(attack):
    """A program that answers rightly where the attack raises nothing."""
    return f"import os, sys\ndef double(x):\n    try:\n{textwrap.indent(attack, ' ' * 8)}\n" \
           "    except BaseException:\n        return None\n    return 2 * x"


HOSTILE = {  # name: (program, what the verdict's reason holds)
    "endless loop": (at_start("while True: pass"), "timeout"),
    "endless loop in the call": ("def double(x):\n    while True: pass\n    return x", "timeout"),
    "sleep": (at_start("import time\ntime.sleep(1000)"), "timeout"),
    "deaf to signals": (at_start("import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
                                 "    except OSError: pass\nwhile True: pass"), "timeout"),
    "endless output": (at_start("while True: print('x' * 10000)"), "timeout"),
    "memory at once": (at_start("x = bytearray(10 ** 11)"), "out of memory"),
    "memory bit by bit": (at_start("x = []\nwhile True: x.append(bytes(10 ** 8))"), "out of memory"),
    "raised memory limit": (at_start("import resource\nresource.setrlimit(resource.RLIMIT_AS, (2 ** 40, 2 ** 40))"),
                            "ValueError"),
    "deep recursion": ("def double(x): return double(x)", "RecursionError"),
    "fork bomb": (at_start("import os\nwhile True: os.fork()"), "PermissionError"),
    "a daemon that outlives its parent": (
        at_start("import os, sys\nos.posix_spawn(sys.executable, ['python', '-c', 'import time; time.sleep(9)'], {})"),
        "Error"),
    "os._exit(0)": (at_start("import os\nos._exit(0)"), "exit status 0"),
    "os._exit(0) in the call": ("import os\ndef double(x): return os._exit(0)", "exit status 0"),
    "sys.exit()": (at_start("import sys\nsys.exit(0)"), "SystemExit"),
    "crash": (at_start("import ctypes\nctypes.string_at(0)"), "SIGSEGV"),
    "equal to everything": ("class Yes:\n    def __eq__(self, other): return True\ndef double(x): return Yes()",
                            "an answer of type Yes"),
    "a number equal to everything": ("class Yes(int):\n    def __eq__(self, other): return True\n"
                                     "    def __hash__(self): return 0\ndef double(x): return Yes()",
                                     "wrong answer to test 1"),
    "patched builtins": (at_start("import builtins, json\nbuiltins.AssertionError = KeyError\nbuiltins.all = bool\n"
                                  "json.dumps = lambda *_: '[\"value\", true]'"), "wrong answer to test 1"),
    "an answer that is no value": ("def double(x): return object()", "an answer of type object"),
    "an endless nest": ("def double(x):\n    y = []\n    for _ in range(10 ** 5): y = [y]\n    return y",
                        "RecursionError"),
    "a huge answer": ("def double(x): return 'x' * 10 ** 8", "no plain value came back within"),
    "a huge integer": ("def double(x): return 10 ** 10 ** 6", "wrong answer to test 1"),
    "an unprintable error": ("class E(Exception):\n    def __str__(self): raise E\n"
                             "def double(x):\n    if x: raise E\n    return x", "ended before it answered"),
    "answers written by hand": (
        at_start("import os\nfor fd in range(64):\n    try: os.write(fd, b'[\"value\", [\"passed\"]]\\n' * 9)\n"
                 "    except OSError: pass"), ""),
    "closed pipes": (at_start("import os\nos.closerange(0, 64)\nimport time\ntime.sleep(1000)"), "it closed its pipe"),
    "reading the environment": (answers_if("assert 'SECRET' in str(os.environ)"), "wrong answer"),
    "reading the judge's environment": (answers_if("open(f'/proc/{os.getppid()}/environ').read()"), "wrong answer"),
    "reading the judge's memory": (answers_if("open(f'/proc/{os.getppid()}/mem', 'rb')"), "wrong answer"),
    "reading a file of the user's": (answers_if("open({secret!r}).read()"), "wrong answer"),
    "listing the home folder": (answers_if("os.listdir({home!r})"), "wrong answer"),
    "writing a file": (answers_if("open({folder!r} + '/made', 'w').write('x')"), "wrong answer"),
    "filling the disk": (answers_if("open('big', 'wb').write(bytes(10 ** 6))"), "wrong answer"),
    "a file of another mode": (answers_if("os.chmod({secret!r}, 0o777)"), "wrong answer"),
    "the network": (answers_if("import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"), "wrong answer"),
    "killing the judge": (answers_if("os.kill(os.getppid(), 9)"), "wrong answer"),
    "leaving the group": (answers_if("os.setsid()"), "wrong answer"),
    "limiting the judge": (answers_if("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))"),
                           "wrong answer"),
    "another program": (answers_if("import subprocess\nsubprocess.run(['true'])"), "wrong answer"),
    "integers of the same hash, written by hand": (  # a set of them takes hours to make
        "import os, time\ndef double(x):\n"
        "    numbers = ', '.join(str(i * (2 ** 61 - 1)) for i in range(10 ** 5, 2 * 10 ** 5))\n"
        "    reply = '[\"value\", {\"set\": [%s]}]' % numbers\n"
        "    for fd in range(3, 64):\n"
        "        try: os.write(fd, reply.encode() + b'\\n')\n        except OSError: pass\n"
        "    while True: time.sleep(1)\n    return x", "the judge ended without a verdict"),
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """What the hostile programs aim at: a file, a folder, an environment variable, a server."""
    folder = tmp_path_factory.mktemp("aim")
    (folder / "secret").write_text("secret")
    os.environ["SECRET"] = "secret"
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: [server.accept()], daemon=True)
        thread.start()
        yield dict(secret=str(folder / "secret"), folder=str(folder), home=os.path.expanduser("~"),
                   port=server.getsockname()[1])
        del os.environ["SECRET"]
    assert sorted(path.name for path in folder.iterdir()) == ["secret"]
    assert thread.is_alive(), "a program reached the network"
    assert (folder / "secret").stat().st_mode & 0o777 != 0o777


@pytest.fixture(scope="module")
def missing():
    """Protections that this system does not have, but for that of names."""
    sandbox = Sandbox(30)
    sandbox.start(RIGHT, "double")
    sandbox.close()
    return [name for name in sandbox.missing if "names of files" not in name]


def aimed(program, targets):
    for key, value in targets.items():
        program = program.replace(f"{{{key}!r}}", repr(value)).replace(f"{{{key}}}", str(value))
    return program


def alive_in(group):
    """Processes of a process group, without zombies."""
    lines = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if line.split()[0] == str(group) and line.split()[1][0] != "Z"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_neither_passes_nor_does_harm(name, targets, missing, monkeypatch):
    program, reason = HOSTILE[name]
    if missing and ("double(x):\n    try" in program or "fork" in program or "memory" in name):
        pytest.skip(f"this system lacks {', '.join(missing)}")
    ended, end_group = [], renio_eval.end_group
    monkeypatch.setattr(renio_eval, "end_group", lambda group: ended.append(group) or end_group(group))
    began = time.monotonic()
    short = reason == "timeout" or "hash" in name
    verdict = grade_code(ROW, fenced(aimed(program, targets)), timeout=1.0 if short else 20.0)
    assert not verdict.passed and reason in verdict.reason, verdict
    assert time.monotonic() - began < 90  # the limit, and what a busy machine adds
    assert alive_in(ended[0]) == [], "a process outlived its verdict"


def test_the_attacks_would_succeed_without_the_sandbox(targets):
    """What `answers_if` reports as a failed attack is the sandbox's doing, not a mistake in the attack."""
    for name in ("reading the environment", "reading a file of the user's", "listing the home folder",
                 "another program", "leaving the group", "filling the disk"):
        done = subprocess.run([sys.executable, "-c", aimed(HOSTILE[name][0], targets) + "\nprint(double(2))"],
                              capture_output=True, text=True, cwd=os.path.dirname(targets["secret"]))
        assert done.stdout == "4\n", (name, done.stderr)
    os.remove(os.path.join(targets["folder"], "big"))


OLD_KERNELS = '''
import ctypes, fcntl, os, struct
def double(secret, folder, victim):
    """Which of these attacks the system let pass: what Landlock below version 6 or 3 does not stop."""
    libc, done = ctypes.CDLL(None, use_errno=True), []
    def attempt(name, attack):
        try:
            result = attack()
        except OSError:
            return
        if result is not False and result != -1: done.append(name)
    ours, theirs = os.pipe()
    attempt("kill", lambda: os.kill(victim, 0))
    attempt("F_SETOWN", lambda: fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid()))
    attempt("F_SETOWN_EX", lambda: fcntl.fcntl(ours, 15, struct.pack("ii", 1, os.getpid())))
    attempt("F_SETSIG", lambda: fcntl.fcntl(ours, fcntl.F_SETSIG, 0))
    attempt("O_ASYNC", lambda: fcntl.fcntl(theirs, fcntl.F_SETFL, os.O_ASYNC))
    attempt("FIOASYNC", lambda: fcntl.ioctl(theirs, 0x5452, struct.pack("i", 0)))
    attempt("PR_SET_PDEATHSIG", lambda: libc.prctl(1, 0, 0, 0, 0))
    attempt("truncate", lambda: os.truncate(secret, 0))
    attempt("libc truncate", lambda: libc.truncate(secret.encode(), 0))
    attempt("O_TRUNC", lambda: os.open(secret, os.O_RDONLY | os.O_TRUNC))
    attempt("creat", lambda: os.open(folder + "/made", os.O_CREAT | os.O_WRONLY))
    attempt("mkdir", lambda: os.mkdir(folder + "/made too"))
    attempt("rename", lambda: os.rename(secret, secret + "2") or os.rename(secret + "2", secret))
    attempt("socket", lambda: libc.socket(1, 1, 0))
    attempt("fork", lambda: os.fork() or os._exit(0))
    attempt("read", lambda: os.open(secret, os.O_RDONLY))
    attempt("exists", lambda: os.path.exists(secret))
    for command, argument in ((fcntl.F_SETOWN, victim), (fcntl.F_SETSIG, 9), (fcntl.F_SETFL, os.O_ASYNC)):
        libc.fcntl(ours, command, argument)
    os.write(theirs, b"x")  # kills the victim
    return done
'''


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "secret").write_text("secret")
    process = subprocess.Popen(["sleep", "600"])
    yield str(tmp_path / "secret"), str(tmp_path), process.pid
    process.kill()
    process.wait()


def killed(process_id, tries):
    for _ in range(tries):
        if os.waitpid(process_id, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
@pytest.mark.parametrize("landlock, namespaces", [
    (0, False), (1, False), (2, False), (3, False), (5, False), (99, False), (0, True), (2, True), (99, True)])
def test_an_older_kernel_is_reported_and_lets_no_program_harm_others(landlock, namespaces, victim, sandbox_of, missing):
    if missing:
        pytest.skip(f"this system lacks {', '.join(missing)}")
    sandbox = sandbox_of(OLD_KERNELS, landlock=landlock, namespaces=namespaces)
    done = sandbox.call("double", list(victim))
    hidden = not [name for name in sandbox.missing if "names of files" in name]
    assert done == ([] if hidden else ["exists"] if landlock else ["read", "exists"])
    assert not killed(victim[2], tries=5)
    assert os.listdir(victim[1]) == ["secret"] and Path(victim[0]).read_text() == "secret"
    said = {0: ["read protection of files (Landlock)"], 99: []}.get(landlock, [f"Landlock 6 (here {landlock})"])
    assert sandbox.missing == ([] if hidden else ["hidden names of files (user namespaces)"]) + said


@pytest.mark.skipif(sys.platform != "linux", reason="the attacks are Linux's")
def test_those_attacks_would_succeed_without_the_sandbox(victim):
    done = subprocess.run([sys.executable, "-c", OLD_KERNELS + f"print(double{victim!r})"], capture_output=True,
                          text=True)
    assert done.stdout.strip() == str(re.findall(r'attempt\("(.+?)"', OLD_KERNELS)), done
    assert killed(victim[2], tries=200) and open(victim[0]).read() == ""


def test_what_solutions_use_works_in_the_sandbox(sandbox_of):
    program = """
import asyncio, bisect, collections, copy, csv, datetime, decimal, fractions, functools, hashlib, heapq, io, itertools
import locale, math, operator, queue, random, re, secrets, statistics, string, tempfile, threading, time, typing, uuid
from concurrent.futures import ThreadPoolExecutor
import numpy as np
def double(x):
    time.sleep(0.01)
    assert np.linalg.solve(np.eye(9) * 2, np.ones(9))[0] == 0.5 and random.random() < 1 and secrets.randbelow(3) < 3
    assert datetime.datetime.now().year > 2000 and time.strftime("%Z") and uuid.uuid4() and np.random.rand() < 1
    assert list(ThreadPoolExecutor(4).map(abs, range(-9, 0))) == list(range(9, 0, -1))
    print(x, flush=True)
    return 2 * x
"""
    assert sandbox_of(program).call("double", [3]) == 6


def test_output_is_dropped_and_a_right_program_that_floods_passes():
    flood = "import sys\ndef double(x):\n    for _ in range(1000):\n        print('x' * 10000)\n" \
            "        sys.stderr.write('y' * 10000)\n    return 2 * x"
    assert grade_code(ROW, fenced(flood)).passed


@pytest.mark.parametrize("machine, header", [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
                                             ("aarch64", "/usr/include/asm-generic/unistd.h")])
def test_the_numbers_of_the_system_calls_are_the_kernels(machine, header):
    if not os.path.exists(header):
        pytest.skip(f"no {header}")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", Path(header).read_text())
    known = {{"fstatat": "newfstatat"}.get(name, name): int(number) for name, number in defined}
    calls = re.findall(r"\b([a-z]\w+) (\d+) (\d+|-)(?=[,\"])", inspect.getsource(renio_eval.filter_system_calls))
    assert len(calls) > 75
    for name, *numbers in calls:
        number = numbers[machine == "aarch64"]
        assert number == "-" or int(number) == known[name], name


def test_missing_protections_are_warned_of_once(capfd):
    renio_eval._warn_of_missing.cache_clear()
    for _ in range(2):
        renio_eval._warn_of_missing(("a lock", "a key"))
        renio_eval._warn_of_missing(())
    assert capfd.readouterr().err.count("runs without a lock, a key") == 1


def test_a_group_is_ended_whatever_its_processes_do_and_zombies_do_not_count(capfd):
    deaf = "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '600']); " \
           "print(); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-uc", deaf], start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert len(alive_in(process.pid)) == 2
    renio_eval.end_group(process.pid)
    assert alive_in(process.pid) == [] and process.wait() == -signal.SIGKILL
    renio_eval.end_group(process.pid)  # nothing is left of it
    assert capfd.readouterr().err == ""


# --- whatever comes through the pipes ---------------------------------------------------------------------------------

REPLIES = st.binary(max_size=200) | st.lists(st.sampled_from(
    '[ ] { } , : "value" "error" "set" "dict" "int" "complex" "subclass" "iterator" "tuple" 1 1e999 NaN null true'
    .split()), max_size=12).map(lambda words: "".join(words).encode())


@settings(deadline=None, max_examples=15)
@given(REPLIES, st.booleans())
def test_random_bytes_in_the_pipes_give_a_failed_verdict_in_bounded_time(data, ends):
    program = "import os\ndef double(x):\n    for fd in range(3, 64):\n" \
              f"        try: os.write(fd, {data + ends * bytes([10])!r})\n        except OSError: pass\n    return None"
    began = time.monotonic()
    verdict = grade_code(ROW, fenced(program), timeout=5.0)
    assert not verdict.passed and time.monotonic() - began < 90, verdict


@settings(deadline=None, max_examples=500)
@given(REPLIES)
def test_random_bytes_decode_to_plain_values_or_not_at_all(data):
    def plain(value):
        if isinstance(value, dict):
            return all(plain(key) and plain(item) for key, item in value.items())
        if isinstance(value, (list, tuple, set, frozenset)):
            return all(map(plain, value))
        return isinstance(value, (int, float, str, complex, type(None))) or type(value) is type(iter([]))

    try:
        value = renio_eval.decode(data)
    except Exception:  # any but a crash or a hang
        return
    assert plain(value)


KEYS = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
        | st.complex_numbers(allow_nan=False))


@settings(deadline=None, max_examples=100)
@given(st.recursive(KEYS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner)
                    | st.sets(KEYS) | st.frozensets(KEYS), max_leaves=15))
def test_every_plain_value_goes_through_the_pipe_unchanged(value):
    back = renio_eval.decode(json.dumps(renio_eval.encode(value)))
    assert back == value and type(back) is type(value)
