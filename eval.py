# SPDX-License-Identifier: MIT
"""Score language models on math and code benchmarks; compare and report the scores.

    python eval.py --scale one --model Qwen/Qwen3-1.7B --output runs/base/eval.json
    python eval.py --scale one --model runs/renio/final --benchmarks mine.jsonl gsm8k:100 --output runs/renio/eval.json
    python eval.py --scale paper --checkpoints runs/opd --engine vllm  # every checkpoint-N, into runs/opd/eval.json
    python eval.py show runs/opd                                    # print a few rollouts of this training run
    python eval.py compare A.json B.json                            # B minus A, paired by problem
    python eval.py report results/micro                             # write report.md from every eval.json in it

Every answer is appended to answers.jsonl as soon as it ends. After a kill the same command samples the missing answers.
To grade the answers again, remove eval.json; to sample them again, remove both files. renio.py holds the math grader.
"""

import argparse
import ast
import contextlib
import copy
import ctypes
import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
import resource
import select
import signal
import statistics
import struct
import subprocess
import symtable
import sys
import tempfile
import textwrap
import time
import types
from collections import Counter, defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import numpy as np
    from tqdm import tqdm

    if sys.argv[1:] != ["judge"]:  # the judge of a program starts faster without these
        import pandas as pd
        from scipy import stats

        import renio
except ModuleNotFoundError as error:
    sys.exit(f"eval.py: {error}; run `bash run_all.sh setup`, then `source .venv/bin/activate`")

# ---------------------------------------------------------------------------------------------------------------------
# Benchmarks.

# task names the prompt and the grader: math and arith compare answers, code runs tests. file: its name in --data_dir
Benchmark = namedtuple("Benchmark", "task hub_name file split")
HUMANEVAL, MBPP = "HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz", "MbppPlus-OriginFmt-v0.2.0.jsonl.gz"
BENCHMARKS = {
    "arith": Benchmark("arith", "", "", ""),  # renio.py makes the problems of these two
    "products": Benchmark("math", "", "", ""),
    "aime24": Benchmark("math", "HuggingFaceH4/aime_2024", "aime_2024.jsonl", "train"),
    "aime25": Benchmark("math", "yentinglin/aime_2025", "aime_2025.jsonl", "train"),
    "hmmt25": Benchmark("math", "MathArena/hmmt_feb_2025", "hmmt_feb_2025.jsonl", "train"),
    "amc23": Benchmark("math", "math-ai/amc23", "amc23.jsonl", "test"),
    "math500": Benchmark("math", "HuggingFaceH4/MATH-500", "math_500.jsonl", "test"),
    "gsm8k": Benchmark("math", "openai/gsm8k:main", "gsm8k_test.jsonl", "test"),
    "humaneval+": Benchmark("code", "evalplus/humanevalplus", HUMANEVAL, "test"),
    "mbpp+": Benchmark("code", "evalplus/mbppplus", MBPP, "test"),
}


def benchmark_of(name):
    """The Benchmark of this name. A file of the user is a math benchmark."""
    if Path(name).suffix in (".json", ".jsonl", ".gz", ".parquet", ".csv"):
        return Benchmark("math", name, name, "train")
    renio.need(name in BENCHMARKS, f"--benchmarks {name}: neither a .jsonl file nor one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def benchmark_limits(args):
    """{benchmark: how many of its first problems to take, or None for all}, from --benchmarks and --limit."""
    limits = {}
    for word in args.benchmarks:
        name, colon, limit = word.partition(":")
        renio.need(not colon or re.fullmatch("[1-9][0-9]*", limit), f"--benchmarks {word}: no number after the colon")
        renio.need(name not in limits, f"--benchmarks {word}: {name} is named twice")
        limits[name] = min((int(number) for number in (limit, args.limit) if number), default=None)
    return limits


def load_benchmark(name, data_dir=None, limit=None):
    """The first problems: dicts of problem, solution, answer and, for code, test (the whole row of the benchmark)."""
    benchmark, rows = benchmark_of(name), []
    if name in renio.SYNTHETIC:
        return renio.SYNTHETIC[name](limit or 500, split="test")
    source = str(Path(data_dir) / benchmark.file) if data_dir and name != benchmark.file else benchmark.hub_name
    if benchmark.task == "math":
        rows = renio.read_problems(source, benchmark.split, limit=limit)
        for number, row in enumerate(rows, start=1):
            renio.need(row["answer"], f"{source}, row {number}: it has no answer to grade against")
        return rows
    for number, raw in enumerate(itertools.islice(renio.read_table(source, benchmark.split, limit), limit), start=1):
        whole = raw.get("prompt") and "inputs = [" in (raw.get("test") or "")
        renio.need(whole, f"{source}, row {number}: not a row of {name}; it lacks a prompt or test inputs")
        problem, solution = raw["prompt"], raw.get("code") or raw["prompt"] + raw.get("canonical_solution", "")
        problem = f"Complete this Python function.\n\n```python\n{problem.strip()}\n```"
        if name == "mbpp+":  # only a test tells the function's name
            test = f"The program must pass this test:\n\n```python\n{raw['test_list'][0]}\n```"
            problem = f"{raw['prompt'].strip()} {test}"
        rows.append(dict(problem=problem, answer=None, solution=solution, test=raw))
    renio.need(rows, f"{source}: it has no rows")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation.

Key = namedtuple("Key", "step benchmark decoding problem sample")  # names an answer; problem and sample count from 0
COMPARED = "model adapter checkpoints benchmarks limit n decoding temperature top_p top_k max_new_tokens thinking"
COMPARED = [*COMPARED.split(), "privileged", "engine", "dtype", "seed"]  # the flags that change scores


def evaluate(args):
    """Sample the answers that answers.jsonl lacks, grade all, write args.output and print each score."""
    if not args.answers.exists():  # answers can be graded without their model
        for name in filter(None, (args.model, args.adapter, args.checkpoints)):
            renio.check_folder(name)
    problems = {name: load_benchmark(name, args.data_dir, limit) for name, limit in benchmark_limits(args).items()}
    settings = {flag: getattr(args, flag) for flag in [*COMPARED, "scale", "batch_size"]}
    checksums = {name: hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] for name, rows in problems.items()}
    settings["checksums"] = checksums  # two scores can be compared if these are the same
    models = models_of(args)
    if scored_steps(args, settings) >= models.keys():
        return print(f"{args.output} is there, skipped (remove it to grade its answers again)")
    answers = read_answers(args.answers, settings)
    wanted = []
    for step, (name, rows), decoding in itertools.product(models, problems.items(), args.decoding):
        samples = range(args.n if decoding == "sampled" else 1)
        wanted += [Key(step, name, decoding, *pair) for pair in itertools.product(range(len(rows)), samples)]
    missing = set(wanted) - answers.keys()
    if missing:
        sample_answers(args, problems, settings, models, wanted, missing)
        answers = read_answers(args.answers, settings)
    groups = itertools.groupby(wanted, key=lambda key: key[:3])  # step, benchmark, decoding
    results = [score(*group, problems[group[1]], [answers[key] for key in keys]) for group, keys in groups]
    for r in results:
        step = "" if r["step"] is None else f", step {r['step']}"
        scores = f"{100 * r['avg']:.1f} % correct, {r['length']:.1f} tokens an answer"
        print(f"{args.label}{step}, {r['benchmark']}, {DECODINGS[r['decoding']]}: {scores}")
    run = dict(label=args.label, train_seed=args.train_seed, settings=settings, results=results)
    renio.write_json(args.output, run)


def models_of(args):
    """The models to score: {step: (model, adapter or None)}. An adapter without --model goes on its base model."""
    folders = {None: args.adapter or args.model}
    renio.need(not args.adapter or renio.adapter_base(args.adapter), f"--adapter {args.adapter}: not an adapter")
    if args.checkpoints:
        folders = {renio.step_of(folder): str(folder) for folder in reversed(renio.checkpoints(Path(args.checkpoints)))}
    renio.need(folders, f"--checkpoints {args.checkpoints}: it holds no checkpoint-N")
    models = {}
    for step, folder in folders.items():
        base = renio.adapter_base(folder)
        if base and args.model and args.model != folder:
            base = args.model
        models[step] = (base, folder) if base else (folder, None)
    return models


def scored_steps(args, settings):
    """The steps that args.output has scores of. Raises renio.UserError if it was made with other settings."""
    if not args.output.exists():
        return set()
    try:
        run = json.loads(args.output.read_text(encoding="utf-8"))
        steps, old = {result["step"] for result in run["results"]}, run["settings"]
    except (ValueError, KeyError, TypeError):
        raise renio.UserError(f"{args.output}: not scores of this eval.py; name another --output") from None
    refuse_other_settings([args.output, args.answers], old, settings)
    return steps


def read_answers(path, settings):
    """{Key: answer} from answers.jsonl. Its first line, which must not contradict `settings`, is merged into them."""
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):  # a kill has cut the last line short
        os.truncate(path, whole)
    answers = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            row = json.loads(line)
            if number == 1:
                refuse_other_settings([path], row["settings"], settings)
                settings |= row["settings"]
            else:
                answers[Key(*(row[field] for field in Key._fields))] = row
        except (ValueError, KeyError, TypeError):
            raise renio.UserError(f"{path}, line {number}: not an answer; remove the file to sample again") from None
    return answers


def refuse_other_settings(files, old, new):
    """Raise renio.UserError, which names the differences, if `files` were made with other settings or problems."""
    changed = [f"--{flag} {old.get(flag)}, now {new[flag]}" for flag in COMPARED if old.get(flag) != new[flag]]
    for name, now in new["checksums"].items():
        if not changed and old["checksums"][name] != now:  # --limit changes the problems too
            changed.append(f"other problems of {name} (checksum {old['checksums'][name]}, now {now})")
    there = " and ".join(str(file) for file in files if file.exists())
    renio.need(not changed, f"{files[0]} was made with {'; '.join(changed)}: remove {there}, or name another --output")


