# SPDX-License-Identifier: MIT
"""Score language models on math and code benchmarks, compare and report the scores.

    python eval.py --model DIR_OR_NAME --benchmarks arith --n 4 --output scores.json
    python eval.py --model Qwen/Qwen3-1.7B --adapter runs/opd+renio/final --scale paper --output scores.json
    python eval.py --model DIR_OR_NAME --benchmarks gsm8k humaneval+ --data_dir DATA --limit 8 --output scores.json
    python eval.py --checkpoints runs/opd+renio --model DIR_OR_NAME   # every checkpoint-N, its scores in its eval.json
    python eval.py --model A --output A.json then --model B --output B.json   # in one process: it starts but once
    python eval.py --model DIR_OR_NAME --scale paper --preflight      # whether all is there that this scoring needs
    python eval.py compare A.json B.json      # paired difference of B over A, its interval and p-value
    python eval.py compare A0.json A1.json A2.json vs B0.json B1.json B2.json      # the same over training seeds
    python eval.py report results/micro       # every eval.json below it -> results/micro/report.md and its figures
    python eval.py publish results/micro DIR  # that report, its figures, and packed all that it is made of

Read top to bottom: benchmarks; the evaluation (prompts, sampling, grading, scores); its preflight; the grader of code
with its judge and sandbox; statistics; evaluations read back and compared; the report's tables, figures and text; the
command line.
Models, prompts, sampling and the math grader are renio.py's.

The paper's evaluation (Table 7): temperature 1.0, top-p 0.95, no top-k, up to 38,912 new tokens, thinking on, 12
samples a problem in math and 4 in code; `--scale paper` sets it.
"""

import argparse
import ast
import contextlib
import copy
import ctypes
import functools
import gzip
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import symtable
import sys
import tarfile
import tempfile
import textwrap
import time
import types
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm


class Renio:
    """renio.py, imported when it is first asked for something: it brings torch, which verdicts on code, comparisons and
    reports need not wait for."""

    def __getattr__(self, name):
        import renio

        return getattr(renio, name)


renio = Renio()

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
    "products": Benchmark("math", "", "test", "", "problem", "answer", "made here"),
    "chain": Benchmark("math", "", "test", "", "problem", "answer", "made here"),
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


def benchmark_of(name):
    """A benchmark by its name, or that of a user's file, which is math. Raises renio.UserError for any other name."""
    if Path(name).suffix in (".json", ".jsonl", ".gz", ".parquet"):
        return Benchmark("math", "", "", name, "problem", "answer", "a file")
    if name not in BENCHMARKS:
        raise renio.UserError(f"--benchmarks {name}: unknown; known are {', '.join(BENCHMARKS)}, and .json, .jsonl or "
                              ".parquet files of problems and answers")
    return BENCHMARKS[name]


def load_benchmark(name, data_dir=None, limit=None):
    """The first `limit` problems of a benchmark as dicts of problem, solution and answer, for code also the `test` row.

    Of those that are made here 500 without a limit; of a user's file the columns that renio.read_problems finds. Others
    come from data_dir or the hub. Raises renio.UserError for an unknown benchmark and for a row that can't be asked or
    graded.
    """
    benchmark = benchmark_of(name)
    if name in renio.SYNTHETIC:
        return renio.SYNTHETIC[name](limit or 500, split="test")
    if name == benchmark.file:
        rows = renio.read_problems(name, limit=limit)
        for number, row in enumerate(rows, start=1):
            if not (row["answer"] or "").strip():
                raise renio.UserError(f"{name}, row {number}: no answer to grade against, in a column answer or in the "
                                      "solution's last box")
        return rows
    source = str(Path(data_dir) / benchmark.file) if data_dir else benchmark.hub_name
    rows = []
    for number, raw in enumerate(itertools.islice(renio.read_table(source, benchmark.split), limit), start=1):
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


