# SPDX-License-Identifier: MIT
"""ReNIO: on-policy distillation that gives more weight to rollouts in which the student was over-confident.

    python renio.py --method sft --model init:micro --dataset arith-gaps --privileged_share 0.65 --output_dir runs/base
    python renio.py --scale micro --method opsd --weighting renio --model runs/base/final --output_dir runs/opsd+renio
    torchrun --nproc_per_node 4 renio.py --scale paper --method opsd --weighting renio --output_dir runs/qwen3

The student samples a rollout y for a prompt x. At each token of y a teacher gives its own distribution. The teacher is
a larger model (OPD, on-policy distillation) or the student's initial weights with the reference solution in the prompt
(OPSD, on-policy self-distillation). The student descends the divergence between the two (Eq. 2-3). ReNIO gives each
rollout a weight: the student's excess confidence over the teacher in the tokens where it is largest (Eq. 4-9). It
never looks at the answer. Equations are those of "ReNIO", arXiv 2606.23104v1.

README lists what the released code does otherwise. GRPO has no KL term, as there, and is not for code.

Read it from the top: flags, the weight, the divergence, models, rollouts, one update, the loop. Below stands the rest.
"""

import argparse
import contextlib
import ctypes
import gzip
import importlib.metadata
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from array import array
from collections import Counter, namedtuple
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, get_args

try:
    import torch
    import torch.distributed as dist
    from filelock import FileLock, Timeout
    from torch.nn.functional import linear
    from torch.utils.checkpoint import checkpoint
    from tqdm import tqdm
    from transformers import HfArgumentParser
    from transformers.utils import logging as transformers_logging
except ModuleNotFoundError as error:
    sys.exit(f"renio.py: {error}; run `bash run_all.sh setup`, then `source .venv/bin/activate`")


# --- flags and presets ------------------------------------------------------------------------------------------------
def flag(default, text):
    """A field of Config: its default and its line of --help."""
    return field(default=default, metadata=dict(help=f"{text} (default: %(default)s)"))


@dataclass
class Config:
    """Flags of a run; GROUPS says which methods read them. An explicit flag wins over --variant, that over --scale."""

    output_dir: str | None = flag(None, "folder for config.json, metrics.jsonl, checkpoint-N/ and final/ (required)")
    scale: Literal["micro", "small", "one", "paper"] | None = flag(None, "preset; see SCALES in renio.py (none: micro)")
    method: Literal["sft", "grpo", "opd", "opsd"] = flag("opd", "fine-tuning, GRPO, distillation, self-distillation")
    variant: Literal["paper", "official"] = flag("paper", "the paper's equations, or the released code's behaviour")
    resume: bool = flag(False, "continue from the newest checkpoint in output_dir; start if there is none")
    seed: int = flag(0, "seed of initial weights, data order and rollouts")
    save_steps: int = flag(25, "updates between checkpoints; 0 saves only final/")
    save_rollouts: bool = flag(False, "opd and opsd: write every rollout, its weight and log-ratios to rollouts.jsonl")
    model: str = flag("Qwen/Qwen3-1.7B", "student: a folder, a hub name, init:micro or init:micro-teacher (random)")
    teacher: str | None = flag(None, "opd: a folder or a hub name; opsd's teacher is the student's initial weights")
    lora_r: int = flag(64, "rank of the LoRA adapter of all linear layers but the head; 0 trains all weights")
    lora_alpha: int = flag(128, "the adapter is scaled by lora_alpha / lora_r")
    dtype: Literal["float32", "bfloat16"] = flag("bfloat16", "data type of the weights")
    gradient_checkpointing: bool = flag(True, "recompute activations in the backward pass")
    dataset: str = flag("siyanzhao/Openthoughts_math_30k_opsd", "hub name, file, or arith, arith-gaps, products")
    task: Literal["math", "code", "arith"] = flag("math", "which prompts to use")
    student_prompt: str | None = flag(None, "message with {problem}; default: the task's in PROMPTS")
    teacher_prompt: str | None = flag(None, "message with {problem} and, if privileged, {solution}")
    privileged: bool = flag(False, "the teacher's prompt holds the solution; default: true for opsd")
    student_thinking: bool = flag(False, "thinking mode of the chat template in the student's prompt")
    teacher_thinking: bool = flag(True, "thinking mode of the chat template in the teacher's prompt")
    max_prompt_tokens: int = flag(4096, "problems with a longer prompt on either side are skipped and counted")
    privileged_share: float = flag(0.0, "sft: share of rows with the solution in the prompt")
    prefix_tokens: int = flag(1024, "longest rollout in tokens; the paper: 1024 (Qwen3), 2048 (R1), 4096 (full)")
    temperature: float = flag(1.1, "of the rollouts, and of both distributions in the loss")
    top_p: float = flag(1.0, "rollouts are drawn from the likeliest tokens that hold this probability; 1: off")
    top_k: int = flag(0, "rollouts are drawn from this many likeliest tokens; 0: off")
    rollout_engine: Literal["transformers", "vllm"] = flag("transformers", "what samples the rollouts")
    vllm_memory: float = flag(0.3, "share of the GPU's memory that vLLM may take")
    beta: float = flag(0.0, "divergence: 0 forward KL(T||S), 1 reverse KL(S||T), between: generalized JSD")
    skip_tokens: int = flag(0, "leave this many first tokens of each rollout out of loss and weight")
    token_reduction: Literal["sum", "mean"] = flag("sum", "over the tokens of a rollout (Eq. 2: sum)")
    entry_clip: float | None = flag(None, "clip each vocabulary entry's term of the divergence to [0, this], in nats")
    weighting: Literal["none", "renio", "renio_shuffled", "ts_sample", "st_token", "correctness"] = flag(
        "none", "weights of rollouts or tokens; see WEIGHTINGS in renio.py"
    )
    threshold: float = flag(0.8, "tau: tokens with a larger log-ratio are key tokens (Eq. 6)")
    log_ratio_clip: float = flag(3.0, "epsilon_max: upper clip of the key tokens' log-ratio (Algorithm 1)")
    log_ratio_clip_min: float | None = flag(None, "epsilon_min: lower clip (Algorithm 1)")
    weight_norm: Literal["batch", "none"] = flag("batch", "divide by the batch's mean weight (Eq. 8), or not")
    generations: int = flag(8, "rollouts per prompt; each reward is compared with its group's mean")
    iterations: int = flag(2, "updates on the same rollouts")
    batch_size: int = flag(32, "rollouts per update, over all GPUs")
    micro_batch_size: int = flag(4, "rollouts per forward and backward pass on one GPU")
    learning_rate: float = flag(5e-6, "of AdamW without weight decay; the paper: 5e-6 (Qwen3), 1e-6 (R1)")
    warmup_steps: int = flag(0, "the learning rate rises linearly over this many updates")
    schedule_steps: int = flag(0, "the learning rate falls linearly to 0 over this many updates; 0: constant")
    max_steps: int = flag(100, "batches of rollouts; one update each (grpo: --iterations updates)")
    max_grad_norm: float = flag(0.0, "clip of the gradient's norm; 0: off")

    @property
    def examples_needed(self):
        return self.max_steps * self.batch_size


# first flag of each group of --help -> the group's title
GROUPS = {"output_dir": "the run", "model": "models", "dataset": "data and prompts", "batch_size": "optimization"}
GROUPS |= {"prefix_tokens": "rollouts (opd, opsd, grpo; sft cuts solutions to prefix_tokens)", "generations": "grpo"}
GROUPS["beta"] = "distillation (opd, opsd; token_reduction also grpo)"


# --- the weight -------------------------------------------------------------------------------------------------------
def sample_weights(student_logprobs, teacher_logprobs, mask, threshold, clip_max, clip_min=None, official=False):
    """ReNIO's weight w of each rollout, before Eq. 8 (Eq. 4-7, Algorithm 1): (B,), without a gradient.

    student_logprobs, teacher_logprobs: (B, T), log-probabilities of the sampled tokens, in nats. mask: (B, T), true on
    the rollout's tokens; other entries are never read. threshold: tau. clip_max, clip_min: epsilon_max, epsilon_min.
    official: as the released code does, clip first, then select with >=. Without key tokens a rollout weighs 1.
    """
    mask = mask.bool()
    log_ratio = (student_logprobs - teacher_logprobs).detach()  # Eq. 4-5, (B, T)
    if official:
        log_ratio = log_ratio.clamp(max=clip_max)
        key_tokens = (log_ratio >= threshold) & mask
    else:
        key_tokens = (log_ratio > threshold) & mask  # Eq. 6
        log_ratio = log_ratio.clamp(clip_min, clip_max)  # Algorithm 1, line 15
    return mean_over(key_tokens, log_ratio).exp()  # Eq. 7


def mean_over(chosen, values):
    """Mean of the chosen values (B, T) of each row, (B,); 0 where none is chosen."""
    return values.masked_fill(~chosen, 0.0).sum(1) / chosen.sum(1).clamp(min=1)


class TokenColumns(NamedTuple):
    """What is known of each token of a micro-batch: b rollouts, padded to T tokens. Outside the mask all is 0."""

    divergence: torch.Tensor  # d(p_S, p_T) in nats, (b, T); only this one has a gradient
    student_logprobs: torch.Tensor  # of the sampled tokens, (b, T)
    teacher_logprobs: torch.Tensor  # (b, T)
    teacher_entropy: torch.Tensor  # nats, (b, T)
    mask: torch.Tensor  # true on the tokens that count, (b, T)
    correct: list  # b verdicts: True, False, or None where there is no answer to grade

    @property
    def log_ratio(self):  # Eq. 4-5, (b, T)
        return (self.student_logprobs - self.teacher_logprobs).detach()


# A weighting takes TokenColumns and the config. It returns weights before Eq. 8, without a gradient: (b, 1) for weights
# of rollouts, (b, T) for weights of tokens.


def renio_weights(tokens, config):
    """ReNIO (Eq. 4-7): a rollout weighs more if the student was more confident than the teacher in its key tokens."""
    student, teacher, official = tokens.student_logprobs, tokens.teacher_logprobs, config.variant == "official"
    clip_max, clip_min = config.log_ratio_clip, config.log_ratio_clip_min
    return sample_weights(student, teacher, tokens.mask, config.threshold, clip_max, clip_min, official)[:, None]


def ts_sample_weights(tokens, config):
    """T/S sample weights (Table 8): ReNIO with student and teacher exchanged."""
    exchanged = dict(student_logprobs=tokens.teacher_logprobs, teacher_logprobs=tokens.student_logprobs)
    return renio_weights(tokens._replace(**exchanged), config)


def st_token_weights(tokens, config):
    """S/T token weights (Table 8): a key token weighs exp of its clipped log-ratio, any other token 1."""
    clipped = tokens.log_ratio.clamp(config.log_ratio_clip_min, config.log_ratio_clip)
    return torch.where(tokens.log_ratio > config.threshold, clipped.exp(), 1.0)


def correctness_weights(tokens, config):
    """An oracle: an incorrect rollout has ReNIO's largest weight, any other rollout weighs 1."""
    incorrect = torch.tensor([[correct is False] for correct in tokens.correct], device=tokens.mask.device)
    return torch.where(incorrect, math.exp(config.log_ratio_clip), 1.0)


WEIGHTINGS = {  # --weighting -> its function; to try a weight of your own, add it here and to Config.weighting
    "none": lambda tokens, config: torch.ones_like(tokens.log_ratio[:, :1]),  # plain distillation
    "renio": renio_weights,
    "renio_shuffled": renio_weights,  # a control: distillation_step deals these weights to the rollouts at random
    "ts_sample": ts_sample_weights,
    "st_token": st_token_weights,
    "correctness": correctness_weights,
}


def rollout_weights(weights, mask):
    """The weight of each rollout (b,): of weights (b, T) the mean over its tokens."""
    return weights[:, 0] if weights.shape[1] == 1 else mean_over(mask, weights)


