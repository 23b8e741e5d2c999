# SPDX-License-Identifier: MIT
"""Which models train: families of transformers, adapters as teacher, and what is refused in one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import assert_equal, run, save

import renio

WIDTHS = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
WIDTHS |= dict(head_dim=16, max_position_embeddings=128)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MAMBA = dict(hidden_size=32, num_hidden_layers=2, state_size=4)


def make(folder, tokenizer, kind, ends=range(2, 60), **shape):
    """Write a tiny random model that ends at many tokens; returns its folder's name."""
    torch.manual_seed(0)
    shape = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **shape)
    model = transformers.AutoModelForCausalLM.from_config(shape)
    model.generation_config.eos_token_id = list(ends)
    return save(model, folder, tokenizer)


def refused(folder, words):
    """The one line with which a run ends before its first step."""
    with pytest.raises(SystemExit) as error:
        run(folder, words)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert not Path(folder, "metrics.jsonl").exists()
    return str(error.value)


@pytest.mark.parametrize(
    "kind, shape",
    [
        ("GPTJ", dict(n_embd=32, n_layer=2, n_head=2, n_positions=64, rotary_dim=8)),
        ("Bloom", dict(hidden_size=32, n_layer=2, n_head=2)),
        ("Mpt", dict(d_model=32, n_layers=2, n_heads=2, max_seq_len=64)),
    ],
)
def test_models_without_sdpa_train(tmp_path, tokenizer, kind, shape):
    assert (
        len(run(tmp_path / "run", f"--method opsd --model {make(tmp_path / 'm', tokenizer, kind, **shape)}").metrics)
        == 2
    )


def test_an_adapter_of_experts_trains_samples_and_resumes(tmp_path, tokenizer):
    model = make(tmp_path / "m", tokenizer, "Qwen3Moe", **WIDTHS, **EXPERTS)
    words = f"--method opsd --model {model} --lora_r 4 --learning_rate 0.02 --save_steps 1 --save_rollouts True"
    whole = run(tmp_path / "whole", words)
    assert any(".experts." in name and weight.any() for name, weight in whole.weights.items())
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-2")
    assert_equal(run(tmp_path / "resumed", words + " --resume"), whole)
    # the sampler merges the adapter, the trainer does not: greedy completions are the trainer's
    adapted = renio.load_model(str(tmp_path / "whole" / "final"))
    [(_, completion)] = renio.sample(adapted, [[3, 14, 20, 4]], 12, [-1], temperature=0)
    hidden, _ = renio.completion_hidden(adapted, [[3, 14, 20, 4]], [completion])
    assert renio.float32_logits(hidden, renio.Head.of(adapted)).argmax(-1).tolist() == completion


@pytest.mark.parametrize(
    "kind, shape, message",
    [
        (
            "FalconH1",
            WIDTHS | dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, lm_head_multiplier=0.5),
            "its head",
        ),
        ("Gemma2", WIDTHS | dict(final_logit_softcapping=0.5), "its head does more than multiply and add"),
        ("Granite", WIDTHS | dict(logits_scaling=4.0), "its head does more than multiply and add"),
        ("Mamba", MAMBA, "not a decoder with a cache"),
        ("Mamba2", MAMBA | dict(num_heads=4, head_dim=16, n_groups=1), "not a decoder with a cache"),
        (
            "GPT2",
            dict(n_embd=32, n_layer=2, n_head=2, n_positions=16),
            "prompt and rollout make .*; the model knows 16",
        ),
    ],
)
def test_models_that_would_train_something_else_are_refused(tmp_path, tokenizer, kind, shape, message):
    shape.pop("head_dim", None) if kind == "Granite" else None
    model = make(tmp_path / "m", tokenizer, kind, **shape)
    for method in ("opsd", f"opd --teacher {model} --beta 1"):
        assert re.search(message, refused(tmp_path / "run", f"--method {method} --model {model}"))


