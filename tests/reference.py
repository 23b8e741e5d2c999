# SPDX-License-Identifier: MIT
"""A training run written a second time, plainly: what the flags of renio.py mean. tests/test_reference.py compares.

    weights, metrics, rollouts = reference.train(flags)     # flags: {"method": "opd", "beta": 0.3, ...}, all of them

No micro-batches, no chunks, no cache; only the sampler pads. Logits are transformers' own, gradients are autograd's.
From renio.py come only the synthetic rows, random models, wording of the prompts, tokenizer and grader.
"""

import json
import math
import random
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import renio

TOKENIZER = renio.arith_tokenizer()
END = TOKENIZER.eos_token_id
MARGIN = 1e-6  # of probability


class TooClose(Exception):
    """A random number lies within MARGIN of the border of two tokens, where rounding decides: take another seed."""


def first_model(name, seed):
    if name.startswith("init:"):
        return renio.init_model(name, TOKENIZER, seed)
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def prompt(template, row, thinking):
    message = template.replace("{problem}", row["problem"]).replace("{solution}", row["solution"] or "")
    chat = [dict(role="user", content=message)]
    text = TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return TOKENIZER(text)["input_ids"]


def examples_of(f):
    """Rows with both prompts, in the order in which the run takes them; each epoch has an order of its own."""
    rng, needed = random.Random(f.seed), f.max_steps * f.batch_size
    if f.dataset in renio.SYNTHETIC:
        rows = renio.SYNTHETIC[f.dataset](needed, f.seed)
        privileged_rows = renio.arith_rows(needed, f.seed + 10**6, invented=True)
    else:
        rows = privileged_rows = [json.loads(line) for line in open(f.dataset)]
    if f.privileged_share > 0:
        pairs = zip(rows, privileged_rows, strict=True)
        rows = [dict(p, privileged=True) if rng.random() < f.privileged_share else row for row, p in pairs]
    student_template, privileged_template = renio.PROMPTS[f.task]
    student_template = f.student_prompt or student_template
    shows_solution = f.privileged or f.method == "sft"
    teacher_template = f.teacher_prompt or (privileged_template if shows_solution else student_template)
    rng.shuffle(rows)
    usable = []
    for row in rows:
        if shows_solution and not row["solution"]:
            continue
        thinking, template, teacher = f.student_thinking, student_template, []
        if f.method == "sft":
            template = teacher_template if row.get("privileged") else student_template
            if f.task == "arith":
                thinking = rng.random() < 0.5
        student = prompt(template, row, thinking)
        if f.method in ("opd", "opsd"):
            teacher = prompt(teacher_template, row, f.teacher_thinking)
            if f.variant == "official":
                student, teacher = student[: f.max_prompt_tokens], teacher[: f.max_prompt_tokens]
        if max(len(student), len(teacher)) <= f.max_prompt_tokens:
            usable.append(SimpleNamespace(row=row, student=student, teacher=teacher))
    examples = list(usable)
    while len(examples) < needed:
        rng.shuffle(usable)
        examples += usable
    return examples[:needed]


def logprobs_of(model, prompt, completion, temperature):
    """Of the whole vocabulary at the places that predict the completion's tokens, (T, V)."""
    ids = torch.tensor([prompt + completion])
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(ids.shape[1])[None])
    return (out.logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)


def of_tokens(logprobs, tokens):
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]  # (T,)


