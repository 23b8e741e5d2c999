# SPDX-License-Identifier: MIT
"""ReNIO: on-policy distillation that weights each rollout by how over-confident the student was in it.

    python renio.py --method sft --model init:micro --dataset arith-gaps --privileged_share 0.5 --output_dir runs/base
    python renio.py --method opsd --weighting renio --model runs/base/final --output_dir runs/opsd+renio
    python renio.py --method opd --weighting renio --model runs/base/final --teacher runs/teacher/final \\
        --output_dir runs/opd+renio
    torchrun --nproc_per_node 4 renio.py --scale paper --method opsd --weighting renio --output_dir runs/qwen3
    python renio.py --seed 0 --output_dir A ... then --seed 1 --output_dir B ...    # in one process: it starts but once

The student samples a completion y for a prompt x. A teacher gives its distribution on every token of y: a larger
model (OPD), or the student's own initial weights with the reference solution in the prompt (OPSD). The student
descends the divergence between the two (Eq. 2-3), and ReNIO multiplies each sample by a weight that grows with how
much more the student than the teacher believed in the tokens where they differ most (Eq. 4-9), without looking at
the answer. Source: "ReNIO", arXiv 2606.23104v1; equations carry the paper's numbers.

Not taken over from the released code: it strips special tokens from the prompt before sampling (its authors say that
the paper's results were made so) but counts them afterwards, which drops the first tokens of each completion from the
teacher's context; and it pads prompts on the right, which shifts positions. Nor GRPO's KL term, which the released
script switches off too.

This file imports nothing of the project's: alone in a folder, it trains. Read it from the top:
  flags and presets       Config: the paper's settings, and those in which the released code differs
  the weight              sample_weights (Eq. 4-7), the released code's, and others to compare it with
  the divergence          token_divergence (the summand of Eq. 2)
  prompts and models      what student and teacher are asked, Teacher, hidden states of the completions
  rollouts                sample: the student writes
  one update              distillation_step (Eq. 2-9), sft_step, grpo_step, update
  the loop                train
and, below a line that says so, what real runs need besides: the fused divergence, data and the synthetic world, the
math grader, models, vLLM, processes and FSDP2, the output folder, the log, the command line.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import is_flash_attn_2_available

# ---------------------------------------------------------------------------------------------------------------------
# Flags and presets.


def flag(default, text, low=None, high=None):
    """A field of Config: its default, its line of --help, and the least and the largest value that it may have."""
    return field(default=default, metadata=dict(help=text, low=low, high=high))


@dataclass
class Config:
    """Flags of a training run. An explicit flag wins over --variant, and that over --scale and --method."""

    students = 1  # that one process trains side by side, as filter_experiments.py does: not a flag

    output_dir: str | None = flag(None, "where config.json, metrics.jsonl, checkpoint-N/ and final/ go (required)")
    scale: Literal["micro", "small", "one", "paper"] = flag(
        "micro", "preset: micro needs no download, small is SmolLM2-135M on a CPU, one fits a GPU of 24 GB, paper is "
        "Tables 5 and 6")
    method: Literal["sft", "grpo", "opd", "opsd"] = flag(
        "opd", "fine-tuning on solutions, reinforcement learning, distillation, or self-distillation")
    resume: bool = flag(False, "go on from the newest checkpoint in output_dir, or start where there is none")
    preflight: bool = flag(False, "only check what the run needs and make a short step; output_dir stays as it is")
    seed: int = flag(0, "seed of initial weights, data order and rollouts", low=0)

    # models
    model: str = flag("Qwen/Qwen3-1.7B", "student: a folder, a hub name, or init:micro, init:micro-teacher (random)")
    teacher: str | None = flag(None, "opd: a folder or a hub name; opsd's teacher is the student as it starts")
    lora_r: int = flag(64, "rank of the LoRA adapter of all linear layers but the head; 0 trains all weights", low=0)
    lora_alpha: int = flag(128, "scale of the adapter, times 1 / lora_r", low=1)
    dtype: Literal["float32", "bfloat16"] = flag("bfloat16", "of the weights")
    device: str | None = flag(None, "cuda or cpu; without it cuda where there is one")
    gradient_checkpointing: bool = flag(True, "recompute activations in the backward pass")
    fsdp: bool = flag(False, "under torchrun: spread the layers of student and teacher over the devices (FSDP2)")

    # data and prompts
    dataset: str = flag("siyanzhao/Openthoughts_math_30k_opsd",
                        "hub name, .json, .jsonl or .parquet file, or made here: arith, arith-gaps, products, chain")
    task: Literal["math", "code", "arith"] = flag("math", "which prompts to use")
    student_prompt: str | None = flag(None, "message with {problem}, or @file; without it that of PROMPTS in this file")
    teacher_prompt: str | None = flag(None, "likewise, with {solution} if privileged; a column teacher_prompt wins")
    privileged: bool = flag(False, "whether the teacher's prompt holds the solution; without the flag: opsd's does")
    student_thinking: bool = flag(False, "thinking mode of the chat template in the student's prompt")
    teacher_thinking: bool = flag(True, "thinking mode of the chat template in the teacher's prompt")
    max_prompt_tokens: int = flag(4096, "problems with a longer prompt (either side) are skipped and counted", low=1)
    privileged_share: float = flag(0.0, "sft: share of rows with the reference solution in the prompt", low=0, high=1)

    # rollouts
    prefix_tokens: int = flag(1024, "most tokens of a rollout; the paper: 1024 (Qwen3), 2048 (R1), 4096 (full)", low=1)
    temperature: float = flag(1.1, "of rollouts, and of both distributions in the loss", low=0.01, high=100)
    top_p: float = flag(1.0, "nucleus of rollouts (1: off); the loss takes the full distribution", low=1e-6, high=1)
    top_k: int = flag(0, "rollouts draw from the k likeliest tokens only (0: off)", low=0)
    rollout_engine: Literal["transformers", "vllm"] = flag("transformers", "what samples the rollouts")
    vllm_memory: float = flag(0.3, "share of each GPU's memory for rollout_engine vllm; the trainer has the rest",
                              low=0.01, high=0.99)
    vllm_sleep: bool = flag(False, "vLLM leaves its memory on a GPU to the updates, for seconds a step")

    # loss
    beta: float = flag(0.0, "divergence: 0 forward KL(T||S), 1 reverse KL(S||T), between them generalized JSD",
                       low=0, high=1)
    estimator: Literal["full", "sampled"] = flag(
        "full", "of the divergence: over the vocabulary, or at the sampled token alone (reverse KL, --beta 1)")
    skip_tokens: int = flag(0, "leave so many first tokens of each rollout out of loss and weight", low=0)
    token_reduction: Literal["sum", "mean"] = flag("sum", "over the tokens of a sample (Eq. 2: sum)")
    entry_clip: float | None = flag(None, "clamp each vocabulary entry's term of the divergence to [0, this], nats",
                                    low=1e-9)
    weighting: Literal["none", "renio", "renio_shuffled", "ts_sample", "st_token", "iw", "pw", "correctness"] = flag(
        "none", "weights of the samples or tokens; see WEIGHTINGS in this file")
    variant: Literal["paper", "official"] = flag("paper", "the paper's equations, or the released code's behaviour")
    threshold: float = flag(0.8, "tau: tokens with a larger log-ratio are key tokens (Eq. 6)")
    log_ratio_clip: float = flag(3.0, "epsilon_max: clip of the key tokens' log-ratio from above (Algorithm 1)")
    log_ratio_clip_min: float | None = flag(None, "epsilon_min: clip from below (Algorithm 1)")
    weight_norm: Literal["batch", "none"] = flag("batch", "divide by the batch's mean weight (Eq. 8), or not")

    # grpo
    generations: int = flag(8, "rollouts a prompt, which the reward of each is compared with", low=2)
    iterations: int = flag(2, "updates on the same rollouts", low=1)
    ratio_clip: float = flag(0.2, "the ratio of new to old probability counts within 1 - it and 1 + it",
                             low=1e-6, high=0.999)

    # optimization
    batch_size: int = flag(32, "effective: rollouts an update, over all devices", low=1)
    micro_batch_size: int = flag(4, "rollouts a forward and backward pass on one device", low=1)
    learning_rate: float = flag(5e-6, "of AdamW, without weight decay; the paper: 5e-6 (Qwen3), 1e-6 (R1)",
                                low=1e-12, high=100)
    warmup_steps: int = flag(0, "steps of linear warm-up of the learning rate", low=0)
    schedule_steps: int = flag(0, "the learning rate falls linearly to 0 over so many steps; 0: constant", low=0)
    max_steps: int = flag(100, "updates", low=1)
    max_grad_norm: float = flag(0.0, "clip of the gradient's norm; 0: off", low=0)
    save_steps: int = flag(25, "updates between checkpoints; 0: only final/", low=0)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = flag(
        "none", "where metrics go beside metrics.jsonl")
    save_rollouts: bool = flag(False, "opd, opsd: each rollout, its weight, verdict, log-ratios to rollouts.jsonl")


MICRO = dict(model="init:micro", dataset="arith", task="arith", lora_r=0, dtype="float32", gradient_checkpointing=False,
             prefix_tokens=50, temperature=1.0, micro_batch_size=16, learning_rate=4.5e-4, warmup_steps=5, max_steps=50,
             schedule_steps=50, max_prompt_tokens=256, save_steps=10)
SMALL = dict(model="HuggingFaceTB/SmolLM2-135M-Instruct", dataset="products", dtype="float32", lora_r=16, lora_alpha=32,
             gradient_checkpointing=False, prefix_tokens=80, temperature=1.0, batch_size=16, micro_batch_size=4,
             learning_rate=3e-4, warmup_steps=3, max_steps=40, schedule_steps=40, save_steps=40)
ONE = dict(max_prompt_tokens=2048, micro_batch_size=8, vllm_memory=0.4, vllm_sleep=True)  # so that 24 GB suffice
SCALES = {  # what differs from the paper's settings, the defaults above
    "micro": {"sft": MICRO | dict(learning_rate=2e-3, batch_size=16, max_steps=1800, schedule_steps=1800,
                                  warmup_steps=50, save_steps=600, max_grad_norm=1.0, token_reduction="mean"),
              "grpo": MICRO | dict(learning_rate=3e-4, token_reduction="mean"), "opd": MICRO, "opsd": MICRO},
    "small": dict.fromkeys(("grpo", "opd", "opsd"), SMALL) | {
        "sft": SMALL | dict(lora_r=0, learning_rate=3e-5, max_steps=16, schedule_steps=0)},
    "one": {"sft": ONE, "grpo": ONE, "opsd": ONE,
            "opd": ONE | dict(model="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B")},
    "paper": {"sft": {}, "opd": dict(teacher="Qwen/Qwen3-8B"), "opsd": {},
              # 300 updates, two on each batch of rollouts; thinking is on
              "grpo": dict(prefix_tokens=16_000, temperature=1.2, max_steps=150, token_reduction="mean",
                           student_thinking=True)},
}
OFFICIAL = dict(token_reduction="mean", entry_clip=0.05, top_p=0.95, top_k=20, max_grad_norm=1.0, schedule_steps=126,
                max_prompt_tokens=20_000)  # for 1.7B; what depends on the model's size stands in run_all.sh
VARIANTS = {
    "paper": dict.fromkeys(("sft", "grpo", "opd", "opsd"), {}),
    "official": {"sft": {}, "opd": OFFICIAL, "opsd": OFFICIAL,
                 "grpo": dict(max_grad_norm=1.0, schedule_steps=150, max_prompt_tokens=2048)},
}

# ---------------------------------------------------------------------------------------------------------------------
# The weight.


def sample_weights(student_logprobs, teacher_logprobs, mask, threshold, clip_max, clip_min=None):
    """ReNIO's weight w of each sample (Eq. 4-7, Algorithm 1), detached; `update` divides by the batch's mean (Eq. 8).

    student_logprobs, teacher_logprobs: (B, T), log-probabilities of the sampled tokens, in nats.
    mask: (B, T), true on the completion's tokens; what stands elsewhere is never read.
    threshold: tau, a token is key where its log-ratio exceeds it.
    clip_max, clip_min: epsilon_max, epsilon_min: the key tokens' log-ratios are clipped to [clip_min, clip_max].
    Returns (B,) weights, 1 for a sample without key tokens. Raises ValueError for tensors of different shapes.
    """
    log_ratio = masked_log_ratio(student_logprobs, teacher_logprobs, mask)  # Eq. 4-5, (B, T)
    key_tokens = (log_ratio > threshold) & mask.bool()  # Eq. 6
    return mean_over(key_tokens, log_ratio.clamp(clip_min, clip_max)).exp()  # Algorithm 1, line 15; Eq. 7


def masked_log_ratio(student_logprobs, teacher_logprobs, mask):
    """log p_S - log p_T of the sampled tokens (Eq. 4-5), (B, T), detached, 0 outside the mask."""
    if not student_logprobs.shape == teacher_logprobs.shape == mask.shape or mask.dim() != 2:
        raise ValueError("student_logprobs, teacher_logprobs and mask must have one shape (B, T), got "
                         f"{tuple(student_logprobs.shape)}, {tuple(teacher_logprobs.shape)}, {tuple(mask.shape)}")
    return (student_logprobs - teacher_logprobs).detach().masked_fill(~mask.bool(), 0.0)


def mean_over(chosen, values):
    """Mean of the chosen values (B, T) of each row, (B,); 0 for a row without any."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def official_sample_weights(student_logprobs, teacher_logprobs, mask, threshold, clip_max, weight_temperature=1.0,
                            norm="batch"):
    """The weight as the released code has it, normalized over the samples given: (B,), detached.

    Arguments as in `sample_weights`, which it differs from: it clips before it selects, and selects with >=.
    weight_temperature: divides the mean log-ratio before exp.
    norm: "batch" divides by the mean over the B samples and clamps to at most 10; "clamp" clamps to [0.1, 10] and then
        divides; "none" does neither. Raises ValueError for another one.
    """
    if norm not in ("batch", "none", "clamp"):
        raise ValueError(f"norm {norm!r}: known are batch, none, clamp")
    log_ratio = masked_log_ratio(student_logprobs, teacher_logprobs, mask).clamp(max=clip_max)
    key_tokens = (log_ratio >= threshold) & mask.bool()
    weights = (mean_over(key_tokens, log_ratio) / weight_temperature).exp()
    if norm == "batch":
        return (weights / weights.mean()).clamp(max=10.0)
    if norm == "clamp":
        weights = weights.clamp(0.1, 10.0)
        return weights / weights.mean()
    return weights


class TokenColumns(NamedTuple):
    """What is known of the rollouts of a micro-batch: a row each, a column a token, 0 behind each end."""

    divergence: torch.Tensor  # d(p_S, p_T) in nats, (b, T); the one with a gradient
    student_logprobs: torch.Tensor  # of the sampled tokens, (b, T)
    teacher_logprobs: torch.Tensor  # (b, T)
    teacher_entropy: torch.Tensor  # nats, (b, T)
    mask: torch.Tensor  # true on the completion's tokens, (b, T)
    right: list  # b verdicts: True, False, or None where there is no answer to grade

    @property
    def log_ratio(self):  # Eq. 4-5, (b, T)
        return masked_log_ratio(self.student_logprobs, self.teacher_logprobs, self.mask)


# Each weighting takes TokenColumns and the config, and returns weights (b, T) or (b, 1) before any normalizing.


def renio_weights(tokens, config):
    """ReNIO (Eq. 4-7): samples in whose key tokens the student was more confident than the teacher weigh more."""
    given = tokens.student_logprobs, tokens.teacher_logprobs, tokens.mask, config.threshold, config.log_ratio_clip
    if config.variant == "official":
        return official_sample_weights(*given, norm="none")[:, None]
    return sample_weights(*given, config.log_ratio_clip_min)[:, None]


def ts_sample_weights(tokens, config):
    """ReNIO turned round (the paper's Table 8, T/S): key tokens are those where the teacher was the more confident."""
    return renio_weights(tokens._replace(student_logprobs=tokens.teacher_logprobs,
                                         teacher_logprobs=tokens.student_logprobs), config)


