"""Padding, for the sake of comparison: rows that are computed and thrown away.

A static batch is a rectangle, and what its requests do not fill is computed all the same. In a plan that is
`num_padding_tokens`; here they become rows of token 0 behind the real ones. They go through every linear
layer, as they would in a padded batch, and never near the cache: attention sees the real rows only.

Read next: `minivllm/scheduling/static_batching.py`, which makes such plans.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional


def pad_rows(rows: Tensor, num_padding: int) -> Tensor:
    """`rows` [T] with `num_padding` zeros behind them."""
    return functional.pad(rows, (0, num_padding))


class AttentionWithoutPadding:
    """An attention backend for T real rows of T + `num_padding`; the others attend to nothing."""

    def __init__(self, attention: Any, num_tokens: int, num_padding: int) -> None:
        self.attention = attention
        self.num_tokens = num_tokens
        self.num_padding = num_padding

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        real = slice(self.num_tokens)
        attended: Tensor = self.attention(layer, query[real], key[real], value[real])
        return functional.pad(attended, (0, 0, 0, 0, 0, self.num_padding))

    def projected(self, layer: int, qkv: Tensor, rotation: Any) -> Tensor:
        attended: Tensor = self.attention.projected(layer, qkv[: self.num_tokens], rotation)
        return functional.pad(attended, (0, 0, 0, 0, 0, self.num_padding))
