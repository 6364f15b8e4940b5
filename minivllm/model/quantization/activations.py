"""Activations rounded to 8 bits before they are multiplied: the second 8 of "W8A8".

    dynamic   each token by its own largest number     x ──► round(x / s), s = max|x| / 127
              or between its smallest and largest       x ──► round(x / s) + z, s = (max − min) / 255
    static    all by numbers of the checkpoint          x ──► round(x / input_scale) (+ input_zero_point)

What is returned is what the codes stand for, in float32: products with it are those of whole numbers, times
the scales. A token's codes depend on that token alone, never on its company.

Source: SmoothQuant (Xiao et al., ICML 2023, arXiv 2211.10438); the formulas are those of vLLM's
`scaled_int8_quant`. compressed-tensors itself divides by 127.5 in training; vLLM does not, nor do we.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST, HIGHEST = -128, 127


@dataclass(frozen=True)
class ActivationRounding:
    """How rows are rounded.

    Attributes:
        is_symmetric: for dynamic rounding: zero is the code 0.
        scale: of static rounding; None for dynamic.
        zero: the code of 0.0 in static rounding.
    """

    is_symmetric: bool = True
    scale: float | None = None
    zero: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [T, in] rounded, in float32."""
        x = x.float()
        if self.scale is not None:
            return (_codes(x / self.scale, self.zero) - self.zero) * self.scale
        if self.is_symmetric:
            scale = _not_zero(x.abs().amax(-1, keepdim=True) / HIGHEST)
            return _codes(x / scale, 0) * scale
        lowest, highest = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = _not_zero((highest - lowest) / (HIGHEST - LOWEST))
        zero = torch.round(LOWEST - lowest / scale)
        return (_codes(x / scale, zero) - zero) * scale


def _codes(steps: Tensor, zero: Tensor | int) -> Tensor:
    return (torch.round(steps) + zero).clamp_(LOWEST, HIGHEST)


def _not_zero(scale: Tensor) -> Tensor:
    """A row of nothing but equal numbers has no range."""
    return torch.where(scale == 0, 1.0, scale)