def st_token_weights(tokens, config):
    """ReNIO a token (the paper's Table 8, S/T): a key token weighs exp of its clipped log-ratio, any other 1."""
    clipped = tokens.log_ratio.clamp(config.log_ratio_clip_min, config.log_ratio_clip)
    return torch.where(tokens.log_ratio > config.threshold, clipped.exp(), 1.0)


def iw_weights(tokens, config, gamma=0.5):
    """IW-OPD (arXiv 2606.22600): tokens weigh less the more disagreement of teacher and student lies before them.

    1 + gamma (1 - sum_{k<t} |A_k| / sum_{k<T} |A_k|), where A is the log-ratio of teacher to student.
    """
    sums = tokens.log_ratio.abs().cumsum(1)[:, :-1]
    before = torch.nn.functional.pad(sums, (1, 0))  # of the tokens before this one, (b, T)
    whole = (before * tokens.mask).amax(1, keepdim=True)  # of all but the last token of the row
    return 1 + gamma * (1 - before / whole.clamp(min=torch.finfo(whole.dtype).tiny))


def pw_weights(tokens, config, least=0.25, middle=0.30, width=0.10):
    """PW-OPSD (arXiv 2605.21606): by the token's place alone, least + (1 - least) sigmoid((t/T - middle) / width)."""
    place = tokens.mask.cumsum(1) / tokens.mask.sum(1, keepdim=True).clamp(min=1)  # t / T, t from 1
    return least + (1 - least) * torch.sigmoid((place - middle) / width)


def correctness_weights(tokens, config):
    """An oracle of what ReNIO guesses: a wrong rollout has ReNIO's largest weight, any other its smallest, 1."""
    wrong = torch.tensor([[right is False] for right in tokens.right], device=tokens.mask.device)
    return torch.where(wrong, math.exp(config.log_ratio_clip), 1.0).to(tokens.student_logprobs.dtype)


WEIGHTINGS = {  # of --weighting -> the function, and whether its weights are divided by the batch's mean (Eq. 8)
    "none": (lambda tokens, config: torch.ones_like(tokens.divergence[:, :1]), False),
    "renio": (renio_weights, True),
    "renio_shuffled": (renio_weights, True),  # a control, see shuffled_weighting
    "ts_sample": (ts_sample_weights, True),
    "st_token": (st_token_weights, True),
    "iw": (iw_weights, False),
    "pw": (pw_weights, False),
    "correctness": (correctness_weights, True),
}


def weighting(config):
    """The function of --weighting, and over what its mean weight is taken (Eq. 8): batch, micro-batch, or None."""
    weigh, normalized = WEIGHTINGS[config.weighting]
    if not normalized or config.weight_norm == "none":
        return weigh, None
    return weigh, "micro-batch" if config.variant == "official" else "batch"


def sample_means(weights, mask):
    """The weight of each sample (b,): its own, of weights (b, 1), or the mean of its tokens', of weights (b, T)."""
    return weights[:, 0] if weights.shape[1] == 1 else mean_over(mask, weights)


def official_normalized(weights, mask):
    """Weights (b, T) or (b, 1) as the released code normalizes them: by the micro-batch's mean, at most 10."""
    return (weights / sample_means(weights, mask).mean()).clamp(max=10.0)


# ---------------------------------------------------------------------------------------------------------------------
# The divergence.


def token_divergence(student_logits, teacher_logits, beta=0.0, temperature=1.0, entry_clip=None, clip_mode="none"):
    """Divergence of teacher and student at every token, over the full vocabulary (the summand of Eq. 2).

    student_logits, teacher_logits: (B, T, V), before the division by `temperature`, which both sides get.
    beta 0: forward KL(T||S); 1: reverse KL(S||T); between: generalized JSD with the mixture
        m = (1 - beta) p_S + beta p_T, beta KL(T||m) + (1 - beta) KL(S||m)  (Agarwal et al. 2024, Eq. 1).
    entry_clip: in nats, clips each vocabulary entry's term before the sum: clip_mode "opsd" from above, as OPSD's
        code does, "official" to [0, entry_clip], as ReNIO's released code does. None: no clip.
    Returns (B, T) in nats, differentiable in both logits. Raises ValueError for other shapes or arguments.
    `fused_divergence`, with which training goes, has the same values and gradients without the logits.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"logits of different shapes: {tuple(student_logits.shape)}, {tuple(teacher_logits.shape)}")
    check_divergence(beta, temperature, entry_clip, clip_mode)
    log_s = (student_logits / temperature).log_softmax(-1)  # (B, T, V)
    log_t = (teacher_logits / temperature).log_softmax(-1)  # (B, T, V)
    if beta == 0:
        terms = log_t.exp() * (log_t - log_s)
    elif beta == 1:
        terms = log_s.exp() * (log_s - log_t)
    else:
        log_m = torch.logaddexp(log_s + math.log(1 - beta), log_t + math.log(beta))
        terms = beta * log_t.exp() * (log_t - log_m) + (1 - beta) * log_s.exp() * (log_s - log_m)
    if entry_clip is not None:
        terms = terms.clamp(min=0.0 if clip_mode == "official" else None, max=entry_clip)
    return terms.sum(-1)  # (B, T)


def sampled_divergence(student_logprobs, teacher_logprobs):
    """The reverse KL as the sampled tokens alone estimate it, log p_S - log p_T: (B, T), in nats (--estimator sampled).

    student_logprobs, teacher_logprobs: (B, T), of tokens drawn from p_S. Its gradient is a policy gradient whose reward
    is minus the log-ratio (Eq. 10-15); its expectation is the gradient of `token_divergence` with beta 1.
    """
    log_ratio = (student_logprobs - teacher_logprobs).detach()
    return log_ratio * (1 + student_logprobs - student_logprobs.detach())  # the factor is 1, with a gradient


def token_logprobs(logits, tokens, temperature):
    """Log-probabilities (B, T) of the tokens (B, T) under logits (B, T, V) at the temperature, in float32 or finer."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts and models: what student and teacher are asked, and their hidden states on the completions.

PROMPTS = {  # task -> what the student is told, what a privileged teacher is told; our own wording of the release's
    "math": (
        "{problem}\n\nReason step by step and put the final answer in \\boxed{}.",
        "{problem}\n\nA correct reference solution follows.\n--- reference begins ---\n{solution}\n"
        "--- reference ends ---\n\nStudy the reference until you understand why it works. Then solve the problem "
        "afresh, in your own words and without quoting it. Reason step by step and put the final answer in \\boxed{}."),
    "code": (
        "{problem}\n\nReason step by step and end with the complete program in one ```python block.",
        "{problem}\n\nA correct reference program follows.\n--- reference begins ---\n{solution}\n"
        "--- reference ends ---\n\nStudy the reference until you understand why it works. Then solve the task afresh, "
        "in your own words and without quoting it. Reason step by step and end with the complete program in one "
        "```python block."),
    "arith": ("{problem}", "reference {solution} again {problem}"),
}


class UserError(Exception):
    """A mistake in flags, files or data, told to the user in one line without a traceback."""


def prompt_templates(config):
    """The templates of the student's message and of the teacher's (for sft: of a row with the solution)."""
    student, privileged = PROMPTS[config.task]
    student = config.student_prompt or student
    return student, config.teacher_prompt or (privileged if config.privileged or config.method == "sft" else student)


def read_template(flag, value):
    """The text of a template that the flag gives as it is or as @file. Raises UserError where there is no such file."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {value}: can't be read ({error})") from None


def fill_prompt(template, row):
    """The template with the row's problem and solution; other braces, as in \\boxed{}, stay as they are."""
    return re.sub(r"\{(problem|solution)\}", lambda match: row[match[1]], template)


def prompt_ids(tokenizer, message, thinking):
    """Token ids of a chat with this message of the user, ending where the assistant's answer begins.

    thinking: the chat template's `enable_thinking`. Raises UserError where the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no chat template: use an instruct model")
    return tokenizer.apply_chat_template([{"role": "user", "content": message}], add_generation_prompt=True,
                                         enable_thinking=thinking, tokenize=True, return_dict=False)


@dataclass
class Example:
    """A row of the data set with both sides' prompt ids; for sft and grpo, `student_prompt` is the only prompt."""

    row: dict
    student_prompt: list
    teacher_prompt: list | None = None


class Rollout(NamedTuple):
    """A completion for an example: sampled from the student, or for sft its solution."""

    example: Example
    completion: list  # token ids, the end included
    truncated: bool = False  # cut before its end
    right: bool | None = None  # verdict; None where there is no answer to grade


class Teacher:
    """What the teacher says of the student's completions, never with a gradient.

    opd: another model. opsd: the student as it starts, which with LoRA is the student without its adapter.
    """

    def __init__(self, config, student, tokenizer, devices):
        self.model, self.tokenizer, self.as_teacher = student, tokenizer, contextlib.nullcontext
        if config.method == "opsd" and config.lora_r:
            self.as_teacher = student.disable_adapter
            return
        if config.method == "opd":
            self.tokenizer = load_tokenizer(config.teacher)
            check_same_vocabulary(tokenizer, self.tokenizer)
            self.model = load_model(config.teacher, config.dtype, devices.device)
        else:
            self.model = load_first_model(config, tokenizer, devices.device)
        self.model.requires_grad_(False)
        if config.fsdp and devices.device != "meta":
            devices.shard(self.model)

    @torch.no_grad()
    def hidden(self, prompts, completions):
        """Hidden states (N, D') at the positions that predict the completions' tokens, and the head for them."""
        with self.as_teacher():
            return completion_hidden(self.model, prompts, completions)[0], Head.of(self.model)


class Head(NamedTuple):
    """The output layer of a language model: logits = hidden @ weight.T + bias."""

    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None = None  # (V,)

    @classmethod
    def of(cls, model):
        """The head of a model. Raises UserError for one that does more than multiply and add."""
        for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "output_multiplier"):
            if getattr(model.config, name, None) not in (None, 1, 1.0):
                raise UserError(f"{model.config.model_type} changes its logits after the head ({name}), which neither "
                                "loss nor sampling does here; use another model (eval.py --engine vllm can score it)")
        layer = model.get_output_embeddings()
        if type(layer) is not torch.nn.Linear:
            raise UserError(f"the head is a {type(layer).__name__}, not a plain linear layer; use another model")
        return cls(layer.weight, layer.bias)


def completion_hidden(model, prompts, completions):
    """Hidden states (N, D) at the positions that predict the completions' tokens, row after row, and the tokens (N,).

    Prompts are padded on the left and completions on the right, with position ids from the mask, as in `sample`. Only
    these N positions go on to the head, whose output for the prompts and the padding nobody needs.
    """
    device = next(model.parameters()).device
    prompt, prompt_mask = pad(prompts, "left", device=device)  # (B, P)
    completion, completion_mask = pad(completions, "right", device=device)  # (B, T)
    mask = torch.cat([prompt_mask, completion_mask], 1)
    hidden = decoder_of(model)(input_ids=torch.cat([prompt, completion], 1), attention_mask=mask, use_cache=False,
                               position_ids=positions_of(mask)).last_hidden_state  # (B, P+T, D)
    predicting = hidden[:, prompt.shape[1] - 1 : -1]  # (B, T, D), position t - 1 predicts token t
    return predicting[completion_mask], completion[completion_mask]


