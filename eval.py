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
import hashlib
import importlib
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
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
# Scores as one DataFrame. pandas, scipy and matplotlib are imported where needed: the judge of a program starts fast.

UNTRAINED = ["base", "base-with-solution", "teacher"]  # labels of models that no run of their own trains
DECODINGS = {"sampled": "temperature 1", "greedy": "greedy"}
CONDITIONS = ["temperature", "top_p", "top_k", "max_new_tokens", "thinking", "engine", "dtype"]
FLAGS = dict(  # training flags that stand at a row where most runs do not share them, unless its label has this part
    log_ratio_clip="clip", threshold="threshold", weight_norm="norm", batch_size="batch", beta="beta", entry_clip="/",
    prefix_tokens="/", variant="/", learning_rate="/", max_steps="/", lora_r="/", temperature="/")  # fmt: skip
TRAINING = "divergence rollout_accuracy truncation_rate key_token_share weight_max effective_sample_size".split()
FINDERS = dict(  # scores of a rollout, and in columns auc_... of scores.csv how well each finds the incorrect ones
    weight="ReNIO's weight", mean_log_ratio="mean log-ratio over all tokens", max_log_ratio="largest log-ratio",
    key_tokens="number of key tokens", student="low mean log-probability, student",
    teacher="low mean log-probability, teacher", entropy="the teacher's mean entropy", length="length")  # fmt: skip


def read_scores(folder):
    """Every eval.json below a folder, else its scores.csv, as a DataFrame: a row a checkpoint, benchmark, decoding."""
    import pandas as pd

    paths = sorted(folder.rglob("eval.json")) or sorted(folder.glob("scores.csv"))
    if paths and paths[0].name == "scores.csv":
        return pd.read_csv(paths[0], dtype=dict(settings=str)).fillna(dict(settings=""))
    if not paths:
        raise renio.UserError(f"report {folder}: it holds no eval.json and no scores.csv; score a run first")
    runs = [(read_evaluation(path), training_columns(path.parent)) for path in paths]
    scores = pd.DataFrame([row | columns for rows, columns in runs for row in rows])
    run = ["label", "seed", "step", "benchmark", "decoding"]
    for label, seed, *_ in scores.loc[scores.duplicated(run), run].values:
        raise renio.UserError(f"report {folder}: two runs are called {label} with seed {seed}; move one elsewhere")
    scores["task"] = ["code" if name in ("humaneval+", "mbpp+") else "math" for name in scores.benchmark]
    last = scores.groupby(["label", "seed", "task"]).step.transform("max")
    scores["last"] = scores.step.isna() | (scores.step == last)
    scores["settings"] = unusual_settings(scores)
    scores["conditions"] = scores.conditions.where(scores["last"], "")  # long, and the same at each step
    if scores.seed.nunique() == 1:
        scores[["low", "high"]] = [100 * np.array(bootstrap(values)) for values in scores.per_problem]
    return scores.drop(columns=["per_problem", "flags"])


