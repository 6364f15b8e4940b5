"""How keys and values are kept: as they are, or in 8 bits (`kv_cache_dtype`).

    name                     a head of a token is kept as                             bytes, d numbers
    ──────────────────────   ──────────────────────────────────────────────────────   ────────────────
    auto                     d numbers of the model's type                            4d, or 2d
    int8_per_token_head      d whole numbers and their own scale, max|x| / 127        d + 4
    fp8, fp8_e4m3            d floats of 8 bits: 4 of exponent, 3 of mantissa         d

The scale of `int8_per_token_head` is made of the very numbers that it is for, when they are written. So there
is nothing to calibrate, and what is kept of a token depends on that token alone: not on what is computed with
it, nor on what was in the block before. `fp8` has one scale for all keys of a layer and one for its values;
the checkpoint says them (`minivllm/model/quantization/kv_scales.py`), or they are 1.

These are the plain twins of what kernels do in registers. Whole numbers are the same in every bit, whatever
makes them: each operation here is rounded by itself, in float32, and none is fused with another.

Source: vLLM, `v1/attention/ops/triton_reshape_and_cache_flash.py`; Micikevicius et al., "FP8 Formats for Deep
Learning" (2022), for e4m3.
Read next: `quantized_storage.py`, where the numbers go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minivllm.config import KV_CACHE_DTYPES
from minivllm.model.decoder import KVScales
from minivllm.validation import check_choice

logger = logging.getLogger("minivllm")

AUTO, INT8, FP8 = "auto", "int8_per_token_head", "fp8"
INT8_LARGEST = 127.0
LEAST_SCALE = 1e-6
"""So that a head of zeros can be divided by its scale."""
FP8_LARGEST = 448.0


class KVFormat(NamedTuple):
    """What a cache of one kind takes."""

    cells: torch.dtype | None
    """Type of what is kept; None: the model's. 8-bit floats are bytes, as arrays know no such type."""
    scale_bytes: int
    """For each head of a token, beside its numbers."""

    def bytes_per_head(self, head_dim: int, dtype: torch.dtype) -> int:
        """Of one key, or one value, of one token."""
        return head_dim * (self.cells or dtype).itemsize + self.scale_bytes


FORMATS = {AUTO: KVFormat(None, 0), INT8: KVFormat(torch.int8, 4), FP8: KVFormat(torch.uint8, 0)}


def canonical(kv_cache_dtype: str) -> str:
    """Its one name; `ValueError`, with the list, if there is no such kind of cache."""
    check_choice("kv_cache_dtype", kv_cache_dtype, KV_CACHE_DTYPES)
    return FP8 if kv_cache_dtype == "fp8_e4m3" else kv_cache_dtype


def scales_of_layers(kv_cache_dtype: str, of_checkpoint: Sequence[KVScales | None]) -> tuple[KVScales, ...]:
    """For each layer what its keys and values are divided by: what the checkpoint says, or 1."""
    if canonical(kv_cache_dtype) == FP8 and None in of_checkpoint:
        logger.warning(
            "kv_cache_dtype %r: the checkpoint has no k_scale and v_scale for %d of its %d layers, so they "
            "are taken as 1: keys and values beyond ±%.0f are clipped. %r needs no scales",
            kv_cache_dtype,
            sum(scales is None for scales in of_checkpoint),
            len(of_checkpoint),
            FP8_LARGEST,
            INT8,
        )
    return tuple(scales or KVScales(1.0, 1.0) for scales in of_checkpoint)


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [.., d] for `rows` [.., d], rounded half away from zero, and their scales [..]."""
    wide = rows.to(torch.float32)
    largest = wide.abs().amax(-1)
    # By a tensor: torch divides by a number on a GPU as it would multiply by 1 / 127.
    scales = (largest / torch.full_like(largest, INT8_LARGEST)).clamp_min(LEAST_SCALE)
    steps = wide / scales[..., None]
    rounded = (steps + torch.full_like(steps, 0.5).copysign(steps)).trunc()
    return rounded.clamp(-INT8_LARGEST - 1, INT8_LARGEST).to(torch.int8), scales


def from_int8(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """`out` [.., d] becomes what `codes` [.., d] with `scales` [..] stand for."""
    torch.mul(codes, scales[..., None], out=out)


def to_fp8(rows: Tensor, scale: float) -> Tensor:
    """Bytes for `rows`: the nearest of e4m3, ties to even. What is beyond the largest becomes the largest."""
    steps = rows.to(torch.float32) / torch.full((), scale, dtype=torch.float32, device=rows.device)
    return steps.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)


def from_fp8(codes: Tensor, scale: float, out: Tensor) -> None:
    """`out` becomes what the bytes stand for."""
    torch.mul(codes.view(torch.float8_e4m3fn).to(torch.float32), scale, out=out)
