"""FP8: weights as 8-bit floats (e4m3), with one scale for each output channel.

e4m3 has 4 bits of exponent and 3 of mantissa: 448 is its largest number, and every number is rounded by at
most a sixteenth of itself, so a row needs no groups and no calibration. The scale puts a row's largest weight
at 448. Activations are scaled the same way, token by token, at run time.

Source: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433), §3.
Read next: `rounding.py`, whose steps are as long for small weights as for large ones.
"""

from __future__ import annotations

from torch import Tensor

from minivllm.model.quantization.float8_weights import Float8Weights, round_to_float8


def round_rows_to_float8(weight: Tensor) -> Float8Weights:
    """`weight` [out, in] with a scale for each output."""
    return round_to_float8(weight, (1, weight.shape[1]))


def round_tokens_to_float8(x: Tensor) -> Tensor:
    """`x` [tokens, in] as e4m3 with one scale for each token gives it back."""
    return round_rows_to_float8(x).dense()
