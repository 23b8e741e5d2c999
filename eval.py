# SPDX-License-Identifier: MIT
"""Score language models on math and code benchmarks; compare and report the scores.

    python eval.py --scale one --model Qwen/Qwen3-1.7B --output runs/base/eval.json
    python eval.py --scale one --model runs/renio/final --benchmarks mine.jsonl gsm8k:100 --output runs/renio/eval.json
    python eval.py --scale paper --checkpoints runs/opd --engine vllm     # every checkpoint-N, into runs/opd/eval.json
    python eval.py show runs/opd                                    # print a few rollouts of this training run
    python eval.py compare A.json B.json                            # paired difference of B over A, interval, p-value
    python eval.py compare A0.json A1.json vs B0.json B1.json       # the same over training seeds
    python eval.py report results/micro                             # every eval.json below it -> report.md

Every answer is appended to answers.jsonl, beside eval.json, as soon as it ends; a killed evaluation goes on behind the
last answer when the same command runs again. eval.json is made from answers.jsonl. To grade the answers anew, remove
eval.json; to sample them anew, remove both. Models, prompts, sampling and the math grader are in renio.py.
"""

import argparse
import ast
import contextlib
import copy
import ctypes
import functools
import gzip
import hashlib
import importlib
import inspect
import io
import itertools
import json
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import statistics
import struct
import subprocess
import symtable
import sys
import tarfile
import tempfile
import textwrap
import time
from collections import Counter, namedtuple
import types
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SET_UP = "run `bash run_all.sh setup`, then `source .venv/bin/activate`"
try:
    import numpy as np
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"eval.py: the package {error.name} is not installed: {SET_UP}")


class Renio:
    """renio.py, imported when it is first used: it loads torch, which comparing and reporting need not wait for."""

    def __getattr__(self, name):
        return getattr(importlib.import_module("renio"), name)


renio = Renio()

# ---------------------------------------------------------------------------------------------------------------------
# Benchmarks.

# task: which prompt and grader (arith and math by the answer, code by the row's tests); file: its name in --data_dir;
# problem, gold: columns, gold that of the answer or, for code, of a solution
DEFAULTS = ("", "", "test", "problem", "answer")
Benchmark = namedtuple("Benchmark", "task hub_name file split problem gold", defaults=DEFAULTS)
HUMANEVAL, MBPP = "HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz", "MbppPlus-OriginFmt-v0.2.0.jsonl.gz"
BENCHMARKS = {
    "arith": Benchmark("arith"),  # renio.py makes these two
    "products": Benchmark("math"),
    "aime24": Benchmark("math", "HuggingFaceH4/aime_2024", "aime_2024.jsonl", "train"),
    "aime25": Benchmark("math", "yentinglin/aime_2025", "aime_2025.jsonl", "train"),
    "hmmt25": Benchmark("math", "MathArena/hmmt_feb_2025", "hmmt_feb_2025.jsonl", "train"),
    "amc23": Benchmark("math", "math-ai/amc23", "amc23.jsonl", problem="question"),
    "math500": Benchmark("math", "HuggingFaceH4/MATH-500", "math_500.jsonl"),
    "minerva": Benchmark("math", "math-ai/minervamath", "minervamath.jsonl", problem="question"),
    "gsm8k": Benchmark("math", "openai/gsm8k:main", "gsm8k_test.jsonl", problem="question"),
    "humaneval+": Benchmark("code", "evalplus/humanevalplus", HUMANEVAL, "test", "prompt", "canonical_solution"),
    "mbpp+": Benchmark("code", "evalplus/mbppplus", MBPP, "test", "prompt", "code"),
}


def benchmark_of(name):
    """A benchmark by its name; a user's file is a math benchmark. Raises renio.UserError for any other name."""
    if Path(name).suffix in (".json", ".jsonl", ".gz", ".parquet", ".csv"):
        return Benchmark("math", file=name)
    known = f"known are {', '.join(BENCHMARKS)}, and .jsonl, .json, .parquet and .csv files"
    renio.need(name in BENCHMARKS, f"--benchmarks {name}: unknown; {known}")
    return BENCHMARKS[name]


def benchmark_limits(args):
    """{benchmark: how many of its first problems count, None for all}, by --benchmarks (name or name:limit), --limit"""
    limits = {}
    for word in args.benchmarks:
        name, colon, limit = word.partition(":")
        renio.need(not colon or re.fullmatch("[1-9][0-9]*", limit), f"--benchmarks {word}: no number behind the colon")
        renio.need(name not in limits, f"--benchmarks {word}: {name} is there twice")
        limits[name] = min((int(number) for number in (limit, args.limit) if number), default=None)
    return limits


def load_benchmark(name, data_dir=None, limit=None):
    """The first problems as dicts of problem, solution, answer and, for code, `test` (the whole row); made ones: 500.

    Raises renio.UserError, naming file and row, for a row that can't be asked or graded.
    """
    benchmark, rows = benchmark_of(name), []
    if name in renio.SYNTHETIC:
        return renio.SYNTHETIC[name](limit or 500, split="test")
    if name == benchmark.file:
        rows = renio.read_problems(name, limit=limit)
        for number, row in enumerate(rows, start=1):
            renio.need((row["answer"] or "").strip(), f"{name}, row {number}: no answer to grade against")
        return rows
    source = str(Path(data_dir) / benchmark.file) if data_dir else benchmark.hub_name
    raws = itertools.islice(renio.read_table(source, benchmark.split, limit), limit)
    for number, raw in enumerate(raws, start=1):
        place = f"{source}, row {number}"
        for column in (benchmark.problem, benchmark.gold):
            renio.need(str(raw.get(column) or "").strip(), f"{place}: nothing in the column {column}")
        problem, gold = raw[benchmark.problem], raw[benchmark.gold]
        if benchmark.task == "code":
            renio.need("inputs = [" in (raw.get("test") or ""), f"{place}: no inputs in the column test")
            solution = gold if "code" in raw else problem + gold
            rows.append(dict(problem=code_problem(raw), answer=None, solution=solution, test=raw))
        else:
            solution, hashes, answer = str(gold).rpartition("####")  # GSM8K's answer stands behind these
            rows.append(dict(problem=problem, answer=answer.strip(), solution=gold if hashes else raw.get("solution")))
    renio.need(rows, f"{source}: no rows")
    return rows


def code_problem(row):
    """The problem of a row of HumanEval+ or MBPP+; a problem of MBPP+ holds a test, which names the function."""
    if "entry_point" in row:
        return f"Complete this Python function.\n\n```python\n{row['prompt'].strip()}\n```"
    return f"{row['prompt'].strip()} The program must pass this test:\n\n```python\n{row['test_list'][0]}\n```"


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation.

Key = namedtuple("Key", "step benchmark decoding problem sample")  # names an answer; problem, sample: indices from 0
COMPARED = "model adapter checkpoints benchmarks limit n decoding temperature top_p top_k max_new_tokens thinking"
COMPARED = [*COMPARED.split(), "privileged", "engine", "dtype", "seed"]  # the flags that change scores


def evaluate(args):
    """Sample the answers that answers.jsonl lacks, grade all, write args.output, print a line for each score."""
    if not args.answers.exists():  # answers that are there can be graded without a model
        check_folders(args)
    problems = {name: load_benchmark(name, args.data_dir, limit) for name, limit in benchmark_limits(args).items()}
    settings = {flag: getattr(args, flag) for flag in [*COMPARED, "scale", "batch_size"]}
    settings["checksums"] = {name: checksum(rows) for name, rows in problems.items()}
    models = models_of(args)
    if scored_steps(args, settings) >= models.keys():
        return print(f"{args.output} is there, skipped (remove it to grade its answers anew)")
    answers = read_answers(args.answers, settings)
    wanted = [
        Key(step, name, decoding, problem, sample)
        for step in models
        for name, rows in problems.items()
        for decoding in args.decoding
        for problem in range(len(rows))
        for sample in range(args.n if decoding == "sampled" else 1)
    ]
    missing = set(wanted) - answers.keys()
    if missing:
        sample_answers(args, problems, settings, models, wanted, missing)
        if args.engine == "vllm":
            renio.VllmSampler.close()  # grading needs no GPU
        answers = read_answers(args.answers, settings)
    groups = {}
    for key in wanted:
        groups.setdefault(key[:3], []).append(answers[key])
    results = [score(*group, problems[group[1]], given) for group, given in groups.items()]
    for r in results:
        name = args.label if r["step"] is None else f"{args.label} step {r['step']}"
        print(f"{name}, {r['benchmark']} {r['decoding']}: {r['avg']:.1%} correct, {r['length']:.1f} tokens an answer")
    run = dict(label=args.label, train_seed=args.train_seed, settings=settings, results=results)
    renio.write_json(args.output, run)


def models_of(args):
    """{step: (model, adapter or None)}: what is scored. An adapter's folder stands for the adapter on its base."""
    folders = {None: args.adapter or args.model}
    if args.checkpoints:
        folders = {renio.step_of(folder): str(folder) for folder in reversed(renio.checkpoints(Path(args.checkpoints)))}
    renio.need(folders, f"--checkpoints {args.checkpoints}: no checkpoint-N in it")
    models = {}
    for step, folder in folders.items():
        base = renio.adapter_base(folder)
        if base and args.model and args.model != folder:
            base = args.model
        models[step] = (base, folder) if base else (folder, None)
    return models


def check_folders(args):
    """Raise renio.UserError where a flag names a folder that is not there, before a hub is asked for it."""
    is_path = re.search(r"^(\.|/|~|runs/|results/)|/.*/|(^|/)(final|checkpoint-\d+)/?$", args.model or "")
    folders = dict(model=is_path and args.model, adapter=args.adapter, checkpoints=args.checkpoints)
    for flag, folder in folders.items():
        renio.need(not folder or Path(folder).exists(), f"--{flag} {folder}: there is no such folder")
    if args.adapter:
        renio.need(renio.adapter_base(args.adapter), f"--adapter {args.adapter}: no adapter_config.json in it")


