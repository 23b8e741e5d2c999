# SPDX-License-Identifier: MIT
"""The code grader. CODE_ROWS=all python -m pytest tests/test_code.py takes every row, not each twelfth."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import eval as renio_eval
import renio
from eval import Sandbox, grade_code, is_correct, solution_program

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is whole on Linux only")


def own_row(*cases):
    """A row of a function `double` as HumanEval+ has them, with these pairs of an input and a result."""
    test = f"""def check(candidate):
    inputs, results = {[[x] for x, _ in cases]!r}, {[y for _, y in cases]!r}
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)"""
    return dict(entry_point="double", prompt="import math\n\ndef double(x):\n", canonical_solution="", test=test)


ROW = own_row(*((x, 2 * x) for x in (1, 2.5, 10**30, "ab", [1, (2,)])))
TWICE, THRICE = "def double(x):\n    return 2 * x", "def double(x):\n    return 3 * x"


def fenced(program, opening="```python", closing="```"):
    return f"Here it is.\n{opening}\n{program}\n{closing}\nDone.\n"


CORRECT_ANSWERS = {
    "lines that end as on Windows": fenced(TWICE).replace("\n", "\r\n"),
    "cut off before the fence closes": f"So:\n```python\n{TWICE}\n",
    "two blocks, the second with a title": fenced(THRICE) + fenced(TWICE, '```python title="double.py"'),
    "a last block that does not parse": fenced(TWICE) + fenced("def double(x: ..."),
    "a last block with a stub": fenced(TWICE) + fenced("def double(x):\n    ..."),
    "a fence in a docstring": fenced('def double(x):\n    """Twice.\n```\ndouble(2)\n```\n"""\n    return 2 * x'),
    "a block in an item of a list": "1. So:\n\n   ~~~\n   double = lambda x: 2 * x if math.pi else 0\n   ~~~\n2. Done.",
    "a body whose first line lost its indentation": "y = x\n    return x + y",
    "prose around unfenced code": f"It's simple, isn't it:\n\n{TWICE}\n\nThis doubles (x), doesn't it?",
    "a block after the thinking": f"<think>{fenced(THRICE)}</think>{fenced(TWICE)}",
    "colours": f"\x1b[1;32m{TWICE.replace('return', chr(27) + '[31mreturn' + chr(27) + '[0m')}\x1b[K",
    "links, titles and other escapes": f"\x1b]8;;http://a.b\x1b\\{TWICE}\x1b]8;;\x1b\\\x1b]0;t\x07\x1b(B\x9b0m",
    "an import from __future__": fenced("from __future__ import annotations\n" + TWICE),
    "helpers below": fenced("def double(x):\n    return A * f(x)\ndef f(x):\n    return x\nA: int = 2"),
    "input()": fenced(TWICE + "\nx = int(input())\nprint(double(x))"),
    "a loop that asks for ever": fenced(TWICE + "\nwhile True:\n    print(double(2))"),
}


@pytest.mark.parametrize("name", CORRECT_ANSWERS)
def test_the_program_is_found_however_an_answer_is_written(name):
    scope = {}
    exec(solution_program(ROW, CORRECT_ANSWERS[name]), scope)
    assert scope["double"](3) == 6


def test_answers_are_compared_as_evalplus_does():
    near = 0.1 + 1e-9
    assert is_correct("f", [], 2.0, 2, 0) and not is_correct("f", [], (1,), [1], 0)
    assert is_correct("f", [], near, 0.1, 1e-6) and is_correct("f", [], [near], [0.1], 1e-6)
    assert not is_correct("f", [], near, 0.1, 0) and not is_correct("f", [], 1000.5, 1000.0, 1e-6)
    assert not is_correct("f", [], (near,), [0.1], 1e-6) and not is_correct("f", [], [near, 0.1], [0.1], 1e-6)
    assert is_correct("Diff", [], iter([2, 1, 1]), [1, 2], 0) and not is_correct("Diff", [], [1], [1, 2], 0)
    assert is_correct("check_str", [], "", True, 0) and not is_correct("check_str", [], None, True, 0)
    assert is_correct("digit_distance_nums", [12, 9], 1 + 7, 4, 0) and is_correct("sum_div", [7], 0, 1, 0)
    assert is_correct("find_zero", [[-6, 2]], 3, -1, 1e-4) and not is_correct("find_zero", [[-6, 2]], 3.01, 3.01, 1e-4)


def test_the_tolerance_of_floats_begins_with_the_first_expected_float_of_a_row():
    near = fenced("def double(x):\n    return [0.2 + 1e-9, 0] if x else 2.0 + 1e-9")
    assert grade_code(own_row((1, [0.2, 0])), near) == (False, "incorrect answer to test 1")
    assert grade_code(own_row((0, 2.0), (1, [0.2, 0])), near) == (True, "passed")


def test_a_row_without_tests_and_an_answer_without_a_program_say_so():
    assert "the judge failed with KeyError" in grade_code(dict(ROW, test="def check(candidate): pass"), TWICE).reason
    assert grade_code(own_row(), "Double it.") == (False, "no program that defines double")


def all_rows(shared, name):
    return renio.read_table(str(shared / "data" / renio_eval.BENCHMARKS[name].file))


def solution(row, body=None):
    """A row's own solution; its functions return `body` if that is given."""
    tree = ast.parse(row["prompt"] + row["canonical_solution"] if "entry_point" in row else row["code"])
    for node in tree.body:
        if body and isinstance(node, ast.FunctionDef):
            node.body = [ast.Return(ast.parse(body, mode="eval").body)]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", ["humaneval+", "mbpp+"])