def benchmark_limits(args):
    """{benchmark: how many of its first problems, None for all} by --benchmarks (name or name:limit) and --limit."""
    limits = {}
    for word in args.benchmarks:
        name, colon, own = word.partition(":")
        if colon and not (own.isdecimal() and int(own)):
            raise renio.UserError(f"--benchmarks {word}: behind the colon stands how many of its problems, 1 or more")
        if name in limits:
            raise renio.UserError(f"--benchmarks {word}: {name} is there twice")
        limits[name] = min((int(limit) for limit in (own, args.limit) if limit), default=None)
    return limits


def code_problem(row):
    """What a model is asked for a row of HumanEval+ or MBPP+; of the latter with a test, which names the function."""
    if "entry_point" in row:
        return f"Complete this Python function.\n\n```python\n{row['prompt'].strip()}\n```"
    return f"{row['prompt'].strip()} The program must pass this test:\n\n```python\n{row['test_list'][0]}\n```"


def checksum(rows):
    """Names a set of problems: two scores are comparable where it is the same."""
    text = json.dumps([[row["problem"], row["answer"], *([row["test"]] if "test" in row else [])] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation.


def evaluate(args):
    """Sample, grade and score by the flags `args`; writes args.output, and prints a line a benchmark and decoding."""
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Evaluation(args).score(args)


def evaluate_checkpoints(args):
    """Score every checkpoint-N of the run args.checkpoints, each into its own eval.json.

    One that has an eval.json made with the same flags and weights stays as it is. Adapters take turns on one model.
    """
    folders, evaluation = renio.checkpoints(Path(args.checkpoints)), None
    if not folders:
        raise renio.UserError(f"--checkpoints {args.checkpoints}: no checkpoint-N in it")
    for folder in reversed(folders):
        weights = "adapter" if (folder / "adapter_config.json").exists() else "model"
        if weights == "adapter" and not args.model:
            raise renio.UserError(f"--checkpoints {args.checkpoints}: these are adapters; name their --model")
        own = argparse.Namespace(**vars(args) | {"output": folder / "eval.json", "checkpoints": None,
                                                 weights: str(folder)})
        if own.output.exists():
            changed = changed_settings(own)
            if not changed:
                continue
            print(f"{own.output}: made with other {', '.join(changed)}; scored anew")
        if weights == "model":  # no room for two
            evaluation = None
            renio.VllmSampler.close()
        evaluation = evaluation or Evaluation(own)
        evaluation.score(own, renio.step_of(folder))


NO_SETTINGS = ("output", "device", "data_dir", "vllm_memory", "preflight")  # flags that change no score


def weights_of(args):
    """Checksum of the weights that the flags name, of the model and of the adapter; None for what is in no folder."""
    return {flag: folder and weights_checksum(Path(folder)) for flag, folder in
            (("model", args.model), ("adapter", args.adapter))}


def weights_checksum(folder):
    """Names the weights in a folder by its safetensors files; None where there are none, as for a model of the hub."""
    try:
        recorded = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))  # renio.py's, of each file
    except (OSError, ValueError):
        recorded = {}
    files = sorted(folder.glob("*.safetensors"))
    checksums = [recorded.get(file.name) or renio.file_checksum(file) for file in files]
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()[:16] if files else None


def changed_settings(args):
    """Names of the flags, and "weights", by which args.output was made otherwise than `args` would make it."""
    old, weights = read_scored(args.output).settings, weights_of(args)
    # a batch is made smaller where memory asks for it; weights that have a checksum may lie anywhere
    unchecked = {*NO_SETTINGS, "batch_size", "adapter", *(["model"] if weights["model"] else [])}
    now = {flag: value for flag, value in vars(args).items() if flag not in unchecked} | dict(weights=weights)
    return [name for name, value in now.items() if old.get(name) != value]


