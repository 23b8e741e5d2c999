# SPDX-License-Identifier: MIT
"""A training run written a second time, plainly: what renio.py's flags mean, for tests/test_reference.py to compare.

    weights, metrics, rollouts = reference.train(flags)     # flags: {"method": "opd", "beta": 0.3, ...}, all of them

One rollout at a time, without padding, caches, chunks or micro-batches; transformers' own logits; gradients by
autograd. It takes only the synthetic rows and the wording of the prompts from renio.py. In float32 on one CPU.
"""

import json
import math
import random
import re
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import renio


def first_model(name, seed, tokenizer):
    if not name.startswith("init:"):
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    width, layers = {"init:micro": (96, 3), "init:micro-teacher": (128, 3)}[name]
    sizes = dict(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, head_dim=width // 4)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, initializer_range=0.05)
    rope = dict(
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters=dict(rope_type="default", rope_theta=100.0),
        max_position_embeddings=512,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads, **rope))


def examples_of(f, tokenizer):
    """Rows with the ids of both prompts, in the order in which the run takes them: each epoch is shuffled again."""
    rng, needed = random.Random(f.seed), f.max_steps * f.batch_size
    if f.dataset in renio.SYNTHETIC:
        rows = renio.SYNTHETIC[f.dataset](needed, f.seed)
        invented = renio.arith_rows(needed, f.seed + 10**6, invented=True)
    else:
        rows = invented = [json.loads(line) for line in open(f.dataset)]
    if f.privileged_share > 0:
        for i, other in enumerate(invented):
            if rng.random() < f.privileged_share:
                rows[i] = dict(other, privileged=True)
    plain, with_solution = renio.PROMPTS[f.task]
    plain = f.student_prompt or plain
    with_solution = f.teacher_prompt or (with_solution if f.privileged or f.method == "sft" else plain)

    def ids(template, row, thinking):
        message = template.replace("{problem}", row["problem"]).replace("{solution}", row["solution"] or "")
        chat = [dict(role="user", content=message)]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    examples = []
    while len(examples) < needed:
        rng.shuffle(rows)
        for row in rows:
            if not row["solution"] and not row.get("teacher_prompt") and (f.method == "sft" or f.privileged):
                continue
            thinking, template, teacher = f.student_thinking, plain, []
            if f.method == "sft":
                template = with_solution if row.get("privileged") else plain
                if f.task == "arith":
                    thinking = rng.random() < 0.5
            student = ids(template, row, thinking)
            if f.method in ("opd", "opsd"):
                teacher = ids(row.get("teacher_prompt") or with_solution, row, f.teacher_thinking)
                if f.variant == "official":
                    student, teacher = student[: f.max_prompt_tokens], teacher[: f.max_prompt_tokens]
            if max(len(student), len(teacher)) <= f.max_prompt_tokens:
                examples.append(SimpleNamespace(row=row, student=student, teacher=teacher))
    return examples[:needed]


def logits_of(model, prompt, completion):
    """Logits (T, V) that predict the completion's tokens."""
    ids = torch.tensor([prompt + completion])
    positions = torch.arange(ids.shape[1])[None]
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    return out.logits[0, len(prompt) - 1 : -1]


@torch.no_grad()
def sample(model, prompts, end, f, seed):
    """A token is the first whose cumulative probability exceeds a uniform number; each row has its own number.

    A row that has ended goes on using up numbers until half of the rows, or fewer, are still open.
    """
    generator = torch.Generator().manual_seed(seed)
    completions, rows = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(f.prefix_tokens):
        for row in rows:
            number = torch.rand((), dtype=torch.float64, generator=generator)
            if completions[row][-1:] != [end]:
                logits = logits_of(model, prompts[row], completions[row] + [0])[-1]
                probs, order = (logits / f.temperature).softmax(-1).double().sort(descending=True)
                if f.top_k:
                    probs[f.top_k :] = 0
                probs /= probs.sum()
                if f.top_p < 1:
                    probs[probs.cumsum(0) - probs >= f.top_p] = 0
                mass = torch.zeros_like(probs).scatter(0, order, probs).cumsum(0)
                completions[row].append(int((mass <= number * mass[-1]).sum()))
        still_open = [row for row in rows if completions[row][-1] != end]
        rows = still_open if len(still_open) <= len(rows) / 2 else rows
    return completions