@pytest.mark.parametrize("body, first", [(None, 0), ("None", 0), ("[]", 12), ("0", 24)])
def test_canonical_solutions_pass_and_empty_ones_fail(shared, name, body, first):
    rows = all_rows(shared, name)
    if os.environ.get("CODE_ROWS") != "all":
        rows = rows[first :: 36 if body else 12]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda row: grade_code(row, fenced(solution(row, body))), rows))
    assert [verdict for verdict in verdicts if verdict.passed is not (body is None)] == [] and len(rows) >= 4


REAL_ANSWERS = [  # {own}: the row's own solution, under the name `own`
    ("HumanEval/32", "def f(xs): return [[]]", False),
    ("HumanEval/32", "{own}\ndef f(xs): return own(xs)", True),
    (769, "{own}\ndef f(*a): return own(*a)[::-1]", True),
    (8, "{own}\ndef f(*a): return own(*a)[::-1]", False),
]


@pytest.mark.parametrize("task, program, correct", REAL_ANSWERS)
def test_real_answers_get_evalpluss_verdicts(shared, task, program, correct):
    [row] = [row for row in all_rows(shared, "humaneval+" if "/" in str(task) else "mbpp+") if row["task_id"] == task]
    name = renio_eval.tested_function(row)
    program = program.replace("{own}", re.sub(rf"\b{name}\b", "own", solution(row))).replace("def f(", f"def {name}(")
    assert grade_code(row, fenced(program)).passed is correct


def test_a_verdict_waits_for_no_large_package():
    job = json.dumps(dict(row=ROW, completion=fenced(TWICE), timeout=20))
    command = [sys.executable, "-X", "importtime", renio_eval.__file__, "judge"]
    done = subprocess.run(command, input=job, capture_output=True, text=True)
    assert json.loads(done.stdout)[:2] == [True, "passed"] and "numpy" in done.stderr
    assert not re.search(r"\| +(torch|transformers|pandas|scipy|matplotlib|datasets)$", done.stderr, re.MULTILINE)


@pytest.fixture
def sandbox_of():
    made = []

    def make(program, **settings):
        made.append(Sandbox(30, **settings))
        made[-1].missing = made[-1].ask(["confine"])
        made[-1].ask(["load", program])
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


def test_a_test_has_processor_time_by_the_references_and_all_tests_share_theirs(sandbox_of, monkeypatch):
    burn = "import time\ndef double(x):\n    end = time.process_time() + x\n    while time.process_time() < end: pass"
    sandbox = sandbox_of(burn + "\n    time.sleep(1.0)")
    monkeypatch.setattr(Sandbox, "TEST_SECONDS", 0.5)
    sandbox.ask(["call", "double", [0.1]])  # asleep for longer than it may work
    sandbox.ask(["call", "double", [1.0]], lambda: 5.0)  # works for a fifth of the reference's time
    with pytest.raises(renio_eval.SolutionFailed, match="timeout"):
        sandbox.ask(["call", "double", [1.0]], lambda: 0.01)
    sandbox = sandbox_of(burn)
    sandbox.left = 1.0
    with pytest.raises(renio_eval.SolutionFailed, match="timeout"):
        for _ in range(5):
            sandbox.ask(["call", "double", [0.3]])


