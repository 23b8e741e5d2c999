# SPDX-License-Identifier: MIT
"""Measure speed and memory, each as a ratio in one run. A command, no test: machines differ and are noisy.

    python tests/bench.py loss                 # the fused divergence against full logits, V = 151,936
    python tests/bench.py step                 # a step of OPSD on the micro model, against its floor
    python tests/bench.py step --model DIR --prefix_tokens 64 --batch_size 4
    python tests/bench.py devices              # one process against two, and against two with --fsdp, a thread each
    python tests/bench.py sample --model DIR   # our sampling loop against transformers' generate
    python tests/bench.py import               # importing renio against importing torch and transformers
    python tests/bench.py gpu                  # the paper's sizes on one GPU: see bench_gpu.py
    python tests/bench.py roofline             # the paper's step, counted on paper: see roofline.py

Measured on 2 slow cores, 2 threads, each pair in turns.
  loss     1,024 tokens of width 256, float32, against full logits, seconds and GB; last, against the heads' matrix
           products alone:
             forward KL, frozen head               1.80 / 4.29 = 0.42    0.67 / 4.37 = 0.15    1.14
             with the released code's entry clip   2.15 / 4.91 = 0.44    0.57 / 4.38 = 0.13    1.43
             JSD, beta 0.5                         1.87 / 8.33 = 0.22    1.09 / 8.73 = 0.12    1.27
             reverse KL                            1.70 / 4.42 = 0.38    0.92 / 4.37 = 0.21    1.16
             forward KL, the head trains           3.44 / 4.51 = 0.76    0.96 / 4.53 = 0.21    1.16
           The ratios depend on what the machine takes for memory that is touched for the first time, of which full
           logits need gigabytes a step: on another one they were 0.74, 0.69, 0.29, 0.62 and 1.20. Of the fused loss's
           memory 0.35 GB are its own; the rest are work buffers of MKL, which come and go.
  sample   32 micro rollouts of 40 tokens 0.14 / 0.17 s; SmolLM2-135M, 4 rollouts of 64 tokens 6.1 / 7.8 s, and 6.4 /
           9.7 s with a LoRA adapter of rank 64, which is merged for the rollout
  devices  two processes of a thread each 0.76, with --fsdp 1.22: without GPUs it costs more than it saves
  import   0.95
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def seconds(action, repeats):
    """The fastest of some repeats, after one that is not counted: other processes only ever add time."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def in_own_process(*words):
    """What a `bench.py` command of its own prints as JSON: memory peaks are those of a whole process."""
    return json.loads(subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True,
                                     check=True).stdout.splitlines()[-1])


# --- the loss ---------------------------------------------------------------------------------------------------------

def one_loss(kind, n, width, beta, entry_clip, train_head, threads, repeats):
    """Seconds and extra peak memory of forward and backward for N tokens, plain or fused."""
    import torch

    from renio import fused_divergence, token_divergence, token_logprobs

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vocabulary = 151_936
    hidden, teacher_hidden = torch.randn(n, width), torch.randn(n, width)
    head, teacher_head = (torch.randn(vocabulary, width).div_(width**0.5) for _ in range(2))
    tokens = torch.randint(vocabulary, (n,))
    hidden.requires_grad_()
    head.requires_grad_(train_head)
    settings = beta, 1.1, entry_clip or None, "official" if entry_clip else "none"

    def plain():
        student, teacher = hidden @ head.T, teacher_hidden @ teacher_head.T
        divergence = token_divergence(student[None], teacher[None], *settings)[0]
        token_logprobs(student.detach(), tokens, 1.1), token_logprobs(teacher, tokens, 1.1)
        divergence.sum().backward()

    def fused():
        fused_divergence(hidden, teacher_hidden, head, teacher_head, tokens, *settings).divergence.sum().backward()

    def products():
        """The least that the heads cost: two products of logits, the gradients', and, where the head trains, two more
        of logits, as the gradient of the head must wait for the factors of all tokens."""
        with torch.no_grad():
            for _ in range(2 if train_head else 1):
                logits = [hidden @ head.T, teacher_hidden @ teacher_head.T]
            logits[0] @ head
            if train_head:
                logits[0].T @ hidden

    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024  # resident now, kB
    took = seconds(dict(plain=plain, fused=fused, products=products)[kind], repeats)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(dict(seconds=took, gb=(after - before) * 1024 / 1e9)))