def decoder_of(model):
    """The model without its head."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()  # peft adapts in place


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts.


def sample(model, prompts, max_new_tokens, eos_ids, temperature=1.0, top_p=1.0, top_k=0, seed=0):
    """Sample a completion (token ids, the first eos included and last) for each prompt (token ids).

    temperature 0 is greedy. Prompts are padded on the left with position ids from the mask. Rows that are done are
    dropped once they are half of the batch, so that few long answers do not pay for many short ones. The same seed
    gives the same completions. Raises UserError for a model whose head does more than multiply and add.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ids, mask = pad(prompts, "left", device=device)  # (B, P)
    completions = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which completion each row of the batch writes
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    ends = torch.tensor(eos_ids, device=device)
    positions, cache, head = positions_of(mask), None, Head.of(model)
    with merged_adapter(model), torch.inference_mode():
        for _ in range(max_new_tokens):
            out = decoder_of(model)(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                                    use_cache=True)
            cache = out.past_key_values
            logits = last_logits(head, out.last_hidden_state[:, -1]).float()  # (B, V)
            if temperature == 0:
                tokens = logits.argmax(-1)
            else:
                tokens = draw_tokens(filter_logits(logits / temperature, top_p, top_k).softmax(-1), generator)
            for row, token, over in zip(rows, tokens.tolist(), done.tolist(), strict=True):
                if not over:
                    completions[row].append(token)
            done = done | torch.isin(tokens, ends)
            left = int((~done).sum())
            if left == 0:
                break
            if left <= len(rows) // 2:
                keep = (~done).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                tokens, mask, positions, done = tokens[keep], mask[keep], positions[keep], done[keep]
                rows = [rows[i] for i in keep.tolist()]
            ids = tokens[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    return completions


def last_logits(head, hidden):
    """Logits (B, V) of hidden states (B, D).

    As weight @ hidden.T: where few rows meet a large vocabulary, MKL takes up to five times as long for the other order
    on a CPU (4 rows, V 151,936: 36 against 7 ms with 256 columns, 110 against 41 ms with 1,024).
    """
    logits = (head.weight @ hidden.T).T.contiguous()
    return logits if head.bias is None else logits + head.bias


def filter_logits(logits, top_p=1.0, top_k=0):
    """Set all logits (B, V) to -inf but the top_k largest and, of these, the fewest that hold top_p of the mass."""
    if top_k and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.topk(min(logits.shape[-1], 1000))  # of a large vocabulary far faster than sorting it
        mass = (ordered - logits.logsumexp(-1, keepdim=True)).exp()
        if mass.sum(-1).min() < top_p:  # they do not suffice in every row
            ordered, order = logits.sort(descending=True)
            mass = ordered.softmax(-1)
        needed = mass.cumsum(-1) - mass < top_p  # the mass before a token does not suffice
        logits = torch.full_like(logits, float("-inf")).scatter(1, order, ordered.masked_fill(~needed, float("-inf")))
    return logits


def draw_tokens(probs, generator):
    """A token (B,) from each row of probabilities (B, V), which need not add up to 1: inverse transform sampling.

    One uniform number a row; an exponential one for each token, as torch.multinomial takes, costs forty times as much
    over a large vocabulary. In float64, so that a token without probability never comes out.
    """
    mass = probs.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(len(probs), 1, dtype=torch.float64, device=probs.device, generator=generator)
    return torch.searchsorted(mass, uniform * mass[:, -1:], right=True).squeeze(1)


def draw_rollouts(sampler, examples, step, config, devices):
    """This rank's rollouts of update `step`, sampled from the student; sampler: a RolloutSampler."""
    repeats = config.generations if config.method == "grpo" else 1
    problems = config.batch_size // repeats
    batch = [example for example in examples[step * problems : (step + 1) * problems] for _ in range(repeats)]
    return sampler(devices.part_of(batch), rollout_seed(config, step, devices.rank))


def rollout_seed(config, step, rank):
    return (config.seed * 100_000 + step) * 1_000 + rank


def draw_solutions(tokenizer, examples, step, config, devices):
    """This rank's examples of update `step` with their solutions, cut at prefix_tokens: what --method sft trains on."""
    mine = devices.part_of(examples[step * config.batch_size : (step + 1) * config.batch_size])
    texts = [example.row.get("demonstration") or example.row["solution"] for example in mine]
    solutions = [ids + [tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return [Rollout(example, ids[: config.prefix_tokens]) for example, ids in zip(mine, solutions, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# One update.


def distillation_step(student, teacher, rollouts, config, devices, watch, seed=0):
    """Gradients of the weighted divergence of the rollouts, what they are to be divided by, and a record a rollout.

    Eq. 8 scales the whole batch by one number. So the sums of w_i grad D_i and of w_i are collected over micro-batches
    and devices, and `update` divides once: Eq. 9 holds however the batch is split. A token's weight counts in the
    divisor as its sample's mean. seed: of the permutation of renio_shuffled.
    """
    weigh, normalized_over = weighting(config)
    if config.weighting == "renio_shuffled":
        weigh = shuffled_weighting(student, teacher, rollouts, config, devices, watch, seed)
    total, records = torch.zeros((), device=devices.device), []
    for micro_batch in micro_batches(rollouts, config):
        tokens = token_columns(student, teacher, micro_batch, config, watch)  # d of Eq. 2, log p of Eq. 4, (b, T) each
        weights = weigh(tokens, config)  # w, Eq. 4-7, (b, T) or (b, 1)
        if normalized_over == "micro-batch":
            weights = official_normalized(weights, tokens.mask)
        losses = (weights * tokens.divergence).sum(1)  # w D, (b,), D of Eq. 2
        if config.token_reduction == "mean":
            losses = losses / tokens.mask.sum(1).clamp(min=1)
        losses.sum().backward()  # the sum of Eq. 9, which `update` divides by `total`
        mean_weights = sample_means(weights, tokens.mask)  # (b,)
        total += mean_weights.sum() if normalized_over == "batch" else len(micro_batch)  # B times Eq. 8's mean, or B
        records += distillation_records(micro_batch, tokens, losses, mean_weights, config)
        watch.lap("student")
    return total, records


def by_length(rollouts, config):
    """The rollouts in the order of their lengths, since a micro-batch pays for its longest.

    As they were drawn in grpo, whose groups stand together, and under --variant official, where the micro-batch is what
    the weight is normalized over.
    """
    if config.method == "grpo" or config.variant == "official":
        return rollouts
    return sorted(rollouts, key=lambda rollout: len(rollout.example.student_prompt) + len(rollout.completion))


def micro_batches(rollouts, config):
    return [rollouts[i : i + config.micro_batch_size] for i in range(0, len(rollouts), config.micro_batch_size)]


def rollout_hidden(student, rollouts):
    """completion_hidden of the student."""
    return completion_hidden(student, [r.example.student_prompt for r in rollouts], [r.completion for r in rollouts])


def token_columns(student, teacher, rollouts, config, watch):
    """The TokenColumns of a micro-batch: a forward pass of the teacher, one of the student, both heads fused.

    With --skip_tokens the first columns are outside of the mask, and without a divergence.
    """
    completions = [rollout.completion for rollout in rollouts]
    teacher_hidden, teacher_head = teacher.hidden([rollout.example.teacher_prompt for rollout in rollouts], completions)
    watch.lap("teacher")
    hidden, tokens = rollout_hidden(student, rollouts)
    columns = fused_divergence(
        hidden, teacher_hidden, Head.of(student), teacher_head, tokens, config.beta, config.temperature,
        config.entry_clip, "official" if config.entry_clip else "none", estimator=config.estimator)
    mask = length_mask(completions, tokens.device)
    mask[:, : config.skip_tokens] = False
    rows = [row.masked_fill(~mask, 0.0) for row in rows_of(completions, *columns)]
    return TokenColumns(*rows, mask, [rollout.right for rollout in rollouts])


def shuffled_weighting(student, teacher, rollouts, config, devices, watch, seed):
    """A control: a weighting that gives ReNIO's weights of the whole batch to its samples in random order.

    It needs all of them before the first gradient, hence a pass of its own.
    """
    with torch.no_grad():
        own = [weight for micro_batch in micro_batches(rollouts, config) for weight in
               renio_weights(token_columns(student, teacher, micro_batch, config, watch), config).flatten().tolist()]
    weights = devices.gather(own)
    random.Random(seed).shuffle(weights)
    mine = iter(weights[devices.rank * len(own) :])
    return lambda tokens, config: tokens.divergence.new_tensor([next(mine) for _ in tokens.mask])[:, None]


def sft_step(student, rollouts, config, devices, watch):
    """Gradients of the cross-entropy of the solutions, summed over tokens; their number of tokens; a record each."""
    total, records = torch.zeros((), device=devices.device), []
    for micro_batch in micro_batches(rollouts, config):
        completions = [rollout.completion for rollout in micro_batch]
        hidden, tokens = rollout_hidden(student, micro_batch)
        losses = -token_logprobs(linear(hidden, *Head.of(student)), tokens, 1.0)  # (N,)
        losses.sum().backward()
        total += len(tokens)
        [rows] = rows_of(completions, losses)  # (b, T)
        records += rollout_records(micro_batch, loss=rows.sum(1))
    watch.lap("student")
    return total, records


def grpo_step(student, rollouts, old_logprobs, config, devices, watch):
    """Gradients of GRPO's loss (Shao et al. 2024, without its KL term), what to divide them by, and a record a rollout.

    Rollouts of one prompt stand together, config.generations of them, on one rank or several. The reward is 1 for a
    right answer, else 0.
    old_logprobs: of the completions under the weights that sampled them, a tensor a micro-batch; empty for the first of
    the updates on these rollouts, which fills it.
    """
    rewards = devices.gather([float(rollout.right is True) for rollout in rollouts])  # a group may lie on two ranks
    advantages = devices.part_of(grpo_advantages(rewards, config.generations).tolist())
    records = []
    for i, micro_batch in enumerate(micro_batches(rollouts, config)):
        completions = [rollout.completion for rollout in micro_batch]
        hidden, tokens = rollout_hidden(student, micro_batch)
        [logprobs] = rows_of(completions, head_logprobs(hidden, Head.of(student), tokens, config.temperature))  # (b, T)
        mask = length_mask(completions, tokens.device)
        if i == len(old_logprobs):
            old_logprobs.append(logprobs.detach())
        advantage = logprobs.new_tensor(advantages[len(records) :][: len(micro_batch)])  # (b,)
        objective = clipped_objective(logprobs, old_logprobs[i], advantage, config.ratio_clip) * mask  # (b, T)
        losses = -objective.sum(1) / (mask.sum(1) if config.token_reduction == "mean" else 1)  # (b,)
        losses.sum().backward()
        clipped = ((((logprobs.detach() - old_logprobs[i]).exp() - 1).abs() > config.ratio_clip) & mask).sum(1)
        records += rollout_records(micro_batch, loss=losses, advantage=advantage, clipped=clipped)
    watch.lap("student")
    return torch.tensor(float(len(rollouts)), device=devices.device), records


def grpo_advantages(rewards, generations):
    """Each reward (N,) less the mean of its group, in standard deviations of the group (Shao et al. 2024).

    Rollouts of one prompt stand together, `generations` of them. A group with equal rewards has advantages of 0.
    """
    groups = torch.tensor(rewards, dtype=torch.float32).view(-1, generations)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def clipped_objective(logprobs, old_logprobs, advantages, clip):
    """What GRPO maximizes on each token (B, T): the smaller of ratio x advantage with the ratio free and clipped.

    logprobs, old_logprobs: (B, T), under the present weights and under those that sampled. advantages: (B,).
    """
    ratio = (logprobs - old_logprobs).exp()
    advantages = advantages[:, None]
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def update(optimizer, trained, total, config, devices):
    """Sum the gradients over the devices, divide them by the sum of `total`, clip them and descend; returns their norm.

    Where it is not finite nothing changes.
    """
    gradients = [p.grad for p in trained]
    devices.sum([*gradients, total])
    for gradient in gradients:
        local_part(gradient).div_(total)  # Eq. 8 and 9: sum of w grad D / sum of w
    grad_norm = devices.norm(gradients)
    if 0 < config.max_grad_norm < grad_norm:
        for gradient in gradients:
            local_part(gradient).mul_(config.max_grad_norm / grad_norm)
    if torch.isfinite(grad_norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


# ---------------------------------------------------------------------------------------------------------------------
# The loop.


def train(config, devices):
    """Train by config.method; afterwards output_dir holds metrics.jsonl, the checkpoints and final/."""
    check_split(config, devices)
    with only_run_in(config.output_dir, devices), StopSignal(devices) as stop:
        run = Run(config, devices)
        for step in run.log.progress_bar():
            # rollouts
            watch = Stopwatch(devices.device)
            if config.method == "sft":
                rollouts = draw_solutions(run.tokenizer, run.examples, step, config, devices)
            else:
                with run.sampler.of_present_student(watch):
                    rollouts = draw_rollouts(run.sampler, run.examples, step, config, devices)
            # gradients, update and log
            run.make_step(step, rollouts, watch)
            # checkpoint
            stopped = stop.came()
            run.checkpoint(step, stopped)
            if stopped:
                break
        run.finish()


class Run:
    """A student in training with all that its steps need, as the newest checkpoint in output_dir has it or new.

    draws: how many times as many examples it has as its updates take; filter_experiments.py chooses among them.
    beside: a Run that began alike, whose teacher, frozen weights and engine this one shares.
    """

    def __init__(self, config, devices, draws=1, beside=None):
        self.config, self.devices, self.output_dir = config, devices, Path(config.output_dir)
        start = open_output(config, devices)  # a checkpoint to go on from, or None
        self.student, self.tokenizer = load_student(config, devices.device, start)
        self.teacher = beside and beside.teacher
        if config.fsdp:
            devices.shard(self.student)
        elif beside:  # under FSDP each has its own part of them
            share_frozen_weights(self.student, beside.student)
        self.student.train()  # gradient checkpointing asks for it; the models have no dropout
        if config.method in ("opd", "opsd") and not beside:
            self.teacher = Teacher(config, self.student, self.tokenizer, devices)
        self.optimizer = make_optimizer(self.student, config)
        self.made, self.nonfinite_in_row = restore(start, self.student, self.optimizer, devices)  # steps so far
        self.examples, skipped = (beside.examples, None) if beside else load_examples(
            config, self.tokenizer, self.teacher and self.teacher.tokenizer,
            draws * config.max_steps * config.batch_size)
        self.sampler = RolloutSampler(config, self.student, self.tokenizer, self.examples, devices,
                                      beside and beside.sampler.engine)
        self.log = RunLog(config, devices, self.made)
        if not beside:
            self.log.announce(self.student, self.teacher, self.tokenizer, self.examples, skipped)

    def make_step(self, step, rollouts, watch, **drawn):
        """Gradients and update, in GRPO several on the same rollouts, and a row of the log; drawn: metrics for it."""
        config, devices, student, old_logprobs = self.config, self.devices, self.student, []
        rollouts = by_length(rollouts, config)
        set_learning_rate(self.optimizer, step, config)
        for _ in range(config.iterations if config.method == "grpo" else 1):
            if config.method == "sft":
                total, records = sft_step(student, rollouts, config, devices, watch)
            elif config.method == "grpo":
                total, records = grpo_step(student, rollouts, old_logprobs, config, devices, watch)
            else:
                total, records = distillation_step(student, self.teacher, rollouts, config, devices, watch,
                                                   seed=rollout_seed(config, step, 0))
            grad_norm = update(self.optimizer, trained_parameters(student), total, config, devices)
            watch.lap("optimizer")
            if not torch.isfinite(grad_norm):
                break
        self.made, self.nonfinite_in_row = step + 1, 0 if torch.isfinite(grad_norm) else self.nonfinite_in_row + 1
        self.log.write(step, devices.gather(records), total, grad_norm, drawn, watch)
        if self.nonfinite_in_row == 3:
            give_up(self.output_dir, step, rollouts, devices)

    def checkpoint(self, step, stopped):
        """Save one where it is due, or where the run was `stopped`."""
        config = self.config
        if stopped or config.save_steps and (step + 1) % config.save_steps == 0:
            save_checkpoint(self.output_dir, step + 1, self.student, self.tokenizer, self.optimizer,
                            self.nonfinite_in_row, self.devices)
            if config.save_steps and not stopped:
                prune_checkpoints(self.output_dir, config, self.devices)

    def finish(self):
        """Save final/. Raises UserError where the run was stopped before its last step."""
        if self.made < self.config.max_steps:
            raise UserError(f"stopped after step {self.made} of {self.config.max_steps}; the same command with "
                            "--resume goes on")
        save(self.output_dir / "final", self.student, self.tokenizer, self.devices)
        self.log.say(f"wrote {self.output_dir / 'final'}")


def trained_parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def set_learning_rate(optimizer, step, config):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)


def learning_rate(config, step):
    """Of update `step` (from 0): linear warm-up, then constant, or linear to 0 at schedule_steps."""
    scale = min(1.0, (step + 1) / (config.warmup_steps or 1))
    if config.schedule_steps:
        scale *= 1 - step / config.schedule_steps
    return config.learning_rate * scale


# ---------------------------------------------------------------------------------------------------------------------
# Below: what real runs need besides the method.
# ---------------------------------------------------------------------------------------------------------------------
# The fused divergence, and the log-probabilities of GRPO: heads without full logits.

CHUNK = 4 * 10**7  # logits held at a time of each model; 10**7: a sixth of the memory, 1.2 times the time of the loss
PART = dict(cpu=2**20, cuda=2**22)  # of these, how many elementwise passes take at a time: what a cache holds


class TokenDivergence(NamedTuple):
    """What `fused_divergence` says of each token, (N,) each, in nats; only the divergence is differentiable."""

    divergence: torch.Tensor
    student_logprob: torch.Tensor
    teacher_logprob: torch.Tensor
    teacher_entropy: torch.Tensor


class DivergenceSettings(NamedTuple):
    """Arguments of `fused_divergence`."""

    beta: float
    temperature: float
    entry_clip: float | None
    clip_mode: str
    chunk: int
    estimator: str


def check_divergence(beta, temperature, entry_clip, clip_mode):
    """Raise ValueError for arguments that make no divergence."""
    if not 0 <= beta <= 1 or not temperature > 0:
        raise ValueError(f"need beta in [0, 1] and temperature above 0, got {beta} and {temperature}")
    if clip_mode not in ("none", "opsd", "official"):
        raise ValueError(f"clip_mode {clip_mode!r}: known are none, opsd, official")
    if entry_clip is not None and clip_mode == "none":
        raise ValueError("entry_clip without a clip_mode (opsd or official)")


def fused_divergence(student_hidden, teacher_hidden, student_head, teacher_head, tokens, beta=0.0, temperature=1.0,
                     entry_clip=None, clip_mode="none", chunk=None, estimator="full"):
    """`token_divergence` of the models' last hidden states, without ever holding more than chunk x V logits of each.

    student_hidden: (N, D), teacher_hidden: (N, D'), at the positions that predict `tokens`, (N,).
    student_head: weight (V, D), or a pair (a Head) of it and a bias (V,) or None. teacher_head: likewise, (V', D'); a
        vocabulary padded beyond the other's is cut to it.
    beta, temperature, entry_clip, clip_mode: as in `token_divergence`, of which this has the values and gradients.
    chunk: rows whose logits are held at a time; without it as many as make CHUNK logits.
    estimator: "full", or "sampled" for the values and gradients of `sampled_divergence`.
    Returns a TokenDivergence, differentiable in student_hidden and the student's head. Raises ValueError for arguments
    that `token_divergence` refuses.

    Divergences meet only a linear weighting afterwards, so their gradient with respect to a row's hidden state can be
    taken as soon as its chunk is there; backward multiplies it by the upstream factor of its token. Only the gradient
    of a head that trains mixes rows whose factors are not known before: backward then goes over the chunks once more,
    unless there is but one, whose gradient is kept.
    """
    check_divergence(beta, temperature, entry_clip, clip_mode)
    if estimator not in ("full", "sampled") or estimator == "sampled" and entry_clip is not None:
        raise ValueError(f"estimator {estimator!r}: known are full and, without entry_clip, sampled")
    student_head, teacher_head = (Head(head) if isinstance(head, torch.Tensor) else Head(*head)
                                  for head in (student_head, teacher_head))
    width = min(len(student_head.weight), len(teacher_head.weight))
    student_head, teacher_head = (Head(*(None if x is None else x[:width] for x in head))
                                  for head in (student_head, teacher_head))
    return TokenDivergence(*FusedDivergence.apply(student_hidden, *student_head, (teacher_hidden, teacher_head), tokens,
                                                  DivergenceSettings(beta, temperature, entry_clip, clip_mode,
                                                                    chunk or rows_of_chunk(width), estimator)))


def rows_of_chunk(vocabulary):
    return max(1, CHUNK // vocabulary)


class FusedDivergence(torch.autograd.Function):
    """See `fused_divergence`."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, teacher, tokens, settings):
        needs_hidden, *needs_head = ctx.needs_input_grad[:3]
        columns = hidden.new_empty(4, len(tokens), dtype=logit_dtype(hidden))
        gradient = torch.empty_like(hidden) if needs_hidden and not any(needs_head) else None  # each row's own
        for rows, column, logit_gradient in divergence_chunks((hidden, Head(weight, bias)), teacher, tokens, settings):
            columns[:, rows] = torch.stack(column)
            if gradient is not None:
                torch.mm(logit_gradient.to(weight.dtype), weight, out=gradient[rows])
        only = logit_gradient if any(needs_head) and len(tokens) <= settings.chunk else None
        ctx.save_for_backward(hidden, weight, bias, tokens, gradient, only)
        ctx.teacher, ctx.settings = teacher, settings
        divergence, *others = columns.unbind()
        ctx.mark_non_differentiable(*others)
        return divergence.clone(), *others

    @staticmethod
    def backward(ctx, upstream, *_):
        hidden, weight, bias, tokens, gradient, only = ctx.saved_tensors
        factors = upstream[:, None] / ctx.settings.temperature
        if gradient is not None:
            return gradient * factors.to(gradient.dtype), *[None] * 5
        gradient, *head_gradient = (torch.zeros_like(x) if needed else None for x, needed in
                                    zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True))
        weight_gradient, bias_gradient = head_gradient
        student = hidden, Head(weight, bias)
        for rows, _, logit_gradient in ([(slice(None), None, only)] if only is not None else
                                        divergence_chunks(student, ctx.teacher, tokens, ctx.settings)):
            logit_gradient = logit_gradient.mul_(factors[rows]).to(weight.dtype)
            if gradient is not None:
                torch.mm(logit_gradient, weight, out=gradient[rows])
            if weight_gradient is not None:
                weight_gradient.addmm_(logit_gradient.T, hidden[rows])
            if bias_gradient is not None:
                bias_gradient += logit_gradient.sum(0)
        return gradient, weight_gradient, bias_gradient, None, None, None


def logit_dtype(hidden):
    return torch.promote_types(hidden.dtype, torch.float32)


def divergence_chunks(student, teacher, tokens, settings):
    """For each chunk of rows: the slice, the columns of a TokenDivergence, and the gradient of the rows' divergence
    with respect to the student's logits over the temperature (n, V), in a buffer that the next chunk overwrites.

    student, teacher: pairs of hidden states (N, D) and Head. settings: DivergenceSettings.
    """
    n, vocabulary = len(tokens), len(student[1].weight)
    part = max(1, PART[student[0].device.type] // vocabulary)  # rows

    def buffer(*shape):
        return student[0].new_empty(*shape, vocabulary, dtype=logit_dtype(student[0]))

    whole, parts = [buffer(min(settings.chunk, n)) for _ in range(2)], buffer(3, min(part, n))
    for start in range(0, n, settings.chunk):
        rows = slice(start, min(start + settings.chunk, n))
        s, t = (logits[: rows.stop - start] for logits in whole)
        for (hidden, head), logits in ((student, s), (teacher, t)):
            write_logits(hidden[rows], head, settings.temperature, logits)
        columns = [chunk_divergence(*of_part, parts[:, : len(of_part[0])], settings)
                   for of_part in zip(s.split(part), t.split(part), tokens[rows].split(part), strict=True)]
        yield rows, [torch.cat(column) for column in zip(*columns, strict=True)], s


def write_logits(hidden, head, temperature, out):
    """Write the logits of hidden states (n, D), divided by the temperature, to `out` (n, V)."""
    if head.weight.dtype == out.dtype:
        torch.mm(hidden / temperature, head.weight.T, out=out)
    else:
        out.copy_(hidden @ head.weight.T).div_(temperature)
    if head.bias is not None:
        out += head.bias.to(out.dtype) / temperature


def chunk_divergence(logits, teacher_logits, tokens, buffers, settings):
    """Columns of a TokenDivergence; overwrites the student's logits (n, V) with the divergence's gradient for them.

    buffers: (3, n, V). With g_v the derivative of entry v's term with respect to log p_S(v), 0 where the clip holds the
    term, the gradient is g - p_S sum(g).
    """
    s, t, p = buffers
    torch.log_softmax(logits, 1, out=s)
    torch.log_softmax(teacher_logits, 1, out=t)
    student_logprob, teacher_logprob = (x.gather(1, tokens[:, None]).squeeze(1) for x in (s, t))
    p_t, beta = torch.exp(t, out=p), settings.beta
    entropy = -torch.linalg.vecdot(p_t, t)
    if settings.estimator == "sampled":
        p_s = s.exp_()
        terms = g = p_t.zero_().scatter_(1, tokens[:, None], (student_logprob - teacher_logprob)[:, None])
    elif beta == 0:
        terms = t.sub_(s).mul_(p_t)
        g, p_s = p_t.neg_(), s.exp_()
    elif beta == 1:
        p_s = s.exp()
        terms = s.sub_(t).mul_(p_s)
        g = torch.add(terms, p_s, out=p)
    else:
        p_s = s.exp()
        log_m = torch.lerp(p_s, p_t, beta).clamp_(min=torch.finfo(p.dtype).tiny).log_()
        g = s.sub_(log_m).mul_(p_s).mul_(1 - beta)  # what the mixture adds cancels
        terms = t.sub_(log_m).mul_(p_t).mul_(beta).add_(g)
    if settings.entry_clip is not None:
        low = 0.0 if settings.clip_mode == "official" else -math.inf
        g.masked_fill_((terms < low) | (terms > settings.entry_clip), 0.0)
        terms.clamp_(low, settings.entry_clip)
    divergence = terms.sum(1)
    torch.addcmul(g, p_s, g.sum(1, keepdim=True), value=-1, out=logits)
    return divergence, student_logprob, teacher_logprob, entropy


def head_logprobs(hidden, head, tokens, temperature):
    """Log-probabilities (N,) of the tokens (N,) from hidden states (N, D), never holding more than CHUNK logits."""
    def chunk_logprobs(hidden, tokens):
        return token_logprobs(linear(hidden, *head), tokens, temperature)

    return torch.cat([checkpoint(chunk_logprobs, *rows, use_reentrant=False)
                      for rows in zip(*(x.split(rows_of_chunk(len(head.weight))) for x in (hidden, tokens)),
                                      strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# Data.


def load_examples(config, student_tokenizer, teacher_tokenizer, needed):
    """The `needed` examples of the whole run in order, and how many problems were skipped, by reason (a Counter).

    The data set is shuffled by seed, once an epoch. Only as many rows are rendered as are needed.
    """
    rng = random.Random(config.seed)
    rows = read_rows(config, rng, needed)
    examples, skipped = [], Counter()
    while len(examples) < needed:
        before = len(examples)
        rng.shuffle(rows)
        for row in rows:
            if len(examples) == needed:
                break
            if lacks_solution(config, row):
                skipped["without a solution"] += 1
                continue
            example = render(config, row, student_tokenizer, teacher_tokenizer, rng)
            if max(len(example.student_prompt), len(example.teacher_prompt or ())) > config.max_prompt_tokens:
                skipped[f"longer than {config.max_prompt_tokens} tokens"] += 1
            else:
                examples.append(example)
        if len(examples) == before:
            raise UserError(f"--dataset {config.dataset}: of {len(rows)} problems none can be used: each is "
                            + " or ".join(skipped) + (" (--max_prompt_tokens)" if "longer" in str(skipped) else ""))
    return examples, skipped


def needs_solution(config):
    return config.method == "sft" or config.privileged


def lacks_solution(config, row):
    """Whether a row can't be used for want of one; a teacher may have a prompt of its own instead."""
    own_prompt = config.method != "sft" and row.get("teacher_prompt")
    return needs_solution(config) and not row["solution"] and not own_prompt


def render(config, row, student_tokenizer, teacher_tokenizer, rng):
    """The Example of a row. As the released code, --variant official cuts a long prompt at its end."""
    student_template, teacher_template = prompt_templates(config)
    thinking, template = config.student_thinking, student_template
    if config.method == "sft":
        template = teacher_template if row.get("privileged") else student_template
        if config.task == "arith":
            thinking = rng.random() < 0.5  # a micro model has to know both openings of its template
    longest = config.max_prompt_tokens if config.variant == "official" and teacher_tokenizer else None
    example = Example(row, prompt_ids(student_tokenizer, fill_prompt(template, row), thinking)[:longest])
    if teacher_tokenizer:
        message = row.get("teacher_prompt") or fill_prompt(teacher_template, row)
        example.teacher_prompt = prompt_ids(teacher_tokenizer, message, config.teacher_thinking)[:longest]
    return example


def read_rows(config, rng, needed):
    """The rows of --dataset; for sft, `privileged` says of each whether its prompt holds the solution."""
    make, share = SYNTHETIC.get(config.dataset), config.privileged_share
    if make:
        rows = make(needed, config.seed)
    else:
        rows = read_problems(config.dataset, need_solution=needs_solution(config), task=config.task)
    with_solution = rows
    if make and share and config.task == "arith":  # invented results teach to read the reference, not to remember it
        with_solution = arith_rows(len(rows), config.seed + 10**6, invented=True)
    return [dict(other, privileged=True) if share and rng.random() < share else row
            for row, other in zip(rows, with_solution, strict=True)]


def read_problems(source, split="train", need_solution=False, task="math", limit=None):
    """Rows of problem, solution and answer (None where unknown) from a file or the hub, the first `limit` of them.

    Columns: problem (or question, prompt), solution (or deepseek_solution), answer (or Answer), and, kept where it is
    there, teacher_prompt. Where there is no answer column, the answer is what follows GSM8K's `####` or stands in the
    last box of the solution; GSM8K keeps its solution in `answer`. Where there is a column domain, as OpenThoughts-114k
    has one, only the task's rows are taken. A set on the hub is read row by row, and with a limit no further than that.
    Raises UserError for an empty set, a missing column or a row without a problem.
    """
    rows = []
    for number, raw in enumerate(read_table(source, split, streaming=limit is not None), start=1):
        if not isinstance(raw, dict):
            raise UserError(f"{source}, row {number}: expected columns, found {type(raw).__name__}")
        if raw.get("domain") not in (None, task):
            continue
        problem = next((raw[c] for c in ("problem", "question", "prompt") if c in raw), None)
        answer = next((raw[c] for c in ("answer", "Answer") if raw.get(c) is not None), None)
        solution = next((raw[c] for c in ("solution", "deepseek_solution") if raw.get(c) is not None), None)
        if solution is None and isinstance(answer, str) and "####" in answer:
            solution, answer = answer, None
        if isinstance(solution, str) and answer is None:
            answer = solution.rpartition("####")[2].strip() if "####" in solution else extract_boxed(solution)
        solutions_column = {"solution", "deepseek_solution", "teacher_prompt"} & raw.keys()
        for name, wrong in (
                ("problem (or question, prompt)", not (isinstance(problem, str) and problem.strip())),
                ("solution", need_solution and solution is None and not solutions_column),
                ("solution", not isinstance(solution, str | None)),
                ("teacher_prompt", not isinstance(raw.get("teacher_prompt"), str | None))):
            if wrong:
                raise UserError(f"{source}, row {number}: no text in a column {name}; its columns are {', '.join(raw)}")
        rows.append(dict(problem=problem, solution=(solution or "").strip() and solution or None,
                         answer=None if answer is None else str(answer)))
        if raw.get("teacher_prompt"):
            rows[-1]["teacher_prompt"] = raw["teacher_prompt"]
        if len(rows) == limit:
            break
    if not rows:
        raise UserError(f"{source}: no rows")
    return rows


def read_table(source, split="train", streaming=False):
    """Rows (dicts) of a .json, .jsonl, .jsonl.gz or .parquet file, or of a set on the hub (name or name:config).

    streaming: of a set on the hub fetch no more than what is read.
    """
    path = Path(source)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending not in (".json", ".jsonl", ".jsonl.gz", ".parquet"):
        import datasets

        try:
            return iter(datasets.load_dataset(*source.split(":"), split=split, streaming=streaming))
        except Exception as error:  # the hub's client raises many kinds; all of them mean the same to the user
            raise UserError(f"{source} is neither a local .json, .jsonl, .jsonl.gz or .parquet file nor a data set "
                            f"that the hub gives: {str(error).splitlines()[0]}") from None
    if not path.exists():
        raise UserError(f"{source}: no such file")
    if ending == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source}: can't be read: {error}") from None
    if ending == ".json":
        rows = parse_json(text, source)
        if not isinstance(rows, list):
            raise UserError(f"{source}: a .json data set is one list of rows")
        return rows
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(line, source, number) for number, line in lines if line.strip()]


def parse_json(text, source, first_line=1):
    """The value of a JSON text that begins on this line of the source. Raises UserError with the line of a mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}, line {first_line + error.lineno - 1}: not JSON ({error.msg})") from None


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic world: lists of small operations modulo 10 with worked solutions, its tokenizer and chat template.
#
#   problem    a 3+8 b 7-5 c 2*9 d 6*4        a: add 8 to 3; b: subtract 5 from 7; ...; keep the last digit
#   solution   \boxed{ a 3+8 1 b 7-5 2 c 2*9 8 d 6*4 4 }        the answer: 1284
#
# An operation is one word, and the solution repeats it before its result, which makes a result a look-up in a table of
# 270 entries. (With a word for each operand, the table is learned after a plateau whose length differs by seed.) A
# model that was taught to guess part of that table (its `gaps`) has something real to learn from a teacher that knows
# it, and is wrong under greedy decoding too, where a merely noisy model would be right. No result is used again, in
# another operation or in a last line that repeats them: the teacher can't know how to go on with a wrong result, and
# would teach noise on every token that depends on the student's mistake.

STEP_NAMES = "abcdefghij"
OPERATIONS = [f"{value}{sign}{digit}" for value in range(10) for sign in "+-*" for digit in range(1, 10)]
STEPS = (3, 10)  # fewest and most operations of a problem


def result_of(operation):
    """result_of("3+8") is 1, since results are taken modulo 10."""
    value, digit = int(operation[0]), int(operation[2])
    return {"+": value + digit, "-": value - digit, "*": value * digit}[operation[1]] % 10


def operation_gaps(share=0.2):
    """The operations whose results a model trained with gaps has to guess: the same on every call."""
    return random.Random("gaps").sample(OPERATIONS, round(share * len(OPERATIONS)))


def arith_rows(n, seed=0, split="train", gaps=False, invented=False, slips=0.015, rechecks=0.05, doubted=0.3):
    """n problems of the arithmetic world, as dicts of problem, solution, answer and demonstration.

    split: "train" or "test"; rows of the two come from disjoint seeds.
    invented: results are random digits, so that a row can be solved only by reading its reference solution.
    The demonstration, which a model is trained to write, has steps that are checked again ("wait") in the same words:
    the share `rechecks` of right results and half of the wrong ones, which are the share `slips`. The second result is
    right and counts; where there is none, the first does.
    gaps: the results of `operation_gaps` are random digits, which a model learns to guess. The share `doubted` of them
        is checked again, and of every other gap that result is right: a re-check can mend an answer, or not.
    """
    rng = random.Random(f"arith {split} {seed}")
    every_gap = operation_gaps() if gaps else []
    guessed, unknown = set(every_gap), set(every_gap[::2])
    rows = []
    for _ in range(n):
        problem, solution, demonstration, results = [], [], [], []
        for name in STEP_NAMES[: rng.randint(*STEPS)]:
            operation = rng.choice(OPERATIONS)
            result = rng.randrange(10) if invented else result_of(operation)
            problem += [name, operation]
            solution += [name, operation, str(result)]
            results.append(str(result))
            if operation in guessed:
                first, again = rng.randrange(10), doubted
            elif rng.random() < slips:
                first, again = (result + rng.randint(1, 9)) % 10, 0.5
            else:
                first, again = result, rechecks
            demonstration += [name, operation, str(first)]
            if rng.random() < again:
                second = rng.randrange(10) if operation in unknown else result
                demonstration += ["wait", name, operation, str(second)]
        rows.append(dict(problem=" ".join(problem), answer="".join(results), **{
            key: " ".join(["\\boxed{", *words, "}"]) for key, words in (
                ("solution", solution), ("demonstration", demonstration))}))
    return rows


# Problems in plain English with worked solutions, for a pretrained model. The results of `products` are independent of
# each other, as in the arithmetic world; in `chain` each feeds the next, which shows what self-distillation then does.


def product_rows(n, seed=0, split="train"):
    """n problems of three products each, as dicts of problem, solution and answer. split: as for arith_rows."""
    rng = random.Random(f"products {split} {seed}")
    rows = []
    for _ in range(n):
        factors = [(rng.randint(3, 19), rng.randint(3, 9)) for _ in range(3)]
        asked = ", ".join(f"{a} * {b}" for a, b in factors)
        worked = ", ".join(f"{a} * {b} = {a * b}" for a, b in factors)
        answer = ", ".join(str(a * b) for a, b in factors)
        rows.append(dict(problem=f"Work out {asked}.", answer=answer,
                         solution=f"{worked}. The answers are \\boxed{{{answer}}}."))
    return rows


def chain_rows(n, seed=0, split="train"):
    """n sums and differences of four numbers, worked out from the left; else as product_rows."""
    rng = random.Random(f"chain {split} {seed}")
    rows = []
    for _ in range(n):
        value = rng.randint(10, 30)
        asked, worked = str(value), []
        for _ in range(3):
            change = rng.choice([-1, 1]) * rng.randint(2, 15)
            step, value = f"{value} {'+' if change > 0 else '-'} {abs(change)}", value + change
            asked += step[step.index(" "):]
            worked.append(f"{step} = {value}.")
        rows.append(dict(problem=f"Calculate {asked}.", answer=str(value),
                         solution=f"{' '.join(worked)} The answer is \\boxed{{{value}}}."))
    return rows


SYNTHETIC = {"arith": arith_rows, "arith-gaps": functools.partial(arith_rows, gaps=True), "products": product_rows,
             "chain": chain_rows}  # --dataset -> its rows, made when asked for: (n, seed, split)


def arith_tokenizer():
    """The word-level tokenizer of the arithmetic world, with a chat template that knows `enable_thinking`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<think>", "</think>", "reference", "again", "wait",
             "\\boxed{", "}", *map(str, range(10)), *STEP_NAMES, *OPERATIONS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %} <think> </think>{% endif %}{% endif %}")
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# The math grader: GRPO's reward, a diagnostic of the weights, and eval.py's. It compares the last box behind the
# thinking by math-verify, after both sides were brought into the LaTeX that this reads as it is meant (1 1/2, ½, -1./3,
# np.arcsin(10/13), 4.5e33, subscripts, number bases). Each of the 2,221 golds of the seven math sets equals itself; of
# 3,180 golds with one digit changed math-verify alone calls 18 equal to the original, this grader none.


def grade_rollout(tokenizer, completion, row, eos_ids, task="math"):
    """Whether a rollout's answer is right; None where it was cut before its box, or there is no answer to compare with.

    ReNIO's weight never sees it.
    """
    text = tokenizer.decode(completion, skip_special_tokens=True)
    if row["answer"] is None or (completion[-1] not in eos_ids and extract_boxed(text) is None):
        return None
    return (arith_verdict if task == "arith" else math_verdict)(text, row["answer"]) == "equal"


def extract_boxed(text):
    r"""What stands in the last complete \boxed{...} (braces inside may nest) or `\boxed 42` of the text, or None.

    A box outside <think>...</think> goes before one inside, so that a guess in the reasoning does not count where
    there is a final answer.
    """
    def last_box(part):
        found, opened = (-1, None), []  # one pass, so that a megabyte of braces takes a second
        # a box with or without its brace, an escaped character (not the backslash of a box), a brace
        for match in re.finditer(r"\\boxed\s*(?:\{|([-+.]*\d[^\s{}$\\]*))|\\(?!\\boxed)[\s\S]|[{}]", part):
            if match[1]:
                found = max(found, (match.start(), match[1].rstrip(".,;:!?")))
            elif match[0].endswith("{") and match[0] != r"\{":
                opened.append(match)
            elif match[0] == "}" and opened:
                box = opened.pop()
                if box[0] != "{" and box.start() > found[0]:
                    found = box.start(), part[box.end() : match.start()].strip()
        return found[1]

    outside = re.sub(r"<think>.*?(?:</think>|\Z)", " ", text, flags=re.DOTALL)
    found = last_box(outside.rpartition("</think>")[2])  # the template may have opened the thinking
    return found if found is not None else last_box(text)


def grade_math(text, gold, timeout=10.0):
    r"""Whether the last \boxed{} of `text` is mathematically equal to `gold` (math-verify). No box is wrong."""
    return math_verdict(text, gold, timeout) == "equal"


def math_verdict(text, gold, timeout=10.0):
    """grade_math with its reason: equal, different, no box, unparsable (what can't be decided is wrong)."""
    answer, boxed_gold = extract_boxed(text), extract_boxed(gold)
    return "no box" if answer is None else answer_verdict(answer, gold if boxed_gold is None else boxed_gold, timeout)


def arith_results(text):
    """The results in an answer of the arithmetic world, {name of the step: the last that its box has for it}."""
    words = (extract_boxed(text) or "").split()
    return {name: result for name, result in zip(words, words[2:], strict=False) if name in STEP_NAMES}


def arith_verdict(text, gold):
    """math_verdict of the arithmetic world: equal, different, no box."""
    if extract_boxed(text) is None:
        return "no box"
    return "equal" if "".join(arith_results(text).values()) == gold else "different"


def answer_verdict(answer, gold, timeout=10.0):
    """Whether two contents of boxes are mathematically equal, as one of equal, different, unparsable.

    Plain numbers are compared here, as math-verify does to 6 decimals, but those below 1e-4 relatively. All else goes
    to a worker process that ends itself after `timeout` seconds, so that no answer, such as 9^{9^{9}}, can hang or
    crash the caller. Raises UserError without math-verify.
    """
    if max(len(answer), len(gold)) > 1000:  # no benchmark's is that long, and the parser's time grows with it
        return "equal" if answer.strip() == gold.strip() else "unparsable"
    sides = _as_latex(answer), _as_latex(gold)
    numbers = [_plain_number(side) for side in sides]
    # number bases and powers of units, which math-verify leaves out: 52_8 is not 52_9, though either may be 52
    left_out = [re.findall(r"\d_\{?(\d+)|\\(?:text|mbox|mathrm) ?\{[^{}]*\} ?\^\{?(\d+)\}?$", side) for side in sides]
    if sides[0] == sides[1]:
        equal = True
    elif None not in numbers:
        size = max(map(abs, numbers))
        rounded = [f"{number / size if 0 < size < 1e-4 else number:.6f}" for number in numbers]
        equal = numbers[0] == numbers[1] or rounded[0] == rounded[1]
    elif all(left_out) and left_out[0] != left_out[1]:
        equal = False
    else:
        equal = _ask_worker(*sides, timeout)
    return {True: "equal", False: "different", None: "unparsable"}[equal]


def _as_latex(answer):
    """The answer in such LaTeX as math-verify reads as it is meant."""
    for sign, latex in {"\\$": "", "$": "", "−": "-", "–": "-", "½": r"\frac{1}{2}", "°": r"^{\circ}", "∞": r"\infty ",
                        "γ": r"\gamma ", "~": " ", "np.log(": r"\ln(", "np.": "\\", "**": "^"}.items():
        answer = answer.replace(sign, latex)
    answer = " ".join(answer.split()).rstrip(" .")
    for pattern, latex in (
        (r"√ ?([\d.]+)", r"\\sqrt{\1}"),  # \sqrt takes one digit
        (r"(?:√|\\sqrt) ?\(", "sqrt("),  # which math-verify makes \sqrt{...}, while it can't read \sqrt(...)
        (r"√", r"\\sqrt "),
        (r"\\! ?", ""),  # 10,\! 080
        (r"(?<=\d)\.(?=[-+*/^,)])", ""),  # -1./3 can't be read
        (r"(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)\b", r"(\1 \\times 10^{\2})"),  # 4.5e33 would hold Euler's number
        (r"(?<![\d.^_])([1-9]\d*) (\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 1 1/2 would be (1 + 1)/2
        (r"(?<![\d.^_])\d{1,3}(?:(?:\\[,;: ]| )\d{3})+(?!\d)", lambda m: re.sub(r"\D", "", m[0])),  # 12 000: a product
        (r"^([^=!<>]*\d[^=!<>]*)= ?([a-zA-Z])$", r"\2=\1"),  # of 5=x the right side would be the value
        # E_1 can't be read, I_1 is i, and \gamma^2-1 is gamma(-1)^2
        (r"(?<![a-zA-Z\\])([EeI])(?=_)|(\\gamma)(?![a-zA-Z])", r"\\hat{\1\2}"),
        # x_{\text{max}} would lose its subscript as a unit, and x_{\max} can't be read
        (r"_(\{)? ?\\(?:(?:text|mathrm|mbox) ?\{ ?([^{}]*?) ?\}|(max|min))(?(1) ?\})", r"_{\2\3}"),
    ):
        answer = re.sub(pattern, latex, answer)
    return answer


def _plain_number(answer):
    """The Decimal that digits with or without commas between thousands and a power of ten are; None for all else."""
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", answer):
        answer = answer.replace(",", "")
    power = r" ?\\(?:times|cdot) ?10\^\{?([+-]?\d{1,4})\}?"
    found = re.fullmatch(rf"([+-]?)(\()?(\d+\.?\d*|\.\d+)(?:{power})?(?(2)\))", answer)
    return found and Decimal(f"{found[1]}{found[3]}e{found[4] or 0}")


_worker, _worker_lock = None, threading.Lock()


def _start_worker():
    if find_spec("math_verify") is None:
        raise UserError("grading math needs math-verify: pip install math-verify")
    # from source text: a child that imported this module would wait for torch
    return subprocess.Popen([sys.executable, "-c", f"{inspect.getsource(grade_worker)}\ngrade_worker()"], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _ask_worker(answer, gold, timeout):
    """Whether the two are equal, None where that can't be told. The limit starts when the worker reads the pair."""
    global _worker
    with _worker_lock:
        if _worker is None or _worker.poll() is not None:
            _worker = _start_worker()
        worker, _worker = _worker, None  # so that after an interruption nobody takes this pair's reply for another's
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([answer, gold, timeout]), file=worker.stdin, flush=True)
        said = worker.stdout.readline()
        if not said:  # it ended itself; the next one is started now, so that nobody need wait for its import
            worker.wait()
        _worker = worker if said else _start_worker()
        return json.loads(said or "null")


def grade_worker():
    """Reads JSON [answer, gold, seconds] a line, prints whether the two are equal, null if unparsable.

    Its alarms are the hard limits: they end the process within any computation, even when nobody waits any more.
    """
    import contextlib
    import json
    import resource
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    signal.alarm(60)
    replies, sys.stdout = sys.stdout, sys.stderr  # no library's print is taken for a reply
    from math_verify import LatexExtractionConfig, parse, verify

    signal.alarm(0)
    with contextlib.suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    def read(side):  # an expression and its string, or the string alone where it can't be read
        for form in (f"${side}$", f"\\boxed{{{side}}}"):
            # LaTeX only: math-verify's other reader would pick a number out of a formula that can't be read
            found = parse(form, [LatexExtractionConfig()], parsing_timeout=None)  # its limits need a main thread
            if len(found) > 1:
                break
        return found

    for line in sys.stdin:
        answer, gold, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            sides = read(gold), read(answer)
            equal = verify(*sides, timeout_seconds=None) if all(sides) else None
            # mere noise lies below 1e-99: a zero such as \sin(\pi) evaluated
            values = [side[0].evalf() for side in sides if getattr(side[0], "is_comparable", False)]
            if equal and len(values) == 2 and 1e-99 < (size := max(map(abs, values))) < 1e-4:
                equal = verify(*[value / size for value in values], timeout_seconds=None)
        except Exception:  # whatever an odd answer does to the parser
            equal = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(equal), file=replies, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Models: loading, padding, adapters.

MICRO_MODELS = {"init:micro": (96, 3), "init:micro-teacher": (128, 3)}  # hidden size, layers


def init_model(name, tokenizer, seed):
    """A random model of the Qwen3 architecture for the arithmetic world: 0.37 M or 0.64 M weights."""
    if name not in MICRO_MODELS:
        raise UserError(f"--model {name}: known are {', '.join(MICRO_MODELS)}")
    hidden_size, layers = MICRO_MODELS[name]
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=hidden_size // 4, max_position_embeddings=512,
        # the defaults, made for wide models and long texts, take more than twice as many steps
        initializer_range=0.05, rope_parameters=dict(rope_type="default", rope_theta=100.0),
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def load_first_model(config, tokenizer, device):
    """The student as it starts, without an adapter."""
    if config.model.startswith("init:"):
        return init_model(config.model, tokenizer, config.seed).to(device, getattr(torch, config.dtype))
    return load_model(config.model, config.dtype, device)


def load_student(config, device, start=None):
    """The student and its tokenizer; from a checkpoint of ours where one is given. Only what trains needs gradients."""
    tokenizer = arith_tokenizer() if config.model.startswith("init:") else load_tokenizer(config.model)
    if start and not config.lora_r:
        model = load_model(str(start), config.dtype, device)
    else:
        model = load_first_model(config, tokenizer, device)
    if config.lora_r:
        from peft import LoraConfig, PeftModel, get_peft_model

        if start:
            model = PeftModel.from_pretrained(model, start, is_trainable=True, use_safetensors=True)
        else:
            torch.manual_seed(config.seed)  # of the adapter's initial weights
            model = get_peft_model(model, LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha,
                                                     task_type="CAUSAL_LM", target_modules="all-linear"))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.enable_input_require_grads()
    return model, tokenizer


def make_optimizer(student, config):
    """AdamW without weight decay over what trains."""
    trained = trained_parameters(student)
    groups = [[p for p in trained if isinstance(p, DTensor) == sharded] for sharded in (False, True)]  # never mixed
    return torch.optim.AdamW([dict(params=group) for group in groups if group], lr=config.learning_rate,
                             weight_decay=0.0, fused=True)


def load_model(name, dtype="float32", device="cpu"):
    """A causal language model from a folder or the hub.

    Uses flash-attention where it is installed, which takes 16-bit weights on a GPU only, else torch's own attention.
    On a CPU in bfloat16 that takes longer than the plain formula, a quarter of a step at scale small; the formula holds
    a number for each pair of tokens. On the device "meta" it has shapes and no weights, which then need not be there.
    Raises UserError where there is no model in safetensors.
    """
    attention = "sdpa"
    if dtype == "bfloat16":
        flash = device.startswith("cuda") and is_flash_attn_2_available()
        attention = "flash_attention_2" if flash else "eager" if device == "cpu" else "sdpa"
    try:
        if device == "meta":
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=getattr(torch, dtype))
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), use_safetensors=True,
                                                     attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise UserError(f"no model in {name}: {str(error).splitlines()[0]}") from None
    return model.to(device).eval()


def load_tokenizer(name):
    """The tokenizer of a model folder or hub name; pads with eos where it has no pad token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer in {name}: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no eos token, so no answer could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad(rows, side, device="cpu"):
    """Ids (B, T) and mask (B, T) of lists of token ids, padded on the left or on the right."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = True
    return ids.to(device), mask.to(device)


def positions_of(mask):
    """Position ids (B, T) that count the tokens of each row, wherever its padding stands."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def length_mask(completions, device):
    lengths = torch.tensor([len(completion) for completion in completions], device=device)  # (b,)
    return torch.arange(lengths.max(), device=device) < lengths[:, None]  # (b, T)


def rows_of(completions, *columns):
    """Columns (N,) of all the completions' tokens as rows (b, T), zero behind each end."""
    mask = length_mask(completions, columns[0].device)
    return [torch.zeros_like(mask, dtype=column.dtype).masked_scatter(mask, column) for column in columns]


def share_frozen_weights(model, other):
    """Let a model have the frozen weights of another that it has equal ones to, in place of its own copy."""
    for own, others in zip(model.parameters(), other.parameters(), strict=True):
        if not own.requires_grad:
            own.data = others.data


@contextlib.contextmanager
def merged_adapter(model):
    """Within it the model is in evaluation mode, and a LoRA adapter is part of the weights that it adapts.

    That saves three products a layer and token (SmolLM2, rank 64: 6.4 instead of 9.7 s for 4 rollouts of 64 tokens).
    Taking the adapter off again leaves rounding errors in the weights, so they are put back from copies.
    """
    was_training = model.training
    layers = adapted_layers(model)
    own = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    model.eval()
    for layer in layers:  # rather than PeftModel's merge_adapter, which a model loaded with its adapter lacks
        layer.merge()
    try:
        yield
    finally:
        for layer, copy in zip(layers, own, strict=True):
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(copy)
        model.train(was_training)


def adapted_layers(model):
    """The layers that have a LoRA adapter."""
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def check_same_vocabulary(student_tokenizer, teacher_tokenizer):
    """Raise UserError unless both map every token to the same id, since the teacher reads the student's ids."""
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if ours != theirs:
        token = next(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        raise UserError(f"teacher {teacher_tokenizer.name_or_path} and student {student_tokenizer.name_or_path} have "
                        f"different vocabularies: {token!r} is {theirs.get(token)} and {ours.get(token)}")


def end_ids(model, tokenizer):
    """Every token id that ends an answer: the tokenizer's eos and those of the model's generation config."""
    listed = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *([listed] if isinstance(listed, int) else listed or [])})