def start(code):
    """A program that runs the code where it is loaded."""
    return f"import os, sys, time\nclass Start:\n{textwrap.indent(code, '    ')}\n{TWICE} if Start else None"


def into_pipes(data):
    """A program that writes into all its files, the pipe to the judge too, when it is called."""
    write = f"        try: os.write(fd, {data})\n        except OSError: pass"
    return f"import os, time\ndef double(x):\n    for fd in range(3, 64):\n{write}\n    return None"


YES = "\n    def __eq__(self, other): return True\ndef double(x): return Yes()"
SAME_HASHES = "', '.join(str(i * (2 ** 61 - 1)) for i in range(10 ** 5, 2 * 10 ** 5))"  # a set of these takes hours
HOSTILE = {  # name: (program, what the verdict's reason holds)
    "endless loop": (start("while True: pass"), "timeout"),
    "memory": (start("x = []\nwhile True: x.append(bytes(10 ** 8))"), "MemoryError"),
    "fork bomb": (start("while True: os.fork()"), "PermissionError"),
    "os._exit(0) in the call": ("import os\ndef double(x): return os._exit(0)", "exit status 0"),
    "crash": (start("import ctypes\nctypes.string_at(0)"), "SIGSEGV"),
    "equal to everything": (f"class Yes:{YES}", "an answer of type Yes"),
    "a number equal to everything": (f"class Yes(int):{YES}", "incorrect answer to test 1"),
    "a huge integer": ("def double(x): return 10 ** 10 ** 6", "incorrect answer to test 1"),
    "an answer written by hand": (into_pipes('b\'["value", ["passed"]]\\n\' * 9'), "no plain value"),
    "same hashes": (into_pipes(f'(\'["value", {{"set": [%s]}}]\\n\' % {SAME_HASHES}).encode()'), "without a verdict"),
    "closed pipes": (start("os.closerange(0, 64)\ntime.sleep(1000)"), "it closed its pipe"),
}


@LINUX
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_fails_in_bounded_time_and_leaves_no_process(name, monkeypatch):
    groups, killpg, began = [], os.killpg, time.monotonic()
    monkeypatch.setattr(os, "killpg", lambda group, number: groups.append(group) or killpg(group, number))
    program, reason = HOSTILE[name]
    verdict = grade_code(ROW, fenced(program), timeout=1.0 if reason == "timeout" or name == "same hashes" else 20.0)
    assert not verdict.passed and reason in verdict.reason, verdict
    alive = True
    while alive:  # zombies do not count
        assert time.monotonic() - began < 90  # the limit, and what a busy machine adds
        processes = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout
        alive = re.search(rf"^ *{groups[0]} +[^Z]", processes, re.MULTILINE)


ATTACKS = """
import ctypes, fcntl, os, resource, socket, struct, subprocess
def double(secret, folder, victim):
    libc, (ours, theirs), done = ctypes.CDLL(None), os.pipe(), []
    for name, attack in dict(
        kill=lambda: os.kill(victim, 0), fork=lambda: os.fork() or os._exit(0), setsid=lambda: os.setsid(),
        program=lambda: subprocess.run(["true"]), limit=lambda: resource.prlimit(victim, resource.RLIMIT_CORE, (0, 0)),
        socket=lambda: socket.socket(), environ=lambda: "SECRET" in os.environ, chmod=lambda: os.chmod(secret, 0o600),
        owner=lambda: fcntl.fcntl(ours, 15, struct.pack("ii", 1, os.getpid())), mkdir=lambda: os.mkdir(folder + "/a"),
        FIOASYNC=lambda: fcntl.ioctl(theirs, 0x5452, b"0000"), PDEATHSIG=lambda: libc.prctl(1, 0, 0, 0, 0) == 0,
        truncate=lambda: os.truncate(secret, 0), O_TRUNC=lambda: os.open(secret, os.O_RDONLY | os.O_TRUNC),
        write=lambda: os.open(secret, os.O_WRONLY), creat=lambda: os.open(folder + "/made", os.O_CREAT),
        rename=lambda: os.rename(secret, secret), read=lambda: os.open(secret, os.O_RDONLY),
        exists=lambda: os.path.exists(secret),
    ).items():
        try:
            if attack() is not False: done.append(name)
        except OSError: pass
    for command, argument in ((fcntl.F_SETOWN, victim), (fcntl.F_SETSIG, 9), (fcntl.F_SETFL, os.O_ASYNC)):
        libc.fcntl(ours, command, argument)
    os.write(theirs, b"x")  # kills the victim
    return done  # the attacks that the system let pass
"""


