"""SmoothQuant: 8 bits for weights and activations, after part of the activations' range has moved over.

Activations are harder to round than weights: a few channels are a hundred times larger than the rest, and
all channels of a token share a scale. Dividing channel j of the inputs by s[j] and multiplying the weights
by it leaves the product alone and makes both ranges bearable:

    s[j] = max|x[j]| ^ α / max|w[:, j]| ^ (1 − α)          α = 0.5: both ranges become the same

The division is folded into the norm before the matrix (`folding.py`), so it concerns q, k, v, gate and up.
Then weights are rounded to int8 with a scale for each output channel, and at run time each token's inputs to
int8 with a scale of their own.

Source: Xiao et al., "SmoothQuant" (ICML 2023, arXiv 2211.10438), §4, equation 4.
Read next: `folding.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127


def smoothing_scales(largest_inputs: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """What to divide each input channel by [in].

    Args:
        largest_inputs: max|x| of each channel [in].
        weight: [out, in], all matrices that read these inputs.
        alpha: how much of the inputs' range moves: 0.5, or up to 0.8 where their outliers are worse.
    """
    largest_weights = weight.abs().amax(dim=0).clamp(min=1e-5)
    scales = largest_inputs.clamp(min=1e-5).pow(alpha) / largest_weights.pow(1 - alpha)
    # A channel that calibration never saw would be divided by almost nothing.
    return torch.where(largest_inputs == 0, 1.0, scales.clamp(min=1e-5))


def round_tokens_to_int8(x: Tensor) -> Tensor:
    """`x` [tokens, in] as int8 with one scale for each token gives it back: what W8A8 multiplies by."""
    scales = x.abs().amax(dim=-1, keepdim=True).div_(INT8_MAX).clamp_(min=1e-12)
    return (x / scales).round_().clamp_(-INT8_MAX - 1, INT8_MAX).mul_(scales)