def checksum(rows):
    """Names a set of problems: two scores can be compared where it is the same."""
    text = json.dumps([[row["problem"], row["answer"], *([row["test"]] if "test" in row else [])] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scored_steps(args, settings):
    """The steps that args.output has scores of; raises renio.UserError where it was made with other settings."""
    if not args.output.exists():
        return set()
    try:
        run = json.loads(args.output.read_text(encoding="utf-8"))
        steps, old = {result["step"] for result in run["results"]}, run["settings"]
    except (ValueError, KeyError, TypeError):
        raise renio.UserError(f"{args.output} is not of this eval.py: remove it, or name another --output") from None
    refuse_other_settings([args.output, args.answers], old, settings)
    return steps


def read_answers(path, settings):
    """{Key: answer} of an answers.jsonl, less a last line that a kill cut short; its settings go into `settings`.

    Raises renio.UserError where it was made with other settings than these.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
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
            raise renio.UserError(f"{path}, line {number}: not an answer; remove the file to sample anew") from None
    return answers


def refuse_other_settings(files, old, new):
    """Raise renio.UserError, with flags and values, where the first file was made with other settings or problems."""
    changed = [f"--{flag} {old.get(flag)}, now {new[flag]}" for flag in COMPARED if old.get(flag) != new[flag]]
    for name, now in new["checksums"].items() if not changed else ():  # a limit changes the problems too
        if old["checksums"][name] != now:
            changed.append(f"other problems of {name} (checksum {old['checksums'][name]}, now {now})")
    there = " and ".join(str(file) for file in files if file.exists())
    renio.need(not changed, f"{files[0]} was made with {'; '.join(changed)}: remove {there}, or name another --output")


def sample_answers(args, problems, settings, models, wanted, missing):
    """Sample the `missing` ones of the `wanted` Keys, and append each answer to answers.jsonl as soon as it ends.

    problems: {benchmark: rows}. models: {step: (model, adapter)}. settings get the first prompts and the versions.
    """
    tokenizer = renio.load_tokenizer(next(iter(models.values()))[0])
    prompts = {}  # (benchmark, problem): token ids
    for name, rows in problems.items():
        template = renio.PROMPTS[benchmark_of(name).task][args.privileged]
        for problem, row in enumerate(rows):
            renio.need(row["solution"] or not args.privileged, f"--privileged: {name} has no worked solutions")
            prompts[name, problem] = renio.prompt_ids(tokenizer, renio.fill_prompt(template, row), args.thinking)
    settings["prompts"] = {name: tokenizer.decode(prompts[name, 0]) for name in problems}
    settings["versions"] = {name: renio.version_of(name) for name in ("torch", "transformers", args.engine)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    there = len(wanted) - len(missing)
    with (
        args.answers.open("a", encoding="utf-8", buffering=1) as file,  # written line by line
        tqdm(desc=args.label, total=len(wanted), initial=there, unit="answer") as bar,
    ):
        if file.tell() == 0:
            file.write(json.dumps(dict(settings=settings)) + "\n")
        for key, answer in new_answers(args, tokenizer, prompts, models, wanted, missing):
            if key in missing:  # else it was written before a kill
                missing.remove(key)
                file.write(json.dumps(key._asdict() | answer) + "\n")
                bar.update()


def new_answers(args, tokenizer, prompts, models, wanted, missing):
    """Yield (Key, answer) as each answer ends; seconds: since the one before. Adapters take turns on one model."""
    longest = max(map(len, prompts.values())) + args.max_new_tokens
    sampler, loaded = None, None
    for step, (model, adapter) in models.items():
        if not any(key.step == step for key in missing):
            continue
        if model != loaded:
            sampler = None  # there may be no room for two models
            sampler, loaded = load_sampler(args, model, models, longest), model
        if adapter:
            sampler.load_adapter(adapter)
        eos_ids = renio.end_ids(sampler, tokenizer)
        for decoding in args.decoding:
            keys = [key for key in wanted if (key.step, key.decoding) == (step, decoding)]
            # the longest prompts first: batches of like lengths, and what does not fit into memory fails at once
            keys.sort(key=lambda key: -len(prompts[key.benchmark, key.problem]))
            sampling = [args.temperature if decoding == "sampled" else 0, args.top_p, args.top_k]
            for batch, seed in batches(args, keys, missing):
                asked, before = [prompts[key.benchmark, key.problem] for key in batch], time.perf_counter()
                for index, completion in sampler(asked, args.max_new_tokens, eos_ids, *sampling, seed):
                    text, now = renio.decode(tokenizer, completion, eos_ids), time.perf_counter()
                    cut = completion[-1] not in eos_ids
                    yield batch[index], dict(text=text, tokens=len(completion), truncated=cut, seconds=now - before)
                    before = now


def batches(args, keys, missing):
    """Yield each batch of Keys that holds missing answers, and its seed.

    transformers: a batch is seeded by its place in the order, so one that a kill cut short is sampled again as a whole
    and gives the same answers. vLLM: one batch, with a seed for each answer.
    """
    if args.engine == "vllm":
        batch = [key for key in keys if key in missing]
        if batch:
            yield batch, [random.Random(f"{args.seed} {key[1:]}").getrandbits(63) for key in batch]
        return
    for start in range(0, len(keys), args.batch_size):
        batch = keys[start : start + args.batch_size]
        if not missing.isdisjoint(batch):
            yield batch, args.seed * 1_000_000 + start


def load_sampler(args, model, models, longest):
    """What samples from this model, still without an adapter. longest: tokens of the longest prompt and its answer."""
    if args.engine == "transformers":
        return TransformersSampler(model, args.dtype)
    renio.VllmSampler.close()
    configs = [Path(adapter) / "adapter_config.json" for _, adapter in models.values() if adapter]
    lora_r = max((json.loads(config.read_text(encoding="utf-8"))["r"] for config in configs), default=0)
    return renio.VllmSampler("--engine", model, args.dtype, longest, args.vllm_memory, args.batch_size, lora_r)


class TransformersSampler:
    """renio.sample with its model; called and given adapters like a renio.VllmSampler."""

    def __init__(self, model, dtype):
        self.model = renio.load_model(model, dtype, renio.pick_device())
        self.generation_config = self.model.generation_config

    def load_adapter(self, folder):
        """Sample with the peft adapter in this folder from now on."""
        from peft import PeftModel

        base = self.model.unload() if isinstance(self.model, PeftModel) else self.model
        try:
            self.model = PeftModel.from_pretrained(base, folder, use_safetensors=True).to(base.device).eval()
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise renio.UserError(f"the adapter {folder} does not fit {base.name_or_path}: {reason}") from None

    def __call__(self, *args):
        return renio.sample(self.model, *args)


Verdict = namedtuple("Verdict", "passed reason")  # of a grader: whether an answer is correct, and why or why not
MARKERS = "but wait hmm perhaps maybe actually seems might likely check alternatively however though again".split()
MARKER_PATTERN = re.compile(rf"\b(?:{'|'.join(MARKERS)})\b", re.IGNORECASE)  # the paper's list, Appendix C
ERRORS = dict(taught="taught operations", gap="gaps")  # kinds of operations: the base was taught them, or not


def score(step, name, decoding, rows, answers):
    """Scores of one benchmark and decoding, as they stand in eval.json. answers: those to the first row come first."""
    n, task, mean = len(answers) // len(rows), benchmark_of(name).task, statistics.fmean
    graded = [(answer["text"], rows[answer["problem"]]) for answer in answers]
    verdicts = grade(task, graded)
    correct = [sum(verdict.passed for verdict in verdicts[i : i + n]) for i in range(0, len(verdicts), n)]
    scores = dict(step=step, benchmark=name, decoding=decoding, n=n, avg=sum(correct) / len(answers))
    scores["per_problem"] = [count / n for count in correct]
    for k in sorted({2, 4, 8, n} & set(range(2, n + 1))):  # Chen et al. 2021, Eq. 1
        scores[f"pass@{k}"] = mean(1 - math.comb(n - c, k) / math.comb(n, k) for c in correct)
    scores["length"] = mean(answer["tokens"] for answer in answers)
    scores["truncation_rate"] = mean(answer["truncated"] for answer in answers)
    scores["format_rate"] = mean(renio.extract_boxed(text) is not None for text, _ in graded)
    scores["unparsable_rate"] = mean(verdict.reason == "unparsable" for verdict in verdicts)
    scores["markers"] = mean(len(MARKER_PATTERN.findall(text)) for text, _ in graded)
    scores["seconds"] = sum(answer["seconds"] for answer in answers)
    return scores | (error_shares(graded) if task == "arith" else {})


def grade(task, graded):
    """A Verdict for each pair of an answer's text and its problem's row."""
    if task == "code":
        with ThreadPoolExecutor(processors()) as pool:  # a verdict waits for processes of its own
            verdicts = pool.map(lambda pair: grade_code(pair[1]["test"], pair[0]), graded)
            return list(tqdm(verdicts, desc="grading", total=len(graded), unit="answer"))
    verdict = renio.arith_verdict if task == "arith" else renio.math_verdict
    reasons = [verdict(text, row["answer"]) for text, row in graded]  # in this thread, since math-verify sets alarms
    return [Verdict(reason == "equal", reason) for reason in reasons]


def error_shares(graded):
    """Share of wrong or missing results among all operations of a kind; the last result counts, that of a re-check."""
    gaps, wrong, count = set(renio.operation_gaps()), Counter(), Counter()
    for text, row in graded:
        results, words = renio.arith_results(text), row["problem"].split()
        for name, operation in zip(words[::2], words[1::2], strict=True):
            kind = "gap" if operation in gaps else "taught"
            count[kind] += 1
            wrong[kind] += results.get(name) != str(renio.result_of(operation))
    return {f"{kind}_error": wrong[kind] / max(1, count[kind]) for kind in ERRORS}


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts in the terminal.

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # by which a model's answer could write to the terminal


def show(folder, step=None):
    """Print four rollouts of a run's step (without one: its last): the highest weight, two between, the lowest."""
    log, colour = folder / "rollouts.jsonl", sys.stdout.isatty() and "NO_COLOR" not in os.environ
    renio.need(log.exists(), f"show {folder}: no rollouts.jsonl in it; train with --save_rollouts True")
    rollouts = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = sorted({rollout["step"] for rollout in rollouts})
    renio.need(step is None or step in steps, f"show --step {step}: {log} has the steps {', '.join(map(str, steps))}")
    homes = [home for home in (folder / "final", *renio.checkpoints(folder)) if home.exists()]
    renio.need(homes, f"show {folder}: neither final/ nor a checkpoint-N/ is in it, whose tokenizer is needed")
    tokenizer = renio.load_tokenizer(str(homes[0]))
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
        print(f"\nweight {rollout['renio_weight']:.2f} (#{place + 1}), {verdict}{cut}, {key_tokens} key tokens")
        print("prompt:  " + CONTROL.sub(" ", textwrap.shorten(rollout["problem"], 400)))
        print("student: " + shaded(tokenizer, rollout["completion"], rollout["log_ratios"], threshold, colour))


def shaded(tokenizer, ids, log_ratios, threshold, colour, most=300):
    """The first tokens of a rollout as text: key tokens marked, and with colour all shaded by their log-ratio."""
    text, before = "", ""
    for end, log_ratio in zip(range(1, min(most, len(ids)) + 1), log_ratios, strict=False):
        now = tokenizer.decode(ids[:end])
        if now.endswith("\ufffd") and end < len(ids):
            continue  # part of a letter, which is printed with its last token
        space, token = re.fullmatch(r"(\s*)(.*)", CONTROL.sub(" ", now[len(before) :]), re.DOTALL).groups()
        before, is_key = now, log_ratio > threshold
        if colour and (is_key or log_ratio > 0.2):
            pale = 215 - int(48 * min(max(log_ratio, 0), 4))  # the redder, the larger, up to 4 nats
            token = f"\033[48;2;255;{pale};{pale};38;2;0;0;0{';1;4' if is_key else ''}m{token}\033[0m"
        elif is_key:
            token = f"[{token} {log_ratio:+.1f}]"
        text += space + token
    return text + (f" ... and {len(ids) - most} more tokens" if len(ids) > most else "")


# ---------------------------------------------------------------------------------------------------------------------
# Code grader. A verdict takes two processes. The judge is trusted: it has the row's inputs and expected results, and it
# compares as evalplus does. The sandbox runs the model's program: a pipe brings it the program and the arguments of one
# call at a time, and takes the result back. It sees no expected result, no file but Python's own, no network, and can
# neither start nor signal a process. Only plain values come back: numbers, strings, None and containers of them.
# Before Linux 6.12, or without user namespaces, a warning says what is missing: a program can learn whether a path
# exists, and before 5.13 read files. Other systems only limit processor time, file size and open files.
#
# The rules are those of evalplus's HEAD. Its 0.3.1, which the paper used, never passes HumanEval/32 (0.61 points of
# HumanEval+), limits a test to 1 s at least instead of 4, and leaves terminal escapes in answers. Five inputs of
# MBPP+/255 are left out here, because their answers hold 6 to 128 million strings.


def grade_code(row, completion, timeout=60.0):
    """Whether the program in `completion` passes all tests, base and plus, of a row of HumanEval+ or MBPP+.

    row: all columns. completion: the model's text; `solution_program` finds the program in it.
    timeout: seconds of processor time for all tests, five times as much by the clock. One test may take 4 seconds, or
    four times as long as the reference solution if that is more. Returns a Verdict with a reason of one line.
    """
    job = json.dumps(dict(row=row, completion=completion, timeout=timeout))
    command, pipe = [sys.executable, __file__, "judge"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            reply, errors = process.communicate(job, timeout=Sandbox.PATIENCE * timeout + 60)
        except subprocess.TimeoutExpired:
            return Verdict(False, "timeout: the judge did not end")
        finally:  # the sandbox is of the same process group, and must not outlive a judge that was killed
            with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left; macOS has its own error
                os.killpg(process.pid, signal.SIGKILL)
    try:
        passed, reason, missing = json.loads(reply)
    except ValueError:  # a result can take the judge's memory or processor time
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        return Verdict(False, f"the judge ended without a verdict: {lines[-1]}")
    warn_of_missing(tuple(missing))
    return Verdict(passed, reason)


@functools.cache  # warns once
def warn_of_missing(missing):
    if missing:
        print(f"warning: code runs without {', '.join(missing)}; Linux 6.12 with namespaces has all", file=sys.stderr)


def processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# Which part of an answer is the program. Terminal escapes are dropped: links and titles (OSC), colours (CSI), others.
ESCAPE = re.compile(r"\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]")
FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?:```|~~~)")  # may open an item of a list
OPENING = re.compile(r"([ \t]*)(?:(?:async +def|def|class|import|from|if|try)\b|@|\w+ *(?::.*)?=[^=])")  # unfenced
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises


def solution_program(row, completion):
    """The program in an answer, below what stands above the function in HumanEval+'s prompt; None if there is none.

    It is the last fenced block that parses and defines the tested function, else the last such stretch of lines, else
    (HumanEval+) a body for the prompt's function. The text after the thinking is searched first.
    """
    name = tested_function(row)
    prompt = row["prompt"] if "entry_point" in row else ""
    above = re.split(rf"^def {name}\b", prompt, flags=re.MULTILINE)[0]
    thinking, _, final = ESCAPE.sub("", completion).replace("\r\n", "\n").rpartition("</think>")
    for text in (final, thinking):
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
    """The texts between fences, the last first. A docstring may hold fences: a block may end at several of them."""
    lines, blocks = text.split("\n"), []
    fences = [number for number, line in enumerate(lines) if FENCE.match(line)][-100:]  # a bound on work
    for position in reversed(range(len(fences))):
        for closing in (*fences[position + 1 : position + 8], len(lines)):
            blocks.append(textwrap.dedent("\n".join(lines[fences[position] + 1 : closing])))
    return blocks


def parsable_stretches(text):
    """Stretches of lines between prose that are Python, the last first. Each is as long as possible."""
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
    """A program's imports, and the definitions and assignments that `name` needs; None if it does not define `name`."""
    imports, results, defined, parts = (ast.Import, ast.ImportFrom), (ast.Return, ast.Yield, ast.YieldFrom), False, []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, *imports, ast.Assign, ast.AnnAssign, ast.If, ast.Try)
    try:
        for node in ast.parse(program).body:
            if isinstance(node, kinds):  # others could fail or wait for input; evalplus's sanitize drops them too
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
    """The names that a statement binds, and the global names that it and its inner functions use."""
    tables = [symtable.symtable(source, "<solution>", "exec")]
    bound = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    for table in tables:
        tables += table.get_children()
    return bound, {symbol.get_name() for table in tables for symbol in table.get_symbols() if symbol.is_global()}


# The judge. Rules, lists of tasks and limits are those of evalplus's HEAD (26d6d00, github.com/evalplus/evalplus).

SET_TASKS = ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum")
SET_TASKS += ("intersection_array", "find_dissimilar", "Diff")  # order and repetition don't count
NOT_NONE_TASKS = ("check_str", "text_match_three", "text_starta_endb")  # expected: whether a match comes back
ALSO_CORRECT = {  # a second correct result, by answer and arguments: padded with zeros; by the height of the pyramid
    "are_equivalent": lambda answer, *_: answer,
    "sum_div": lambda *_: 0,
    "digit_distance_nums": lambda _, m, n: sum(map(lambda a, b: abs(int(a) - int(b)), f"{m:099}", f"{n:099}")),
    "surface_Area": lambda _, base, height: round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2)),
}


def tested_function(row):
    """The name of the function that the row's tests call."""
    return row["entry_point"] if "entry_point" in row else re.search(r"(\w+)\(\*inp\)", row["test"])[1]


def test_cases(row):
    """The row's tests, an iterator of (arguments, expected result), and the tolerance for floats."""
    setup, _, loop = row["test"].replace("def check(candidate):", "if True:").rpartition("for i, ")
    scope = {}
    exec(setup, scope)
    inputs = scope["inputs"]
    if "combinations_colors" in row["test"]:  # MBPP+/255: five answers hold 6 to 128 million strings
        inputs = [(colors, n) for colors, n in inputs if n < 76]
    results = scope["results"] if "results" in scope else (scope["ref_func"](*copy.deepcopy(x)) for x in inputs)
    return zip(inputs, results, strict=True), float(re.findall(r"[\d.e-]+", loop)[-1])


def reference_seconds(row, arguments):
    """Processor time that the row's own solution takes for a call, with the time to encode its result."""
    scope = {}
    exec(row["prompt"] + row["canonical_solution"] if "entry_point" in row else row["code"], scope)
    arguments, began = copy.deepcopy(arguments), time.process_time()
    json.dumps(encode(scope[tested_function(row)](*arguments)))
    return time.process_time() - began


def is_correct(name, arguments, answer, expected, tolerance):
    """Whether an answer of the function `name` counts as the expected one. Raises if some can't be compared."""
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
    """The program did not answer a call, or answered incorrectly. Its one-line message is the verdict's reason."""


def judge():
    """`python eval.py judge`: reads a job from standard input, prints [passed, reason, protections missing]."""
    job, real_stdout = json.load(sys.stdin), sys.stdout
    sys.stdout = sys.stderr  # a reference that prints must not speak for the judge
    seconds = math.ceil(job["timeout"]) + 5  # a bound on the work with a result: a set of equal hashes takes hours
    for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, 4 << 30)):
        with contextlib.suppress(ValueError):  # macOS has no limit of memory
            resource.setrlimit(limit, (most, most))
    sandbox, passed, reason = Sandbox(job["timeout"]), False, "passed"
    try:
        run_tests(sandbox, job["row"], solution_program(job["row"], job["completion"]))
        passed = True
    except SolutionFailed as failed:
        reason = str(failed)
    except Exception as error:  # a row that holds no tests; no memory for a result
        reason = f"the judge failed with {type(error).__name__}: {error}"
    finally:
        sandbox.close()
    print(json.dumps([passed, " ".join(reason.split())[:300], sandbox.missing]), file=real_stdout)


def run_tests(sandbox, row, program):
    """Run a program on the row's tests. Raises SolutionFailed at the first that it does not pass."""
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
            tolerance = 1e-6  # for all tests that follow too
        correct = False
        with contextlib.suppress(Exception):  # such as the length of a number
            correct = is_correct(name, arguments, answer, expected, tolerance)
        if not correct:
            raise SolutionFailed(f"incorrect answer to test {number}")


class Sandbox:
    """The judge's end of the process that runs a model's program, for so many `seconds` of processor time in all. Tests
    act as an older kernel does: `landlock` is the newest version to use, `namespaces` says whether to use them."""

    REPLY_LIMIT = 64 << 20  # bytes
    TEST_SECONDS, REFERENCE_FACTOR = 4.0, 4.0  # a test's limit: at least, and as a multiple of the reference's time
    PATIENCE = 5  # clock time over processor time: other work may take the processors, and a program may sleep

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
        """The reply to a question. reference: a function that measures the reference's seconds, called if needed."""
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
    """A plain value as JSON can hold it; {kind: content} stands for the kinds that JSON lacks. Else a TypeError."""
    kind = type(value)
    if kind in (str, float, bool, type(None)) or (kind is int and value.bit_length() <= 64):
        return value
    if kind is int:
        return {"int": hex(value)}  # Python refuses the longest in decimals
    if kind in (list, tuple, set, frozenset):
        items = list(map(encode, value))
        return items if kind is list else {kind.__name__: items}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    for plain in (int, float, str, list, tuple, set, frozenset, dict, complex):
        if isinstance(value, plain):  # numpy.float64, a Counter: equal to a plain value, but not of its type
            return {"subclass": encode(plain(value))}
    if (kind.__module__, kind.__name__) == ("re", "Match"):
        return {"subclass": value.group()}
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item() if kind.__name__ in ("bool", "bool_") else {"subclass": encode(value.item())}
    if hasattr(kind, "isdisjoint"):  # the keys of a dict, equal to a set
        return {"subclass": encode(set(value))}
    if hasattr(kind, "__iter__"):  # a map, a range: equal to nothing, but some tasks take the set of its items
        return {"iterator": encode(list(value))}
    raise TypeError(f"an answer of type {kind.__name__}: only numbers, strings, None and containers of them count")


def decode(text):
    """The value that `encode` turned into this JSON text. Any text gives a plain value or an exception."""
    makers = dict(tuple=tuple, set=set, frozenset=frozenset, dict=dict, iterator=iter)
    makers["int"] = lambda digits: int(digits, 16)
    makers["complex"] = lambda parts: complex(*parts)
    makers["subclass"] = lambda value: type("Subclass", (type(value),), {})(value)
    return json.loads(text, object_hook=lambda tagged: [makers[kind](content) for kind, content in tagged.items()][0])


def serve():
    """The sandbox's main function: answers the judge's questions, with ["value", result] or ["error", message]."""
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
        except BaseException as error:  # SystemExit too: it is no answer
            reply = json.dumps(["error", f"{type(error).__name__}: {error}"[:300]])
        replies.write(reply.encode() + b"\n")
        replies.flush()


def confine(cpu_seconds, judge_id, newest_landlock, namespaces):
    """Take from this process, for good, all that a solution does not need. Returns what protections are missing."""
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
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: ends with the judge
    if os.getppid() != judge_id:
        os._exit(1)  # the judge died before that
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which Landlock and seccomp ask for
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
    """Landlock: only these files can be read, none changed. Returns the version in use, at most `newest`; 0: none."""
    libc = ctypes.CDLL(None)
    version = min(libc.syscall(444, None, 0, 1), newest)
    if version < 1:
        return 0
    kinds = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # of access to files; each version knows more
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
    changing = [0o3, 0o100, 0o1000]  # to write, O_CREAT, O_TRUNC, by which Landlock below 3 lets files be emptied
    rules = [(call, 0, equal, [], allow, allow) for call in calls.split(",")]
    rules += [  # a call, which argument is tested, how, with which values, what follows if one matches, if none does
        ("clone3 435 435", 0, equal, [], unknown, unknown),  # a filter can't see its flags: libc then tries clone
        ("clone 56 220", 0, some, [0x10000], allow, refuse),  # threads, but no processes
        ("prlimit64 302 261", 0, equal, [0], allow, refuse),  # one's own limits
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
# Statistics. Intervals are 95 %. Of one run: bootstrap over problems, which says nothing of another training (where
# seeds move each method by 5 points it holds the truth in 33 % of cases at 500 problems). Of several seeds see
# `interval`; in simulation (tests/intervals.py) its two kinds hold the truth in 94.3 to 95.5 % and in 94.8 to 96.8 %.


def pass_at_k(n, c, k):
    """Unbiased chance that at least one of k samples is right, from c right ones of n (Chen et al. 2021, Eq. 1)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"need 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def majority_answer(answers, same):
    """The first of the largest group of answers that are the `same`, of equal groups the earliest; None of none."""
    groups = []
    for answer in answers:
        group = next((group for group in groups if same(group[0], answer)), None)
        if group is None:
            groups.append([answer])
        else:
            group.append(answer)
    return max(groups, key=len)[0] if groups else None


def average(benchmarks):
    """Mean over benchmarks of the mean over seeds and problems. benchmarks: arrays (seeds, problems)."""
    return float(np.mean([values.mean() for values in benchmarks]))


def bootstrap_interval(values, resamples=10_000, level=0.95):
    """Percentile interval of the mean of `values`, one a problem, under resampling of the problems."""
    values = np.asarray(values, dtype=float)  # (P,)
    means = bootstrap_weights(len(values), resamples) @ values
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


@functools.lru_cache(maxsize=2)  # drawing them costs far more than using them
def bootstrap_weights(n, resamples):
    """Weight of each of n values in the mean of each bootstrap resample, (resamples, n)."""
    drawn = np.random.default_rng(0).integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n) / n


def t_p_value(t, df):
    """Two-sided p-value of Student's t at whole degrees of freedom, exact: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle, odd = math.atan(abs(t) / math.sqrt(df)), df % 2
    term, total = math.cos(angle) ** odd, 0.0
    for j in range(odd, df - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (j + 1) / (j + 2)
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


@functools.cache
def t_quantile(df):
    """The t whose two-sided p-value is 5 %, to 1e-9."""
    low, high = 0.0, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if t_p_value(middle, df) > 0.05 else (low, middle)
    return high


def seed_means(benchmarks):
    """Means over problems and benchmarks, (seeds,). benchmarks: arrays (seeds, problems)."""
    return np.mean([v.mean(axis=1) for v in benchmarks], axis=0).round(12)  # equal ones must have no spread


def problem_variance(values):
    """Variance of the mean of `values` (seeds, problems) that the draw of the problems alone makes.

    The two-way layout's estimate: what varies from seed to seed within a problem is taken off.
    """
    seeds, problems = values.shape
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    within = (rest**2).sum() / ((seeds - 1) * (problems - 1))
    return max(0.0, (values.mean(axis=0).var(ddof=1) - within / seeds) / problems)


def interval(*benchmarks, within=(-np.inf, np.inf), other_problems=False):
    """95 % interval of the mean over seeds and problems, averaged over benchmarks.

    benchmarks: (seeds, problems) each, of the same seeds; the paired differences where two methods are compared.
    within: bounds of the quantity itself.
    One seed: bootstrap over the problems of each benchmark, which knows nothing of another training.
    More: Student's t over the seeds' means, for other trainings scored on these problems; their means hold what the
    answers vary by already. other_problems: for other problems of the kind too, where seeds and problems are crossed
    effects; t² times variance is added up over both (Banerjee 1960), since with Satterthwaite's degrees of freedom
    intervals over 2 or 3 seeds hold the truth in 88 to 94 % only. tests/intervals.py simulates both.
    """
    seeds = len(benchmarks[0])
    if seeds == 1:
        # benchmarks of one size must not be resampled alike
        means = np.mean([np.random.default_rng(i).permutation(bootstrap_weights(v.shape[1], 10_000) @ v[0])
                         for i, v in enumerate(benchmarks)], axis=0)
        low, high = np.quantile(means, [0.025, 0.975])
    else:
        by_seed = seed_means(benchmarks)
        squared = t_quantile(seeds - 1) ** 2 * by_seed.var(ddof=1) / seeds if np.ptp(by_seed) else 0.0
        for values in (v for v in benchmarks if other_problems and v.shape[1] > 1):
            squared += t_quantile(values.shape[1] - 1) ** 2 * problem_variance(values) / len(benchmarks) ** 2
        low, high = by_seed.mean() - np.sqrt(squared), by_seed.mean() + np.sqrt(squared)
    return float(max(low, within[0])), float(min(high, within[1]))


def verdict(seeds, ends):
    """What an interval over so many seeds says of the claim that a quantity is above 0."""
    if seeds < 2:
        return f"undecided ({'one seed' if seeds else 'no seed in common'})"
    if ends[0] == ends[1]:
        return "undecided (no spread over seeds)"  # to which no error can be given
    if ends[0] <= 0 <= ends[1]:
        return "undecided (the interval holds 0)"
    return "supported" if ends[0] > 0 else "not supported: the opposite"


def seeds_p_value(by_seed):
    """Two-sided p-value of the mean over seeds being 0, by Student's t; nan for fewer than two, and without spread."""
    if len(by_seed) < 2 or not np.ptp(by_seed):
        return math.nan
    return t_p_value(by_seed.mean() / by_seed.std(ddof=1) * math.sqrt(len(by_seed)), len(by_seed) - 1)


def holm(p_values, level=0.05):
    """Which hypotheses are rejected so that the chance of one false rejection among all is `level` (Holm 1979).

    Those whose p-value is nan are not tested and not counted.
    """
    rejected, tested = [False] * len(p_values), np.isfinite(p_values).sum()
    for rank, place in enumerate(np.argsort(p_values)[:tested]):  # nan come last
        if p_values[place] > level / (tested - rank):
            break
        rejected[place] = True
    return rejected


def paired_p_value(differences, resamples=10_000):
    """Two-sided p-value of the mean of paired differences, one a problem, being 0: random changes of their signs.

    Counts the observed signs as one of the draws, so that it is never 0.
    """
    differences = np.asarray(differences, dtype=float)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(resamples, len(differences)))
    extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
    return float((1 + extreme.sum()) / (1 + resamples))


def rank_correlation(x, y):
    """Spearman's: the correlation of the ranks, ties sharing theirs; nan where one side is constant."""
    def ranks(values):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (counts.cumsum() - (counts - 1) / 2)[place]

    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations, read back and compared.


class Scored(NamedTuple):
    """One eval.json, without its answers."""

    label: str
    seed: int  # of the training
    step: int | None  # of the checkpoint; None for a whole run or a model as it came
    path: Path
    settings: dict
    # (benchmark, decoding) -> scores; conditions; and per_problem: of each key of UNITS that it has, a mean a problem
    results: dict

    @property
    def folder(self):  # of the run
        return self.path.parent if self.step is None else self.path.parent.parent


def conditions(settings, result):
    """What a score was made with, by name: methods are compared only where all of it is the same.

    A prompt with the solution is no condition but a method, the teacher of OPSD; its words are compared among its like.
    """
    names = ["max_new_tokens", "thinking", "engine", "dtype"]
    names += ["temperature", "top_p", "top_k"] * (result["decoding"] == "sampled")
    prompt = "prompt with the solution" if settings.get("privileged") else "prompt"
    return dict(problems=settings["checksums"][result["benchmark"]], answers=result["n"],
                **{name: settings.get(name) for name in names}, **{prompt: settings.get("prompt")})


def sums_by_problem(result):
    """What an eval.json records of each answer in numbers, {name: a sum over its answers for each problem}."""
    names = [name for name in ("right", "tokens", "markers", *(f"wrong_{kind}" for kind in ERRORS))
             if name in result["problems"][0]["answers"][0]]
    return {name: [sum(answer[name] for answer in p["answers"]) for p in result["problems"]] for name in names}


def read_scored(path):
    """A Scored. Raises renio.UserError for a file that is no evaluation."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        results = {}
        for r in run["results"]:
            sums = r["per_problem"] if "per_problem" in r else sums_by_problem(r)
            per_problem = {key: np.array(values) / r["n"] for key, values in sums.items()}
            for kind in ERRORS:
                if f"{kind}_error" in r:  # scaled so that the mean over the problems is the share of all operations
                    wrong = per_problem.pop(f"wrong_{kind}")
                    per_problem[f"{kind}_error"] = wrong * (r[f"{kind}_error"] / (wrong.mean() or 1))
            results[r["benchmark"], r["decoding"]] = {k: v for k, v in r.items() if k != "problems"} | dict(
                conditions=conditions(run["settings"], r), per_problem=per_problem)
        return Scored(run["label"], run["train_seed"], run["step"], path, run["settings"], results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise renio.UserError(f"{path}: not a file that eval.py wrote ({type(error).__name__}: {error})") from None


def differing(run, other):
    """Names of the conditions that two evaluations do not share, in what both have scored, in order."""
    return sorted({name for key in run.results.keys() & other.results.keys()
                   for name, value in run.results[key]["conditions"].items()
                   if other.results[key]["conditions"].get(name, value) != value})


def percent(value, ends=None, form=".1f", scale=100):
    """A value with the ends of its interval as text, in percent or otherwise scaled."""
    text = format(scale * value, form)
    return text + (f" [{scale * ends[0]:{form}}, {scale * ends[1]:{form}}]" if ends else "")


def compare(words):
    """Print what the evaluations on the second side score beyond those on the first, paired by seed and problem.

    words: a file a side, or several, `vs` and several, each of its own training seed; --other_settings.
    Raises renio.UserError for files that are no evaluations, of other problems, or of other settings.
    """
    other_settings, words = "--other_settings" in words, [word for word in words if word != "--other_settings"]
    files = [word for word in words if word != "vs"]
    place = words.index("vs") if "vs" in words else 1
    if not 0 < place < len(files) or len(files) > 2 and "vs" not in words:
        raise renio.UserError("compare takes two files that eval.py wrote; or several, then vs, then several")
    runs = [read_scored(Path(file)) for file in files]
    first, last = runs[0], runs[-1]
    for run in runs[1:]:
        other = differing(first, run) + ["privileged"] * (
            first.settings.get("privileged") != run.settings.get("privileged"))
        if "problems" in other or other and not other_settings:
            raise renio.UserError(f"compare: {first.path} and {run.path} differ in {', '.join(other)}"
                                  + "; --other_settings compares them all the same" * ("problems" not in other))
    if len(files) == 2:  # a pair, whatever their seeds
        runs = [run._replace(seed=0) for run in runs]
    common = {run.seed for run in runs[:place]} & {run.seed for run in runs[place:]}
    scores = Scores([[run._replace(label="the first side" if i < place else "the second side")]
                     for i, run in enumerate(runs) if run.seed in common], None, "")
    said = []
    for title, *what in scores.columns():
        values = scores.difference("the second side", "the first side", *what)
        if values:
            ours, theirs = (percent(average(scores.of(f"the {side} side", *what)[1])) for side in ("second", "first"))
            of = (f"p = {paired_p_value(values[0][0]):.4f} over problems, which says nothing of another training"
                  if len(common) == 1 else
                  f"p = {seeds_p_value(seed_means(values)):.4f} over {len(common)} training seeds; other problems too "
                  f"{percent(average(values), interval(*values, other_problems=True), '+.1f').partition(' ')[2]}")
            said.append(f"{title}: {last.label} {ours} − {first.label} {theirs} = "
                        f"{percent(average(values), interval(*values), '+.1f')} points, {of}")
    if not said:
        raise renio.UserError("compare: no training seed, or no benchmark and decoding, that both sides have")
    print(*said, sep="\n")


def read_folder(folder):
    """Scores of all evaluations below a folder: a Scores for each set of conditions, the one of most runs first.

    A run has the conditions of its last step; those of its checkpoints that have others are left out, with a warning.
    """
    by_folder = {}  # a method trained for math and the same for code have one label and other benchmarks
    for path in sorted(folder.rglob("eval.json")):
        run = read_scored(path)
        by_folder.setdefault(run.folder, []).append(run)
    if not by_folder:
        raise renio.UserError(f"report {folder}: no eval.json below it")
    groups = []
    for runs in by_folder.values():
        last = max(runs, key=lambda run: math.inf if run.step is None else run.step)
        for run in runs:
            if other := differing(last, run):
                print(f"warning: {run.path} differs from {last.path.parent.name} in {', '.join(other)}; left out",
                      file=sys.stderr)
        runs = [run for run in runs if run is not last and not differing(last, run)] + [last]
        for group in groups:
            if not any(differing(last, others[-1]) for others in group):
                group.append(runs)
                break
        else:
            groups.append([runs])
    groups.sort(key=len, reverse=True)
    return [Scores(runs, folder, f"-{i}" if i > 1 else "") for i, runs in enumerate(groups, start=1)]


def configs_of(runs):
    """The config.json of each of the runs, of those that were trained."""
    return [json.loads(path.read_text(encoding="utf-8")) for run in runs
            if (path := run.folder / "config.json").exists()]


def flags_of(runs):
    """The flags that each of the runs was trained with, of those that were."""
    return [config["flags"] for config in configs_of(runs)]


class Scores:
    """Evaluations of one student under the same conditions, asked by label.

    runs: a list of evaluations a run, those of its checkpoints; `last`: the last one of each.
    """

    def __init__(self, runs, folder, suffix):
        self.runs, self.folder, self.suffix = runs, folder, suffix  # the suffix is of the figures' names
        self.last = [checkpoints[-1] for checkpoints in runs]
        seen = {}
        for run in self.last:
            for other in (seen.setdefault((run.label, run.seed, key), run) for key in run.results):
                if other is not run:
                    raise renio.UserError(
                        f"{other.path} and {run.path} are both {run.label} with training seed {run.seed}")
        scored_on = {key for run in self.last for key in run.results}
        names = {benchmark for benchmark, _ in scored_on}
        self.benchmarks = [b for b in BENCHMARKS if b in names] + sorted(names - BENCHMARKS.keys())
        self.decodings = [d for d in ("sampled", "greedy") if any(d == decoding for _, decoding in scored_on)]
        self.labels = list(dict.fromkeys(run.label for run in self.last))
        self.other_length = next((label.partition("@")[2] for label in self.labels if "@" in label), "*")
        self.micro = self.benchmarks == ["arith"]
        students = {Path(run.settings["model"]).name for run in self.last
                    if run.label == "base" or run.settings.get("adapter")}
        self.student = "Qwen3-1.7B" if self.micro else students.pop() if len(students) == 1 else None

    def named(self, label):
        """A label of SECTIONS as these runs have it: the other length of rollouts for *, the main run for the sweeps'
        centre unless that is a run of its own."""
        if label == CENTRE and label not in self.labels:
            return "opd+renio"
        return label.replace("*", self.other_length)

    def columns(self):
        """What a table shows of each method: (title, benchmarks whose mean it is, decoding)."""
        columns = []
        for decoding in self.decodings:
            for task in ("arith", "math", "code"):
                names = [b for b in self.benchmarks if benchmark_of(b).task == task]
                columns += [(f"{name}, {decoding}", [name], decoding) for name in names]
                if len(names) > 1:
                    columns.append((f"{task} mean, {decoding}", names, decoding))
        return columns

    def headline_columns(self):
        """The columns that claims are judged on: means over benchmarks in place of their parts."""
        columns = self.columns()
        return [c for c in columns if not any(set(c[1]) < set(more) for _, more, _ in columns)]

    def of(self, label, benchmarks, decoding, key="right", step=None):
        """Training seeds, and for each benchmark the numbers (seeds, problems); ([], []) where one is missing.

        step: of a checkpoint; None for the end of each run.
        """
        found = {}
        for run in self.last if step is None else [run for runs in self.runs for run in runs if run.step == step]:
            for name, how in run.results:
                if (run.label, how) == (label, decoding) and key in run.results[name, how]["per_problem"]:
                    found[run.seed, name] = run.results[name, how]["per_problem"][key]
        seeds = sorted({seed for seed, _ in found if all((seed, b) in found for b in benchmarks)})
        return seeds, [np.array([found[seed, b] for seed in seeds]) for b in benchmarks] if seeds else []

    def steps(self, label):
        return sorted({run.step for runs in self.runs for run in runs if run.label == label and run.step is not None})

    def best(self, label, benchmarks, decoding):
        """Mean over seeds of the score of each run's best checkpoint, and how many checkpoints; None without several.

        One checkpoint a run, that of the highest mean over all that the run is scored on.
        """
        chosen = []
        for checkpoints in self.runs:
            checkpoints = [run for run in checkpoints if run.label == label and run.step is not None]
            common = set.intersection(*(set(run.results) for run in checkpoints)) if len(checkpoints) > 1 else set()
            if all((benchmark, decoding) in common for benchmark in benchmarks):
                best = max(checkpoints, key=lambda run: np.mean([run.results[key]["avg"] for key in common]))
                chosen.append(np.mean([best.results[benchmark, decoding]["avg"] for benchmark in benchmarks]))
                count = len(checkpoints)
        return (np.mean(chosen), count) if chosen else None

    def difference(self, label, other, benchmarks, decoding, key="right"):
        """label − other by problem on the seeds of both, (seeds, problems) a benchmark; [] where one is missing."""
        seeds, values = self.of(label, benchmarks, decoding, key)
        other_seeds, others = self.of(other, benchmarks, decoding, key)
        common = [seed for seed in seeds if seed in other_seeds]
        return [a[[seeds.index(seed) for seed in common]] - b[[other_seeds.index(seed) for seed in common]]
                for a, b in zip(values, others, strict=False)]

    def trained(self, label):
        """The runs with this label by seed, only those scored on the first of the benchmarks: not code beside math."""
        runs = [run for run in self.last if run.label == label and any(b == self.benchmarks[0] for b, _ in run.results)]
        return sorted(runs, key=lambda run: run.seed)

    def logs(self, label, name):
        """The rows of the metrics.jsonl or rollouts.jsonl of each run with this label that has one, by seed."""
        paths = [run.folder / name for run in self.trained(label)]
        return [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for path in paths if path.exists()]

    def seconds(self, label):
        """Seconds of the optimizer steps of its runs but the first ones, which warm up; grpo makes several a row."""
        steps = max((f["iterations"] for f in flags_of(self.trained(label)) if f["method"] == "grpo"), default=1)
        return [row["seconds"] / steps for rows in self.logs(label, "metrics.jsonl") for row in rows[1:]]

    def auc_within_batch(self, label):
        """Chance that a wrong rollout has a larger ReNIO weight than a right one of its batch, (seeds,).

        Means over the steps whose batch has both. Eq. 8 compares weights within a batch, so only there it matters.
        """
        by_seed = [[row["weight_auc_wrong"] for row in rows if row.get("weight_auc_wrong") is not None]
                   for rows in self.logs(label, "metrics.jsonl")]
        return np.array([np.mean(values) for values in by_seed if values])


# ---------------------------------------------------------------------------------------------------------------------
# The report's tables, in Markdown. Each is a list of lines, empty where the runs have nothing to show in it.


COLUMNS = [("aime24",), ("aime25",), ("hmmt25",), ("aime24", "aime25", "hmmt25"), ("humaneval+",), ("mbpp+",),
           ("humaneval+", "mbpp+")]  # of several the mean
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
        "opd+renio-clip3.0": [54.7, 43.1, 28.3, 42.0],
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


def published_label(scores, label, by_length):
    """The label under which the paper has this row; by_length: in a table over the length of rollouts.

    The paper's main runs have the short rollouts. Where ours have the long ones, rows change places in such a table.
    """
    base, at, _ = label.partition("@")
    if scores.other_length.isdigit() and int(scores.other_length) < 1024:
        longer = f"{label}@4096"
        return base if at else longer if by_length and longer in PUBLISHED_SECONDS else label
    return label


def published(scores, label, benchmarks, by_length=False):
    """The paper's score of a method for this student on these benchmarks, "" where it has none.

    At micro scale, whose student and problems are no one else's, that of Qwen3-1.7B in math: PAPER_FOR_ORDER.
    """
    figures = PUBLISHED.get(scores.student, {}).get(published_label(scores, label, by_length), [])
    column = COLUMNS[3] if scores.micro else tuple(benchmarks)
    place = COLUMNS.index(column) if column in COLUMNS else len(figures)
    return f"{figures[place]:.2f}".removesuffix("0") if place < len(figures) else ""


PAPER_FOR_ORDER = "the paper's Qwen3-1.7B in math, for the order alone"  # title of such a column


def markdown_table(rows):
    """Lines of a table. rows: of (header, cell) pairs, with the same headers in each."""
    cells = [[header for header, _ in rows[0]], ["---"] * len(rows[0]), *([cell for _, cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in cells]


def plain_table(rows, width=100):
    """The same as aligned text, without the last columns where all of them would be wider than `width`."""
    lines = [""] * (1 + len(rows))
    for column in zip(*rows, strict=True):
        cells = [column[0][0], *(cell for _, cell in column)]
        longer = [f"{line}{cell:<{max(map(len, cells)) + 2}}" for line, cell in zip(lines, cells, strict=True)]
        if len(longer[0]) > width + 2:
            break
        lines = longer
    return [line.rstrip() for line in lines]


def score_cell(scores, label, benchmarks, decoding):
    """A score with its interval, as text."""
    _, values = scores.of(label, benchmarks, decoding)
    return percent(average(values), interval(*values, within=(0, 1))) if values else ""


def score_table(scores, labels, by_length=False):
    """A row a method: score with interval, sd over seeds, best of the checkpoints, and the paper's score."""
    columns = [c for c in scores.columns() if any(scores.of(label, *c[1:])[0] for label in labels)]
    curves = any(scores.best(label, *what) for label in labels for _, *what in columns)
    rows = []
    for label in labels:
        row = [("method", label), ("seeds", str(max(len(scores.of(label, *c[1:])[0]) for c in columns)))]
        for title, benchmarks, decoding in columns:
            seeds, values = scores.of(label, benchmarks, decoding)
            best = scores.best(label, benchmarks, decoding)
            row += [(title, score_cell(scores, label, benchmarks, decoding)),
                    ("sd", percent(seed_means(values).std(ddof=1)) if len(seeds) > 1 else "")]
            row += [("best", f"{percent(best[0])} of {best[1]}" if best else "")] * curves
            if scores.student in PUBLISHED and decoding == "sampled" and not scores.micro:
                row.append(("paper", published(scores, label, benchmarks, by_length)))
        if scores.micro:
            row.append((PAPER_FOR_ORDER, published(scores, label, columns[0][1], by_length)))
        rows.append(row)
    return markdown_table(rows)


class Claim(NamedTuple):
    """What the paper says of two methods, or what a control asks: that `label` is above `other`."""

    text: str
    label: str
    other: str
    key: str = "right"  # in right answers, or another key of UNITS
    micro: bool = True  # whether it is judged at micro scale too


class Finding(NamedTuple):
    """What the runs say of a claim."""

    claim: str
    compared: str
    values: list  # (seeds, problems) a benchmark, or (seeds, 1): a quantity that is above 0 where the claim holds
    scored_on: str = "rollouts"
    form: str = "+.3f"
    scale: int = 1
    paper: str = ""


# of a claim's key: what it is in, how it is written, in what scale
UNITS = dict(right=("points", "+.1f", 100), tokens=("tokens an answer", "+.2f", 1),
             markers=("markers an answer", "+.2f", 1),
             **{f"{kind}_error": (f"% wrong of {what}", "+.2f", 100) for kind, what in ERRORS.items()})


def claim_findings(scores, claims):
    """Of each claim on each headline column, where the runs are there; the paper's difference in points."""
    findings = []
    for text, label, other, key, micro in claims:
        if scores.micro and not micro:
            continue
        label, other = scores.named(label), scores.named(other)
        for title, benchmarks, decoding in scores.headline_columns():
            values, (unit, form, scale) = scores.difference(label, other, benchmarks, decoding, key), UNITS[key]
            theirs = [float(published(scores, x, benchmarks) or "nan") for x in (label, other)]
            known = np.isfinite(theirs).all() and (key, decoding) == ("right", "sampled")
            if values:
                findings.append(Finding(text, f"{label} − {other}", values, f"{title}, {unit}", form, scale,
                                        f"{theirs[0] - theirs[1]:+.2f}" if known else ""))
    return findings


def rollout_findings(scores, rollouts):
    """Whether ReNIO's weight ranks wrong rollouts above right ones, and falls with the teacher's entropy."""
    found = []
    for label in ("opd", "opsd"):
        correlations = [rank_correlation(*weight_and_entropy(run)) for run in rollouts.get(label, [])]
        found += [(f"the weight ranks wrong rollouts above right ones in {label.upper()}", "AUC − 0.5 within a batch",
                   scores.auc_within_batch(label) - 0.5, ""),
                  (f"higher weights go with lower entropy of the teacher in {label.upper()}", "− rank correlation",
                   -np.array(correlations), "above 0")]
    return [Finding(claim, compared, [by_seed[:, None]], paper=paper) for claim, compared, by_seed, paper in found
            if len(by_seed) and np.isfinite(by_seed).all()]


def verdict_rows(scores, findings):
    """Rows for markdown_table."""
    rows = []
    stand = holm([seeds_p_value(seed_means(f.values)) for f in findings])
    for f, stands in zip(findings, stand, strict=True):
        seeds, problems = f.values[0].shape
        ends = interval(*f.values) if seeds > 1 or seeds and problems > 1 else None
        others = interval(*f.values, other_problems=True) if seeds > 1 and problems > 1 else None
        said = verdict(seeds, ends)
        rows.append([
            ("claim", f.claim), ("difference", f.compared), ("scored on", f.scored_on), ("seeds", str(seeds)),
            ("value [95 %]", percent(average(f.values), ends, f.form, f.scale) if seeds else ""),
            ("other problems too", percent(0, others, f.form, f.scale).partition(" ")[2] if others else ""),
            ("verdict", said),
            ("after Holm", "" if said.startswith("undecided") else "stands" if stands else "does not stand"),
            (PAPER_FOR_ORDER if scores.micro else "paper", f.paper)])
    return rows if any(f.paper for f in findings) else [row[:-1] for row in rows]


HEADLINES = [  # the claims of the report's first page
    "OPSD improves the base", "OPD improves the base", "ReNIO improves OPSD", "ReNIO improves OPD",
    "OPSD with ReNIO beats GRPO",
    *(f"{what} in OPD" for what in (
        "aiming: shuffled weights leave more errors on gaps than ReNIO's",
        "variance: shuffled weights leave more errors on gaps than none", "aiming: ReNIO beats shuffled weights",
        "variance: none beats shuffled weights", "incorrect-only beats correct-only")),
    "incorrect-only beats correct-only in OPD, on the same problems (not in the paper)",
    "the weight ranks wrong rollouts above right ones in OPD"]


def headline_lines(rows):
    """What was found of the main claims, a line each, in the words of the verdicts."""
    lines = []
    for claim in HEADLINES:
        said = [f"{row['verdict'].partition(' (')[0]}, {row['value [95 %]']} ({row['scored on']})"
                for row in map(dict, rows) if row["claim"] == claim]
        lines += [f"- {claim}: {'; '.join(said)}"] if said else []
    return ["## Findings", "", *lines, ""] if lines else []


RECIPES = {  # how run_all.sh's settings for a benchmark came about
    "arith":
        "The recipe (models, steps, learning rates, data) was fixed on seeds 100 to 103, which are not reported, by "
        "what the base and the teachers know, by what plain OPD and OPSD spoil of the taught operations and leave of "
        "the gaps, and by time; GRPO's learning rate by its own gain over the base. No setting was chosen by which "
        "weighting wins. But seeds 0 and 1 were seen once before, when an answer still ended in a line that repeats "
        "its results: OPD made that line wrong, most with ReNIO, and it was left out.",
    "products":
        "The recipe (steps of the base and of the teacher, learning rates, data) was fixed on seed 100, which is not "
        "reported, by what the base and the teacher know, by the gains of plain OPD and OPSD over the base, and by "
        "time. No setting was chosen by which weighting wins. Seeds share a base and a teacher, so intervals are over "
        "the training of the student alone.",
    "chain": "The recipe is that of the products, and was not tuned on chains.",
}


def verdict_lines(rows, benchmarks):
    if not rows:
        return []
    said = Counter((row["verdict"].partition(" (")[0], row["after Holm"]) for row in map(dict, rows))
    counts = [f"{said[name, 'stands'] + said[name, 'does not stand']} {name} ({said[name, 'stands']} after Holm's "
              "correction)" for name in ("supported", "not supported: the opposite")]
    return [
        "## Verdicts", "",
        f"Of {len(rows)} verdicts: {', '.join(counts)}, {said['undecided', '']} undecided.", "",
        *markdown_table(rows), "",
        "A verdict is on these models, these problems and these steps, over other trainings: supported where the 95 % "
        "interval of the difference, Student's t over the seeds that both methods have, lies above 0; not supported "
        "where it lies below; undecided where it holds 0, where fewer than two seeds are common, or where these show "
        "no spread. The second interval is for other problems of the kind too. Of twenty differences that are truly "
        "none about one is not called undecided; Holm's correction over all that are judged here over two seeds or "
        "more leaves a chance of 5 % that any one is. What seeds can show, with a chance of 80 %: 3 a difference of "
        "3.3 standard deviations of the paired differences, 5 of 1.7, 8 of 1.2, 16 of 0.7."
        + "".join(f" {RECIPES[name]}" for name in benchmarks if name in RECIPES), ""]


def settings_lines(scores):
    """What all tables share: how scores and intervals were made."""
    lines = []
    for benchmark in scores.benchmarks:
        for decoding in scores.decodings:
            runs = [run for run in scores.last if (benchmark, decoding) in run.results]
            if not runs:
                continue
            r = runs[0].results[benchmark, decoding]
            each = "one answer each" if r["n"] == 1 else f"{r['n']} answers each"
            c = dict.fromkeys(("temperature", "top_p", "top_k")) | r["conditions"]
            prompts = sorted({prompt for run in runs if (prompt := run.settings.get("prompt"))})
            versions = {run.settings.get("versions", {}).get(c["engine"], "") for run in runs}
            lines.append(
                f"- {benchmark}, {decoding}: {len(r['per_problem']['right'])} problems (checksum {c['problems']}), "
                f"{each}"
                + (f" at temperature {c['temperature']:g}, top-p {c['top_p']:g}, top-k {c['top_k'] or 'off'}"
                   if decoding == "sampled" else "")
                + f"; at most {c['max_new_tokens']} new tokens, thinking {'on' if c['thinking'] else 'off'}; "
                f"{c['engine']} {', '.join(sorted(versions))}, {c['dtype']}"
                + f"; asked by {', '.join(map(repr, prompts))}" * bool(prompts))
    seeds, configs = sorted({run.seed for run in scores.last}), configs_of(scores.last)
    variants = [config["flags"].get("variant") for config in configs]
    if commits := sorted({commit[:10] for config in configs if (commit := config.get("commit"))}):
        lines.append(f"- training: commit {', '.join(commits)}")
    if official := variants.count("official"):
        lines.append(f"- training: {official} of {len(variants)} runs with --variant official, the released code's "
                     "settings")
    return [
        f"Settings of every row, training seeds {', '.join(map(str, seeds))}:", "", *lines, "",
        "Scores are percent right, means over seeds; a run is scored at its fixed last step. In brackets: the 95 % "
        "interval. With several seeds it is Student's t over the seeds' means: what other trainings would score on "
        "these problems. With one seed it is a bootstrap over problems, and says nothing of how another seed would "
        "have ended. Differences are paired by problem and seed. \"Best\" is the mean over seeds of one checkpoint a "
        "run, that of the highest mean over the run's columns, selected on the test set, as the paper's figures are; "
        "never compare it with a last step. Paper: ReNIO, arXiv 2606.23104v1, Avg@12 in math and Avg@4 in code.", ""]


def error_table(scores):
    """Both kinds of error of every method, and the effective sample size where it weighs samples."""
    rows = []
    for label in scores.labels:
        sizes = [row["effective_sample_size"] for run in scores.logs(label, "metrics.jsonl") for row in run
                 if "effective_sample_size" in row]
        row = [("method", label), ("effective samples", f"{np.mean(sizes):.1f}" if sizes else "")]
        for key in (f"{kind}_error" for kind in ERRORS):
            for decoding in scores.decodings:
                _, values = scores.of(label, ["arith"], decoding, key)
                cell = percent(average(values), interval(*values, within=(0, 1)), ".2f") if values else ""
                row.append((f"{UNITS[key][0]}, {decoding}", cell))
        rows.append(row)
    return ["## Errors by kind of operation", "", *markdown_table(rows), ""] if scores.micro else []


def behaviour_table(scores):
    """Pass@k, majority vote, length, truncation, format and markers of every method, under the first decoding."""
    lines, decoding = [], scores.decodings[0]
    for benchmark in scores.benchmarks:
        rows = []
        for label in scores.labels:
            found = [run.results[benchmark, decoding] for run in scores.last
                     if run.label == label and (benchmark, decoding) in run.results]
            if not found:
                continue
            n = found[0]["n"]
            voted = n > 1 and found[0]["majority"] is not None
            mean = {key: np.mean([r[key] for r in found], axis=0).tolist() for key in found[0]
                    if key not in ("benchmark", "decoding", "conditions", "per_problem")
                    and (voted or not key.startswith("majority"))}
            rows.append([
                ("method", label), (f"pass@{n}", percent(mean[f"pass@{n}"], mean[f"pass@{n}_interval"])),
                *([(f"majority@{n}", percent(mean["majority"], mean["majority_interval"]))] if voted else []),
                ("tokens", f"{mean['length']:.1f}"), ("truncated, %", percent(mean["truncation_rate"])),
                ("boxed, %", percent(mean["format_rate"])), ("unparsable, %", f"{100 * mean['unparsable_rate']:.2f}"),
                ("markers", f"{mean['markers']:.2f}")])
        if rows:
            lines += [f"## Behaviour on {benchmark}, {decoding}", "", *markdown_table(rows), "",
                      "Means over seeds; in brackets the mean ends of the seeds' 95 % intervals by bootstrap over "
                      "problems. Boxed: answers with a box; unparsable: boxes that no grader can read, counted as "
                      "wrong; markers: the paper's reflection markers in an answer.", ""]
    return lines


def training_row(label, runs):
    """How the runs (rows of metrics.jsonl each) of a method went."""
    quarter = max(1, len(runs[0]) // 4)

    def mean(key, form, steps=slice(None)):
        values = [row[key] for run in runs for row in run[steps] if row.get(key) is not None]
        return format(np.mean(values), form) if values else ""

    def change(key, form):  # from the first to the last quarter of the steps
        ends = [mean(key, form, steps) for steps in (slice(quarter), slice(-quarter, None))]
        return " → ".join(ends) if all(ends) else ""

    return [("method", label), ("steps", str(len(runs[0]))),
            ("median s a step", f"{np.median([row['seconds'] for run in runs for row in run]):.2f}"),
            ("divergence a token", change("divergence", ".3f")), ("rollouts right", change("rollout_accuracy", ".2f")),
            ("key tokens", mean("key_token_share", ".3f")), ("largest weight", mean("weight_max", ".2f")),
            ("effective samples", mean("effective_sample_size", ".1f")),
            ("AUC for wrong", mean("weight_auc_wrong", ".2f"))]


def training_table(scores):
    """How the runs went, from their metrics.jsonl."""
    logs = {label: scores.logs(label, "metrics.jsonl") for label in scores.labels}
    rows = [training_row(label, runs) for label, runs in logs.items() if runs and "rollout_accuracy" in runs[0][0]]
    return rows and [
        "## Training", "", *markdown_table(rows), "",
        "Means over steps and seeds; `→` from the first to the last quarter of the steps; shares as fractions. AUC "
        "for wrong: the chance that the ReNIO weight of a wrong rollout exceeds that of a right one in the same "
        "batch, whether or not the method used the weight.", ""]


# ---------------------------------------------------------------------------------------------------------------------
# The report's figures, readable in print and without colour.


def figure(scores, name, panels, draw, alt, text, heading=None, columns=None, size=(5.0, 3.4)):
    """Write a figure of panels, each drawn by draw(axis, *panel), in rows of `columns` (without it all in one).

    size: of a panel, inches. Returns the lines of the report that show it with its text; none where it has no panel.
    """
    if not panels:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rc("axes", titlesize=10)
    pyplot.rc("legend", fontsize=8)
    columns = columns or len(panels)
    rows = len(panels) // columns
    sheet, axes = pyplot.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False,
                                  layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=True):
        draw(axis, *panel)
    path = scores.folder / f"{name}{scores.suffix}.png"
    sheet.savefig(path, dpi=130)
    pyplot.close(sheet)
    return [*([f"## {heading}", ""] if heading else []), f"![{alt}]({path.name})", "", *text, *[""] * bool(text)]


def draw_intervals(axis, points, scale=100, within=(-np.inf, np.inf), horizontal=False, **style):
    """Marks with 95 % intervals. points: of (place, values (seeds, problems) of each benchmark, [] leaves it out)."""
    points = [(place, average(values), *interval(*values, within=within)) for place, values in points if values]
    if points:
        places, means, low, high = np.array(points).T
        means, errors = scale * means, scale * np.abs([means - low, high - means])
        marks = dict(x=means, y=places, xerr=errors) if horizontal else dict(x=places, y=means, yerr=errors)
        axis.errorbar(**marks, **style)


def plot_scores(scores):
    """Score of each method, a mark a decoding; and over the training steps."""
    labels = [label for label in METHODS if label in scores.labels]

    def draw(axis, *benchmarks):
        for decoding, marker, fill, shift in (("sampled", "o", "black", -0.14), ("greedy", "D", "white", 0.14)):
            points = [(place + shift, scores.of(label, benchmarks, decoding)[1]) for place, label in enumerate(labels)]
            draw_intervals(axis, points, within=(0, 1), horizontal=True, fmt=marker, color="black",
                           markerfacecolor=fill, capsize=3, label=decoding)
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set(xlabel=f"{', '.join(benchmarks)}: right answers, % (bars: 95 % intervals)")
        axis.grid(axis="x", alpha=0.3)
        axis.legend(fontsize=10)

    panels = list(dict.fromkeys(tuple(benchmarks) for _, benchmarks, _ in scores.headline_columns()))
    return figure(scores, "scores", panels, draw, "Score of each method with its interval", [],
                  size=(6.5, 0.42 * len(labels) + 1.3)) + plot_steps(scores) + plot_errors(scores)


LINES = [dict(fmt="o-", color="black"), dict(fmt="s--", color="black"), dict(fmt="^:", color="grey")]


def draw_curves(axis, scores, lines, column, key="right", scale=100):
    """Lines over the training steps. lines: {name: label}; one that is scored at its end alone is a mark there."""
    _, benchmarks, decoding = column
    ends = {label: max((rows[-1]["step"] for rows in scores.logs(label, "metrics.jsonl") if rows), default=None)
            for label in lines.values()}
    span = max((step for label in ends for step in (*scores.steps(label), ends[label] or 0)), default=1)
    for shift, (style, (name, label)) in enumerate(zip(LINES, lines.items(), strict=False), start=-1):
        steps = scores.steps(label)
        points = [(step, scores.of(label, benchmarks, decoding, key, step)[1]) for step in steps]
        if steps:
            points.insert(0, (0, scores.of("base", benchmarks, decoding, key)[1]))
        elif ends[label]:
            points = [(ends[label], scores.of(label, benchmarks, decoding, key)[1])]
        draw_intervals(axis, [(step + 0.015 * span * shift, values) for step, values in points], scale, **style,
                       within=(0, 1 if scale == 100 else np.inf), markersize=4, capsize=2, linewidth=1, label=name)
    axis.grid(alpha=0.3)
    if key == "right":
        legend_above(axis)


def legend_above(axis):
    """A legend over the panel's curves, with room made for it."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** 0.15 if axis.get_yscale() == "log" else high + 0.15 * (high - low))
    axis.legend(loc="upper center", ncols=3, columnspacing=0.8, handlelength=1.8, fontsize=7)


def plot_steps(scores):
    """Scores of the main runs over their steps: plain, ReNIO and shuffled weights side by side."""
    def draw(axis, method, column):
        draw_curves(axis, scores, weighted(method), column)
        axis.set(xlabel="training step", ylabel="right answers, %", title=f"{method.upper()}: {column[0]}")

    methods = [m for m in ("opd", "opsd", "grpo")
               if any(len(scores.steps(label)) > 1 for label in weighted(m).values())]
    columns = scores.headline_columns()
    return figure(scores, "steps", [(m, column) for column in columns for m in methods], draw,
                  "Scores over the training steps",
                  ["Scores over the training steps; bars: 95 % intervals; step 0 is the base; a mark alone is a run "
                   "that is scored at its end only."], columns=len(methods), size=(4.2, 3.0))


def weighted(method, batch=""):
    """Labels of a method without weights, with ReNIO's, and with these given to other samples of the batch."""
    return {"plain": f"{method}{batch}", "ReNIO": f"{method}+renio{batch}",
            "shuffled": f"{method}+renio_shuffled{batch}"}


def plot_errors(scores):
    """Both kinds of error over the steps of the main runs: plain, ReNIO and shuffled weights side by side."""
    def draw(axis, key, method, decoding):
        draw_curves(axis, scores, weighted(method), (None, ["arith"], decoding), key)
        axis.set(xlabel="training step", ylabel=UNITS[key][0], title=f"{method.upper()}: {decoding}")
        axis.set_ylim(bottom=0)
        legend_above(axis)

    panels = [(f"{kind}_error", method, decoding) for kind in ERRORS for method in ("opd", "opsd")
              for decoding in scores.decodings if len(scores.steps(method)) > 1 and scores.micro]
    return figure(scores, "errors", panels, draw, "Two kinds of error over the training steps",
                  ["Wrong results on operations that the base was taught and on those it has to guess, its gaps, over "
                   "the training steps; bars: 95 % intervals; step 0 is the base."],
                  columns=len(panels) // 2, size=(3.4, 2.8))


ARMS = ("correct", "incorrect", "unfiltered")
# Of the filter study, by what labels have for it: its arms, and what figures and tables say of it. The runs published
# at micro scale have an unfiltered arm in matched, which filter_experiments.py no longer trains.
DESIGNS = {
    "": (ARMS, "each on its own problems, as in the paper"),
    "-matched": (ARMS, "on the same problems, each with right and wrong rollouts (a design that the paper lacks)"),
    "-hard": (ARMS[1:], "on the same problems, each with wrong rollouts (another that the paper lacks)"),
}


def arm_labels(method, design):
    """Labels of a design's arms, by the name that is shown."""
    return {arm if arm == "unfiltered" else f"{arm}-only": f"{method}{design}-{arm}" for arm in ARMS}


def plot_filter(scores):
    """Figures 1, 7 and 8: score, length and markers of each arm over the training steps, for each design."""
    return [line for design in DESIGNS for line in plot_arms(scores, design)] + plot_success(scores)


def plot_arms(scores, design):
    def draw(axis, method, benchmark, key, unit, scale):
        draw_curves(axis, scores, arm_labels(method, design), (None, [benchmark], decoding), key, scale)
        axis.set(xlabel="training step", ylabel=unit, title=f"{method.upper()}{design}: {benchmark}")

    decoding = scores.decodings[0]
    shown = [("right", "right answers, %", 100), ("tokens", "tokens an answer", 1), ("markers", "markers an answer", 1)]
    panels = [(method, benchmark, *what) for method in ("opd", "opsd") for benchmark in scores.benchmarks
              if any(len(scores.of(label, [benchmark], decoding, step=step)[0])
                     for label in arm_labels(method, design).values() for step in scores.steps(label)[:-1])
              for what in shown]
    text = [f"Figures 1, 7 and 8, the arms {DESIGNS[design][1]}: {decoding}; bars: 95 % intervals; step 0 is the base."]
    return figure(scores, f"figure1{design}", panels, draw, "Score, length and markers over the training steps by arm",
                  text, columns=3, size=(4.2, 3.0))


RATES = ("0", "to 1/4", "to 1/2", "to 3/4", "below 1", "1")  # bins of a student's success rate on a problem


def success_shares(scores, label):
    """Share of the problems in each of RATES, (6,), of a filter run's batches over steps and seeds; [] without counts.

    The rate is that of further rollouts by the student of that step.
    """
    counts = [count for rows in scores.logs(label, "metrics.jsonl") for row in rows
              for count in row.get("success_counts", [])]
    if not counts:
        return []
    rates = np.array(counts) / flags_of(scores.trained(label))[0]["success_draws"]
    return np.bincount(np.searchsorted([0, 0.25, 0.5, 0.75], rates) + (rates == 1), minlength=len(RATES)) / len(rates)


def plot_success(scores):
    """How hard the problems of each arm's batches are for its student, in each design."""
    def draw(axis, method, design):
        for i, (name, label) in enumerate(arm_labels(method, design).items()):
            if label in shares:
                axis.bar(np.arange(len(RATES)) + 0.28 * (i - 1), 100 * shares[label], 0.28, label=name,
                         color=("lightgrey", "black", "white")[i], edgecolor="black", linewidth=0.6)
        axis.set(xticks=range(len(RATES)), xticklabels=RATES, xlabel="success rate of the student on the problem",
                 ylabel="problems of the batches, %", title=f"{method.upper()}{design}")
        legend_above(axis)

    labels = [label for m in ("opd", "opsd") for design in DESIGNS for label in arm_labels(m, design).values()]
    shares = {label: found for label in labels if len(found := success_shares(scores, label))}
    panels = [(m, design) for m in ("opd", "opsd") for design in DESIGNS
              if any(label in shares for label in arm_labels(m, design).values())]
    rows = [[("run", label), *((f"{name}, %", f"{100 * share:.1f}") for name, share in zip(RATES, found, strict=True))]
            for label, found in shares.items()]
    return figure(scores, "success", panels, draw, "Success rates of the problems of each arm",
                  [*(markdown_table(rows) if rows else []), "",
                   "Problems of the arms' batches by the success rate of the arm's student at that step, over further "
                   "rollouts; checkpoint steps and seeds pooled."],
                  columns=len(DESIGNS) if len(panels) == 2 * len(DESIGNS) else None, size=(4.2, 3.0))


def plot_sweeps(scores):
    """Figure 6: scores over the clip and over the threshold of ReNIO under OPD."""
    def draw(axis, title, runs, column):
        name, benchmarks, decoding = column
        points = [(x, scores.of(scores.named(f"opd+renio-{end}"), benchmarks, decoding)[1]) for x, end in runs.items()]
        draw_intervals(axis, points, within=(0, 1), fmt="o-", color="black", capsize=3, linewidth=0.8,
                       label="with ReNIO")
        for label, line in (("opd", "--"), ("base", ":")):
            values = scores.of(label, benchmarks, decoding)[1]
            if values:
                axis.axhline(100 * average(values), color="black", linestyle=line, linewidth=1, label=label)
        axis.set(xticks=list(runs), xlabel=title, ylabel="right answers, %", title=name)
        axis.grid(alpha=0.3)
        axis.margins(x=0.1)
        legend_above(axis)

    columns = scores.columns()
    sweeps = [("clip of the log-ratio (threshold 0.8)", {2.0: "clip2.0", 2.5: "clip2.5", 3.0: "clip3.0"}),
              ("threshold (clip 3.0)", {0.6: "threshold0.6", 0.8: "clip3.0", 1.0: "threshold1.0"})]
    return figure(scores, "figure6", [(*sweep, column) for sweep in sweeps for column in columns], draw,
                  "Scores over clip and threshold", ["Figure 6: OPD with ReNIO; bars: 95 % intervals; lines: plain OPD "
                                                     "and the base."], columns=len(columns), size=(4.2, 3.0))


def plot_log_ratios(scores, rollouts):
    """Figure 3: how the log-ratios of the sampled tokens are distributed.

    rollouts: {method: rows of rollouts.jsonl of each run}; so too in the two figures below.
    """
    def draw(axis, label, values):
        axis.hist(values, bins=80, color="lightgrey", edgecolor="black", linewidth=0.4, log=True)
        flags = dict(threshold=0.8, log_ratio_clip=3.0) | next(iter(flags_of(scores.trained(label))), {})
        axis.axvline(flags["threshold"], color="black", linestyle="--", label=f"threshold {flags['threshold']}")
        axis.axvline(flags["log_ratio_clip"], color="black", linestyle=":", label=f"clip {flags['log_ratio_clip']}")
        axis.set(xlabel="log-ratio of student to teacher, nats", ylabel="sampled tokens", title=(
            f"{label.upper()}: {len(values):,} tokens, {100 * (values > flags['threshold']).mean():.1f} % above the "
            "threshold"))
        axis.legend()

    values = {label: np.array([x for run in runs for r in run for x in r["log_ratios"]])
              for label, runs in rollouts.items()}
    return figure(scores, "figure3", [(label, x) for label, x in values.items() if len(x)], draw,
                  "Histogram of log-ratios", ["All rollouts of the plain runs, over all steps and seeds."],
                  heading="Figure 3: log-ratios of the student's own tokens")


def weight_and_entropy(run):
    """ReNIO's weight and the teacher's mean entropy of each rollout, from the rows of a rollouts.jsonl."""
    return np.array([r["renio_weight"] for r in run]), np.array([r["teacher_entropy"] for r in run])


def plot_entropy(scores, rollouts):
    """Figure 5: the weight against the teacher's mean entropy."""
    def draw(axis, label, run):
        axis.plot(*weight_and_entropy(run)[::-1], ".", color="black", markersize=2, alpha=0.4)
        axis.set(xlabel="teacher's mean entropy a token, nats", ylabel="ReNIO weight, before normalizing",
                 yscale="log", title=label.upper())
        axis.grid(alpha=0.3)

    panels = [(label, [r for run in runs for r in run]) for label, runs in rollouts.items()]
    text = [f"{label.upper()}: rank correlation {rank_correlation(*weight_and_entropy(pooled)):+.2f} over "
            f"{len(pooled):,} rollouts, by seed "
            + ", ".join(f"{rank_correlation(*weight_and_entropy(run)):+.2f}" for run in rollouts[label]) + "."
            for label, pooled in panels]
    return figure(scores, "figure5", panels, draw, "Weight against entropy", [" ".join(text)],
                  heading="Figure 5: weight and the teacher's entropy")


def plot_weights(scores, rollouts):
    """Weights of right and of wrong rollouts, which the paper does not show."""
    def draw(axis, label, rows):
        weights, wrong = np.array([r["renio_weight"] for r in rows]), np.array([not r["right"] for r in rows])
        bins = np.geomspace(weights.min(), weights.max() * 1.001, 40)
        for which, name, style in ((~wrong, "right", dict(color="lightgrey", edgecolor="black", linewidth=0.4)),
                                   (wrong, "wrong", dict(histtype="step", color="black", linewidth=1.5))):
            axis.hist(weights[which], bins=bins, label=f"{name}: {which.sum():,}", **style)
        auc = scores.auc_within_batch(label)
        axis.set(xscale="log", yscale="log", xlabel="ReNIO weight, before normalizing", ylabel="rollouts",
                 title=label.upper() + (f": AUC for wrong within a batch {auc.mean():.3f}" if len(auc) else ""))
        legend_above(axis)

    graded = {label: [r for run in runs for r in run if r["right"] is not None] for label, runs in rollouts.items()}
    return figure(scores, "weights", [(label, rows) for label, rows in graded.items() if rows], draw,
                  "Weights of right and wrong rollouts",
                  ["Of the plain runs, over all steps and seeds; rollouts cut before an answer are left out. AUC: the "
                   "chance that the weight of a wrong rollout exceeds that of a right one of the same batch."],
                  heading="Weights of right and wrong rollouts")


def plot_seconds(scores):
    """Figure 4: mean seconds an optimizer step by method and length of the rollouts."""
    labels = [f"{m}{weight}{length}" for m in ("opsd", "opd") for length in ("", "@*") for weight in ("", "+renio")]
    means = {label: np.mean(seconds) for label in map(scores.named, [*labels, "grpo"])
             if (seconds := scores.seconds(label))}

    def draw(axis):
        bars = axis.barh(range(len(means)), means.values(), color="lightgrey", edgecolor="black")
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.margins(x=0.12)
        axis.set_yticks(range(len(means)), list(means))
        axis.invert_yaxis()
        axis.set(xlabel="seconds an optimizer step, mean over steps and seeds")

    rows = [[("method", label), ("ours, mean", f"{seconds:.3f}")] for label, seconds in means.items()]
    if scores.student == "Qwen3-1.7B":
        for row in rows:
            theirs = PUBLISHED_SECONDS.get(published_label(scores, row[0][1], True), "")
            row.append((f"{PAPER_FOR_ORDER if scores.micro else 'paper'}, on 4 H200", str(theirs)))
    return figure(scores, "figure4", [()] * bool(means), draw, "Seconds a step",
                  [*(markdown_table(rows) if rows else []), "",
                   "Mean over the steps but the first, which warms up. Steps are optimizer steps, of which GRPO makes "
                   "several on each batch of rollouts. Runs side by side on one machine slow each other, so that small "
                   "differences mean nothing here; `python tests/bench.py step` compares with and without the weight "
                   "in one process."],
                  heading="Figure 4: seconds a step", size=(6.5, 0.4 * len(means) + 1.2))


# ---------------------------------------------------------------------------------------------------------------------
# The report.


class Section(NamedTuple):
    """A table of the report: its methods, what is claimed of them, and its figure."""

    title: str
    labels: list
    claims: list
    figure: Callable | None = None  # of scores; returns the lines that show it
    by_length: bool = False  # compares lengths of rollouts


METHODS = ["base", "grpo", "opsd", "opsd+renio", "opd", "opd+renio", "opd-privileged", "opd+renio-privileged",
           "teacher", "base with solution"]
BATCH = "-batch128"  # ends the labels of runs with four times the batch
CENTRE = "opd+renio-clip3.0"  # of the sweeps, which the main run is unless it was made with --variant official
BATCHES = {"": "", BATCH: " at batch 128"}
SECTIONS = [
    Section("Tables 1 and 2: methods", METHODS, [
        Claim("OPSD improves the base", "opsd", "base"), Claim("OPD improves the base", "opd", "base"),
        Claim("ReNIO improves OPSD", "opsd+renio", "opsd"), Claim("ReNIO improves OPD", "opd+renio", "opd"),
        Claim("ReNIO improves OPD whose teacher reads the solution", "opd+renio-privileged", "opd-privileged"),
        Claim("OPSD with ReNIO beats GRPO", "opsd+renio", "grpo")], plot_scores),
    Section("Table 3: length of the rollouts",
            ["opsd", "opsd+renio", "opsd@*", "opsd+renio@*", "opd", "opd+renio", "opd@*", "opd+renio@*"],
            [Claim("ReNIO improves OPSD at the other length", "opsd+renio@*", "opsd@*"),
             Claim("ReNIO improves OPD at the other length", "opd+renio@*", "opd@*")], by_length=True),
    Section("Table 4: parts of the weight",
            ["opd", "opd+renio", "opd+renio-noclip", "opd+renio-nothreshold", "opd+renio-nonorm"],
            [Claim("the clip helps", "opd+renio", "opd+renio-noclip"),
             Claim("the threshold helps", "opd+renio", "opd+renio-nothreshold"),
             Claim("the batch normalization helps", "opd+renio", "opd+renio-nonorm")]),
    Section("Table 8: other weights", ["base", "opsd", "opsd+renio", "opsd+ts_sample", "opsd+st_token"],
            [Claim("ReNIO beats teacher-to-student sample weights", "opsd+renio", "opsd+ts_sample"),
             Claim("ReNIO beats student-to-teacher token weights", "opsd+renio", "opsd+st_token")]),
    Section("Figure 1: training on correct or incorrect rollouts",
            ["base", *(f"{m}{design}-{arm}" for m in ("opd", "opsd") for design, (arms, _) in DESIGNS.items()
                       for arm in arms)],
            [Claim(f"incorrect-only {does} {'unfiltered' if other == 'unfiltered' else 'correct-only'} in {m.upper()}"
                   f"{where}", f"{m}{design}-incorrect", f"{m}{design}-{other}", key)
             for key, does in (("right", "beats"), ("tokens", "makes longer answers than"),
                               ("markers", "makes more reflection markers than"))
             for m in ("opd", "opsd")
             for design, other, where in (("", "correct", ""),
                                          ("-matched", "correct", ", on the same problems (not in the paper)"),
                                          ("-hard", "unfiltered", ", on the same hard problems (not in the paper)"))],
            plot_filter),
    Section("Figure 6: sweeps",
            ["opd+renio-clip2.0", "opd+renio-clip2.5", CENTRE, "opd+renio-threshold0.6", "opd+renio-threshold1.0"],
            [Claim("clip 3.0 beats 2.0", CENTRE, "opd+renio-clip2.0"),
             Claim("clip 3.0 beats 2.5", CENTRE, "opd+renio-clip2.5"),
             Claim("threshold 0.8 beats 0.6", CENTRE, "opd+renio-threshold0.6"),
             Claim("threshold 0.8 beats 1.0", CENTRE, "opd+renio-threshold1.0")], plot_sweeps),
    Section("What the weight does: aiming and variance",
            [label for m in ("opd", "opsd") for batch in ("", BATCH) for label in weighted(m, batch).values()],
            [Claim(f"ReNIO improves {m.upper()} at batch 128", f"{m}+renio{BATCH}", f"{m}{BATCH}")
             for m in ("opd", "opsd")]
            + [Claim(f"{effect}: shuffled weights leave more errors on {what} than {others} in {m.upper()}{at}",
                     f"{m}+renio_shuffled{batch}", f"{m}{weighting}{batch}", f"{kind}_error")
               for effect, others, weighting in (("aiming", "ReNIO's", "+renio"), ("variance", "none", ""))
               for kind, what in ERRORS.items() for m in ("opd", "opsd") for batch, at in BATCHES.items()]
            + [Claim(f"{effect}: {better} shuffled weights in {m.upper()}", f"{m}{weighting}", f"{m}+renio_shuffled",
                     micro=False)  # micro is judged by kind of error, above
               for effect, better, weighting in (("aiming", "ReNIO beats", "+renio"), ("variance", "none beats", ""))
               for m in ("opd", "opsd")]),
    Section("Controls, which the paper lacks",
            ["opd", "opd+renio", "opd+correctness", "opd+iw", "opd-beta0.5", "opd+renio-beta0.5", "opd-beta1",
             "opd+renio-beta1", "opsd", "opsd+renio", "opsd+correctness", "opsd+pw", "opsd-beta0.5",
             "opsd+renio-beta0.5", "opsd-beta1", "opsd+renio-beta1", "opsd-nosolution"],
            [Claim("weighting wrong rollouts by their verdict improves OPD", "opd+correctness", "opd"),
             Claim("weighting wrong rollouts by their verdict improves OPSD", "opsd+correctness", "opsd"),
             Claim("IW-OPD's token weights improve OPD", "opd+iw", "opd"),
             Claim("PW-OPSD's token weights improve OPSD", "opsd+pw", "opsd"),
             *(Claim(f"ReNIO improves {m.upper()} with {name}", f"{m}+renio-beta{beta}", f"{m}-beta{beta}")
               for m in ("opd", "opsd") for beta, name in (("0.5", "JSD"), ("1", "reverse KL"))),
             Claim("OPSD improves the base without the solution too", "opsd-nosolution", "base"),
             Claim("the solution improves OPSD", "opsd", "opsd-nosolution")]),
]


def report(folder):
    """Write folder/report.md and its figures from every eval.json below it and the logs of their runs.

    Prints the scores of the methods, and where the report is.
    """
    lines, every = [], read_folder(folder)
    for scores in every:
        lines += [f"# Scores{' at micro scale' * scores.micro}{' made with other settings' * bool(scores.suffix)}", ""]
        if len(every) > 1 and not scores.suffix:
            lines += ["Runs scored with other settings have a chapter of their own, below.", ""]
        lines += chapter(scores)
        in_tables = {scores.named(label) for section in SECTIONS for label in section.labels}
        rows = [[("method", label), *((f"{title}, %", score_cell(scores, label, *what))
                                      for title, *what in scores.headline_columns())]
                for label in METHODS + [label for label in scores.labels if label not in in_tables]
                if label in scores.labels]
        print(*plain_table(rows), "", sep="\n")
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'report.md'}")


def publish(folder, target):
    """Report on the folder, and copy to `target` the report, its figures, and all that the report is made of.

    That is a .tar.gz for each folder in it: of the runs config.json, metrics.jsonl and rollouts.jsonl, and eval.json
    with numbers in place of the answers. Unpacked, they give the same report.
    """
    report(folder)
    target.mkdir(parents=True, exist_ok=True)
    for old in [path for path in target.iterdir() if path.name == "report.md" or path.suffix in (".png", ".gz")]:
        old.unlink()
    for path in [path for path in folder.iterdir() if path.suffix in (".md", ".png")]:
        shutil.copy(path, target)
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        with gzip.GzipFile(target / f"{part.name}.tar.gz", "wb", mtime=0) as packed, \
                tarfile.open(fileobj=packed, mode="w") as archive:
            logs = [path for log in part.rglob("metrics.jsonl")  # beside it, since a checkpoint's config is a model's
                    for name in ("config.json", "metrics.jsonl", "rollouts.jsonl")
                    if (path := log.with_name(name)).exists()]
            for path in sorted([*logs, *part.rglob("eval.json")]):
                data = summary(path) if path.name == "eval.json" else path.read_bytes()
                member = tarfile.TarInfo(str(path.relative_to(folder)))
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    print(f"published in {target}")


def summary(path):
    """An eval.json as bytes, with the sums of each problem in place of the problems and their answers."""
    run = json.loads(path.read_text(encoding="utf-8"))
    for result in run["results"]:
        if "problems" in result:  # else it was published before
            result["per_problem"] = sums_by_problem(result)
            del result["problems"]
    return json.dumps(run).encode()


def chapter(scores):
    """The lines of the report on runs with the same settings."""
    sections, claims, in_tables = [], [], set()
    for section in SECTIONS:
        labels = [label for label in map(scores.named, section.labels) if label in scores.labels]
        if in_tables.issuperset(labels):  # nothing that the tables before it lack
            continue
        in_tables.update(labels)
        sections += [f"## {section.title}", "", *score_table(scores, labels, section.by_length), ""]
        sections += section.figure(scores) if section.figure else []
        claims += section.claims
    others = [label for label in scores.labels if label not in in_tables]
    if others:
        sections += ["## Other runs", "", *score_table(scores, others), ""]
    rollouts = {label: runs for label in ("opd", "opsd") if (runs := scores.logs(label, "rollouts.jsonl"))}
    rows = verdict_rows(scores, claim_findings(scores, claims) + rollout_findings(scores, rollouts))
    return [*headline_lines(rows), *settings_lines(scores), *verdict_lines(rows, scores.benchmarks), *sections,
            *plot_log_ratios(scores, rollouts), *plot_entropy(scores, rollouts), *plot_weights(scores, rollouts),
            *plot_seconds(scores), *error_table(scores), *behaviour_table(scores), *training_table(scores)]


# ---------------------------------------------------------------------------------------------------------------------
# Command line.

BOTH = ["sampled", "greedy"]
SCALES = {  # settings for flags that are not given; math, code: the benchmarks of --task
    "micro": dict(math=["arith"], n=4, decoding=BOTH, max_new_tokens=58, batch_size=250, dtype="float32"),
    "small": dict(math=["products"], n=1, decoding=BOTH, max_new_tokens=80, batch_size=125, dtype="float32"),
    "one": dict(math=["gsm8k:250", "math500"], n=4, decoding=BOTH, max_new_tokens=2048, batch_size=256, thinking=False),
    "paper": dict(
        math=["aime24", "aime25", "hmmt25"], n=12, decoding=["sampled"], max_new_tokens=38912, batch_size=512
    ),
}
SCALES["one"]["code"] = SCALES["paper"]["code"] = ["humaneval+", "mbpp+"]  # with 4 answers each


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise renio.UserError(f"{message} (--help lists the flags)")


def make_parser():
    """The parser of an evaluation's flags, in groups."""
    usage, layout = "eval.py --scale SCALE --model MODEL --output RUN/eval.json", argparse.RawDescriptionHelpFormatter
    parser = Parser("eval.py", usage, __doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument_group("what is scored").add_argument
    add("--model", help="folder or hub name; an adapter's folder stands for the adapter on its base model")
    add("--adapter", type=os.path.normpath, help="folder of a peft adapter for --model")
    add("--checkpoints", type=os.path.normpath, help="score every checkpoint-N of this run, into RUN/eval.json")
    add = parser.add_argument_group("problems").add_argument
    add("--scale", choices=list(SCALES), help="settings for all flags that are not given (SCALES in eval.py)")
    add("--task", choices=["math", "code"], default="math", help="which of the scale's benchmarks")
    known = f"of {', '.join(BENCHMARKS)}, or files of problems and answers; gsm8k:250 takes the first 250 problems"
    add("--benchmarks", nargs="+", help=known)
    add("--data_dir", help="read benchmarks from files there instead of the hub")
    add("--limit", type=int, help="score only the first problems of each benchmark")
    add = parser.add_argument_group("answers").add_argument
    add("--n", type=int, help="sampled answers per problem; greedy decoding gives one")
    add("--decoding", nargs="+", choices=["sampled", "greedy"], help="one or both")
    add("--temperature", type=float, default=1.0, help="of sampled decoding")
    add("--top_p", type=float, default=0.95, help="nucleus of sampled decoding; 1: off")
    add("--top_k", type=int, default=0, help="sampled decoding draws from the k likeliest tokens; 0: off")
    add("--max_new_tokens", type=int, help="longest answer")
    add("--thinking", action=argparse.BooleanOptionalAction, help="thinking mode of the chat template")
    add("--privileged", action="store_true", help="put the worked solution in the prompt: scores OPSD's teacher")
    add("--seed", type=int, default=0, help="of the sampling")
    add = parser.add_argument_group("machine").add_argument
    add("--engine", choices=["transformers", "vllm"], default="transformers", help="what samples the answers")
    add("--dtype", choices=["float32", "bfloat16"], help="of the weights")
    add("--batch_size", type=int, help="answers sampled at a time; lower it where memory runs out")
    add("--vllm_memory", type=float, default=0.9, help="share of the GPU's memory for --engine vllm")
    add = parser.add_argument_group("result").add_argument
    add("--output", help="the .json file to write")
    add("--label", help="name in the report; without it that of the run or the model")
    add("--train_seed", type=int, default=0, help="seed of the training, for the report")
    return parser


def parse_args(argv):
    """The flags of an evaluation, with the scale's. Raises renio.UserError for values that make no sense."""
    args, need = make_parser().parse_args(argv), renio.need
    need(args.model or args.checkpoints, "name a --model, or a run as --checkpoints (--help shows examples)")
    need(args.output or args.checkpoints, "--output: name the .json file to write")
    need(not args.checkpoints or not (args.output or args.adapter), "--checkpoints: leave out --output and --adapter")
    if args.scale is None:
        check_folders(args)
        homes = renio.checkpoints(Path(args.checkpoints)) if args.checkpoints else [Path(args.model)]
        files = [home / "tokenizer.json" for home in homes if (home / "tokenizer.json").exists()]
        micro = any('"WordLevel"' in file.read_text(encoding="utf-8") for file in files)  # the arithmetic world's
        need(micro, f"--scale: name one of {', '.join(SCALES)}; it sets benchmarks, samples and lengths")
        args.scale = "micro"
    scale = dict(thinking=True, dtype="bfloat16") | SCALES[args.scale]
    need(args.benchmarks or args.task in scale, f"--task {args.task}: scale {args.scale} has none; name --benchmarks")
    args.benchmarks = args.benchmarks or scale[args.task]
    if all(benchmark_of(name).task == "code" for name in benchmark_limits(args)):
        scale["n"] = 4
    for flag in ("n", "decoding", "max_new_tokens", "thinking", "dtype", "batch_size"):
        if getattr(args, flag) is None:
            setattr(args, flag, scale[flag])
    for flag in ("n", "limit", "max_new_tokens", "batch_size", "temperature", "top_p"):
        value = getattr(args, flag)
        need(value is None or value > 0, f"--{flag} {value}: must be above 0 (greedy: --decoding greedy)")
    args.decoding = [decoding for decoding in BOTH if decoding in args.decoding]
    if args.engine == "vllm":
        renio.need_vllm("--engine")
    place = Path(args.checkpoints or args.adapter or args.model)
    args.label = args.label or (place.parent.name if place.name == "final" else place.name)  # a run's name
    args.output = Path(args.output or place / "eval.json")
    name = args.output.stem + ".answers.jsonl"
    args.answers = args.output.with_name("answers.jsonl" if args.output.name == "eval.json" else name)
    return args


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    kept = "every answer that has ended is kept, and the same command goes on from there"
    try:
        match words:
            case ["judge"]:
                judge()
            case ["report", folder]:
                report(Path(folder))
            case ["compare", *files]:
                compare(files)
            case ["show", run]:
                show(Path(run))
            case ["show", run, "--step", step] if step.isdecimal():
                show(Path(run), int(step))
            case ["report" | "show" as command, *_]:
                raise renio.UserError(f"{command} takes one folder{', and --step N' if command == 'show' else ''}")
            case _:
                evaluate(parse_args(words))
    except ModuleNotFoundError as error:
        sys.exit(f"eval.py: the package {error.name} is not installed: {SET_UP}")
    except KeyboardInterrupt:
        sys.exit(f"eval.py: interrupted; {kept}")
    except OSError as error:
        sys.exit(f"eval.py: {error.strerror or error}{f': {error.filename}' if error.filename else ''}; {kept}")
    except renio.UserError as error:
        sys.exit(f"eval.py: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        sys.exit(f"eval.py: {str(error).splitlines()[0]} Lower --batch_size; {kept}")


if __name__ == "__main__":
    main()