@torch.no_grad()
def sample(model, prompts, f, seed):
    """A token is the first whose cumulative probability exceeds a random number. Each row draws its own number.

    A row that has ended goes on drawing until at most half of the rows are still open; then only these go on.
    """
    generator = torch.Generator().manual_seed(seed)
    completions, rows = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(f.prefix_tokens):
        texts = [prompts[row] + completions[row] for row in rows]
        padding = [[0] * (max(map(len, texts)) - len(text)) for text in texts]
        mask = torch.tensor([pad + [1] * len(text) for pad, text in zip(padding, texts, strict=True)])
        ids = torch.tensor([pad + text for pad, text in zip(padding, texts, strict=True)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]  # (B, V)
        probs, order = (logits / f.temperature).softmax(-1).double().sort(descending=True)
        if f.top_k > 0:
            probs[:, f.top_k :] = 0
        probs /= probs.sum(1, keepdim=True)
        if f.top_p < 1:
            probs[probs.cumsum(1) - probs >= f.top_p] = 0
        mass = torch.zeros_like(probs).scatter(1, order, probs / probs.sum(1, keepdim=True)).cumsum(1)
        numbers = torch.rand(len(rows), 1, dtype=torch.float64, generator=generator)
        for row, margin, token in zip(rows, mass - numbers, (mass <= numbers).sum(1).tolist(), strict=True):
            if completions[row][-1:] != [END]:
                completions[row].append(token)
                if margin.abs().min() < MARGIN:
                    raise TooClose
        still_open = [row for row in rows if completions[row][-1] != END]
        if len(still_open) <= len(rows) / 2:
            rows = still_open
        if not rows:
            break
    return completions


def rollouts_of(model, examples, f, seed):
    """A completion for each example, sampled and graded; in sft its solution."""
    if f.method == "sft":
        texts = [example.row.get("demonstration") or example.row["solution"] for example in examples]
        completions = [(TOKENIZER(text)["input_ids"] + [END])[: f.prefix_tokens] for text in texts]
    else:
        completions = sample(model, [example.student for example in examples], f, seed)
    rollouts = []
    for example, completion in zip(examples, completions, strict=True):
        text, answer = TOKENIZER.decode(completion, skip_special_tokens=True), example.row["answer"]
        truncated, correct = completion[-1] != END, None
        if answer is not None and not (truncated and renio.extract_boxed(text) is None):
            correct = renio.arith_verdict(text, answer) == "equal"
        rollouts.append(SimpleNamespace(**vars(example), completion=completion, truncated=truncated, correct=correct))
    if f.variant == "paper" and f.method != "grpo":
        rollouts.sort(key=lambda r: len(r.student) + len(r.completion))
    return rollouts


def divergence_of(log_s, log_t, f):
    """(T,), from log-probabilities (T, V): forward KL, reverse KL, or generalized JSD."""
    if f.beta == 0:
        terms = log_t.exp() * (log_t - log_s)
    elif f.beta == 1:
        terms = log_s.exp() * (log_s - log_t)
    else:
        log_m = ((1 - f.beta) * log_s.exp() + f.beta * log_t.exp()).log()
        terms = f.beta * log_t.exp() * (log_t - log_m) + (1 - f.beta) * log_s.exp() * (log_s - log_m)
    return (terms if f.entry_clip is None else terms.clamp(0, f.entry_clip)).sum(1)


def weight_of(ratios, correct, weighting, f):
    """A rollout's weight before any normalizing, or (st_token) one for each token. ratios: (T,), log p_S - log p_T."""
    if weighting == "none" or (weighting == "correctness" and correct is not False):
        return torch.tensor(1.0)
    if weighting == "correctness":
        return torch.tensor(math.exp(f.log_ratio_clip))
    ratios = -ratios if weighting == "ts_sample" else ratios
    clipped = ratios.clamp(f.log_ratio_clip_min, f.log_ratio_clip)
    if weighting == "st_token":
        return torch.where(ratios > f.threshold, clipped.exp(), 1.0)
    key_tokens = clipped >= f.threshold if f.variant == "official" else ratios > f.threshold
    return clipped[key_tokens].mean().exp() if key_tokens.any() else torch.tensor(1.0)


def mean_weight(weights):
    """Of rollouts; one whose tokens have weights counts as their mean."""
    return sum(weight.sum() / max(1, weight.numel()) for weight in weights) / len(weights)


def distillation(model, teacher, rollouts, f, seed):
    """Eq. 2-9: the loss, and metrics of the weights; each rollout gets its log-ratios and its ReNIO weight."""
    weights, sums, official = [], [], f.variant == "official"
    for r in rollouts:
        log_s = logprobs_of(model, r.student, r.completion, f.temperature)[f.skip_tokens :]
        log_t = logprobs_of(teacher, r.teacher, r.completion, f.temperature)[f.skip_tokens :].detach()
        tokens = r.completion[f.skip_tokens :]
        n, student, teachers = max(1, len(tokens)), of_tokens(log_s, tokens).detach(), of_tokens(log_t, tokens)
        ratios, entropies = student - teachers, -(log_t.exp() * log_t).sum(1)
        r.log_ratios, r.renio_weight = ratios.tolist(), weight_of(ratios, r.correct, "renio", f).item()
        r.key_tokens, r.teacher_entropy = (ratios > f.threshold).sum().item(), entropies.sum().item() / n
        r.student_logprob, r.teacher_logprob = student.sum().item() / n, teachers.sum().item() / n
        weights.append(weight_of(ratios, r.correct, f.weighting, f))
        sums.append(divergence_of(log_s, log_t, f) / (n if f.token_reduction == "mean" else 1))
    if f.weighting == "renio_shuffled":
        random.Random(seed).shuffle(weights)
    normalized = weights
    if f.weighting != "none" and f.weight_norm == "batch":  # Eq. 8
        size = f.micro_batch_size if official else len(weights)
        parts = [weights[i : i + size] for i in range(0, len(weights), size)]
        normalized = [weight / mean_weight(part) for part in parts for weight in part]
        if official:
            weights = normalized = [weight.clamp(max=10) for weight in normalized]
    loss = sum((weight * terms).sum() for weight, terms in zip(normalized, sums, strict=True)) / len(rollouts)
    means = [mean_weight([weight]).item() for weight in weights]
    return loss, dict(weight_mean=sum(means) / len(means), weight_max=max(means))


def grpo(model, rollouts, f):
    """GRPO without its KL term: the loss and metrics. The rollouts of one prompt stand together."""
    rewards = torch.tensor([float(r.correct is True) for r in rollouts])
    groups = rewards.view(-1, f.generations)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    losses, clipped = [], []
    for r, advantage in zip(rollouts, advantages, strict=True):
        logprobs = of_tokens(logprobs_of(model, r.student, r.completion, f.temperature), r.completion)
        if not hasattr(r, "old_logprobs"):  # in the first of the updates on these rollouts
            r.old_logprobs = logprobs.detach()
        ratio = (logprobs - r.old_logprobs).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        losses.append(loss.mean() if f.token_reduction == "mean" else loss.sum())
        clipped += ((ratio - 1).abs() > 0.2).tolist()
    return sum(losses) / len(losses), dict(reward=rewards.mean().item(), clipped_share=sum(clipped) / len(clipped))


def sft(model, rollouts):
    """Cross-entropy of a token of the solutions, and no metrics."""
    logprobs = [of_tokens(logprobs_of(model, r.student, r.completion, 1.0), r.completion) for r in rollouts]
    return -torch.cat(logprobs).mean(), {}


def descend(optimizer, trained, loss, f):
    """An update with clipped gradients; returns their norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in trained))
    if 0 < f.max_grad_norm < norm:
        for p in trained:
            p.grad *= f.max_grad_norm / norm
    optimizer.step()
    return norm


def train(flags, steps=None):
    """Returns the trained weights in one vector, a dict of metrics a step, and a dict a rollout (opd and opsd)."""
    f, metrics, rows = SimpleNamespace(**flags), [], []
    model = first_model(f.model, f.seed)
    teacher = first_model(f.teacher or f.model, f.seed)  # opsd: the student as it starts
    if f.lora_r:
        torch.manual_seed(f.seed)
        model = get_peft_model(model, LoraConfig(r=f.lora_r, lora_alpha=f.lora_alpha, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    repeats = f.generations if f.method == "grpo" else 1
    examples = [example for example in examples_of(f) for _ in range(repeats)]
    for step in range(steps or f.max_steps):
        seed = (f.seed * 100_000 + step) * 1000
        rollouts = rollouts_of(model, examples[step * f.batch_size :][: f.batch_size], f, seed)
        rate = f.learning_rate * min(1, (step + 1) / max(1, f.warmup_steps))
        if f.schedule_steps > 0:
            rate *= 1 - step / f.schedule_steps
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(f.iterations if f.method == "grpo" else 1):
            if f.method == "sft":
                loss, row = sft(model, rollouts)
            elif f.method == "grpo":
                loss, row = grpo(model, rollouts, f)
            else:
                loss, row = distillation(model, teacher, rollouts, f, seed)
            norm = descend(optimizer, trained, loss, f)
        metrics.append(row | dict(step=step + 1, loss=loss.item(), grad_norm=norm, learning_rate=rate))
        if f.save_rollouts:
            kept = ["completion", "correct", "truncated", "log_ratios", "renio_weight", "key_tokens"]
            kept += ["teacher_entropy", "student_logprob", "teacher_logprob"]
            rows += [
                dict({key: vars(r)[key] for key in kept}, problem=r.row["problem"], step=step + 1) for r in rollouts
            ]
    return torch.cat([p.detach().flatten() for p in trained]), metrics, rows