class Evaluation:
    """Problems, their prompts, and a model to sample from, which `score` gives an adapter where the flags name one."""

    def __init__(self, args):
        self.args = args
        if args.adapter and not (Path(args.adapter) / "adapter_config.json").exists():
            raise renio.UserError(f"--adapter {args.adapter}: no adapter_config.json in it")
        self.rows = {name: load_benchmark(name, args.data_dir, limit) for name, limit in benchmark_limits(args).items()}
        for name, rows in self.rows.items():
            if args.privileged and not all(row["solution"] for row in rows):
                raise renio.UserError(f"--privileged: {name} has no worked solutions to put in the prompt")
        self.tokenizer = renio.load_tokenizer(args.model)
        self.prompts = {name: [self.prompt(benchmark_of(name).task, row) for row in rows]
                        for name, rows in self.rows.items()}
        longest = max(len(prompt) for prompts in self.prompts.values() for prompt in prompts) + args.max_new_tokens
        self.sampler, self.batch_size = load_sampler(args, longest)
        self.eos_ids = renio.end_ids(self.sampler, self.tokenizer)

    def prompt(self, task, row):
        template = self.args.prompt or renio.PROMPTS[task][self.args.privileged]
        return renio.prompt_ids(self.tokenizer, renio.fill_prompt(template, row), self.args.thinking)

    def score(self, args, step=None):
        """Score by flags that differ from those of __init__ in adapter and output alone; writes args.output.

        Each batch of answers is kept in args.output + ".partial" as it is done, where an interrupted evaluation with
        the same settings goes on. step: of the training, where the model is a checkpoint; for the report.
        """
        if args.adapter:
            self.sampler.load_adapter(args.adapter)
        settings = {k: v for k, v in vars(args).items() if k not in NO_SETTINGS} | dict(
            batch_size=self.batch_size,
            weights=weights_of(args),
            checksums={name: checksum(rows) for name, rows in self.rows.items()},
            sources={name: f"{b.hub_name or name} ({b.licence})" for name in self.rows for b in [benchmark_of(name)]},
            prompts={name: self.tokenizer.decode(prompts[0]) for name, prompts in self.prompts.items()},
            versions={name: renio.version_of(name) for name in sorted({"torch", "transformers", args.engine})})
        print(f"first prompt: {next(iter(settings['prompts'].values()))!r}", flush=True)
        if self.batch_size < args.batch_size:
            print(f"--batch_size {args.batch_size}: {self.batch_size} instead, as many as memory holds")
        self.partial = Path(f"{args.output}.partial")
        self.done = resume_partial(self.partial, settings)
        results = [self.result(name, decoding) for name in self.rows for decoding in args.decoding]
        renio.write_json(args.output, dict(label=args.label, train_seed=args.train_seed, step=step, settings=settings,
                                           results=results))
        self.partial.unlink()
        for r in results:
            print(f"{args.label} {r['benchmark']} {r['decoding']}: Avg@{r['n']} {percent(r['avg'], r['avg_interval'])}"
                  f", {r['length']:.1f} tokens, {100 * r['truncation_rate']:.1f} % truncated -> {args.output}")

    def result(self, name, decoding):
        """Scores and answers of one benchmark under one decoding, as they stand in eval.json."""
        args, rows, prompts, n = self.args, self.rows[name], self.prompts[name], self.samples(name, decoding)
        # the longest prompts first: batches of like lengths, and what does not fit fails at once
        order = sorted((p for p in range(len(rows)) for _ in range(n)), key=lambda p: -len(prompts[p]))
        answers = [[] for _ in rows]
        right = count = tokens = seconds = 0
        with tqdm(total=len(order), desc=f"{args.label} {name} {decoding}", unit="answer", mininterval=1.0) as bar:
            for start in range(0, len(order), self.batch_size):
                problems, key = order[start : start + self.batch_size], f"{name} {decoding} {start}"
                if key not in self.done:
                    self.done[key] = self.batch(name, decoding, start, problems, args.max_new_tokens)
                    with self.partial.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"key": key, **self.done[key]}) + "\n")
                    tokens += sum(answer["tokens"] for answer in self.done[key]["answers"])
                for p, answer in zip(problems, self.done[key]["answers"], strict=True):
                    answers[p].append(answer)
                    right, count = right + answer["right"], count + 1
                seconds += self.done[key]["seconds"]
                bar.update(len(problems))
                bar.set_postfix(score=f"{100 * right / count:.1f}",
                                tokens_per_s=f"{tokens / (bar.format_dict['elapsed'] or 1):.0f}")
        recorded = [{k: v for k, v in row.items() if k != "test"} for row in rows]
        scores = scores_of_answers(answers, boxes_equal(name))
        if name == "arith":
            scores |= error_shares(rows, answers)
        return dict(benchmark=name, decoding=decoding, n=n, **scores, seconds=seconds,
                    problems=[dict(row, answers=a) for row, a in zip(recorded, answers, strict=True)])

    def samples(self, name, decoding):
        """How many answers a problem has."""
        of_scale = 4 if benchmark_of(name).task == "code" else PRESETS[self.args.scale]["n"]
        return 1 if decoding == "greedy" else self.args.n or of_scale

    def batch(self, name, decoding, start, problems, max_new_tokens):
        """Answers to the problems (indices of rows, one an answer), sampled and graded, and the seconds they took."""
        args, task, began = self.args, benchmark_of(name).task, time.perf_counter()
        completions = self.sampler(
            [self.prompts[name][p] for p in problems], max_new_tokens, self.eos_ids,
            args.temperature if decoding == "sampled" else 0, args.top_p, args.top_k,
            seed=args.seed * 1_000_000 + start)
        grade = functools.partial(grade_answer, self.tokenizer, self.eos_ids, task)
        # a verdict on code waits for processes of its own; the math grader has one worker for all
        with ThreadPoolExecutor(processors()) as pool:
            answers = list((pool.map if task == "code" else map)(grade, completions,
                                                                 [self.rows[name][p] for p in problems]))
        return dict(answers=answers, seconds=time.perf_counter() - began)


