"""Score language models on math and code benchmarks, compare and report the scores.

    python eval.py --model DIR_OR_NAME --benchmarks arith --n 4 --output scores.json
    python eval.py --model Qwen/Qwen3-1.7B --adapter runs/opd+renio/final --scale paper --output scores.json
    python eval.py --model DIR_OR_NAME --benchmarks gsm8k humaneval+ --data_dir DATA --limit 8 --output scores.json
    python eval.py --checkpoints runs/opd+renio --model DIR_OR_NAME     # every checkpoint-N, each into its own eval.json
    python eval.py compare A.json B.json           # paired difference of B over A, its interval and p-value
    python eval.py report results/micro            # every eval.json below it -> results/micro/report.md and its figures

One file, read top to bottom: the arithmetic world (a synthetic benchmark that needs no download), prompts and data,
graders, the sandbox for code, statistics, sampling, the evaluation, the report and its figures. It imports nothing of this
project: renio.py and filter_experiments.py import it. torch and transformers are imported where a model runs, so that
grading and reporting start at once.

The paper's evaluation (Table 7): temperature 1.0, top-p 0.95, no top-k, up to 38,912 new tokens, thinking on, 12 samples a
problem in math and 4 in code; `--scale paper` sets it.
"""

import argparse
import ast
import contextlib
import copy
import functools
import hashlib
import inspect
import json
import math
import os
import re
import resource
import select
import signal
import subprocess
import symtable
import sys
import tempfile
import textwrap
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import LazyLoader, find_spec, module_from_spec
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm


def imported_at_first_use(name):
    """The module, which runs when it is first asked for something: verdicts and reports need not wait for torch."""
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


renio = imported_at_first_use("renio")

# ---------------------------------------------------------------------------------------------------------------------
# Benchmarks.


class Benchmark(NamedTuple):
    """Where a benchmark comes from, what its columns are called, and what may be done with it."""

    task: str  # which prompt and which grader: arith and math by the answer, code by the row's test
    hub_name: str
    split: str
    file: str  # its name in --data_dir
    problem: str  # column
    gold: str  # column of the answer; for code of a solution
    licence: str


BENCHMARKS = {
    "arith": Benchmark("arith", "", "test", "", "problem", "answer", "made here"),
    "aime24": Benchmark("math", "HuggingFaceH4/aime_2024", "train", "aime_2024.jsonl", "problem", "answer", "© MAA"),
    "aime25": Benchmark("math", "yentinglin/aime_2025", "train", "aime_2025.jsonl", "problem", "answer", "© MAA"),
    "hmmt25": Benchmark("math", "MathArena/hmmt_feb_2025", "train", "hmmt_feb_2025.jsonl", "problem", "answer",
                        "© HMMT, CC-BY-NC-SA-4.0"),
    "amc23": Benchmark("math", "math-ai/amc23", "test", "amc23.jsonl", "question", "answer", "© MAA"),
    "math500": Benchmark("math", "HuggingFaceH4/MATH-500", "test", "math_500.jsonl", "problem", "answer", "MIT"),
    "minerva": Benchmark("math", "math-ai/minervamath", "test", "minervamath.jsonl", "question", "answer",
                         "derived from MIT OpenCourseWare"),
    "gsm8k": Benchmark("math", "openai/gsm8k:main", "test", "gsm8k_test.jsonl", "question", "answer", "MIT"),
    "humaneval+": Benchmark("code", "evalplus/humanevalplus", "test", "HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz",
                            "prompt", "canonical_solution", "Apache-2.0"),
    "mbpp+": Benchmark("code", "evalplus/mbppplus", "test", "MbppPlus-OriginFmt-v0.2.0.jsonl.gz", "prompt", "code",
                       "Apache-2.0"),
}


