"""FP8: weights as 8-bit floats (e4m3), with one scale for each output channel.

e4m3 has 4 bits of exponent and 3 of mantissa: 448 is its largest number, and every number is rounded by at
most a sixteenth of itself, so a row needs no groups and no calibration. The scale puts a row's largest weight
at 448. Activations are scaled the same way, token by token, at run time.

Source: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433), §3.
Read next: `rounding.py`, whose steps are as long for small weights as for large ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


def round_to_fp8(weight: Tensor, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weights [out, in] in float8_e4m3fn, and the scales [out, 1] that they are multiplied by, as float32."""
    largest = weight.abs().amax(dim=-1, keepdim=True)
    scales = torch.where(largest == 0, 1.0, largest / LARGEST)
    scales = scales.to(scale_dtype).float().clamp_(min=torch.finfo(scale_dtype).tiny)
    # Rounded scales may put the largest weight just above 448, which e4m3 turns into NaN.
    return (weight / scales).clamp_(-LARGEST, LARGEST).to(FP8), scales


def round_tokens_fp8(x: Tensor) -> Tensor:
    """`x` [tokens, in] as FP8 with one scale for each token gives it back."""
    codes, scales = round_to_fp8(x)
    return codes.float().mul_(scales)