def end_warnings(student, tokenizer, teacher=None):
    """What is odd about the tokens that end an answer, a sentence each; teacher: a Teacher."""
    ends, warnings = end_ids(student, tokenizer), []
    if teacher and (others := end_ids(teacher.model, teacher.tokenizer)) != ends:
        warnings.append(f"the student ends answers with {tokenizer.convert_ids_to_tokens(ends)}, the teacher with "
                        f"{tokenizer.convert_ids_to_tokens(others)}: the student unlearns its end and grows longer "
                        "(arXiv 2609.20511)")
    if tokenizer.pad_token_id in ends:
        warnings.append(f"the pad token {tokenizer.pad_token} also ends answers: it is trained here, while code that "
                        "tells padding by it, as the released one does, leaves that end out of the loss")
    return warnings


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts through transformers or vLLM.


class RolloutSampler:
    """Gives a rollout of the student for each example; within `of_present_student`, by transformers or vLLM."""

    def __init__(self, config, student, tokenizer, examples, devices, engine=None):
        self.config, self.student, self.tokenizer, self.devices = config, student, tokenizer, devices
        self.eos_ids, self.engine, self.watch = end_ids(student, tokenizer), engine, Stopwatch(devices.device)
        self.weights = None  # that an engine samples from
        if config.rollout_engine == "vllm" and not engine:
            longest = max(len(example.student_prompt) for example in examples)
            self.engine = VllmSampler(
                "--rollout_engine", config.model, config.dtype, devices.device, longest + config.prefix_tokens,
                config.vllm_memory, config.lora_r, config.vllm_sleep)

    @contextlib.contextmanager
    def of_present_student(self, watch):
        """Within it the student's weights as they are now sample; its time goes to the watch."""
        self.watch = watch
        if self.engine:
            self.weights = full_weights(self.student)
            yield
            self.weights = self.engine.loaded = None  # gathered, they take memory
        else:
            with self.devices.unsharded(self.student):
                yield
        watch.lap("rollout")

    def __call__(self, examples, seed):
        completions = self.complete([example.student_prompt for example in examples], seed)
        self.watch.lap("rollout")
        rollouts = [Rollout(example, completion, completion[-1] not in self.eos_ids,
                            grade_rollout(self.tokenizer, completion, example.row, self.eos_ids, self.config.task))
                    for example, completion in zip(examples, completions, strict=True)]
        self.watch.lap("grading")
        return rollouts

    def complete(self, prompts, seed):
        config = self.config
        settings = config.prefix_tokens, self.eos_ids, config.temperature, config.top_p, config.top_k
        if not self.engine:
            return sample(self.student, prompts, *settings, seed=seed)
        with self.awake_engine() as engine:
            return engine(prompts, *settings, seed=seed)

    @contextlib.contextmanager
    def awake_engine(self):
        """Within it the engine has its memory and the present student's weights."""
        with self.engine.awake():
            if self.engine.loaded is not self.weights:  # but those of an earlier step or of another student
                self.engine.load(self.student, self.weights)
            yield self.engine


