# SPDX-License-Identifier: MIT
"""Check and measure on one GPU of 80 GB what the paper's sizes cost; a line a figure.

    python tests/bench_gpu.py             # 4 minutes at most; a point that does not fit into the time left is skipped
    python tests/bench_gpu.py --tiny      # does it run? on a CPU

1 correct: the loss against the plain formula in float64, float32 and from bfloat16 operands. 2 step: OPSD and OPD of
Qwen3-1.7B's dimensions (teacher: itself, Qwen3-8B's), with ReNIO and without. 3 loss: against full logits and the
products with the heads alone, by chunk. 4 ragged: rollouts of very different lengths, in a batch and row by row (see
padding_limit in renio.py). 5 sampler: against transformers' generate, and in bfloat16 with a small adapter the KL of
what is sampled from what is trained. Weights are random: time does not depend on their values.
"""

import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, Qwen3Config  # noqa: E402

import renio  # noqa: E402

TINY, BEGIN, SECONDS = "--tiny" in sys.argv, time.monotonic(), 240
DEVICE = "cpu" if TINY else "cuda"
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
STUDENT = dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, head_dim=128)
TEACHER = dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, head_dim=128)
ROLLOUTS, TOKENS, VOCABULARY = (2, 8, 997) if TINY else (8, 1024, 151_936)


def say(line):
    print(line, f"[{time.monotonic() - BEGIN:.0f} s]", flush=True)


def measured(way, repeats=3):
    """Seconds (fastest of `repeats`, after a first round) and peak GB (0 on a CPU) of a function."""
    wait = (lambda: None) if TINY else torch.cuda.synchronize
    if not TINY:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        way()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), 0.0 if TINY else torch.cuda.max_memory_allocated() / 1e9


def random_model(shape, tied):
    torch.manual_seed(0)
    shape = SMALL if TINY else shape
    config = Qwen3Config(**shape, vocab_size=VOCABULARY, num_key_value_heads=2 if TINY else 8, tie_word_embeddings=tied)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def operands(width, teacher_width, rows, dtype=torch.bfloat16):
    """Hidden states and heads of student and teacher, and tokens."""
    torch.manual_seed(0)
    hidden = [torch.randn(rows, width, device=DEVICE, dtype=dtype) for width in (width, teacher_width)]
    shapes = ((VOCABULARY, width), (VOCABULARY, teacher_width))
    heads = [torch.randn(shape, device=DEVICE, dtype=dtype) / shape[1] ** 0.5 for shape in shapes]
    return [hidden[0].requires_grad_(), hidden[1], *heads, torch.randint(VOCABULARY, (rows,), device=DEVICE)]


def chunked_loss(*columns, chunk=None):
    return renio.chunked_divergence(*columns, chunk=chunk).divergence.sum()


def correct():
    exact = [x.detach().double() if x.is_floating_point() else x for x in operands(64, 64, 64)]
    exact[1], exact[3] = exact[0] + 0.05 * exact[1], exact[2]  # the teacher is near the student
    exact[0], exact[1] = (x.bfloat16().double() for x in exact[:2])
    logits, teacher_logits = exact[0].requires_grad_() @ exact[2].T, exact[1] @ exact[3].T
    [expected] = torch.autograd.grad(renio.token_divergence(logits, teacher_logits).sum(), exact[0])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        columns = [x.detach().to(dtype) if x.is_floating_point() else x for x in exact]
        [gradient] = torch.autograd.grad(chunked_loss(columns[0].requires_grad_(), *columns[1:], chunk=24), columns[0])
        error = (gradient.double() - expected).norm() / expected.norm()
        say(f"correct: gradient from {dtype}: off by {error:.1e} of its norm")