def read_evaluation(path):
    """The rows of a file that eval.py wrote, one a benchmark and decoding of a checkpoint. Shares are in percent."""
    shares = dict(score="avg", truncated="truncation_rate", boxed="format_rate", taught_error="taught_error")
    rows, shares["gap_error"] = [], "gap_error"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        settings = run["settings"]
        conditions = ", ".join(f"{name} {settings[name]}" for name in CONDITIONS if name in settings)
        for result in run["results"]:
            row = dict(label=run["label"], seed=run["train_seed"], step=result["step"], benchmark=result["benchmark"])
            row |= dict(decoding=result["decoding"], n=result["n"], problems=len(result["per_problem"]))
            row |= {name: 100 * result[key] for name, key in shares.items() if result.get(key) is not None}
            row |= dict(tokens=result["length"], markers=result["markers"], minutes=result["seconds"] / 60)
            row |= dict(checksum=settings.get("checksums", {}).get(row["benchmark"]), model=settings.get("model"))
            rows.append(row | dict(conditions=conditions, per_problem=result["per_problem"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise renio.UserError(f"{path}: not scores of this eval.py ({problem}); score the run again") from None
    return rows


def unusual_settings(scores):
    """A text a row: what most rows do not share of training flags, unless the label says it, and of scoring."""
    texts = scores.label.map(lambda label: "")
    distilled = scores["flags"].map(lambda flags: flags.get("method") in ("opd", "opsd"))
    for name, part in FLAGS.items():
        values = scores["flags"].map(lambda flags, name=name: f"{name} {flags.get(name)}")
        unusual = distilled & (values != Counter(values[distilled]).most_common(1)[0][0] if any(distilled) else False)
        unusual &= ~scores.label.str.contains(part, regex=False)
        texts[unusual] += values[unusual] + "; "
    usual = scores.groupby(["benchmark", "decoding"]).conditions.transform(lambda values: values.mode()[0])
    texts[scores.conditions != usual] += "scored with " + scores.conditions + "; "
    return texts.str.removesuffix("; ")


def read_lines(path):
    """The rows of a .jsonl file as a DataFrame, an empty one where there is no such file."""
    import pandas as pd

    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return pd.DataFrame([json.loads(line) for line in text.splitlines()])


def training_columns(folder):
    """What the files of a run say: its flags, means over the steps, how well scores find its incorrect rollouts."""
    from scipy import stats

    config = folder / "config.json"
    flags = json.loads(config.read_text(encoding="utf-8"))["flags"] if config.exists() else {}
    columns = dict(flags=flags, prefix_tokens=flags.get("prefix_tokens"), train_minutes=0.0)
    metrics, rollouts = read_lines(folder / "metrics.jsonl"), read_lines(folder / "rollouts.jsonl")
    if "rollout_accuracy" in metrics:
        columns |= {name: metrics[name].mean() for name in TRAINING if name in metrics}
        columns |= dict(train_minutes=metrics.seconds.sum() / 60, seconds_per_step=metrics.seconds[1:].mean())
    if "renio_weight" not in rollouts:
        return columns
    weight, entropy = rollouts.renio_weight, rollouts.teacher_entropy
    finders = dict(weight=weight, entropy=entropy, length=rollouts.completion.map(len), key_tokens=rollouts.key_tokens)
    finders |= dict(mean_log_ratio=rollouts.log_ratios.map(np.mean), max_log_ratio=rollouts.log_ratios.map(max))
    finders |= {side: -rollouts[f"{side}_logprob"] for side in ("student", "teacher") if f"{side}_logprob" in rollouts}
    graded = rollouts.correct.notna()
    steps, incorrect = rollouts.step[graded], ~rollouts.correct[graded].astype(bool)
    columns |= {f"auc_{name}": auc_within_batch(steps, values[graded], incorrect) for name, values in finders.items()}
    share = weight[graded] / weight[graded].groupby(steps).transform("sum")  # Eq. 8 compares within a batch
    columns["incorrect_rollouts"] = 100 * incorrect.mean()
    columns["incorrect_weight"] = 100 * share[incorrect].sum() / share.sum()
    clipped = weight >= 0.999 * weight.max()  # rounding leaves the clip's weight a little apart
    groups = dict(one=weight == 1, between=(weight > 1) & ~clipped, clipped=(weight > 1) & clipped)
    columns |= {f"entropy_{name}": entropy[group].mean() for name, group in groups.items()}
    return columns | dict(entropy_rho=stats.spearmanr(weight, entropy).statistic)


def auc_within_batch(steps, values, incorrect):
    """Chance that an incorrect rollout has a larger value than a correct one of its step; mean over steps with both."""
    ranks = values.groupby(steps).rank().where(incorrect, 0).groupby(steps).sum()
    n_incorrect, n_correct = incorrect.groupby(steps).sum(), (~incorrect).groupby(steps).sum()
    pairs = (n_incorrect * n_correct).where(lambda count: count > 0)
    return ((ranks - n_incorrect * (n_incorrect + 1) / 2) / pairs).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Statistics. Intervals are 95 %: over training seeds Student's t, of one run the bootstrap over problems.


def by_seed(scores, decoding, task="math"):
    """Scores at the last step, means over the task's benchmarks, as a DataFrame: a row a seed, a column a label."""
    rows = scores[scores["last"] & (scores.decoding == decoding) & (scores.task == task)]
    counts = rows.benchmark.value_counts()
    rows = rows[rows.benchmark.isin(counts.index[2 * counts >= counts.max()])]  # not what few runs are scored on
    table = rows.pivot(index=["seed", "label"], columns="benchmark", values="score")
    table = table.mean(axis=1, skipna=False).unstack()
    for label in [label for label in UNTRAINED if label in table and table[label].count() == 1]:
        table[label] = table[label].max()  # one model, scored once, stands beside each seed
    return table


def difference(table, label, other):
    """label − other for each seed that both have; nothing where one of the two is missing."""
    if label not in table or other not in table:
        return np.array([])
    return (table[label] - table[other]).dropna().round(9).to_numpy()


def interval(values):
    """Student's interval of a mean over seeds and its two-sided p-value; None over fewer than three, or equal ones."""
    from scipy import stats

    if len(values) < 3 or np.ptp(values) == 0:
        return None
    test = stats.ttest_1samp(values, 0)
    return *test.confidence_interval(0.95), float(test.pvalue)


def bootstrap(values):
    """Interval of a mean over problems."""
    from scipy import stats

    return stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval


def verdict(values):
    """What the gains of a claim, an entry a seed, say of it."""
    ends = interval(values)
    if ends is None:
        return ["not run", "one seed", "two seeds", "no spread"][min(len(values), 3)]
    if ends[0] <= 0 <= ends[1]:
        return "no effect"
    return "holds" if ends[0] > 0 else "opposite"


def cell(values, form="+.1f", within=(-math.inf, math.inf)):
    """A mean over seeds with its interval, within bounds, as text; of two seeds both values, as they give none."""
    if len(values) == 0:
        return "–"
    numbers = values if len(values) == 2 else [np.mean(values), *(interval(values) or ())[:2]]
    texts = [format(number, form).replace("-", "−") for number in np.clip(numbers, *within)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ", ".join(texts)


def compare(words):
    """Print the gains of B over A. words: files A and B, paired by problem; or several, vs, several, paired by seed."""
    from scipy import stats

    place = words.index("vs") if "vs" in words else 1
    sides = [words[:place], [word for word in words[place:] if word != "vs"]]
    if not all(sides) or ("vs" not in words and len(words) != 2):
        raise renio.UserError("compare takes two files that eval.py wrote; or several, vs, and several")
    rows, pairs = [{}, {}], {}  # (benchmark, decoding, seed) -> row; (benchmark, decoding) -> pairs of rows
    for own, paths in zip(rows, sides, strict=True):
        for row in [row for path in paths for row in read_evaluation(Path(path))]:
            key = row["benchmark"], row["decoding"], row["seed"] if "vs" in words else 0
            if key not in own or (row["step"] or 0) >= (own[key]["step"] or 0):  # the last step counts
                own[key] = row
    for key in [key for key in rows[0] if key in rows[1]]:
        pairs.setdefault(key[:2], []).append((rows[0][key], rows[1][key]))
    if not pairs:
        raise renio.UserError("compare: the two sides share no benchmark and decoding, or no training seed")
    for (benchmark, decoding), own in pairs.items():
        every, gains = [row for pair in own for row in pair], np.array([b["score"] - a["score"] for a, b in own])
        if len({(row["checksum"], row["problems"]) for row in every}) > 1:
            raise renio.UserError(f"compare: the two sides were scored on different problems of {benchmark}")
        text, p_value = f"{cell(gains)} points, training seeds: {len(gains)}", (interval(gains) or [math.nan])[-1]
        if len(own) == 1:
            gains = 100 * np.subtract(every[1]["per_problem"], every[0]["per_problem"])
            p_value = stats.permutation_test((gains,), np.mean, permutation_type="samples", rng=0).pvalue
            text = "{:+.1f} [{:+.1f}, {:+.1f}] points, over problems alone".format(gains.mean(), *bootstrap(gains))
        means = [f"{every[k]['label']} {np.mean([row['score'] for row in every[k::2]]):.1f}" for k in (0, 1)]
        note = " | ".join(sorted({row["conditions"] for row in every}))
        note = f"; scored with different settings: {note}" if "|" in note else ""
        text += "" if math.isnan(p_value) else f", p = {p_value:.4f}"
        print(f"{benchmark}, {DECODINGS[decoding]}: {means[1]} − {means[0]} = {text.replace('-', '−')}{note}")


# ---------------------------------------------------------------------------------------------------------------------
# The paper's claims and tables, ours beside them.

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
for _student, _, _pairs in (line.partition(": ") for line in PUBLISHED_SCORES.replace("\n ", " ").strip().splitlines()):
    for _label, *_values in map(str.split, _pairs.split(",")):
        for _task, _value in zip(("math", "code"), _values, strict=False):
            PUBLISHED.setdefault((_student, _task), {})[_label] = float(_value)
BOTH = ("opsd", "opd")
CLAIMS = [  # what the paper claims, the target of run_all.sh that makes it, the label that should be above, the other
    *((f"{m.upper()} beats the base (Tables 1, 2)", "main", m, "base") for m in BOTH),
    ("OPSD with ReNIO beats GRPO (Table 1)", "main", "opsd+renio", "grpo"),
    *((f"ReNIO improves {m.upper()} (Tables 1, 2)", "main", f"{m}+renio", m) for m in BOTH),
    *((f"ReNIO improves {m.upper()}, other length (Table 3)", "table3", f"{m}+renio@*", f"{m}@*") for m in BOTH),
    ("the clip helps (Table 4)", "table4", "opd+renio", "opd+renio-noclip"),
    ("the threshold helps (Table 4)", "table4", "opd+renio", "opd+renio-nothreshold"),
    ("the batch norm helps (Table 4)", "table4", "opd+renio", "opd+renio-nonorm"),
    ("S/T beats T/S weights (Table 8)", "table8", "opsd+renio", "opsd+ts_sample"),
    ("sample beats token weights (Table 8)", "table8", "opsd+renio", "opsd+st_token"),
    *(
        (f"incorrect rollouts teach {m.upper()} more (Figure 1)", "figure1", f"{m}-incorrect", f"{m}-correct")
        for m in BOTH
    ),
    *((f"high weight, low teacher entropy, {m.upper()} (Figure 5)", "main", m, None) for m in BOTH),
]
METHODS = ["base", "grpo", "opsd", "opsd+renio", "opd", "opd+renio"]
CONTROLS = [  # the name, and what is put behind METHOD on either side
    ("ReNIO", "+renio", ""), ("oracle: weight 20 where incorrect, else 1", "+correctness", ""),
    ("ReNIO's weights, dealt at random", "+renio_shuffled", ""), ("ReNIO, batch 128", "+renio-batch128", "-batch128"),
    ("random weights, batch 128", "+renio_shuffled-batch128", "-batch128"), ("ReNIO, other length", "+renio@*", "@*"),
    ("ReNIO, JSD", "+renio-beta0.5", "-beta0.5"), ("ReNIO, reverse KL", "+renio-beta1", "-beta1"),
    ("ReNIO, teacher reads the solution", "+renio-privileged", "-privileged"),
]  # fmt: skip


def run_values(scores, label, column):
    """A column of training, an entry a seed that has it."""
    rows = scores[(scores.label == label) & (scores.task == "math")].drop_duplicates("seed")
    return rows[column].dropna().to_numpy() if column in rows else np.array([])


def scorecard(scores, tables, student):
    """The claims, a dict each: claim, target, paper (text), gains (an array a decoding), verdict, stands after Holm."""
    found, published = [], PUBLISHED.get((student, "math"), PUBLISHED["Qwen3-1.7B", "math"])
    for claim, target, label, other in CLAIMS:
        gains, paper = [difference(table, label, other) for table in tables.values()], "ρ < 0"
        if other:
            paper = [published.get(paper_label(scores, x), math.nan) for x in (label, other)]
            paper = f"{paper[0] - paper[1]:+.2f}".replace("+nan", "")
        else:
            gains[0] = -run_values(scores, label, "entropy_rho")
        found.append(
            dict(claim=claim, target=target, paper=paper, gains=gains, verdict=verdict(gains[0]), stands=False)
        )
    tested = [claim for claim in found if interval(claim["gains"][0])]
    for rank, claim in enumerate(sorted(tested, key=lambda claim: interval(claim["gains"][0])[2])):  # Holm 1979
        if interval(claim["gains"][0])[2] > 0.05 / (len(tested) - rank):
            break
        claim["stands"] = True
    return found


def paper_label(scores, label, in_table_of_lengths=False):
    """The paper's label of a run. Its main rollouts are the short ones; ours may be those of METHOD@*."""
    swapped = scores.prefix_tokens[scores.label.str.endswith("@*")].max() < 1024
    if label.endswith("@*"):
        return label.replace("@*", "" if swapped else "@4096")
    return f"{label}@4096" if in_table_of_lengths and swapped else label


def markdown_table(header, rows):
    """Lines of a table. header: texts; rows: lists of texts."""
    return ["", *(f"|{'|'.join(row)}|" for row in [header, ["---"] * len(header), *rows]), ""]


def scorecard_lines(scores, claims):
    rows, minutes = [], scores.groupby(["label", "seed"]).agg(dict(minutes="sum", train_minutes="max"))
    minutes = minutes.sum(axis=1).groupby("label").mean()
    for claim in claims:
        ours = [cell(-gains, "+.2f") if "ρ" in claim["paper"] else cell(gains) for gains in claim["gains"]]
        ours[0] = f"**{ours[0]}**" if claim["stands"] else ours[0]
        labels = {label for _, target, *pair in CLAIMS if target == claim["target"] for label in pair if label}
        cost = f", {minutes[list(labels)].sum():.1f}" if labels <= set(minutes.index) else ""
        said = claim["verdict"] if claim["verdict"] != "one seed" or scores.seed.nunique() > 1 else ""
        rows.append([said, claim["claim"], claim["paper"], *ours, claim["target"] + cost])
    header = ["", "the paper's claim", "paper", *(f"ours, {name}" for name in DECODINGS.values()), "target, minutes"]
    return ["## Scorecard", *markdown_table(header, rows), NOTES["scorecard"], ""]


def row_name(scores, label):
    """The label; behind it, in brackets, settings that its runs do not share with most others."""
    rows = scores[(scores.label == label) & scores["last"] & (scores.settings != "")]
    texts = [f"{text}, seeds {', '.join(map(str, part.seed.unique()))}" for text, part in rows.groupby("settings")]
    return f"{label} ({'; '.join(texts)})" if texts else label


def table_lines(scores, tables, student, title, target, rows, task="math"):
    """A table of the paper, ours beside it, over the seeds of all rows. rows: (label, label it is compared with)."""
    published = PUBLISHED.get((student, task), PUBLISHED["Qwen3-1.7B", task])
    seeds, shown, lines, same, other_sign = set(), [], [], [], []
    for row in rows:
        own = set(tables["sampled"][row[0]].dropna().index) if row[0] in tables["sampled"] else set()
        if own & (seeds or own):
            seeds, shown = own & (seeds or own), [*shown, row]
    if not {label for label, _ in shown}.difference([] if target == "main" else METHODS):
        return [f"## {title}", "", f"Not run: `bash run_all.sh {target}`.", ""]
    tables = {name: table.loc[table.index.isin(seeds)] for name, table in tables.items() if len(table)}
    for label, other in shown:
        paper = [published.get(paper_label(scores, x, target == "table3"), math.nan) for x in (label, other or "")]
        texts = [row_name(scores, label), f"{paper[0]:.2f}", f"{paper[0] - paper[1]:+.2f}"]
        for table in tables.values():
            gains = cell(difference(table, label, other)) if other else ""
            texts += [f"{table[label].mean():.1f}" if label in table else "", gains]
        lines.append([text.replace("+nan", "").replace("nan", "") for text in texts])
        if other in tables["sampled"] and not math.isnan(paper[0] - paper[1]):
            agrees = difference(tables["sampled"], label, other).mean() * (paper[0] - paper[1]) > 0
            (same if agrees else other_sign).append(label)
    missing = [label for label, other in rows if (label, other) not in shown]
    text = f"Signs as in the paper at temperature 1: {len(same)} of {len(same + other_sign)}"
    text += f" (not {', '.join(other_sign)})" if other_sign else ""
    text += f". Seeds: {', '.join(map(str, sorted(seeds)))}. " + (f"Not run: {', '.join(missing)}." if missing else "")
    header = ["", "paper", "difference", *(text for name in tables for text in (DECODINGS[name], "difference"))]
    return [f"## {title}", *markdown_table(header, lines), text, ""]


def paper_tables():
    """The paper's tables: (title, target, rows for table_lines)."""
    lengths, arms = [], []
    for method in BOTH:
        for tail in ("@*", ""):
            lengths += [(f"{method}{tail}", None), (f"{method}+renio{tail}", f"{method}{tail}")]
        for tail in ("", "-mixed"):
            arms += [(f"{method}-correct{tail}", None), (f"{method}-incorrect{tail}", f"{method}-correct{tail}")]
    first = [("base", None), *((label, "base") for label in METHODS[1:])]
    parts = [(f"opd{tail}", "opd+renio") for tail in ("+renio-noclip", "+renio-nothreshold", "+renio-nonorm", "")]
    weights = [(f"opsd{tail}", "opsd+renio") for tail in ("+ts_sample", "+st_token", "")]
    return [
        ("Tables 1 and 2: methods, against the base", "main", first),
        ("Table 3: two lengths of rollouts, ReNIO against none", "table3", lengths),
        ("Table 4: parts of the weight, against opd+renio", "table4", [("opd+renio", None), *parts]),
        ("Table 8: other weights, against opsd+renio", "table8", [("opsd+renio", None), *weights]),
        ("Figure 1: incorrect against correct rollouts", "figure1", arms),
    ]


def control_lines(scores, tables):
    """What each control gains over plain distillation; how well ReNIO's weight and simpler scores find mistakes."""
    rows = []
    for name, *tails in CONTROLS:
        gains = [difference(table, *(m + tail for tail in tails)) for m in BOTH for table in tables.values()]
        if any(map(len, gains)):
            rows.append([name, str(max(map(len, gains))), *map(cell, gains)])
    header = ["against plain", "seeds", *(f"{m.upper()}, {name}" for m in BOTH for name in DECODINGS.values())]
    lines, rows = ["## Controls", *markdown_table(header, rows)] if rows else [], []
    for key in [key for key in FINDERS if f"auc_{key}" in scores]:
        rows.append([FINDERS[key], *(cell(run_values(scores, m, f"auc_{key}"), ".3f", (0, 1)) for m in BOTH)])
    finders = markdown_table(["AUC", "OPSD", "OPD"], rows)
    title = "## How well do simpler scores find incorrect rollouts?"
    return [*lines, title, *finders, NOTES["finders"], ""] if rows else lines


def findings(scores, tables, claims):
    """What came out, in five sentences made from the numbers, whichever way they point."""

    def gain(tail, plain="", decoding="sampled"):
        gains = {m.upper(): difference(tables[decoding], m + tail, m + plain) for m in BOTH}
        return " and ".join(f"{cell(values)} in {m}" for m, values in gains.items() if len(values)) or "not run"

    names = ["incorrect_rollouts", "incorrect_weight", *(f"auc_{key}" for key in FINDERS)]
    facts = {name: values.mean() for name in names if len(values := run_values(scores, "opd", name))}
    finds = NOTES["finds"] if "auc_weight" in facts else ""
    facts["best"] = max(
        (key for key in FINDERS if f"auc_{key}" in facts), key=lambda key: facts[f"auc_{key}"], default=""
    )
    facts |= dict(score=FINDERS.get(facts["best"]), best_auc=facts.get(f"auc_{facts['best']}"))
    pairs = [(m + tail, m + plain) for _, tail, plain in CONTROLS if tail == f"+renio{plain}" for m in BOTH]
    signs = [[g.mean() > 0 for pair in pairs if len(g := difference(table, *pair))] for table in tables.values()]
    facts |= dict(renio=gain("+renio"), greedy=gain("+renio", "", "greedy"), oracle=gain("+correctness"))
    up, up_greedily = (f"{sum(sign)} of {len(sign)}" for sign in signs)
    facts |= dict(random=gain("+renio_shuffled"), up=up, up_greedily=up_greedily)
    facts |= dict(arms=gain("-incorrect", "-correct"), mixed=gain("-incorrect-mixed", "-correct-mixed"))
    said = Counter(claim["verdict"] for claim in claims)
    facts |= dict(claims=len(claims), verdicts=", ".join(f"{count} {name}" for name, count in said.items()))
    return [(finds + NOTES["findings"]).format(**facts), ""]


NOTES = {
    "finds": "Of OPD's rollouts {incorrect_rollouts:.0f} % are incorrect; they get {incorrect_weight:.0f} % of ReNIO's "
    "weight, whose AUC within a batch is {auc_weight:.2f} (best score: {score}, {best_auc:.2f}). ",
    "findings": "ReNIO's gain over plain distillation in points at temperature 1: {renio}; greedily: {greedy}. Over "
    "settings (method, length, batch, divergence) it is above 0 in {up} at temperature 1 and in {up_greedily} "
    "greedily. An oracle's weights gain {oracle}; ReNIO's weights dealt at random {random}. Training on incorrect "
    "rather than correct rollouts gains {arms}; on the same problems {mixed}. The paper's {claims} claims: {verdicts}.",
    "scorecard": "Points gained, paired by seed; ρ: rank correlation. A verdict needs three seeds at temperature 1. "
    "Bold: stands after Holm's correction over these claims. Minutes: to train and score a seed of the claim's runs.",
    "finders": "The chance that an incorrect rollout scores above a correct one of its batch, in plain runs.",
    "arith": "Toy models (student 0.37 million weights, teacher 0.64 million) write answers of 23 tokens, where one "
    "wrong digit makes an answer incorrect; that alone makes a high AUC likely. All weights are trained, with "
    "warm-up and linear decay, not the paper's LoRA and constant rate. The recipe was fixed on seeds 100 to 103. But "
    "seeds 0 and 1 were seen before answers lost a last line, which OPD made wrong, most with ReNIO. ",
    "products": "SmolLM2-135M-Instruct, from 4-bit weights where tests/make_smollm2.py made it; the teacher is that "
    "model, fine-tuned. Seeds share both, so intervals are over the student's training alone. Rates decay linearly. ",
    "trust": "Scores are percent correct at the fixed last step; the paper's are of Qwen3-1.7B or the student above, "
    "best of four checkpoints, one training. Intervals are 95 %, Student's t over training seeds, on these problems. "
    "Compare signs and order, not sizes. Every run, lengths, errors, training: [tables.md](tables.md); all numbers: "
    "[scores.csv](scores.csv).\n",
    "tables": "Over all seeds of a row. With one seed in all, brackets are a bootstrap over problems.",
}


def report(folder):
    """Write report.md, tables.md, scores.csv and figures into a folder, or into each of its students' folders."""
    students = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("seed*"))]
    for place in [folder] if any(folder.glob("seed*")) or not students else students:
        scores = read_scores(place)
        scores.to_csv(place / "scores.csv", index=False, float_format="%.6g")
        if scores.label.str.extract("@(.*)")[0].nunique() == 1:
            scores["label"] = scores.label.str.replace("@.*", "@*", regex=True)  # the row's settings name the length
        tables = {decoding: by_seed(scores, decoding) for decoding in DECODINGS}
        figures = draw_figures(place, scores, tables)
        (place / "report.md").write_text("\n".join(report_lines(place.name, scores, tables, figures)), encoding="utf-8")
        (place / "tables.md").write_text("\n".join(tables_lines(scores, figures)), encoding="utf-8")
        for row in score_rows(scores, [*METHODS, *UNTRAINED[1:]]):
            print("".join(f"{text:<26}" for text in row).rstrip())
        print(f"\nwrote {place / 'report.md'}")


def report_lines(name, scores, tables, figures):
    claims = scorecard(scores, tables, name)
    lines = [f"# Does ReNIO reproduce? {name}", "", *findings(scores, tables, claims)]
    if scores.seed.nunique() == 1:
        targets = " ".join(dict.fromkeys(claim["target"] for claim in claims if claim["verdict"] != "not run"))
        lines += [f'**One seed: no verdict.** More: `SEEDS="0 1 2" bash run_all.sh {targets or "main"}`.', ""]
    lines += figures.get("headline", []) + scorecard_lines(scores, claims)
    code = {decoding: by_seed(scores, decoding, "code") for decoding in DECODINGS}
    for title, target, rows in paper_tables():
        lines += table_lines(scores, tables, name, title, target, rows)
        if target == "main" and len(code["sampled"]):
            lines += table_lines(scores, code, name, f"{title}, code", target, rows, task="code")
        lines += figures.get("scores" if target == "main" else target, [])
    lines += control_lines(scores, tables) + figures.get("figure5", []) + figures.get("rollouts", [])
    text = "".join(NOTES[benchmark] for benchmark in ("arith", "products") if benchmark in set(scores.benchmark))
    later = tables["sampled"].drop(index=[0, 1], errors="ignore")
    if "arith" in set(scores.benchmark) and len(later) > 2:
        gains = [f"{m.upper()} {cell(difference(later, f'{m}+renio', m))}" for m in BOTH]
        text += f"Without these two seeds ReNIO gains: {', '.join(gains)}. "
    return [*lines, "## How far to trust this", "", text + NOTES["trust"]]


def score_rows(scores, labels):
    """A header, and a row a label: its score on each benchmark and decoding, over all of its seeds."""
    columns = scores[scores["last"]].groupby(["benchmark", "decoding"], sort=False)
    rows = [["method", *(f"{benchmark}, {DECODINGS[decoding]}" for (benchmark, decoding), _ in columns)]]
    for label in [label for label in labels if label in set(scores.label)]:
        rows.append([label])
        for part in [rows_of_all[rows_of_all.label == label] for _, rows_of_all in columns]:
            one_model = label in UNTRAINED and part.model.nunique() == 1  # scored several times: no interval
            rows[-1].append(cell([part.score.mean()] if one_model else part.score.to_numpy(), ".1f", (0, 100)))
            if len(part) == 1 and "low" in part:
                rows[-1][-1] += f" [{part.low.iloc[0]:.1f}, {part.high.iloc[0]:.1f}]"
    return rows


def tables_lines(scores, figures):
    """tables.md: scores, lengths, errors and training of every method, over all of its seeds."""
    last = scores[scores["last"]]
    header, *rows = score_rows(scores, sorted(set(last.label), key=lambda label: (label not in METHODS, label)))
    rows = [[row_name(scores, label), str(last.seed[last.label == label].nunique()), *texts] for label, *texts in rows]
    lines = ["# All runs", *markdown_table([header[0], "seeds", *header[1:]], rows), NOTES["tables"], ""]
    answers = ["benchmark", "decoding"], "tokens truncated boxed markers taught_error gap_error".split()
    training = ["task"], ["seconds_per_step", "train_minutes", *TRAINING]
    for title, (keys, columns) in dict(Answers=answers, Training=training).items():
        means = last.groupby(["label", *keys])[[name for name in columns if name in last]].mean().dropna(how="all")
        rows = [[*index, *(f"{x:.4g}" for x in row)] for index, row in zip(means.index, means.values, strict=True)]
        lines += [f"## {title}", *markdown_table(["method", *keys, *means.columns], rows)]
    for (benchmark, decoding, n), part in last.groupby(["benchmark", "decoding", "n"], sort=False):
        text = f"- {benchmark}, {decoding}: {part.problems.iloc[0]} problems, checksum {part.checksum.iloc[0]}"
        lines.append(f"{text}; answers a problem: {n}; {part.conditions.mode()[0]}")
    return [*lines, "", *(line for name in ("steps", "figure3", "figure6") for line in figures.get(name, []))]


# ---------------------------------------------------------------------------------------------------------------------
# The report's figures: transparent, in colours that read on light and dark pages and that the colour-blind tell apart.

GREY, COLOURS = "#7d8590", dict(opd="#2a8fd0", opsd="#e0701a", grpo="#2aa876", base="#7d8590")
FIGURES = {  # captions
    "headline": "Who gets the weight, and what it buys at temperature 1.",
    "scores": "Scores, and what ReNIO adds. A grey dot is a seed, bars are 95 % intervals over seeds.",
    "steps": "Scores over training, means over seeds. Step 0 is the base; dashed: without ReNIO.",
    "figure1": "Figure 1: training on correct or on incorrect rollouts only.",
    "figure3": "Figure 3: log-ratios of the student's own tokens in plain runs.",
    "figure5": "Figure 5: the teacher's mean entropy on rollouts by ReNIO's weight.",
    "figure6": "Figure 6: clip and threshold of ReNIO in OPD, temperature 1, paired by seed.",
    "rollouts": "An incorrect and a correct rollout. Framed: key tokens, so many times likelier to the student.",
}


def draw_figures(folder, scores, tables):
    """Draw what scores and logs allow. Returns {name of the figure: lines of the report that show it}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {f"{part}.color": GREY for part in ("text", "xtick", "ytick")} | {"axes.facecolor": "none", "font.size": 10}
    style |= {"axes.edgecolor": GREY, "axes.labelcolor": GREY, "axes.titlesize": 10.5, "savefig.transparent": True}
    lines, panels = {}, point_panels(scores, tables)
    draw = dict(headline=draw_headline, steps=draw_steps, figure3=draw_figure3, rollouts=draw_rollouts)
    for name, caption in FIGURES.items():
        (folder / f"{name}.png").unlink(missing_ok=True)
        with pyplot.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
            size = (8.38, 2 if name == "rollouts" else 3)  # GitHub shows 838 pixels
            sheet, axes = pyplot.subplots(1, 2, figsize=size, layout="constrained")
            shown = [draw_points(*pair) for pair in zip(axes[::-1], panels.get(name, [])[::-1], strict=False)]
            if name in ("figure1", "figure6"):
                axes[0].set_xlim([edge(x for axis in axes for x in axis.get_xlim()) for edge in (min, max)])
                axes[1].set_xlim(axes[0].get_xlim())
            if all(shown) and (name not in draw or draw[name](folder, scores, axes)):
                sheet.savefig(folder / f"{name}.png", dpi=200)
                lines[name] = [f"![{name}]({name}.png)", "", f"*{caption}*", ""]
            pyplot.close(sheet)
    return lines


def point_panels(scores, tables):
    """{figure: panels}; a panel: title, label of the x-axis, rows (name, an entry a seed, method or label, marker)."""
    sampled, panels = tables["sampled"], dict(figure1=[], figure5=[], figure6=[])
    marks = list(zip(tables.values(), "oD", strict=True))

    def gains(names, tails):
        pairs = zip(names, tails, strict=True)
        return [(n, difference(sampled, m + tail, m), m, "os"[m == "opsd"]) for n, tail in pairs for m in BOTH]

    names = ["ReNIO", "oracle: weight\nwhat is incorrect", "ReNIO's weights,\nat random"]
    rows = gains(names, ["+renio", "+correctness", "+renio_shuffled"])
    panels["headline"] = [("What does it buy?  ● OPD  ■ OPSD", "points over plain distillation", rows)]
    rows = [(x, table[x].dropna().to_numpy(), x, mark) for x in METHODS for table, mark in marks if x in table]
    panels["scores"] = [("● temperature 1   ◆ greedy", "percent correct", rows)]
    rows = [(m.upper(), difference(table, f"{m}+renio", m), m, mark) for m in BOTH for table, mark in marks]
    panels["scores"].append(("ReNIO minus plain, paired by seed", "points", rows))
    for tail, title in (("", "own problems, as in the paper"), ("-mixed", "the same problems for both")):
        labels = [f"{m}-{kind}" for m in BOTH for kind in ("correct", "incorrect") if f"{m}-{kind}{tail}" in sampled]
        rows = [(label, sampled[label + tail].dropna().to_numpy(), label, "o") for label in labels]
        panels["figure1"].append((title, "percent correct, temperature 1", rows))
    for m in BOTH:
        groups = {"one": "weight 1", "between": "between", "clipped": "clipped"}
        rows = [(text, run_values(scores, m, f"entropy_{key}"), m, "o") for key, text in groups.items()]
        title = f"{m.upper()}: rank correlation {cell(run_values(scores, m, 'entropy_rho'), '+.2f')}"
        panels["figure5"].append((title, "teacher's entropy, nats a token", rows))
    for name, values in (("clip", ("2.0", "2.5", "3.0")), ("threshold", ("0.6", "0.8", "1.0"))):
        tails = [f"+renio-{name}{value}" for value in values]
        tails = [tail if f"opd{tail}" in sampled or tail[-3:] not in ("3.0", "0.8") else "+renio" for tail in tails]
        rows = [row for row in gains(values, tails) if row[2] == "opd"]
        panels["figure6"].append((name, "points over plain OPD", rows if len(rows[0][1]) else []))
    return panels


def draw_points(axis, panel):
    """Means with intervals and a grey dot a seed, one below the other; rows of one name share a line."""
    title, label, rows = panel
    rows = [row for row in rows if len(row[1])]
    names = list(dict.fromkeys(row[0] for row in rows))
    for number, (name, values, method, marker) in enumerate(rows):
        before, count = ([row[0] for row in part].count(name) for part in (rows[:number], rows))
        place, ends = names.index(name) + 0.36 * (before - (count - 1) / 2), interval(values)
        error = None if ends is None else [[np.mean(values) - ends[0]], [ends[1] - np.mean(values)]]
        axis.plot(values, [place] * len(values), ".", color=GREY, alpha=0.5, markersize=5)
        colour = COLOURS[method.split("+")[0].split("-")[0]]
        axis.errorbar(np.mean(values), place, xerr=error, fmt=marker, color=colour, markersize=7, linewidth=2.2)
    if label.startswith("points"):
        axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.45, -0.55), title=title, xlabel=label)
    return len(rows)


def draw_headline(folder, scores, axes):
    shares = [run_values(scores, "opd", name) for name in ("incorrect_rollouts", "incorrect_weight")]
    for place, value in enumerate(values.mean() for values in shares if len(values)):
        axes[0].barh(place, [value, 100 - value], left=[0, value], color=[COLOURS["opsd"], "#9aa1a944"], height=0.5)
        text = dict(ha="center", va="center", color="white", weight="bold", size=9)
        axes[0].text(value / 2, place, f"incorrect {value:.0f} %", **text)
    axes[0].set_yticks([0, 1], ["of OPD's\nrollouts", "of ReNIO's\nweight"])
    axes[0].set(xticks=[], ylim=(1.5, -0.5), title="How much is incorrect?")
    axes[0].spines[:].set_visible(False)
    return len(shares[0])


def draw_steps(folder, scores, axes):
    labels = [label for label in METHODS[1:] if label in set(scores.label[scores.step.notna()])]
    axes[1].sharey(axes[0])
    for axis, decoding in zip(axes, DECODINGS, strict=True):
        rows = scores[(scores.decoding == decoding) & (scores.task == "math") & scores.label.isin([*labels, "base"])]
        means = rows.groupby([rows.step.fillna(0), "label"]).score.mean().unstack()
        lines = [means[label].fillna(means["base"]).dropna() for label in labels if {label, "base"} <= set(means)]
        place = -math.inf
        for line in sorted(lines, key=lambda line: line.iloc[-1]):
            style = dict(color=COLOURS[line.name.split("+")[0]], linestyle="-" if "+" in line.name else "--")
            axis.plot(line.index, line, marker="o", markersize=3.5, **style)
            place = max(line.iloc[-1], place + 4.5)  # points that a name needs
            axis.text(line.index[-1] * 1.02, place, line.name, va="center", color=style["color"])
        top = max(axis.get_ylim()[1], place + 3)
        axis.set(title=DECODINGS[decoding], xlabel="training step", ylabel="percent correct", ylim=(None, top))
    return len(labels)


def draw_figure3(folder, scores, axes):
    runs = {m: [read_lines(path) for path in sorted(folder.rglob(f"{m}/rollouts.jsonl"))] for m in BOTH}
    for axis, (method, rollouts) in zip(axes, runs.items(), strict=True):
        if rollouts:
            values = np.concatenate([rows.log_ratios.explode() for rows in rollouts]).astype(float)
            axis.hist(values, bins=np.linspace(-4, 10, 85), color=COLOURS[method], log=True)
            axis.axvline(0.8, color=GREY, linestyle="--")
            axis.set(xlabel="log-ratio, student to teacher", ylabel="tokens")
            axis.set_title(f"{method.upper()}: {100 * np.mean(values > 0.8):.1f} % of {len(values):,} tokens above 0.8")
    return any(runs.values())


def draw_rollouts(folder, scores, axes):
    """In the arithmetic world three aligned rows, a column a step: asked, the student's results, the correct one."""
    paths = sorted(folder.rglob("opd/rollouts.jsonl"))
    if not paths or "arith" not in set(scores.benchmark):
        return False
    rollouts = read_lines(paths[0]).query("step == 1 and completion.str.len() < 20")
    if not {True, False} <= set(rollouts.correct):
        return False
    for axis, is_correct in zip(axes, (False, True), strict=True):
        part = rollouts[rollouts.correct == is_correct].sort_values("key_tokens")
        rollout = part.iloc[0 if is_correct else -1]
        words = renio.arith_tokenizer().convert_ids_to_tokens(list(rollout.completion))
        asked, style = rollout.problem.split(), dict(ha="center", va="center")
        for row, name in enumerate(("asked", "student", "correct")):
            axis.text(-0.9, row, name, **style)
        for column, operation in enumerate(asked[1::2]):
            places = [place for place in range(1, len(words)) if words[place - 1] == operation]  # a re-check has two
            ratios = [rollout.log_ratios[place] for place in places if rollout.log_ratios[place] > 0.8]
            box = dict(boxstyle="round", facecolor="none", edgecolor=COLOURS["opsd"] if ratios else "none")
            axis.text(column, 0, operation, **style)
            axis.text(column, 1, " → ".join(words[place] for place in places), bbox=box, **style)
            axis.text(column, 1.45, "  ".join(f"{math.exp(ratio):.0f}×" for ratio in ratios), size=8.5, **style)
            axis.text(column, 2, str(renio.result_of(operation)), **style)
        axis.set(xlim=(-1.4, len(asked) / 2), ylim=(2.6, -0.6), title=f"ReNIO's weight: {rollout.renio_weight:.1f}")
        axis.axis("off")
    return True


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