def need_vllm(flag):
    """Raise UserError, naming the flag that asks for vLLM, where it is not installed."""
    if find_spec("vllm") is None:
        raise UserError(f"{flag} vllm: vLLM is not installed; pip install vllm==0.32.0 (without a GPU as "
                        "tests/test_vllm.py says)")


class VllmSampler:
    """Does through vLLM, in this process, what `sample` does; called with the same arguments but the model.

    flag: the option that asks for vLLM, for errors. model: folder or hub name. dtype, device: as for load_model.
    max_length: tokens of the longest prompt and its completion together, which must fit into the model's positions.
    memory: share of the GPU's memory (on a CPU: of the machine's) for weights and cache of the engine.
    lora_r: rank of the adapters to come, 0 for none.
    sleeps: outside of `awake` the engine leaves its memory on a GPU to others; to sample then would hang.
    Raises UserError where vLLM can't run the model so. Under torchrun each process has an engine on its own GPU.
    The same seed gives the same completions, up to rounding, which are not those that `sample` draws with it.
    """

    running = None  # the engine of this process

    def __init__(self, flag, model, dtype, device, max_length, memory, lora_r=0, sleeps=False):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must see the trainer's tensors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM
            from vllm.platforms import current_platform

            self.platform, local_rank = current_platform.device_type, os.environ.get("LOCAL_RANK", "0")
            if device not in (self.platform, f"{self.platform}:{local_rank}"):
                raise UserError(f"--device {device}: the vLLM installed here runs on {self.platform}:{local_rank} only")
            self.flag, self.adapters, self.adapter, self.folder, self.loaded = flag, 0, None, None, None
            self.sleeps = sleeps and current_platform.is_sleep_mode_available()  # on a CPU it is not
            # with the executor of one process every rank would take GPU 0
            backend = "external_launcher" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None
            self.llm = LLM(model, dtype=dtype, max_model_len=max_length, gpu_memory_utilization=memory,
                           skip_tokenizer_init=True, enforce_eager=self.platform == "cpu",  # compiling takes minutes
                           # a prompt in two pieces would set back its generator, which a CPU's can't be
                           enable_chunked_prefill=self.platform != "cpu",
                           distributed_executor_backend=backend, enable_sleep_mode=self.sleeps,
                           **self.lora_settings(lora_r))
            VllmSampler.running = self
            self([[0]], 1, [])  # some models fail only here
            self.sleep()
        except (AssertionError, ImportError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{flag} vllm: it can't run {model} with --dtype {dtype}, --vllm_memory {memory} and "
                            f"{max_length} tokens: {' '.join(str(error).split())}") from None
        from transformers import GenerationConfig

        self.generation_config = GenerationConfig(**self.llm.llm_engine.model_config.try_get_generation_config())

    @classmethod
    def close(cls):
        """End the engine of this process, if there is one; it takes torch's process group with it."""
        if cls.running:
            if cls.running.sleeps:
                cls.running.llm.wake_up()  # what sleeps can't be freed
            cls.running.llm.llm_engine.engine_core.shutdown()
            cls.running = None

    @contextlib.contextmanager
    def awake(self):
        """Within it the engine has its memory, outside of it, if it `sleeps`, the trainer has it."""
        if self.sleeps:
            self.llm.wake_up()
        yield
        self.sleep()

    def sleep(self):
        if self.sleeps:
            self.llm.sleep(level=1)  # its weights wait in the machine's memory; keys and values are dropped

    @staticmethod
    def lora_settings(lora_r):
        from typing import get_args

        from vllm.config.lora import MaxLoRARanks

        if lora_r > max(get_args(MaxLoRARanks)):
            raise UserError(f"--lora_r {lora_r}: vLLM takes adapters up to rank {max(get_args(MaxLoRARanks))}")
        if not lora_r:
            return {}
        return dict(enable_lora=True, max_loras=1, max_lora_rank=min(r for r in get_args(MaxLoRARanks) if r >= lora_r))

    def load(self, model, weights):
        """Sample from these weights (by name) of the model from now on; a peft model's are those of its adapter."""
        if hasattr(model, "peft_config"):
            folder = tempfile.TemporaryDirectory()
            model.save_pretrained(folder.name, state_dict=weights, save_embedding_layers=False)
            self.load_adapter(folder.name)
            if self.folder:
                self.folder.cleanup()
            self.folder = folder  # the engine reads it again whenever it has dropped the adapter
        else:
            self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=iter(weights.items())))
            if self.platform == "cpu":  # there a head tied to the embedding keeps a packed copy of its old weights
                self.llm.apply_model(lambda m: m.lm_head.quant_method.process_weights_after_loading(m.lm_head))
            self.llm.reset_prefix_cache()  # its keys and values are the old weights'
        self.loaded = weights

    def load_adapter(self, folder):
        """Sample with the peft adapter in this folder from now on. Raises UserError for one that vLLM can't take."""
        from vllm.lora.request import LoRARequest

        self.adapters += 1  # under an old name vLLM would go on with what it has cached
        self.adapter = LoRARequest(f"adapter {self.adapters}", self.adapters, str(folder))
        try:
            self.llm.llm_engine.add_lora(self.adapter)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.flag} vllm: it can't take the adapter: {' '.join(str(error).split())}") from None

    def __call__(self, prompts, max_new_tokens, eos_ids, temperature=1.0, top_p=1.0, top_k=0, seed=0):
        from vllm import SamplingParams

        rng = random.Random(seed)  # a seed for each prompt: with one for all, equal prompts would get equal completions
        params = [SamplingParams(max_tokens=max_new_tokens, stop_token_ids=eos_ids, ignore_eos=True, detokenize=False,
                                 temperature=temperature, top_p=top_p, top_k=top_k, seed=rng.getrandbits(63))
                  for _ in prompts]
        outputs = self.llm.generate([dict(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=False,
                                    lora_request=self.adapter)
        return [list(output.outputs[0].token_ids) for output in outputs]


# ---------------------------------------------------------------------------------------------------------------------
# Processes and FSDP2.


@dataclass
class Devices:
    """This process among those of torchrun: a rank holds its part of each batch, gradients are summed over ranks."""

    device: str
    rank: int = 0
    world: int = 1

    def part_of(self, rows):
        """This rank's of the rows, whose number is a multiple of the ranks'; `gather` puts the parts together again."""
        part = len(rows) // self.world
        return rows[self.rank * part : (self.rank + 1) * part]

    def sum(self, tensors):
        """Sum the tensors over all ranks, in place, in one message a data type; FSDP has done it for its own."""
        if self.world > 1:
            tensors = [t for t in tensors if not isinstance(t, DTensor)]
            for dtype in dict.fromkeys(t.dtype for t in tensors):  # in the same order on all ranks
                group = [t for t in tensors if t.dtype == dtype]
                flat = torch.cat([t.flatten() for t in group])
                dist.all_reduce(flat)
                for t, summed in zip(group, flat.split([t.numel() for t in group]), strict=True):
                    t.copy_(summed.view_as(t))

    def gather(self, items):
        """The items of all ranks in one list."""
        if self.world == 1:
            return items
        lists = [None] * self.world
        dist.all_gather_object(lists, items)
        return [item for items in lists for item in items]

    def norm(self, tensors):
        """Euclidean norm of all the tensors together, each rank having all of it or, of FSDP's, a part."""
        groups = [[local_part(t) for t in tensors if isinstance(t, DTensor) == sharded] for sharded in (False, True)]
        parts = [torch.nn.utils.get_total_norm(group).to(self.device) ** 2 for group in groups]
        self.sum(parts[1:])
        return sum(parts).sqrt()

    def shard(self, model):
        """Spread the weights of the model's layers over all ranks (FSDP2); gradients come out summed.

        Embeddings, head and last norm stay whole on each rank: the head is used outside of the model's forward.
        """
        decoder, mesh = decoder_of(model), init_device_mesh(self.device.split(":")[0], (self.world,))
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if not isinstance(p, DTensor)})
        for module in decoder.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo can do no other

    @contextlib.contextmanager
    def unsharded(self, model):
        """Within it each rank has the whole model, so that it samples without the others, however long it takes."""
        modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()