# --- the divergence ---------------------------------------------------------------------------------------------------
def token_divergence(student_logits, teacher_logits, beta=0.0, temperature=1.0, entry_clip=None):
    """Divergence of teacher and student at every token, over the full vocabulary (the summand of Eq. 2).

    student_logits, teacher_logits: (..., V), before both are divided by `temperature`.
    beta: 0 forward KL(T||S), 1 reverse KL(S||T); between them the generalized JSD with the mixture
        m = (1 - beta) p_S + beta p_T: beta KL(T||m) + (1 - beta) KL(S||m)  (Agarwal et al. 2024, Eq. 1).
    entry_clip: clips each vocabulary entry's term to [0, entry_clip] before the sum, as the released code does.
    Returns (...) in nats, differentiable in both logits. Raises ValueError for different shapes.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"logits of different shapes: {tuple(student_logits.shape)}, {tuple(teacher_logits.shape)}")
    log_s = (student_logits / temperature).log_softmax(-1)  # (..., V)
    log_t = (teacher_logits / temperature).log_softmax(-1)  # (..., V)
    if beta == 0:
        terms = log_t.exp() * (log_t - log_s)
    elif beta == 1:
        terms = log_s.exp() * (log_s - log_t)
    else:
        log_m = torch.logaddexp(log_s + math.log(1 - beta), log_t + math.log(beta))
        terms = beta * log_t.exp() * (log_t - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)
    if entry_clip is not None:
        terms = terms.clamp(0.0, entry_clip)
    return terms.sum(-1)


# What `chunked_divergence` returns of each token, (N,) each, in nats; only the divergence has a gradient.
TokenDivergence = namedtuple("TokenDivergence", "divergence student_logprob teacher_logprob teacher_entropy")
LOGITS = 2 * 10**7  # logits of each model that are held at a time
CACHED = 10**6  # on a CPU, logits that are worked on at a time; they fit the cache


def chunked_divergence(
    hidden, teacher_hidden, head, teacher_head, tokens, beta=0.0, temperature=1.0, entry_clip=None, chunk=None
):
    """`token_divergence` of hidden states, chunk by chunk: the full N x V logits are never held.

    hidden: (N, D), teacher_hidden: (N, D'), the last hidden states at the positions that predict `tokens` (N,).
    head, teacher_head: each a Head, or its weight (V, D). The larger vocabulary is cut to the size of the other.
    chunk: tokens whose logits are held at a time.
    Returns a TokenDivergence, differentiable in `hidden` and in the student's head.
    """
    heads = [Head(head) if isinstance(head, torch.Tensor) else Head(*head) for head in (head, teacher_head)]
    vocabulary = min(len(head.weight) for head in heads)
    head = heads[0].rows(vocabulary)  # opsd with LoRA has one head: one copy in float32 serves both models
    teacher_head = head if heads[1].weight is heads[0].weight else heads[1].rows(vocabulary)
    chunk = chunk or chunk_size(vocabulary, hidden.device)
    fixed = teacher_hidden, teacher_head, tokens, chunk, (beta, temperature, entry_clip)
    divergence, others = ChunkedDivergence.apply(hidden, *head, fixed)
    return TokenDivergence(divergence, *others)


class ChunkedDivergence(torch.autograd.Function):
    """`chunked_divergence`. If the head is frozen, forward computes the gradient, so that the heads can be freed."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, fixed):
        frozen, needs_grad = not any(ctx.needs_input_grad[1:3]), ctx.needs_input_grad[0]
        columns, gradient = weight.new_empty(4, len(hidden)), torch.empty_like(hidden, dtype=weight.dtype)
        for rows, of_chunk, logit_grad in divergence_chunks(hidden, Head(weight, bias), *fixed, frozen and needs_grad):
            columns[:, rows] = of_chunk
            if frozen and needs_grad:
                torch.mm(logit_grad, weight, out=gradient[rows])
        ctx.fixed = None if frozen else fixed
        ctx.save_for_backward(gradient, *((None, None, None) if frozen else (hidden, weight, bias)))
        ctx.mark_non_differentiable(others := columns[1:].clone())
        return columns[0].clone(), others

    @staticmethod
    def backward(ctx, upstream, _):
        gradient, hidden, weight, bias = ctx.saved_tensors
        if ctx.fixed is None:
            return gradient * upstream[:, None], None, None, None
        weight_gradient, bias_gradient = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        for rows, _, logit_grad in divergence_chunks(hidden, Head(weight, bias), *ctx.fixed, True):
            logit_grad *= upstream[rows, None]
            torch.mm(logit_grad, weight, out=gradient[rows])
            weight_gradient.addmm_(logit_grad.T, widen(hidden[rows]))
            if bias is not None:
                bias_gradient += logit_grad.sum(0)
        return gradient, weight_gradient, bias_gradient, None


def divergence_chunks(hidden, head, teacher_hidden, teacher_head, tokens, chunk, settings, with_grad):
    """For each chunk: its rows, the columns of its TokenDivergence (4, n), and the divergence's gradient for logits.

    Autograd computes the gradient (n, V), which overwrites the logits to save memory. On a CPU `token_divergence` is
    called for a few rows at a time, so that all that it computes fits the cache.
    """
    part, temperature = max(1, CACHED // len(head.weight)) if hidden.device.type == "cpu" else chunk, settings[1]
    for start in range(0, len(tokens), chunk):
        rows = slice(start, start + chunk)
        logits, teacher_logits = float32_logits(hidden[rows], head), float32_logits(teacher_hidden[rows], teacher_head)
        columns, pieces = logits.new_empty(4, len(logits)), (logits, teacher_logits, tokens[rows])
        pieces = zip(*(x.split(part) for x in pieces), columns.split(part, 1), strict=True)
        for student_part, teacher_part, token, column in pieces:
            with torch.enable_grad():
                leaf = student_part.detach().requires_grad_(with_grad)
                divergence = token_divergence(leaf, teacher_part, *settings)
            log_t = (teacher_part / temperature).log_softmax(-1)
            teacher_logprob, entropy = log_t.gather(1, token[:, None]).squeeze(1), -(log_t.exp() * log_t).sum(1)
            student_logprob = token_logprobs(student_part, token, temperature)
            torch.stack([divergence.detach(), student_logprob, teacher_logprob, entropy], out=column)
            if with_grad:
                [gradient] = torch.autograd.grad(divergence, leaf, torch.ones_like(divergence))
                student_part.copy_(gradient)  # in place of the logits
        yield rows, columns, logits


def chunk_size(vocabulary, device):
    rows = max(1, LOGITS // vocabulary)
    return math.ceil(rows / 128) * 128 if "cuda" in str(device) else rows  # on a GPU whole tiles of a product


def token_logprobs(logits, tokens, temperature):
    """Log-probabilities (...) of the tokens (...) under logits (..., V) at the temperature."""
    logits = logits / temperature
    return logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)


class Head(NamedTuple):
    """The output layer of a language model: logits = hidden @ weight.T + bias."""

    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None = None  # (V,)

    @classmethod
    def of(cls, model):
        layer = model.get_output_embeddings()
        return cls(layer.weight, getattr(layer, "bias", None))

    def rows(self, count):
        """The first rows of the head in float32 or finer."""
        return Head(*(None if x is None else widen(x[:count]) for x in self))


def widen(tensor):
    """The tensor in float32; a float64 tensor stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def float32_logits(hidden, head):
    """Logits (..., V) in float32 (or finer) of hidden states (..., D), whatever the data type of the model.

    Logits rounded to 16 bit make gradients wrong by a tenth and more where student and teacher nearly agree. On a GPU
    the operands are multiplied as TF32, in which bfloat16 is exact.
    """
    return linear(widen(hidden), *head.rows(None))


# --- prompts and models: what student and teacher read, and their hidden states on the rollouts -----------------------
class Example(NamedTuple):
    """A row of the data set, with the token ids of both prompts; sft and grpo have no teacher."""

    row: dict
    student_prompt: list
    teacher_prompt: list | None = None


class Rollout(NamedTuple):
    """A completion of an example's prompt: sampled from the student, or for sft the solution."""

    example: Example
    completion: list  # token ids, the end included
    truncated: bool = False  # cut before its end
    correct: bool | None = None  # verdict; None where there is no answer to grade


def load_teacher(config, student, student_tokenizer, devices):
    """The teacher: a frozen model, a context for its forward pass, and its tokenizer.

    opd: another model. opsd: the student's initial weights; with LoRA that is the student without its adapter.
    """
    if config.method == "opsd" and config.lora_r:
        return student, student.disable_adapter, student_tokenizer
    if config.method == "opsd":
        tokenizer, model = student_tokenizer, load_model(config.model, config.dtype, devices.device, config.seed)
    else:
        tokenizer = load_tokenizer(config.teacher)
        ours, theirs = student_tokenizer.get_vocab(), tokenizer.get_vocab()
        other = next((token for token in sorted({*ours, *theirs}) if ours.get(token) != theirs.get(token)), None)
        need(other is None, f"--teacher {config.teacher}: not the student's vocabulary; they differ in {other!r}")
        model = load_model(config.teacher, config.dtype, devices.device)
    return model.requires_grad_(False), contextlib.nullcontext, tokenizer


def pad(rows, side, device="cpu"):
    """Ids (B, T) and mask (B, T) of lists of token ids, padded on the left or on the right."""
    rows = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    return [torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_side=side).to(device) for x in (rows, mask)]


def rows_of(completions, *columns):
    """Columns (N,) of the tokens of all completions as rows (b, T), 0 behind each end, and the rows' mask (b, T)."""
    lengths = torch.tensor([len(completion) for completion in completions], device=columns[0].device)
    mask = torch.arange(lengths.max(), device=lengths.device) < lengths[:, None]
    return [*(torch.zeros_like(mask, dtype=column.dtype).masked_scatter(mask, column) for column in columns), mask]


def completion_hidden(model, prompts, completions, padding_limit=1.0):
    """Hidden states (N, D) at the positions that predict the completions' tokens, row after row, and the tokens (N,).

    Prompts are padded on the left and completions on the right; position ids count real tokens, as in `sample`.
    A batch with more padding than the share padding_limit goes row by row (1: never; tests/bench_gpu.py compares).
    """
    device, pairs = next(model.parameters()).device, list(zip(prompts, completions, strict=True))
    padded = len(pairs) * (max(map(len, prompts)) + max(map(len, completions)))
    if 1 - sum(len(p) + len(c) for p, c in pairs) / padded > padding_limit:  # a row alone needs no mask
        rows = [completion_hidden(model, [prompt], [completion]) for prompt, completion in pairs]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]
    prompt, prompt_mask = pad(prompts, "left", device)  # (B, P)
    completion, completion_mask = pad(completions, "right", device)  # (B, T)
    mask = torch.cat([prompt_mask, completion_mask], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = dict(input_ids=torch.cat([prompt, completion], 1), attention_mask=mask, position_ids=positions)
    out = model.get_decoder()(**inputs, use_cache=False)
    predicting = out.last_hidden_state[:, prompt.shape[1] - 1 : -1]  # (B, T, D), position t - 1 predicts token t
    return predicting[completion_mask], completion[completion_mask]


# --- rollouts ---------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def sample(model, prompts, max_new_tokens, eos_ids, temperature=1.0, top_p=1.0, top_k=0, seed=0):
    """Sample a completion for each prompt; yields (index of the prompt, completion) as each ends.

    Prompts and completions are lists of token ids; a completion holds its end token. Temperature 0 is greedy. The same
    seed gives the same completions. Rows that have ended are dropped once they are half of the batch.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ends = torch.tensor(eos_ids, device=device)
    ids, mask = pad(prompts, "left", device)  # (B, P)
    positions, cache, head = (mask.cumsum(1) - 1).clamp(min=0), None, Head.of(model).rows(None)
    rows = list(range(len(prompts)))  # which prompt each row of the batch continues
    completions = [[] for _ in prompts]
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    with merged_adapter(model):
        for _ in range(max_new_tokens):
            inputs = dict(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
            out = model.get_decoder()(**inputs, use_cache=True)
            cache = out.past_key_values
            logits = float32_logits(out.last_hidden_state[:, -1], head)  # (B, V)
            tokens = draw_tokens(logits, temperature, top_p, top_k, generator)
            just_ended = torch.isin(tokens, ends) & ~ended
            for row, token, over, last in zip(rows, *(x.tolist() for x in (tokens, ended, just_ended)), strict=True):
                if not over:
                    completions[row].append(token)
                if last:
                    yield row, completions[row]
            ended = ended | just_ended
            going_on = int((~ended).sum())
            if going_on == 0:
                break
            if going_on <= len(rows) // 2:
                keep = (~ended).nonzero().squeeze(1)
                cache.reorder_cache(keep)
                tokens, mask, positions, ended = tokens[keep], mask[keep], positions[keep], ended[keep]
                rows = [rows[i] for i in keep.tolist()]
            ids = tokens[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    for row, over in zip(rows, ended.tolist(), strict=True):
        if not over:  # cut at max_new_tokens
            yield row, completions[row]


def draw_tokens(logits, temperature, top_p, top_k, generator):
    """A token (B,) for each row of logits (B, V), by inverse transform sampling with one uniform number a row.

    In float64, so that a token without probability is never drawn. torch.multinomial takes forty times as long.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = filter_logits(logits / temperature, top_p, top_k).softmax(-1)
    mass = probs.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(len(probs), 1, dtype=torch.float64, device=probs.device, generator=generator)
    return torch.searchsorted(mass, uniform * mass[:, -1:], right=True).squeeze(1)


def filter_logits(logits, top_p=1.0, top_k=0):
    """Set all logits (B, V) to -inf but the top_k largest, and of these the fewest that hold top_p of the mass."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.topk(min(logits.shape[-1], 1000))  # far faster than a sort of a large vocabulary
        mass = (ordered - logits.logsumexp(-1, keepdim=True)).exp()
        if mass.sum(-1).min() < top_p:  # a thousand tokens don't suffice in every row
            ordered, order = logits.sort(descending=True)
            mass = ordered.softmax(-1)
        needed = mass.cumsum(-1) - mass < top_p  # the tokens before this one don't suffice
        logits = torch.full_like(logits, float("-inf")).scatter(1, order, ordered.masked_fill(~needed, float("-inf")))
    return logits


def draw_rollouts(sampler, examples, step, config, devices):
    """This rank's rollouts of update `step`, and metrics of drawing them (none)."""
    repeats = config.generations if config.method == "grpo" else 1
    problems = config.batch_size // repeats
    batch = [example for example in examples[step * problems : (step + 1) * problems] for _ in range(repeats)]
    return sampler(devices.part_of(batch), rollout_seed(config, step, devices.rank)), {}


def rollout_seed(config, step, rank):
    return (config.seed * 100_000 + step) * 1_000 + rank  # a resumed run draws what an uninterrupted one does


# --- one update -------------------------------------------------------------------------------------------------------
def distillation_step(student, teacher, rollouts, config, devices, shuffle_seed=0):
    """Gradients of sum_i w_i D_i; returns the divisor (Eq. 8: sum_i w_i) and a record of each rollout.

    `update` divides by the divisor once, so the result does not depend on how the batch is split (Eq. 8-9).
    """
    shuffled = None
    if config.weighting == "renio_shuffled":
        shuffled = shuffled_weights(student, teacher, rollouts, config, devices, shuffle_seed)  # (B,)
    normalized = config.weighting != "none" and config.weight_norm == "batch"
    divisor, records = 0.0, []
    for batch in micro_batches(rollouts, config):
        tokens = compare(student, teacher, batch, config)  # d of Eq. 2, log p of Eq. 4, (b, T) each
        if shuffled is None:
            weights = WEIGHTINGS[config.weighting](tokens, config)  # w, Eq. 4-7, (b, 1) or (b, T)
        else:
            weights = shuffled[len(records) : len(records) + len(batch), None]
        if normalized and config.variant == "official":  # the release: over the micro-batch, then at most 10
            weights = (weights / rollout_weights(weights, tokens.mask).mean()).clamp(max=10.0)
        losses = (weights * tokens.divergence).sum(1)  # w D, (b,)
        if config.token_reduction == "mean":
            losses = losses / tokens.mask.sum(1).clamp(min=1)
        losses.sum().backward()
        means = rollout_weights(weights, tokens.mask)  # (b,)
        if normalized and config.variant == "paper":
            divisor += means.sum().item()  # B times the mean weight of Eq. 8
        else:
            divisor += len(batch)
        records += distillation_records(batch, tokens, losses, means, config)
    return divisor, records


def compare(student, teacher, rollouts, config):
    """The TokenColumns of a micro-batch: a forward pass of the teacher, then one of the student."""
    teacher_model, teacher_context, _ = teacher
    with torch.no_grad(), teacher_context():
        prompts = [rollout.example.teacher_prompt for rollout in rollouts]
        teacher_hidden, _ = completion_hidden(teacher_model, prompts, [rollout.completion for rollout in rollouts])
    hidden, tokens = student_hidden(student, rollouts)
    heads, settings = (Head.of(student), Head.of(teacher_model)), (config.beta, config.temperature, config.entry_clip)
    columns = chunked_divergence(hidden, teacher_hidden, *heads, tokens, *settings)
    *rows, mask = rows_of([rollout.completion for rollout in rollouts], *columns)
    mask = mask & (torch.arange(mask.shape[1], device=mask.device) >= config.skip_tokens)
    rows = [row.masked_fill(~mask, 0.0) for row in rows]
    return TokenColumns(*rows, mask, [rollout.correct for rollout in rollouts])


def student_hidden(student, rollouts):
    prompts = [rollout.example.student_prompt for rollout in rollouts]
    return completion_hidden(student, prompts, [rollout.completion for rollout in rollouts])


def shuffled_weights(student, teacher, rollouts, config, devices, seed):
    """ReNIO's weights of the whole batch, dealt to this rank's rollouts at random, (B,): an extra forward pass."""
    weights = []
    with torch.no_grad():
        for batch in micro_batches(rollouts, config):
            weights += renio_weights(compare(student, teacher, batch, config), config)[:, 0].tolist()
    weights = devices.gather(weights)
    random.Random(seed).shuffle(weights)
    return torch.tensor(devices.part_of(weights), device=devices.device)


def micro_batches(rollouts, config):
    return [rollouts[i : i + config.micro_batch_size] for i in range(0, len(rollouts), config.micro_batch_size)]


def by_length(rollouts, config):
    """The rollouts by length, since a micro-batch costs as much as its longest rollout."""
    if config.method == "grpo" or config.variant == "official":  # groups and official micro-batches keep their order
        return rollouts
    return sorted(rollouts, key=lambda rollout: len(rollout.example.student_prompt) + len(rollout.completion))


def update(optimizer, trained, divisor, config, devices):
    """One step with the gradients over the divisor, both summed over all ranks; returns gradient norm and divisor.

    A gradient that is not finite changes nothing.
    """
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # no gradient: an expert that no token chose
    gradients = [p.grad for p in trained]
    divisor = devices.sum(gradients, divisor)
    for gradient in gradients:
        gradient.div_(divisor)  # Eq. 8 and 9: sum of w grad D / sum of w
    grad_norm = torch.nn.utils.get_total_norm(gradients).item()
    if 0 < config.max_grad_norm < grad_norm:
        for gradient in gradients:
            gradient.mul_(config.max_grad_norm / grad_norm)
    if math.isfinite(grad_norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm, divisor


def learning_rate(config, step):
    """Of update `step` (from 0): linear warm-up, then constant, or linear to 0 at schedule_steps."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    fall = 1 - step / config.schedule_steps if config.schedule_steps else 1.0
    return config.learning_rate * rise * fall


# --- the loop ---------------------------------------------------------------------------------------------------------
def train(config, draw=draw_rollouts):
    """Train by config.method into output_dir. draw: chooses the rollouts of an update, as `draw_rollouts` does."""
    devices = connect(config)
    start = open_output(config, devices)  # the newest checkpoint, or None
    student, tokenizer = load_student(config, devices, start)
    teacher = None
    if config.method in ("opd", "opsd"):
        teacher = load_teacher(config, student, tokenizer, devices)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0, fused=True)
    if start:
        optimizer.load_state_dict(torch.load(start / "trainer_state.pt", map_location="cpu", weights_only=True))
    first_step = step_of(start) if start else 0
    examples = load_examples(config, tokenizer, teacher)
    sampler = Sampler(config, student, tokenizer, examples, devices)  # by transformers or vLLM
    log = Log(config, devices, first_step)
    log.announce(student, tokenizer, teacher, examples)

    for step in log.bar:
        started = now()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)

        with sampler:  # vLLM loads the student's current weights
            rollouts, drawn = draw(sampler, examples, step, config, devices)
        rollouts, drawn["seconds_rollout"] = by_length(rollouts, config), now() - started

        old_logprobs = None  # grpo: set by the first update on these rollouts
        for _ in range(config.iterations if config.method == "grpo" else 1):
            if config.method == "sft":
                divisor, records = sft_step(student, rollouts, config)
            elif config.method == "grpo":
                divisor, records, old_logprobs = grpo_step(student, rollouts, old_logprobs, config, devices)
            else:
                shuffle_seed = rollout_seed(config, step, rank=0)
                divisor, records = distillation_step(student, teacher, rollouts, config, devices, shuffle_seed)
            grad_norm, divisor = update(optimizer, trained, divisor, config, devices)

        log.write(step, devices.gather(records), divisor, grad_norm, drawn, now() - started)
        if config.save_steps and (step + 1) % config.save_steps == 0:
            save(config, f"checkpoint-{step + 1}", student, tokenizer, devices, optimizer)
    save(config, "final", student, tokenizer, devices)


# ----------------------------------------------------------------------------------------------------------------------
# Below: what real runs need besides the method
# --- presets: what differs from the paper's settings, which are Config's defaults (Tables 5 and 6) --------------------
MICRO = dict(model="init:micro", dataset="arith", task="arith", lora_r=0, dtype="float32", gradient_checkpointing=False)
MICRO |= dict(prefix_tokens=50, temperature=1.0, micro_batch_size=16, max_prompt_tokens=256, save_steps=10)
MICRO |= dict(learning_rate=4.5e-4, warmup_steps=5, max_steps=50, schedule_steps=50)
MICRO_SFT = MICRO | dict(learning_rate=2e-3, warmup_steps=50, max_steps=1800, schedule_steps=1800, save_steps=600)
MICRO_SFT |= dict(batch_size=16, max_grad_norm=1.0)
SMALL = dict(model="HuggingFaceTB/SmolLM2-135M-Instruct", dataset="products", dtype="float32", lora_r=16, lora_alpha=32)
SMALL |= dict(gradient_checkpointing=False, prefix_tokens=80, temperature=1.0, batch_size=16)
SMALL |= dict(learning_rate=3e-4, warmup_steps=3, max_steps=40, schedule_steps=40, save_steps=40)
SMALL_SFT = SMALL | dict(lora_r=0, learning_rate=3e-5, max_steps=16, schedule_steps=0)
ONE = dict(max_prompt_tokens=2048, micro_batch_size=8, vllm_memory=0.4)
MICRO_GRPO = MICRO | dict(learning_rate=3e-4, token_reduction="mean")
PAPER_GRPO = dict(prefix_tokens=16_000, temperature=1.2, max_steps=150, token_reduction="mean", student_thinking=True)
SCALES = {
    "micro": dict(sft=MICRO_SFT, grpo=MICRO_GRPO, opd=MICRO, opsd=MICRO),
    "small": dict(sft=SMALL_SFT, grpo=SMALL, opd=SMALL, opsd=SMALL),
    "one": dict(sft=ONE, grpo=ONE, opd=ONE | dict(model="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B"), opsd=ONE),
    "paper": dict(sft={}, grpo=PAPER_GRPO, opd=dict(teacher="Qwen/Qwen3-8B"), opsd={}),
}
# of the released scripts for 1.7B; thresholds, clips and micro-batches differ by model: run_all.sh sets them
OFFICIAL = dict(token_reduction="mean", entry_clip=0.05, top_p=0.95, top_k=20, max_grad_norm=1.0)
OFFICIAL |= dict(schedule_steps=126, max_prompt_tokens=20_000)
OFFICIAL_GRPO = dict(max_grad_norm=1.0, schedule_steps=150, max_prompt_tokens=2048)
VARIANTS = {"paper": {}, "official": dict(grpo=OFFICIAL_GRPO, opd=OFFICIAL, opsd=OFFICIAL)}


# --- the baselines: supervised fine-tuning and GRPO -------------------------------------------------------------------
def sft_step(student, rollouts, config):
    """Gradients of the solutions' cross-entropy, summed over tokens; returns the number of tokens and records."""
    divisor, records = 0.0, []
    for batch in micro_batches(rollouts, config):
        logprobs, mask = completion_logprobs(student, batch, 1.0)  # (b, T)
        losses = -logprobs.sum(1)  # (b,)
        losses.sum().backward()
        divisor += mask.sum().item()
        records += rollout_records(batch, loss=losses)
    return divisor, records


def grpo_step(student, rollouts, old_logprobs, config, devices):
    """Gradients of GRPO's loss (Shao et al. 2024) without its KL term; returns divisor, records and old_logprobs.

    Rollouts of one prompt stand together, config.generations of them. The reward is 1 for a correct rollout, else 0.
    old_logprobs: under the weights that sampled, a tensor (b, T) per micro-batch; None in the first update on them.
    """
    rewards = devices.gather([float(rollout.correct is True) for rollout in rollouts])  # a group may span two ranks
    groups = torch.tensor(rewards).view(-1, config.generations)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    advantages = devices.part_of(advantages.flatten()).to(devices.device)  # (B,)
    new_logprobs, records = [], []
    for i, batch in enumerate(micro_batches(rollouts, config)):
        logprobs, mask = completion_logprobs(student, batch, config.temperature)  # (b, T)
        new_logprobs.append(logprobs.detach())
        old = logprobs.detach() if old_logprobs is None else old_logprobs[i]
        advantage = advantages[len(records) :][: len(batch), None]  # (b, 1)
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(0.8, 1.2)
        losses = -(torch.minimum(ratio * advantage, clipped * advantage) * mask).sum(1)  # (b,)
        if config.token_reduction == "mean":
            losses = losses / mask.sum(1)
        losses.sum().backward()
        outside = (ratio.detach() != clipped.detach()) & mask
        records += rollout_records(batch, loss=losses, advantage=advantage[:, 0], clipped=outside.sum(1))
    return float(len(rollouts)), records, old_logprobs or new_logprobs


def completion_logprobs(student, rollouts, temperature):
    """Log-probabilities (b, T) of the rollouts' tokens under the student, 0 behind each end, and the mask (b, T)."""
    hidden, tokens, head = *student_hidden(student, rollouts), Head.of(student).rows(None)

    def logprobs_of(hidden, tokens):
        return token_logprobs(float32_logits(hidden, head), tokens, temperature)

    rows = chunk_size(len(head.weight), tokens.device)
    parts = list(zip(hidden.split(rows), tokens.split(rows), strict=True))
    if len(parts) > 1:  # backward computes each chunk again
        logprobs = torch.cat([checkpoint(logprobs_of, *part, use_reentrant=False) for part in parts])
    else:
        logprobs = logprobs_of(hidden, tokens)
    return rows_of([rollout.completion for rollout in rollouts], logprobs)


# --- prompts ----------------------------------------------------------------------------------------------------------
MATH = "Reason step by step and put the final answer in \\boxed{}."
CODE = "Reason step by step and end with the complete program in one ```python block."
REFERENCE = (
    "{problem}\n\nA correct reference {kind} follows.\n--- reference begins ---\n{solution}\n"
    "--- reference ends ---\n\nStudy the reference until you understand why it works. Then solve the {task} afresh, in "
    "your own words and without quoting it. "
)
PROMPTS = {  # task -> the student's message, and that of a privileged teacher; our own wording of the release's
    "math": ("{problem}\n\n" + MATH, REFERENCE.replace("{kind}", "solution").replace("{task}", "problem") + MATH),
    "code": ("{problem}\n\n" + CODE, REFERENCE.replace("{kind}", "program").replace("{task}", "task") + CODE),
    "arith": ("{problem}", "reference {solution} again {problem}"),
}


class UserError(Exception):
    """A mistake in flags, files or data. The user is told in one line, without a traceback."""


def need(condition, message):
    """Raise UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def prompt_templates(config):
    """The templates of the student's message and of the teacher's; for sft the second is for rows with a solution."""
    student, privileged = PROMPTS[config.task]
    student = config.student_prompt or student
    return student, config.teacher_prompt or (privileged if config.privileged or config.method == "sft" else student)


def fill_prompt(template, row):
    """The template with the row's problem and solution; other braces, as in \\boxed{}, stay as they are."""
    return re.sub(r"\{(problem|solution)\}", lambda match: row[match[1]], template)


def prompt_ids(tokenizer, messages, thinking):
    """Token ids of a chat for each message of a user, arrays of 4 bytes an id; thinking: `enable_thinking` of each."""
    name, texts, prompts = tokenizer.name_or_path, [], []
    for message, its_thinking in zip(messages, thinking, strict=True):
        text = render_chat(tokenizer, message, its_thinking)
        if message.strip() not in text:  # some templates want the content as a list of parts
            text = render_chat(tokenizer, [dict(type="text", text=message)], its_thinking)
        need(message.strip() in text, f"the chat template of {name} drops the problem from the prompt")
        texts.append(text)
    for ids, message in zip(tokenizer(texts, add_special_tokens=False)["input_ids"], messages, strict=True):
        unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
        need(2 * unknown <= len(ids), f"most of a prompt is unknown to the tokenizer of {name}: {message[:60]!r}")
        prompts.append(array("i", ids))
    return prompts


def render_chat(tokenizer, content, thinking):
    name, chat = tokenizer.name_or_path, [dict(role="user", content=content)]
    need(tokenizer.chat_template, f"the tokenizer of {name} has no chat template: use an instruct model")
    try:
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=thinking, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise UserError(f"the chat template of {name} fails: {one_line(error)}") from None


# --- data -------------------------------------------------------------------------------------------------------------
def load_examples(config, tokenizer, teacher):
    """The examples of the whole run, in order; each epoch takes the usable rows in a new order. Counts skipped rows."""
    needed, rng = config.examples_needed, random.Random(config.seed)
    rows = read_rows(config, rng)
    rng.shuffle(rows)
    usable, skipped = [], Counter()
    for start in range(0, len(rows), 1000):  # tokenizers work faster on many texts at once
        if len(usable) < needed:
            usable += render_rows(config, rows[start : start + 1000], tokenizer, teacher, rng, skipped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    need(usable, f"--dataset {config.dataset}: none of {len(rows)} problems can be used: {reasons}")
    if skipped and os.environ.get("RANK", "0") == "0":
        print(f"{config.dataset}: problems skipped: {reasons}", flush=True)
    examples = list(usable)
    while len(examples) < needed:
        rng.shuffle(usable)
        examples += usable
    return examples[:needed]


def render_rows(config, rows, tokenizer, teacher, rng, skipped):
    """The usable ones of the rows as Examples; counts the others in `skipped`, a Counter, by reason."""
    student_template, teacher_template = prompt_templates(config)
    longest, messages, thinking, examples = config.max_prompt_tokens, [], [], []
    if config.privileged or config.method == "sft":
        skipped.update("without a solution" for row in rows if not row["solution"])
        rows = [row for row in rows if row["solution"]]
    if not rows:  # a tokenizer takes no empty list
        return []
    for row in rows:
        messages.append(fill_prompt(teacher_template if row.get("privileged") else student_template, row))
        if config.method == "sft" and config.task == "arith":  # a micro model has to know both of its chat's openings
            thinking.append(rng.random() < 0.5)
        else:
            thinking.append(config.student_thinking)
    prompts, teacher_prompts = prompt_ids(tokenizer, messages, thinking), [None] * len(rows)
    if teacher:
        messages = [fill_prompt(teacher_template, row) for row in rows]
        teacher_prompts = prompt_ids(teacher[2], messages, [config.teacher_thinking] * len(rows))
    for row, prompt, teacher_prompt in zip(rows, prompts, teacher_prompts, strict=True):
        if config.variant == "official" and teacher:  # the released code cuts a long prompt at its end
            prompt, teacher_prompt = prompt[:longest], teacher_prompt[:longest]
        if max(len(prompt), len(teacher_prompt or ())) <= longest:
            examples.append(Example(row, prompt, teacher_prompt))
        else:
            skipped[f"with a prompt of more than {longest} tokens (--max_prompt_tokens)"] += 1
    return examples


def read_rows(config, rng):
    """The rows of --dataset. For sft `privileged` says whether a row's prompt holds the solution."""
    make, share = SYNTHETIC.get(config.dataset), config.privileged_share
    if make:
        rows = make(config.examples_needed, config.seed)
    else:
        rows = read_problems(config.dataset, "train", config.privileged or config.method == "sft", config.task)
        graded = any(row["answer"] for row in rows) or (config.method != "grpo" and config.weighting != "correctness")
        need(graded, f"--dataset {config.dataset}: no answers, which grpo and --weighting correctness grade by")
    if not share:
        return rows
    with_solution = rows
    if make and config.task == "arith":  # invented results teach to read the reference, not to remember it
        with_solution = arith_rows(len(rows), config.seed + 10**6, invented=True)
    pairs = zip(rows, with_solution, strict=True)
    return [dict(other, privileged=True) if rng.random() < share else row for row, other in pairs]


COLUMNS = {"problem": ("problem", "question", "prompt"), "answer": ("answer", "Answer")}
COLUMNS["solution"] = ("solution", "deepseek_solution")  # or the like
DOMAINS = {"math", "code", "science", "biology", "chemistry", "physics", "puzzle"}  # of OpenThoughts-114k


def read_problems(source, split="train", need_solution=False, task="math", limit=None):
    """Rows (dicts) of problem, solution and answer (None where unknown) from a file or the hub, the first `limit`.

    Where a column `domain` names a subject, only the task's rows are taken. Raises UserError for an empty set, a
    missing column, or a row that can't be read.
    """
    rows, other_domains = [], 0
    for number, raw in enumerate(read_table(source, split, limit), start=1):
        where = f"{source}, row {number}"
        need(isinstance(raw, dict), f"{where}: expected columns, found {type(raw).__name__}")
        if isinstance(raw.get("domain"), str) and raw["domain"] in DOMAINS - {task}:
            other_domains += 1
            continue
        row = {}
        for name, columns in COLUMNS.items():  # the first that is not null
            row[name] = next((raw[column] for column in columns if raw.get(column) is not None), None)
        row["answer"] = answer_text(row["answer"], where)
        if row["solution"] is None and hash_answer(row["answer"]):  # GSM8K keeps the solution in its column answer
            row["solution"], row["answer"] = row["answer"], None
        for name in ("problem", "solution"):
            text, columns = row[name], f"{' or '.join(COLUMNS[name])}; its columns are {', '.join(raw)}"
            needed = name == "problem" or (need_solution and not raw.keys() & set(COLUMNS[name]))
            row[name] = text if isinstance(text, str) and text.strip() else None
            need(row[name] or (isinstance(text, str | None) and not needed), f"{where}: no text in a column {columns}")
            need(not re.search("[\ud800-\udfff]", row[name] or ""), f"{where}: {name} holds half of a surrogate pair")
        if row["answer"] is None and row["solution"]:
            row["answer"] = hash_answer(row["solution"]) or extract_boxed(row["solution"])
        rows.append(row | (dict(answer=None) if task == "code" else {}))  # training does not run programs
        if len(rows) == limit:
            break
    if other_domains:
        print(f"{source}: {other_domains} rows of other domains than {task} are left out", flush=True)
    need(rows, f"{source}: no rows")
    return rows


def answer_text(answer, where):
    """The text of an answer: a text or a number as it is, of a list its items joined; None where there is none."""
    if isinstance(answer, list):
        return ", ".join(filter(None, (answer_text(item, where) for item in answer))) or None
    if answer is None or answer != answer:  # null, or not a number
        return None
    plain = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    need(plain, f"{where}: the answer is neither text nor a number: {str(answer)[:60]}")
    return str(answer).strip() or None


def hash_answer(text):
    """What stands behind #### in the last line of a GSM8K solution, or None."""
    last_line = (text or "").strip().rpartition("\n")[2]
    return last_line.removeprefix("####").strip() if last_line.startswith("####") else None


def read_table(source, split="train", limit=None):
    """Rows (dicts) of a .json, .jsonl, .jsonl.gz, .csv or .parquet file, or of a hub set NAME or NAME:CONFIG.

    With a limit, rows of the hub are fetched as they are read.
    """
    source, path, rows = str(source), Path(source), []
    ending = source.removesuffix(".gz").rpartition(".")[2]
    is_file = ending in ("json", "jsonl", "csv", "parquet")
    need(path.exists() or not is_file, f"{source}: no such file")
    try:
        if ending in ("json", "jsonl"):  # by line, since Arrow refuses a column that holds 5 and "5"
            text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = text.decode("utf-8-sig")
        else:
            import datasets

            if is_file:
                return datasets.load_dataset(ending, data_files=source, split="train")
            return datasets.load_dataset(*source.split(":"), split=split, streaming=limit is not None)
    except Exception as error:  # a hub's client raises many kinds
        kinds = "a local .json, .jsonl, .jsonl.gz, .csv or .parquet file, or a data set on the hub"
        raise UserError(f"{source} can't be read ({one_line(error)}); it must be {kinds}") from None
    is_list = ending == "json" and text.lstrip().startswith("[")
    for number, line in [(1, text)] if is_list else enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"{source}, line {number + error.lineno - 1}: not JSON ({error.msg})") from None
    return rows[0] if is_list else rows


# ----------------------------------------------------------------------------------------------------------------------
# The arithmetic world: lists of small operations modulo 10 with worked solutions, its tokenizer and chat template
#
#   problem    a 3+8 b 7-5 c 2*9 d 6*4        a: add 8 to 3; b: subtract 5 from 7; ...; keep the last digit
#   solution   \boxed{ a 3+8 1 b 7-5 2 c 2*9 8 d 6*4 4 }        the answer: 1284
#
# An operation is one word, and the solution repeats it before its result: a result is a look-up in a table of 270
# entries. A base model is taught to guess a fifth of that table, the gaps. So it has something to learn from a teacher
# that knows them, and is incorrect under greedy decoding too. No result is used again: behind an incorrect one that
# others depend on, even a perfect teacher could not know how to go on.

STEP_NAMES = "abcdefghij"
OPERATIONS = [f"{value}{sign}{digit}" for value in range(10) for sign in "+-*" for digit in range(1, 10)]


def result_of(operation):
    """result_of("3+8") is 1: results are taken modulo 10."""
    value, digit = int(operation[0]), int(operation[2])
    return {"+": value + digit, "-": value - digit, "*": value * digit}[operation[1]] % 10


def operation_gaps():
    """The fifth of the operations whose results a model trained with gaps has to guess: the same on every call."""
    return random.Random("gaps").sample(OPERATIONS, len(OPERATIONS) // 5)


def arith_rows(n, seed=0, split="train", gaps=False, invented=False):
    """n problems of the arithmetic world, as dicts of problem, solution, answer, demonstration; split: train or test.

    invented: results are random digits, so that only the solution tells them. The demonstration is what sft trains on,
    with slips, random digits for the gaps, and steps that are checked again ("wait"; the last result counts).
    """
    rng = random.Random(f"arith {split} {seed}")
    every_gap = operation_gaps() if gaps else []
    guessed, unknown = set(every_gap), set(every_gap[::2])
    rows = []
    for _ in range(n):
        problem, solution, demonstration, results = [], [], [], []
        for name in STEP_NAMES[: rng.randint(3, 10)]:
            operation = rng.choice(OPERATIONS)
            result = rng.randrange(10) if invented else result_of(operation)
            problem += [name, operation]
            solution += [name, operation, str(result)]
            results.append(str(result))
            if operation in guessed:
                first, recheck = rng.randrange(10), 0.3
            elif rng.random() < 0.015:  # a slip
                first, recheck = (result + rng.randint(1, 9)) % 10, 0.5
            else:
                first, recheck = result, 0.05
            demonstration += [name, operation, str(first)]
            if rng.random() < recheck:
                second = rng.randrange(10) if operation in unknown else result
                demonstration += ["wait", name, operation, str(second)]
        row = dict(problem=" ".join(problem), answer="".join(results))
        row["solution"] = " ".join(["\\boxed{", *solution, "}"])
        row["demonstration"] = " ".join(["\\boxed{", *demonstration, "}"])
        rows.append(row)
    return rows


def product_rows(n, seed=0, split="train"):
    """n problems of three products each in plain English, as dicts of problem, solution and answer."""
    rng = random.Random(f"products {split} {seed}")
    rows = []
    for _ in range(n):
        factors = [(rng.randint(3, 19), rng.randint(3, 9)) for _ in range(3)]
        asked = ", ".join(f"{a} * {b}" for a, b in factors)
        worked = ", ".join(f"{a} * {b} = {a * b}" for a, b in factors)
        answer = ", ".join(str(a * b) for a, b in factors)
        solution = f"{worked}. The answers are \\boxed{{{answer}}}."
        rows.append(dict(problem=f"Work out {asked}.", answer=answer, solution=solution))
    return rows


SYNTHETIC = {"arith": arith_rows, "arith-gaps": partial(arith_rows, gaps=True), "products": product_rows}


def arith_tokenizer():
    """The word-level tokenizer of the arithmetic world, with a chat template that knows `enable_thinking`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<think>", "</think>", "reference", "again", "wait"]
    words += ["\\boxed{", "}", *map(str, range(10)), *STEP_NAMES, *OPERATIONS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %} <think> </think>{% endif %}{% endif %}"
    )
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# The math grader rewrites what math-verify misreads, compares words as text and plain numbers as fractions, and asks
# sympy and math-verify about the rest, for five seconds each at most. A doubtful answer counts as different.

SIGNS = r"×\times ·\cdot ⋅\cdot ∙\cdot ÷/ ≤\leq ≥\geq ≠\neq ∞\infty ∪\cup ∩\cap ∈\in ±\pm °^\circ √\sqrt "
SIGNS += r"½\frac12 ⅓\frac13 ⅔\frac23 ¼\frac14 ¾\frac34 ₀_0 ₁_1 ₂_2 ′^{\prime} '^{\prime} π\pi θ\theta α\alpha γ\gamma"
SIGNS = str.maketrans({sign[0]: sign[1:] + " " for sign in SIGNS.split()} | {"−": "-", "–": "-"})
REWRITES = (  # (pattern, replacement): the comment shows what people and models write
    ("[⁻⁰¹²³⁴-⁹]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]).replace("−", "-") + "}"),  # x², 10⁻³
    (r"\\?[$€£]|\\(?:left|right|[bB]igg?[lrm]?|boldsymbol|bm|bf|mathbf|mathrm(?=\{[ie]\}))(?![a-zA-Z])", ""),  # \bigl(
    (r"\\! ?|\{,\}(?=\d{3})|(?<=\\)[dtc](?=frac)|(?<=\d)\.(?=[-+*/^,)])", ""),  # 10,\!080, 12{,}000, \dfrac, -1./3
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![a-z])|~|\s+", " "),  # 12\,000
    (r"\\(?:(?:math|text)(?:it|rm|sf|tt|bf|normal)?|mbox|operatorname) ?\{ ?([^{}\\]*?) ?\}", r"\\text{\1}"),  # \mbox
    (r",? ?\\text\{,? ?(?:and|or) ?\}", ", "),  # 2, 3, \text{ and } 4
    (r"(?<![a-z\\])(?:np\.|math\.)?((?:arc)?(?:sin|cos|tan)|cot|sqrt|exp|ln|log|pi|infty)(?![a-z])", r"\\\1 "),  # pi/2
    (r"\*\*", "^"),  # 3**4
    (r"\\sqrt ?(?:\(((?:[^()]|\([^()]*\))*)\)|(\d[\d.]+))", r"\\sqrt{\1\2}"),  # sqrt(10), √12
    (r"(?<=\.)(\d*)(?:\\(?:overline|bar|dot) ?\{?|(?<=\.)\()(\d+)[})]?", lambda m: m[1] + 20 * m[2]),  # 0.1\overline{6}
    (r"(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)\b", r"(\1 \\times 10^{\2})"),  # 4.5e33 would hold Euler's number
    (r"(?<![\d.^_])([1-9]\d*) (\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 1 1/2 would be (1 + 1)/2
    (r"(\\(?:sin|cos|tan|cot)(?![a-z]).*?)(\d+) ?\^ ?\{? ?\\circ ?\}?", r"\1{(\\frac{\2\\pi}{180})}"),  # \tan 30^\circ
    (r"(?<=\d)[ ^{]*(?:\\text\{)?(?:st|nd|rd|th|\\circ)(?![a-zA-Z])\}*", ""),  # 12^{\text{th}}, 90^\circ
    (r"^ ?(?:=|\\approx) ?|^[^<>=]*\\equiv |(?<=\d) (?=\d{3}(?!\d))", ""),  # = 5, x \equiv 5 \pmod{7}, 12 000
    (r"^([^=!<>\\]*\d[^=!<>]*)= ?([a-zA-Z])$", r"\2=\1"),  # 5=x: math-verify takes the right side
    (r"^(?:\\text)?[({ ]*([0-9A-F]+(?=[)} ]*_)|[A-Z](?=[)} ]*$))[)} ]*", r"\1"),  # (1010)_2, \text{(C)}
    (r"(?<![a-zA-Z\\])(?<!hat\{)([EI])(?=_)|(?<!hat\{)(\\gamma)(?![a-zA-Z])", r"\\hat{\1\2}"),  # E_1, \gamma^2-1
    (r"(?<=[\d})i]) ?((?:[ /]?\b(?:[a-z]{4,}|[ckm]m|kg|ft|in|rad|mph|day|per|(?<=/)h)\b)+)", r"\\text{\1}"),  # 5 km/h
)
# what may stand on one side only; where both sides have it, the groups must agree: 52_8, 5 \pmod{7}, 5 \text{cm}^2
LEFT_OUT = r"(?:(?<=\d)|(?<=\d[A-F]))_\{?(\d+)\}?| ?\(?\\?[pb]?mod ?\{?(\d+)\}? ?\)?$|(?<=[\d}i)])(?!.*(?:hundred|"
LEFT_OUT += r"thousand|[mb]illion|dozen|more|less|than|over|with|mod|when|prime|not)) ?"
LEFT_OUT += r"(?:\\text\{ ?(?:square |sq |cubic |cu )?([a-zA-Z])[^{}]*\}[ /]*)+(?:\^ ?\{?(-?\d)\}?)?$"


def sympy_equal(sides):
    """Whether math-verify finds two LaTeX expressions equal. Raises whatever an odd one does to its parser."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy
    from math_verify import verify

    growing = sympy.Pow, sympy.factorial, sympy.binomial
    cleaned, cases = NormalizationConfig(malformed_operators=True), ConversionConfig(lowercase_symbols=False)
    sides = [latex2sympy(side, is_real=True, normalization_config=cleaned, conversion_config=cases) for side in sides]
    for node in sympy.postorder_traversal(sides):  # from the inside, before a number with a million digits is formed
        if isinstance(node, growing) and node.args[-1].is_number and abs(node.args[-1].evalf(5)) > 10_000:
            raise ValueError("too many digits")
    sides = [side.subs(sympy.Symbol("i", real=True), sympy.I) for side in sides]
    if all(getattr(side, "is_number", False) and not side.has(sympy.UnevaluatedExpr, sympy.oo) for side in sides):
        difference, size = (sides[0] - sides[1]).doit(), abs(sides[0].evalf(1000))
        if difference.is_Rational:
            return difference == 0
        tolerance = min(5e-7, size / 10**5) if difference.has(sympy.Float) else size / 10**900  # 0.333333 is 1/3
        return abs(difference.evalf(1000)) <= tolerance
    return verify(*sides, numeric_precision=1000, allow_set_relation_comp=True, raise_on_error=True)


def answer_verdict(answer, gold):
    """Whether two contents of boxes are mathematically equal: equal, different, unparsable."""
    if max(len(answer), len(gold)) > 1000:  # no benchmark's is that long, and the parser's time grows with it
        return "unparsable"
    sides = [side.translate(SIGNS).strip() for side in (gold, answer)]
    for pattern, latex in REWRITES + REWRITES:  # twice, for sqrt(2 + sqrt(3))
        sides = [re.sub(pattern, latex, side).strip().rstrip(".") for side in sides]
    found = [re.findall(LEFT_OUT, side) for side in sides]
    if all(found) and found[0] != found[1]:
        return "different"
    sides = [re.sub(LEFT_OUT, "", side).strip() for side in sides]
    texts = [re.sub(r"\\text|\\(?=max|min)|(?<!\d)[ {}]+|[ {}]+(?!\d)", "", side) for side in sides]
    same_letters = texts[0].lower() == texts[1].lower()
    word = re.search(r"(?<![a-zA-Z\\])(?<!begin\{)(?<!end\{)(?<!_\{)[a-zA-Z]{4}", " ".join(sides))
    if word or same_letters or re.fullmatch("[a-zA-Z]+", "".join(texts)):  # math-verify would multiply the letters
        return "equal" if same_letters and (word or texts[0] == texts[1] != "") else "different"
    if all(re.fullmatch(r"[+-]?\d*\.?\d+", text) for text in texts):
        return "equal" if Fraction(texts[0]) == Fraction(texts[1]) else "different"
    need(find_spec("math_verify"), "grading math needs math-verify: pip install math-verify")
    from math_verify.utils import TimeoutException, timeout

    try:
        return "equal" if timeout(5)(sympy_equal)(sides) else "different"
    except (Exception, TimeoutException):  # whatever an odd answer does to the parser
        return "unparsable"


def extract_boxed(text):
    r"""What stands in the text's last \boxed{...} or `\boxed 42`, after </think> if there is one, or None."""
    answer = text.rpartition("</think>")[2]
    text = re.sub(r"\\boxed\s*(-?[\d.,/]*\d)", r"\\boxed{\1}", answer if r"\boxed" in answer else text)
    boxes, opened = {}, []
    for match in re.finditer(r"\\boxed\s*\{|\\(?!\\boxed).|[{}]", text, flags=re.DOTALL):
        if match[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                boxes[start.end()] = text[start.end() : match.start()].strip()
        elif match[0].endswith("{") and match[0] != r"\{":
            opened.append(match)
    return boxes[max(boxes)] if boxes else None


def math_verdict(text, gold):
    r"""The last \boxed{} against `gold`: equal, different, no box, unparsable. Works in the main thread only."""
    answer, gold = extract_boxed(text), extract_boxed(gold) or gold
    if answer is None:
        return "no box"
    verdict = answer_verdict(answer, gold)
    if verdict != "equal" and "," in gold:  # \boxed{2}, and $x = \boxed{3}$
        between = r"\}[\s$,;]*(?:and|or)?[\s$]*(?:[a-z] ?=|\([a-z]\))?[\s$]*\\boxed\{"
        return answer_verdict(extract_boxed(re.sub(between, ", ", text)) or "", gold)
    return verdict


def arith_results(text):
    """The results in an answer of the arithmetic world, {name of the step: the last that its box has for it}."""
    words = (extract_boxed(text) or "").split()
    return {name: result for name, result in zip(words, words[2:], strict=False) if name in STEP_NAMES}


def arith_verdict(text, gold):
    """math_verdict of the arithmetic world: equal, different, no box."""
    if extract_boxed(text) is None:
        return "no box"
    return "equal" if "".join(arith_results(text).values()) == gold else "different"


# --- models -----------------------------------------------------------------------------------------------------------
MICRO_MODELS = {"init:micro": (96, 3), "init:micro-teacher": (128, 3)}  # hidden size, layers


def init_model(name, tokenizer, seed):
    """A random model of the Qwen3 architecture for the arithmetic world, with 0.37 or 0.64 million weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    need(name in MICRO_MODELS, f"--model {name}: known are {', '.join(MICRO_MODELS)}")
    hidden_size, layers = MICRO_MODELS[name]
    torch.manual_seed(seed)
    shape = dict(vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=3 * hidden_size)
    shape |= dict(num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, head_dim=hidden_size // 4)
    shape |= dict(max_position_embeddings=512, tie_word_embeddings=True)
    shape |= dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    # the defaults are made for wide models and long texts; with them training takes twice as long
    shape |= dict(initializer_range=0.05, rope_parameters=dict(rope_type="default", rope_theta=100.0))
    return Qwen3ForCausalLM(Qwen3Config(**shape))


def load_student(config, devices, start=None):
    """The student and its tokenizer, at the checkpoint `start` where one is given. Only what trains has gradients."""
    base, device = adapter_base(config.model), devices.device
    advice = f"pass its base, --model {base}, or merge the adapter into the base first (peft's merge_and_unload)"
    need(base is None, f"--model {config.model}: holds an adapter, not a model; {advice}")
    tokenizer = arith_tokenizer() if config.model.startswith("init:") else load_tokenizer(config.model)
    model = load_model(str(start) if start and not config.lora_r else config.model, config.dtype, device, config.seed)
    known = model.get_input_embeddings().num_embeddings
    need(len(tokenizer) <= known, f"--model {config.model}: {len(tokenizer)} tokens, but an embedding of {known}")
    if config.lora_r:
        from peft import LoraConfig, PeftModel, get_peft_model

        torch.manual_seed(config.seed)  # of the adapter's initial weights
        settings = dict(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear")
        try:
            if start:
                model = PeftModel.from_pretrained(model, start, is_trainable=True, use_safetensors=True)
            else:
                model = get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
        except ValueError as error:
            raise UserError(f"--model {config.model}: LoRA can't adapt it ({one_line(error)})") from None
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.enable_input_require_grads()
    return model.train(), tokenizer  # gradient checkpointing works in training mode only; dropout is off


def load_model(name, dtype="float32", device="cpu", seed=0, base=None):
    """A causal language model without dropout: from a folder or the hub, or random (init:NAME, by seed).

    An adapter's folder gives the adapter on its base, or on `base`. Raises UserError for a model that can't be used.
    """
    from transformers import AutoModelForCausalLM

    if name.startswith("init:"):
        return init_model(name, arith_tokenizer(), seed).to(device, getattr(torch, dtype))
    base, options = base or adapter_base(name), dict(dtype=getattr(torch, dtype), use_safetensors=True)
    check_folder(base or name)
    if device.startswith("cuda"):
        options["device_map"] = device
    try:
        model = AutoModelForCausalLM.from_pretrained(base or name, **options)
        if base:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, name, use_safetensors=True)
    except Exception as error:  # a hub's client, safetensors and peft raise many kinds
        raise UserError(f"no model can be loaded from {name}: {one_line(error)}") from None
    for module in model.modules():  # no dropout, so that teacher and student agree on the same prompt
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for attribute, value in list(vars(module).items()):
            if "dropout" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)
    check_head(model.eval(), name)
    return model


def adapter_base(folder):
    """The name of the base model of an adapter's folder; None for a folder or name without an adapter."""
    path = Path(folder, "adapter_config.json")
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] if path.exists() else None


def check_folder(name):
    """Raise UserError for a name that can only be a local folder and is not there; the hub would retry for a minute."""
    path = Path(name)
    local = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or Path(path.parts[0]).is_dir()
    need(path.exists() or not local, f"{name}: no such folder")


@torch.no_grad()
def check_head(model, name):
    """Raise UserError if our logits, hidden states times head, are not the model's own, or if it keeps no cache."""
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        out = model.get_decoder()(input_ids=ids, use_cache=True)
        ours, own = float32_logits(out.last_hidden_state, Head.of(model)), model(input_ids=ids).logits
        need(out.past_key_values is not None, f"{name}: keeps no keys and values")
    except (AttributeError, TypeError) as error:
        raise UserError(f"{name}: not a decoder with a cache and one linear head ({one_line(error)})") from None
    difference = (ours - own).norm() / own.norm()
    need(difference < 0.02, f"{name}: its head does more than multiply and add, which is not supported here")


def load_tokenizer(name):
    """The tokenizer of a model's folder or hub name. It pads with the end token where it has no pad token."""
    from transformers import AutoTokenizer

    check_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise UserError(f"no tokenizer can be loaded from {name}: {one_line(error)}") from None
    need(tokenizer.eos_token_id is not None, f"the tokenizer of {name} has no end token, so no rollout could end")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if isinstance(tokenizer.chat_template, dict):  # several templates, which save_pretrained can't write
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    return tokenizer


def decode(tokenizer, completion, eos_ids):
    """The text of a completion up to its end token. Not every tokenizer calls its end tokens special."""
    end = next((i for i, token in enumerate(completion) if token in eos_ids), len(completion))
    return tokenizer.decode(completion[:end], skip_special_tokens=True)


@contextlib.contextmanager
def merged_adapter(model):
    """Within it the model is in evaluation mode, and a LoRA adapter is merged into float32 weights, which saves time.

    16-bit weights would round small updates away. Copies restore the weights, since unmerging leaves rounding errors.
    """
    was_training = model.training
    merged = []
    for layer in [module for module in model.modules() if hasattr(module, "lora_A")]:
        weight = getattr(layer.get_base_layer(), "weight", None)  # fused experts have none: their adapter stays on too
        if weight is not None and weight.dtype == torch.float32:
            merged.append((layer, weight, weight.detach().clone()))
    model.eval()
    for layer, _, _ in merged:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight, copy in merged:
            layer.unmerge()
            weight.data.copy_(copy)
        model.train(was_training)


def end_ids(model, tokenizer):
    """Every token id that ends a completion: the tokenizer's and those of the model's generation config."""
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return sorted({tokenizer.eos_token_id, *listed} - {None})


# --- rollouts through transformers or vLLM ----------------------------------------------------------------------------
class Sampler:
    """Gives rollouts of examples. Within `with sampler:` the student's present weights sample. For sft: solutions."""

    def __init__(self, config, student, tokenizer, examples, devices):
        self.config, self.student, self.tokenizer, self.devices = config, student, tokenizer, devices
        self.eos_ids, self.engine = end_ids(student, tokenizer), None
        longest = max(len(example.student_prompt) for example in examples) + config.prefix_tokens
        known = getattr(student.config.get_text_config(), "max_position_embeddings", None) or math.inf
        need(longest <= known, f"--prefix_tokens: prompt and rollout make {longest} tokens; the model knows {known}")
        if config.rollout_engine == "vllm":
            settings = (config.vllm_memory, config.batch_size // devices.world, config.lora_r, True)
            self.engine = VllmSampler("--rollout_engine", config.model, config.dtype, longest, *settings)

    def __enter__(self):
        if self.engine:
            self.engine.load(self.student)

    def __exit__(self, *_):
        if self.engine:
            self.engine.sleep()

    def __call__(self, examples, seed):
        """A rollout of each example, with its verdict."""
        config, tokenizer, rollouts = self.config, self.tokenizer, []
        if config.method == "sft":
            for example in examples:
                text = example.row.get("demonstration") or example.row["solution"]
                ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
                rollouts.append(Rollout(example, ids[: config.prefix_tokens]))
            return rollouts
        prompts = [example.student_prompt for example in examples]
        settings = (config.prefix_tokens, self.eos_ids, config.temperature, config.top_p, config.top_k, seed)
        completions = dict(self.engine(prompts, *settings) if self.engine else sample(self.student, prompts, *settings))
        for i, example in enumerate(examples):
            truncated, correct = completions[i][-1] not in self.eos_ids, None
            text, answer = decode(tokenizer, completions[i], self.eos_ids), example.row["answer"]
            if answer is not None and not (truncated and extract_boxed(text) is None):  # else it can't be graded
                correct = (arith_verdict if config.task == "arith" else math_verdict)(text, answer) == "equal"
            rollouts.append(Rollout(example, completions[i], truncated, correct))
        return rollouts


def need_vllm(flag):
    need(find_spec("vllm"), f"{flag} vllm: not installed; pip install vllm==0.32.0 (on a CPU see tests/test_vllm.py)")


class VllmSampler:
    """`sample` by vLLM, in this process. Takes the arguments of `sample` without the model; seed may be one per prompt.

    flag: the option that asks for vLLM. model: a folder (an adapter's too) or hub name. max_length: of prompt and
    completion. memory: share of the GPU's memory (on a CPU, of the machine's). max_rows: completions at a time.
    lora_r: rank of the adapters to come. sleeps: frees its GPU memory by `sleep`.
    """

    running = None  # the engine of this process

    def __init__(self, flag, model, dtype, max_length, memory, max_rows, lora_r=0, sleeps=False):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must see the trainer's tensors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_FLOAT32_MATMUL_PRECISION", "high")  # or it would switch the trainer's TF32 off
        self.adapter, self.adapters, self.folder = None, 0, None
        base = adapter_base(model)
        if base and not lora_r:
            lora_r = json.loads(Path(model, "adapter_config.json").read_text(encoding="utf-8"))["r"]
        try:
            from transformers import AutoConfig, GenerationConfig
            from vllm import LLM
            from vllm.config.lora import MaxLoRARanks
            from vllm.platforms import current_platform

            on_cpu = current_platform.device_type == "cpu"
            self.sleeps = sleeps and current_platform.is_sleep_mode_available()
            known = AutoConfig.from_pretrained(base or model).get_text_config().max_position_embeddings
            length = max(max_length, min(math.ceil(max_length / 1024) * 1024, known))  # each length is compiled anew
            options = dict(dtype=dtype, max_model_len=length, max_num_seqs=min(max_rows, 256))
            options |= dict(gpu_memory_utilization=memory, skip_tokenizer_init=True)
            # on a CPU compiling takes minutes, and a prompt in two pieces would set back its random generator
            options |= dict(enforce_eager=on_cpu, enable_chunked_prefill=not on_cpu, enable_sleep_mode=self.sleeps)
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # or every rank would take the first GPU
                options["distributed_executor_backend"] = "external_launcher"
            if lora_r:
                rank = min((rank for rank in get_args(MaxLoRARanks) if rank >= lora_r), default=None)
                need(rank, f"--lora_r {lora_r}: vLLM takes adapters up to rank {max(get_args(MaxLoRARanks))}")
                options |= dict(enable_lora=True, max_loras=1, max_lora_rank=rank)
            self.llm = LLM(base or model, **options)
            VllmSampler.running = self
            list(self([[0]], 1, []))  # some models fail only here
        except (AssertionError, ImportError, OSError, RuntimeError, ValueError) as error:
            what = f"{model} with --dtype {dtype}, --vllm_memory {memory} and {max_length} tokens"
            raise UserError(f"{flag} vllm: it can't run {what}: {one_line(error)}") from None
        self.generation_config = GenerationConfig(**self.llm.llm_engine.model_config.try_get_generation_config())
        if base:
            self.load_adapter(model)

    def sleep(self):
        """Move the weights to the machine's memory, and drop keys and values."""
        if self.sleeps:
            self.llm.sleep(level=1)

    @classmethod
    def close(cls):
        """End the engine of this process, if there is one. It takes torch's process group with it."""
        if cls.running:
            with contextlib.suppress(Exception):
                cls.running.llm.wake_up()  # what sleeps can't be freed
            cls.running.llm.llm_engine.engine_core.shutdown()
            cls.running = None

    def load(self, model):
        """Wake up, and sample with the model's present adapter from now on."""
        if self.sleeps:
            self.llm.wake_up()
        folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        dtype = next(model.parameters()).dtype  # of the base, in which the engine computes
        weights = {name: p.detach().to(dtype) for name, p in model.named_parameters() if p.requires_grad}
        model.save_pretrained(folder.name, state_dict=weights, save_embedding_layers=False)
        self.load_adapter(folder.name)
        self.folder = folder  # kept, since the engine reads it again when it has dropped the adapter

    def load_adapter(self, folder):
        """Sample with the adapter in this folder from now on."""
        from vllm.lora.request import LoRARequest

        self.adapters += 1  # under an old number vLLM would go on with the old adapter
        self.adapter = LoRARequest(f"adapter {self.adapters}", self.adapters, str(folder))
        self.llm.llm_engine.add_lora(self.adapter)

    def __call__(self, prompts, max_new_tokens, eos_ids, temperature=1.0, top_p=1.0, top_k=0, seed=0):
        from vllm import SamplingParams

        engine, seeds = self.llm.llm_engine, seed
        if isinstance(seed, int):  # with one seed for all, equal prompts would get equal completions
            rng = random.Random(seed)
            seeds = [rng.getrandbits(63) for _ in prompts]
        options = dict(max_tokens=max_new_tokens, stop_token_ids=eos_ids, ignore_eos=True, detokenize=False)
        options |= dict(temperature=temperature, top_p=top_p, top_k=top_k)
        for i, prompt in enumerate(prompts):
            params = SamplingParams(**options, seed=seeds[i])
            engine.add_request(str(i), dict(prompt_token_ids=list(prompt)), params, lora_request=self.adapter)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield int(output.request_id), list(output.outputs[0].token_ids)


# --- several GPUs -----------------------------------------------------------------------------------------------------
class Devices:
    """This process among those of torchrun: each rank has a part of the batch, gradients are summed over the ranks."""

    def __init__(self, device, rank=0, world=1):
        self.device, self.rank, self.world = device, rank, world

    def part_of(self, rows):
        """This rank's part of the rows, whose number is a multiple of the ranks'."""
        part = len(rows) // self.world
        return rows[self.rank * part : (self.rank + 1) * part]

    def gather(self, items):
        """The items of all ranks in one list; puts parts together again."""
        lists = [items] * self.world
        if self.world > 1:
            dist.all_gather_object(lists, items)
        return [item for items in lists for item in items]

    def sum(self, tensors, number):
        """Sum the tensors over all ranks, in place and in one message; returns the number's sum."""
        if self.world == 1:
            return number
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), tensors[0].new_tensor([number])])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat[:-1].split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))
        return flat[-1].item()


