# SPDX-License-Identifier: MIT
"""Rollouts come from the model that is trained: greedy, in batches, by distribution, in bfloat16 with an adapter."""

import pytest
import torch
import transformers
from conftest import loud
from test_models import EXPERTS, WIDTHS
from transformers import TopKLogitsWarper, TopPLogitsWarper
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import renio
from renio import completion_hidden, draw_tokens, filter_logits, float32_logits, sample, token_logprobs

PROMPTS = [[3, 14, 20, 40, 4], [3, 15, 4], [3, 15, 21, 41, 16, 22, 42, 4]]
ENDS = list(range(20, 60))  # so many that rows end at different steps
DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
FAMILIES = {
    "Qwen3": {},
    "Gemma3Text": dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "Qwen3_5Text": dict(**DELTA, layer_types=["linear_attention", "full_attention"]),
    "Qwen3Next": EXPERTS
    | DELTA
    | dict(shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"]),
    "Lfm2": dict(layer_types=["conv", "full_attention"]),
    "Jamba": dict(attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=4),
}


def family(kind, **more):
    torch.manual_seed(0)
    shape = WIDTHS | FAMILIES[kind] | more
    if kind in ("Lfm2", "Jamba"):
        shape.pop("head_dim")
    shape = getattr(transformers, f"{kind}Config")(vocab_size=302, pad_token_id=0, eos_token_id=1, **shape)
    return loud(transformers.AutoModelForCausalLM.from_config(shape))


def completions_of(model, prompts, *settings, **more):
    found = dict(sample(model, prompts, *settings, **more))
    return [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_completions_are_those_of_generate_whatever_rows_have_ended(kind):
    """Alone and in a batch, of which ended rows are dropped on the way."""
    model, longest = family(kind), []
    for prompt in PROMPTS:
        longest.append(generated(model, prompt, 20))
    ends = [longest[0][3], longest[1][9]]
    expected = [cut(completion, ends) for completion in longest]
    assert len({len(completion) for completion in expected}) > 1
    assert [completions_of(model, [prompt], 20, ends, temperature=0)[0] for prompt in PROMPTS] == expected
    assert completions_of(model, PROMPTS * 3, 20, ends, temperature=0) == expected * 3


def generated(model, prompt, tokens):
    """The tokens with which transformers' own greedy search goes on."""
    ids = torch.tensor([prompt])
    words = dict(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **words)[0, len(prompt) :].tolist()


def cut(completion, ends):
    """The completion up to its first end."""
    return completion[: next((i for i, token in enumerate(completion) if token in ends), len(completion)) + 1]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_decoding_step_copies_no_keys_and_samples_the_same(kind, monkeypatch):
    """Two query heads share each of two key heads: transformers' own attention would repeat the keys for them."""
    sdpa, key_heads = torch.nn.functional.scaled_dot_product_attention, []
    model = family(kind, num_attention_heads=4, num_key_value_heads=2)

    def watched(query, key, *others, **named):
        key_heads.append(key.shape[1])
        return sdpa(query, key, *others, **named)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)
    expected = completions_of(model, PROMPTS * 3, 20, [59], seed=3)
    renio.tune("cpu")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert completions_of(model, PROMPTS * 3, 20, [59], seed=3) == expected
    layers = len(key_heads) // 20
    assert layers and set(key_heads[layers:]) == {2}  # the first step reads whole prompts


def test_completions_come_as_they_end_with_the_end_kept(model):
    found = list(sample(model, PROMPTS * 20, 30, ENDS, seed=1))
    lengths = [len(completion) for _, completion in found]
    assert lengths == sorted(lengths) and {i for i, _ in found} == set(range(60))
    for _, completion in found:
        assert not set(completion[:-1]) & set(ENDS)
        assert completion[-1] in ENDS or len(completion) == 30


def test_sampling_is_a_function_of_the_seed_and_differs_between_equal_prompts(model):
    draws = [completions_of(model, PROMPTS[:1] * 8, 10, [1], seed=seed) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(map(tuple, draws[0]))) > 4


@pytest.mark.parametrize("temperature, top_p, top_k", [(1.3, 1.0, 0), (1.0, 0.7, 0), (1.0, 1.0, 3), (0.8, 0.9, 9)])
def test_samples_follow_the_distribution_cut_as_transformers_cuts_it(model, temperature, top_p, top_k):
    n = 4000
    drawn = torch.tensor(completions_of(model, PROMPTS[:1] * n, 1, [-1], temperature, top_p, top_k)).flatten()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(PROMPTS[:1])).logits[:, -1] / temperature
    if top_k:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    probs = logits.softmax(-1)[0]
    frequency = torch.bincount(drawn, minlength=len(probs)) / n
    assert ((frequency - probs).abs() <= 5 * (probs / n).sqrt() + 2 / n).all() and (probs > 0.01).sum() > 2