def bench_loss(args):
    print(f"{'N':>5} {'D':>4} {'beta':>4} {'clip':>4} {'head':>6}   {'plain':>7}  {'fused':>7}  ratio"
          f"    {'plain':>6}  {'fused':>6}  ratio    heads' products, fused / them")
    for n, width, beta, clip, head in ((1024, 256, 0.0, 0, 0), (1024, 256, 0.0, 0.05, 0), (1024, 512, 0.0, 0, 0),
                                       (1024, 256, 0.5, 0, 0), (1024, 256, 1.0, 0, 0), (1024, 256, 0.0, 0, 1),
                                       (4096, 256, 0.0, 0, 0)):
        words = n, width, beta, clip, head, args.threads, args.repeats
        fused = in_own_process("one_loss", "fused", *words)
        line = f"{n:>5} {width:>4} {beta:>4} {clip or '':>4} {'trains' if head else 'frozen':>6}"
        if n > 1024:  # the full logits would need a machine of another size
            print(f"{line}            {fused['seconds']:6.2f} s                   {fused['gb']:5.2f} GB")
            continue
        plain = in_own_process("one_loss", "plain", *words)
        products = in_own_process("one_loss", "products", *words)["seconds"]
        print(f"{line}   {plain['seconds']:5.2f} s  {fused['seconds']:5.2f} s  "
              f"{fused['seconds'] / plain['seconds']:.2f}   {plain['gb']:5.2f}  {fused['gb']:5.2f} GB  "
              f"{fused['gb'] / plain['gb']:.2f}    {products:5.2f} s  {fused['seconds'] / products:.2f}", flush=True)


# --- a step -----------------------------------------------------------------------------------------------------------