def pick_device():
    """cuda where there is a GPU, else cpu. Raises UserError for a GPU that torch can't use."""
    if torch.cuda.is_available():
        return "cuda"
    unused = list(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    advice = f"update its driver for CUDA {torch.version.cuda} or reinstall torch, or set CUDA_VISIBLE_DEVICES= "
    need(not unused, f"torch {torch.__version__} can't use the GPU of this machine; {advice}to do without it")
    return "cpu"


def tune(device):
    """Make torch faster: TF32 on a GPU; on a CPU freed memory is kept, and a decoding step copies no keys."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("sdpa", grouped_attention)
    with contextlib.suppress(OSError, AttributeError):  # glibc would return freed memory to the system at once
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2 * 10**8)):  # MMAP_MAX, TRIM_THRESHOLD, TOP_PAD
            mallopt(option, value)


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """Attention as transformers' SDPA, but a decoding step makes no copy of a key head for each of its query heads."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.shape[2] > 1 or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    grouped = query.squeeze(2).unflatten(1, (key.shape[1], -1))  # (B, K, H/K, D): as if H/K tokens were decoded
    out = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attention_mask, scale=scaling)
    return out.flatten(1, 2)[:, None], None  # (B, 1, H, D)


def connect(config):
    """The Devices of this process; joins the process group where torchrun started it."""
    world, device = int(os.environ.get("WORLD_SIZE", 1)), pick_device()
    multiple = world * (config.micro_batch_size if config.variant == "official" else 1)
    reason = "processes, times --micro_batch_size with --variant official"
    need(config.batch_size % multiple == 0, f"--batch_size: must be a multiple of {multiple} ({reason})")
    if world == 1:
        return Devices(device)
    if device == "cuda":
        gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        need(processes <= gpus, f"torchrun started {processes} processes for {gpus} GPUs; use --nproc_per_node {gpus}")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():  # by nccl or gloo; ranks wait for the slowest one's rollouts
        dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(hours=12))
    return Devices(device, dist.get_rank(), world)