def test_top_p_and_top_k_agree_with_transformers():
    for words, top_p, top_k in ((30, 0.9, 0), (30, 0.7, 5), (30, 1e-6, 0), (3000, 0.5, 0), (3000, 0.95, 0)):
        logits = torch.randn(50, words, generator=torch.Generator().manual_seed(0))
        # of 3,000 tokens the 1,000 likeliest hold the half, but not 0.95
        assert logits.softmax(-1).sort().values[:, -1000:].sum(-1).lt(0.95).all() == (words > 1000)
        expected = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
        torch.testing.assert_close(filter_logits(logits, top_p, top_k), TopPLogitsWarper(top_p)(None, expected))


@pytest.mark.parametrize("uniform, token", [(0.0, 2), (1 - 2**-53, 5)])  # the least and the most that torch.rand gives
def test_a_token_without_probability_is_never_drawn(monkeypatch, uniform, token):
    logits = torch.tensor([[0, 0, 1e-6, 0, 0.2, 0.8, 0]]).log()
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, uniform, dtype=torch.float64))
    assert draw_tokens(logits, 1.0, 1.0, 0, None).tolist() == [token]


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(dtype, size):
    """A loud Qwen3 of weights of one size, to which a LoRA adapter adds or takes off `size` of it everywhere."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(family("Qwen3").to(dtype), LoraConfig(r=1, lora_alpha=1, target_modules="all-linear"))
    with torch.no_grad():
        for layer in lora_layers(model):
            weight = layer.get_base_layer().weight
            weight.copy_(weight.sign() * 1.5 / 8)  # in the middle between two powers of two
            layer.lora_A["default"].weight.normal_().sign_()
            layer.lora_B["default"].weight.normal_().sign_().mul_(size * 1.5 / 8)
    return model


def lora_layers(model):
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def seen_by_sampler(model, monkeypatch, **settings):
    """Greedy completions, and the log-probabilities (tokens,) that the sampler saw for them."""
    seen = []
    monkeypatch.setattr(renio, "draw_tokens", lambda logits, *rest: seen.append(logits) or draw_tokens(logits, *rest))
    completions = completions_of(model, PROMPTS, 12, [-1], temperature=0, **settings)
    tokens = torch.tensor(completions)
    return completions, token_logprobs(torch.stack(seen, 1), tokens, 1.0).flatten()


@torch.no_grad()
def seen_by_trainer(model, completions):
    hidden, tokens = completion_hidden(model, PROMPTS, completions)
    return token_logprobs(float32_logits(hidden, renio.Head.of(model)), tokens, 1.0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_that_go_one_by_one_give_the_same_hidden_states_and_gradients_without_a_mask(kind, monkeypatch):
    model, masks = family(kind), []
    completions = [[20, 30], [40] * 9, [50]]
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *rows, **words: masks.append(words.get("attn_mask")) or attention(*rows, **words),
    )
    results = []
    for limit in (0.99, 0.1):  # a third of the batch is padding
        model.zero_grad()
        masks.clear()
        hidden, tokens = completion_hidden(model, PROMPTS, completions, padding_limit=limit)
        hidden.square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((hidden, tokens, gradients, [mask is None for mask in masks]))
    (together, tokens, gradients, plain), (alone, same_tokens, same_gradients, plain_alone) = results
    assert torch.equal(tokens, same_tokens) and not all(plain) and (all(plain_alone) or kind == "Gemma3Text")
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(same_gradients, gradients, atol=1e-4 * gradients.abs().max().item(), rtol=1e-3)


def test_in_bfloat16_an_update_too_small_to_merge_is_sampled_as_it_is_trained(monkeypatch):
    model = adapted(torch.bfloat16, 0.0025)  # half a unit in the last place is 0.0026 of a weight
    for layer in lora_layers(model):
        weight = layer.get_base_layer().weight
        assert torch.equal(
            weight + layer.get_delta_weight("default").to(weight.dtype), weight
        )  # merging would lose all of it
    completions, sampled = seen_by_sampler(model, monkeypatch)
    trained = seen_by_trainer(model, completions)
    with model.disable_adapter():
        base = seen_by_trainer(model, completions)
    error, change = (sampled - trained).square().mean().sqrt(), (base - trained).square().mean().sqrt()
    assert error < change / 2, (error, change)  # bfloat16 products differ between machines


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_leaves_the_weights_to_the_bit_and_agrees_with_generate(dtype, monkeypatch):
    model = adapted(dtype, 0.5).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    completions, sampled = seen_by_sampler(model, monkeypatch)
    assert model.training and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(layer.merged for layer in lora_layers(model))
    trained = seen_by_trainer(model, completions)
    torch.testing.assert_close(sampled, trained, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.15)
    with model.disable_adapter():
        assert (seen_by_trainer(model, completions) - trained).abs().max() > 1
    if dtype == torch.float32:
        model.eval()
        assert completions == [generated(model, prompt, 12) for prompt in PROMPTS]


def test_weights_come_back_when_a_caller_stops_early(model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    completions = sample(model, PROMPTS, 12, ENDS, seed=1)
    next(completions)
    completions.close()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
