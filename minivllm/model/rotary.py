"""Rotary position embedding: a token's position rotates its queries and keys, pair by pair.

Attention has no sense of order, so position must be put into the vectors. RoPE reads a head's numbers
`x[i]` and `x[i + d/2]` as a point in the plane and rotates it by the angle `position · w[i]`. The dot
product of a query rotated by `m·w` and a key rotated by `n·w` then depends on `m - n` only: distance,
not place. That is also why keys are cached *after* the rotation: it never changes again.

    w[i] = theta^(-2i/d):     i = 0  rotates 1 radian per token          (local order)
                              i = d/2 - 1  rotates once in ~2·pi·theta tokens   (far structure)

To read further than it was trained for, a model slows the rotation down; the recipes differ in which
pairs are slowed (`inverse_frequencies`) and in whether scores are sharpened (`attention_factor`). How long
a text each of them allows is said in `rope_config.py`.

Papers: RoFormer (arXiv 2104.09864); YaRN (2309.00071, section 3); Llama 3 (2407.21783); LongRoPE
(2402.13753).
Read next: `minivllm/model/layers.py`, where queries and keys are rotated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from minivllm.model.config import ModelConfig
from minivllm.model.rope_config import RopeConfig

TABLE_ROWS = 256
"""Positions whose angles are computed together."""


class RotaryEmbedding:
    """The angles of one model. Stateless but for `d/2` frequencies: no table that could be too short."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.inverse_frequencies = inverse_frequencies(config.rope, config.head_dim).to(device)
        self.attention_factor = attention_factor(config.rope)

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of `positions` [T], each [T, 1, head_dim], for `layers.rotate`.

        Computed once per step and shared by all layers. In float32 whatever the model's type, as in
        `transformers`: a bfloat16 position is wrong from token 257 on.
        """
        cos, sin = self._circle(positions)
        return _side_by_side(cos, cos, dtype), _side_by_side(-sin, sin, dtype)

    def table(self, length: int, dtype: torch.dtype) -> Tensor:
        """Cosines and sines of positions 0 … length - 1: [length, 2, head_dim / 2] in float32.

        Rounded as `angles` rounds them. A position's numbers do not depend on `length`: torch computes the
        last ones of an array in another way, so all arrays are of one size.
        """
        rows = torch.arange(TABLE_ROWS, device=self.inverse_frequencies.device)
        starts = range(0, max(1, length), TABLE_ROWS)
        pairs = torch.cat([torch.stack(self._circle(rows + start), dim=1) for start in starts])
        return pairs[:length].to(dtype).float()

    def _circle(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.inverse_frequencies  # [T, head_dim / 2]
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


class AngleTable:
    """Cosines and sines for our own kernels, kept from step to step; the table grows as sequences do."""

    def __init__(self, rotary: RotaryEmbedding, dtype: torch.dtype) -> None:
        self._rotary, self._dtype = rotary, dtype
        self._pairs = rotary.table(0, dtype).numpy()

    def upto(self, positions: Any) -> Any:
        """[at least the largest of `positions` + 1, 2, head_dim / 2], float32."""
        needed = int(positions.max(initial=-1)) + 1
        if needed > len(self._pairs):
            self._pairs = self._rotary.table(max(256, 2 * needed), self._dtype).numpy()
        return self._pairs


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per token of each pair, [head_dim / 2] in float32, bit for bit those of `transformers`."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    periods = rope.theta**exponents  # tokens per radian
    if rope.rope_type == "linear":  # every pair alike, as if the text were shorter
        return (1.0 / periods) / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(1.0 / periods, rope)
    if rope.rope_type == "yarn":
        return _yarn(periods, rope, head_dim)
    if rope.rope_type == "longrope":  # each pair by a number of its own, found by a search
        return 1.0 / (torch.tensor(rope.short_factor) * periods)
    return 1.0 / periods


def attention_factor(rope: RopeConfig) -> float:
    """What queries and keys are both scaled by: YaRN's `sqrt(1/t)` (equation 22), LongRoPE's, or 1."""
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.rope_type == "longrope":
        stretch = math.log(max(1.0, rope.factor)) / math.log(rope.original_max_position_embeddings)
        return math.sqrt(1 + stretch)

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Slow down pairs that rotate less than `low` times in the original context, keep those above `high`."""
    low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    is_slow = wavelengths > original / low
    is_between = (wavelengths >= original / high) & ~is_slow
    kept = (original / wavelengths - low) / (high - low)
    blend = (1 - kept) * frequencies / rope.factor + kept * frequencies
    return torch.where(is_between, blend, torch.where(is_slow, frequencies / rope.factor, frequencies))


def _yarn(periods: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """As `_llama3`, but with a ramp over the *index* of the pair instead of its wavelength."""

    def index_rotating(times: float) -> float:
        """The (fractional) pair that rotates `times` times within the original context."""
        ratio = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return (head_dim * math.log(ratio)) / (2 * math.log(rope.theta))

    low, high = index_rotating(rope.beta_fast), index_rotating(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp; only the division must survive
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return (1.0 / (rope.factor * periods)) * (1 - kept) + (1.0 / periods) * kept


def _side_by_side(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat((first, second), dim=-1)[:, None, :].to(dtype)