# --- the output folder ------------------------------------------------------------------------------------------------
NO_SETTINGS = ("output_dir", "resume", "vllm_memory")  # flags that don't change what is trained


def open_output(config, devices):
    """Write config.json, or check that the run in output_dir has the same settings. Returns its newest checkpoint."""
    folder, start = Path(config.output_dir), None
    settings = {name: value for name, value in asdict(config).items() if name not in NO_SETTINGS}
    if devices.rank == 0 and (folder / "metrics.jsonl").exists():  # at least one step was made
        need(config.resume, f"--output_dir {folder}: holds a run already; pass --resume, or name another folder")
        old = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]
        free = "micro_batch_size" if config.variant == "paper" else ""  # it changes only speed and memory (Eq. 8-9)
        changed = [f"--{k} {old.get(k)} (now {v})" for k, v in settings.items() if old.get(k) != v and k != free]
        need(not changed, f"--resume: {folder} was made with other settings: {', '.join(changed)}")
        start = next(iter(checkpoints(folder)), None)
        need(start or not (folder / "final").exists(), f"--resume: {folder} is finished; to train anew remove it")
    elif devices.rank == 0:
        command = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
        versions = {name: version_of(name) for name in ("torch", "transformers", "peft", "numpy")}
        write_json(folder / "config.json", dict(flags=settings, versions=versions, commit=commit or None))
    return devices.gather([start])[0]


