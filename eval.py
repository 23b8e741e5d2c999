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
import functools
import hashlib
import inspect
import itertools
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
# Code grader. Two processes a verdict. The judge, on the trusted side, takes inputs and expected results from the row
# and compares as evalplus does; each call goes by pipe to the sandbox, a process that has the program and the arguments
# of that call, and nothing else: no expected result, no file but Python's own, no network, no way to start or signal a
# process. What comes back is made of plain values, so a program can do no more than answer rightly or wrongly.
#
# The rules are those of evalplus's HEAD: every base and plus input; equal types and lengths; exact results, but floats
# within 1e-6 or the task's tolerance; sets and special oracles where evalplus has them. HEAD differs from the 0.3.1
# that the paper used in three things: 0.3.1 never passes HumanEval/32 (0.61 points of HumanEval+), allows a test 1 s
# at least instead of 4, and leaves terminal escapes in answers. All 542 canonical solutions pass, also with both cores
# under full load, and none whose body is replaced by `return None`, `return []` or `return 0` (CODE_ROWS=all with
# tests/test_code.py, 9 minutes). Five inputs of MBPP+/255 are left out, whose answers hold 6 to 128 million strings.
#
# On Linux before 6.12, or where user namespaces are off, a warning says what is missing. There a program can learn
# whether a path exists, and before 5.13 read files, but not change one, start or signal a process, or reach the
# network. On other systems, macOS among them, only its processor time, file size and open files are limited, and the
# warning says that too.


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
        missing.append("a ban on processes, signals and the network (seccomp)" if linux else
                       "a ban on changing files, on processes, signals and the network (only Linux has one here)")
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
