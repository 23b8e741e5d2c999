# SPDX-License-Identifier: MIT
"""What the figures of an H200 let a step of the paper take, counted on paper.

    python tests/bench.py roofline     # prints this

OPSD: Qwen3-1.7B its own teacher       GB   TFLOP  seconds  bound by
  rollout                           4,245    35.5    0.884  memory
  teacher                              39    50.0    0.051  arithmetic
  student                              75    98.3    0.099  arithmetic
  loss, 64 rows a chunk               269    15.3    0.056  memory
  loss, 1,024 rows a chunk             45    15.3    0.015  arithmetic
  the step, with the larger chunks                   1.050
  the paper, with ReNIO and without                   4.59  4.61
OPD: Qwen3-1.7B from Qwen3-8B          GB   TFLOP  seconds  bound by
  rollout                           4,245    35.5    0.884  memory
  teacher                              70   146.1    0.148  arithmetic
  student                              75    98.3    0.099  arithmetic
  loss, 64 rows a chunk               349    20.4    0.073  memory
  loss, 1,024 rows a chunk             50    20.4    0.021  arithmetic
  the step, with the larger chunks                   1.152
  the paper, with ReNIO and without                   5.00  4.99

Assumed: 32 rollouts of 1,024 tokens on 4 H200 of 4.8 TB/s and 989 TFLOP/s (dense, bfloat16), so 8 a card, at once;
prompts of 256 tokens, 1,024 where the teacher's holds the solution; weights of 2 bytes; LoRA of rank 64 and gradient
checkpointing; each phase as fast as the slower of memory and arithmetic allows.
  rollout  per token all layers' and the head's weights are read once for the 8 rows, and keys and values of what stands
           before, on average the prompt and half of the completion; the prompts' own pass counts operations only
  teacher  one forward pass over prompts and completions; its head counts in the loss
  student  forward, again for checkpointing, and backward, which has no gradient of the frozen weights to compute
  loss     three matrix products: both heads, and the gradient of the hidden states; a chunk of rows reads the heads
           anew, and writes and reads both sides' logits and their gradient in float32
Not in the table: peft keeps the adapters of a bfloat16 model in float32, for which the card has 67 TFLOP/s without
TF32. Their 5.7 of the student's 98 TFLOP then take 0.085 s instead of 0.006, nearly as long as all the others.
Neglected: the optimizer (0.07 G adapter weights: 0.2 ms), summing gradients over the cards, norms, the launch of
kernels, and the weights of ReNIO, which take a few numbers a token from what the loss has at hand.
"""

from typing import NamedTuple

from renio import Qwen3Config, cache_bytes

QWEN3_1_7B = dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
                  num_key_value_heads=8, head_dim=128, vocab_size=151_936, tie_word_embeddings=True)
QWEN3_8B = dict(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, vocab_size=151_936, tie_word_embeddings=False)
PROMPT, SOLUTION_PROMPT = 256, 1024  # tokens
WIDTH = 2  # bytes of a weight
PAPER = {"opsd": (4.59, 4.61), "opd": (5.00, 4.99)}  # seconds a step with ReNIO and without: the paper's Figure 4


class Work(NamedTuple):
    """What a phase moves through memory and computes, and how long that takes at least."""

    bytes: float
    operations: float

    def seconds(self, bandwidth=4.8e12, speed=989e12):
        return max(self.bytes / bandwidth, self.operations / speed)

    def bound(self):
        return "memory" if self.seconds() > self.seconds(bandwidth=float("inf")) else "arithmetic"


