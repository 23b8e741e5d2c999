# SPDX-License-Identifier: MIT
"""The roofline's arithmetic: by hand, and against models and torch's own count."""

import pytest
import roofline
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

import renio

SMALL = dict(hidden_size=8, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             head_dim=4, vocab_size=50)


def test_the_roofline_by_hand():
    shape = Qwen3Config(**SMALL)
    # a layer: queries and their way back 8 x 16 each, keys and values 8 x 8 each, three of 8 x 20
    assert roofline.layer_weights(shape) == 3 * (2 * 128 + 2 * 64 + 3 * 160) == 2592
    assert roofline.adapter_weights(shape, 2) == 3 * 2 * (2 * 24 + 2 * 16 + 3 * 28) == 984
    # 2 rows of 10 tokens; a token sees 5 on average, 4 heads of 4 numbers, products with keys and with values
    moved, attention = 2 * (2592 + 20 * 3 * 164), 4 * 3 * 16 * 20 * 5
    assert roofline.forward(shape, 2, 10) == (moved, 2 * 2592 * 20 + attention)
    # thrice the layers' products, four times those of attention; adapters forward, again, and twice backward
    assert roofline.training(shape, 2, 10, 2) == (3 * moved, 6 * 2592 * 20 + 4 * attention + 4 * 2 * 984 * 20)
    # 6 tokens after 4: 7 in the cache at the middle, 96 bytes each; layers and head are read for every token
    assert roofline.rollout(shape, 2, 4, 6) == (
        6 * (2 * (2592 + 400) + 2 * 7 * 96), 6 * (2 * (2592 + 400) * 2 + 4 * 3 * 16 * 2 * 7)
        + 2 * 2592 * 8 + 4 * 3 * 16 * 8 * 2)
    # 5 chunks read 3 heads; 20 rows of 50 logits of 4 bytes, three kinds, written and read
    assert roofline.loss(shape, shape, 20, 4) == (5 * 3 * 400 * 2 + 20 * 50 * 4 * 6, 3 * 2 * 400 * 20)


def test_a_phase_takes_as_long_as_the_slower_of_memory_and_arithmetic():
    reads, computes = roofline.Work(bytes=4.8e12, operations=1e12), roofline.Work(bytes=2.4e12, operations=989e12)
    assert (reads.seconds(), reads.bound()) == (1.0, "memory")
    assert (computes.seconds(), computes.bound()) == (1.0, "arithmetic")
    assert reads.seconds(bandwidth=2.4e12) == 2.0


@pytest.mark.parametrize("dimensions, billions", [(roofline.QWEN3_1_7B, 1.72), (roofline.QWEN3_8B, 8.19)])
def test_the_counted_weights_are_those_of_the_models(dimensions, billions):
    shape = Qwen3Config(**dimensions)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(shape)
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.dim() == 2}
    layers = sum(n for name, n in matrices.items() if ".layers." in name)
    assert roofline.layer_weights(shape) == layers
    assert roofline.head_weights(shape) == model.lm_head.weight.numel()
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)  # of the model cards


def test_the_counted_operations_are_those_that_torch_counts(config, tmp_path):
    Qwen3ForCausalLM(Qwen3Config(**SMALL, pad_token_id=0, eos_token_id=1)).save_pretrained(tmp_path)
    renio.arith_tokenizer().save_pretrained(tmp_path)
    student, _ = renio.load_student(config("--method", "opsd", "--model", tmp_path, "--lora_r", 2,
                                           "--gradient_checkpointing", True), "cpu")
    student.set_attn_implementation("eager")  # torch counts its products, of every token with every other
    student.train()
    ids = torch.zeros(2, 10, dtype=torch.long)
    shape, unmasked = student.config, roofline.attention_operations(student.config, 2 * 10**2 / 2)
    with FlopCounterMode(display=False) as counted, torch.no_grad(), student.disable_adapter():
        renio.decoder_of(student)(ids)
    once = roofline.forward(shape, 2, 10).operations + unmasked
    assert counted.get_total_flops() == pytest.approx(once, rel=0.005)  # it counts the angles of the positions too
    with FlopCounterMode(display=False) as counted:
        renio.decoder_of(student)(ids, use_cache=False).last_hidden_state.sum().backward()
    whole = roofline.training(shape, 2, 10, 2).operations + 4 * unmasked
    assert counted.get_total_flops() == pytest.approx(whole, rel=0.01)


def test_the_documented_table_is_the_computed_one():
    assert roofline.table() in roofline.__doc__