def step():
    lora = LoraConfig(r=2 if TINY else 64, lora_alpha=128, target_modules="all-linear")
    student = get_peft_model(random_model(STUDENT, tied=True), lora)
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    student.enable_input_require_grads()
    student.train()
    ids = torch.randint(VOCABULARY, (ROLLOUTS, 2 * TOKENS)).tolist()
    rollouts = [renio.Rollout(renio.Example({}, row[: TOKENS // 4], row[: TOKENS // 2]), row[TOKENS:]) for row in ids]
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer, devices = torch.optim.AdamW(trained, fused=True), renio.Devices(DEVICE)
    other = random_model(TEACHER, tied=False).requires_grad_(False)

    def once(teacher, config):
        divisor, _ = renio.distillation_step(student, teacher, rollouts, config, devices)
        renio.update(optimizer, trained, divisor, config, devices)

    contexts = {"OPSD": (student, student.disable_adapter, None), "OPD": (other, nullcontext, None)}
    for name, teacher in contexts.items():
        for weighting in ("none", "renio"):
            words = f"--scale paper --method opsd --weighting {weighting} --micro_batch_size 4 --output_dir x"
            config = renio.parse_config(words.split())
            seconds, memory = measured(partial(once, teacher, config), 2)
            say(f"step: {name} {weighting}, {ROLLOUTS} rollouts of {TOKENS} tokens: {seconds:.2f} s, {memory:.1f} GB")


def loss():
    columns = operands(*((32, 48) if TINY else (2048, 4096)), ROLLOUTS * TOKENS)
    part = [x[:TOKENS] if len(x) == ROLLOUTS * TOKENS else x for x in columns]

    def products():  # of the heads: two forward, one backward
        for rows in columns[0].detach().split(512):
            (rows @ columns[2].T) @ columns[2]
        for rows in columns[1].split(512):
            rows @ columns[3].T

    def full_logits():
        logits, teacher_logits = part[0] @ part[2].T, part[1] @ part[3].T
        renio.token_divergence(logits.float(), teacher_logits.float()).sum().backward()

    ways = {"full logits, an eighth of the rows": full_logits, "products with the heads alone": products}
    for chunk in (128, 256, 512, 1024, 2048):
        ways[f"chunks of {chunk}"] = lambda chunk=chunk: chunked_loss(*columns, chunk=chunk).backward()
    for name, way in ways.items():
        say(f"loss: {name}: {{:.3f}} s, {{:.1f}} GB".format(*measured(way)))
    renio.token_divergence = torch.compile(renio.token_divergence)
    say("loss: chunks of 512, compiled: {:.3f} s, {:.1f} GB".format(*measured(ways["chunks of 512"])))


def ragged():
    model = random_model(STUDENT, tied=True)
    for longest in (TOKENS, 4 * TOKENS):
        lengths = [max(2, longest * part // 8) for part in (8, 1, 1, 2)]  # 5 of 8 tokens are padding
        completions = [torch.randint(VOCABULARY, (length,)).tolist() for length in lengths]

        def once(limit, completions=completions):
            hidden, _ = renio.completion_hidden(model, [[1, 2, 3]] * 4, completions, padding_limit=limit)
            hidden.float().square().mean().backward()

        (batch, most), (alone, least) = (measured(partial(once, limit), 2) for limit in (1.0, 0.5))
        say(f"ragged: {lengths} tokens: batch {batch:.2f} s, {most:.1f} GB; row by row {alone:.2f} s, {least:.1f} GB")


def sampler():
    model, new = random_model(STUDENT, tied=True), TOKENS // 8
    words = dict(max_new_tokens=new, do_sample=True, eos_token_id=None, pad_token_id=0)
    for rows in (8, 32):
        ids = torch.randint(VOCABULARY, (rows, 128), device=DEVICE)
        ours, _ = measured(lambda ids=ids: list(renio.sample(model, ids.tolist(), new, [-1])), 1)
        theirs, _ = measured(lambda ids=ids: model.generate(ids, **words), 1)
        say(f"sampler: {rows} rollouts of {new} tokens: {ours:.2f} s, generate {theirs:.2f} s")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    for layer in (module for module in adapted.modules() if hasattr(module, "lora_B")):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=1e-4)
    prompts, seen, draw = ids[:8].tolist(), [], renio.draw_tokens
    renio.draw_tokens = lambda logits, *rest: seen.append(logits) or draw(logits, *rest)
    completions = [completion for _, completion in sorted(renio.sample(adapted, prompts, 16, [-1]))]
    logits = [torch.stack(seen, 1).flatten(0, 1)]
    with torch.no_grad():
        for context in (adapted.disable_adapter(), nullcontext()):
            with context:
                hidden, _ = renio.completion_hidden(adapted, prompts, completions)
                logits.append(renio.float32_logits(hidden, renio.Head.of(adapted)))
    kl = [renio.token_divergence(x, logits[2]).mean().item() for x in logits[:2]]
    say(f"sampler: bfloat16, small adapter: KL(trained||sampled) {kl[0]:.2e}, KL(trained||base) {kl[1]:.2e}")


for point, needed in ((correct, 10), (step, 100), (loss, 30), (ragged, 30), (sampler, 40)):
    if time.monotonic() - BEGIN + needed < SECONDS:
        point()