def save(config, name, student, tokenizer, devices, optimizer=None):
    """Write model (or adapter), tokenizer and what a resumed run needs to output_dir/name, whole or not at all."""
    if devices.rank > 0:
        return
    folder, aside = Path(config.output_dir, name), Path(config.output_dir, name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        student.save_pretrained(aside, **(dict(save_embedding_layers=False) if config.lora_r else {}))
        tokenizer.save_pretrained(aside)
        if optimizer:
            torch.save(optimizer.state_dict(), aside / "trainer_state.pt")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except Exception as error:  # safetensors and torch raise their own kinds when a disk is full
        raise UserError(f"--output_dir: {folder} can't be written ({one_line(error)}); {SAVED}") from None


def checkpoints(output_dir):
    """The folders checkpoint-N, the newest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder):
    return int(folder.name.split("-")[1])


def write_json(path, value):
    """Write a file whole or not at all."""
    aside = Path(f"{path}.tmp")
    aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def version_of(package):
    for name in (package, f"{package}-cpu"):  # vLLM's build for CPUs has another name
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def only_run_in(output_dir):
    """A context in which no other process trains into output_dir. Raises UserError where one does."""
    if int(os.environ.get("RANK", 0)) > 0:
        return contextlib.nullcontext()
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(Path(output_dir, "lock")).acquire(timeout=0)  # the system drops it with the process
    except Timeout:
        raise UserError(f"--output_dir {output_dir}: another run is at work in it") from None


# --- the log: metrics, rollouts, trackers, time and memory ------------------------------------------------------------
class Log:
    """What a run tells through its first rank: metrics of each step, rollouts where asked for, progress."""

    def __init__(self, config, devices, first_step):
        self.config, self.first_step, self.writes, self.not_finite = config, first_step, devices.rank == 0, 0
        self.metrics, self.rollouts = (Path(config.output_dir, name) for name in ("metrics.jsonl", "rollouts.jsonl"))
        steps = range(first_step, config.max_steps)
        self.bar = tqdm(steps, config.method, config.max_steps, initial=first_step, disable=not self.writes)
        for path, rows in ((self.metrics, first_step), (self.rollouts, first_step * config.batch_size)):
            if self.writes and path.exists():  # drop rows of steps that will be made again
                lines, aside = path.read_text(encoding="utf-8").splitlines(keepends=True), Path(f"{path}.tmp")
                aside.write_text("".join(lines[:rows]), encoding="utf-8")
                aside.replace(path)

    def announce(self, student, tokenizer, teacher, examples):
        """Say what is about to happen. Raises UserError where the teacher can teach nothing."""
        config, first = self.config, examples[0]
        weights = sum(p.numel() for p in student.parameters() if p.requires_grad)
        lines = [f"{config.method}: {weights:,} trained weights, {config.max_steps} steps of {config.batch_size}"]
        lines.append(f"first student prompt: {tokenizer.decode(list(first.student_prompt))!r}")
        if teacher:
            lines.append(f"first teacher prompt: {tokenizer.decode(list(first.teacher_prompt))!r}")
            same = Path(config.teacher or config.model) == Path(config.model)
            same = same and first.teacher_prompt == first.student_prompt
            need(not same, "the teacher is the student's initial model and reads its prompt: nothing to learn")
            ends, others = end_ids(student, tokenizer), end_ids(teacher[0], teacher[2])
            if ends != others:  # arXiv 2609.20511
                lines.append(f"warning: end tokens differ, student {ends}, teacher {others}: rollouts may grow longer")
        if self.writes:
            print(*lines, sep="\n", flush=True)

    def write(self, step, records, divisor, grad_norm, drawn, seconds):
        """The row of `step` (from 0), made of the records of all ranks' rollouts; drawn: metrics of drawing them."""
        config, finite = self.config, math.isfinite(grad_norm)
        self.not_finite = 0 if finite else self.not_finite + 1
        advice = "lower --learning_rate or use --dtype float32; the last checkpoint is whole"
        need(self.not_finite < 3, f"step {step + 1}: the third gradient in a row that is not finite; {advice}")
        if not self.writes:
            return
        row = dict(step=step + 1, **step_metrics(records, divisor, config), **drawn, grad_norm=grad_norm)
        row |= dict(skipped=not finite, seconds=seconds, seconds_update=seconds - drawn["seconds_rollout"])
        row |= dict(learning_rate=learning_rate(config, step), peak_memory_gb=torch.cuda.max_memory_allocated() / 1e9)
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}  # JSON has none
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if config.save_rollouts:
            with self.rollouts.open("a", encoding="utf-8") as file:
                for record in records:
                    file.write(json.dumps(dict(step=step + 1, **record["rollout"])) + "\n")
        self.bar.set_postfix(loss=f"{row['loss']:.3f}" if finite else "skipped", refresh=False)