def is_correct(text, truncated, answer):
    """Whether the last result of each step in the last box makes up the answer."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if answer is None or (truncated and not boxes):
        return None
    words = boxes[-1].split() if boxes else []
    results = {name: word for name, word in zip(words, words[2:], strict=False) if name in "abcdefghij"}
    return "".join(results.values()) == answer


def divergence(student_logits, teacher_logits, f):
    """(T,), over the full vocabulary."""
    log_s = torch.log_softmax(student_logits / f.temperature, -1)
    log_t = torch.log_softmax(teacher_logits / f.temperature, -1)
    p_s, p_t = log_s.exp(), log_t.exp()
    log_m = ((1 - f.beta) * p_s + f.beta * p_t).log()  # beta 0: p_S, beta 1: p_T
    terms = f.beta * p_t * (log_t - log_m) + (1 - f.beta) * p_s * (log_s - log_m)
    if f.beta == 0:
        terms = p_t * (log_t - log_s)
    if f.beta == 1:
        terms = p_s * (log_s - log_t)
    return (terms if f.entry_clip is None else terms.clamp(0, f.entry_clip)).sum(-1)


def logprobs_of(logits, completion, temperature):
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def weight_of(ratios, correct, f):
    """A rollout's weight before any normalizing, or (st_token) one for each of its tokens.

    ratios: (T,), log p_S - log p_T of the sampled tokens that count.
    """
    if f.weighting == "none" or (f.weighting == "correctness" and correct is not False):
        return torch.tensor(1.0)
    if f.weighting == "correctness":
        return torch.tensor(math.exp(f.log_ratio_clip))
    ratios = -ratios if f.weighting == "ts_sample" else ratios
    clipped = ratios.clamp(f.log_ratio_clip_min, f.log_ratio_clip)
    if f.weighting == "st_token":
        return torch.where(ratios > f.threshold, clipped.exp(), 1.0)
    key = clipped >= f.threshold if f.variant == "official" else ratios > f.threshold
    return clipped[key].mean().exp() if key.any() else torch.tensor(1.0)


def mean_weight(weight):
    """Of a rollout whose tokens have weights of their own: their mean."""
    return weight.sum().item() / max(1, weight.numel())


def distillation(model, teacher, rollouts, f, seed):
    """Eq. 2-9: the loss, a row for each rollout, and metrics."""
    if f.variant == "paper":
        rollouts = sorted(rollouts, key=lambda r: len(r.example.student) + len(r.completion))
    renio_flags, counted, rows = SimpleNamespace(**vars(f) | dict(weighting="renio")), slice(f.skip_tokens, None), []
    for r in rollouts:
        student_logits = logits_of(model, r.example.student, r.completion)
        with torch.no_grad():
            teacher_logits = logits_of(teacher, r.example.teacher, r.completion)
        r.divergences = divergence(student_logits, teacher_logits, f)[counted]
        r.entropies = torch.distributions.Categorical(logits=teacher_logits / f.temperature).entropy()[counted]
        logprobs = [logprobs_of(x, r.completion, f.temperature)[counted] for x in (student_logits, teacher_logits)]
        r.ratios = (logprobs[0] - logprobs[1]).detach()
        r.weight, r.count = weight_of(r.ratios, r.correct, f), max(1, len(r.ratios))
        row = dict(problem=r.example.row["problem"], completion=r.completion, correct=r.correct)
        row |= dict(truncated=r.truncated, renio_weight=weight_of(r.ratios, r.correct, renio_flags).item())
        rows.append(row | dict(log_ratios=r.ratios.tolist(), teacher_entropy=r.entropies.sum().item() / r.count))
    weights = [r.weight for r in rollouts]
    if f.weighting == "renio_shuffled":
        random.Random(seed).shuffle(weights)
    divisor = len(rollouts)
    if f.weighting != "none" and f.weight_norm == "batch":
        if f.variant == "paper":
            divisor = sum(mean_weight(w) for w in weights)  # Eq. 8
        else:
            for i in range(0, len(weights), f.micro_batch_size):
                micro_batch = weights[i : i + f.micro_batch_size]
                mean = sum(mean_weight(w) for w in micro_batch) / len(micro_batch)
                weights[i : i + f.micro_batch_size] = [(w / mean).clamp(max=10) for w in micro_batch]
    sums = [(w * r.divergences).sum() for w, r in zip(weights, rollouts, strict=True)]
    if f.token_reduction == "mean":
        sums = [total / r.count for total, r in zip(sums, rollouts, strict=True)]
    ratios, means = torch.cat([r.ratios for r in rollouts]), [mean_weight(w) for w in weights]
    return (
        sum(sums) / divisor,
        rows,
        dict(
            divergence=sum(r.divergences.sum().item() for r in rollouts) / len(ratios),
            teacher_entropy=sum(r.entropies.sum().item() for r in rollouts) / len(ratios),
            key_token_share=(ratios > f.threshold).float().mean().item(),
            weight_mean=sum(means) / len(means),
            weight_max=max(means),
            effective_sample_size=sum(means) ** 2 / sum(mean**2 for mean in means),
        ),
    )


def grpo(model, rollouts, f):
    """GRPO without its KL term; the rollouts of one prompt stand together."""
    rewards = torch.tensor([float(r.correct is True) for r in rollouts])
    groups = rewards.view(-1, f.generations)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    losses, clipped = [], []
    for r, advantage in zip(rollouts, advantages, strict=True):
        logprobs = logprobs_of(logits_of(model, r.example.student, r.completion), r.completion, f.temperature)
        if not hasattr(r, "old"):  # the first update on these rollouts
            r.old = logprobs.detach()
        ratio = (logprobs - r.old).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        losses.append(loss.mean() if f.token_reduction == "mean" else loss.sum())
        clipped += ((ratio - 1).abs() > 0.2).tolist()
    silent = (advantages == 0).float().mean().item()
    metrics = dict(reward=rewards.mean().item(), silent_share=silent, clipped_share=sum(clipped) / len(clipped))
    return sum(losses) / len(losses), [], metrics


def sft(model, rollouts):
    """Cross-entropy of a token of the solutions."""
    logprobs = [logprobs_of(logits_of(model, r.example.student, r.completion), r.completion, 1.0) for r in rollouts]
    return -torch.cat(logprobs).mean(), [], {}


def train(flags, steps=None):
    """Returns the trained weights by name, a dict of metrics for each step, and (opd, opsd) a dict for each rollout."""
    f, metrics, rows = SimpleNamespace(**flags), [], []
    tokenizer = renio.arith_tokenizer()
    end = tokenizer.eos_token_id
    model = first_model(f.model, f.seed, tokenizer)
    teacher = first_model(f.teacher or f.model, f.seed, tokenizer)  # opsd: the student as it starts
    if f.lora_r:
        torch.manual_seed(f.seed)
        model = get_peft_model(model, LoraConfig(r=f.lora_r, lora_alpha=f.lora_alpha, target_modules="all-linear"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=0.0)
    repeats = f.generations if f.method == "grpo" else 1
    examples = [example for example in examples_of(f, tokenizer) for _ in range(repeats)]
    for step in range(steps or f.max_steps):
        batch = examples[step * f.batch_size :][: f.batch_size]
        seed = (f.seed * 100_000 + step) * 1000
        if f.method == "sft":
            texts = [example.row.get("demonstration") or example.row["solution"] for example in batch]
            completions = [(tokenizer(text)["input_ids"] + [end])[: f.prefix_tokens] for text in texts]
        else:
            completions = sample(model, [example.student for example in batch], end, f, seed)
        rollouts = [SimpleNamespace(example=e, completion=c) for e, c in zip(batch, completions, strict=True)]
        for r in rollouts:
            r.truncated = r.completion[-1] != end
            r.correct = is_correct(
                tokenizer.decode(r.completion, skip_special_tokens=True), r.truncated, r.example.row["answer"]
            )
        rate = f.learning_rate * min(1, (step + 1) / max(1, f.warmup_steps))
        if f.schedule_steps:
            rate *= 1 - step / f.schedule_steps
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(f.iterations if f.method == "grpo" else 1):
            if f.method == "sft":
                loss, new_rows, row = sft(model, rollouts)
            elif f.method == "grpo":
                loss, new_rows, row = grpo(model, rollouts, f)
            else:
                loss, new_rows, row = distillation(model, teacher, rollouts, f, seed)
            optimizer.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in trained.values()))
            for p in trained.values():
                if 0 < f.max_grad_norm < norm:
                    p.grad *= f.max_grad_norm / norm
            optimizer.step()
        row |= dict(step=step + 1, loss=loss.item(), grad_norm=norm, learning_rate=rate)
        row["completion_length"] = sum(len(completion) for completion in completions) / len(completions)
        if f.method != "sft":
            graded = [r.correct for r in rollouts if r.correct is not None]
            row["truncation_rate"] = sum(r.truncated for r in rollouts) / len(rollouts)
            row["rollout_accuracy"] = sum(graded) / len(graded) if graded else None
        metrics.append(row)
        rows += [dict(row, step=step + 1) for row in new_rows]
    return {name: p.detach() for name, p in trained.items()}, metrics, rows