def sample_answers(args, problems, settings, models, wanted, missing):
    """Sample the answers to the `missing` Keys, and append each to answers.jsonl as soon as it ends."""
    tokenizer = renio.load_tokenizer(next(iter(models.values()))[0])
    prompts = {}  # (benchmark, problem): token ids
    for name, rows in problems.items():
        template = renio.PROMPTS[benchmark_of(name).task][args.privileged]
        for problem, row in enumerate(rows):
            renio.need(row["solution"] or not args.privileged, f"--privileged: {name} has no solutions")
            [prompts[name, problem]] = renio.prompt_ids(tokenizer, [renio.fill_prompt(template, row)], [args.thinking])
    settings["prompts"] = {name: tokenizer.decode(list(prompts[name, 0])) for name in problems}
    settings["versions"] = {name: renio.version_of(name) for name in ("torch", "transformers", args.engine)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(desc=args.label, total=len(wanted), initial=len(wanted) - len(missing), unit="answer")
    with args.answers.open("a", encoding="utf-8", buffering=1) as file, bar:  # written line by line
        if file.tell() == 0:
            file.write(json.dumps(dict(settings=settings)) + "\n")
        for key, answer in new_answers(args, tokenizer, prompts, models, wanted, missing):
            if key in missing:  # the other answers of a batch were written before a kill
                missing.remove(key)
                file.write(json.dumps(key._asdict() | answer) + "\n")
                bar.update()
    renio.VllmSampler.close()  # grading needs no GPU


def new_answers(args, tokenizer, prompts, models, wanted, missing):
    """Yield (Key, answer) as each answer ends. seconds: since the answer before. In vLLM adapters share one model."""
    longest = max(map(len, prompts.values())) + args.max_new_tokens
    model, sampler, loaded = None, None, None
    for step, (base, adapter) in models.items():
        if not any(key.step == step for key in missing):
            continue
        if args.engine == "transformers" or base != loaded:
            model, sampler, loaded = None, None, base  # there may be no room for two models
        if args.engine == "transformers":
            renio.tune(device := renio.pick_device())
            model = renio.load_model(adapter or base, args.dtype, device, base=adapter and base)
            sampler = functools.partial(renio.sample, model)
        elif sampler is None:
            renio.VllmSampler.close()
            configs = [Path(adapter) / "adapter_config.json" for _, adapter in models.values() if adapter]
            lora_r = max((json.loads(config.read_text(encoding="utf-8"))["r"] for config in configs), default=0)
            limits = [args.dtype, longest, args.vllm_memory, args.batch_size, lora_r]
            model = sampler = renio.VllmSampler("--engine", base, *limits)
        if args.engine == "vllm" and adapter:
            sampler.load_adapter(adapter)
        eos_ids = renio.end_ids(model, tokenizer)
        for decoding in args.decoding:
            keys = [key for key in wanted if (key.step, key.decoding) == (step, decoding)]
            # the longest prompts come first: batches need little padding, and too large a batch fails at once
            keys.sort(key=lambda key: -len(prompts[key.benchmark, key.problem]))
            sampling = [args.temperature if decoding == "sampled" else 0, args.top_p, args.top_k]
            for batch, seed in batches(args, keys, missing):
                asked, before = [prompts[key.benchmark, key.problem] for key in batch], time.perf_counter()
                for index, completion in sampler(asked, args.max_new_tokens, eos_ids, *sampling, seed):
                    text, now = renio.decode(tokenizer, completion, eos_ids), time.perf_counter()
                    answer = dict(text=text, tokens=len(completion), truncated=completion[-1] not in eos_ids)
                    yield batch[index], answer | dict(seconds=now - before)
                    before = now


def batches(args, keys, missing):
    """Yield each batch of Keys that has missing answers, and its seed. After a kill the answers must be the same."""
    if args.engine == "vllm":  # one batch, in which each answer has a seed of its own
        batch = [key for key in keys if key in missing]
        if batch:
            yield batch, [random.Random(f"{args.seed} {key[1:]}").getrandbits(63) for key in batch]
        return
    for start in range(0, len(keys), args.batch_size):  # the seed is a batch's, so a whole batch is sampled again
        batch = keys[start : start + args.batch_size]
        if not missing.isdisjoint(batch):
            yield batch, args.seed * 1_000_000 + start


Verdict = namedtuple("Verdict", "passed reason")  # whether an answer is correct, and why
MARKERS = "but wait hmm perhaps maybe actually seems might likely check alternatively however though again".split()
MARKER_PATTERN = re.compile(rf"\b(?:{'|'.join(MARKERS)})\b", re.IGNORECASE)  # the paper's list, Appendix C


def score(step, name, decoding, rows, answers):
    """The entry of eval.json for a benchmark and decoding. The answers stand in the order of the rows, n for each."""
    n, task, mean = len(answers) // len(rows), benchmark_of(name).task, statistics.fmean
    graded = [(answer["text"], rows[answer["problem"]]) for answer in answers]
    verdicts = grade(task, graded)
    correct = [sum(verdict.passed for verdict in verdicts[i : i + n]) for i in range(0, len(verdicts), n)]
    scores = dict(step=step, benchmark=name, decoding=decoding, n=n, avg=sum(correct) / len(answers))
    scores |= dict(per_problem=[count / n for count in correct], length=mean(answer["tokens"] for answer in answers))
    scores["truncation_rate"] = mean(answer["truncated"] for answer in answers)
    scores["format_rate"] = mean(renio.extract_boxed(text) is not None for text, _ in graded)
    scores["markers"] = mean(len(MARKER_PATTERN.findall(text)) for text, _ in graded)
    scores["seconds"] = sum(answer["seconds"] for answer in answers)
    return scores | (error_shares(graded) if task == "arith" else {})


def grade(task, graded):
    """A Verdict for each pair in `graded`: the text of an answer and the row of its problem."""
    if task == "code":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(cores) as pool:  # each verdict waits for two processes
            verdicts = pool.map(lambda pair: grade_code(pair[1]["test"], pair[0]), graded)
            return list(tqdm(verdicts, desc="grading", total=len(graded), unit="answer"))
    verdict = renio.arith_verdict if task == "arith" else renio.math_verdict
    reasons = [verdict(text, row["answer"]) for text, row in graded]  # no threads: math-verify uses alarms
    return [Verdict(reason == "equal", reason) for reason in reasons]


def error_shares(graded):
    """Shares of incorrect or missing results: of taught operations, and of gaps, which the base was not taught."""
    gaps, incorrect, count = set(renio.operation_gaps()), Counter(), Counter()
    for text, row in graded:
        results, words = renio.arith_results(text), row["problem"].split()
        for name, operation in zip(words[::2], words[1::2], strict=True):
            kind = "gap" if operation in gaps else "taught"
            count[kind] += 1
            incorrect[kind] += results.get(name) != str(renio.result_of(operation))
    return {f"{kind}_error": incorrect[kind] / max(1, count[kind]) for kind in ("taught", "gap")}


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts in the terminal.

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # characters that could change the terminal


def show(folder, step=None):
    """Print four rollouts of a step (default: the last one), from the highest weight to the lowest."""
    log, colour = folder / "rollouts.jsonl", sys.stdout.isatty() and "NO_COLOR" not in os.environ
    renio.need(log.exists(), f"show {folder}: it holds no rollouts.jsonl; train with --save_rollouts True")
    rollouts = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = sorted({rollout["step"] for rollout in rollouts})
    renio.need(step is None or step in steps, f"show --step {step}: {log} has the steps {', '.join(map(str, steps))}")
    models = [model for model in (folder / "final", *renio.checkpoints(folder)) if model.exists()]
    renio.need(models, f"show {folder}: it holds neither final/ nor checkpoint-N/; one is needed for its tokenizer")
    tokenizer = renio.load_tokenizer(str(models[0]))
    threshold = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]["threshold"]
    step = steps[-1] if step is None else step
    ordered = sorted((r for r in rollouts if r["step"] == step), key=lambda rollout: -rollout["renio_weight"])
    marked = "underlined; the redder a token, the larger its log-ratio" if colour else "in [brackets]"
    print(f"{folder}, step {step}: {len(ordered)} rollouts; key tokens (log-ratio above {threshold}) are {marked}")
    last = len(ordered) - 1
    for place in sorted({0, last // 3, 2 * last // 3, last}):
        rollout = ordered[place]
        verdict = {True: "correct", False: "incorrect", None: "not graded"}[rollout["correct"]]
        cut, key_tokens = ", cut off" if rollout["truncated"] else "", rollout["key_tokens"]
        print(f"\nweight {rollout['renio_weight']:.2f} (#{place + 1}), {verdict}{cut}, key tokens: {key_tokens}")
        print("prompt:  " + CONTROL.sub(" ", textwrap.shorten(rollout["problem"], 400)))
        print("student: " + shaded(tokenizer, rollout["completion"], rollout["log_ratios"], threshold, colour))


def shaded(tokenizer, ids, log_ratios, threshold, colour, most=300):
    """The first tokens of a rollout as text. Key tokens are marked. In colour, a larger log-ratio is redder."""
    text, before = "", ""
    for end, log_ratio in zip(range(1, min(most, len(ids)) + 1), log_ratios, strict=False):
        now = tokenizer.decode(ids[:end])
        if now.endswith("\ufffd") and end < len(ids):
            continue  # a part of a letter; the letter is printed with its last token
        space, token = re.fullmatch(r"(\s*)(.*)", CONTROL.sub(" ", now[len(before) :]), re.DOTALL).groups()
        before, is_key = now, log_ratio > threshold
        if colour and (is_key or log_ratio > 0.2):
            pale = 215 - int(48 * min(max(log_ratio, 0), 4))
            token = f"\033[48;2;255;{pale};{pale};38;2;0;0;0{';1;4' if is_key else ''}m{token}\033[0m"
        elif is_key:
            token = f"[{token} {log_ratio:+.1f}]"
        text += space + token
    return text + (f" ... and {len(ids) - most} more tokens" if len(ids) > most else "")


# ---------------------------------------------------------------------------------------------------------------------
# Code grader. A verdict takes two processes. The judge knows the inputs and the expected results, and compares as
# evalplus does. The sandbox runs the model's program: through a pipe it gets the program and the arguments of one call
# at a time, and sends the result back. The program sees no expected result, no network, no files but Python's. It can
# neither start nor signal a process. Only plain values come back: numbers, strings, None and containers of them.
# A warning names missing protection: before Linux 6.12, or without user namespaces, a program can learn whether a path
# exists; before 5.13 it can read files. Other systems limit only processor time, file size and open files.
# The rules are those of evalplus's HEAD (26d6d00). The paper used 0.3.1, which never passes HumanEval/32 (0.6 points),
# allows some tests 1 s instead of 4, and leaves terminal escapes in answers. Five inputs of MBPP+/255 are left out.


def grade_code(row, completion, timeout=60.0):
    """The Verdict on the program in a model's text: does it pass all tests of a row of HumanEval+ or MBPP+?

    timeout: seconds of processor time for all tests; by the clock, five times as many.
    """
    job = json.dumps(dict(row=row, completion=completion, timeout=timeout))
    command, pipe = [sys.executable, __file__, "judge"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            reply, errors = process.communicate(job, timeout=Sandbox.PATIENCE * timeout + 60)
        except subprocess.TimeoutExpired:
            return Verdict(False, "timeout: the judge did not end")
        finally:  # ends the sandbox too: it is in the same process group
            with contextlib.suppress(ProcessLookupError, PermissionError):  # no process is left (Linux; macOS)
                os.killpg(process.pid, signal.SIGKILL)
    try:
        passed, reason, missing = json.loads(reply)
    except ValueError:  # a result can exhaust the judge's memory or processor time
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        return Verdict(False, f"the judge ended without a verdict: {lines[-1]}")
    if missing:
        print_once(f"warning: code runs without {', '.join(missing)} (Linux 6.12 has all)", file=sys.stderr)
    return Verdict(passed, reason)


print_once = functools.cache(print)
# How to find the program in an answer. Terminal escapes are removed: links and titles (OSC), colours (CSI), others.
ESCAPE = re.compile(r"\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]")
FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?:```|~~~)")  # may open an item of a list
OPENING = re.compile(r"([ \t]*)(?:(?:async +def|def|class|import|from|if|try)\b|@|\w+ *(?::.*)?=[^=])")  # unfenced
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises


def solution_program(row, completion):
    """The program in an answer, or None: the last fenced block that parses and defines the tested function, or else the
    last such lines between prose, or else (HumanEval+) a body of the prompt's function."""
    name = tested_function(row)
    prompt = row["prompt"] if "entry_point" in row else ""
    above = re.split(rf"^def {name}\b", prompt, flags=re.MULTILINE)[0]
    thinking, _, final = ESCAPE.sub("", completion).replace("\r\n", "\n").rpartition("</think>")
    for text in (final, thinking):  # the text after the thinking comes first
        blocks = fenced_blocks(text)
        programs = [f"{above}\n{code}" for code in (*blocks, *parsable_stretches(text)) if name in code]
        if prompt:
            for code in (*blocks, text):
                bodies = (code, textwrap.indent(textwrap.dedent(code), "    "), "    " + code.strip())
                programs += [f"{prompt.rstrip()}\n{body}" for body in bodies]
        for program in programs:
            if needed := needed_statements(program, name):
                return needed
    return None


def fenced_blocks(text):
    """The texts between fences, the last first. A docstring may hold fences, so several ends of a block are tried."""
    lines, blocks = text.split("\n"), []
    fences = [number for number, line in enumerate(lines) if FENCE.match(line)][-100:]  # a bound on work
    for position in reversed(range(len(fences))):
        for closing in (*fences[position + 1 : position + 8], len(lines)):
            blocks.append(textwrap.dedent("\n".join(lines[fences[position] + 1 : closing])))
    return blocks


def parsable_stretches(text):
    """The lines between prose that are Python, the last first. Each stretch is as long as possible."""
    lines, start, found = text.split("\n"), 0, []
    while start < len(lines):
        opening = OPENING.match(lines[start])
        stretch = [line.removeprefix(opening[1]) for line in lines[start:]] if opening else []
        while stretch:
            try:
                ast.parse("\n".join(stretch))
                found.insert(0, "\n".join(stretch))
                break
            except NOT_PYTHON as error:
                bad_line = getattr(error, "lineno", None) or 1
                del stretch[min(bad_line, len(stretch)) - 1 :]
        start += max(len(stretch), 1)
    return found


def needed_statements(program, name):
    """The imports, and the definitions and assignments that `name` needs. None if `name` is not defined."""
    imports, results, defined, parts = (ast.Import, ast.ImportFrom), (ast.Return, ast.Yield, ast.YieldFrom), False, []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, *imports, ast.Assign, ast.AnnAssign, ast.If, ast.Try)
    try:
        for node in ast.parse(program).body:
            if isinstance(node, kinds):  # other statements could fail or wait; evalplus drops them too
                node.lineno = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", ()))])
                source = ast.get_source_segment(program, node)
                bound, used = names_in(source)
                parts.append((node, source, bound, used))
                is_real = any(isinstance(part, results) for part in ast.walk(node))  # not a repeated signature
                defined = defined or (name in bound and (is_real or not isinstance(node, ast.FunctionDef)))
    except NOT_PYTHON:
        return None
    if not defined:
        return None
    wanted, before = {name}, set()
    while wanted != before:
        before = set(wanted)
        wanted.update(*(used for _, _, bound, used in parts if bound & wanted))
    kept = [(node, source) for node, source, bound, _ in parts if isinstance(node, imports) or bound & wanted]
    kept.sort(key=lambda pair: getattr(pair[0], "module", None) != "__future__")  # must come first
    return "\n".join(source for _, source in kept)


def names_in(source):
    """The names that a statement defines, and the global names that it and its inner functions use."""
    tables = [symtable.symtable(source, "<solution>", "exec")]
    bound = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    for table in tables:
        tables += table.get_children()
    return bound, {symbol.get_name() for table in tables for symbol in table.get_symbols() if symbol.is_global()}


SET_TASKS = ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum")
SET_TASKS += ("intersection_array", "find_dissimilar", "Diff")  # order and repetition don't count
NOT_NONE_TASKS = ("check_str", "text_match_three", "text_starta_endb")  # only whether None comes back counts
ALSO_CORRECT = {  # another result that is correct too, from the answer and the arguments
    "are_equivalent": lambda answer, *_: answer,
    "sum_div": lambda *_: 0,
    "digit_distance_nums": lambda _, m, n: sum(map(lambda a, b: abs(int(a) - int(b)), f"{m:099}", f"{n:099}")),
    "surface_Area": lambda _, base, height: round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2)),
}


def tested_function(row):
    """The name of the function that the row's tests call."""
    return row["entry_point"] if "entry_point" in row else re.search(r"(\w+)\(\*inp\)", row["test"])[1]


def test_cases(row):
    """The row's tests, as an iterator of (arguments, expected result), and the tolerance for floats."""
    setup, _, loop = row["test"].replace("def check(candidate):", "if True:").rpartition("for i, ")
    scope = {}
    exec(setup, scope)
    inputs = scope["inputs"]
    if "combinations_colors" in row["test"]:  # MBPP+/255: five answers hold 6 to 128 million strings
        inputs = [(colors, n) for colors, n in inputs if n < 76]
    results = scope["results"] if "results" in scope else (scope["ref_func"](*copy.deepcopy(x)) for x in inputs)
    return zip(inputs, results, strict=True), float(re.findall(r"[\d.e-]+", loop)[-1])


def reference_seconds(row, arguments):
    """Processor time of the reference solution for a call, including the time to encode its result."""
    scope = {}
    exec(row["prompt"] + row["canonical_solution"] if "entry_point" in row else row["code"], scope)
    arguments, began = copy.deepcopy(arguments), time.process_time()
    json.dumps(encode(scope[tested_function(row)](*arguments)))
    return time.process_time() - began


def is_correct(name, arguments, answer, expected, tolerance):
    """Whether a result of the function `name` counts as correct. Raises if the two can't be compared."""
    if name == "find_zero":
        return abs(sum([c * math.pow(answer, power) for power, c in enumerate(*arguments)])) <= tolerance
    if name in SET_TASKS:
        exact = set(answer) == set(expected)
    elif name in NOT_NONE_TASKS:
        exact = expected == (answer if isinstance(answer, bool) else answer is not None)
    else:
        exact = answer == expected or (name in ALSO_CORRECT and answer == ALSO_CORRECT[name](answer, *arguments))
    if exact or not tolerance or type(answer) is not type(expected):
        return exact
    if isinstance(expected, (list, tuple)) and len(answer) != len(expected):
        return False
    return np.allclose(answer, expected, rtol=1e-7, atol=tolerance)


class SolutionFailed(Exception):
    """The program gave no result or an incorrect one. The message is the verdict's reason."""


def judge():
    """`python eval.py judge`: read a job from standard input, print [passed, reason, missing protections]."""
    job, real_stdout = json.load(sys.stdin), sys.stdout
    sys.stdout = sys.stderr  # what the reference solution prints must not look like the verdict
    seconds = math.ceil(job["timeout"]) + 5  # a set of values with equal hashes would take hours
    for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, 4 << 30)):
        with contextlib.suppress(ValueError):  # macOS has no limit of memory
            resource.setrlimit(limit, (most, most))
    sandbox, passed, reason = Sandbox(job["timeout"]), False, "passed"
    try:
        run_tests(sandbox, job["row"], solution_program(job["row"], job["completion"]))
        passed = True
    except SolutionFailed as failed:
        reason = str(failed)
    except Exception as error:  # such as a row without tests, or a result too large for the memory
        reason = f"the judge failed with {type(error).__name__}: {error}"
    finally:
        sandbox.close()
    print(json.dumps([passed, " ".join(reason.split())[:300], sandbox.missing]), file=real_stdout)


def run_tests(sandbox, row, program):
    """Run a program on the row's tests. Raises SolutionFailed at the first test that fails."""
    name = tested_function(row)
    if program is None:
        raise SolutionFailed(f"no program that defines {name}")
    sandbox.missing = sandbox.ask(["confine"])
    sandbox.ask(["load", program])
    cases, tolerance = test_cases(row)
    for number, (arguments, expected) in enumerate(cases, start=1):
        answer = sandbox.ask(["call", name, arguments], functools.partial(reference_seconds, row, arguments))
        items = expected if isinstance(expected, (list, tuple)) else [expected]
        if not tolerance and items and all(isinstance(item, float) for item in items):
            tolerance = 1e-6  # for all later tests too
        correct = False
        with contextlib.suppress(Exception):  # a number has no length, for example
            correct = is_correct(name, arguments, answer, expected, tolerance)
        if not correct:
            raise SolutionFailed(f"incorrect answer to test {number}")


class Sandbox:
    """The judge's handle on the process that runs a model's program. seconds: processor time for all calls. Tests
    imitate older kernels by landlock (the newest version to use) and namespaces (whether to use them)."""

    REPLY_LIMIT = 64 << 20  # bytes
    TEST_SECONDS, REFERENCE_FACTOR = 4.0, 4.0  # a test's limit: at least this, or this times the reference's time
    PATIENCE = 5  # limit of clock time over processor time: other work may use the processors, a program may sleep

    def __init__(self, seconds, landlock=99, namespaces=True):
        self.left, self.missing, self.folder = seconds, [], tempfile.TemporaryDirectory()
        functions = (encode, decode, serve, confine, hide_paths, restrict_files, filter_system_calls)
        source = "import contextlib, ctypes, json, os, resource, signal, struct, sys, types\n"
        source += "\n".join(map(inspect.getsource, functions)) + "\nserve()"
        home, numbers = self.folder.name, [math.ceil(seconds) + 1, os.getpid(), landlock, int(namespaces)]
        variables = dict(PATH="/usr/bin:/bin", LANG="C.UTF-8", HOME=home, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        command = [sys.executable, "-I", "-c", source, *map(str, numbers)]
        self.process = subprocess.Popen(command, cwd=home, env=variables, **pipes)
        os.set_blocking(self.process.stdin.fileno(), False)
        processor_clock = functools.partial(time.clock_gettime, ~self.process.pid << 3 | 2)  # clock_getcpuclockid(3)
        self.clock = processor_clock if sys.platform == "linux" else time.monotonic

    def ask(self, question, reference=None):
        """The reply to a question. reference() gives the reference solution's seconds; it is called only if needed."""
        wall, began, limit = time.monotonic(), self.clock(), min(self.TEST_SECONDS, self.left)
        unsent, reply = memoryview(json.dumps(encode(question)).encode() + b"\n"), bytearray()
        source, sink = self.process.stdout, self.process.stdin
        try:
            while reply[-1:] != b"\n" and len(reply) <= self.REPLY_LIMIT:
                readable, writable, _ = select.select([source], [sink] if unsent else [], [], 0.05)
                if readable:
                    reply += source.read(1 << 20) or self.ended()
                elif writable:
                    unsent = unsent[sink.write(unsent) :]
                used = self.clock() - began
                if used > limit and reference:
                    limit, reference = min(max(limit, self.REFERENCE_FACTOR * reference()), self.left), None
                if used > limit or time.monotonic() - wall > self.PATIENCE * limit:
                    raise SolutionFailed("timeout")
        except OSError:
            self.ended()
        self.left -= used
        try:
            kind, value = decode(reply)
        except Exception:  # a program can write anything into its pipe
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
        with self.process, self.folder:  # closes the pipes, waits, removes the folder
            self.process.kill()


def encode(value):
    """A plain value in a form that JSON can hold: {kind: content} for kinds that JSON lacks. Others: TypeError."""
    kind = type(value)
    if kind in (str, float, bool, type(None)) or (kind is int and value.bit_length() <= 64):
        return value
    if kind is int:
        return {"int": hex(value)}  # Python refuses to write very long ones in decimals
    if kind in (list, tuple, set, frozenset):
        items = list(map(encode, value))
        return items if kind is list else {kind.__name__: items}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    for plain in (int, float, str, list, tuple, set, frozenset, dict, complex):
        if isinstance(value, plain):  # such as numpy.float64: equal to a plain value, but of another type
            return {"subclass": encode(plain(value))}
    if (kind.__module__, kind.__name__) == ("re", "Match"):
        return {"subclass": value.group()}
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item() if kind.__name__ in ("bool", "bool_") else {"subclass": encode(value.item())}
    if hasattr(kind, "isdisjoint"):  # the keys of a dict; they are equal to a set
        return {"subclass": encode(set(value))}
    if hasattr(kind, "__iter__"):  # a map, a range: equal to no list, but some tasks compare sets of items
        return {"iterator": encode(list(value))}
    raise TypeError(f"an answer of type {kind.__name__}: only numbers, strings, None and containers of them count")


def decode(text):
    """The value from the JSON text of its encoded form. Any text gives a plain value or an exception."""
    makers = dict(tuple=tuple, set=set, frozenset=frozenset, dict=dict, iterator=iter)
    makers["int"] = lambda digits: int(digits, 16)
    makers["complex"] = lambda parts: complex(*parts)
    makers["subclass"] = lambda value: type("Subclass", (type(value),), {})(value)
    return json.loads(text, object_hook=lambda tagged: [makers[kind](content) for kind, content in tagged.items()][0])


def serve():
    """The sandbox's main function. It replies to each question with ["value", result] or ["error", message]."""
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # the program has no input, and its output is dropped
        os.dup2(null, stream)
    module = sys.modules["solution"] = types.ModuleType("solution")  # where dataclasses look up quoted annotations
    for question in questions:
        try:
            action, *words = decode(question)
            if action == "confine":
                result = confine(*map(int, sys.argv[1:]))
            elif action == "load":
                result = exec(compile(words[0], "<solution>", "exec"), vars(module))
            else:
                result = getattr(module, words[0])(*words[1])
            reply = json.dumps(["value", encode(result)])
        except BaseException as error:  # SystemExit too
            reply = json.dumps(["error", f"{type(error).__name__}: {error}"[:300]])
        replies.write(reply.encode() + b"\n")
        replies.flush()


def confine(cpu_seconds, judge_id, newest_landlock, namespaces):
    """Take from this process, for good, all rights that a solution does not need. Returns the missing protections."""
    paths = [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    paths += ["/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    paths, linux, missing = list(filter(os.path.exists, paths)), sys.platform == "linux", []
    if not (linux and namespaces and hide_paths(paths)):
        missing.append("hidden names of files (user namespaces)")
    for name, limit in (("CPU", cpu_seconds), ("AS", 4 << 30), ("FSIZE", 0), ("NOFILE", 64), ("CORE", 0)):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # macOS has no limit of memory
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if not linux:
        return [*missing, "a ban on files, processes, signals and the network, a limit of memory"]
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: end with the judge
    if os.getppid() != judge_id:
        os._exit(1)  # the judge died before that
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: Landlock and seccomp require it
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    landlock = restrict_files(paths, newest_landlock)
    if landlock < 6:
        missing.append(f"Landlock 6 (here {landlock})" if landlock else "read protection of files (Landlock)")
    if not filter_system_calls():
        missing.append("a ban on processes, signals and the network (seccomp)")
    return missing


def hide_paths(paths):
    """Give this process a file system that holds only these paths. Returns whether the system allows it."""
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
    """Landlock: only these files can be read, none can be changed. Returns the version in use (0: none)."""
    libc = ctypes.CDLL(None)
    version = min(libc.syscall(444, None, 0, 1), newest)
    if version < 1:
        return 0
    kinds = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # kinds of access to files; newer versions know more
    rules = struct.pack("QQQ", (1 << kinds) - 1, 3 * (version >= 4), 3 * (version >= 6))  # files, network, signals
    ruleset = libc.syscall(444, rules, ctypes.c_size_t(24), 0)
    for path in paths:
        place = os.open(path, os.O_PATH)
        access = 1 << 2 | (1 << 3 if os.path.isdir(path) else 0)  # read a file, list a folder
        libc.syscall(445, ruleset, 1, struct.pack("=Qi", access, place), 0)
        os.close(place)
    failed = libc.syscall(446, ruleset, 0)
    os.close(ruleset)
    return 0 if failed else version


def filter_system_calls():
    """seccomp: allow only these system calls (name, number on x86_64, on aarch64). Returns whether the filter holds."""
    column, audit = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}.get(os.uname().machine, (0, 0))
    if not audit:
        return False
    calls = """
        read 0 63, write 1 64, close 3 57, fstat 5 80, newfstatat 262 79, lseek 8 62, mmap 9 222, mprotect 10 226,
        munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233, futex 202 98, rt_sigaction 13 134,
        rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, pread64 17 67, readv 19 65, writev 20 66,
        getdents64 217 61, readlinkat 267 78, faccessat 269 48, faccessat2 439 439, statx 332 291, getcwd 79 17,
        dup 32 23, dup3 292 24, pipe2 293 59, ppoll 271 73, pselect6 270 72, nanosleep 35 101, clock_nanosleep 230 115,
        clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, times 100 153, getrusage 98 165,
        getrlimit 97 163, getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175,
        getgid 104 176, getegid 108 177, uname 63 160, sysinfo 99 179, getrandom 318 278, sched_yield 24 124,
        sched_getaffinity 204 123, set_tid_address 218 96, set_robust_list 273 99, rseq 334 293, membarrier 324 283,
        restart_syscall 219 128, close_range 436 436, exit 60 93, exit_group 231 94, stat 4 -, lstat 6 -, access 21 -,
        readlink 89 -, poll 7 -, select 23 -, dup2 33 -, pipe 22 -, getdents 78 -, time 201 -"""
    load, equal, some, end = 0x20, 0x15, 0x45, 0x06  # lines: (code, lines to skip if true, if false, value)
    refuse, allow, unknown = (end, 0, 0, 0x50001), (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x50026)  # EPERM; ENOSYS
    changing = [0o3, 0o100, 0o1000]  # to write, O_CREAT, O_TRUNC (Landlock before 3 does not stop it)
    rules = [(call, 0, equal, [], allow, allow) for call in calls.split(",")]
    rules += [  # a call, the argument to test, the test, its values, what to do if one matches and if none does
        ("clone3 435 435", 0, equal, [], unknown, unknown),  # a filter can't see its flags; libc then tries clone
        ("clone 56 220", 0, some, [0x10000], allow, refuse),  # threads, but no processes
        ("prlimit64 302 261", 0, equal, [0], allow, refuse),  # only its own limits
        ("openat 257 56", 2, some, changing, refuse, allow),
        ("open 2 -", 1, some, changing, refuse, allow),
        ("fcntl 72 25", 1, equal, [0, 1, 2, 3, 1030], allow, refuse),  # F_SETOWN or O_ASYNC would signal any process
        ("ioctl 16 29", 1, equal, [0x5401, 0x5413, 0x541B, 0x5450, 0x5451], allow, refuse),  # TCGETS, TIOCGWINSZ, FIO*
    ]
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), refuse, (load, 0, 0, 0)]
    for call, argument, test, values, matching, other in rules:
        number = call.split()[column]
        if number != "-":
            program += [(equal, 0, len(values) + 3, int(number)), (load, 0, 0, 16 + 8 * argument)]
            program += [*((test, len(values) - i, 0, value) for i, value in enumerate(values)), other, matching]
    program.append(refuse)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    return ctypes.CDLL(None).prctl(22, 2, header, 0, 0) == 0  # PR_SET_SECCOMP


# ---------------------------------------------------------------------------------------------------------------------
# Scores as one DataFrame.

UNTRAINED = ["base", "base-with-solution", "teacher"]  # labels of models that several runs share
DECODINGS = {"sampled": "temperature 1", "greedy": "greedy"}
CONDITIONS = ["temperature", "top_p", "top_k", "max_new_tokens", "thinking", "engine", "dtype"]
FLAGS = dict(  # training flags that a row names if most runs differ, unless the label has this text in it
    log_ratio_clip="clip", threshold="threshold", weight_norm="norm", batch_size="batch", beta="beta", entry_clip="/",
    prefix_tokens="/", variant="/", learning_rate="/", max_steps="/", lora_r="/", temperature="/")  # fmt: skip
TRAINING = "divergence rollout_accuracy truncation_rate key_token_share weight_max effective_sample_size".split()
WEIGHTS = ["1", "between", "clipped"]
FINDERS = dict(  # scores of a rollout; the column auc_... tells how well each finds the incorrect rollouts
    weight="ReNIO's weight", mean_log_ratio="mean log-ratio over all tokens", max_log_ratio="largest log-ratio",
    key_tokens="number of key tokens", student="low mean log-probability, student",
    teacher="low mean log-probability, teacher", entropy="mean entropy of the teacher", length="length")  # fmt: skip


def read_scores(folder):
    """Every eval.json below a folder as a DataFrame: a row a run, step, benchmark and decoding. Else its scores.csv."""
    paths, table = sorted(folder.rglob("eval.json")), folder / "scores.csv"
    if table.exists() and not paths:  # published results
        return pd.read_csv(table, dtype=dict(settings=str)).fillna(dict(settings=""))
    renio.need(paths, f"report {folder}: it holds no eval.json and no scores.csv; score a run first")
    rows = []
    for path in paths:
        columns = training_columns(path.parent)
        rows += [row | columns for row in read_evaluation(path)]
    scores = pd.DataFrame(rows)
    repeated = scores[scores.duplicated(["label", "seed", "step", "benchmark", "decoding"])].label.unique()
    renio.need(not len(repeated), f"report {folder}: two runs of one seed are called {', '.join(repeated)}; move one")
    scores["task"] = ["code" if name in ("humaneval+", "mbpp+") else "math" for name in scores.benchmark]
    last = scores.groupby(["label", "seed", "task"]).step.transform("max")
    scores["last"] = scores.step.isna() | (scores.step == last)
    scores["settings"] = unusual_settings(scores)
    scores["conditions"] = scores.conditions.where(scores["last"], "")  # a long text, the same at each step
    return scores.drop(columns=["per_problem", "flags"])


def read_evaluation(path):
    """The entries of an eval.json as dicts, a row of the DataFrame each. Shares are in percent."""
    renio.need(path.exists(), f"{path}: there is no such file")
    shares, rows = dict(score="avg", truncated="truncation_rate", boxed="format_rate"), []
    shares |= dict(taught_error="taught_error", gap_error="gap_error")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        settings = run["settings"]
        conditions = ", ".join(f"{name} {settings[name]}" for name in CONDITIONS if name in settings)
        for result in run["results"]:
            row = dict(label=run["label"], seed=run["train_seed"], step=result["step"], benchmark=result["benchmark"])
            row |= dict(decoding=result["decoding"], n=result["n"], problems=len(result["per_problem"]))
            row |= {name: round(100 * result[key], 6) for name, key in shares.items() if result.get(key) is not None}
            row |= dict(tokens=result["length"], markers=result["markers"], minutes=result["seconds"] / 60)
            row |= dict(checksum=settings["checksums"][row["benchmark"]], model=settings["model"])
            rows.append(row | dict(conditions=conditions, per_problem=result["per_problem"]))
    except (ValueError, KeyError, TypeError):
        raise renio.UserError(f"{path}: it does not hold scores of this eval.py; score the run again") from None
    return rows


def unusual_settings(scores):
    """A text for each row: the settings of training and scoring in which it differs from most rows."""
    texts = scores.label.map(lambda label: "")
    distilled = scores["flags"].map(lambda flags: flags.get("method") in ("opd", "opsd"))
    for name, part in FLAGS.items() if any(distilled) else ():
        values = scores["flags"].map(lambda flags, name=name: f"{name} {flags.get(name)}")
        unusual = distilled & (values != values[distilled].mode()[0]) & ~scores.label.str.contains(part, regex=False)
        texts[unusual] += values[unusual] + "; "
    usual = scores.groupby(["benchmark", "decoding"]).conditions.transform(lambda values: values.mode()[0])
    texts[scores.conditions != usual] += "scored with " + scores.conditions + "; "
    return texts.str.removesuffix("; ")


def read_lines(path):
    """The rows of a .jsonl file as a DataFrame, which is empty if there is no such file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return pd.DataFrame([json.loads(line) for line in text.splitlines()])


def training_columns(folder):
    """Columns from the training of a run: its flags, means over the steps, and what its rollouts tell."""
    config, metrics = folder / "config.json", read_lines(folder / "metrics.jsonl")
    flags = json.loads(config.read_text(encoding="utf-8"))["flags"] if config.exists() else {}
    columns = dict(flags=flags, prefix_tokens=flags.get("prefix_tokens"), train_minutes=0.0)
    if "rollout_accuracy" in metrics:
        columns |= {name: metrics[name].mean() for name in TRAINING if name in metrics}
        columns |= dict(train_minutes=metrics.seconds.sum() / 60, seconds_per_step=metrics.seconds[1:].mean())
    rollouts = read_lines(folder / "rollouts.jsonl")
    if "renio_weight" not in rollouts:
        return columns
    weight, entropy = rollouts.renio_weight, rollouts.teacher_entropy
    finders = dict(weight=weight, entropy=entropy, length=rollouts.completion.map(len), key_tokens=rollouts.key_tokens)
    finders |= dict(mean_log_ratio=rollouts.log_ratios.map(np.mean), max_log_ratio=rollouts.log_ratios.map(max))
    finders |= dict(student=-rollouts.student_logprob, teacher=-rollouts.teacher_logprob)
    graded = rollouts.correct.notna()
    steps, incorrect = rollouts.step[graded], ~rollouts.correct[graded].astype(bool)
    columns |= {f"auc_{name}": auc_within_batch(steps, values[graded], incorrect) for name, values in finders.items()}
    share = weight[graded] / weight[graded].groupby(steps).transform("sum")  # Eq. 8: each batch has the same weight
    columns["incorrect_rollouts"] = 100 * incorrect.mean()
    columns["incorrect_weight"] = 100 * share[incorrect].sum() / share.sum()
    clipped = weight >= 0.999 * weight.max()  # clipped weights differ in their last digits
    groups = [weight == 1, (weight > 1) & ~clipped, (weight > 1) & clipped]
    columns |= {f"entropy_{x}": entropy[group].mean() for x, group in zip(WEIGHTS, groups, strict=True)}
    return columns | dict(entropy_rho=weight.rank().corr(entropy.rank()))  # Spearman's


def auc_within_batch(steps, values, incorrect):
    """The chance that an incorrect rollout has a larger value than a correct one of its step; mean over the steps."""
    ranks = values.groupby(steps).rank().where(incorrect, 0).groupby(steps).sum()
    n_incorrect, n_correct = incorrect.groupby(steps).sum(), (~incorrect).groupby(steps).sum()
    pairs = (n_incorrect * n_correct).where(lambda count: count > 0)  # other steps do not count
    return ((ranks - n_incorrect * (n_incorrect + 1) / 2) / pairs).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Statistics. Intervals are 95 %: Student's over training seeds, or a bootstrap over the problems of two runs.


def by_seed(scores, decoding, task="math"):
    """Scores at the last step, means over the task's benchmarks, as a DataFrame: a row a seed, a column a label."""
    rows = scores[scores["last"] & (scores.decoding == decoding) & (scores.task == task)]
    counts = rows.benchmark.value_counts()
    rows = rows[rows.benchmark.isin(counts.index[2 * counts >= counts.max()])]  # those that most runs were scored on
    table = rows.pivot(index=["seed", "label"], columns="benchmark", values="score")
    table = table.mean(axis=1, skipna=False).unstack()
    for label in [label for label in UNTRAINED if label in table and table[label].count() == 1]:
        table[label] = table[label].max()  # the one score is compared with every seed
    return table


def difference(table, label, other):
    """label − other, for each seed that both have."""
    if label not in table or other not in table:
        return np.array([])
    return (table[label] - table[other]).dropna().round(9).to_numpy()


def interval(values):
    """(low, high, p-value) of a mean over seeds; None for fewer than three seeds or seeds without spread."""
    if len(values) < 3 or np.ptp(values) == 0:
        return None
    test = stats.ttest_1samp(values, 0)
    return *test.confidence_interval(0.95), float(test.pvalue)


def verdict(gains):
    """What the gains of a claim, one of each seed, say about the claim."""
    ends = interval(gains)
    if ends is None:
        return ["not run", "one seed", "two seeds", "no spread"][min(len(gains), 3)]
    if ends[0] > 0:
        return "holds"
    return "opposite" if ends[1] < 0 else "no effect"


def cell(values, form="+z.1f"):
    """A mean over seeds and its interval as text; of two seeds both values, since they have no interval."""
    if len(values) == 0:
        return "–"
    numbers = values if len(values) == 2 else [np.mean(values), *(interval(values) or ())[:2]]
    texts = [format(number, form).replace("-", "−") for number in numbers]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ", ".join(texts)


def compare(*paths):
    """Print the gain of the second eval.json over the first at the last step, with an interval over the problems."""
    keys = ["benchmark", "decoding"]
    sides = [pd.DataFrame(read_evaluation(Path(path))) for path in paths]
    sides = [rows.sort_values("step", na_position="first").drop_duplicates(keys, keep="last") for rows in sides]
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("_a", "_b"))
    renio.need(len(pairs), "compare: the two files share no benchmark and decoding")
    for row in pairs.itertuples():
        same = (row.checksum_a, row.problems_a) == (row.checksum_b, row.problems_b) and row.problems_a > 1
        renio.need(same, f"compare: different problems of {row.benchmark} in the two files, or only one")
        gains = 100 * np.subtract(row.per_problem_b, row.per_problem_a)
        ends = stats.bootstrap((gains,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
        text = "{:+z.1f} [{:+z.1f}, {:+z.1f}] points, over problems alone".format(gains.mean(), *ends)
        text = f"{row.label_b} {row.score_b:.1f} − {row.label_a} {row.score_a:.1f} = {text.replace('-', '−')}"
        if row.conditions_a != row.conditions_b:
            text += f"; scored with different settings: {row.conditions_a} | {row.conditions_b}"
        print(f"{row.benchmark}, {DECODINGS[row.decoding]}: {text}")


# ---------------------------------------------------------------------------------------------------------------------
# The paper's claims and tables.

PUBLISHED_SCORES = """
Qwen3-1.7B: base 36.89 65.42, grpo 37.22 70.36, opsd 40.83 68.64, opsd+renio 42.78 70.53, opd 40.37 68.42,
 opd+renio 42.04 69.28, opsd@4096 38.70, opsd+renio@4096 40.56, opd@4096 41.38, opd+renio@4096 42.31,
 opd+renio-noclip 40.09, opd+renio-nothreshold 40.83, opd+renio-nonorm 39.54, opsd+ts_sample 41.57,
 opsd+st_token 40.28, opd-correct 40.3, opd-incorrect 42.9, opsd-correct 39.1, opsd-incorrect 41.6
Qwen3-4B: base 60.65 82.03, grpo 61.30 82.03, opsd 62.59 82.11, opsd+renio 63.89 82.68
Qwen3-8B: base 63.52 81.68, grpo 64.16 82.86, opsd 64.08 81.82, opsd+renio 65.56 82.86
DeepSeek-R1-Distill-Qwen-1.5B: base 21.67 45.08, grpo 23.24 45.36, opsd 21.20 45.67, opsd+renio 22.78 46.22,
 opd 22.13 45.65, opd+renio 23.43 46.06
DeepSeek-R1-Distill-Qwen-7B: base 40.83 65.95, grpo 39.72 66.49, opsd 39.69 66.60, opsd+renio 41.57 67.12
"""  # ReNIO, arXiv 2606.23104v1, Tables 1-4 and 8, Figure 1: math Avg@12, code Avg@4; best of four checkpoints
PUBLISHED = {}  # (student, task) -> {label: score}
for _student, _, _scores in (line.partition(": ") for line in PUBLISHED_SCORES.replace("\n ", " ").strip().split("\n")):
    for _label, *_values in map(str.split, _scores.split(",")):
        for _task, _value in zip(("math", "code"), _values, strict=False):
            PUBLISHED.setdefault((_student, _task), {})[_label] = float(_value)
METHODS, DISTILLATIONS = ["base", "grpo", "opsd", "opsd+renio", "opd", "opd+renio"], ("opsd", "opd")
CLAIMS = [  # the claim, the target of run_all.sh that tests it, the label that should be better, the other label
    ("OPSD beats the base (Table 1)", "main", "opsd", "base"),
    ("OPD beats the base (Table 2)", "main", "opd", "base"),
    ("OPSD with ReNIO beats GRPO (Table 1)", "main", "opsd+renio", "grpo"),
    ("ReNIO improves OPSD (Table 1)", "main", "opsd+renio", "opsd"),
    ("ReNIO improves OPD (Table 2)", "main", "opd+renio", "opd"),
    ("ReNIO improves OPSD, other length (Table 3)", "table3", "opsd+renio@*", "opsd@*"),
    ("ReNIO improves OPD, other length (Table 3)", "table3", "opd+renio@*", "opd@*"),
    ("the clip helps (Table 4)", "table4", "opd+renio", "opd+renio-noclip"),
    ("the threshold helps (Table 4)", "table4", "opd+renio", "opd+renio-nothreshold"),
    ("dividing by the batch's mean weight helps (Table 4)", "table4", "opd+renio", "opd+renio-nonorm"),
    ("S/T beats T/S weights (Table 8)", "table8", "opsd+renio", "opsd+ts_sample"),
    ("sample beats token weights (Table 8)", "table8", "opsd+renio", "opsd+st_token"),
    ("incorrect rollouts teach OPSD more (Figure 1)", "figure1", "opsd-incorrect", "opsd-correct"),
    ("incorrect rollouts teach OPD more (Figure 1)", "figure1", "opd-incorrect", "opd-correct"),
    ("high weight, low teacher entropy, OPSD (Figure 5)", "main", "opsd", ""),
    ("high weight, low teacher entropy, OPD (Figure 5)", "main", "opd", ""),
]
TABLES = """
main | Tables 1 and 2: methods, compared with base | base grpo:base opsd:base opsd+renio:base opd:base opd+renio:base
table3 | Table 3: two lengths of rollouts, ReNIO compared with plain | opsd@* opsd+renio@*:opsd@* opsd opsd+renio:opsd
 opd@* opd+renio@*:opd@* opd opd+renio:opd
table4 | Table 4: parts of the weight, compared with opd+renio | opd+renio opd+renio-noclip:opd+renio
 opd+renio-nothreshold:opd+renio opd+renio-nonorm:opd+renio opd:opd+renio
table8 | Table 8: other weights, compared with opsd+renio | opsd+renio opsd+ts_sample:opsd+renio
 opsd+st_token:opsd+renio opsd:opsd+renio
figure1 | Figure 1: incorrect rollouts, compared with correct ones | opsd-correct opsd-incorrect:opsd-correct
 opsd-correct-mixed opsd-incorrect-mixed:opsd-correct-mixed opd-correct opd-incorrect:opd-correct
 opd-correct-mixed opd-incorrect-mixed:opd-correct-mixed
figure6 | Figure 6: clip and threshold (default 3.0 and 0.8), compared with opd | opd opd+renio:opd
 opd+renio-clip2.0:opd opd+renio-clip2.5:opd opd+renio-clip3.0:opd opd+renio-threshold0.6:opd opd+renio-threshold1.0:opd
"""  # the target of run_all.sh, the title, and the rows: a label, or a label and the one that it is compared with
CONTROLS = """controls | Controls of METHOD, compared with the same run without a weight | METHOD METHOD+renio:METHOD
 METHOD+correctness:METHOD METHOD+renio_shuffled:METHOD METHOD+renio@*:METHOD@* METHOD+renio-batch128:METHOD-batch128
 METHOD+renio_shuffled-batch128:METHOD-batch128 METHOD+renio-beta0.5:METHOD-beta0.5 METHOD+renio-beta1:METHOD-beta1
 METHOD+renio-privileged:METHOD-privileged
"""
TABLES += "".join(CONTROLS.replace("METHOD", method) for method in DISTILLATIONS)
TABLES = [line.split(" | ") for line in TABLES.replace("\n ", " ").strip().split("\n")]
TABLES = [(target, title, [row.partition(":")[::2] for row in rows.split()]) for target, title, rows in TABLES]


def run_values(scores, label, column):
    """A column of the training of a label, one value for each seed."""
    rows = scores[(scores.label == label) & (scores.task == "math")].drop_duplicates("seed")
    return rows[column].dropna().to_numpy() if column in rows else np.array([])


def scorecard(scores, tables, student):
    """The claims as dicts: claim, target, paper (text), gains (an array a decoding), verdict, stands (after Holm)."""
    claims, p_values = [], {}
    for number, (text, target, label, other) in enumerate(CLAIMS):
        gains, paper = [difference(table, label, other) for table in tables.values()], "ρ < 0"
        if other:
            paper = paper_texts(scores, student, label, other)[1]
        else:
            gains[0] = -run_values(scores, label, "entropy_rho")
        if interval(gains[0]):
            p_values[number] = interval(gains[0])[2]
        claim = dict(claim=text, target=target, paper=paper, gains=gains, verdict=verdict(gains[0]))
        claims.append(claim | dict(stands=False))
    for rank, number in enumerate(sorted(p_values, key=p_values.get)):  # Holm 1979
        if p_values[number] > 0.05 / (len(p_values) - rank):
            break
        claims[number]["stands"] = True
    return claims


def paper_texts(scores, student, label, other, task="math", lengths=False):
    """The paper's score of a label and its difference to another label, as texts; empty if the paper has none."""
    # the paper's main rollouts are its short ones; where ours are the long ones, METHOD@* stands for the short ones
    swapped = scores.prefix_tokens[scores.label.str.endswith("@*")].max() < 1024
    published, values = PUBLISHED.get((student, task), PUBLISHED["Qwen3-1.7B", task]), []
    for name in (label, other):
        if name.endswith("@*"):
            name = name.replace("@*", "" if swapped else "@4096")
        elif lengths and swapped:
            name += "@4096"
        values.append(published.get(name, math.nan))
    texts = f"{values[0]:.2f}", f"{values[0] - values[1]:+.2f}"
    return ["" if "nan" in text else text.replace("-", "−") for text in texts]


def markdown_table(header, rows):
    """The lines of a table. header: texts; rows: lists of texts."""
    return ["", *(f"|{'|'.join(row)}|" for row in [header, ["---"] * len(header), *rows]), ""]


def scorecard_lines(scores, claims):
    """The section of the claims."""
    rows, minutes = [], scores.groupby(["label", "seed"]).agg(dict(minutes="sum", train_minutes="max"))
    minutes = minutes.sum(axis=1).groupby("label").mean()
    for claim, (*_, label, other) in zip(claims, CLAIMS, strict=True):
        ours = [cell(-gains, "+z.2f") if "ρ" in claim["paper"] else cell(gains) for gains in claim["gains"]]
        ours[0] = f"**{ours[0]}**" if claim["stands"] else ours[0]
        cost = minutes.reindex(list({label, other or label})).sum(skipna=False)  # nan if one of the two was not run
        cost = f"{claim['target']}, {cost:.1f}".removesuffix(", nan")
        text = "" if claim["verdict"] == "one seed" and scores.seed.nunique() == 1 else claim["verdict"]
        rows.append([text, claim["claim"], claim["paper"], *ours, cost])
    header = ["", "the paper's claim", "paper", *(f"ours, {name}" for name in DECODINGS.values()), "target, minutes"]
    return ["## Scorecard", *markdown_table(header, rows), NOTES["scorecard"], ""]


def row_name(scores, label):
    """The label, and in brackets the settings that its runs do not share with most others."""
    rows = scores[(scores.label == label) & scores["last"] & (scores.settings != "")]
    texts = [f"{text}, seeds {', '.join(map(str, part.seed.unique()))}" for text, part in rows.groupby("settings")]
    return f"{label} ({'; '.join(texts)})" if texts else label


def table_lines(scores, tables, student, target, title, rows, task="math"):
    """A table of the paper with our scores, over the seeds that all rows have."""
    shown, lengths = [row for row in rows if row[0] in tables["sampled"]], target == "table3"
    labels = [label for label, _ in shown]
    seeds = tables["sampled"][labels].dropna().index if labels else []
    if not len(seeds) or (target != "main" and set(labels) <= set(METHODS)):
        return [f"## {title}", "", f"Not run: `bash run_all.sh {target}`.", ""]
    tables, lines = {name: table.reindex(seeds) for name, table in tables.items()}, []
    for label, other in shown:
        against = "" if other in [*labels, ""] else f", compared with {other}"
        lines.append([row_name(scores, label) + against, *paper_texts(scores, student, label, other, task, lengths)])
        for table in tables.values():
            lines[-1].append(f"{table[label].mean():.1f}" if label in table else "")
            lines[-1].append(cell(difference(table, label, other)) if other else "")
    signs = []
    for label, other in itertools.combinations(labels, 2):
        paper = paper_texts(scores, student, label, other, task, lengths)[1]
        if paper:
            signs.append((difference(tables["sampled"], label, other).mean() > 0) == ("+" in paper))
    missing = [label for label, _ in rows if label not in labels]
    text = f"Pairs of rows that stand in the paper's order at temperature 1: {sum(signs)} of {len(signs)}. "
    text = (text if signs else "") + f"Seeds that all rows have: {', '.join(map(str, seeds))}. "
    text += f"Not run: {', '.join(missing)}." if missing else ""
    names = ["paper", *(DECODINGS[name] for name in tables)]
    header = ["", *(text for name in names for text in (name, f"difference, {name}"))]
    return [f"## {title}", *markdown_table(header, lines), text, ""]


def gain_text(table, tail="+renio", other=""):
    """The gain of a run over another in OPSD and in OPD, as text; empty if there is none."""
    gains = {m.upper(): difference(table, m + tail, m + other) for m in DISTILLATIONS}
    return " and ".join(f"{cell(values)} in {method}" for method, values in gains.items() if len(values))


def findings(scores, tables, claims):
    """What came out, in a few sentences made from the numbers."""
    names, sentences = ("incorrect_rollouts", "incorrect_weight", "auc_weight"), []
    shares = {name: run_values(scores, "opd", name) for name in names}
    if len(shares["auc_weight"]):
        sentences.append(NOTES["finds"].format(**{name: values.mean() for name, values in shares.items()}))
        aucs = [(run_values(scores, "opd", f"auc_{key}"), name) for key, name in FINDERS.items() if key != "weight"]
        best, name = max((values.mean(), name) for values, name in aucs if len(values))
        sentences.append(f"The best of the simpler scores: {name} (AUC {best:.2f}).")
    for text, decoding, *tails in (
        ("ReNIO's gain over plain distillation in points at temperature 1: {}.", "sampled"),
        ("Greedily: {}.", "greedy"),
        ("At temperature 1 an oracle's weights gain {}.", "sampled", "+correctness"),
        ("ReNIO's weights, dealt at random, gain {}.", "sampled", "+renio_shuffled"),
        ("Incorrect rollouts gain {} over correct ones.", "sampled", "-incorrect", "-correct"),
        ("On the same problems they gain {}.", "sampled", "-incorrect-mixed", "-correct-mixed"),
    ):
        gains = gain_text(tables[decoding], *tails)
        if gains:
            sentences.append(text.format(gains))
    pairs = {row for _, _, rows in TABLES for row in rows if row[0].replace("+renio", "") == row[1]}
    for decoding, name in DECODINGS.items():
        gains = [gain.mean() for gain in (difference(tables[decoding], *pair) for pair in pairs) if len(gain)]
        if gains:
            count = f"{sum(x > 0 for x in gains)} of {len(gains)} settings"
            sentences.append(f"ReNIO's mean gain is above 0 in {count} (method, length, batch, divergence), {name}.")
    if scores.seed.nunique() > 1:
        verdicts = Counter(claim["verdict"] for claim in claims)
        sentences.append(f"Claims of the paper: {', '.join(f'{name} {count}' for name, count in verdicts.items())}.")
    return [*(f"- {sentence}" for sentence in sentences), ""]


NOTES = {
    "finds": "{incorrect_rollouts:.0f} % of OPD's rollouts are incorrect. They get {incorrect_weight:.0f} % of ReNIO's "
    "weights (AUC within a batch: {auc_weight:.2f}).",
    "scorecard": "Points gained, paired by seed; ρ: rank correlation. A verdict needs three seeds at temperature 1. "
    "No effect: the 95 % interval includes 0. Bold: it stands after Holm's correction. Minutes: to train and score one "
    "seed. Labels: +renio: ReNIO's weights; +renio_shuffled: the same, dealt at random; +correctness: an oracle's; "
    "+ts_sample: of teacher-to-student ratios; +st_token: one a token; @: rollouts of the other length; beta0.5: JSD; "
    "beta1: reverse KL; -correct, -incorrect: trained on these rollouts only; -mixed: on problems solved at times.",
    "arith": "These are toy models: 0.37 million weights (student) and 0.64 million (teacher). Answers have about 23 "
    "tokens, and one incorrect digit makes an answer incorrect; this makes a high AUC likely. All weights are trained, "
    "with warm-up and linear decay; the paper trains LoRA at a constant rate. Tuning used seeds 100 to 103. The task "
    "lost a line after seeds 0 and 1 were seen: OPD got this line wrong, most often with ReNIO. ",
    "products": "The student is SmolLM2-135M-Instruct (tests/make_smollm2.py: from 4-bit weights). The teacher is the "
    "same model, fine-tuned. Seeds 0 to 2 share both. Rates decay linearly. ",
    "trust": "Scores are of the last step. The paper's are of Qwen3-1.7B (or the student in the title), best of four "
    "checkpoints, one training. Intervals: 95 %, of t tests over training seeds, on these problems. Compare signs, not "
    "sizes. Settings, lengths, truncation: [tables.md](tables.md). All numbers: [scores.csv](scores.csv).\n",
}


def report(folder, labels=()):
    """Write report.md, tables.md, scores.csv and figures into a folder or each of its students'; print some labels."""
    renio.need(folder.is_dir(), f"report {folder}: there is no such folder")
    students = [path for path in sorted(folder.iterdir()) if any(path.glob("seed*")) or any(path.glob("scores.csv"))]
    paths = [folder] if any(folder.glob("seed*")) or not students else students
    for path in paths:
        scores = read_scores(path)
        scores.to_csv(path / "scores.csv", index=False, float_format="%.6g")
        if scores.label.str.extract("@(.*)")[0].nunique() == 1:
            scores["label"] = scores.label.str.replace("@.*", "@*", regex=True)  # the settings name the length
        tables = {decoding: by_seed(scores, decoding) for decoding in DECODINGS}
        figures = draw_figures(path, scores, tables)
        (path / "report.md").write_text("\n".join(report_lines(path.name, scores, tables, figures)), encoding="utf-8")
        (path / "tables.md").write_text("\n".join(tables_lines(scores)), encoding="utf-8")
        for row in score_rows(scores, labels):
            print("".join(f"{text:<30}" for text in row).rstrip())
        for decoding, name in DECODINGS.items():
            print(f"ReNIO − plain in points, {name}: {gain_text(tables[decoding]) or 'not run'}")
        print(f"wrote {path / 'report.md'}")
        if scores.seed.nunique() == 1:
            print('one seed: no verdict; SEEDS="0 1 2" gives intervals')
    runs = [run for path in paths for label in METHODS for run in sorted(path.glob(f"seed*/{label}/rollouts.jsonl"))]
    for run in [run.parent for run in runs if any(run.parent.glob("*/tokenizer.json"))][:1]:
        print(f"python eval.py show {run}")


def report_lines(name, scores, tables, figures):
    """The lines of report.md."""
    claims = scorecard(scores, tables, name)
    lines = [f"# Does ReNIO reproduce? {name}", "", *findings(scores, tables, claims)]
    if scores.seed.nunique() == 1:
        targets = " ".join(dict.fromkeys(claim["target"] for claim in claims if claim["verdict"] != "not run"))
        lines += [f'**One seed: no verdict.** More: `SEEDS="0 1 2" bash run_all.sh {targets or "main"}`.', ""]
    lines += figures["headline"] + scorecard_lines(scores, claims)
    code = {decoding: by_seed(scores, decoding, "code") for decoding in DECODINGS}
    for target, title, rows in TABLES:
        lines += table_lines(scores, tables, name, target, title, rows)
        if target == "main" and len(code["sampled"]):
            lines += table_lines(scores, code, name, target, f"{title}, code", rows, task="code")
        lines += figures["scores"] + figures["steps"] if target == "main" else figures[target]
    if "auc_weight" in scores:
        aucs = [[run_values(scores, m, f"auc_{key}") for m in DISTILLATIONS] for key in FINDERS]
        rows = [[name, *(cell(auc, ".3f") for auc in row)] for name, row in zip(FINDERS.values(), aucs, strict=True)]
        lines += ["## How well do simpler scores find incorrect rollouts of plain runs? (AUC within a batch)"]
        lines += markdown_table(["", *map(str.upper, DISTILLATIONS)], rows)
    lines += figures["figure3"] + figures["figure5"] + figures["rollouts"]
    text = "".join(NOTES[benchmark] for benchmark in ("arith", "products") if benchmark in set(scores.benchmark))
    later = tables["sampled"].drop(index=[0, 1], errors="ignore")
    if "arith" in set(scores.benchmark) and len(later) > 2:
        text += f"Without these two seeds ReNIO gains {gain_text(later)}. "
    return [*lines, "## How far to trust this", "", text + NOTES["trust"]]


def score_rows(scores, labels=()):
    """A header, and a row a label (default: all): its score on each benchmark and decoding, over all of its seeds."""
    labels = labels or sorted(set(scores.label), key=lambda label: (label not in METHODS, label))
    columns = scores[scores["last"]].groupby(["benchmark", "decoding"], sort=False)
    rows = [["method", *(f"{benchmark}, {DECODINGS[decoding]}" for (benchmark, decoding), _ in columns)]]
    for label in [label for label in labels if label in set(scores.label)]:
        rows.append([label])
        for part in [column[column.label == label] for _, column in columns]:
            one_model = label in UNTRAINED and part.model.nunique() == 1  # its seeds are of the sampling alone
            rows[-1].append(cell([part.score.mean()] if one_model else part.score.to_numpy(), ".1f"))
    return rows


def tables_lines(scores):
    """The lines of tables.md: scores, lengths, errors and training of every method, over all of its seeds."""
    last = scores[scores["last"]]
    header, *rows = score_rows(scores)
    rows = [[row_name(scores, label), str(last.seed[last.label == label].nunique()), *texts] for label, *texts in rows]
    lines = ["# All runs", *markdown_table([header[0], "seeds", *header[1:]], rows), "Over all seeds of a row.", ""]
    answers = ["benchmark", "decoding"], "tokens truncated boxed markers taught_error gap_error".split()
    training = ["task"], ["seconds_per_step", "train_minutes", *TRAINING]
    for title, (keys, columns) in dict(Answers=answers, Training=training).items():
        means = last.groupby(["label", *keys])[[name for name in columns if name in last]].mean().dropna(how="all")
        rows = [[*index, *(f"{x:.4g}" for x in row)] for index, row in zip(means.index, means.values, strict=True)]
        lines += [f"## {title}", *markdown_table(["method", *keys, *means.columns], rows)]
    for (benchmark, decoding, n), part in last.groupby(["benchmark", "decoding", "n"], sort=False):
        text = f"- {benchmark}, {DECODINGS[decoding]}: {part.problems.iloc[0]} problems, checksum"
        lines.append(f"{text} {part.checksum.iloc[0]}; answers a problem: {n}; {part.conditions.mode()[0]}")
    return [*lines, ""]


# ---------------------------------------------------------------------------------------------------------------------
# The report's figures. They are transparent; the colour-blind can tell the colours apart, on light and dark pages.

GREY, COLOURS = "#7d8590", dict(opd="#2a8fd0", opsd="#e0701a", grpo="#2aa876", base="#7d8590")


def draw_figures(folder, scores, tables):
    """Draw the figures that the scores and logs allow. Returns {name: lines of the report that show it, if any}."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {f"{part}.color": GREY for part in ("text", "xtick", "ytick")} | {"axes.facecolor": "none", "font.size": 10}
    style |= {"axes.edgecolor": GREY, "axes.labelcolor": GREY, "axes.titlesize": 10.5, "savefig.transparent": True}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    lines, panels = defaultdict(list), point_panels(scores, tables)
    for name, caption in FIGURES.items():
        (folder / f"{name}.png").unlink(missing_ok=True)
        with rc_context(style):
            sheet = Figure((8.38, 2 if name == "rollouts" else 3), layout="constrained")  # GitHub shows 838 pixels
            axes = sheet.subplots(1, 2, sharex=name.startswith("figure"), sharey=name == "steps")
            if name in DRAW:
                DRAW[name](folder, scores, tables, axes)
            else:
                for axis, panel in zip(axes, panels[name], strict=True):
                    draw_points(axis, *panel)
            for axis in axes:
                axis.set_visible(axis.has_data() or bool(axis.tables))
            if any(axis.get_visible() for axis in axes):
                sheet.savefig(folder / f"{name}.png", dpi=200)
                lines[name] = [f"![{name}]({name}.png)", "", f"*{caption}*", ""]
    return lines


def draw_points(axis, title, label, rows):
    """Means with intervals, and a grey dot a seed. rows: (name, values, method, marker); a name has one or two rows."""
    rows = [row for row in rows if len(row[1])]
    names = list(dict.fromkeys(name for name, *_ in rows))
    shift = 0.18 if len(rows) > len(names) else 0
    for number, (name, values, method, marker) in enumerate(rows):
        is_second, ends = number > 0 and rows[number - 1][0] == name, interval(values)
        place = names.index(name) + (shift if is_second else -shift)
        error = [[np.mean(values) - ends[0]], [ends[1] - np.mean(values)]] if ends else None
        axis.plot(values, [place] * len(values), ".", color=GREY, alpha=0.5, markersize=5)
        colour = COLOURS[re.match("[a-z]+", method)[0]]
        axis.errorbar(np.mean(values), place, xerr=error, fmt=marker, color=colour, markersize=7, linewidth=2.2)
    if rows and label.startswith("points"):
        axis.axvline(0, color=GREY, linewidth=1)
    axis.locator_params(axis="x", nbins=5)
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.45, -0.55), title=title, xlabel=label)


def point_panels(scores, tables):
    """{figure: its two panels, each of a title, the label of the axis, and rows for draw_points}."""
    sampled, marks = tables["sampled"], list(zip(tables.values(), "oD", strict=True))
    legend, panels = "● temperature 1   ◆ greedy", dict(scores=[], figure1=[], figure5=[], figure6=[])
    rows = [(x, table[x].dropna().to_numpy(), x, mark) for x in METHODS for table, mark in marks if x in table]
    panels["scores"].append((legend, "percent correct", rows))
    rows = [(m.upper(), difference(table, f"{m}+renio", m), m, mark) for m in DISTILLATIONS for table, mark in marks]
    panels["scores"].append(("ReNIO minus plain, paired by seed", "points", rows))
    for tail, title in {"": "own problems", "-mixed": "the same problems"}.items():
        labels = [f"{method}-{kind}" for method in DISTILLATIONS for kind in ("correct", "incorrect")]
        rows = [(x, sampled[x + tail].dropna().to_numpy(), x, "o") for x in labels if x + tail in sampled]
        panels["figure1"].append((title, "percent correct, temperature 1", rows))
    for method in DISTILLATIONS:
        rows = [(f"weight {x}", run_values(scores, method, f"entropy_{x}"), method, "o") for x in WEIGHTS]
        panels["figure5"].append((method.upper(), "teacher's entropy in nats", rows))
    for flag, usual in dict(clip="clip3.0", threshold="threshold0.8").items():
        swept = {x.removeprefix("opd+renio-"): x for x in sorted(sampled) if x.startswith(f"opd+renio-{flag}")}
        swept |= {usual: "opd+renio-clip3.0" if "opd+renio-clip3.0" in sampled else "opd+renio"} if swept else {}
        seeds = sampled[[label for label in swept.values() if label in sampled]].dropna().index
        kept = [(table.reindex(seeds), mark) for table, mark in marks]
        rows = [(x, difference(table, swept[x], "opd"), "opd", mark) for x in sorted(swept) for table, mark in kept]
        panels["figure6"].append((f"{flag}, {legend}", "points over plain OPD", rows))
    return panels


def draw_headline(folder, scores, tables, axes):
    shares = [run_values(scores, "opd", name) for name in ("incorrect_rollouts", "incorrect_weight")]
    if not len(shares[0]):
        return
    values = [share.mean() for share in shares]
    bars = axes[0].barh(["of OPD's\nrollouts", "of ReNIO's\nweight"], values, color=COLOURS["opd"])
    axes[0].bar_label(bars, fmt="%.0f %%", padding=3)
    axes[0].set(xlim=(0, 112), ylim=(1.6, -0.6), xlabel="percent", title="Share that is incorrect")
    rows, others = [], {"+renio": "ReNIO", "+correctness": "oracle", "+renio_shuffled": "ReNIO's weights,\nat random"}
    for tail, name in others.items():
        rows += [(name, difference(tables["sampled"], f"{m}{tail}", m), m, "o") for m in DISTILLATIONS]
    draw_points(axes[1], "What does it change?", "points over plain", rows)


def draw_steps(folder, scores, tables, axes):
    for axis, (decoding, name) in zip(axes, DECODINGS.items(), strict=True):
        rows = scores[scores.label.isin(METHODS) & (scores.decoding == decoding) & (scores.task == "math")]
        curves = rows.pivot_table(index="step", columns="label", values="score")
        if len(curves) < 2 or "base" not in tables[decoding]:
            continue
        start = tables[decoding]["base"].mean()
        for label, curve in curves.items():
            colour, line = COLOURS[label.removesuffix("+renio")], "--" if label.endswith("+renio") else "-"
            axis.plot([0, *curve.index], [start, *curve], line, color=colour, label=label)
        axis.set(title=name, xlabel="step", ylabel="percent correct")
        axis.legend(loc="upper left", frameon=False, fontsize=8)


def draw_figure3(folder, scores, tables, axes):
    for axis, method in zip(axes, DISTILLATIONS, strict=True):
        rollouts = read_lines(min(folder.rglob(f"{method}/rollouts.jsonl"), default=folder / "none"))
        if not len(rollouts):
            continue
        ratios = np.concatenate(rollouts.log_ratios.to_list())
        axis.hist(ratios[np.isfinite(ratios)], bins=80, log=True, color=COLOURS[method])
        title = f"{method.upper()}: {100 * np.mean(ratios > 0.8):.1f} % are above 0.8"
        axis.set(title=title, xlabel="log-ratio of a token", ylabel="tokens")
        for place in (0.8, 3.0):
            axis.axvline(place, color=GREY, linestyle=":")


def draw_rollouts(folder, scores, tables, axes):
    rollouts = read_lines(min(folder.rglob("opd/rollouts.jsonl"), default=folder / "none"))
    if not len(rollouts) or "arith" not in set(scores.benchmark):
        return
    rollouts = rollouts.query("step == 1").sort_values("key_tokens")
    words = rollouts.problem.str.split().str.len()  # a name and an operation for each result
    rollouts = rollouts[(rollouts.completion.str.len() == 1.5 * words + 3) & (words < 12)]  # without a second try
    chosen = [rollouts[rollouts.correct.eq(False)].tail(1), rollouts[rollouts.correct.eq(True)].head(1)]
    for axis, rollout in zip(axes, [rollout for rows in chosen for rollout in rows.itertuples()], strict=False):
        operations, ratios = rollout.problem.split()[1::2], rollout.log_ratios[3:-2:3]
        results = renio.arith_tokenizer().convert_ids_to_tokens(list(rollout.completion))[3:-2:3]
        texts = [x if r <= 0.8 else f"{x}  {math.exp(r):.0f}×" for x, r in zip(results, ratios, strict=True)]
        rows = [operations, texts, [str(renio.result_of(operation)) for operation in operations]]
        names = ["asked  ", "student  ", "correct  "]
        table = axis.table(rows, rowLabels=names, loc="center", cellLoc="center", edges="open", fontsize=10)
        table.auto_set_font_size(False)
        table.scale(0.9, 1.8)
        for column in [column for column, ratio in enumerate(ratios) if ratio > 0.8]:
            table[1, column].visible_edges = "closed"
            table[1, column].set_edgecolor(COLOURS["opsd"])
        axis.set_title(f"ReNIO's weight: {rollout.renio_weight:.1f}")
        axis.axis("off")


FIGURES = {  # name: caption
    "headline": "Who gets the weight, and what it changes at temperature 1. Blue: OPD. Orange: OPSD.",
    "scores": "Scores, and what ReNIO adds. A grey dot is a seed. Bars are 95 % intervals over seeds.",
    "steps": "Mean scores over the steps. Step 0 is the base.",
    "figure1": "Figure 1: trained on correct or incorrect rollouts only. Left: correct ones are of easier problems.",
    "figure3": "Figure 3: log-ratios of the logged tokens of the first seed. Dotted: the paper's threshold and clip.",
    "figure5": "Figure 5: the teacher's mean entropy in rollouts to which ReNIO gives weight 1, more, or the most.",
    "figure6": "Figure 6: what ReNIO adds with other clips and other thresholds.",
    "rollouts": "An incorrect and a correct rollout. Framed: key tokens, N times likelier to the student.",
}
DRAW = dict(headline=draw_headline, steps=draw_steps, figure3=draw_figure3, rollouts=draw_rollouts)  # others: points


# ---------------------------------------------------------------------------------------------------------------------
# The command line.

SCALES = {  # the values of flags that are not given; math and code: the benchmarks of --task
    "micro": dict(math=["arith"], n=4, max_new_tokens=58, batch_size=250, dtype="float32"),
    "small": dict(math=["products"], n=1, max_new_tokens=80, batch_size=125, dtype="float32"),
    "one": dict(math=["gsm8k:250", "math500"], n=4, max_new_tokens=2048, batch_size=256, thinking=False),
    "paper": dict(math=["aime24", "aime25", "hmmt25"], n=12, max_new_tokens=38912, batch_size=512),
}
SCALES["one"]["code"] = SCALES["paper"]["code"] = ["humaneval+", "mbpp+"]  # with 4 answers each
SCALES["paper"]["decoding"] = ["sampled"]


def make_parser():
    """The parser of the flags of an evaluation."""
    usage, layout = "eval.py --scale SCALE --model MODEL --output RUN/eval.json", argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("eval.py", usage, __doc__, formatter_class=layout, allow_abbrev=False)
    parser.error = lambda message: renio.need(False, f"{message} (--help lists the flags)")
    add = parser.add_argument_group("models").add_argument
    add("--model", help="folder or hub name; the folder of an adapter stands for the adapter on its base model")
    add("--adapter", type=os.path.normpath, help="folder of a peft adapter for --model")
    add("--checkpoints", type=os.path.normpath, help="score every checkpoint-N of this run, into RUN/eval.json")
    add = parser.add_argument_group("problems").add_argument
    add("--scale", choices=list(SCALES), help="sets all flags that are not given; see SCALES in eval.py (required)")
    add("--task", choices=["math", "code"], default="math", help="which benchmarks of the scale to use")
    add("--benchmarks", nargs="+", help=f"{', '.join(BENCHMARKS)}, or files; gsm8k:250: the first 250 problems")
    add("--data_dir", help="read the benchmarks from files in this folder instead of the hub")
    add("--limit", type=int, help="take only this many first problems of each benchmark")
    add = parser.add_argument_group("answers").add_argument
    add("--n", type=int, help="answers per problem at temperature 1; greedy decoding gives one")
    add("--decoding", nargs="+", choices=list(DECODINGS), help="how to draw answers: one way or both")
    add("--temperature", type=float, default=1.0, help="temperature of sampled answers")
    add("--top_p", type=float, default=0.95, help="sample from the likeliest tokens that hold this probability; 1: off")
    add("--top_k", type=int, default=0, help="sample from this many likeliest tokens; 0: off")
    add("--max_new_tokens", type=int, help="longest answer in tokens")
    add("--thinking", action=argparse.BooleanOptionalAction, help="thinking mode of the chat template")
    add("--privileged", action="store_true", help="put the solution in the prompt, as for OPSD's teacher")
    add("--seed", type=int, default=0, help="seed of the answers")
    add = parser.add_argument_group("machine").add_argument
    add("--engine", choices=["transformers", "vllm"], default="transformers", help="what samples the answers")
    add("--dtype", choices=["float32", "bfloat16"], help="data type of the weights")
    add("--batch_size", type=int, help="answers sampled at the same time; lower it if memory runs out")
    add("--vllm_memory", type=float, default=0.9, help="share of the GPU's memory that vLLM may take")
    add = parser.add_argument_group("result").add_argument
    add("--output", help="the .json file to write")
    add("--label", help="the run's name in the report; default: the name of its folder")
    add("--train_seed", type=int, default=0, help="the run's training seed, for the report")
    return parser


def parse_args(argv):
    """The flags of an evaluation, completed by the scale. Raises renio.UserError for flags that can't be used."""
    args, need = make_parser().parse_args(argv), renio.need
    need(args.model or args.checkpoints, "name a --model, or a run as --checkpoints (--help shows examples)")
    need(args.output or args.checkpoints, "--output: name the .json file to write")
    need(not args.checkpoints or not (args.output or args.adapter), "--checkpoints: leave out --output and --adapter")
    need(args.scale, f"--scale: name one of {', '.join(SCALES)}; it sets benchmarks, number and length of answers")
    scale = dict(thinking=True, dtype="bfloat16", decoding=list(DECODINGS)) | SCALES[args.scale]
    need(args.benchmarks or args.task in scale, f"--task {args.task}: scale {args.scale} has none; name --benchmarks")
    args.benchmarks = args.benchmarks or scale[args.task]
    if all(benchmark_of(name).task == "code" for name in benchmark_limits(args)):
        scale["n"] = 4
    for flag in ("n", "decoding", "max_new_tokens", "thinking", "dtype", "batch_size"):
        if getattr(args, flag) is None:
            setattr(args, flag, scale[flag])
    for flag in ("n", "limit", "max_new_tokens", "batch_size", "temperature", "top_p"):
        value = getattr(args, flag)
        need(value is None or value > 0, f"--{flag} {value}: must be above 0")
    args.decoding = [decoding for decoding in DECODINGS if decoding in args.decoding]
    if args.engine == "vllm":
        renio.need_vllm("--engine")
    folder = Path(args.checkpoints or args.adapter or args.model)
    args.label = args.label or (folder.parent.name if folder.name == "final" else folder.name)
    args.output = Path(args.output or folder / "eval.json")
    name = "answers.jsonl" if args.output.name == "eval.json" else args.output.stem + ".answers.jsonl"
    args.answers = args.output.with_name(name)
    return args


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    kept = ""
    try:
        match words:
            case ["judge"]:
                judge()
            case ["report", folder, *labels]:
                report(Path(folder), labels)
            case ["compare", first, second]:
                compare(first, second)
            case ["show", run]:
                show(Path(run))
            case ["show", run, "--step", step] if step.isdecimal():
                show(Path(run), int(step))
            case ["compare" | "report" | "show", *_]:
                raise renio.UserError("write: compare A.json B.json, report FOLDER, show RUN, or show RUN --step N")
            case _:
                kept = "; finished answers are kept, and the same command goes on from there"
                evaluate(parse_args(words))
    except ModuleNotFoundError as error:
        sys.exit(f"eval.py: the package {error.name} is not installed; run `bash run_all.sh setup`")
    except KeyboardInterrupt:
        sys.exit(f"eval.py: interrupted{kept}")
    except OSError as error:
        sys.exit(f"eval.py: {error.strerror or error}{f': {error.filename}' if error.filename else ''}{kept}")
    except renio.UserError as error:
        sys.exit(f"eval.py: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        sys.exit(f"eval.py: {str(error).splitlines()[0]} Lower --batch_size{kept}")


if __name__ == "__main__":
    main()