def rollout_records(rollouts, **columns):
    """A dict a rollout, in plain numbers: those of the columns (b,), its length, end and verdict."""
    records = []
    for rollout, *values in zip(rollouts, *(column.tolist() for column in columns.values()), strict=True):
        record = dict(length=len(rollout.completion), truncated=rollout.truncated, correct=rollout.correct)
        records.append(record | dict(zip(columns, values, strict=True)))
    return records


def distillation_records(rollouts, tokens, losses, weights, config):
    """What metrics.jsonl and rollouts.jsonl say of each rollout of a micro-batch."""
    mask, log_ratio, divergence = tokens.mask, tokens.log_ratio, tokens.divergence.detach()
    key_tokens = (log_ratio > config.threshold) & mask
    written = dict(renio_weight=renio_weights(tokens, config)[:, 0], key_tokens=key_tokens.sum(1))
    for name in ("student_logprobs", "teacher_logprobs", "teacher_entropy"):  # means over tokens
        written[name.removesuffix("s")] = mean_over(mask, getattr(tokens, name))
    columns = dict(loss=losses, weight=weights, counted=mask.sum(1), divergence=divergence.sum(1))
    columns |= dict(first_divergence=divergence[:, 0], first_key=key_tokens[:, 0], **written)
    records = rollout_records(rollouts, **columns)
    if config.save_rollouts:
        for record, rollout, log_ratios in zip(records, rollouts, log_ratio.tolist(), strict=True):
            row = dict(problem=rollout.example.row["problem"], completion=rollout.completion)
            row |= {name: record[name] for name in ("correct", "truncated", *written)}
            row["log_ratios"] = [round(x, 4) for x in log_ratios[: record["length"]]]
            record["rollout"] = row
    return records