def test_a_nested_configuration_with_capped_logits_is_refused(tmp_path, tokenizer):
    text = WIDTHS | dict(vocab_size=len(tokenizer), final_logit_softcapping=0.5, num_kv_shared_layers=0)
    shape = transformers.Gemma3nTextConfig(
        **text,
        vocab_size_per_layer_input=len(tokenizer),
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )
    model = save(transformers.AutoModelForCausalLM.from_config(shape), tmp_path / "m", tokenizer)
    assert "its head does more than multiply and add" in refused(tmp_path / "run", f"--method opsd --model {model}")


def test_dropout_is_off_in_training(tmp_path, tokenizer):
    model = make(tmp_path / "m", tokenizer, "Qwen3", **WIDTHS, attention_dropout=0.5)
    gpt2 = dict(n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    for folder in (model, make(tmp_path / "gpt2", tokenizer, "GPT2", **gpt2)):
        student = renio.load_model(folder).train()
        one, other = (student(input_ids=torch.tensor([[3, 14, 20, 4]])).logits for _ in range(2))
        assert torch.equal(one, other)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, micro_model):
    """The folder final/ of a LoRA run that moved its model."""
    folder = tmp_path_factory.mktemp("adapter")
    run(folder, f"--method opsd --model {micro_model} --lora_r 4 --learning_rate 0.05")
    return str(folder / "final")


def test_an_adapter_is_refused_as_model_and_its_base_is_named(tmp_path, adapter, micro_model):
    line = refused(tmp_path, f"--method opsd --model {adapter}")
    assert f"--model {adapter}: holds an adapter" in line and f"--model {micro_model}" in line


def test_an_adapter_teaches_as_its_base_with_it_merged(tmp_path, adapter, micro_model, tokenizer):
    merged = renio.load_model(adapter).merge_and_unload()
    save(merged, tmp_path / "merged", tokenizer)
    for method in ("opd", "opd --lora_r 2"):
        found = []
        for teacher in (adapter, tmp_path / "merged"):
            words = f"--method {method} --model {micro_model} --teacher {teacher} --beta 0.3"
            found.append(run(tmp_path / f"{method}-{len(found)}", words).metrics)
        assert found[0][0]["loss"] == pytest.approx(found[1][0]["loss"], rel=1e-4) and found[0][0]["loss"] > 0.1


def test_an_adapter_of_another_model_is_refused(tmp_path, adapter, micro_model, tokenizer):
    wide = save(renio.init_model("init:micro-teacher", tokenizer, 0), tmp_path / "wide", tokenizer)
    shutil.copytree(adapter, tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = wide
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(settings))
    line = refused(tmp_path / "run", f"--method opd --model {micro_model} --teacher {tmp_path / 'other'}")
    assert f"no model can be loaded from {tmp_path / 'other'}: " in line


# --- folders ----------------------------------------------------------------------------------------------------------


def spoil(folder, name, change):
    """Change a file of a copied model's folder; None removes the file."""
    path = folder / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()


def without(key):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key}).encode()


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("config.json", None, "no (model|tokenizer) can be loaded from"),
        ("model.safetensors", None, "no model can be loaded from"),
        ("model.safetensors", lambda content: content[: len(content) // 2], "no model can be loaded from"),
        ("tokenizer.json", None, "no tokenizer can be loaded from"),
        ("chat_template.jinja", None, "has no chat template: use an instruct model"),
        ("chat_template.jinja", lambda text: b"{{ raise_exception('no') }}", "the chat template of .* fails: no"),
        ("chat_template.jinja", lambda text: b"<user> <assistant>", "drops the problem from the prompt"),
        ("tokenizer_config.json", without("eos_token"), "has no end token, so no rollout could end"),
    ],
)
def test_a_folder_that_lacks_something_is_named(tmp_path, micro_model, name, change, message):
    shutil.copytree(micro_model, tmp_path / "model")
    spoil(tmp_path / "model", name, change)
    line = refused(tmp_path / "run", f"--method opsd --model {tmp_path / 'model'}")
    assert re.search(message, line) and str(tmp_path / "model") in line