def load_sampler(args, longest):
    """What samples, still without args.adapter, and how many answers at a time.

    longest: tokens of the longest prompt and its answer.
    """
    if args.engine == "vllm":  # it bounds its memory itself
        lora_r = json.loads((Path(args.adapter) / "adapter_config.json").read_text())["r"] if args.adapter else 0
        return renio.VllmSampler("--engine", args.model, args.dtype, args.device, longest, args.vllm_memory,
                                 lora_r), args.batch_size
    sampler = TransformersSampler(args)
    return sampler, min(args.batch_size, rows_that_fit(sampler.model, longest, args.device))


class TransformersSampler:
    """renio.sample with its model, called and given adapters like a renio.VllmSampler."""

    def __init__(self, args):
        self.model = renio.load_model(args.model, args.dtype, args.device)
        self.generation_config = self.model.generation_config

    def load_adapter(self, folder):
        """Sample with the peft adapter in this folder from now on."""
        from peft import PeftModel

        base = self.model.unload() if isinstance(self.model, PeftModel) else self.model
        self.model = PeftModel.from_pretrained(base, folder, use_safetensors=True).to(base.device).eval()

    def __call__(self, *args, **named):
        return renio.sample(self.model, *args, **named)


def rows_that_fit(model, tokens, device):
    """How many answers of so many tokens, prompt included, half of the device's memory holds beside the model."""
    cache = tokens * renio.cache_bytes(model.config, next(model.parameters()).element_size())
    logits = 6 * model.config.vocab_size * 4
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return max(1, int((renio.device_memory(device) * 1e9 / 2 - weights) // (cache + logits)))


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


class Verdict(NamedTuple):
    """Of a grader: whether an answer is right, and why or why not, in one line."""

    passed: bool
    reason: str


def grade_answer(tokenizer, eos_ids, task, completion, row):
    """What is recorded of an answer (token ids) to a row of a benchmark."""
    text = tokenizer.decode(completion, skip_special_tokens=True)
    if task == "code":
        verdict = grade_code(row["test"], text)
    else:
        reason = (renio.arith_verdict if task == "arith" else renio.math_verdict)(text, row["answer"])
        verdict = Verdict(reason == "equal", reason)
    boxed = None if task == "code" else renio.extract_boxed(text)
    if task == "arith" and boxed is not None:  # what the majority is of
        boxed = "".join(renio.arith_results(text).values())
    return dict(text=text, boxed=boxed, right=verdict.passed, reason=verdict.reason, tokens=len(completion),
                truncated=completion[-1] not in eos_ids, markers=count_markers(text),
                **(wrong_results(text, row) if task == "arith" else {}))


MARKERS = ("but wait hmm perhaps maybe actually seems might likely check alternatively however though again").split()
MARKER_PATTERN = re.compile(rf"\b(?:{'|'.join(MARKERS)})\b", re.IGNORECASE)


def count_markers(text):
    """How many reflection markers (the paper's list, Appendix C) stand in the text, as whole words in any case."""
    return len(MARKER_PATTERN.findall(text))


ERRORS = dict(taught="taught operations", gap="gaps")  # kinds of operations: the base was taught them, or not


@functools.cache  # asked for each answer to a problem
def operations_by_kind(problem):
    """The steps of a problem of the arithmetic world, (name, operation), by kind."""
    words, gaps, steps = problem.split(), renio.operation_gaps(), {kind: [] for kind in ERRORS}
    for name, operation in zip(words[::2], words[1::2], strict=True):
        steps["gap" if operation in gaps else "taught"].append((name, operation))
    return steps


def wrong_results(text, row):
    """How many of an answer's results are wrong, by kind of operation.

    The last result that is written of a step counts, which is that of a re-check; one that is missing is wrong.
    """
    written = renio.arith_results(text)
    return {f"wrong_{kind}": sum(written.get(name) != str(renio.result_of(operation)) for name, operation in steps)
            for kind, steps in operations_by_kind(row["problem"]).items()}


def error_shares(rows, answers):
    """Share of wrong results among all operations of a kind, from the answers to each row."""
    counts = {kind: sum(len(operations_by_kind(row["problem"])[kind]) for row in rows) for kind in ERRORS}
    return {f"{kind}_error": sum(a[f"wrong_{kind}"] for row in answers for a in row) / len(answers[0]) / counts[kind]
            for kind in ERRORS}


def boxes_equal(benchmark):
    """What says whether two boxes hold one answer: as mathematics, or in the arithmetic world by their text."""
    if benchmark_of(benchmark).task != "math":
        return str.__eq__
    return functools.cache(lambda a, b: renio.answer_verdict(a, b) == "equal")


def scores_of_answers(answers, equal=str.__eq__):
    """Scores of one benchmark from the answers (a list a problem), fractions with 95 % intervals over problems.

    equal: whether two boxes hold one answer, for the majority. Code has no box, and so no majority: None.
    """
    def same(a, b):
        return a["right"] == b["right"] and (a["right"] or a["boxed"] == b["boxed"] or equal(a["boxed"], b["boxed"]))

    n = len(answers[0])
    flat = [a for row in answers for a in row]
    right = [sum(a["right"] for a in row) for row in answers]
    per_problem = dict(avg=[c / n for c in right])
    for k in sorted({1, 2, 4, 8, n}):
        if k <= n:
            per_problem[f"pass@{k}"] = [pass_at_k(n, c, k) for c in right]
    if any(a["boxed"] is not None for a in flat):
        chosen = [majority_answer([a for a in row if a["boxed"] is not None], same) for row in answers]
        per_problem["majority"] = [answer is not None and answer["right"] for answer in chosen]
    scores = dict(majority=None, majority_interval=None)
    for name, values in per_problem.items():
        scores |= {name: float(np.mean(values)), f"{name}_interval": bootstrap_interval(values)}
    return scores | dict(
        length=float(np.mean([a["tokens"] for a in flat])),
        truncation_rate=float(np.mean([a["truncated"] for a in flat])),
        format_rate=float(np.mean([a["boxed"] is not None for a in flat])),
        unparsable_rate=float(np.mean([a["reason"] == "unparsable" for a in flat])),
        markers=float(np.mean([a["markers"] for a in flat])))


# ---------------------------------------------------------------------------------------------------------------------
# The preflight: what can fail, before hours are spent. A check returns what later ones need, and its line.

MEAN_TOKENS = 15_000  # of an answer with thinking on, by which run_all.sh estimates hours too


def preflight(args):
    """Check what scoring by the flags `args` needs, a line each, then the hours it will take. Returns the exit code.

    Nothing is written. Of --checkpoints the model is tried without adapter, since they may not be there yet.
    """
    failed = []

    def check(name, function, *more):
        try:
            found, line = function(args, *more)
        except Exception as error:  # whatever a hub's client, a model's code or an engine raises
            kind = "" if isinstance(error, renio.UserError) else f"{type(error).__name__}: "
            advice = "; lower --batch_size or take a smaller model" * ("out of memory" in str(error))
            renio.check_line("FAILED", f"{name}: {kind}{' '.join(str(error).split())}{advice}")
            failed.append(name)
            return None
        renio.check_line("ok", f"{name}: {line}")
        return found

    loadable = [check("engine", find_engine), check("model", check_model)]
    limits = benchmark_limits(args)
    rows = {word: check(f"benchmark {word}", check_benchmark, *limit)
            for word, limit in zip(args.benchmarks, limits.items(), strict=True)}
    rows = {word: row for word, row in rows.items() if row}
    if any(name not in BENCHMARKS or BENCHMARKS[name].task != "code" for name in limits):
        check("math-verify", check_math_verify)
    for word, row in rows.items():
        if "test" in row:
            check(f"sandbox, {word}", check_sandbox, row)
    hours = check("answers", check_answers, list(rows)) if rows and all(loadable) else None
    if not failed:
        print(f"expected: {hours:.2f} hours")
    return int(bool(failed))


def find_engine(args):
    """Choose args.device where no flag does. Raises UserError where the engine or the device is not there."""
    if args.engine == "vllm":
        renio.need_vllm("--engine")
    args.device = renio.pick_device(args.device)
    return args.device, f"{args.engine} {renio.version_of(args.engine)} on {args.device}"


def check_model(args):
    from transformers import AutoConfig

    tokenizer, shape = renio.load_tokenizer(args.model), AutoConfig.from_pretrained(args.model)
    renio.prompt_ids(tokenizer, "", args.thinking)  # that it has a chat template
    return shape, f"{args.model}, {shape.model_type} with {len(tokenizer):,} tokens: configuration and tokenizer"


def check_benchmark(args, name, limit):
    rows = load_benchmark(name, args.data_dir, limit)
    return rows[0], f"{len(rows)} problems, checksum {checksum(rows)}"


def check_math_verify(args):
    if renio.math_verdict(r"\boxed{\frac{1}{2}}", r"\frac{2}{4}") != "equal":
        raise renio.UserError("takes 1/2 and 2/4 for different; install the version of requirements.txt")
    return True, "takes 1/2 and 2/4 for equal"


def check_sandbox(args, row):
    verdict = grade_code(row["test"], f"```python\n{row['solution']}\n```")
    if not verdict.passed:
        raise renio.UserError(f"the first problem's own solution fails ({verdict.reason}), so code can't be graded "
                              "here or by this file; leave it out of --benchmarks")
    return True, "the first problem's own solution passes"


def check_answers(args, words):
    """A short answer to the first problem of each benchmark (words of --benchmarks), and the hours of all answers.

    Hours: batches x MEAN_TOKENS of an answer x seconds a token, timed on a batch of copies of the first problem.
    """
    evaluation = Evaluation(argparse.Namespace(**vars(args) | dict(benchmarks=words)))
    if args.adapter:
        evaluation.sampler.load_adapter(args.adapter)
    tokens, batches, largest = min(16, args.max_new_tokens), 0, 0
    for name, rows in evaluation.rows.items():
        evaluation.batch(name, args.decoding[0], 0, [0], tokens)
        for decoding in args.decoding:
            answers = len(rows) * evaluation.samples(name, decoding)
            batches += math.ceil(answers / evaluation.batch_size)
            largest = max(largest, min(answers, evaluation.batch_size))
    prompt, seconds = next(iter(evaluation.prompts.values()))[0], []
    for length in (1, tokens):
        began = time.perf_counter()
        evaluation.sampler([prompt] * largest, length, [], seed=args.seed)  # that no token ends
        seconds.append(time.perf_counter() - began)
    step = max(0.0, seconds[1] - seconds[0]) / max(1, tokens - 1)
    hours = step * min(MEAN_TOKENS, args.max_new_tokens) * batches / 3600
    return hours, (f"{tokens} tokens on each benchmark; a token of {largest} answers at once takes {1000 * step:.1f} "
                   f"ms; {batches} batches in all")


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

PRESETS = {  # of --scale, for flags that are not given
    "micro": dict(benchmarks=["arith"], n=4, max_new_tokens=58, batch_size=250, dtype="float32"),
    "small": dict(benchmarks=["products"], n=1, max_new_tokens=80, batch_size=125, dtype="float32"),
    "one": dict(benchmarks=["gsm8k:250", "math500"], n=4, max_new_tokens=2048, batch_size=256, dtype="bfloat16",
                thinking=False, decoding=["sampled", "greedy"]),
    "paper": dict(benchmarks=["aime24", "aime25", "hmmt25"], n=12, max_new_tokens=38912, batch_size=36,
                  dtype="bfloat16"),
}
LARGEST = 2**31 - 1  # that vLLM's and torch's integers hold


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise renio.UserError(f"{message} (--help lists the flags)")


def parse_args(argv):
    """The flags of an evaluation. Raises renio.UserError for values out of bounds and for flags that contradict."""
    parser = Parser(prog="eval.py", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add, bounds = parser.add_argument, {}

    def number(flag, low, high, text, **settings):
        bounds[flag] = low, high, text
        add(flag, type=type(low), help=text, **settings)

    add("--model", help="folder or hub name")
    add("--adapter", help="folder of a peft adapter on the model")
    add("--checkpoints", help="score every checkpoint-N of this run instead, each into its own eval.json")
    add("--scale", choices=list(PRESETS), default="micro", help="preset of the flags below; explicit flags win")
    add("--benchmarks", nargs="+", help=f"of {', '.join(BENCHMARKS)}, or your own .jsonl, .json or .parquet with "
        "the columns problem and answer; gsm8k:250 takes the first 250 problems of it")
    add("--data_dir", help="read benchmarks from files there instead of the hub")
    number("--limit", 1, LARGEST, "score only the first problems of each")
    number("--n", 1, 10**5 - 1, "samples a problem; without it the scale's, for code 4")
    add("--decoding", nargs="+", choices=["sampled", "greedy"], help="greedy takes one a problem")
    number("--temperature", 0.01, 100, "of sampled decoding; greedy: --decoding greedy", default=1.0)
    number("--top_p", 1e-6, 1, "nucleus of sampled decoding; 1: off", default=0.95)
    number("--top_k", 0, LARGEST, "sampled decoding draws from the k likeliest tokens only; 0: off", default=0)
    number("--max_new_tokens", 1, LARGEST, "longest answer")
    add("--thinking", action=argparse.BooleanOptionalAction, help="thinking mode of the chat template")
    add("--prompt", help="message with {problem} in it, or @file; without it the one for the benchmark's task")
    add("--privileged", action="store_true", help="put the reference solution in the prompt: scores OPSD's teacher")
    number("--batch_size", 1, LARGEST, "answers sampled at a time")
    add("--engine", choices=["transformers", "vllm"], default="transformers", help="what samples the answers")
    number("--vllm_memory", 0.001, 0.999, "share of the GPU's memory for engine vllm", default=0.9)
    add("--dtype", choices=["float32", "bfloat16"], help="of the weights")
    add("--device", help="cuda or cpu; without it cuda where there is one")
    number("--seed", 0, LARGEST, "of the sampling", default=0)
    add("--label", help="the method's name in the report; without it that of the run or the model")
    number("--train_seed", 0, LARGEST, "the training seed, for the report", default=0)
    add("--output", help="the .json to write")
    add("--preflight", action="store_true", help="only check what this scoring needs, and estimate its hours")
    args = parser.parse_args(argv)
    for flag, (low, high, text) in bounds.items():
        value = getattr(args, flag.removeprefix("--"))
        if value is not None and not low <= value <= high:
            raise renio.UserError(f"{flag} {value}: must lie in [{low}, {high}] ({text})")
    for name, value in (dict(thinking=True, decoding=["sampled"]) | PRESETS[args.scale]).items():
        if name != "n" and getattr(args, name) is None:  # n depends on the benchmark too
            setattr(args, name, value)
    benchmark_limits(args)
    args.prompt = renio.read_template("--prompt", args.prompt)
    if args.prompt is not None and "{problem}" not in args.prompt:
        raise renio.UserError("--prompt: needs {problem} where the benchmark's problems go")
    if args.prompt is not None and args.privileged != ("{solution}" in args.prompt):
        raise renio.UserError("--prompt: needs {solution} with --privileged, and may not have it without")
    if args.checkpoints and (args.output or args.adapter):
        raise renio.UserError("--checkpoints: each has an eval.json of its own; leave out --output and --adapter")
    if not (args.model if args.preflight else args.checkpoints or args.model and args.output):
        raise renio.UserError("need --model and --output, or --checkpoints, or --model and --preflight")
    if not args.preflight:  # which has it among its checks
        find_engine(args)
    place = Path(args.checkpoints or args.adapter or args.model)
    args.label = args.label or (place.parent.name if place.name == "final" else place.name)  # a run's name
    return args


def main(argv=None):
    try:
        match sys.argv[1:] if argv is None else argv:
            case ["judge"]:
                judge()
            case ["report", folder]:
                report(Path(folder))
            case ["report", *_]:
                raise renio.UserError("report takes one folder")
            case ["publish", folder, target]:
                publish(Path(folder), Path(target))
            case ["publish", *_]:
                raise renio.UserError("publish takes two folders, that of the runs and that of the report")
            case ["compare", *words]:
                compare(words)
            case words:
                # a wrong flag of the last ends it before the first
                for args in [parse_args(part) for part in renio.split_words(words, "then")]:
                    try:
                        if args.preflight:
                            sys.exit(preflight(args))
                        (evaluate_checkpoints if args.checkpoints else evaluate)(args)
                    finally:
                        renio.VllmSampler.close()
    except renio.UserError as error:
        sys.exit(f"eval.py: {error}")
    except OSError as error:
        sys.exit(f"eval.py: {error.strerror or error}{f': {error.filename}' if error.filename else ''}; batches of "
                 "an evaluation that were done are kept, and the same command goes on from them")
    except KeyboardInterrupt:
        sys.exit("eval.py: interrupted; batches that were done are kept, and the same command goes on from them")


if __name__ == "__main__":
    main()