def local_part(tensor):
    """This rank's part of a tensor of FSDP's; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_weights(model):
    """The trained weights by name, gathered where FSDP has spread them; all ranks call it together."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in weights.items()}


def pick_device(device=None):
    """The device of a --device flag; without one cuda where there is one, else cpu. Raises UserError for a GPU that is
    not there, or that torch can't use, and for any other kind of device."""
    if device is None and torch.cuda.is_available() or device and device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: this machine has no CUDA device; use --device cpu")
        return device or "cuda"
    need(device in (None, "cpu"), f"--device {device}: known are cuda and cpu")
    visible = list(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if device is None and visible:  # slower by hundreds of times, and nothing would say so
        raise UserError(f"this machine has an NVIDIA GPU, but torch {torch.__version__} can't use it: its driver is "
                        f"older than CUDA {torch.version.cuda} asks for, or torch is a build for CPUs; update the "
                        "driver or reinstall torch, or pass --device cpu or set CUDA_VISIBLE_DEVICES= to do without it")
    return device or "cpu"


def connect(config):
    """Devices of this process; joins the process group where torchrun started it."""
    world, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device, backend = pick_device(config.device), "gloo"
    if config.fsdp and world == 1:
        raise UserError("--fsdp: one process has nothing to share; start with torchrun --nproc_per_node N")
    if world == 1:
        return Devices(device)
    if device.startswith("cuda"):
        gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        need(processes <= gpus, f"torchrun started {processes} processes for {gpus} GPUs; use --nproc_per_node {gpus}")
        device, backend = f"cuda:{local_rank}", "nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(hours=12))  # ranks wait for the slowest's rollouts
    return Devices(device, dist.get_rank(), world)


# ---------------------------------------------------------------------------------------------------------------------
# The output folder: checkpoints, its lock, signals.


def open_output(config, devices):
    """Make output_dir with config.json, or check that the run in it has the same settings.

    Returns the checkpoint to go on from, or None, on all ranks.
    """
    return devices.gather([claim_output(config) if devices.rank == 0 else None])[0]


def claim_output(config):
    output_dir = Path(config.output_dir)
    settings = {k: v for k, v in asdict(config).items()
                if k not in ("output_dir", "resume", "preflight", "device", "vllm_memory", "vllm_sleep", "report_to")}
    path = output_dir / "config.json"
    if path.exists() and (output_dir / "metrics.jsonl").exists():  # without it no step was made
        if not config.resume:
            raise UserError(f"--output_dir {output_dir}: holds a run already; pass --resume to go on with it, or name "
                            "another folder")
        old = json.loads(path.read_text(encoding="utf-8"))["flags"]
        changed = sorted(k for k in settings if old.get(k) != settings[k])
        if changed:
            raise UserError(f"--resume: {output_dir} was made with other settings: "
                            + ", ".join(f"--{k} {old.get(k)} (now {settings[k]})" for k in changed))
        return newest_checkpoint(output_dir)
    commit = said_by("git", "-C", Path(__file__).parent, "rev-parse", "HEAD")
    names = ["torch", "transformers", "peft", "numpy"] + ["vllm"] * (config.rollout_engine == "vllm")
    versions = {name: version_of(name) for name in names}
    write_json(path, dict(flags=settings, versions=versions, commit=commit or None))
    return None


def whole_state(devices):
    """Options for a state that is whole, whether FSDP has spread it or not, and then on the first rank only."""
    return StateDictOptions(full_state_dict=True, cpu_offload=devices.world > 1)


def save_checkpoint(output_dir, step, student, tokenizer, optimizer, nonfinite_in_row, devices):
    """checkpoint-`step`, with what `restore` needs. All ranks call it together."""
    moments = get_optimizer_state_dict(student, optimizer, options=whole_state(devices))
    generators = devices.gather([torch.get_rng_state()])
    save(output_dir / f"checkpoint-{step}", student, tokenizer, devices, dict(
        step=step, optimizer=moments, nonfinite_in_row=nonfinite_in_row, generators=generators))


def restore(start, student, optimizer, devices):
    """Put the optimizer and the generator back as they were at the checkpoint `start`, whose weights the student has.

    Returns how many steps were made, and how many updates in a row were not finite: both 0 without a checkpoint.
    """
    if start is None:
        return 0, 0
    state = torch.load(start / "trainer_state.pt", map_location="cpu", weights_only=True)
    set_optimizer_state_dict(student, optimizer, state["optimizer"], options=whole_state(devices))
    if devices.rank < len(state["generators"]):  # there may have been fewer ranks
        torch.set_rng_state(state["generators"][devices.rank])
    return state["step"], state["nonfinite_in_row"]


def save(folder, model, tokenizer, devices, state=None):
    """Write the model (or adapter) and tokenizer, and with `state` what a resumed run needs; whole or not at all.

    All ranks call it together; the first one writes. Raises UserError where the disk does not take it.
    """
    sharded = any(isinstance(p, DTensor) for p in model.parameters())
    weights = full_weights(model) if sharded else None
    if devices.rank > 0:
        return
    aside = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        model.should_save_on_this_rank = lambda is_main_process: True  # transformers would leave it to rank 0
        model.save_pretrained(aside, state_dict=weights)
        tokenizer.save_pretrained(aside)
        if state:
            torch.save(state, aside / "trainer_state.pt")
        write_json(aside / "checksums.json", {path.name: file_checksum(path) for path in sorted(aside.iterdir())})
        for path in (*aside.iterdir(), aside):  # on the disk before the name says that it is there
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        flush(folder.parent)
    except Exception as error:  # safetensors and torch raise their own kinds when a disk is full
        raise UserError(f"--output_dir {folder.parent}: {folder.name} can't be written ({' '.join(str(error).split())})"
                        "; what was saved before is intact, and --resume goes on from it") from None


def flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def file_checksum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(output_dir):
    """The folders checkpoint-N, the newest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder):
    return int(folder.name.split("-")[1])


def newest_checkpoint(output_dir):
    """The newest checkpoint that is whole, or None. Warns of those that are damaged."""
    for folder in checkpoints(output_dir):
        if not (folder / "trainer_state.pt").exists():
            continue  # an old one, whose weights alone are left
        try:
            recorded = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
            damaged = [name for name, checksum in recorded.items() if file_checksum(folder / name) != checksum]
        except (OSError, ValueError) as error:
            damaged = [str(error)]
        if not damaged:
            return folder
        print(f"warning: {folder} is damaged ({', '.join(damaged)}); going on from the one before", file=sys.stderr)
    return None


def prune_checkpoints(output_dir, config, devices):
    """Keep what resuming needs in the last two checkpoints only, and of an unplanned stop nothing once it is passed."""
    if devices.rank == 0:
        kept = 0
        for folder in checkpoints(output_dir):
            if kept and step_of(folder) % config.save_steps:
                shutil.rmtree(folder)
                continue
            if kept > 1:
                (folder / "trainer_state.pt").unlink(missing_ok=True)
            kept += 1


def write_json(path, value):
    """Write a file whole or not at all."""
    aside = Path(f"{path}.tmp")
    aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def said_by(*command):
    """What a command prints, "" where it fails or is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version(f"{package}-cpu")  # vLLM's build for CPUs has another name


@contextlib.contextmanager
def only_run_in(output_dir, devices):
    """Within it no other run has this output_dir. Raises UserError where one has."""
    output_dir = Path(output_dir)
    if devices.rank > 0:
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output_dir / "lock", timeout=0):  # the system drops it with the process
            yield
    except Timeout:
        raise UserError(f"--output_dir {output_dir}: another run is at work in it") from None