def layer_matrices(shape):
    """Inputs and outputs of the seven matrices of a layer; shape: the config of a model of Qwen3's kind."""
    hidden, between = shape.hidden_size, shape.intermediate_size
    queries, keys = (heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    return [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
            (hidden, between), (hidden, between), (between, hidden)]


def layer_weights(shape):
    """Weights of all layers' matrices: the model without embeddings, head and norms."""
    return shape.num_hidden_layers * sum(i * o for i, o in layer_matrices(shape))


def adapter_weights(shape, rank):
    return shape.num_hidden_layers * rank * sum(i + o for i, o in layer_matrices(shape))


def head_weights(shape):
    return shape.vocab_size * shape.hidden_size


def attention_operations(shape, pairs):
    """Of products with keys and values, a multiplication and an addition each, for so many pairs of a token and one
    that it sees."""
    return 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * pairs


def forward(shape, rows, length):
    """The layers' forward pass over `rows` sequences of `length` tokens."""
    tokens, matrices = rows * length, layer_matrices(shape)
    moved = layer_weights(shape) + tokens * shape.num_hidden_layers * sum(i + o for i, o in matrices)
    return Work(WIDTH * moved, 2 * layer_weights(shape) * tokens + attention_operations(shape, rows * length**2 / 2))


def training(shape, rows, length, rank):
    """Forward, recomputed forward and backward with adapters; attention's backward pass is two of its forward pass."""
    once, tokens = forward(shape, rows, length), rows * length
    attention = attention_operations(shape, rows * length**2 / 2)
    adapters = 2 * adapter_weights(shape, rank) * tokens
    # of the adapters backward computes two gradients: their own and that of their inputs
    return Work(3 * once.bytes, 3 * once.operations + attention + (1 + 1 + 2) * adapters)


def rollout(shape, rows, prompt, new_tokens):
    """Decoding with a cache of keys and values."""
    seen = rows * (prompt + new_tokens / 2)  # tokens in the cache at the middle of the completions
    weights = layer_weights(shape) + head_weights(shape)
    operations = 2 * weights * rows + attention_operations(shape, seen)
    return Work(new_tokens * (WIDTH * weights + seen * cache_bytes(shape, WIDTH)),
                new_tokens * operations + forward(shape, rows, prompt).operations)


def loss(student, teacher, tokens, chunk):
    """The divergence of so many tokens and its gradient, `chunk` of them at a time; the student's head is frozen."""
    weights = 2 * head_weights(student) + head_weights(teacher)
    logits = tokens * student.vocab_size * 4
    return Work(-(-tokens // chunk) * weights * WIDTH + 3 * 2 * logits, 2 * weights * tokens)


def paper_step(method, rows=8, new_tokens=1024, rank=64, chunk=1024):
    """The phases of one card's part of a step, each a Work."""
    student = Qwen3Config(**QWEN3_1_7B)
    teacher, prompt = (student, SOLUTION_PROMPT) if method == "opsd" else (Qwen3Config(**QWEN3_8B), PROMPT)
    return dict(rollout=rollout(student, rows, PROMPT, new_tokens),
                teacher=forward(teacher, rows, prompt + new_tokens),
                student=training(student, rows, PROMPT + new_tokens, rank),
                loss=loss(student, teacher, rows * new_tokens, chunk))


def table():
    lines = []
    for method, title in (("opsd", "OPSD: Qwen3-1.7B its own teacher"), ("opd", "OPD: Qwen3-1.7B from Qwen3-8B")):
        phases = paper_step(method)
        total = sum(work.seconds() for work in phases.values())
        phases["loss, 64 rows a chunk"] = paper_step(method, chunk=64)["loss"]
        phases["loss, 1,024 rows a chunk"] = phases.pop("loss")
        lines.append(f"{title:34} {'GB':>6} {'TFLOP':>7} {'seconds':>8}  bound by")
        for name, work in phases.items():
            lines.append(f"  {name:32} {work.bytes / 1e9:6,.0f} {work.operations / 1e12:7.1f} {work.seconds():8.3f}  "
                         + work.bound())
        lines.append(f"  {'the step, with the larger chunks':47} {total:8.3f}")
        lines.append(f"  {'the paper, with ReNIO and without':47} {PAPER[method][0]:8.2f}  {PAPER[method][1]:.2f}")
    return "\n".join(lines)
