# SPDX-License-Identifier: MIT
"""Every flag reaches the update: a run of renio.py ends as that of tests/reference.py, a plain second implementation.

A wire that is cut (a flag that a function takes and train never passes) fails here, whatever the functions' own tests
say. The runs are tiny, but no flag of theirs is at its default, and each changes the result.
"""

import json

import pytest
import reference
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

import renio

DEFAULTS = dict(
    scale="micro", method="opd", seed=0, lora_r=0, lora_alpha=16, dtype="float32", gradient_checkpointing=False,
    task="arith", student_prompt=None, teacher_prompt=None, privileged=False, student_thinking=False,
    teacher_thinking=False, max_prompt_tokens=24, privileged_share=0.0, prefix_tokens=12, temperature=1.0, top_p=1.0,
    top_k=0, beta=0.0, skip_tokens=0, token_reduction="sum", entry_clip=None, weighting="none", variant="paper",
    threshold=0.8, log_ratio_clip=3.0, log_ratio_clip_min=None, weight_norm="batch", generations=2, iterations=1,
    batch_size=6, micro_batch_size=4, learning_rate=1e-3, warmup_steps=0, schedule_steps=0, max_steps=2,
    max_grad_norm=0.0, save_steps=0, save_rollouts=True,
)  # fmt: skip
RUNS = {
    "opd": dict(
        weighting="renio", privileged=True, seed=3, temperature=1.3, top_p=0.7, top_k=6, beta=0.3, entry_clip=0.05,
        skip_tokens=1, threshold=0.1, log_ratio_clip=1.5, log_ratio_clip_min=1.2, warmup_steps=3, learning_rate=2e-3,
        max_steps=3, save_steps=2, student_thinking=True,
    ),
    "opd without a norm": dict(
        weighting="renio", weight_norm="none", token_reduction="mean", schedule_steps=3, max_grad_norm=0.5
    ),
    "opd reverse": dict(
        beta=1, student_prompt="again {problem} again", teacher_prompt="{solution} {problem}", privileged=True, seed=1
    ),
    "opd of tokens": dict(weighting="st_token", threshold=0.1, log_ratio_clip=1.2, log_ratio_clip_min=0.9, seed=2),
    "opd with an oracle": dict(weighting="correctness", temperature=1.5, log_ratio_clip=0.7, teacher_thinking=True),
    "opsd official": dict(
        method="opsd", teacher=None, variant="official", weighting="renio", lora_r=3, lora_alpha=5, seed=4,
        gradient_checkpointing=True, micro_batch_size=2, privileged=True, max_prompt_tokens=14, entry_clip=0.1,
        threshold=0.05, log_ratio_clip=0.9, temperature=1.4, learning_rate=3e-3,
    ),
    "opsd official clamped": dict(
        method="opsd", teacher=None, variant="official", weighting="st_token", batch_size=12, micro_batch_size=12,
        max_steps=1, threshold=2, log_ratio_clip=9, privileged=True, entry_clip=0.07, prefix_tokens=8,
    ),
    "opd official": dict(  # no token is key where the clip lies below the threshold
        variant="official", weighting="renio", threshold=0.5, log_ratio_clip=0.4, entry_clip=0.2, max_steps=1,
        micro_batch_size=3,
    ),
    "opsd shuffled": dict(
        method="opsd", teacher=None, weighting="renio_shuffled", model="init:micro", seed=5, dataset="arith-gaps",
        temperature=0.4, threshold=0.2, privileged=True, max_prompt_tokens=48, teacher_thinking=True,
    ),
    "opsd turned round": dict(
        method="opsd", teacher=None, weighting="ts_sample", lora_r=2, threshold=0.1, log_ratio_clip=2.1,
        log_ratio_clip_min=0.3, privileged=True, token_reduction="mean", learning_rate=3e-3,
    ),
    "grpo": dict(
        method="grpo", teacher=None, generations=3, iterations=3, batch_size=12, learning_rate=5e-3,
        temperature=1.2, seed=6, top_k=9, save_rollouts=False,
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
        method="sft", teacher=None, task="math", privileged_share=0.5, student_thinking=True, max_prompt_tokens=120,
        save_rollouts=False, lora_r=3, lora_alpha=40, dataset="long.jsonl", batch_size=4,
    ),
}  # fmt: skip
NOT_COMPARED = {"method", "model", "teacher", "dataset", "lora_r", "max_steps", "batch_size"}  # with DEFAULTS
NOT_COMPARED |= {"gradient_checkpointing", "micro_batch_size", "save_steps", "save_rollouts"}  # change no weights