class StopSignal:
    """Within it SIGTERM and Ctrl-C only set `name`, so that the loop can end after its step; a second one ends now."""

    name = None

    def __init__(self, devices):
        self.devices = devices

    def came(self):
        """Whether there was one, on any rank; all ranks call it together."""
        return any(self.devices.gather([self.name is not None]))

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            # one that is ignored stays so: a shell whose job this is hears Ctrl-C too, and then sends SIGTERM
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)
                           if signal.getsignal(number) is not signal.SIG_IGN}
        return self

    def note(self, number, frame):
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        print(f"{self.name}: writing a checkpoint after this step; once more to stop at once", file=sys.stderr,
              flush=True)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# The log: metrics, rollouts, trackers, time and memory.


class RunLog:
    """What a run tells, through its first rank: metrics a step, rollouts where asked for, a tracker, progress."""

    def __init__(self, config, devices, first):
        self.config, self.devices, self.first, self.writes = config, devices, first, devices.rank == 0
        self.metrics, self.rollouts = (Path(config.output_dir) / name for name in ("metrics.jsonl", "rollouts.jsonl"))
        self.tracker = tracker_of(config) if self.writes else None
        for path, rows in ((self.metrics, first), (self.rollouts, first * config.batch_size)):
            if self.writes and path.exists():  # rows of steps that will be made again
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                path.write_text("".join(lines[:rows]), encoding="utf-8")
        self.bar = None

    def progress_bar(self):
        """The steps to make, with a bar over them."""
        self.bar = tqdm(range(self.first, self.config.max_steps), initial=self.first, total=self.config.max_steps,
                        disable=not self.writes, desc=self.config.method, mininterval=1.0)
        return self.bar

    def say(self, text):
        if self.writes:
            print(text, flush=True)

    def announce(self, student, teacher, tokenizer, examples, skipped):
        """Say what is about to happen. skipped: how many problems, by reason."""
        config, count = self.config, sum(p.numel() for p in trained_parameters(student))
        self.say(f"{config.method}: {count:,} trained weights, {config.max_steps} steps of {config.batch_size} from "
                 f"{config.dataset}" + "".join(f", {n} problems skipped: {reason}" for reason, n in skipped.items())
                 + (f", going on after step {self.first}" if self.first else ""))
        self.say(f"first student prompt: {tokenizer.decode(examples[0].student_prompt)!r}")
        if teacher:
            self.say(f"first teacher prompt: {tokenizer.decode(examples[0].teacher_prompt)!r}")
            if examples[0].teacher_prompt == examples[0].student_prompt and config.method == "opsd":
                self.say("warning: the teacher is the student as it starts and has its prompt too: nothing to learn")
        for warning in end_warnings(student, tokenizer, teacher):
            self.say(f"warning: {warning}")
        self.say(f"memory: {describe_memory(predict_memory(config, self.devices, student, teacher, examples))}; "
                 f"{self.devices.device} has {device_memory(self.devices.device):.0f} GB")

    def write(self, step, records, total, grad_norm, drawn, watch):
        """The row of `step` (from 0), of the records of all ranks' rollouts."""
        if not self.writes:
            return
        config, seconds, finite = self.config, sum(watch.seconds.values()), bool(torch.isfinite(grad_norm))
        row = dict(step=step + 1, **step_metrics(records, total.item(), config), **drawn, grad_norm=grad_norm.item(),
                   skipped=not finite, learning_rate=learning_rate(config, step),
                   tokens_per_second=sum(r["length"] for r in records) / seconds, seconds=seconds,
                   **{f"seconds_{phase}": value for phase, value in watch.seconds.items()},
                   peak_memory_gb=watch.peak_memory())
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}  # JSON has none
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.tracker:
            self.tracker({k: v for k, v in row.items() if isinstance(v, (int, float))})
        if config.save_rollouts:
            with self.rollouts.open("a", encoding="utf-8") as file:
                for r in records:
                    file.write(json.dumps(dict(
                        step=step + 1, problem=r["problem"], completion=r["completion"], right=r["right"],
                        truncated=r["truncated"], renio_weight=r["renio_weight"],
                        log_ratios=[round(x, 4) for x in r["log_ratios"]],
                        teacher_entropy=r["teacher_entropy"] / max(1, r["counted"]))) + "\n")
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{row['loss']:.3f}" if finite else "skipped", seconds=f"{seconds:.2f}",
                                 refresh=False)


def rollout_records(rollouts, **columns):
    """A dict a rollout, in plain numbers: those of the columns (b,), its length, end and verdict."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True), length=len(rollout.completion), truncated=rollout.truncated,
                 right=rollout.right) for rollout, row in zip(rollouts, rows, strict=True)]


def distillation_records(rollouts, tokens, losses, weights, config):
    """What metrics and rollouts.jsonl say of each rollout of a micro-batch."""
    key_tokens = (tokens.log_ratio > config.threshold) & tokens.mask
    records = rollout_records(
        rollouts, loss=losses, weight=weights, renio_weight=renio_weights(tokens, config)[:, 0],
        counted=tokens.mask.sum(1), divergence=tokens.divergence.sum(1), first_divergence=tokens.divergence[:, 0],
        teacher_entropy=tokens.teacher_entropy.sum(1), negative=(tokens.divergence < 0).sum(1),
        key_tokens=key_tokens.sum(1), first_key=key_tokens[:, 0])
    if config.save_rollouts:
        for record, rollout, log_ratio in zip(records, rollouts, tokens.log_ratio.tolist(), strict=True):
            record |= dict(problem=rollout.example.row["problem"], completion=rollout.completion,
                           log_ratios=log_ratio[: record["length"]])
    return records


def step_metrics(records, total, config):
    """The metrics of a step, from the records of all its rollouts. With what RunLog.write and the studies add:

    loss                            what the update descends: weighted divergence of a sample, mean over the batch;
                                    sft: cross-entropy of a token; grpo: minus its objective
    divergence, teacher_entropy     means over tokens, nats
    first_token_divergence_share,
    first_token_key_share           what share of the divergence, and of the key tokens, lies on the first tokens
    negative_share                  tokens with a negative divergence: --estimator sampled, else rounding
    weight_mean, weight_max         of the weights used (Eq. 7); before Eq. 8, under --variant official after it
    effective_sample_size           (sum of w)^2 / sum of w^2
    key_token_share                 tokens above the threshold (Eq. 6)
    completion_length               tokens a rollout
    truncation_rate                 rollouts without an end
    graded, rollout_accuracy        rollouts with an answer to grade; share of them that is right
    weight_auc_wrong                chance that ReNIO's weight of a wrong rollout exceeds that of a right one; a
                                    diagnostic, never an input
    reward, silent_share,
    clipped_share                   grpo: right rollouts; those with advantage 0; tokens with a clipped ratio
    drawn, drawn_right,
    drawn_ungradable                filter study: rollouts sampled for the update; right ones; ones without an answer
    tried, problems, draw_rounds    filter study: problems sampled from; those trained on; rounds of drawing
    success_counts                  filter study: of --success_draws further rollouts of each problem, the right ones
    grad_norm                       before clipping
    learning_rate, skipped          of this update; whether it was skipped since its gradient was not finite
    tokens_per_second               sampled tokens, over the whole step
    seconds, seconds_*              of the step and its phases
    peak_memory_gb                  GPU memory allocated in the step, or resident memory of the process
    """
    n, tokens = len(records), sum(r["length"] for r in records)
    metrics = dict(loss=sum(r["loss"] for r in records) / total, completion_length=tokens / n)
    if config.method == "sft":
        return metrics
    graded = [r for r in records if r["right"] is not None]
    metrics |= dict(truncation_rate=sum(r["truncated"] for r in records) / n, graded=len(graded),
                    rollout_accuracy=sum(r["right"] for r in graded) / len(graded) if graded else None)
    if config.method == "grpo":
        return metrics | dict(reward=sum(r["right"] is True for r in records) / n,
                              silent_share=sum(r["advantage"] == 0 for r in records) / n,
                              clipped_share=sum(r["clipped"] for r in records) / tokens)
    weights = [r["weight"] for r in records]
    counted = sum(r["counted"] for r in records) or 1  # all of them may be skipped
    divergence, key_tokens = (sum(r[name] for r in records) for name in ("divergence", "key_tokens"))
    return metrics | dict(
        divergence=divergence / counted,
        first_token_divergence_share=sum(r["first_divergence"] for r in records) / divergence if divergence else None,
        teacher_entropy=sum(r["teacher_entropy"] for r in records) / counted,
        negative_share=sum(r["negative"] for r in records) / counted,
        weight_mean=sum(weights) / n, weight_max=max(weights),
        effective_sample_size=sum(weights) ** 2 / sum(w * w for w in weights),
        key_token_share=key_tokens / counted,
        first_token_key_share=sum(r["first_key"] for r in records) / key_tokens if key_tokens else None,
        weight_auc_wrong=area_under_curve([r["renio_weight"] for r in graded if not r["right"]],
                                          [r["renio_weight"] for r in graded if r["right"]]))


def area_under_curve(above, below):
    """Chance that one of `above` exceeds one of `below`, ties counting half (AUC); None where either is empty."""
    if not above or not below:
        return None
    return sum((a > b) + (a == b) / 2 for a in above for b in below) / (len(above) * len(below))


def tracker_of(config):
    """What sends a row of metrics to --report_to, or None. Raises UserError where that is not installed."""
    if config.report_to == "none":
        return None
    try:
        if config.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(config.output_dir)

            def report(row):
                for key, value in row.items():
                    writer.add_scalar(key, value, row["step"])
                writer.flush()
            return report
        tracker = importlib.import_module(config.report_to)  # wandb and trackio have one interface
    except ImportError:
        raise UserError(f"--report_to {config.report_to}: not installed; pip install {config.report_to}") from None
    several = dict(reinit="create_new") if config.report_to == "wandb" else {}  # runs of one process, not one run
    run = tracker.init(project="renio", name=Path(config.output_dir).name, config=asdict(config), **several)
    return lambda row: run.log(row, step=row["step"])


def give_up(output_dir, step, rollouts, devices):
    """End a run of broken gradients, with its batch on the disk."""
    path = output_dir / f"nonfinite-rank{devices.rank}.json"
    write_json(path, [dict(problem=rollout.example.row["problem"], prompt=rollout.example.student_prompt,
                           completion=rollout.completion) for rollout in rollouts])
    raise UserError(f"step {step + 1}: the third gradient in a row that is not finite; try a lower --learning_rate "
                    f"or --dtype float32. Its batch is in {path}; the last checkpoint is intact")


class Stopwatch:
    """Seconds of each phase of a step; waits for the GPU, so that work is charged to the phase that started it."""

    def __init__(self, device):
        self.on_gpu, self.seconds = device.startswith("cuda"), {}
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.last = self.now()

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, phase):
        now = self.now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now

    def peak_memory(self):
        """GB: allocated on the GPU in this step, or resident in this process since its start."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def predict_memory(config, devices, student, teacher, examples):
    """GB that a step will hold of each kind, from the shapes of the models and the longest prompts.

    "rollouts" and the parts of the update, "gradients", "activations" and "logits", are not held together.
    """
    shape, width = student.config, getattr(torch, config.dtype).itemsize
    trained = size_of(trained_parameters(student))
    own_teacher = teacher and teacher.model is not student
    tokens = config.prefix_tokens + max(max(len(e.student_prompt), len(e.teacher_prompt or ())) for e in examples)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    layer = (10 * hidden + 4 * shape.intermediate_size) * width  # bytes a token that backward needs of one layer
    adapted = adapted_layers(student)
    if config.dtype != "float32":  # an adapter computes in float32, on a copy of each adapted layer's input
        layer += sum(module.in_features for module in adapted) * 4 / layers
    kept = layers * hidden * width + layer if config.gradient_checkpointing else layers * layer
    rows = config.micro_batch_size * config.prefix_tokens
    if config.method != "sft":
        rows = min(rows, rows_of_chunk(shape.vocab_size))
    others = (config.students - 1) * trained  # weights of students beside this one
    parts = dict(weights=size_of(student.parameters()) + others
                 + (size_of(teacher.model.parameters()) if own_teacher else 0),
                 optimizer=2 * (trained + others), vllm=0.0, rollouts=0.0, gradients=trained,
                 libraries=0.0 if devices.device.startswith("cuda") else 0.4,  # Python and what it imported
                 activations=config.micro_batch_size * tokens * kept / 1e9,
                 logits=3 * rows * shape.vocab_size * 4 / 1e9)
    if config.rollout_engine == "vllm":  # held all the time, unless it can sleep during the update
        asleep = config.vllm_sleep and devices.device.startswith("cuda")
        parts["rollouts" if asleep else "vllm"] = config.vllm_memory * device_memory(devices.device)
    elif config.method != "sft":
        parts["rollouts"] = config.batch_size // devices.world * tokens * cache_bytes(shape, width) / 1e9
        copied = [module.get_base_layer().weight for module in adapted]  # by merged_adapter
        whole = [p for p in student.parameters() if isinstance(p, DTensor)]  # by Devices.unsharded
        parts["rollouts"] += sum(p.numel() * p.element_size() for p in copied + whole) / 1e9
    return parts


