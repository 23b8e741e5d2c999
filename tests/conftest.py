# SPDX-License-Identifier: MIT
"""What several test files share: the project on the path, tiny models, and reference data where it is at hand."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no folder fails at once, with or without a network
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, several at once
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import eval as renio_eval  # noqa: E402
import renio  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared():
    """A folder `shared` beside the repository: golden figures, benchmark files and the Qwen3 tokenizer."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` with reference data beside the repository")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return renio.arith_tokenizer()


@pytest.fixture
def model(tokenizer):
    return renio.init_model("init:micro", tokenizer, seed=0)


@pytest.fixture
def config(tmp_path):
    """Returns a function that makes a Config from command-line words, with an output folder of the test's own."""
    def make(*words):
        return renio.parse_config(["--output_dir", str(tmp_path / "run"), *map(str, words)])
    return make


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory, tokenizer):
    """A folder with a random micro model of seed 1, so that it differs from the `model` fixture."""
    folder = tmp_path_factory.mktemp("models") / "micro"
    renio.init_model("init:micro", tokenizer, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def examples_of(config, tokenizer, n):
    return renio.load_examples(config, tokenizer, tokenizer, n)[0]


def rollouts_of(examples, completions, eos_ids=(1,), right=None):
    """Rollouts of the examples with these completions, and with the verdicts where they are given."""
    right = right or [None] * len(examples)
    return [renio.Rollout(example, completion, completion[-1] not in eos_ids, verdict)
            for example, completion, verdict in zip(examples, completions, right, strict=True)]


def distilled(student, teacher, rollouts, config):
    """distillation_step on one device, without its clock."""
    return renio.distillation_step(student, teacher, rollouts, config, renio.Devices("cpu"), renio.Stopwatch("cpu"))


def completion_logits(model, prompts, completions):
    """Logits (B, T, V) on the completions, their ids (B, T) and mask (B, T), by a plain forward of each row alone."""
    ids, mask = renio.pad(completions, "right")
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        rows.append(torch.nn.functional.pad(logits, (0, 0, 0, ids.shape[1] - len(completion))))
    return torch.stack(rows), ids, mask


@torch.no_grad()
def teacher_logits(teacher, prompts, completions):
    with teacher.as_teacher():
        return completion_logits(teacher.model, prompts, completions)[0]


def write_run(folder, label, seed, right, decodings=("sampled",), tokens=10, markers=0, benchmark="arith", **settings):
    """An eval.json of a problem for each entry of `right` x 2 samples, so many of each problem's samples right.

    That of a checkpoint where the folder has the name of one. settings: such as differ; problems: their checksum. Of
    arith each problem has one gap, which a wrong answer has wrong.
    """
    results = []
    for decoding in decodings:
        answers = [[dict(boxed="1", right=i < c, reason="equal", tokens=tokens, truncated=False, markers=markers,
                         wrong_taught=0, wrong_gap=int(i >= c)) for i in range(2)] for c in right]
        errors = dict(taught_error=0.0, gap_error=1 - sum(right) / 2 / len(right)) if benchmark == "arith" else {}
        results.append(dict(benchmark=benchmark, decoding=decoding, n=2, **renio_eval.scores_of_answers(answers),
                            **errors,
                            problems=[dict(problem=str(i), answers=a) for i, a in enumerate(answers)]))
    settings = dict(model="base", temperature=1.0, top_p=0.95, top_k=0, max_new_tokens=64, thinking=True,
                    engine="transformers", dtype="float32", privileged=False) | settings
    settings["checksums"] = {benchmark: settings.pop("problems", "same")}
    folder.mkdir(parents=True)
    step = renio.step_of(folder) if folder.name.startswith("checkpoint-") else None
    (folder / "eval.json").write_text(json.dumps(dict(label=label, train_seed=seed, step=step, settings=settings,
                                                      results=results)))


def write_all_runs(folder, seeds=(0, 1, 2)):
    """Runs of every label of the report, with logs and rollouts; incorrect-only arms are better and longer."""
    rng = np.random.default_rng(0)
    labels = [label.replace("*", "16") for section in renio_eval.SECTIONS for label in section.labels]
    curves = {*renio_eval.METHODS} - {"base", "teacher", "base with solution"}
    for seed in seeds:
        for label in dict.fromkeys([*labels, "my own"]):
            better = 1.9 if "incorrect" in label else 1.0
            run = folder / f"seed{seed}" / label
            for step in (10, 20) if label in curves or "correct" in label or "unfiltered" in label else (None,):
                write_run(run / f"checkpoint-{step}" if step else run, label, seed,
                          rng.binomial(2, better / 2, 50).tolist(), decodings=("sampled", "greedy"),
                          tokens=(10 + seed % 2) * (1 + ("incorrect" in label)), markers=int(rng.integers(2)))
            row = dict(divergence=0.1, rollout_accuracy=0.5, key_token_share=0.1, weight_max=3.0,
                       effective_sample_size=20.0)
            if label.endswith(("correct", "unfiltered")):  # an arm of the filter study, of 8 draws
                row["success_counts"] = [8, 8, 7, 4] if label.endswith("-correct") else [0, 1, 2, 8]
            (run / "metrics.jsonl").write_text("".join(
                json.dumps(dict(row, step=step, seconds=0.5 + 0.01 * step,
                                weight_auc_wrong=None if step == 8 else 0.9 + 0.02 * (seed % 2))) + "\n"
                for step in range(1, 21)))
            (run / "config.json").write_text(json.dumps(dict(flags=dict(
                method="grpo" if label == "grpo" else "opd", iterations=2, success_draws=8))))
        for label in ("opd", "opsd"):
            with (folder / f"seed{seed}" / label / "rollouts.jsonl").open("w") as file:
                for _ in range(100):
                    right = bool(rng.integers(2))
                    weight = float(np.exp(rng.normal(0 if right else 1, 0.5)))
                    file.write(json.dumps(dict(
                        step=1, renio_weight=weight, right=right, truncated=False,
                        teacher_entropy=float(np.exp(rng.normal(0, 0.2))) / weight,
                        log_ratios=rng.normal(0, 1, 9).tolist())) + "\n")