def problem(solution):
    words = solution.split()
    operations = " ".join(word for i, word in enumerate(words) if i % 3 < 2)
    return dict(problem=operations, solution=f"\\boxed{{ {solution} }}", answer="".join(words[2::3]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Flags that name a student and a teacher that have half learned a few problems, and a file of these and others."""
    folder = tmp_path_factory.mktemp("world")
    rows = [problem(text) for text in ("a 3+8 1", "a 7-5 2 b 2*9 8", "a 6*4 4", "a 9-4 5 b 1+1 2", "a 7*3 1")]
    everything = [*rows, problem("c 8-2 6"), problem("a 3+8 1 " * 6), dict(problem="a 1+1", solution=None, answer=None)]
    long = [problem(text * 10) for text in ("a 3+8 1 ", "b 7-5 2 ", "c 6*4 4 ")]  # mostly words of this tokenizer
    for name, some in (("few", rows), ("all", everything), ("long", long)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    flags = DEFAULTS | dict(method="sft", teacher=None, batch_size=8, learning_rate=2e-3, save_rollouts=False)
    flags |= dict(dataset=folder / "few.jsonl")
    run(flags | dict(model="init:micro", max_steps=40, privileged_share=0.3), folder / "student")
    run(flags | dict(model="init:micro-teacher", max_steps=50, privileged_share=0.6), folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield DEFAULTS | dict(model="student/final", teacher="teacher/final", dataset="all.jsonl")


def run(flags, folder):
    """What renio.py makes of the flags: weights, metrics and rollouts, as reference.train returns them."""
    words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    renio.main([*words, f"--output_dir={folder}"])
    model = AutoModelForCausalLM.from_pretrained(flags["model"] if flags["lora_r"] else folder / "final")
    if flags["lora_r"]:
        model = PeftModel.from_pretrained(model, folder / "final", is_trainable=True)
    files = [folder / "metrics.jsonl", folder / "rollouts.jsonl"]
    metrics, rollouts = ([json.loads(line) for line in file.open()] if file.exists() else [] for file in files)
    for row in rollouts:
        row["log_ratios"] = row["log_ratios"][flags["skip_tokens"] :]
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), metrics, rollouts


def assert_same(found, expected, learning_rate):
    """Two runs agree to rounding; weights to a hundredth of an update's largest step."""
    for found_rows, expected_rows in zip(found[1:], expected[1:], strict=True):
        for row, expected_row in zip(found_rows, expected_rows, strict=True):
            for key, value in expected_row.items():
                if isinstance(value, float | list):
                    value = pytest.approx(value, rel=5e-4, abs=6e-5 if key == "log_ratios" else 1e-6)
                assert row[key] == value, (key, expected_row)
    assert (found[0] - expected[0]).square().mean().sqrt() < 0.01 * learning_rate


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_the_reference(name, world, tmp_path, monkeypatch):
    flags, expected, checkpointing = world | RUNS[name], None, []
    while expected is None:
        try:
            expected = reference.train(flags)
        except reference.TooClose:
            flags["seed"] += 1
    enable = PreTrainedModel.gradient_checkpointing_enable
    monkeypatch.setattr(PreTrainedModel, enable.__name__, lambda *a, **words: checkpointing.append(enable(*a, **words)))
    assert_same(run(flags, tmp_path), expected, flags["learning_rate"])
    assert bool(checkpointing) == flags["gradient_checkpointing"]
    due = [step for step in range(1, flags["max_steps"] + 1) if flags["save_steps"] and step % flags["save_steps"] == 0]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in due]


@pytest.mark.parametrize("name", RUNS)
def test_each_flag_of_a_run_changes_it(name, world, monkeypatch):
    """Otherwise the test above would pass with its wire cut."""
    monkeypatch.setattr(reference, "MARGIN", 0.0)
    flags, runs = world | RUNS[name], list(RUNS)
    compared_before = {flag for other in runs[: runs.index(name)] for flag in RUNS[other]}
    steps = min(2, flags["max_steps"])
    expected = reference.train(flags, steps)
    for flag in RUNS[name].keys() - compared_before - NOT_COMPARED:
        other = reference.train(flags | {flag: DEFAULTS[flag]}, steps)
        with pytest.raises(AssertionError):
            assert_same(other, expected, flags["learning_rate"])
            pytest.fail(f"--{flag} changes nothing")