def peak_of(parts):
    """GB at the peak, of the parts of predict_memory."""
    update = parts["gradients"] + parts["activations"] + parts["logits"]
    held = sum(parts[name] for name in ("libraries", "weights", "optimizer", "vllm"))
    return held + max(parts["rollouts"], update)


def describe_memory(parts):
    """The parts of predict_memory in words, with the peak that they make.

    SmolLM2-135M on a CPU, measured: sft of all weights 4.84 GB (4.16 by this), opsd 2.95 (2.64). As run_all.sh has it,
    opsd 1.9 GB after a step and 2.7 after 40 (2.2), opd 2.0 and 2.5 (2.0). Not foreseen is what the allocator keeps
    between uses, and oneDNN, which multiplies bfloat16, for each shape: without run_all.sh's
    ONEDNN_PRIMITIVE_CACHE_CAPACITY it were 3.2 GB. Nor that the filter study draws several times a batch at once:
    its matched arms took 3.4 GB (2.1).
    """
    return (f"about {peak_of(parts):.2f} GB at the peak: weights {parts['weights']:.2f}, optimizer "
            f"{parts['optimizer']:.2f}, " + "".join(
                f"{name} {parts[key]:.2f}, " for key, name in (("libraries", "Python's libraries"), ("vllm", "vLLM"))
                if parts[key])
            + f"and the larger of rollouts {parts['rollouts']:.2f} and "
            + ", ".join(f"{name} {parts[name]:.2f}" for name in ("gradients", "activations", "logits")))


def size_of(tensors):
    """GB of this rank's parts."""
    return sum(local_part(t).numel() * t.element_size() for t in tensors) / 1e9


def cache_bytes(shape, width):
    """Bytes of keys and values a token, for a model of this config with numbers of `width` bytes."""
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return shape.num_hidden_layers * 2 * heads * head_size * width


def device_memory(device):
    """GB that the device has in all."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


# ---------------------------------------------------------------------------------------------------------------------
# The preflight: what a run needs, checked before its hours are spent.


def check_line(status, text):
    """Print a line of a preflight; status: ok, note or FAILED."""
    print(f"{status:8}{text}", flush=True)


def preflight(config):
    """Check what the run needs, a line each, and then make short steps on the real models. Returns the exit code.

    A check returns what later ones need and its line. What needs no weights comes first, and where one check fails,
    those that don't need its result are made all the same.
    """
    found, failed, first_rank = {}, False, os.environ.get("RANK", "0") == "0"
    say = check_line if first_rank else lambda *_: None
    for name, check in PREFLIGHT.items():
        needs = inspect.signature(check).parameters.keys() - {"config"}
        if failed and name == "step" or not needs <= found.keys():
            continue
        try:
            found[name], line = check(config, **{need: found[need] for need in needs})
            say("ok", line)
        except (UserError, OSError, torch.cuda.OutOfMemoryError) as error:
            say("FAILED", f"{name}: {' '.join(str(error).split())}")
            failed = True
    if not failed:
        hours, notes = found["step"]
        for note in notes:
            say("note", note)
        if first_rank:
            print(f"expected: {hours:.2f} hours")
    return int(failed)


def check_devices(config):
    devices = connect(config)
    if not devices.device.startswith("cuda"):
        return devices, f"device: a CPU with {device_memory(devices.device):.0f} GB and no GPU"
    driver = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    return devices, (f"devices: {torch.cuda.device_count()} x {torch.cuda.get_device_name()} of "
                     f"{device_memory(devices.device):.0f} GB, driver {driver}, CUDA {torch.version.cuda}")


def check_engine(config):
    flash = "flash-attention is installed" if is_flash_attn_2_available() else "no flash-attention, so torch's own"
    if config.rollout_engine == "transformers":
        return None, f"rollouts by transformers {version_of('transformers')}; {flash}"
    need_vllm("--rollout_engine")
    return None, f"rollouts by vLLM {version_of('vllm')}; {flash}"


def check_models(config):
    """Configurations and tokenizers, without the weights."""
    student, tokenizer = load_student(config, "meta")
    teacher = Teacher(config, student, tokenizer, Devices("meta")) if config.method in ("opd", "opsd") else None
    of_teacher = f", teacher {config.teacher} with the same vocabulary" if config.teacher else ""
    return (student, tokenizer, teacher), f"student {config.model}{of_teacher}: configuration and tokenizer are there"


def check_data(config, models):
    """The first rows, as prompts."""
    _, tokenizer, teacher = models
    make = SYNTHETIC.get(config.dataset)
    rows = make(8) if make else read_problems(config.dataset, need_solution=needs_solution(config), task=config.task,
                                              limit=8)
    rows = [row for row in rows if not lacks_solution(config, row)]
    examples = [render(config, row, tokenizer, teacher and teacher.tokenizer, random.Random(0)) for row in rows]
    if not examples:
        raise UserError(f"--dataset {config.dataset}: the first 8 rows have no solution")
    lengths = [len(example.student_prompt) for example in examples]
    return examples, (f"data {config.dataset}: the first {len(examples)} problems make prompts of {min(lengths)} to "
                      f"{max(lengths)} tokens")


def check_memory(config, devices, models, data):
    student, _, teacher = models
    parts, there = predict_memory(config, devices, student, teacher, data), device_memory(devices.device)
    if peak_of(parts) > there and not config.fsdp:  # which holds less than this
        raise UserError(f"{describe_memory(parts)}; the device has {there:.0f} GB. Lower --micro_batch_size, then "
                        "--prefix_tokens")
    return parts, f"memory: {describe_memory(parts)}; the device has {there:.0f} GB"


def check_disk(config, models):
    """Room for the checkpoints: weights of each, the optimizer's state of the last two."""
    trained = config.students * size_of(trained_parameters(models[0]))
    count = config.max_steps // (config.save_steps or config.max_steps)
    folder = next(path for path in (Path(config.output_dir).absolute(), *Path(config.output_dir).absolute().parents)
                  if path.exists())
    needed, free = (count + 1 + 2 * min(count, 2)) * trained, shutil.disk_usage(folder).free / 1e9
    line = f"disk: checkpoints take {needed:.1f} GB, {folder} has {free:.0f}"
    if needed > free:
        raise UserError(f"{line}; make room, name another --output_dir, or raise --save_steps")
    return None, line


def check_step(config, devices, data):
    """Hours that the run takes by two steps of 2 rollouts of 16 tokens a process, the first of which warms up."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        folder = devices.gather([folder])[0]
        short = replace(config, preflight=False, output_dir=f"{folder}/run", batch_size=2 * devices.world, max_steps=2,
                        micro_batch_size=2, generations=2, prefix_tokens=16, schedule_steps=0, save_steps=0,
                        save_rollouts=False, report_to="none")
        train(short, devices)
        path = Path(short.output_dir, "metrics.jsonl")  # the first rank's, which takes its folder along when it leaves
        row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) if devices.rank == 0 else None
    row = devices.gather([row])[0]
    prompt = sum(len(example.student_prompt) for example in data) / len(data)
    larger = config.batch_size / short.batch_size * (prompt + config.prefix_tokens) / (prompt + 16)
    rollout = row.get("seconds_rollout", 0) * config.prefix_tokens / 16  # decoding few takes as long as decoding many
    seconds = rollout + (row["seconds"] - row.get("seconds_rollout", 0)) * larger
    hours = config.students * config.max_steps * seconds / 3600
    notes = [line.removeprefix("warning: ") for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    return (hours, notes), (f"{config.method}: two steps of {short.batch_size} rollouts of 16 tokens, the second in "
                            f"{row['seconds']:.1f} s, {row['peak_memory_gb']:.1f} GB; at most {hours:.1f} h by this, "
                            "as few tokens make little use of a device")


PREFLIGHT = dict(devices=check_devices, engine=check_engine, models=check_models, data=check_data, memory=check_memory,
                 disk=check_disk, step=check_step)

# ---------------------------------------------------------------------------------------------------------------------
# The command line.


class Parser(HfArgumentParser):
    """Errors in one line, without the usage of fifty flags before it."""

    def add_argument(self, *names, low=None, high=None, **words):  # bounds are `check_bounds`'s
        return super().add_argument(*names, **words)

    def error(self, message):
        raise UserError(f"{message} (--help lists the flags)")


def parse_config(argv, config_class=Config):
    """A Config, or one of a class that adds flags to it, from command-line words.

    The presets of --scale, --method and --variant come first, then explicit flags. Raises UserError for flags that are
    unknown, out of range, or contradict each other.
    """
    parser = Parser(config_class, description=__doc__.split("\n\n")[0], allow_abbrev=False)
    first = parser.parse_args([word for word in argv if word not in ("-h", "--help")])
    parser.set_defaults(privileged=first.method == "opsd",
                        **SCALES[first.scale][first.method] | VARIANTS[first.variant][first.method])
    config = config_class(**vars(parser.parse_args(argv)))
    config.student_prompt = read_template("--student_prompt", config.student_prompt)
    config.teacher_prompt = read_template("--teacher_prompt", config.teacher_prompt)
    check_bounds(config)
    check(config)
    return config


def need(true, text):
    """Raise UserError with this text unless it is true."""
    if not true:
        raise UserError(text)


def check_bounds(config):
    """Raise UserError for a number out of its flag's bounds."""
    for f in fields(config):
        value, low, high = getattr(config, f.name), f.metadata["low"], f.metadata["high"]
        if isinstance(value, (int, float)):
            need(not math.isnan(value), f"--{f.name} nan: must be a number")
            need(not isinstance(value, int) or abs(value) < 2**31, f"--{f.name} {value}: must lie within 2^31")
            need(low is None or value >= low, f"--{f.name} {value}: must be at least {low}")
            need(high is None or value <= high, f"--{f.name} {value}: must be at most {high}")


def check(config):
    """Raise UserError for flags that contradict each other."""
    need(config.output_dir, "--output_dir: required")
    need(config.max_steps * config.batch_size < 10**8,
         f"--max_steps {config.max_steps} x --batch_size {config.batch_size}: at most 100 million rollouts a run")
    need(not config.schedule_steps or config.schedule_steps >= config.max_steps,
         f"--schedule_steps {config.schedule_steps}: the rate would be 0 before --max_steps {config.max_steps}")
    lowest = -math.inf if config.log_ratio_clip_min is None else config.log_ratio_clip_min
    need(lowest < config.log_ratio_clip,
         f"--log_ratio_clip_min {lowest}: must be below --log_ratio_clip {config.log_ratio_clip}")
    if config.variant == "official":
        need(config.log_ratio_clip_min is None,
             "--log_ratio_clip_min: the released code has no lower clip; drop it or --variant official")
    need(config.weighting != "correctness" or config.log_ratio_clip < math.inf,
         "--log_ratio_clip inf: the weight of a wrong rollout under --weighting correctness, so it must be finite")
    need(config.privileged_share == 0 or config.method == "sft", "--privileged_share: only for --method sft")
    need(not config.privileged or config.method in ("opd", "opsd"), "--privileged: only for --method opd and opsd")
    check_prompts(config)
    if config.estimator == "sampled":
        need(config.beta == 1, "--estimator sampled: estimates the reverse KL; give --beta 1 with it")
        need(config.entry_clip is None,
             "--estimator sampled: has no vocabulary entries to clip; drop --entry_clip or --variant official")
    need(config.method == "opd" or config.teacher is None,
         f"--teacher: not used by {config.method}" + ", whose teacher is its own start" * (config.method == "opsd"))
    need(config.method != "opd" or config.teacher is not None,
         "--method opd: give a --teacher (a folder or a hub name), or take --method opsd")
    if config.method in ("sft", "grpo"):
        need(config.weighting == "none", f"--weighting: {config.method} has no divergence to weight")
        need(not config.save_rollouts, f"--save_rollouts: {config.method} has no log-ratios to write")
    if config.method == "grpo":
        need(config.batch_size % config.generations == 0,
             f"--generations {config.generations}: must divide --batch_size {config.batch_size}")
    need(config.skip_tokens < config.prefix_tokens,
         f"--skip_tokens {config.skip_tokens}: leaves nothing of --prefix_tokens {config.prefix_tokens}")
    if config.rollout_engine == "vllm":
        need(config.method != "sft", "--rollout_engine vllm: sft has no rollouts")
        need(not config.model.startswith("init:"),
             f"--rollout_engine vllm: needs a model from a folder or the hub, not --model {config.model}")
        if not config.preflight:  # which names it among its checks
            need_vllm("--rollout_engine")


def check_prompts(config):
    """Raise UserError for templates that lack what they need or show what they must not."""
    student, teacher = prompt_templates(config)
    need("{problem}" in student, "--student_prompt: has no {problem} in it")
    need("{solution}" not in student, "--student_prompt: has {solution} in it, which the student must not see")
    if config.method in ("opd", "opsd"):
        need("{problem}" in teacher, "--teacher_prompt: has no {problem} in it")
        need(("{solution}" in teacher) == config.privileged, "--teacher_prompt: " + (
            "has no {solution} in it; add it, or pass --privileged False" if config.privileged else
            "has {solution} in it; pass --privileged True with it"))


def check_split(config, devices):
    """Raise UserError where a batch can't be split over the processes."""
    need(config.batch_size % devices.world == 0,
         f"--batch_size {config.batch_size}: must be a multiple of the {devices.world} processes")
    if config.variant == "official":
        need(config.batch_size % (config.micro_batch_size * devices.world) == 0,
             f"--batch_size {config.batch_size}: must be a multiple of --micro_batch_size {config.micro_batch_size} x "
             f"{devices.world} processes, since --variant official normalizes in each")


def split_words(words, between):
    """The words in front of, between and behind each word `between`."""
    places = [-1, *(i for i, word in enumerate(words) if word == between), len(words)]
    return [words[start + 1 : end] for start, end in itertools.pairwise(places)]


def main(argv=None, config_class=Config, run=train):
    """Parse the flags of `config_class` and run; mistakes end with one line. filter_experiments.py comes here too."""
    script = Path(sys.argv[0]).name
    try:
        words = sys.argv[1:] if argv is None else argv
        for config in [parse_config(part, config_class) for part in split_words(words, "then")]:
            try:  # all parts are parsed by now: a wrong flag in the last ends it before the first starts
                if not config.preflight:
                    run(config, connect(config))
                elif preflight(config):
                    sys.exit(1)
            finally:
                VllmSampler.close()
                if dist.is_initialized():
                    dist.destroy_process_group()
    except UserError as error:
        sys.exit(f"{script}: {error}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"{script}: {error.strerror or error}{where}; what was saved before is intact, and --resume goes on "
                 "from it")
    except torch.cuda.OutOfMemoryError as error:
        sys.exit(f"{script}: {str(error).splitlines()[0]} Lower --micro_batch_size, then --prefix_tokens")


if __name__ == "__main__":
    main()
