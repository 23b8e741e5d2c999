# SPDX-License-Identifier: MIT
"""Measure on one GPU of 80 GB what the paper's sizes cost, a line a figure as soon as it is there.

    python tests/bench.py gpu --output gpu.jsonl             # every point; each figure goes to the file too
    python tests/bench.py gpu right loss --output gpu.jsonl  # these points only
    python tests/bench.py gpu step sample --models /tmp/m    # keeps the random models, 20 GB, for the next command
    python tests/bench.py gpu --tiny                         # does it run? tiny sizes on a CPU, under a minute

  right   the fused divergence against the plain one, and the golden figures of the released code where they are at hand
  loss    time and memory of the fused divergence over chunk sizes, against full logits and the bare matrix products
  step    OPSD and OPD, with ReNIO and without: seconds of each phase, memory beside what was predicted
  sample  our sampling loop against transformers' generate
  grpo    an update at 16,000 tokens with fewer and fewer rollouts a pass: does it fit
  micro   only prints the command that runs the whole micro job on this machine

The models are random, of the sizes of Qwen3-1.7B and Qwen3-8B: time does not depend on the weights' values. Operations
and bytes are counted as in roofline.py; "the floor" is the time that they take at the speeds that this card reaches on
one large matrix product and on one copy, which come first. Needs no network, vLLM, datasets or math-verify.
"""

import argparse
import gc
import json
import random
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import roofline
import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3Config

import renio

ROOT = Path(__file__).resolve().parents[1]
PAPER = SimpleNamespace(
    dtype="bfloat16", student=roofline.QWEN3_1_7B, teacher=roofline.QWEN3_8B, lora_r=64, rollouts=8, new_tokens=1024,
    prompt=roofline.PROMPT, solution_prompt=roofline.SOLUTION_PROMPT, micro_batches=(8, 4), chunks=(64, 256, 1024),
    checked=(256, 5003, 64, 96), sample_batches=(8, 32), sample_tokens=256, grpo_tokens=16_000,
    grpo_micro_batches=(4, 2, 1), matmul=8192, copied=2**31, repeats=3)
TINY = SimpleNamespace(**vars(PAPER) | dict(
    student=roofline.QWEN3_1_7B | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                                       num_key_value_heads=1, head_dim=16, vocab_size=97),
    teacher=roofline.QWEN3_8B | dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                     num_key_value_heads=1, head_dim=16, vocab_size=97),
    lora_r=2, rollouts=2, new_tokens=6, prompt=8, solution_prompt=12, micro_batches=(2, 1), chunks=(4, 8),
    checked=(23, 31, 6, 9), sample_batches=(2,), sample_tokens=4, grpo_tokens=9, grpo_micro_batches=(2, 1), matmul=64,
    copied=2**16, repeats=1))