@pytest.fixture
def victim(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    (tmp_path / "secret").write_text("secret")
    with subprocess.Popen(["sleep", "600"]) as process:
        yield tmp_path / "secret", tmp_path, process
        process.kill()


@LINUX
@pytest.mark.parametrize("landlock", [0, 1, 2, 3, 5, 99])
@pytest.mark.parametrize("namespaces", [False, True])
def test_an_older_kernel_is_reported_and_lets_no_program_harm_others(landlock, namespaces, victim, sandbox_of):
    lacking = [name for name in sandbox_of(TWICE).missing if "names of files" not in name]
    if lacking:
        pytest.skip(f"this system lacks {', '.join(lacking)}")
    sandbox, (secret, folder, process) = sandbox_of(ATTACKS, landlock=landlock, namespaces=namespaces), victim
    done = sandbox.ask(["call", "double", [str(secret), str(folder), process.pid]])
    hidden = [name for name in sandbox.missing if "names of files" in name]
    assert done == ([] if not hidden else ["exists"] if landlock else ["read", "exists"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    assert os.listdir(folder) == ["secret"] and secret.read_text() == "secret"
    files = {0: ["read protection of files (Landlock)"], 99: []}.get(landlock, [f"Landlock 6 (here {landlock})"])
    assert sandbox.missing == hidden + files


@LINUX
def test_those_attacks_would_succeed_without_the_sandbox(victim):
    secret, folder, process = victim
    program = ATTACKS + f"print(double({str(secret)!r}, {str(folder)!r}, {process.pid}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(re.findall(r"(\w+)=lambda", ATTACKS)), done
    assert process.wait(10) == -9 and secret.read_text() == ""


def test_what_solutions_use_works_in_the_sandbox_and_values_go_through_its_pipe(sandbox_of):
    program = """
import asyncio, collections, csv, dataclasses, datetime, heapq, itertools, random, re, secrets, sys, time, uuid
from concurrent.futures import ThreadPoolExecutor
import numpy as np
@dataclasses.dataclass
class Box: up: "Box" = None
def double(x):
    assert np.linalg.solve(np.eye(9) * 2, np.ones(9))[0] == 0.5 and secrets.randbelow(3) < 3 and time.strftime("%Z")
    assert list(ThreadPoolExecutor(4).map(abs, [-1, 2])) == [1, 2] and sys.stdin.read() == "" and uuid.uuid4()
    for _ in range(1000): print("x" * 10000, file=sys.stderr)
    return x, (np.int64(6), collections.Counter("aa"), {1: 2}.keys(), re.match("a", "ab"), np.float64(0.5))
"""
    values = [1, 10**400, 1.5, "\ud800é", True, None, 1j, (2, [3]), {4}, frozenset({5}), {(6, 7): {8: [9]}}, [], set()]
    plain, others = sandbox_of(program).ask(["call", "double", [values]])
    assert repr(plain) == repr(values)
    assert others == (6, {"a": 2}, {1}, "a", 0.5)
    assert not {int, float, dict, set, str} & set(map(type, others))  # equal to Python's values, but not of their type


@pytest.mark.parametrize("column, header", [(1, "x86_64-linux-gnu/asm/unistd_64.h"), (2, "asm-generic/unistd.h")])
def test_the_numbers_of_the_system_calls_are_the_kernels(column, header):
    if not os.path.exists(f"/usr/include/{header}"):
        pytest.skip(f"no /usr/include/{header}")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", open(f"/usr/include/{header}").read()))
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat"))
    calls = re.findall(r"\b([a-z]\w+) (\d+) (\d+|-)(?=[,\"])", inspect.getsource(renio_eval.filter_system_calls))
    assert [call for call in calls if call[column] not in ("-", known.get(call[0]))] == [] and len(calls) > 70