def test_pickled_weights_are_not_loaded(tmp_path, micro_model):
    shutil.copytree(micro_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(renio.load_model(micro_model).state_dict(), tmp_path / "model" / "pytorch_model.bin")
    assert "no model can be loaded" in refused(tmp_path / "run", f"--method opsd --model {tmp_path / 'model'}")


def test_a_missing_local_folder_is_called_missing_and_spoils_nothing(tmp_path, micro_model):
    for name in (tmp_path / "nowhere", "./nowhere", "runs/base/nowhere"):
        assert f"{name}: no such folder" in refused(tmp_path / "run", f"--method opsd --model {name}")
        assert f"{name}: no such folder" in refused(
            tmp_path / "run", f"--method opd --model {micro_model} --teacher {name}"
        )
    run(tmp_path / "run", f"--method opsd --model {micro_model}")


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path, micro_model):
    shutil.copytree(micro_model, tmp_path / "model")
    spoil(tmp_path / "model", "tokenizer_config.json", without("pad_token"))
    assert renio.load_tokenizer(str(tmp_path / "model")).pad_token == "<eos>"
    assert len(run(tmp_path / "run", f"--method opsd --model {tmp_path / 'model'}").metrics) == 2


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path, tokenizer):
    shape = transformers.Qwen3Config(vocab_size=len(tokenizer) - 1, **WIDTHS)
    model = save(transformers.Qwen3ForCausalLM(shape), tmp_path / "m", tokenizer)
    assert f"{len(tokenizer)} tokens, but an embedding of" in refused(
        tmp_path / "run", f"--method opsd --model {model}"
    )


def test_a_teacher_with_a_larger_embedding_than_the_tokenizer_teaches(tmp_path, tokenizer, micro_model):
    shape = transformers.Qwen3Config(vocab_size=len(tokenizer) + 7, **WIDTHS)
    teacher = save(transformers.Qwen3ForCausalLM(shape), tmp_path / "m", tokenizer)
    run(tmp_path / "run", f"--method opd --model {micro_model} --teacher {teacher}")


def test_different_vocabularies_are_refused_by_their_first_token(tmp_path, micro_model):
    shutil.copytree(micro_model, tmp_path / "other")
    spoil(tmp_path / "other", "tokenizer.json", lambda text: text.replace(b'"wait"', b'"hold"'))
    line = refused(tmp_path / "run", f"--method opd --model {micro_model} --teacher {tmp_path / 'other'}")
    assert "not the student's vocabulary; they differ in 'hold'" in line


def test_a_teacher_that_is_the_student_on_the_same_prompt_is_refused(tmp_path, micro_model):
    same_prompt = "--teacher_thinking False"
    for words in ("opsd --privileged False", f"opd --teacher {micro_model}", f"opd --teacher {micro_model}/"):
        line = refused(tmp_path, f"--method {words} {same_prompt} --model {micro_model}")
        assert "nothing to learn" in line, words
    run(tmp_path, f"--method opd --teacher {micro_model} --model {micro_model} --privileged True")


def test_end_tokens_of_the_teacher_that_differ_are_warned_of(tmp_path, micro_model, capsys):
    shutil.copytree(micro_model, tmp_path / "other")
    spoil(tmp_path / "other", "generation_config.json", lambda _: b'{"eos_token_id": [1, 9]}')
    run(tmp_path / "run", f"--method opd --model {micro_model} --teacher {tmp_path / 'other'}")
    assert "warning: end tokens differ, student [1], teacher [1, 9]" in capsys.readouterr().out


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cuda, nodes, visible, expected",
    [(True, True, None, "cuda"), (False, False, None, "cpu"), (False, True, "", "cpu"), (False, True, None, None)],
)
def test_a_gpu_that_torch_cannot_use_is_never_replaced_silently(monkeypatch, cuda, nodes, visible, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(renio.Path, "glob", lambda *_: iter(["/dev/nvidia0"] * nodes))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if expected:
        assert renio.pick_device() == expected
    else:
        with pytest.raises(renio.UserError, match="torch .* can.t use"):
            renio.pick_device()