class Bench:
    """What all points share: sizes, device, the folder of the random models, and where figures go."""

    def __init__(self, sizes, device, models, output=None):
        self.sizes, self.device, self.models, self.output = sizes, device, Path(models), output
        self.devices, self.on_gpu, self.failed = renio.Devices(device), device.startswith("cuda"), False
        self.about = dict(date=time.strftime("%Y-%m-%d"), torch=torch.__version__,
                          transformers=transformers.__version__,
                          device=torch.cuda.get_device_name() if self.on_gpu else "CPU")
        self.operations_per_second, self.bytes_per_second = self.plain_rates()

    def say(self, point, figure, value, unit, **more):
        """Print a figure and append it to the output as JSON; a value that is a str says why there is none."""
        def shown(x):
            return f"{x:.4g}" if isinstance(x, float) else str(x)

        aside = ", ".join(f"{name.replace('_', ' ')} {shown(x)}" for name, x in more.items() if x is not None)
        print(f"{point:7} {figure}: {shown(value)}" + f" {unit}" * (not isinstance(value, str))
              + f"  ({aside})" * bool(aside), flush=True)
        if self.output:
            row = dict(point=point, figure=figure, unit=unit, **more, **self.about)
            row |= dict(failed=value) if isinstance(value, str) else dict(value=value)
            with open(self.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def plain_rates(self):
        """Operations a second of one large matrix product, and bytes a second, read and written, of one copy."""
        n = self.sizes.matmul
        a, b = torch.randn(2, n, n, device=self.device).to(getattr(torch, self.sizes.dtype))
        source = torch.zeros(self.sizes.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = fastest_of(self.in_turns(dict(matmul=lambda: a @ b, copy=lambda: target.copy_(source)), 10)[0])
        rates = 2 * n**3 / seconds["matmul"], 2 * len(source) / seconds["copy"]
        self.say("machine", "a large matrix product", rates[0] / 1e12, "TFLOP/s")
        self.say("machine", "a large copy", rates[1] / 1e12, "TB/s")
        return rates

    def in_turns(self, ways, repeats):
        """Seconds of each way, a list, and the most GB that it held beyond what was there before (None on a CPU).

        Both are a str where it failed. The first round warms up.
        """
        took, held = {name: [] for name in ways}, dict.fromkeys(ways, 0.0 if self.on_gpu else None)
        for repeat in range(repeats + 1):
            for name, way in ways.items():
                measured = took[name] if isinstance(took[name], str) else attempt(partial(self.once, way))
                if isinstance(measured, str):
                    took[name] = held[name] = measured
                elif repeat:
                    took[name].append(measured[0])
                    held[name] = max(held[name], measured[1]) if self.on_gpu else None
        return took, held

    def once(self, way):
        watch = renio.Stopwatch(self.device)
        before = torch.cuda.memory_allocated() / 1e9 if self.on_gpu else 0.0
        way()
        watch.lap("once")
        return watch.seconds["once"], watch.peak_memory() - before

    def model_folder(self, name):
        """Folder of a random model, student or teacher, which is written unless it is there."""
        dimensions = getattr(self.sizes, name)
        folder = self.models / "{hidden_size}-wide-{num_hidden_layers}-layers".format(**dimensions)
        if not (folder / "tokenizer_config.json").exists():  # which is written last
            tokenizer = renio.arith_tokenizer()  # prompts are random ids; loading asks for one
            shape = Qwen3Config(**dimensions, max_position_embeddings=40_960,
                                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
            torch.manual_seed(0)
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, self.sizes.dtype))
            model.save_pretrained(folder, max_shard_size="100GB")
            tokenizer.save_pretrained(folder)
        return str(folder)

    def examples(self, count, teacher_prompt=None, spread=0.5):
        """Examples with prompts of random ids; `spread`: how far their lengths lie around the mean, as a share of it.

        teacher_prompt: mean tokens of the teacher's, None for none.
        """
        draw = random.Random(0)

        def prompt(mean, place):
            length = round(mean * (1 + spread * (2 * place - 1)))
            return [draw.randrange(self.sizes.student["vocab_size"]) for _ in range(length)]

        places = [i / max(1, count - 1) for i in range(count)]
        return [renio.Example(dict(problem="", solution=None, answer=None), prompt(self.sizes.prompt, place),
                              teacher_prompt and prompt(teacher_prompt, place)) for place in places]

    def random_rollouts(self, examples, tokens):
        """Rollouts of random ids, every other one right."""
        draw = random.Random(1)
        return [renio.Rollout(example, [draw.randrange(self.sizes.student["vocab_size"]) for _ in range(tokens)], True,
                              bool(i % 2)) for i, example in enumerate(examples)]

    def config(self, method, *words):
        return renio.parse_config([str(word) for word in (
            "--scale", "paper", "--method", method, "--model", self.model_folder("student"), "--output_dir", "unused",
            "--task", "arith", "--dtype", self.sizes.dtype, "--lora_r", self.sizes.lora_r, *words)])


def attempt(action):
    """What the action returns, or a str that says why it failed, so that one failure spares the other figures."""
    try:
        return action()
    except torch.cuda.OutOfMemoryError:
        why = "out of memory"
    except Exception as error:
        traceback.print_exc()
        why = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    release()  # not before, since the error held the frames with their tensors
    return why


def release():
    """Give back the memory of what is no longer in use, cycles included."""
    gc.collect()
    torch.cuda.empty_cache()


def fastest_of(took):
    """The least of each way's seconds; a str stays."""
    return {way: times if isinstance(times, str) else min(times) for way, times in took.items()}


def ratio(seconds, others):
    """None where one of them failed."""
    return None if isinstance(seconds, str) or isinstance(others, str) else seconds / others


# --- right ------------------------------------------------------------------------------------------------------------

LOSSES = {"forward KL": dict(beta=0.0),
          "forward KL, entries clipped": dict(beta=0.0, entry_clip=0.05, clip_mode="official"),
          "JSD 0.5": dict(beta=0.5),
          "reverse KL": dict(beta=1.0)}


def bench_right(bench):
    for dtype, allowed in (("float64", 1e-9), ("float32", 1e-4), ("bfloat16", 0.02)):
        for name, settings in LOSSES.items():
            for of, error in zip(("values", "gradients"), divergence_errors(bench, dtype, settings), strict=True):
                say_error(bench, f"{name}, {dtype}, {of}", error, allowed)
    golden = next((folder / "shared" / "golden" / "official_loss_public.npz" for folder in (ROOT, ROOT.parent)
                   if (folder / "shared" / "golden").is_dir()), None)
    if golden is None:
        print("right   golden figures: no folder shared/golden in or beside the repository")
        return
    for dtype, allowed in (("float64", 1e-9), ("float32", 1e-3)):
        say_error(bench, f"golden figures, {dtype}", golden_error(golden, getattr(torch, dtype), bench.device), allowed)


def say_error(bench, figure, error, allowed):
    right = error <= allowed  # false for nan
    bench.failed |= not right
    bench.say("right", figure, error, "of the largest", allowed=allowed, right=right)


def largest_error(ours, theirs):
    """The largest difference, as a share of the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def divergence_errors(bench, dtype, settings):
    """Largest errors of the fused divergence: of its values, and of its gradients in hidden states and head.

    Under bfloat16 the plain divergence gets the same bfloat16 logits, as float32.
    """
    n, vocabulary, width, teacher_width = bench.sizes.checked
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(bench.device, getattr(torch, dtype))

    hidden, teacher_hidden = normal(n, width), normal(n, teacher_width)
    head, teacher_head = normal(vocabulary, width) / width**0.5, normal(vocabulary, teacher_width) / teacher_width**0.5
    tokens = torch.randint(vocabulary, (n,), generator=draw).to(bench.device)
    trained = [hidden.requires_grad_(), head.requires_grad_()]
    student, teacher = hidden @ head.T, teacher_hidden @ teacher_head.T
    if dtype == "bfloat16":
        student, teacher = student.float(), teacher.float()
    plain = renio.token_divergence(student[None], teacher[None], temperature=1.1, **settings)[0]
    fused = renio.fused_divergence(hidden, teacher_hidden, head, teacher_head, tokens, temperature=1.1, chunk=n // 3,
                                   **settings).divergence
    factors = torch.linspace(-1, 2, n, device=bench.device, dtype=plain.dtype)  # what a weighting makes of the tokens
    gradients = (torch.autograd.grad(d @ factors, trained) for d in (fused, plain))
    return largest_error(fused, plain), max(map(largest_error, *gradients))


def golden_error(path, dtype, device):
    """Largest error over all cases of the released code's divergence, weights and gradient."""
    file, worst = np.load(path), 0.0
    for i, case in enumerate(json.loads(file["meta"].item())):
        def golden(name, i=i):
            array = torch.tensor(file[f"{i}/{name}"], device=device)
            return array.to(dtype) if array.is_floating_point() else array

        student, teacher = golden("student_logits").requires_grad_(), golden("teacher_logits")
        mask, tokens = golden("mask").bool(), golden("tokens")
        divergence = renio.token_divergence(student, teacher, case["beta"], case["temperature"], case["token_clip"],
                                            "official" if case["token_clip"] else "none")
        weights = torch.ones(len(mask), dtype=dtype, device=device)
        if case["renio"]:
            logprobs = (renio.token_logprobs(logits, tokens, case["temperature"]) for logits in (student, teacher))
            weights = renio.official_sample_weights(*logprobs, mask, case["threshold"], case["log_ratio_clip"],
                                                    case["weight_temperature"],
                                                    case["weight_norm"].removesuffix("_mean"))
        per_sample = (divergence * mask).sum(1) / mask.sum(1)
        (per_sample * weights).mean().backward()
        pairs = ((per_sample, "per_sample_divergence"), (weights, "sample_weights"),
                 (student.grad, "grad_student_logits"))
        worst = max([worst, *(largest_error(ours, golden(name)) for ours, name in pairs)])
    return worst


# --- loss -------------------------------------------------------------------------------------------------------------

def bench_loss(bench):
    sizes, dtype = bench.sizes, getattr(torch, bench.sizes.dtype)
    n, vocabulary = sizes.rollouts * sizes.new_tokens, sizes.student["vocab_size"]
    torch.manual_seed(0)

    def normal(rows, width, scale=1.0):
        return torch.randn(rows, width, device=bench.device, dtype=dtype) * scale

    widths = sizes.student["hidden_size"], sizes.teacher["hidden_size"]
    hidden = [normal(n, width) for width in widths]
    heads = [normal(vocabulary, width, width**-0.5) for width in widths]
    tokens = torch.randint(vocabulary, (n,), device=bench.device)
    hidden[0].requires_grad_()
    for name in ("forward KL", "forward KL, entries clipped", "JSD 0.5", "forward KL, head trains"):
        heads[0].requires_grad_(name.endswith("trains"))
        ways = loss_ways(hidden, heads, tokens, LOSSES[name.removesuffix(", head trains")], sizes.chunks)
        took, held = bench.in_turns(ways, sizes.repeats)
        fastest = fastest_of(took)
        for way, seconds in fastest.items():
            bench.say("loss", f"{name}: {way}", seconds, "s", tokens=n, extra_gb=held[way],
                      of_full_logits=ratio(seconds, fastest["full logits"]),
                      of_the_products=ratio(seconds, fastest["the matrix products alone"]))


def loss_ways(hidden, heads, tokens, settings, chunks):
    """Ways to take the divergence of N tokens and its gradients, by name; the head trains where it requires one."""
    (student, teacher), (head, teacher_head) = hidden, heads
    trained = [x for x in (student, head) if x.requires_grad]

    def plain():
        logits = [(h @ w.T).float()[None] for h, w in zip(hidden, heads, strict=True)]
        return torch.autograd.grad(renio.token_divergence(*logits, temperature=1.1, **settings).sum(), trained)

    def fused(chunk):
        columns = renio.fused_divergence(student, teacher, head, teacher_head, tokens, temperature=1.1, chunk=chunk,
                                         **settings)
        return torch.autograd.grad(columns.divergence.sum(), trained)

    @torch.no_grad()
    def products():
        gradient = torch.zeros_like(head) if head.requires_grad else None
        for student_rows, teacher_rows in zip(student.split(max(chunks)), teacher.split(max(chunks)), strict=True):
            logits, _ = student_rows @ head.T, teacher_rows @ teacher_head.T
            _ = logits @ head
            if gradient is not None:
                gradient.addmm_(logits.T, student_rows)

    return {"full logits": plain, **{f"{chunk} rows a chunk": partial(fused, chunk) for chunk in chunks},
            "the matrix products alone": products}


# --- step -------------------------------------------------------------------------------------------------------------

def bench_step(bench):
    sizes = bench.sizes
    for method, more, prompt in (("opsd", (), sizes.solution_prompt),
                                 ("opd", ("--teacher", bench.model_folder("teacher")), sizes.prompt)):
        config = bench.config(method, "--prefix_tokens", sizes.new_tokens, "--batch_size", sizes.rollouts,
                              "--micro_batch_size", sizes.micro_batches[0], "--weighting", "renio", *more)
        why = attempt(partial(step_of, bench, config, prompt))
        if why:
            bench.failed = True
            bench.say("step", method, why, "s")
        release()


def step_of(bench, config, teacher_prompt):
    """Figures of a step: one rollout of the batch, and updates on it in turns, each way several times."""
    sizes, devices = bench.sizes, bench.devices
    student, tokenizer = renio.load_student(config, bench.device)
    teacher = renio.Teacher(config, student, tokenizer, devices)
    optimizer = renio.make_optimizer(student, config)
    examples = bench.examples(sizes.rollouts, teacher_prompt)
    student.train()  # as in `train`

    def update(config, rollouts):
        """Seconds of each phase, and the GB at the peak."""
        watch = renio.Stopwatch(bench.device)
        total, _ = renio.distillation_step(student, teacher, rollouts, config, devices, watch)
        renio.update(optimizer, renio.trained_parameters(student), total, config, devices)
        watch.lap("optimizer")
        return watch.seconds, watch.peak_memory()

    update(config, bench.random_rollouts(examples, sizes.new_tokens))  # warms up; the optimizer gets its state
    sampler = renio.RolloutSampler(config, student, tokenizer, examples, devices)
    sampler.eos_ids = [-1]  # none ends early
    renio.sample(student, [example.student_prompt for example in examples], 2, sampler.eos_ids)
    watch = renio.Stopwatch(bench.device)
    with sampler.of_present_student(watch):
        rollouts = renio.draw_rollouts(sampler, examples, 0, config, devices)
    say_rollout(bench, config, student, teacher, examples, watch)

    even = bench.random_rollouts(bench.examples(sizes.rollouts, teacher_prompt, spread=0.0), sizes.new_tokens)
    cases = {f"{weighting}, micro-batches of {size}": (
                 replace(config, weighting=weighting, micro_batch_size=size), rollouts, "highest")
             for size in sizes.micro_batches for weighting in ("renio", "none")}
    cases["renio, float32 products of the adapters in TF32"] = config, rollouts, "high"
    cases["renio, prompts of one length, so no mask"] = config, even, "highest"
    measured = {name: [] for name in cases}
    for repeat in range(sizes.repeats + 1):
        for name, (case, given, precision) in cases.items():
            torch.set_float32_matmul_precision(precision)
            took = update(case, given)
            if repeat:  # the first warms up
                measured[name].append(took)
    torch.set_float32_matmul_precision("highest")
    for name, (case, given, _) in cases.items():
        say_update(bench, f"{config.method}, {name}", case, student, teacher, given, measured[name])
    for size in sizes.micro_batches:
        ours, plain = (min(sum(seconds.values()) for seconds, _ in measured[f"{weighting}, micro-batches of {size}"])
                       for weighting in ("renio", "none"))
        sampling, paper = sum(watch.seconds.values()), roofline.PAPER[config.method]
        bench.say("step", f"{config.method}, ReNIO / none, micro-batches of {size}",
                  (sampling + ours) / (sampling + plain), "", of_the_update=ours / plain,
                  seconds_with_renio=sampling + ours, paper=paper[0] / paper[1])


def predicted(bench, config, student, teacher, examples, phase):
    """GB at the peak of rollouts or update, by predict_memory."""
    parts = renio.predict_memory(config, bench.devices, student, teacher, examples)
    return renio.peak_of(parts | (dict(rollouts=0.0) if phase == "update" else
                                  dict(gradients=0.0, activations=0.0, logits=0.0)))


def say_rollout(bench, config, student, teacher, examples, watch):
    sizes, seconds = bench.sizes, watch.seconds["rollout"]
    work = roofline.rollout(student.config, sizes.rollouts, sizes.prompt, sizes.new_tokens)
    bench.say("step", f"{config.method}, rollout", seconds, "s", tokens_per_second=sizes.rollouts * sizes.new_tokens
              / seconds, of_the_floor=seconds / work.seconds(bench.bytes_per_second, bench.operations_per_second))
    bench.say("step", f"{config.method}, memory of the rollout", watch.peak_memory(), "GB",
              predicted=predicted(bench, config, student, teacher, examples, "rollout"))


def say_update(bench, name, config, student, teacher, rollouts, updates):
    """Seconds of each phase, the fastest; of teacher and student also what share of a plain product's speed it is."""
    new_tokens, examples = bench.sizes.new_tokens, [rollout.example for rollout in rollouts]
    shapes = student.config, teacher.model.config
    operations = dict(teacher=0.0, student=roofline.loss(*shapes, len(examples) * new_tokens, chunk=1).operations)
    for part in renio.micro_batches(examples, config):
        longest = max(len(example.student_prompt) for example in part) + new_tokens
        operations["student"] += roofline.training(shapes[0], len(part), longest, config.lora_r).operations
        longest = max(len(example.teacher_prompt) for example in part) + new_tokens
        operations["teacher"] += roofline.forward(shapes[1], len(part), longest).operations
    for phase in ("teacher", "student", "optimizer"):
        seconds = min(seconds[phase] for seconds, _ in updates)
        more = dict(teraflop=operations[phase] / 1e12, of_the_matmul_speed=operations[phase] / seconds
                    / bench.operations_per_second) if phase in operations else {}
        bench.say("step", f"{name}: {phase}", seconds, "s", **more)
    bench.say("step", f"{name}: memory of the update", max(gb for _, gb in updates), "GB",
              predicted=predicted(bench, config, student, teacher, examples, "update"))


# --- sample -----------------------------------------------------------------------------------------------------------

def bench_sample(bench):
    sizes = bench.sizes
    model = renio.load_model(bench.model_folder("student"), sizes.dtype, bench.device)
    for rows in sizes.sample_batches:
        prompts = [example.student_prompt for example in bench.examples(rows)]
        ids, mask = renio.pad(prompts, "left", bench.device)
        generate = partial(model.generate, input_ids=ids, attention_mask=mask, max_new_tokens=sizes.sample_tokens,
                           min_new_tokens=sizes.sample_tokens, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                           pad_token_id=0)
        static = dict(cache_implementation="static")
        took, _ = bench.in_turns({
            "ours": lambda prompts=prompts: renio.sample(model, prompts, sizes.sample_tokens, [-1]),
            "generate": generate,
            "generate, static cache, not compiled": partial(generate, **static, disable_compile=True),
            "generate, static cache, compiled": partial(generate, **static)}, sizes.repeats - 1 or 1)
        fastest = fastest_of(took)
        least = roofline.rollout(model.config, rows, sizes.prompt, sizes.sample_tokens).seconds(
            bench.bytes_per_second, bench.operations_per_second)
        for way, seconds in fastest.items():
            bench.say("sample", f"{rows} rollouts of {sizes.sample_tokens} tokens, {way}", seconds, "s",
                      tokens_per_second=ratio(rows * sizes.sample_tokens, seconds),
                      of_the_floor=ratio(seconds, least), ours_of_it=ratio(fastest["ours"], seconds))


# --- grpo -------------------------------------------------------------------------------------------------------------

def bench_grpo(bench):
    sizes = bench.sizes
    config = bench.config("grpo", "--prefix_tokens", sizes.grpo_tokens, "--batch_size", sizes.rollouts,
                          "--generations", sizes.rollouts)
    student, _ = renio.load_student(config, bench.device)
    student.train()
    optimizer, trained = renio.make_optimizer(student, config), renio.trained_parameters(student)
    examples = bench.examples(sizes.rollouts)
    rollouts = bench.random_rollouts(examples, sizes.grpo_tokens)

    def updates(config):
        """Seconds and GB at the peak of the second of two updates on the same rollouts."""
        optimizer.zero_grad()
        old_logprobs = []
        for _ in range(2):
            watch = renio.Stopwatch(bench.device)
            total, _ = renio.grpo_step(student, rollouts, old_logprobs, config, bench.devices, watch)
            renio.update(optimizer, trained, total, config, bench.devices)
            watch.lap("optimizer")
        return sum(watch.seconds.values()), watch.peak_memory()

    for size in sizes.grpo_micro_batches:
        case = replace(config, micro_batch_size=size)
        name = f"{sizes.rollouts} rollouts of {sizes.grpo_tokens} tokens, micro-batches of {size}"
        measured = attempt(partial(updates, case))
        seconds, gb = (measured, measured) if isinstance(measured, str) else measured
        bench.say("grpo", f"an update, {name}", seconds, "s")
        bench.say("grpo", f"its memory, {name}", gb, "GB",
                  predicted=predicted(bench, case, student, None, examples, "update"),
                  there=renio.device_memory(bench.device))
    bench.say("grpo", "memory of its rollouts as predicted, by transformers",
              predicted(bench, config, student, None, examples, "rollout"), "GB")


# --- micro ------------------------------------------------------------------------------------------------------------

def bench_micro(bench):
    print("micro   OUT=results/gpu JOBS=4 bash run_all.sh table1 table2; its report stands beside one of a CPU, "
          "results/micro\n"
          "        where nothing can be installed: DRY=1 VIRTUAL_ENV=any OUT=results/gpu bash run_all.sh table1 table2 "
          "| bash -e")


POINTS = dict(right=bench_right, loss=bench_loss, step=bench_step, sample=bench_sample, grpo=bench_grpo,
              micro=bench_micro)


def main(argv):
    """Measure; the exit code is 1 where a divergence is wrong or a point failed."""
    parser = argparse.ArgumentParser(prog="bench.py gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="*", metavar="POINT", help=f"of {', '.join(POINTS)}; without any all")
    parser.add_argument("--output", help="file that each figure is appended to as a line of JSON")
    parser.add_argument("--models", help="folder that keeps the random models; without it they are written anew")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on a CPU")
    args = parser.parse_args(argv)
    if unknown := set(args.points) - POINTS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(POINTS)}")
    if not args.tiny and not torch.cuda.is_available():
        parser.error("this machine has no GPU; --tiny runs tiny sizes on a CPU")
    transformers.utils.logging.disable_progress_bar()
    if args.tiny:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(TINY if args.tiny else PAPER, "cpu" if args.tiny else "cuda", args.models or folder, args.output)
        for name in args.points or POINTS:
            start = time.perf_counter()
            failed = attempt(partial(POINTS[name], bench))
            release()
            bench.failed |= bool(failed)
            print(f"{name:7} {failed or 'done'}, {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(int(bench.failed))