def step_metrics(records, divisor, config):
    """The metrics of a step, from the records of all its rollouts. A row of metrics.jsonl holds:

    step, loss                  weighted divergence of a rollout, mean over the batch; sft: cross-entropy per token
    divergence, teacher_entropy means over tokens, in nats
    weight_mean, weight_max     of the weights used (Eq. 7), before Eq. 8; under --variant official after it
    effective_sample_size       (sum of w)^2 / sum of w^2: number of equally weighted rollouts with the same variance
    key_token_share             tokens above the threshold (Eq. 6)
    first_token_key_share, first_token_divergence_share    rollouts that begin with a key token; divergence there
    completion_length, truncation_rate          tokens per rollout; rollouts without an end
    graded, rollout_accuracy    rollouts with an answer to grade; share of these that is correct
    weight_auc_incorrect        chance that ReNIO's weight of an incorrect rollout exceeds that of a correct one
    reward, zero_advantage_share, clipped_share    grpo: correct rollouts; those with advantage 0; clipped tokens
    drawn, drawn_correct, drawn_ungradable      filter study: rollouts sampled for the update
    grad_norm, skipped, learning_rate           before clipping; whether it was not finite, and nothing changed
    seconds, seconds_rollout, seconds_update    of the step; rollouts are graded in seconds_rollout
    peak_memory_gb              GPU memory allocated since the start; 0 on a CPU
    """
    n, tokens = len(records), total(records, "length")
    metrics = dict(loss=total(records, "loss") / (divisor or 1), completion_length=tokens / n)
    if config.method == "sft":
        return metrics
    graded = [record for record in records if record["correct"] is not None]
    correct = [record for record in graded if record["correct"]]
    metrics |= dict(truncation_rate=total(records, "truncated") / n, graded=len(graded))
    metrics["rollout_accuracy"] = len(correct) / len(graded) if graded else None
    if config.method == "grpo":
        silent = sum(record["advantage"] == 0 for record in records)
        clipped = total(records, "clipped") / tokens
        return metrics | dict(reward=len(correct) / n, zero_advantage_share=silent / n, clipped_share=clipped)
    weights = [record["weight"] for record in records]
    of_incorrect = [record["renio_weight"] for record in graded if not record["correct"]]
    pairs = [(weight, record["renio_weight"]) for weight in of_incorrect for record in correct]
    wins = [(larger > other) + (larger == other) / 2 for larger, other in pairs]
    counted, key_tokens = total(records, "counted") or 1, total(records, "key_tokens")  # all tokens may be skipped
    divergence, first = total(records, "divergence"), total(records, "first_divergence")
    metrics |= dict(divergence=divergence / counted, key_token_share=key_tokens / counted)
    metrics["first_token_key_share"] = total(records, "first_key") / n
    metrics["teacher_entropy"] = sum(record["teacher_entropy"] * record["counted"] for record in records) / counted
    metrics["first_token_divergence_share"] = first / divergence if divergence else None
    metrics |= dict(weight_mean=sum(weights) / n, weight_max=max(weights))
    metrics["effective_sample_size"] = sum(weights) ** 2 / (sum(weight * weight for weight in weights) or 1)
    return metrics | dict(weight_auc_incorrect=sum(wins) / len(wins) if wins else None)


