"""Weights in 8-bit floats (e4m3), each block of them with a scale: the one form of all FP8 formats.

    value = number · scale of its block          e4m3: a sign, 4 bits of exponent, 3 of mantissa; up to 448

    block               compressed-tensors     quant_method: fp8      scales in the file
    ─────────────────   ────────────────────   ───────────────────    ────────────────────────────────────────
    all of the matrix   tensor                 per tensor             weight_scale [1] or no shape
    one output          channel                –                      weight_scale [out, 1] or [out]
    128 × 128           block                  weight_block_size      weight_scale, weight_scale_inv
                                                                      [⌈out / 128⌉, ⌈in / 128⌉]

`weight_scale_inv`, despite its name, multiplies as well. Blocks at the edges may be smaller.

Sources: compressed-tensors 0.19 `compressors/naive_quantized`; DeepSeek-V3 (arXiv 2412.19437, section 3.3);
the type is that of Micikevicius et al. (arXiv 2209.05433).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3."""
SCALE, SCALE_INV = "weight_scale", "weight_scale_inv"


@dataclass(frozen=True)
class Float8Weights:
    """A matrix [out, in] of e4m3 numbers.

    Attributes:
        numbers: float8_e4m3fn [out, in].
        scales: float32 [⌈out / block[0]⌉, ⌈in / block[1]⌉].
        block: outputs and inputs that share a scale.
    """

    numbers: Tensor
    scales: Tensor
    block: tuple[int, int]

    def dense(self) -> Tensor:
        """The values, float32 [out, in]."""
        num_outputs, num_inputs = self.numbers.shape
        rows, columns = self.block
        scales = self.scales.repeat_interleave(rows, 0)[:num_outputs]
        return self.numbers.float() * scales.repeat_interleave(columns, 1)[:, :num_inputs]


def unpack(tensors: Mapping[str, Tensor], block: tuple[int, int] | None = None) -> Float8Weights:
    """The weights in a layer's tensors "weight" and one of `SCALE`, `SCALE_INV`.

    Args:
        block: outputs and inputs that share a scale; if None, there is one scale for all, or one for each
            output: how many there are says which.
    """
    numbers = tensors["weight"]
    scales = tensors[SCALE_INV if SCALE_INV in tensors else SCALE].float()
    num_outputs, num_inputs = numbers.shape
    if block is None:
        is_by_output = scales.numel() == num_outputs and (scales.dim() == 2 or num_outputs > 1)
        block = (1 if is_by_output else num_outputs), num_inputs
    rows, columns = block
    return Float8Weights(numbers, scales.reshape(-(-num_outputs // rows), -(-num_inputs // columns)), block)


def pack(
    weights: Float8Weights, *, scale_name: str = SCALE, scale_dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The inverse of `unpack`: a layer's tensors by name. A single scale has the shape [1]."""
    scales = weights.scales.to(scale_dtype)
    is_single = weights.block[0] >= len(weights.numbers) and scales.numel() == 1
    return {"weight": weights.numbers, scale_name: scales.reshape(1) if is_single else scales}


def round_to_float8(weight: Tensor, block: tuple[int, int]) -> Float8Weights:
    """Each block's largest number becomes 448, the others are rounded to the nearest. `block` as above."""
    num_outputs, num_inputs = weight.shape
    rows, columns = min(block[0], num_outputs), min(block[1], num_inputs)
    down, across = -(-num_outputs // rows), -(-num_inputs // columns)
    padded = torch.nn.functional.pad(
        weight.float(), (0, across * columns - num_inputs, 0, down * rows - num_outputs)
    )
    blocks = padded.reshape(down, rows, across, columns)
    largest = blocks.abs().amax(dim=(1, 3))
    scales = torch.where(largest == 0, 1.0, largest / LARGEST)
    scaled = (blocks / scales[:, None, :, None]).clamp(-LARGEST, LARGEST)
    numbers = scaled.flatten(2).flatten(0, 1)[:num_outputs, :num_inputs].to(E4M3)
    return Float8Weights(numbers, scales, (rows, columns))