def load_benchmark(name, data_dir=None, limit=None):
    """The first `limit` problems of a benchmark as dicts of problem, solution and answer, for code also the `test` row.

    Of `arith` 500 test problems without a limit. Others come from data_dir or the hub. Raises renio.UserError for an unknown
    benchmark and for a row that can't be asked or graded.
    """
    if name not in BENCHMARKS:
        raise renio.UserError(f"--benchmarks {name}: unknown; known are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if benchmark.task == "arith":
        return renio.arith_rows(limit or 500, split="test")
    source = str(Path(data_dir) / benchmark.file) if data_dir else benchmark.hub_name
    rows = []
    for number, raw in enumerate(renio.read_table(source, benchmark.split)[:limit], start=1):
        if not isinstance(raw, dict):
            raise renio.UserError(f"{source}, row {number}: expected columns, found {type(raw).__name__}")
        for column in (benchmark.problem, benchmark.gold, *(("test",) if benchmark.task == "code" else ())):
            if not str(raw.get(column) or "").strip():
                raise renio.UserError(f"{source}, row {number}: nothing in the column {column}")
        if benchmark.task == "code" and "inputs = [" not in raw["test"]:
            raise renio.UserError(f"{source}, row {number}: no inputs in the column test")
        if benchmark.task == "code":
            rows.append(dict(problem=code_problem(raw), answer=None, test=raw,
                             solution=raw[benchmark.gold] if "code" in raw else raw["prompt"] + raw[benchmark.gold]))
        else:
            solution, hashes, answer = str(raw[benchmark.gold]).rpartition("####")  # GSM8K's answer stands behind these
            rows.append(dict(problem=raw[benchmark.problem], answer=answer.strip(),
                             solution=raw[benchmark.gold] if hashes else raw.get("solution")))
    if not rows:
        raise renio.UserError(f"{source}: no rows")
    return rows


def code_problem(row):
    """What a model is asked for a row of HumanEval+ or MBPP+; of the latter with a test, which names the function."""
    if "entry_point" in row:
        return f"Complete this Python function.\n\n```python\n{row['prompt'].strip()}\n```"
    return f"{row['prompt'].strip()} The program must pass this test:\n\n```python\n{row['test_list'][0]}\n```"


# ---------------------------------------------------------------------------------------------------------------------
# Graders.

MARKERS = ("but wait hmm perhaps maybe actually seems might likely check alternatively however though again").split()
MARKER_PATTERN = re.compile(rf"\b(?:{'|'.join(MARKERS)})\b", re.IGNORECASE)


def count_markers(text):
    """How many reflection markers (the paper's list, Appendix C) stand in the text, as whole words in any case."""
    return len(MARKER_PATTERN.findall(text))


class Verdict(NamedTuple):
    """Of a grader: whether an answer is right, and why or why not, in one line."""

    passed: bool
    reason: str


# ---------------------------------------------------------------------------------------------------------------------
# Code grader. Two processes a verdict. The judge, on the trusted side, takes inputs and expected results from the row
# and compares as evalplus does; each call goes by pipe to the sandbox, a process that has the program and the arguments
# of that call, and nothing else: no expected result, no file but Python's own, no network, no way to start or signal a
# process. What comes back is made of plain values, so a program can do no more than answer rightly or wrongly.


def grade_code(row, completion, timeout=60.0):
    """Whether the program in `completion` passes all tests, base and plus, of a row of HumanEval+ or MBPP+.

    row: all columns. completion: the model's text; `solution_program` says what of it is the program.
    timeout: seconds of processor time that the program may take in all; of the clock five times as many. A test alone
    may take 4 seconds, or four times as long as the reference solution takes here where that is more.
    Returns a Verdict, whose reason is one line. Where the system lacks a protection, warns once what is missing.
    """
    job = json.dumps(dict(row=row, completion=completion, timeout=timeout))
    with subprocess.Popen([sys.executable, __file__, "judge"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as judging:
        try:
            said, errors = judging.communicate(job, timeout=Sandbox.PATIENCE * timeout + 60)
        except subprocess.TimeoutExpired:
            return Verdict(False, "timeout: the judge did not end")
        finally:
            end_group(judging.pid)
    try:
        passed, reason, missing = json.loads(said)
    except ValueError:  # a reply can take the judge's memory, or its processor time
        last = (errors.strip().splitlines() or [f"exit status {judging.returncode}"])[-1]
        return Verdict(False, f"the judge ended without a verdict: {last}")
    _warn_of_missing(tuple(missing))
    return Verdict(passed, reason)


def end_group(group):
    """Kill what is left of a process group and see that it is gone, but for zombies; warns if it is not in 5 s."""
    for _ in range(500):
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nothing left; macOS says the second of zombies
            return
        states = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
                states += state if int(its_group) == group else ""
        if sys.platform == "linux" and not set(states) - {"Z", "X"}:
            return
        time.sleep(0.01)
    print(f"warning: the process group {group} of a verdict outlived SIGKILL", file=sys.stderr)


@functools.cache  # once
def _warn_of_missing(missing):
    if missing:
        print(f"warning: model-written code runs without {', '.join(missing)} here; Linux 6.12 or later has all, where "
              "it allows user namespaces", file=sys.stderr)


def processors():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# What of an answer is the program.

FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?:```|~~~)")  # may open an item of a list
OPENING = re.compile(r"([ \t]*)(?:(?:async +def|def|class|import|from|if|try)\b|@|\w+ *(?::.*)?=[^=])")  # unfenced


def solution_program(row, completion):
    """The program in an answer, after what stands above the function in HumanEval+'s prompt; None where there is none.

    It is the last fenced block that parses and defines the tested function, or else the last such stretch of lines, or
    else (of HumanEval+) a body for the prompt's function. What follows the thinking is looked through first.
    """
    [name] = tested_functions(row)
    prompt = row["prompt"] if "entry_point" in row else ""
    above = re.split(rf"^def {name}\b", prompt, flags=re.MULTILINE)[0]
    for text in completion.replace("\r\n", "\n").rpartition("</think>")[::-2]:
        blocks = fenced_blocks(text)
        programs = [above + "\n" + code for code in (*blocks, *parsable_stretches(text)) if name in code]
        if prompt:
            programs += [f"{prompt.rstrip()}\n{body}" for code in (*blocks, text)
                         for body in (code, textwrap.indent(textwrap.dedent(code), "    "), "    " + code.strip())]
        for program in programs:
            if needed := needed_statements(program, name):
                return needed
    return None


def fenced_blocks(text):
    """What stands between fences, the last first; up to several closing ones, as a docstring may hold fences."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if FENCE.match(line)][-100:]  # an answer can be nothing else
    return [textwrap.dedent("\n".join(lines[opening + 1 : closing]))
            for position, opening in reversed(list(enumerate(fences)))
            for closing in (*fences[position + 1 : position + 8], len(lines))]


def parsable_stretches(text):
    """Stretches of lines amid prose that are Python, the last first, each from a statement on as long as can be."""
    lines, start, found = text.split("\n"), 0, []
    while start < len(lines):
        stretch = []
        if opening := OPENING.match(lines[start]):
            stretch = [line.removeprefix(opening[1]) for line in lines[start:]]
        while stretch:
            try:
                ast.parse("\n".join(stretch))
                break
            except SyntaxError as error:
                del stretch[min(error.lineno or 1, len(stretch)) - 1 :]
            except (ValueError, RecursionError, MemoryError):
                stretch = []
        found += ["\n".join(stretch)] if stretch else []
        start += max(len(stretch), 1)
    return found[::-1]


def needed_statements(program, name):
    """Of a program the imports, and the definitions and assignments that `name` needs; None where it defines no such.

    All else at the top level could fail, or wait for input, and evalplus's sanitize drops it too.
    """
    try:
        bound = [(node, bound_names(node)) for node in ast.parse(program).body]
        if not any(name in names and (not isinstance(node, ast.FunctionDef) or returns(node)) for node, names in bound):
            return None
        for node, _ in bound:
            node.lineno = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        sources = [(ast.get_source_segment(program, node), node, names, set()) for node, names in bound if names]
        for source, _, _, used in sources:
            tables = [symtable.symtable(source, "<solution>", "exec")]
            for table in tables:
                tables += table.get_children()
                used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    wanted, before = {name}, None
    while wanted != before:
        before = set(wanted)
        wanted.update(*(used for _, _, names, used in sources if names & wanted))
    kept = [(getattr(node, "module", None) != "__future__", source) for source, node, names, _ in sources
            if isinstance(node, (ast.Import, ast.ImportFrom)) or names & wanted]
    return "\n".join(source for _, source in sorted(kept, key=lambda pair: pair[0]))  # __future__ must come first


def bound_names(node):
    """Names that an import, a definition or an assignment at the top level binds, also under if and try; else none."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {part.id for target in targets for part in ast.walk(target)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
        return set().union(*map(bound_names, ast.iter_child_nodes(node)))
    return set()


def returns(function):
    return any(isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) for node in ast.walk(function))


# The judge. Rules, lists of tasks and limits are those of evalplus's HEAD (26d6d00, github.com/evalplus/evalplus).

SET_TASKS = {"similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
             "intersection_array", "find_dissimilar", "Diff"}  # order and repetition don't count
NOT_NONE_TASKS = {"check_str", "text_match_three", "text_starta_endb"}  # expected: whether a match comes back
ALSO_RIGHT = {  # what is right beside the expected result, by answer and arguments
    "are_equivalent": lambda answer, *_: answer,
    "sum_div": lambda *_: 0,
    "digit_distance_nums": lambda _, *numbers: sum(  # the shorter number padded with zeros
        abs(int(a) - int(b)) for a, b in zip(*(f"{n:0>{len(str(max(numbers)))}}" for n in numbers), strict=True)),
    "surface_Area": lambda _, base, height: round(  # with the pyramid's height rather than that of its sides
        base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))}


def tested_functions(row):
    """Names of the solution's functions that the row's tests call: one."""
    return [row["entry_point"] if "entry_point" in row else re.findall(r"(\w+)\(\*inp\)", row["test"])[0]]


def test_cases(row):
    """The row's tests, pairs of arguments and expected result, made when asked for; and the floats' tolerance."""
    given, _, loop = row["test"].replace("def check(candidate):", "if True:").rpartition("for i, ")
    scope = {}
    exec(given, scope)
    inputs = scope["inputs"]
    if "combinations_colors" in row["test"]:  # MBPP+/255: five answers hold 6 to 128 million strings
        inputs = [(colors, n) for colors, n in inputs if n < 76]
    results = scope["results"] if "results" in scope else (scope["ref_func"](*copy.deepcopy(x)) for x in inputs)
    tolerance = float(re.findall(r"[\d.e-]+", loop)[-1])
    return zip(inputs, results, strict=True), tolerance


def reference_seconds(row, name, arguments):
    """Processor time that the row's own solution takes for a call, what comes back made ready for the pipe."""
    scope = {}
    exec(row["prompt"] + row["canonical_solution"] if "entry_point" in row else row["code"], scope)
    arguments, began = copy.deepcopy(arguments), time.process_time()
    json.dumps(encode(scope[name](*arguments)))
    return time.process_time() - began


def all_floats(value):
    return isinstance(value, float) or (isinstance(value, (list, tuple)) and bool(value)
                                        and all(isinstance(item, float) for item in value))


def is_right(name, arguments, answer, expected, tolerance):
    """Whether an answer of the function `name` counts as the expected one. Raises some where it can't be compared."""
    if name == "find_zero":
        return abs(sum([c * math.pow(answer, power) for power, c in enumerate(*arguments)])) <= tolerance
    if name in SET_TASKS:
        exact = set(answer) == set(expected)
    elif name in NOT_NONE_TASKS:
        exact = expected == (answer if isinstance(answer, bool) else answer is not None)
    else:
        exact = answer == expected or (name in ALSO_RIGHT and answer == ALSO_RIGHT[name](answer, *arguments))
    if exact or not tolerance:
        return exact
    return (type(answer) is type(expected) and (not isinstance(expected, (list, tuple)) or len(answer) == len(expected))
            and np.allclose(answer, expected, rtol=1e-7, atol=tolerance))


class SolutionFailed(Exception):
    """The program did not answer a call, or wrongly: its one-line message is the verdict's reason."""


def judge():
    """`python eval.py judge`: reads a job from standard input, prints [passed, reason, protections missing]."""
    job = json.load(sys.stdin)
    row, real_stdout = job["row"], sys.stdout
    sys.stdout = sys.stderr  # a reference that prints must not speak for the judge
    seconds = math.ceil(job["timeout"]) + 5  # bounds what a reply can cost, such as a set of integers of the same hash
    for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, 4 << 30)):
        with contextlib.suppress(ValueError):  # macOS has no limit of memory
            resource.setrlimit(limit, (most, most))
    solution = Sandbox(job["timeout"])
    try:
        [name] = tested_functions(row)
        program = solution_program(row, job["completion"])
        if program is None:
            raise SolutionFailed(f"no program that defines {name}")
        solution.start(program, name)
        cases, tolerance = test_cases(row)
        for number, (arguments, expected) in enumerate(cases, start=1):
            answer = solution.call(name, arguments, functools.partial(reference_seconds, row, name, arguments))
            if not tolerance and all_floats(expected):
                tolerance = 1e-6  # in the tests that follow too
            right = False
            with contextlib.suppress(Exception):  # a plain value can still be of a wrong kind
                right = is_right(name, arguments, answer, expected, tolerance)
            if not right:
                raise SolutionFailed(f"wrong answer to test {number}")
        verdict = True, "passed"
    except SolutionFailed as failed:
        verdict = False, str(failed)
    except Exception as error:  # a row that holds no tests; no memory for what came back
        verdict = False, f"the judge failed with {type(error).__name__}: {error}"
    finally:
        solution.close()
    print(json.dumps([verdict[0], " ".join(verdict[1].split())[:300], solution.missing]), file=real_stdout)


class Sandbox:
    """The process that runs a model's program, seen from the judge, of whose process group it is.

    seconds: of processor time that it may take in all. landlock: the newest version to use, namespaces: whether to use
    them; tests take them away, as an older kernel does.
    """

    REPLY_LIMIT = 64 << 20  # bytes
    TEST_SECONDS, REFERENCE_FACTOR = 4.0, 4.0  # a test's limit: at least, and as a multiple of the reference's time
    PATIENCE = 5  # so many times a limit by the clock, as other work takes the processors or the program sleeps

    def __init__(self, seconds, landlock=99, namespaces=True):
        self.left, self.missing = seconds, []
        self.folder = tempfile.TemporaryDirectory()
        source = "\n".join(["import json, os, resource, signal, sys", *map(inspect.getsource, (
            encode, decode, serve, confine, hide_paths, restrict_files, filter_system_calls)), "serve()"])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", source, str(math.ceil(seconds) + 1), str(os.getpid()), str(landlock),
             str(int(namespaces))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, cwd=self.folder.name,
            env=dict(PATH="/usr/bin:/bin", LANG="C.UTF-8", HOME=self.folder.name, OMP_NUM_THREADS="1",
                     OPENBLAS_NUM_THREADS="1"))
        os.set_blocking(self.process.stdin.fileno(), False)
        self.clock = functools.partial(time.clock_gettime, ~self.process.pid << 3 | 2)  # see clock_getcpuclockid(3)
        try:
            self.clock()
        except (OSError, AttributeError):  # not on macOS
            self.clock = time.monotonic

    def start(self, program, name):
        self.missing = self.ask("confine")
        if not self.ask(dict(program=program, name=name)):
            raise SolutionFailed(f"{name} is no function")

    def call(self, name, arguments, reference=None):
        return self.ask(dict(call=name, arguments=arguments), reference)

    def ask(self, question, reference=None):
        """The reply to a question. reference: gives the seconds that the reference solution takes, asked if need be."""
        wall, began, limit = time.monotonic(), self.clock(), min(self.TEST_SECONDS, self.left)
        left, reply = memoryview(json.dumps(encode(question)).encode() + b"\n"), bytearray()
        source, sink = self.process.stdout.fileno(), self.process.stdin.fileno()
        try:
            left = left[os.write(sink, left) :]
            while True:
                readable, writable, _ = select.select([source], [sink] if left else [], [], 0.05)
                if readable:
                    reply += os.read(source, 1 << 20) or self.ended()
                elif writable:
                    left = left[os.write(sink, left) :]
                used = self.clock() - began
                if reply[-1:] == b"\n" or len(reply) > self.REPLY_LIMIT:
                    break
                if used > limit and reference:
                    limit, reference = min(max(limit, self.REFERENCE_FACTOR * reference()), self.left), None
                if used > limit or time.monotonic() - wall > self.PATIENCE * limit:
                    raise SolutionFailed("timeout")
        except OSError:
            self.ended()
        self.left -= used
        try:
            kind, value = decode(reply)
        except Exception:  # whatever a program writes into its pipe
            raise SolutionFailed(f"no plain value came back within {self.REPLY_LIMIT >> 20} MB") from None
        if kind != "value":
            raise SolutionFailed(str(value))
        return value

    def ended(self):
        try:
            status = self.process.wait(1)
            ending = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            ending = "it closed its pipe"
        raise SolutionFailed(f"the program ended before it answered ({ending})")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.folder.cleanup()


def encode(value):
    """A plain value as what JSON can hold; what it can't becomes {kind: content}. Raises TypeError for all else."""
    kind = type(value)
    if kind is int and value.bit_length() > 64:
        return {"int": hex(value)}  # in decimals Python refuses the longest
    if kind in (int, str, float, bool, type(None)):
        return value
    if kind in (list, tuple, set, frozenset):
        items = list(value)
        kinds = {*map(type, items)}
        if not kinds <= {int, str, float, bool, type(None)} or int in kinds and any(
                type(item) is int and item.bit_length() > 64 for item in items):
            items = [encode(item) for item in items]
        return items if kind is list else {kind.__name__: items}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    for plain in (int, float, str, list, tuple, set, frozenset, dict, complex):
        if isinstance(value, plain):  # numpy.float64, a Counter: equal to what they hold, but not of its type
            return {"subclass": encode(plain(value))}
    if (kind.__module__, kind.__name__) == ("re", "Match"):
        return {"subclass": value.group()}
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item() if kind.__name__ in ("bool", "bool_") else {"subclass": encode(value.item())}
    if hasattr(kind, "isdisjoint"):  # the keys of a dict, equal to a set
        return {"subclass": encode(set(value))}
    if hasattr(kind, "__iter__"):  # a map, a range: equal to nothing, but in some tasks the set of its items counts
        return {"iterator": encode(list(value))}
    raise TypeError(f"an answer of type {kind.__name__}: only numbers, strings, None and containers of them count")


def decode(text):
    """The value that `encode` made the JSON text of. It is made of plain values, whatever the text."""
    makers = {"tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict, "int": lambda digits: int(digits, 16),
              "complex": lambda parts: complex(*parts), "iterator": iter,
              "subclass": lambda value: type("Subclass", (type(value),), {})(value)}

    def untag(tagged):
        [(kind, content)] = tagged.items()
        return makers[kind](content)

    return json.loads(text, object_hook=untag)


def serve():
    """The sandbox's own main: confines itself, runs the program, answers calls. Its source goes there by itself."""
    import io
    import types

    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what the program prints goes nowhere, however much it is
        os.dup2(null, stream)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), open(os.devnull, "w"), open(os.devnull, "w")
    module = sys.modules["solution"] = types.ModuleType("solution")  # where dataclasses look up quoted annotations

    def answer(question):
        if question == "confine":
            return confine(*map(int, sys.argv[1:]))
        if "program" in question:
            exec(compile(question["program"], "<solution>", "exec"), vars(module))
            return callable(getattr(module, question["name"], None))
        return getattr(module, question["call"])(*question["arguments"])

    for line in questions:
        try:
            reply = json.dumps(["value", encode(answer(decode(line)))])
        except MemoryError:
            reply = json.dumps(["error", "out of memory"])
        except BaseException as error:  # SystemExit too: a program must not end instead of answering
            reply = json.dumps(["error", f"{type(error).__name__}: {error}"[:300]])
        replies.write(reply.encode() + b"\n")
        replies.flush()


def confine(cpu_seconds, judge_id, newest_landlock, namespaces):
    """Take from this process, for good, what a solution does not need; returns names of protections missing here."""
    import ctypes

    paths = [path for path in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "/lib", "/lib64", "/usr/lib",
                               "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
             if os.path.exists(path)]
    linux = sys.platform == "linux"
    hidden = linux and namespaces and hide_paths(paths)
    missing = [] if hidden else ["hidden names of files (user namespaces)"]
    for name, limit in (("CPU", cpu_seconds), ("AS", 4 << 30), ("FSIZE", 0), ("NOFILE", 64), ("CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
        except (AttributeError, OSError, ValueError):  # macOS has no limit of memory
            missing.append(f"a limit of {name}")
    if linux:
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != judge_id:
            os._exit(1)  # it died before that
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which Landlock and seccomp ask for
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    landlock = restrict_files(paths, newest_landlock) if linux else 0
    if landlock < 6:
        missing.append(f"Landlock 6 (here {landlock})" if landlock else "read protection of files (Landlock)")
    if not (linux and filter_system_calls()):
        missing.append("a ban on processes, signals and the network (seccomp)")
    return missing


def hide_paths(paths):
    """Give this process a file system of its own that holds these paths only; returns whether the system allows it."""
    import ctypes

    libc, root, user, group = ctypes.CDLL(None), os.getcwd(), os.getuid(), os.getgid()

    def mount(source, target, flags, kind=None):
        if libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), None):
            raise OSError(f"mount {target}")

    try:
        if libc.unshare(0x10000000 | 0x20000):  # CLONE_NEWUSER | CLONE_NEWNS
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        mount("none", "/", 0x4000 | 0x40000)  # MS_REC | MS_PRIVATE: nobody else sees what follows
        mount("tmpfs", root, 0, b"tmpfs")
        for path in sorted(paths, key=len):
            if not os.path.exists(root + path):
                os.makedirs(root + (path if os.path.isdir(path) else os.path.dirname(path)), exist_ok=True)
                if not os.path.isdir(path):
                    open(root + path, "w").close()
                mount(path, root + path, 0x1000 | 0x4000)  # MS_BIND | MS_REC
        os.chroot(root)
        os.chdir("/")
        return True
    except OSError:
        return False


def restrict_files(paths, newest):
    """Landlock: of all files only these can be read, none changed. Returns the version in use, <= newest; 0: none."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None)
    version = min(libc.syscall(444, None, 0, 1), newest)
    if version < 1:
        return 0
    kinds = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # of access to files; each version knows more
    rules = struct.pack("QQQ", (1 << kinds) - 1, 3 * (version >= 4), 3 * (version >= 6))  # files, network, signals
    ruleset = libc.syscall(444, rules, ctypes.c_size_t(8 if version < 4 else 16 if version < 6 else 24), 0)
    for path in paths:
        place = os.open(path, os.O_PATH)
        access = 1 << 2 | (1 << 3 if os.path.isdir(path) else 0)  # read a file, list a folder
        libc.syscall(445, ruleset, 1, struct.pack("=Qi", access, place), 0)
        os.close(place)
    failed = libc.syscall(446, ruleset, 0)
    os.close(ruleset)
    return 0 if failed else version


def filter_system_calls():
    """seccomp: refuse every system call that is not listed here. Returns whether the filter holds."""
    import ctypes
    import platform
    import struct

    column, audit = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}.get(platform.machine(), (0, 0))
    calls = """
        read 0 63, write 1 64, close 3 57, fstat 5 80, newfstatat 262 79, lseek 8 62, mmap 9 222, mprotect 10 226,
        munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233, futex 202 98, rt_sigaction 13 134,
        rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, pread64 17 67, readv 19 65, writev 20 66,
        getdents64 217 61, readlinkat 267 78, faccessat 269 48, faccessat2 439 439, statx 332 291, getcwd 79 17,
        dup 32 23, dup3 292 24, pipe2 293 59, ppoll 271 73, pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21,
        epoll_pwait 281 22, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
        gettimeofday 96 169, times 100 153, getrusage 98 165, getrlimit 97 163, getpid 39 172, getppid 110 173,
        gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, uname 63 160, sysinfo 99 179,
        getrandom 318 278, sched_yield 24 124, sched_getaffinity 204 123, set_tid_address 218 96,
        set_robust_list 273 99, rseq 334 293, membarrier 324 283, restart_syscall 219 128, close_range 436 436,
        exit 60 93, exit_group 231 94, stat 4 -, lstat 6 -, access 21 -, readlink 89 -, poll 7 -, select 23 -,
        dup2 33 -, pipe 22 -, getdents 78 -, time 201 -, epoll_wait 232 -"""  # name, number on x86_64, on aarch64
    load, equal, some, end = 0x20, 0x15, 0x45, 0x06  # lines: (code, lines to skip if true, if false, value)
    refuse, allow, unknown = (end, 0, 0, 0x50001), (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x50026)  # EPERM; ENOSYS

    def by_argument(call, position, test, values, matching, other):
        tests = [(test, len(values) - i, 0, value) for i, value in enumerate(values)]
        number = int(call.split()[column])
        return [(equal, 0, len(tests) + 3, number), (load, 0, 0, 16 + 8 * position), *tests, other, matching]

    if not column:
        return False
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), refuse, (load, 0, 0, 0)]
    for number in [call.split()[column] for call in calls.split(",")]:
        program += [(equal, 0, 1, int(number)), allow] if number != "-" else []
    changing = [0o3, 0o100, 0o1000]  # to write, O_CREAT, O_TRUNC, by which Landlock below 3 lets files be emptied
    program += [
        (equal, 0, 1, 435), unknown,  # clone3, whose flags a filter can't see: libc then tries clone
        *by_argument("clone 56 220", 0, some, [0x10000], allow, refuse),  # threads, but no processes
        *by_argument("prlimit64 302 261", 0, equal, [0], allow, refuse),  # one's own limits
        *by_argument("openat 257 56", 2, some, changing, refuse, allow),
        *(by_argument("open 2 -", 1, some, changing, refuse, allow) if column == 1 else []),
        # no F_SETOWN, F_SETSIG or O_ASYNC, by which the kernel signals any process: F_DUPFD, F_GETFD, F_SETFD, F_GETFL
        *by_argument("fcntl 72 25", 1, equal, [0, 1, 2, 3, 1030], allow, refuse),
        # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
        *by_argument("ioctl 16 29", 1, equal, [0x5401, 0x5413, 0x541B, 0x5450, 0x5451], allow, refuse),
        refuse]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    return ctypes.CDLL(None).prctl(22, 2, header, 0, 0) == 0  # PR_SET_SECCOMP


# ---------------------------------------------------------------------------------------------------------------------
# Statistics.

def pass_at_k(n, c, k):
    """Unbiased chance that at least one of k samples is right, from c right ones of n (Chen et al. 2021, Eq. 1)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"need 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def bootstrap_interval(values, resamples=10_000, level=0.95):
    """Percentile interval of the mean of `values`, one a problem, under resampling of the problems."""
    values = np.asarray(values, dtype=float)  # (P,)
    means = resampling_shares(len(values), resamples) @ values
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


@functools.lru_cache(maxsize=2)  # drawing them costs far more than using them
def resampling_shares(n, resamples):
    """Each of n values' share of a bootstrap resample, (resamples, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples) / n


STUDENT_T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # 97.5 % quantiles for 1 to 9 degrees


def interval(*benchmarks, within=(-np.inf, np.inf)):
    """95 % interval of the mean over seeds and problems, averaged over benchmarks.

    benchmarks: (seeds, problems) each, of the same seeds. within: bounds of the quantity itself.
    One seed: bootstrap over the problems of each benchmark. More: Student's t over the seeds' means for what another
    training would change, and a normal deviate for what other problems would, added in squares. (A bootstrap over three
    seeds holds the truth in about three of four cases only.)
    """
    seeds = len(benchmarks[0])
    if seeds == 1:
        # benchmarks of one size must not be resampled alike
        means = np.mean([np.random.default_rng(i).permutation(resampling_shares(v.shape[1], 10_000) @ v[0])
                         for i, v in enumerate(benchmarks)], axis=0)
        low, high = np.quantile(means, [0.025, 0.975])
    else:
        by_seed = np.mean([v.mean(axis=1) for v in benchmarks], axis=0)  # (S,)
        t = STUDENT_T[seeds - 2] if seeds <= 10 else 2.262
        of_problems = sum(v.mean(axis=0).var(ddof=1) / v.shape[1] for v in benchmarks if v.shape[1] > 1)
        half = np.hypot(t * by_seed.std(ddof=1) / np.sqrt(seeds), 1.96 * np.sqrt(of_problems) / len(benchmarks))
        low, high = by_seed.mean() - half, by_seed.mean() + half
    return float(max(low, within[0])), float(min(high, within[1]))


def paired_p_value(differences, resamples=10_000):
    """Two-sided p-value of the mean of paired differences, one a problem, being 0: random changes of their signs.

    Counts the observed signs as one of the draws, so that it is never 0.
    """
    differences = np.asarray(differences, dtype=float)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(resamples, len(differences)))
    extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
    return float((1 + extreme.sum()) / (1 + resamples))


def majority_answer(answers):
    """The most frequent answer that is not None, the earliest among equals; None where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def rank_correlation(x, y):
    """Spearman's: the correlation of the ranks, ties sharing theirs; nan where one side is constant."""
    def ranks(values):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (counts.cumsum() - (counts - 1) / 2)[place]

    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation.

SCALES = {  # presets of the flags of an evaluation; explicit flags win
    "micro": dict(benchmarks=["arith"], n=4, max_new_tokens=64, batch_size=256, dtype="float32"),
    "small": dict(benchmarks=["gsm8k"], n=4, max_new_tokens=512, batch_size=16, dtype="float32"),
    "paper": dict(benchmarks=["aime24", "aime25", "hmmt25"], n=12, max_new_tokens=38912, batch_size=36,
                  dtype="bfloat16"),
}


def evaluate(args):
    """Sample, grade and score; writes args.output, and each batch as it is done to args.output + ".partial"."""
    if args.adapter and not (Path(args.adapter) / "adapter_config.json").exists():
        raise renio.UserError(f"--adapter {args.adapter}: no adapter_config.json in it")
    output = Path(args.output)
    partial = Path(f"{output}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    benchmarks = {name: load_benchmark(name, args.data_dir, args.limit) for name in args.benchmarks}
    for name, rows in benchmarks.items():
        if args.privileged and not all(row["solution"] for row in rows):
            raise renio.UserError(f"--privileged: {name} has no worked solutions to put in the prompt")
    tokenizer = renio.load_tokenizer(args.model)
    prompts_of = {name: [renio.prompt_ids(tokenizer, BENCHMARKS[name].task, row, args.thinking, args.privileged) for row in rows]
                  for name, rows in benchmarks.items()}
    longest = max(len(prompt) for prompts in prompts_of.values() for prompt in prompts) + args.max_new_tokens
    if args.engine == "vllm":
        lora_r = json.loads((Path(args.adapter) / "adapter_config.json").read_text())["r"] if args.adapter else 0
        model = sampler = renio.VllmSampler("--engine", args.model, args.dtype, args.device, longest, args.vllm_memory, lora_r)
        if args.adapter:
            sampler.load_adapter(args.adapter)
        batch_size = args.batch_size  # vLLM has its own bounds of memory
    else:
        model = renio.load_model(args.model, args.dtype, args.device, args.adapter)
        sampler = functools.partial(renio.sample, model)
        batch_size = min(args.batch_size, rows_that_fit(model, longest, args.device))
        if batch_size < args.batch_size:
            print(f"--batch_size {args.batch_size}: {batch_size} instead, as many as {longest} tokens each leave room for")
    settings = {k: v for k, v in vars(args).items() if k not in ("output", "device", "data_dir", "vllm_memory")}
    settings |= dict(
        batch_size=batch_size,
        checksums={name: checksum(rows) for name, rows in benchmarks.items()},
        sources={name: f"{BENCHMARKS[name].hub_name or name} ({BENCHMARKS[name].licence})" for name in benchmarks},
        prompts={name: tokenizer.decode(prompts[0]) for name, prompts in prompts_of.items()},
        versions={name: renio.version_of(name) for name in sorted({"torch", "transformers", args.engine})})
    done = resume_partial(partial, settings)
    eos_ids = renio.end_ids(model, tokenizer)
    results = []
    print(f"first prompt: {settings['prompts'][args.benchmarks[0]]!r}", flush=True)
    with partial.open("a", encoding="utf-8") as log, ThreadPoolExecutor(processors()) as pool:
        for name, rows in benchmarks.items():
            prompts = prompts_of[name]
            task = BENCHMARKS[name].task
            for decoding in args.decoding:
                n = 1 if decoding == "greedy" else args.n or (4 if task == "code" else SCALES[args.scale]["n"])
                order = sorted((p for p in range(len(rows)) for _ in range(n)), key=lambda p: -len(prompts[p]))
                answers = [[] for _ in rows]
                bar = tqdm(total=len(order), desc=f"{args.label} {name} {decoding}", unit="answer", mininterval=1.0)
                right = count = tokens = 0
                for start in range(0, len(order), batch_size):
                    key = f"{name} {decoding} {start}"
                    batch = order[start : start + batch_size]
                    if key not in done:
                        began = time.perf_counter()
                        completions = sampler([prompts[p] for p in batch], args.max_new_tokens, eos_ids,
                                              args.temperature if decoding == "sampled" else 0, args.top_p, args.top_k,
                                              seed=args.seed * 1_000_000 + start)
                        grade = functools.partial(grade_answer, tokenizer, eos_ids, task)
                        graded = list((pool.map if task == "code" else map)(grade, completions, [rows[p] for p in batch]))
                        done[key] = dict(answers=graded, seconds=time.perf_counter() - began)
                        log.write(json.dumps({"key": key, **done[key]}) + "\n")
                        log.flush()
                        tokens += sum(map(len, completions))
                    for p, answer in zip(batch, done[key]["answers"]):
                        answers[p].append(answer)
                        right, count = right + answer["right"], count + 1
                    bar.update(len(batch))
                    bar.set_postfix(score=f"{100 * right / count:.1f}",
                                    tokens_per_s=f"{tokens / bar.format_dict['elapsed']:.0f}")
                bar.close()
                results.append(dict(
                    benchmark=name, decoding=decoding, n=n, **summarize(answers),
                    seconds=sum(done[k]["seconds"] for k in done if k.startswith(f"{name} {decoding} ")),
                    problems=[dict({k: v for k, v in row.items() if k != "test"}, answers=a)
                              for row, a in zip(rows, answers)]))
    renio.write_json(output, dict(label=args.label, train_seed=args.train_seed, settings=settings, results=results))
    partial.unlink()
    for r in results:
        print(f"{args.label} {r['benchmark']} {r['decoding']}: Avg@{r['n']} {percent(r['avg'], r['avg_interval'])}, "
              f"{r['length']:.1f} tokens, {100 * r['truncation_rate']:.1f} % truncated -> {output}")


def evaluate_checkpoints(args):
    """Score every checkpoint-N of the run in args.checkpoints, each into its own eval.json; those that have one stay."""
    folders = sorted(Path(args.checkpoints).glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.split("-")[1]))
    if not folders:
        raise renio.UserError(f"--checkpoints {args.checkpoints}: no checkpoint-N in it")
    for folder in folders:
        if (folder / "eval.json").exists():
            continue
        own = argparse.Namespace(**vars(args) | dict(output=folder / "eval.json", checkpoints=None))
        if (folder / "adapter_config.json").exists():
            own.adapter = str(folder)
        else:
            own.model = str(folder)
        evaluate(own)
        renio.VllmSampler.close()


def rows_that_fit(model, tokens, device):
    """How many answers of so many tokens, prompt included, half of the device's memory holds beside the model."""
    shape, width = model.config, next(model.parameters()).element_size()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    row = tokens * shape.num_hidden_layers * 2 * heads * head_size * width + 6 * shape.vocab_size * 4  # cache, logits
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return max(1, int((renio.device_memory(device) * 1e9 / 2 - weights) // row))


def checksum(rows):
    """Names a set of problems: two scores are comparable where it is the same."""
    text = json.dumps([[row["problem"], row["answer"], *([row["test"]] if "test" in row else [])] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resume_partial(partial, settings):
    """Batches that an interrupted evaluation with the same settings left, by key; else starts the file anew."""
    if partial.exists():
        lines = partial.read_text(encoding="utf-8").split("\n")[:-1]  # a line cut short by the interruption has no end
        if lines and json.loads(lines[0]) == settings:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"going on with {partial}: {len(lines) - 1} batches done")
            return {batch.pop("key"): batch for batch in map(json.loads, lines[1:])}
    partial.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return {}


def grade_answer(tokenizer, eos_ids, task, completion, row):
    """What is recorded of an answer (token ids) to a row of a benchmark."""
    text = tokenizer.decode(completion, skip_special_tokens=True)
    if task == "code":
        verdict = grade_code(row["test"], text)
    else:
        reason = renio.math_verdict(text, row["answer"])
        verdict = Verdict(reason == "equal", reason)
    return dict(text=text, boxed=None if task == "code" else renio.extract_boxed(text), right=verdict.passed,
                reason=verdict.reason, tokens=len(completion), truncated=completion[-1] not in eos_ids,
                markers=count_markers(text))


def summarize(answers):
    """Scores of one benchmark from the answers (a list a problem), fractions with 95 % intervals over problems.

    Answers to code problems have no box, so that nothing but None is there to vote on: their majority is None.
    """
    n = len(answers[0])
    flat = [a for row in answers for a in row]
    right = [sum(a["right"] for a in row) for row in answers]
    per_problem = dict(avg=[c / n for c in right])
    for k in sorted({1, 2, 4, 8, n}):
        if k <= n:
            per_problem[f"pass@{k}"] = [pass_at_k(n, c, k) for c in right]
    if any(a["boxed"] is not None for a in flat):
        chosen = [majority_answer([a["boxed"] for a in row]) for row in answers]
        per_problem["majority"] = [c is not None and next(a["right"] for a in row if a["boxed"] == c)
                                   for c, row in zip(chosen, answers)]
    scores = dict(majority=None, majority_interval=None)
    for name, values in per_problem.items():
        scores |= {name: float(np.mean(values)), f"{name}_interval": bootstrap_interval(values)}
    return scores | dict(
        length=float(np.mean([a["tokens"] for a in flat])),
        truncation_rate=float(np.mean([a["truncated"] for a in flat])),
        format_rate=float(np.mean([a["boxed"] is not None for a in flat])),
        unparsable_rate=float(np.mean([a["reason"] == "unparsable" for a in flat])),
        markers=float(np.mean([a["markers"] for a in flat])))


def compare(path, other_path):
    """Print what the second evaluation scores beyond the first, paired by problem.

    Raises renio.UserError for files that are no evaluations, and for evaluations of different problems.
    """
    runs = []
    for name in (path, other_path):
        try:
            runs.append(json.loads(Path(name).read_text(encoding="utf-8")))
            results = {(r["benchmark"], r["decoding"]): [np.mean([a["right"] for a in p["answers"]])
                                                         for p in r["problems"]] for r in runs[-1]["results"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise renio.UserError(f"compare {name}: not a file that eval.py wrote ({type(error).__name__}: {error})") from None
        runs[-1]["scores"] = results
    both = [key for key in runs[0]["scores"] if key in runs[1]["scores"]]
    if not both:
        raise renio.UserError(f"compare: {path} and {other_path} have no benchmark and decoding in common")
    for benchmark, decoding in both:
        same_problems(runs, benchmark)
        ours, theirs = (np.array(run["scores"][benchmark, decoding]) for run in runs)
        difference = theirs - ours
        print(f"{benchmark} {decoding}: {runs[1]['label']} {percent(theirs.mean())} − {runs[0]['label']} "
              f"{percent(ours.mean())} = {percent(difference.mean(), bootstrap_interval(difference), '+')} points, "
              f"p = {paired_p_value(difference):.4f}, {len(difference)} problems")


# ---------------------------------------------------------------------------------------------------------------------
# The report.

COLUMNS = ["aime24", "aime25", "hmmt25", "math", "humaneval+", "mbpp+", "code"]  # math, code: means of those before
PUBLISHED = {  # ReNIO, arXiv 2606.23104v1, in percent: Tables 1-4 and 8, Figures 1 and 6; best of four checkpoints
    "Qwen3-1.7B": {
        "base": [51.33, 36.00, 23.33, 36.89, 73.63, 57.21, 65.42],
        "grpo": [49.44, 38.61, 23.61, 37.22, 74.84, 65.87, 70.36],
        "opsd": [53.06, 41.94, 27.50, 40.83, 74.85, 62.43, 68.64],
        "opsd+renio": [57.78, 42.78, 27.78, 42.78, 77.90, 63.16, 70.53],
        "opd": [54.44, 39.16, 27.50, 40.37, 74.40, 62.43, 68.42],
        "opd+renio": [54.72, 43.06, 28.33, 42.04, 75.00, 63.56, 69.28],
        "opsd@4096": [53.33, 37.22, 25.56, 38.70], "opsd+renio@4096": [53.33, 43.06, 25.28, 40.56],
        "opd@4096": [56.11, 42.20, 25.83, 41.38], "opd+renio@4096": [56.39, 41.94, 28.61, 42.31],
        "opd+renio-noclip": [53.61, 42.22, 24.44, 40.09], "opd+renio-nothreshold": [55.28, 41.94, 25.28, 40.83],
        "opd+renio-nonorm": [51.94, 41.39, 25.28, 39.54],
        "opsd+ts_sample": [55.28, 40.00, 29.44, 41.57], "opsd+st_token": [54.72, 40.28, 25.83, 40.28],
        "opd-correct": [54.2, 38.9, 27.8, 40.3], "opd-incorrect": [57.8, 42.8, 28.1, 42.9],
        "opsd-correct": [53.9, 39.4, 23.9, 39.1], "opsd-incorrect": [55.8, 42.8, 26.1, 41.6],
        "opd+renio-clip2.0": [54.7, 41.7, 27.2, 41.2], "opd+renio-clip2.5": [56.4, 40.0, 27.8, 41.4],
        "opd+renio-threshold0.6": [56.9, 42.5, 24.7, 41.4], "opd+renio-threshold1.0": [53.6, 42.2, 27.2, 41.0]},
    "Qwen3-4B": {
        "base": [74.44, 65.28, 42.22, 60.65, 86.74, 77.31, 82.03],
        "grpo": [73.89, 67.78, 42.22, 61.30, 86.28, 77.78, 82.03],
        "opsd": [75.56, 68.89, 43.33, 62.59, 86.43, 77.78, 82.11],
        "opsd+renio": [75.83, 69.17, 46.67, 63.89, 87.04, 78.31, 82.68]},
    "Qwen3-8B": {
        "base": [74.17, 71.67, 44.72, 63.52, 85.52, 77.84, 81.68],
        "grpo": [78.33, 69.44, 44.72, 64.16, 87.20, 78.51, 82.86],
        "opsd": [75.28, 71.39, 45.56, 64.08, 86.59, 77.05, 81.82],
        "opsd+renio": [78.06, 71.11, 47.50, 65.56, 88.41, 77.31, 82.86]},
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        "base": [27.78, 22.78, 14.44, 21.67, 49.09, 41.07, 45.08],
        "grpo": [31.67, 24.17, 13.89, 23.24, 49.24, 41.47, 45.36],
        "opsd": [26.66, 23.89, 13.06, 21.20, 50.46, 40.87, 45.67],
        "opsd+renio": [28.61, 24.44, 15.28, 22.78, 50.30, 42.13, 46.22],
        "opd": [28.89, 23.06, 14.44, 22.13, 50.15, 41.14, 45.65],
        "opd+renio": [29.72, 23.89, 16.67, 23.43, 50.91, 41.20, 46.06]},
    "DeepSeek-R1-Distill-Qwen-7B": {
        "base": [56.11, 40.83, 25.56, 40.83, 73.17, 58.73, 65.95],
        "grpo": [54.17, 40.83, 24.17, 39.72, 74.70, 58.27, 66.49],
        "opsd": [55.56, 38.89, 24.61, 39.69, 73.93, 59.26, 66.60],
        "opsd+renio": [55.83, 42.78, 26.11, 41.57, 74.85, 59.39, 67.12]},
}
PUBLISHED_SECONDS = {"opsd": 4.61, "opsd+renio": 4.59, "opsd@4096": 12.40, "opsd+renio@4096": 12.13, "opd": 4.99,
                     "opd+renio": 5.00, "opd@4096": 12.10, "opd+renio@4096": 11.56, "grpo": 29.90}  # Figure 4, a step


class Section(NamedTuple):
    """A table of the report: methods, and what the paper claims of them as pairs of which the first should be better."""

    title: str
    labels: list
    claims: list  # of (claim, label, the label that it is compared with)


SECTIONS = [
    Section("Tables 1 and 2: methods",
            ["base", "grpo", "opsd", "opsd+renio", "opd", "opd+renio", "teacher", "base with solution"],
            [("OPSD improves the base", "opsd", "base"), ("OPD improves the base", "opd", "base"),
             ("ReNIO improves OPSD", "opsd+renio", "opsd"), ("ReNIO improves OPD", "opd+renio", "opd"),
             ("OPSD with ReNIO beats GRPO", "opsd+renio", "grpo")]),
    Section("Table 3: length of the rollouts",
            ["opsd", "opsd+renio", "opsd@*", "opsd+renio@*", "opd", "opd+renio", "opd@*", "opd+renio@*"],
            [("ReNIO improves OPSD at the other length", "opsd+renio@*", "opsd@*"),
             ("ReNIO improves OPD at the other length", "opd+renio@*", "opd@*")]),
    Section("Table 4: parts of the weight",
            ["opd", "opd+renio", "opd+renio-noclip", "opd+renio-nothreshold", "opd+renio-nonorm"],
            [("the clip helps", "opd+renio", "opd+renio-noclip"),
             ("the threshold helps", "opd+renio", "opd+renio-nothreshold"),
             ("the batch normalization helps", "opd+renio", "opd+renio-nonorm")]),
    Section("Table 8: other weights", ["base", "opsd", "opsd+renio", "opsd+ts_sample", "opsd+st_token"],
            [("ReNIO beats teacher-to-student sample weights", "opsd+renio", "opsd+ts_sample"),
             ("ReNIO beats student-to-teacher token weights", "opsd+renio", "opsd+st_token")]),
    Section("Figure 1: training on correct or incorrect rollouts",
            ["base", *(f"{m}{d}-{arm}" for m in ("opd", "opsd") for d in ("", "-matched")
                       for arm in ("correct", "incorrect", "unfiltered"))],
            [(f"incorrect-only beats correct-only in {m.upper()}{', on the same problems (not in the paper)' * bool(d)}",
              f"{m}{d}-incorrect", f"{m}{d}-correct") for m in ("opd", "opsd") for d in ("", "-matched")]),
    Section("Figure 6: sweeps", ["opd+renio-clip2.0", "opd+renio-clip2.5", "opd+renio", "opd+renio-threshold0.6",
                                 "opd+renio-threshold1.0"],
            [("clip 3.0 beats 2.0", "opd+renio", "opd+renio-clip2.0"), ("clip 3.0 beats 2.5", "opd+renio", "opd+renio-clip2.5"),
             ("threshold 0.8 beats 0.6", "opd+renio", "opd+renio-threshold0.6"),
             ("threshold 0.8 beats 1.0", "opd+renio", "opd+renio-threshold1.0")]),
    Section("Controls, which the paper lacks",
            ["opd", "opd+renio", "opd+renio_shuffled", "opd+correctness", "opd+iw", "opsd", "opsd+renio",
             "opsd+renio_shuffled", "opsd+correctness", "opsd+pw"],
            [("in OPD it matters which sample has which ReNIO weight", "opd+renio", "opd+renio_shuffled"),
             ("in OPSD it matters which sample has which ReNIO weight", "opsd+renio", "opsd+renio_shuffled"),
             ("weighting wrong rollouts by their verdict improves OPD", "opd+correctness", "opd"),
             ("weighting wrong rollouts by their verdict improves OPSD", "opsd+correctness", "opsd"),
             ("IW-OPD's token weights improve OPD", "opd+iw", "opd"),
             ("PW-OPSD's token weights improve OPSD", "opsd+pw", "opsd")]),
]


class Scored(NamedTuple):
    """One eval.json, without its answers."""

    label: str
    seed: int  # of the training
    step: Optional[int]  # of the checkpoint; None for a whole run or a model as it came
    folder: Path  # of the run
    settings: dict
    results: dict  # (benchmark, decoding) -> summary, with right, tokens and markers as lists of a number a problem


def read_scores(folder):
    """Every eval.json below the folder."""
    found = []
    for path in sorted(folder.rglob("eval.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        results = {}
        for r in run["results"]:
            means = {key: [float(np.mean([a[key] for a in p["answers"]])) for p in r["problems"]]
                     for key in ("right", "tokens", "markers")}
            results[r["benchmark"], r["decoding"]] = {k: v for k, v in r.items() if k != "problems"} | dict(per_problem=means)
        step = re.fullmatch(r"checkpoint-(\d+)", path.parent.name)
        found.append(Scored(run["label"], run["train_seed"], step and int(step[1]),
                            path.parent.parent if step else path.parent, run["settings"], results))
    if not found:
        raise renio.UserError(f"report {folder}: no eval.json below it")
    return found


class Scores:
    """All evaluations of a student, asked by label."""

    def __init__(self, scored):
        self.scored = scored
        last = {}
        for run in scored:  # a method trained for math and the same for code have one label and other benchmarks
            key = run.folder
            if key not in last or last[key].step is not None and (run.step is None or run.step > last[key].step):
                last[key] = run
        self.last = list(last.values())
        self.benchmarks = [b for b in BENCHMARKS if any(b == name for run in self.last for name, _ in run.results)]
        for benchmark in self.benchmarks:
            same_problems([dict(label=run.label, settings=run.settings) for run in self.last
                           if benchmark in run.settings["checksums"]], benchmark)
        self.decodings = [d for d in ("sampled", "greedy") if any(d == name for run in self.last for _, name in run.results)]
        self.other = next((label.partition("@")[2] for label in self.labels() if "@" in label), "*")

    def labels(self):
        return list(dict.fromkeys(run.label for run in self.last))

    def columns(self):
        """What a table shows of each method: (title, benchmarks whose mean it is, decoding)."""
        columns = []
        for decoding in self.decodings:
            for task in ("arith", "math", "code"):
                names = [b for b in self.benchmarks if BENCHMARKS[b].task == task]
                columns += [(f"{name}, {decoding}", [name], decoding) for name in names]
                if len(names) > 1:
                    columns.append((f"{task} mean, {decoding}", names, decoding))
        return columns

    def of(self, label, benchmarks, decoding, key="right", step="last"):
        """Training seeds, and for each benchmark the numbers (seeds, problems); ([], []) where one is missing.

        step: "last", or the step of a checkpoint.
        """
        runs = self.last if step == "last" else [run for run in self.scored if run.step == step]
        found = {}
        for run in runs:
            if run.label == label:
                for name, how in run.results:
                    if how == decoding:
                        found[run.seed, name] = run.results[name, how]["per_problem"][key]
        seeds = sorted({seed for seed, _ in found if all((seed, b) in found for b in benchmarks)})
        return seeds, [np.array([found[seed, b] for seed in seeds]) for b in benchmarks] if seeds else []

    def summaries(self, label, benchmark, decoding):
        return [run.results[benchmark, decoding] for run in self.last
                if run.label == label and (benchmark, decoding) in run.results]

    def steps(self, label):
        return sorted({run.step for run in self.scored if run.label == label and run.step is not None})

    def difference(self, label, other, benchmarks, decoding, key="right"):
        """(seeds, mean, interval) of label − other, paired by problem, and by seed where both have the same; or None."""
        seeds, ours = self.of(label, benchmarks, decoding, key)
        other_seeds, theirs = self.of(other, benchmarks, decoding, key)
        if not seeds or not other_seeds:
            return None
        paired = [a - (b if seeds == other_seeds else b.mean(axis=0)) for a, b in zip(ours, theirs)]
        return len(seeds), average(paired), interval(*paired)


def average(benchmarks):
    """Mean over benchmarks of the mean over seeds and problems."""
    return float(np.mean([values.mean() for values in benchmarks]))


def report(folder):
    """Write folder/report.md and its figures from every eval.json below it, and the metrics.jsonl beside them."""
    folder = Path(folder)
    scores = Scores(read_scores(folder))
    labels = scores.labels()
    lines = ["# " + ("Scores" if scores.benchmarks != ["arith"] else "Scores at micro scale"), "", *settings_lines(scores)]
    verdicts = []
    for section in SECTIONS:
        named = [label.replace("*", scores.other) for label in section.labels]
        claims = [(claim, a.replace("*", scores.other), b.replace("*", scores.other)) for claim, a, b in section.claims]
        shown = [label for label in named if label in labels]
        if section is not SECTIONS[0] and not set(shown) - set(SECTIONS[0].labels):
            continue
        lines += [f"## {section.title}", "", *score_table(scores, shown, section.title.startswith("Table 3")), ""]
        verdicts += claim_rows(scores, claims)
        if section is SECTIONS[0]:
            lines += plot_scores(scores, folder, shown)
        if section.title.startswith("Figure 1"):
            for key, what in (("tokens", "makes longer answers than"), ("markers", "makes more reflection markers than")):
                verdicts += claim_rows(scores, [(claim.replace("beats", what), a, b) for claim, a, b in claims], key)
            for design, name in (("", "figure1.png"), ("-matched", "figure1-matched.png")):
                lines += plot_filter(scores, folder, design, name)
        if section.title.startswith("Figure 6"):
            lines += plot_sweeps(scores, folder)
    others = [label for label in labels if label not in {x.replace("*", scores.other) for s in SECTIONS for x in s.labels}]
    if others:
        lines += ["## Other runs", "", *score_table(scores, others), ""]
    rollouts = {label: read_rollouts(scores, label) for label in ("opd", "opsd")}
    lines += plot_log_ratios(folder, rollouts) + plot_entropy(folder, rollouts) + plot_weights(folder, rollouts)
    verdicts += weight_verdicts(scores, rollouts)
    lines += plot_seconds(scores, folder) + behaviour_table(scores, labels) + training_table(scores, labels)
    lines[lines.index("VERDICTS") : lines.index("VERDICTS") + 1] = verdict_lines(scores, verdicts)
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'report.md'}")


def settings_lines(scores):
    """What all tables share: how scores and intervals were made."""
    s = scores.last[0].settings
    seeds = sorted({run.seed for run in scores.last})
    problems = []
    for benchmark in scores.benchmarks:
        run = next(run for run in scores.last if benchmark in run.settings["checksums"])
        r = next(r for (name, _), r in run.results.items() if name == benchmark)
        n = max(r["n"] for run in scores.last for (name, _), r in run.results.items() if name == benchmark)
        problems.append(f"{benchmark}: {len(r['per_problem']['right'])} problems (checksum "
                        f"{run.settings['checksums'][benchmark]}), {n} answers each")
    return [
        f"Settings of every score: {'; '.join(problems)}; sampled at temperature {s['temperature']:g}, top-p {s['top_p']:g}, "
        f"top-k {s['top_k'] or 'off'}, greedy with one answer a problem; at most {s['max_new_tokens']} new tokens, thinking "
        f"{'on' if s['thinking'] else 'off'}; {s['engine']} "
        f"{s.get('versions', {}).get(s['engine'], '')}; training seeds {', '.join(map(str, seeds))}. Scores are percent right, "
        "means over seeds; a run is scored at its fixed last step.", "",
        "In brackets: the 95 % interval. With several seeds it combines Student's t over the seeds' means with the spread "
        "over problems, and three seeds make it wide; with one seed it is a bootstrap over problems, and says nothing of "
        "how another seed would have ended. Differences are paired by problem and seed. \"Best\" is the mean over seeds of "
        "the best of the run's checkpoints, selected on the test set, as the paper's figures are; never compare it with a "
        "last step. Paper: ReNIO, arXiv 2606.23104v1, Avg@12 in math and Avg@4 in code, on its own models and benchmarks.", "",
        "VERDICTS"]


def percent(value, ends=None, sign=""):
    text = f"{100 * value:{sign}.1f}"
    return text + (f" [{100 * ends[0]:{sign}.1f}, {100 * ends[1]:{sign}.1f}]" if ends else "")


def same_problems(runs, benchmark):
    """Raise renio.UserError unless all runs were scored on the same problems of the benchmark."""
    by_checksum = {run["settings"]["checksums"][benchmark]: run["label"] for run in runs}
    if len(by_checksum) > 1:
        raise renio.UserError(f"{' and '.join(by_checksum.values())} were scored on different problems of {benchmark}")


def published(scores, label, benchmarks, by_length=False):
    """The paper's figure for a method, on these benchmarks or, where they are none of the paper's, its mean in math."""
    student = Path(next((run.settings["model"] for run in scores.last if run.label == "base"), "")).name
    figures = PUBLISHED.get(student, PUBLISHED["Qwen3-1.7B"]).get(published_label(scores, label, by_length))
    if figures is None:
        return ""
    names = benchmarks[0] if len(benchmarks) == 1 else BENCHMARKS[benchmarks[0]].task
    place = COLUMNS.index(names) if names in COLUMNS else COLUMNS.index("math")
    return f"{figures[place]:.2f}".removesuffix("0") if place < len(figures) else ""


def published_label(scores, label, by_length):
    """The label under which the paper has this row; by_length: in a table over the length of rollouts.

    The paper's main runs have the short rollouts. Where ours have the long ones, rows change places in such a table.
    """
    base, at, _ = label.partition("@")
    if scores.other.isdigit() and int(scores.other) < 1024:
        longer = f"{label}@4096"
        return base if at else longer if by_length and longer in PUBLISHED_SECONDS else label
    return label


def score_table(scores, labels, by_length=False):
    """A row a method: score with interval, sd over seeds, best of the checkpoints, and the paper's figure."""
    columns = [c for c in scores.columns() if any(scores.of(label, *c[1:])[0] for label in labels)]
    curves = any(len(scores.steps(label)) > 1 for label in labels)
    known = any(set(benchmarks) <= set(COLUMNS) for _, benchmarks, _ in columns)
    header = ["method", "seeds"]
    for title, benchmarks, decoding in columns:
        header += [title, "sd"] + ["best"] * curves
        if known and decoding == "sampled":
            header.append("paper")
    if not known:
        header.append("paper: Qwen3-1.7B, math")
    rows = []
    for label in labels:
        row = [label, str(max(len(scores.of(label, *c[1:])[0]) for c in columns))]
        for title, benchmarks, decoding in columns:
            seeds, values = scores.of(label, benchmarks, decoding)
            if seeds:
                means = np.mean([v.mean(axis=1) for v in values], axis=0)  # (S,)
                row += [percent(average(values), interval(*values, within=(0, 1))),
                        f"{100 * means.std(ddof=1):.1f}" if len(seeds) > 1 else ""]
            else:
                row += ["", ""]
            if curves:
                row.append(best_of_checkpoints(scores, label, benchmarks, decoding))
            if known and decoding == "sampled":
                row.append(published(scores, label, benchmarks, by_length))
        if not known:
            row.append(published(scores, label, columns[0][1], by_length))
        rows.append(row)
    return markdown_table(header, rows)


def best_of_checkpoints(scores, label, benchmarks, decoding):
    """Mean over seeds of the best score among the run's checkpoints, and how many there are, as text."""
    per_step = []
    for step in scores.steps(label):
        seeds, values = scores.of(label, benchmarks, decoding, step=step)
        if seeds:
            per_step.append(dict(zip(seeds, np.mean([v.mean(axis=1) for v in values], axis=0))))
    if len(per_step) < 2:
        return ""
    common = set.intersection(*map(set, per_step))
    return f"{percent(np.mean([max(step[seed] for step in per_step) for seed in common]))} of {len(per_step)}"


def verdict(seeds, ends):
    """What an interval says of the claim that a difference is above 0."""
    if seeds < 2:
        return "undecided: one seed"
    return "supported" if ends[0] > 0 else "not supported: the opposite" if ends[1] < 0 else "undecided at this scale"


def headline_columns(scores):
    """The columns that claims are judged on: means over benchmarks in place of their parts."""
    columns = scores.columns()
    return [c for c in columns if not any(set(c[1]) < set(more) for _, more, _ in columns)]


def claim_rows(scores, claims, key="right"):
    """A row a claim: claim, what is compared, difference and verdict in each headline column, and the paper's difference.

    In points for key right, else in tokens or markers an answer.
    """
    rows = []
    for claim, label, other in claims:
        cells = []
        for _, benchmarks, decoding in headline_columns(scores):
            seeds, mean, ends = scores.difference(label, other, benchmarks, decoding, key) or (0, 0, (0, 0))
            text = percent(mean, ends, "+") if key == "right" else f"{mean:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}] {key}"
            cells.append(f"{text}: {verdict(seeds, ends)}" if seeds else "")
        figures = [published(scores, x, headline_columns(scores)[0][1]) for x in (label, other)]
        theirs = f"{float(figures[0]) - float(figures[1]):+.2f}" if all(figures) and key == "right" else ""
        if any(cells):
            rows.append([claim, f"{label} − {other}", *cells, theirs])
    return rows


def weight_verdicts(scores, rollouts):
    """Whether ReNIO's weight ranks wrong rollouts above right ones, from the rollouts of each seed."""
    rows = []
    for label, by_seed in rollouts.items():
        curves = [renio.area_under_curve([r["weight"] for r in graded], [not r["right"] for r in graded])
                  for run in by_seed.values() if (graded := [r for r in run if r["right"] is not None])]
        curves = np.array([c for c in curves if c is not None])
        if len(curves):
            ends = interval(curves[:, None] - 0.5, within=(-0.5, 0.5)) if len(curves) > 1 else (0, 0)
            rows.append([f"the weight ranks wrong rollouts above right ones in {label.upper()}", "AUC − 0.5 of rollouts",
                         f"{curves.mean() - 0.5:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]: {verdict(len(curves), ends)}",
                         *[""] * len(headline_columns(scores))])
    return rows


def verdict_lines(scores, rows):
    if not rows:
        return []
    header = ["claim", "difference", *(f"{title}, points [95 %]" for title, *_ in headline_columns(scores)), "paper, points"]
    return ["## Verdicts", "", *markdown_table(header, rows), "",
            "Supported: the interval lies above 0; not supported: below it; undecided: it holds 0, or there is one seed. A "
            "verdict is of these models, problems and steps; of twenty differences that are truly none, about one is not "
            "called undecided." + (
                " The recipe (models, steps, learning rates, data) was fixed by the base's accuracy, the teachers', the "
                "gain of plain OPD and OPSD, and time; GRPO's learning rate by its own gain over the base on one seed. No "
                "setting was chosen by which weighting wins."
                if scores.benchmarks == ["arith"] else ""), ""]


def behaviour_table(scores, labels):
    """Pass@k, majority vote, length, truncation, format and markers of every method, under the first decoding."""
    lines = []
    for benchmark in scores.benchmarks:
        rows = []
        for label in labels:
            found = scores.summaries(label, benchmark, scores.decodings[0])
            if found:
                n = found[0]["n"]
                mean = {key: np.mean([r[key] for r in found]) for key in (
                    f"pass@{n}", "length", "truncation_rate", "format_rate", "unparsable_rate", "markers")}
                ends = np.mean([r[f"pass@{n}_interval"] for r in found], axis=0).tolist()
                vote = ""
                if found[0]["majority"] is not None:
                    vote = percent(np.mean([r["majority"] for r in found]),
                                   np.mean([r["majority_interval"] for r in found], axis=0).tolist())
                rows.append([label, percent(mean[f"pass@{n}"], ends), vote, f"{mean['length']:.1f}",
                             percent(mean["truncation_rate"]), percent(mean["format_rate"]),
                             f"{100 * mean['unparsable_rate']:.2f}", f"{mean['markers']:.2f}"])
        if not rows:
            continue
        lines += [f"## Behaviour on {benchmark}, {scores.decodings[0]}", "",
                  *markdown_table(["method", f"pass@{n}", f"majority@{n}", "tokens", "truncated, %", "boxed, %",
                                   "unparsable, %", "markers"], rows), "",
                  "Means over seeds; in brackets the mean ends of the seeds' 95 % intervals by bootstrap over problems. "
                  "Boxed: answers with a box; unparsable: boxes that no grader can read, counted as wrong; markers: the "
                  "paper's reflection markers in an answer.", ""]
    return lines


def metrics_of(scores, label):
    """The rows of metrics.jsonl of each run with this label."""
    logs = [run.folder / "metrics.jsonl" for run in scores.last if run.label == label]
    return [[json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] for log in logs if log.exists()]


def training_table(scores, labels):
    """How the runs went, from the metrics.jsonl beside each eval.json."""
    rows = []
    for label in labels:
        runs = metrics_of(scores, label)
        if not runs or "rollout_accuracy" not in runs[0][0]:
            continue

        def mean(key, form, span=slice(None)):
            values = [row[key] for run in runs for row in run[span] if row.get(key) is not None]
            return format(np.mean(values), form) if values else ""

        quarter = max(1, len(runs[0]) // 4)

        def change(key, form):  # from the first to the last quarter of the steps
            ends = [mean(key, form, span) for span in (slice(quarter), slice(-quarter, None))]
            return " → ".join(ends) if all(ends) else ""

        rows.append([label, str(len(runs[0])), f"{np.median([row['seconds'] for run in runs for row in run]):.2f}",
                     change("divergence", ".3f"), change("rollout_accuracy", ".2f"), mean("key_token_share", ".3f"),
                     mean("weight_max", ".2f"), mean("effective_sample_size", ".1f"), mean("weight_auc_wrong", ".2f")])
    if not rows:
        return []
    header = ["method", "steps", "median s a step", "divergence a token", "rollouts right", "key tokens", "largest weight",
              "effective samples", "AUC for wrong"]
    return ["## Training", "", *markdown_table(header, rows), "",
            "Means over steps and seeds; `→` from the first to the last quarter of the steps; shares as fractions. AUC for "
            "wrong: the chance that the ReNIO weight of a wrong rollout exceeds that of a right one in the same batch, "
            "whether or not the method used the weight.", ""]


def markdown_table(header, rows):
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


# ---------------------------------------------------------------------------------------------------------------------
# The figures, readable in print and without colour. Each returns the lines that show it in the report, or none.


@contextlib.contextmanager
def drawing(path, rows=1, columns=1, size=(5.0, 3.4)):
    """The axes (rows, columns) of a figure that is written to `path` in the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False,
                                   layout="constrained")
    yield axes
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def error_bars(values, ends):
    """Lengths (2, N) of error bars from values and their (low, high) ends."""
    return np.abs(np.array(ends).T - np.array(values))


def plot_scores(scores, folder, labels):
    """Score of each method, a mark a decoding."""
    tasks = list(dict.fromkeys(tuple(benchmarks) for _, benchmarks, _ in headline_columns(scores)))
    with drawing(folder / "scores.png", 1, len(tasks), (6.5, 0.42 * len(labels) + 1.3)) as axes:
        for axis, benchmarks in zip(axes[0], tasks):
            for decoding, marker, fill, shift in (("sampled", "o", "black", -0.14), ("greedy", "D", "white", 0.14)):
                points = [(place + shift, average(values), interval(*values, within=(0, 1)))
                          for place, label in enumerate(labels)
                          for seeds, values in [scores.of(label, list(benchmarks), decoding)] if seeds]
                if points:
                    places, means, ends = zip(*points)
                    axis.errorbar(100 * np.array(means), places, xerr=100 * error_bars(means, ends), fmt=marker,
                                  color="black", markerfacecolor=fill, capsize=3, label=decoding)
            axis.set_yticks(range(len(labels)), labels)
            axis.invert_yaxis()
            axis.set_xlabel(f"{', '.join(benchmarks)}: right answers, % (bars: 95 % intervals)")
            axis.grid(axis="x", alpha=0.3)
            axis.legend(loc="best")
    return ["![Score of each method with its interval](scores.png)", ""]


ARM_STYLES = {"correct": ("o", "-", "black"), "incorrect": ("s", "--", "black"), "unfiltered": ("^", ":", "grey")}


def plot_filter(scores, folder, design, name):
    """Figures 1, 7 and 8: score, length and markers of each arm over the training steps."""
    methods = [m for m in ("opd", "opsd") if any(len(scores.steps(f"{m}{design}-{arm}")) > 1 for arm in ARM_STYLES)]
    if not methods:
        return []
    _, benchmarks, decoding = headline_columns(scores)[0]
    panels = (("right", "right answers, %", 100), ("tokens", "tokens an answer", 1), ("markers", "markers an answer", 1))
    with drawing(folder / name, len(methods), len(panels), (4.2, 3.0)) as axes:
        for row, method in zip(axes, methods):
            for axis, (key, title, scale) in zip(row, panels):
                for shift, (arm, (marker, line, colour)) in enumerate(ARM_STYLES.items()):
                    label, points = f"{method}{design}-{arm}", []
                    for step in (0, *scores.steps(label)):
                        seeds, values = (scores.of("base", benchmarks, decoding, key) if step == 0 else
                                         scores.of(label, benchmarks, decoding, key, step))
                        if seeds:
                            points.append((step + 0.4 * (shift - 1), average(values), interval(*values)))
                    if points:
                        steps, means, ends = zip(*points)
                        axis.errorbar(steps, scale * np.array(means), yerr=scale * error_bars(means, ends), fmt=marker + line,
                                      color=colour, markersize=4, capsize=2, linewidth=1, label=f"{arm}-only"
                                      if arm != "unfiltered" else arm)
                axis.set_xlabel("training step")
                axis.set_ylabel(title)
                axis.set_title(f"{method.upper()}{', same problems' * bool(design)}", fontsize=10)
                axis.grid(alpha=0.3)
        axes[0][0].legend(fontsize=8)
    what = "on the same problems for each arm (a design that the paper lacks)" if design else "as in the paper"
    return [f"![Score, length and markers over the training steps by arm]({name})", "",
            f"Figures 1, 7 and 8, {what}: {', '.join(benchmarks)}, {decoding}; bars: 95 % intervals; step 0 is the base.", ""]


def plot_sweeps(scores, folder):
    """Figure 6: scores over the clip and over the threshold of ReNIO under OPD."""
    sweeps = {"clip of the log-ratio (threshold 0.8)": {2.0: "-clip2.0", 2.5: "-clip2.5", 3.0: ""},
              "threshold (clip 3.0)": {0.6: "-threshold0.6", 0.8: "", 1.0: "-threshold1.0"}}
    with drawing(folder / "figure6.png", 1, 2) as axes:
        for axis, (title, runs) in zip(axes[0], sweeps.items()):
            for (name, benchmarks, decoding), marker, fill in zip(headline_columns(scores), "oDs^",
                                                                   ("black", "white", "grey", "white")):
                points = [(x, average(values), interval(*values, within=(0, 1))) for x, suffix in runs.items()
                          for seeds, values in [scores.of(f"opd+renio{suffix}", benchmarks, decoding)] if seeds]
                if points:
                    places, means, ends = zip(*points)
                    axis.errorbar(places, 100 * np.array(means), yerr=100 * error_bars(means, ends), fmt=marker + "-",
                                  color="black", markerfacecolor=fill, capsize=3, linewidth=0.8, label=name)
            axis.set_xticks(list(runs))
            axis.set_xlabel(title)
            axis.set_ylabel("right answers, %")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    return ["![Scores over clip and threshold](figure6.png)", "", "Figure 6: OPD with ReNIO; bars: 95 % intervals.", ""]


def read_rollouts(scores, label):
    """Rows of rollouts.jsonl by training seed."""
    paths = {run.seed: run.folder / "rollouts.jsonl" for run in scores.last if run.label == label}
    return {seed: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for seed, path in sorted(paths.items()) if path.exists()}


def plot_log_ratios(folder, rollouts):
    """Figure 3: how the log-ratios of the sampled tokens are distributed."""
    shown = {label: [x for run in runs.values() for r in run for x in r["log_ratios"]] for label, runs in rollouts.items()}
    shown = {label: np.array(values) for label, values in shown.items() if values}
    if not shown:
        return []
    with drawing(folder / "figure3.png", 1, len(shown)) as axes:
        for axis, (label, values) in zip(axes[0], shown.items()):
            axis.hist(values, bins=80, color="lightgrey", edgecolor="black", linewidth=0.4, log=True)
            axis.axvline(0.8, color="black", linestyle="--", label="threshold 0.8")
            axis.axvline(3.0, color="black", linestyle=":", label="clip 3.0")
            axis.set_xlabel("log-ratio of student to teacher, nats")
            axis.set_ylabel("sampled tokens")
            axis.set_title(f"{label.upper()}: {len(values):,} tokens, {100 * (values > 0.8).mean():.1f} % above the threshold",
                           fontsize=10)
            axis.legend(fontsize=8)
    return ["## Figure 3: log-ratios of the student's own tokens", "", "![Histogram of log-ratios](figure3.png)", "",
            "All rollouts of the plain runs, over all steps and seeds.", ""]


def plot_entropy(folder, rollouts):
    """Figure 5: the weight against the teacher's mean entropy."""
    shown = {label: [r for run in runs.values() for r in run] for label, runs in rollouts.items() if runs}
    if not shown:
        return []
    lines = []
    with drawing(folder / "figure5.png", 1, len(shown)) as axes:
        for axis, (label, rows) in zip(axes[0], shown.items()):
            entropy, weight = (np.array([r[key] for r in rows]) for key in ("teacher_entropy", "weight"))
            axis.plot(entropy, weight, ".", color="black", markersize=2, alpha=0.4)
            axis.set_xlabel("teacher's mean entropy a token, nats")
            axis.set_ylabel("ReNIO weight, before normalizing")
            axis.set_yscale("log")
            axis.set_title(label.upper(), fontsize=10)
            axis.grid(alpha=0.3)
            by_seed = [rank_correlation([r["teacher_entropy"] for r in run], [r["weight"] for r in run])
                       for run in rollouts[label].values()]
            lines.append(f"{label.upper()}: rank correlation {rank_correlation(entropy, weight):+.2f} over {len(rows):,} "
                         f"rollouts (by seed {', '.join(f'{x:+.2f}' for x in by_seed)}).")
    return ["## Figure 5: weight and the teacher's entropy", "", "![Weight against entropy](figure5.png)", "",
            " ".join(lines), ""]


def plot_weights(folder, rollouts):
    """Weights of right and of wrong rollouts, which the paper does not show."""
    shown = {label: [r for run in runs.values() for r in run if r["right"] is not None] for label, runs in rollouts.items()}
    shown = {label: rows for label, rows in shown.items() if rows}
    if not shown:
        return []
    with drawing(folder / "weights.png", 1, len(shown)) as axes:
        for axis, (label, rows) in zip(axes[0], shown.items()):
            weights, wrong = np.array([r["weight"] for r in rows]), np.array([not r["right"] for r in rows])
            bins = np.geomspace(weights.min(), weights.max() * 1.001, 40)
            for which, name, style in ((~wrong, "right", dict(color="lightgrey", edgecolor="black", linewidth=0.4)),
                                       (wrong, "wrong", dict(histtype="step", color="black", linewidth=1.5))):
                axis.hist(weights[which], bins=bins, label=f"{name}: {which.sum():,}", **style)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel("ReNIO weight, before normalizing")
            axis.set_ylabel("rollouts")
            curve = renio.area_under_curve(weights, wrong)
            axis.set_title(label.upper() + ("" if curve is None else f": AUC for wrong {curve:.3f}"), fontsize=10)
            axis.legend(fontsize=8)
    return ["## Weights of right and wrong rollouts", "", "![Weights of right and wrong rollouts](weights.png)", "",
            "Of the plain runs, over all steps and seeds; rollouts cut before an answer are left out.", ""]


def plot_seconds(scores, folder):
    """Figure 4: seconds a step by method and length of the rollouts."""
    names = ["opsd", "opsd+renio", "opsd@*", "opsd+renio@*", "opd", "opd+renio", "opd@*", "opd+renio@*", "grpo"]
    shown = {}
    for label in (name.replace("*", scores.other) for name in names):
        seconds = [row["seconds"] for run in metrics_of(scores, label) for row in run[1:]]  # the first step warms up
        if seconds:
            shown[label] = np.quantile(seconds, [0.25, 0.5, 0.75])
    if not shown:
        return []
    with drawing(folder / "figure4.png", size=(6.5, 0.4 * len(shown) + 1.2)) as axes:
        low, middle, high = np.array(list(shown.values())).T
        axes[0][0].barh(range(len(shown)), middle, xerr=[middle - low, high - middle], color="lightgrey", edgecolor="black",
                        capsize=3)
        axes[0][0].set_yticks(range(len(shown)), list(shown))
        axes[0][0].invert_yaxis()
        axes[0][0].set_xlabel("seconds a step: median, and quartiles over steps and seeds")
    rows = [[label, f"{q[1]:.3f} [{q[0]:.3f}, {q[2]:.3f}]",
             str(PUBLISHED_SECONDS.get(published_label(scores, label, True), ""))] for label, q in shown.items()]
    return ["## Figure 4: seconds a step", "", "![Seconds a step](figure4.png)", "",
            *markdown_table(["method", "ours, median [quartiles]", "paper, 4 H200"], rows), "",
            "Runs side by side on one machine slow each other, so that small differences mean nothing here; `python "
            "tests/bench.py step` compares with and without the weight in one process.", ""]


# ---------------------------------------------------------------------------------------------------------------------
# Command line.


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise renio.UserError(f"{message} (--help lists the flags)")


def parse_args(argv):
    parser = Parser(prog="eval.py", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="folder or hub name")
    add("--adapter", help="folder of a peft adapter on the model")
    add("--checkpoints", help="score every checkpoint-N of this run instead, each into its own eval.json")
    add("--scale", choices=list(SCALES), default="micro", help="preset of the flags below; explicit flags win")
    add("--benchmarks", nargs="+", help=f"of {', '.join(BENCHMARKS)}")
    add("--data_dir", help="read benchmarks from files there instead of the hub")
    add("--limit", type=int, help="score only the first problems")
    add("--n", type=int, help="samples a problem; without it the scale's, for code 4")
    add("--decoding", nargs="+", choices=["sampled", "greedy"], default=["sampled"], help="greedy takes one a problem")
    add("--temperature", type=float, default=1.0, help="of sampled decoding")
    add("--top_p", type=float, default=0.95, help="nucleus of sampled decoding")
    add("--top_k", type=int, default=0, help="0: off")
    add("--max_new_tokens", type=int, help="longest answer")
    add("--thinking", action=argparse.BooleanOptionalAction, default=True, help="thinking mode of the chat template")
    add("--privileged", action="store_true", help="put the reference solution in the prompt: scores OPSD's teacher")
    add("--batch_size", type=int, help="answers sampled at a time")
    add("--engine", choices=["transformers", "vllm"], default="transformers", help="what samples the answers")
    add("--vllm_memory", type=float, default=0.9, help="share of the GPU's memory for engine vllm")
    add("--dtype", choices=["float32", "bfloat16"], help="of the weights")
    add("--device", help="cuda or cpu; without it cuda where there is one")
    add("--seed", type=int, default=0, help="of the sampling")
    add("--label", help="the method's name in the report; without it that of the run or the model")
    add("--train_seed", type=int, default=0, help="the training seed, for the report")
    add("--output", help="the .json to write")
    args = parser.parse_args(argv)
    for name, value in SCALES[args.scale].items():
        if name != "n" and getattr(args, name) is None:
            setattr(args, name, value)
    if args.checkpoints and (args.output or args.adapter):
        raise renio.UserError("--checkpoints: each has an eval.json of its own; leave out --output and --adapter")
    if not args.checkpoints and not (args.model and args.output):
        raise renio.UserError("need --model and --output, or --checkpoints")
    for name in ("n", "max_new_tokens", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise renio.UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    for name in ("n", "max_new_tokens", "batch_size", "limit", "top_k", "seed", "train_seed"):
        if (getattr(args, name) or 0) >= (10**5 if name == "n" else 2**31):
            raise renio.UserError(f"--{name} {getattr(args, name)}: too large")
    if not 0.01 <= args.temperature <= 100:
        raise renio.UserError(f"--temperature {args.temperature}: must lie in [0.01, 100] (greedy: --decoding greedy)")
    if not 0 < args.top_p <= 1:
        raise renio.UserError(f"--top_p {args.top_p}: must lie in (0, 1]")
    for name, least in (("top_k", 0), ("seed", 0), ("train_seed", 0), ("limit", 1)):
        if (least if getattr(args, name) is None else getattr(args, name)) < least:
            raise renio.UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if not 0 < args.vllm_memory < 1:
        raise renio.UserError(f"--vllm_memory {args.vllm_memory}: must lie between 0 and 1")
    if args.engine == "vllm":
        renio.need_vllm("--engine")
    if args.device is None:
        import torch

        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Path(args.checkpoints or args.adapter or args.model)
    args.label = args.label or (place.parent.name if place.name == "final" else place.name)  # a run's name
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["judge"]:
            judge()
        elif argv[:1] == ["report"]:
            if len(argv) != 2:
                raise renio.UserError("report takes one folder")
            report(argv[1])
        elif argv[:1] == ["compare"]:
            if len(argv) != 3:
                raise renio.UserError("compare takes two files that eval.py wrote")
            compare(*argv[1:])
        else:
            args = parse_args(argv)
            try:
                (evaluate_checkpoints if args.checkpoints else evaluate)(args)
            finally:
                renio.VllmSampler.close()
    except renio.UserError as error:
        sys.exit(f"eval.py: {error}")
    except OSError as error:
        sys.exit(f"eval.py: {error.strerror or error}{f': {error.filename}' if error.filename else ''}; batches that were "
                 "done are kept, and the same command goes on from them")
    except KeyboardInterrupt:
        sys.exit("eval.py: interrupted; batches that were done are kept, and the same command goes on from them")


if __name__ == "__main__":
    main()