def bench_step(args):
    import torch

    import renio

    torch.set_num_threads(args.threads)

    def prepare(weighting, prefix_tokens):
        words = ["--output_dir", "unused", "--method", "opsd", "--model", args.model, "--weighting", weighting,
                 "--prefix_tokens", prefix_tokens, "--batch_size", args.batch_size, "--micro_batch_size",
                 min(args.batch_size, 32), *(args.flags or [])]
        config = renio.parse_config([str(word) for word in words])
        student, tokenizer = renio.load_student(config, "cpu")
        teacher = renio.Teacher(config, student, tokenizer, renio.Devices("cpu"))
        examples = renio.load_examples(config, tokenizer, tokenizer, config.batch_size)[0]
        sampler = renio.RolloutSampler(config, student, tokenizer, examples, renio.Devices("cpu"))
        sampler.eos_ids = [-1]  # no answer ends, so that every step samples the same number of tokens
        optimizer = torch.optim.AdamW(renio.trained_parameters(student), lr=0.0)
        return config, student, teacher, sampler, examples, optimizer

    def step(config, student, teacher, sampler, examples, optimizer):
        devices, watch = renio.Devices("cpu"), renio.Stopwatch("cpu")
        with sampler.of_present_student(watch):
            rollouts = renio.draw_rollouts(sampler, examples, 0, config, devices)
        renio.distillation_step(student, teacher, rollouts, config, devices, watch)
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("optimizer")
        return watch.seconds, [rollout.completion for rollout in rollouts]

    def floor(config, student, teacher, examples, completions):
        """Seconds of the models' own work: decoding forwards, teacher forward, student forward and backward."""
        prompts = [example.student_prompt for example in examples]
        ids, mask = renio.pad(prompts, "left")
        took = {}
        start = time.perf_counter()
        with torch.inference_mode():
            cache, positions, next_ids = None, renio.positions_of(mask), ids
            for _ in range(config.prefix_tokens):
                out = student(input_ids=next_ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                              use_cache=True, logits_to_keep=1)
                cache, next_ids = out.past_key_values, ids[:, :1]
                positions, mask = positions[:, -1:] + 1, torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        took["rollout"] = time.perf_counter() - start
        for name in ("teacher", "student"):
            start = time.perf_counter()
            for at in range(0, len(prompts), config.micro_batch_size):
                span = slice(at, at + config.micro_batch_size)
                if name == "teacher":
                    teacher.hidden([e.teacher_prompt for e in examples[span]], completions[span])
                else:
                    renio.completion_hidden(student, prompts[span], completions[span])[0].sum().backward()
            took[name] = time.perf_counter() - start
        for p in student.parameters():
            p.grad = None
        return took

    def best(rows):
        return {key: min(row[key] for row in rows) for key in rows[0]}

    runs = {name: prepare(weighting, prefix) for name, weighting, prefix in (
        ("ReNIO", "renio", args.prefix_tokens), ("no weighting", "none", args.prefix_tokens),
        ("ReNIO, a quarter of the prefix", "renio", max(1, args.prefix_tokens // 4)))}
    measured, floors = {name: [] for name in runs}, {name: [] for name in runs}
    for repeat in range(args.repeats + 1):  # in turns, so that a slow minute of the machine hits all alike
        for name, run in runs.items():
            took, completions = step(*run)
            config, student, teacher, _, examples, _ = run
            bottom = floor(config, student, teacher, examples, completions)
            if repeat:  # the first warms up
                measured[name].append(took)
                floors[name].append(bottom)
    count = sum(p.numel() for p in runs["ReNIO"][1].parameters())
    print(f"{args.model}: {count:,} weights, batch {args.batch_size}, {args.prefix_tokens} tokens, {args.threads} "
          f"threads, fastest of {args.repeats}")
    for name in runs:
        took, bottom = best(measured[name]), best(floors[name])
        total, least = sum(took.values()), sum(bottom.values())
        print(f"{name}: {total:.3f} s a step = {total / least:.2f} x its floor of {least:.3f} s")
        for phase, value in took.items():
            print(f"    {phase:10} {value:.3f} s" + (f"   floor {bottom[phase]:.3f} s" if phase in bottom else ""))
    whole = {name: sum(best(rows).values()) for name, rows in measured.items()}
    print(f"ReNIO / no weighting: {whole['ReNIO'] / whole['no weighting']:.3f}")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")


# --- more processes ---------------------------------------------------------------------------------------------------

def bench_devices(args):
    medians = {}
    for name, processes, more in (("one process", 1, []), ("two", 2, []), ("two, --fsdp", 2, ["--fsdp"])):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "renio.py",
                 "--method", "opsd", "--model", args.model, "--batch_size", str(args.batch_size), "--prefix_tokens",
                 str(args.prefix_tokens), "--max_steps", str(4 * args.repeats), "--save_steps", "0", "--output_dir",
                 f"{folder}/run", *more, *(args.flags or [])], cwd=ROOT, check=True, capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"})
            rows = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
        medians[name] = statistics.median(row["seconds"] for row in rows[1:])
        print(f"{name}: median {medians[name]:.3f} s a step of {len(rows) - 1}, {rows[-1]['peak_memory_gb']:.2f} GB a "
              f"process, {medians[name] / medians['one process']:.2f} of one process", flush=True)


# --- sampling ---------------------------------------------------------------------------------------------------------

def bench_sample(args):
    import torch

    import renio

    torch.set_num_threads(args.threads)
    config = renio.parse_config(["--output_dir", "unused", "--method", "opsd", "--model", args.model,
                                 *(args.flags or [])])
    model, tokenizer = renio.load_student(config, "cpu")
    examples = renio.load_examples(config, tokenizer, tokenizer, args.batch_size)[0]
    prompts = [example.student_prompt for example in examples]
    ids, mask = renio.pad(prompts, "left")
    n = args.prefix_tokens
    ways = {"generate": lambda: model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=True, top_k=0,
                top_p=1.0, temperature=1.0, pad_token_id=tokenizer.pad_token_id),
            "sample": lambda: renio.sample(model, prompts, n, [-1])}
    took = {name: [] for name in ways}
    model.eval()
    for repeat in range(args.repeats + 1):  # in turns; the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            took[name] += [time.perf_counter() - start] if repeat else []
    best = {name: min(times) for name, times in took.items()}
    print(f"{args.model}, batch {args.batch_size}, {n} tokens, {args.threads} threads: generate "
          f"{best['generate']:.2f} s, sample {best['sample']:.2f} s, {best['sample'] / best['generate']:.2f} of it")


# --- the import -------------------------------------------------------------------------------------------------------

def bench_import(args):
    def run(code):
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

    base = ("import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, "
            "Qwen3Config, Qwen3ForCausalLM")
    ours, theirs = seconds(lambda: run("import renio"), args.repeats), seconds(lambda: run(base), args.repeats)
    print(f"import renio {ours:.2f} s, torch and what renio uses of transformers {theirs:.2f} s: {ours / theirs:.2f}")


def main():
    if sys.argv[1:2] == ["one_loss"]:
        kind, n, width, beta, clip, head, threads, repeats = sys.argv[2:]
        return one_loss(kind, int(n), int(width), float(beta), float(clip), head == "1", int(threads), int(repeats))
    if sys.argv[1:2] == ["gpu"]:
        import bench_gpu

        return bench_gpu.main(sys.argv[2:])
    if sys.argv[1:2] == ["roofline"]:
        import roofline

        return print(roofline.table())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loss", "step", "devices", "sample", "import"])
    parser.add_argument("--model", default="init:micro")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--prefix_tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, help="flags of renio.py, as the last words")
    args = parser.parse_args()
    {"loss": bench_loss, "step": bench_step, "devices": bench_devices, "sample": bench_sample,
     "import": bench_import}[args.what](args)


if __name__ == "__main__":
    main()
