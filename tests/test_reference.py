# SPDX-License-Identifier: MIT
"""Every flag of training reaches the update: runs of renio.py end as those of the plain tests/reference.py do."""

import json

import pytest
import reference
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import renio

DEFAULTS = dict(  # every flag that changes what is trained
    scale="micro", method="opd", seed=0, model="", teacher=None, lora_r=0, lora_alpha=16, dtype="float32",
    gradient_checkpointing=False, dataset="", task="arith", student_prompt=None, teacher_prompt=None, privileged=False,
    student_thinking=False, teacher_thinking=False, max_prompt_tokens=24, privileged_share=0.0, prefix_tokens=12,
    temperature=1.0, top_p=1.0, top_k=0, beta=0.0, skip_tokens=0, token_reduction="sum", entry_clip=None,
    weighting="none", variant="paper", threshold=0.8, log_ratio_clip=3.0, log_ratio_clip_min=None, weight_norm="batch",
    generations=2, iterations=1, batch_size=6, micro_batch_size=4, learning_rate=1e-3, warmup_steps=0, schedule_steps=0,
    max_steps=2, max_grad_norm=0.0, save_steps=0, save_rollouts=True,
)  # fmt: skip
PROBLEMS = {"a 3+8": "1", "a 7-5 b 2*9": "28", "a 6*4": "4", "a 9-4 b 1+1": "52", "a 7*3": "1"}


def solution(problem, answer):
    words = problem.split()
    return " ".join(["\\boxed{", *(f"{a} {b} {c}" for a, b, c in zip(words[::2], words[1::2], answer)), "}"])


def run(flags, output_dir):
    """renio.py with these flags."""
    words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    renio.main([*words, f"--output_dir={output_dir}"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Flags that name a student and a teacher that have half learned a few problems, and a file of these problems."""
    folder = tmp_path_factory.mktemp("world")
    rows = [dict(problem=p, solution=solution(p, a), answer=a) for p, a in PROBLEMS.items()]
    odd = [
        dict(problem="a 1+1", solution=None, answer=None),
        dict(problem="c 8-2", solution=solution("c 8-2", "6"), answer="6", teacher_prompt="again c 8-2"),
        dict(problem="a 3+8 " * 6, solution=solution("a 3+8 " * 6, "111111"), answer="1"),
    ]
    for name, some in (("rows", rows), ("odd_rows", rows + odd)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    flags = DEFAULTS | dict(dataset=str(folder / "odd_rows.jsonl"))
    for name, size, steps, share in (("student", "init:micro", 60, 0.3), ("teacher", "init:micro-teacher", 90, 0.6)):
        sft = dict(method="sft", model=size, max_steps=steps, batch_size=8, dataset=str(folder / "rows.jsonl"))
        run(flags | sft | dict(privileged_share=share, learning_rate=2e-3, save_rollouts=False), folder / name)
    return flags | dict(model=str(folder / "student/final"), teacher=str(folder / "teacher/final"))


def trained_weights(flags, folder):
    """The weights of a saved model or adapter, by their names in a model in training."""
    if not flags["lora_r"]:
        return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    base = AutoModelForCausalLM.from_pretrained(flags["model"])
    model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


RUNS = {
    "opd": dict(
        weighting="renio", privileged=True, seed=3, temperature=1.3, top_p=0.9, top_k=5, beta=0.3, entry_clip=0.05,
        skip_tokens=1, threshold=0.3, log_ratio_clip=1.5, log_ratio_clip_min=0.6, max_grad_norm=0.5, warmup_steps=3,
        learning_rate=2e-3, max_steps=3, save_steps=2, student_thinking=True,
    ),
    "opd without a norm": dict(weighting="renio", weight_norm="none", token_reduction="mean", schedule_steps=3),
    "opd reverse": dict(
        beta=1, student_prompt="again {problem} again", teacher_prompt="{solution} {problem}", privileged=True, seed=1
    ),
    "opd of tokens": dict(weighting="st_token", threshold=0.1, log_ratio_clip=1.2, log_ratio_clip_min=0.4, seed=2),
    "opd with an oracle": dict(weighting="correctness", temperature=1.5, log_ratio_clip=0.7, teacher_thinking=True),
    "opsd official": dict(
        method="opsd", teacher=None, variant="official", weighting="renio", lora_r=3, lora_alpha=5, seed=4,
        gradient_checkpointing=True, micro_batch_size=2, privileged=True, max_prompt_tokens=14, entry_clip=0.1,
        threshold=0.05, log_ratio_clip=0.9, temperature=1.4, learning_rate=1e-2,
    ),
    "opsd official clamped": dict(
        method="opsd", teacher=None, variant="official", weighting="st_token", batch_size=12, micro_batch_size=12,
        max_steps=1, threshold=2, log_ratio_clip=9, privileged=True, entry_clip=0.07,
    ),
    "opsd shuffled": dict(
        method="opsd", teacher=None, weighting="renio_shuffled", model="init:micro", seed=5, dataset="arith-gaps",
        temperature=0.4, threshold=0.2, privileged=True, max_prompt_tokens=48, teacher_thinking=True,
    ),
    "opsd turned round": dict(
        method="opsd", teacher=None, weighting="ts_sample", lora_r=2, threshold=0.1, log_ratio_clip=2.1,
        log_ratio_clip_min=0.3, privileged=True, token_reduction="mean", learning_rate=1e-2,
    ),
    "grpo": dict(
        method="grpo", teacher=None, generations=3, iterations=3, learning_rate=5e-3, temperature=1.5, seed=6, top_k=9,
        save_rollouts=False,
    ),
    "grpo of means": dict(
        method="grpo", teacher=None, generations=6, token_reduction="mean", temperature=1.5, lora_r=4, top_p=0.95,
        save_rollouts=False, max_grad_norm=0.1,
    ),
    "sft": dict(
        method="sft", teacher=None, model="init:micro", seed=7, dataset="arith", privileged_share=0.4, prefix_tokens=9,
        max_prompt_tokens=50, save_rollouts=False, max_grad_norm=0.3,
    ),
    "sft on a file": dict(
        method="sft", teacher=None, task="math", privileged_share=0.5, student_thinking=True, max_prompt_tokens=70,
        save_rollouts=False, lora_r=3, lora_alpha=40, max_steps=4,
    ),
}  # fmt: skip


def rows_of(path):
    return [json.loads(line) for line in path.open()] if path.exists() else []


def assert_same(found, expected, name):
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        for key, value in wanted.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-4, abs=1e-6)
            assert got[key] == value, (name, key, wanted["step"])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_the_reference(name, world, tmp_path):
    flags = world | RUNS[name]
    weights, metrics, rollouts = reference.train(flags)
    run(flags, tmp_path)
    found = rows_of(tmp_path / "rollouts.jsonl")
    for row in found:
        row["correct"] = row.pop("right")
    for row, wanted in zip(found, rollouts, strict=True):
        skip = flags["skip_tokens"]
        assert row.pop("log_ratios")[skip:] == pytest.approx(wanted.pop("log_ratios"), rel=1e-3, abs=1e-4)
    assert_same(found, rollouts, "rollouts")
    assert_same(rows_of(tmp_path / "metrics.jsonl"), metrics, "metrics")
    new = trained_weights(flags, tmp_path / "final")
    assert new.keys() == weights.keys()
    for key, weight in weights.items():
        error = (new[key] - weight).square().mean().sqrt() / flags["learning_rate"]
        print("weight", key, error.item())
        assert error <= 1e-3, key