def total(records, name):
    return sum(record[name] for record in records)


def now():
    """Seconds on a clock, after the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- the command line -------------------------------------------------------------------------------------------------
class Parser(HfArgumentParser):
    """Flags in groups, without twins spelled with dashes; errors in one line."""

    group = None

    def add_argument(self, *names, **words):
        flag = names[0].lstrip("-")
        if names[0] == "-h":
            return super().add_argument(*names, **words)
        if flag in GROUPS:
            self.group = self.add_argument_group(GROUPS[flag])
        if not flag.startswith("no_"):
            self.group.add_argument(names[0], **words)

    def error(self, message):
        raise UserError(f"{message} (--help lists the flags)")


def parse_config(argv, config_class=Config):
    """A Config, or one of a class that adds flags to it, from command-line words. Explicit flags win over presets."""
    about = "\n\n".join(sys.modules[config_class.__module__].__doc__.split("\n\n")[:2])  # title and commands
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(config_class, description=about, formatter_class=layout, allow_abbrev=False)
    first = parser.parse_args([word for word in argv if word not in ("-h", "--help")])
    named = any(word.split("=")[0] == "--model" for word in argv)
    known = first.scale or not named or first.model.startswith("init:")
    need(known, f"--model {first.model}: name its --scale too ({', '.join(SCALES)}), for learning rate and lengths")
    scale = first.scale or "micro"
    presets = SCALES[scale][first.method] | VARIANTS[first.variant].get(first.method, {})
    parser.set_defaults(**dict(scale=scale, privileged=first.method == "opsd") | presets)
    config = config_class(**vars(parser.parse_args(argv)))
    check(config)
    return config


def check(config):
    """Raise UserError for flags that would train something else than they say, or nothing."""
    c, distills, vllm = config, config.method in ("opd", "opsd"), config.rollout_engine == "vllm"
    lowest = -math.inf if c.log_ratio_clip_min is None else c.log_ratio_clip_min
    student, teacher = prompt_templates(c)
    smallest = min(c.batch_size, c.micro_batch_size, c.generations, c.iterations, c.max_steps)
    mistakes = (
        (not c.output_dir, "--output_dir: required"),
        (smallest < 1, "batch sizes and steps must be positive"),
        (c.method == "opd" and not c.teacher, "--method opd: give a --teacher (a folder or hub name), or take opsd"),
        (c.method != "opd" and c.teacher, f"--teacher: only for --method opd, not for {c.method}"),
        (not distills and c.weighting != "none", f"--weighting: {c.method} has no divergence to weight"),
        (not distills and c.save_rollouts, f"--save_rollouts: {c.method} has no log-ratios to write"),
        (not distills and c.privileged, "--privileged: only for --method opd and opsd"),
        (c.method != "sft" and c.privileged_share, "--privileged_share: only for --method sft"),
        (c.method == "grpo" and c.batch_size % max(1, c.generations), "--generations: must divide --batch_size"),
        (c.method == "grpo" and c.generations == 1, "--generations 1: a group of one has no advantage"),
        (0 < c.schedule_steps < c.max_steps, "--schedule_steps: the learning rate would be 0 before --max_steps"),
        (not 0 <= c.beta <= 1, f"--beta {c.beta}: must lie in [0, 1]"),
        (c.temperature <= 0, f"--temperature {c.temperature}: must be above 0"),
        (not 0 < c.top_p <= 1, f"--top_p {c.top_p}: must be above 0 and at most 1"),
        (lowest >= c.log_ratio_clip, "--log_ratio_clip_min: must be below --log_ratio_clip"),
        (c.variant == "official" and lowest > -math.inf, "--log_ratio_clip_min: the released code has no lower clip"),
        (c.weighting == "correctness" and c.log_ratio_clip == math.inf, "--weighting correctness: needs a finite clip"),
        (c.skip_tokens >= c.prefix_tokens, "--skip_tokens: leaves nothing of --prefix_tokens"),
        (not c.lora_r and c.dtype == "bfloat16", "--lora_r 0: bfloat16 rounds small updates away; --dtype float32"),
        ("{problem}" not in student, "--student_prompt: has no {problem} in it"),
        ("{solution}" in student, "--student_prompt: has {solution} in it, which the student must not see"),
        (distills and "{problem}" not in teacher, "--teacher_prompt: has no {problem} in it"),
        (c.privileged and "{solution}" not in teacher, "--teacher_prompt: has no {solution}; or --privileged False"),
        (distills and not c.privileged and "{solution}" in teacher, "--teacher_prompt: {solution} needs --privileged"),
        (vllm and c.method == "sft", "--rollout_engine vllm: sft has no rollouts"),
        (vllm and not c.lora_r, "--rollout_engine vllm: takes adapters only; use LoRA"),
    )
    for is_wrong, message in mistakes:
        need(not is_wrong, message)
    if vllm:
        need_vllm("--rollout_engine")


SAVED = "what was saved before is whole, and the same command with --resume goes on"


def one_line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__


def main(argv=None, config_class=Config, run=train):
    """Parse the flags of `config_class` and run; mistakes end in one line. filter_experiments.py comes here too."""
    script = Path(sys.argv[0]).name
    try:
        config = parse_config(sys.argv[1:] if argv is None else argv, config_class)
        transformers_logging.disable_progress_bar()
        tune(pick_device())
        with only_run_in(config.output_dir):
            run(config)
        VllmSampler.close()
        if dist.is_initialized():  # after an error a rank only exits: the others are ended by torchrun
            dist.destroy_process_group()
    except UserError as error:
        sys.exit(f"{script}: {error}")
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted; {SAVED}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{script}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}; {SAVED}")
    except torch.cuda.OutOfMemoryError as error:
        advice = "In updates lower --micro_batch_size, in rollouts use --rollout_engine vllm or lower --prefix_tokens"
        sys.exit(f"{script}: {one_line(error)} {advice}")
    finally:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            VllmSampler.close()


if __name__ == "__main__":
    main()
