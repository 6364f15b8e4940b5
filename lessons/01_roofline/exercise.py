"""The roofline: how much a step computes, how much memory it moves, and which of the two it waits for.

One weight takes part in one multiplication and one addition (a MAC: 2 FLOP) for every token, and is read from
memory once a step, however many tokens there are. So the FLOP for each byte, the *intensity*, say what limits
a step:

    FLOP/s │        ________ peak         a device of 100 GFLOP/s and 20 GB/s, weights of 2 bytes:
           │      ╱│                         1 token    1 FLOP for each byte    at most  20 GFLOP/s
           │    ╱  │                         5 tokens   5 (the ridge)           at most 100 GFLOP/s
           │  ╱    │ ridge                 500 tokens 500                       at most 100 GFLOP/s
           └──────────────── FLOP per byte

Counted are the matrix products and attention. What is not counted: the embedding (a look-up), norms, rotary
embedding and softmax (few FLOP), and the activations between the layers (few bytes, mostly in caches).

Source: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
Architectures" (CACM 2009). In the engine: minivllm/trace/work.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Model(NamedTuple):
    """The shape of a decoder like Llama's. All are whole numbers.

    One layer multiplies with seven matrices (inputs × outputs), where
    heads = num_heads · head_dim and kv_heads = num_kv_heads · head_dim:

        query        hidden_size × heads            gate   hidden_size × intermediate_size
        key, value   hidden_size × kv_heads, each   up     hidden_size × intermediate_size
        output       heads × hidden_size            down   intermediate_size × hidden_size

    After the last layer, one more makes logits: hidden_size × vocab_size.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    bytes_per_weight: int
    bytes_per_kv: int
    """Of each number in the KV cache."""


class Device(NamedTuple):
    """What a device can do at most; both above zero."""

    peak_flops: float
    """FLOP in a second."""
    memory_bandwidth: float
    """Bytes in a second."""


@dataclass(frozen=True)
class Cost:
    """What some work takes: whole numbers, exact, however large."""

    flops: int
    num_bytes: int
    """Moved between memory and processor, reads and writes."""

    @property
    def intensity(self) -> float:
        """FLOP for each byte; 0.0 if no byte is moved."""
        raise NotImplementedError

    # given
    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.num_bytes + other.num_bytes)


class StepCost(NamedTuple):
    """A step in two parts, which a device does one after the other."""

    linear: Cost
    """The matrix products: all layers, and the logits."""
    attention: Cost

    # given
    @property
    def total(self) -> Cost:
        return self.linear + self.attention


def matrix_cost(num_tokens: int, num_inputs: int, num_outputs: int, bytes_per_weight: int) -> Cost:
    """Multiply `num_tokens` rows of `num_inputs` numbers with a matrix of so many inputs × outputs.

    The bytes are those of the weights, each read once. Without a token nothing is read. Rows that go in and
    come out are not counted.
    """
    raise NotImplementedError


def linear_cost(model: Model, num_tokens: int, num_logit_rows: int) -> Cost:
    """All matrix products of a step: every layer for `num_tokens`, logits for `num_logit_rows` of them."""
    raise NotImplementedError


def attention_cost(model: Model, num_computed_tokens: int, num_new_tokens: int) -> Cost:
    """Attention of one sequence in one step, in all layers.

    `num_computed_tokens` have their keys and values in the cache; `num_new_tokens` (at least 1) are computed
    in this step. Each new token looks at all tokens before it and at itself: for every query head a score is
    the product of two vectors of head_dim numbers, and then a value of head_dim numbers is multiplied with
    the score and added up. The bytes are those of the keys and values: of the new tokens each is written
    once, and then of the whole context, the new tokens included, each is read once.
    """
    raise NotImplementedError


def cost(model: Model, batch: Iterable[tuple[int, int]]) -> StepCost:
    """What one step costs that computes a batch: `(num_computed_tokens, num_new_tokens)` for each sequence.

    All sequences share the reading of the weights; none shares keys and values with another one. Logits are
    made for the last token of each sequence. A step with an empty batch costs nothing.

    Raises:
        ValueError: a sequence has no new token, or fewer computed ones than none.
    """
    raise NotImplementedError


def ridge_point(device: Device) -> float:
    """The intensity from which on arithmetic is the limit, and memory no longer."""
    raise NotImplementedError


def attainable(intensity: float, device: Device) -> float:
    """The roof: most FLOP/s at this intensity."""
    raise NotImplementedError


def seconds(step: StepCost, device: Device) -> float:
    """The least time of a step. Each part computes and reads at once, and waits for the slower of the two."""
    raise NotImplementedError


def tokens_at_ridge(device: Device, bytes_per_weight: int) -> int:
    """Fewest tokens of a step with which multiplying takes at least as long as reading the weights.

    Where the two differ by no more than a rounding, either answer will do.
    """
    raise NotImplementedError
