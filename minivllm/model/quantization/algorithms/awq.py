"""AWQ: channels that see large inputs get finer steps.

A weight's rounding error is multiplied by its input, and a few channels have inputs many times larger than
the others. If such a channel's weights are multiplied by s > 1 before rounding, and its input is divided by
s, the product is the same and the channel's error is s times smaller, as long as the group's scale does not
grow. How much is right is found by trying:

    s = mean|x| ^ α,  normalised by √(max s · min s),      α = 0, 1/20, … 19/20
    the α whose block output (attention, MLP) differs least from the true one

α = 0 is plain rounding, so the search never does worse than that on what it was calibrated with. Dividing
the inputs costs nothing: it is folded into the layer before (`folding.py`).

AutoAWQ's variant also divides by the channel's mean weight, each first divided by its group's largest
("duo scaling"): there α = 0 is not plain rounding.

Source: Lin et al., "AWQ" (MLSys 2024, arXiv 2306.00978), §3.2, equations 4 and 5.
Read next: `folding.py`, then `clipping.py`, AWQ's second search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.quantization.algorithms.rounding import Grid, grouped_weights, round_to_nearest

STEPS = 20


@dataclass(frozen=True)
class ScaleSearch:
    """What was found: by how much to multiply each input channel's weights, and what it is worth.

    Attributes:
        scales: float32 [in].
        alpha: the exponent that won.
        losses: the mean squared error of the output for each α of the grid, plain rounding first.
    """

    scales: Tensor
    alpha: float
    losses: tuple[float, ...]


def search_scales(
    weight: Tensor,
    mean_inputs: Tensor,
    grid: Grid,
    loss: Callable[[Tensor], float],
    *,
    duo_scaling: bool = False,
    tie: Callable[[Tensor], Tensor] | None = None,
    steps: int = STEPS,
) -> ScaleSearch:
    """Try α on a grid of `steps` values and take the best.

    Args:
        weight: [out, in], all matrices that read these inputs.
        mean_inputs: mean|x| of each input channel [in].
        loss: the error of the block's output if its matrix were this [out, in].
        duo_scaling: divide by the weights' size, too.
        tie: gives channels that cannot be scaled apart one scale (`folding.tie_query_heads`).
        steps: values of α, from 0 to just below 1.
    """
    weights_size = _relative_size(weight, grid) if duo_scaling else None
    best, losses = (torch.ones_like(mean_inputs), 0.0), []
    for step in range(steps):
        alpha = step / steps
        scales = _scales(mean_inputs, weights_size, alpha)
        if tie is not None:
            scales = tie(scales)
        rounded = round_to_nearest(weight * scales, grid).dense().div_(scales)
        losses.append(loss(rounded))
        if losses[-1] == min(losses):
            best = scales, alpha
    return ScaleSearch(*best, tuple(losses))


def first_duo_scales(weight: Tensor, grid: Grid) -> Tensor:
    """What duo scaling multiplies input channels by in its first try, α = 0: nothing of the inputs yet."""
    return _scales(torch.ones(weight.shape[1]), _relative_size(weight, grid), 0.0)


def _scales(mean_inputs: Tensor, weights_size: Tensor | None, alpha: float) -> Tensor:
    scales = mean_inputs.pow(alpha)
    if weights_size is not None:
        scales = scales / (weights_size.pow(1 - alpha) + 1e-4)
    scales = scales.clamp(min=1e-4)  # a channel that never sees an input
    return scales / (scales.max() * scales.min()).sqrt()


def _relative_size(weight: Tensor, grid: Grid) -> Tensor:
    """The mean of |w| over each channel [in], relative to the largest of the weight's group."""
    grouped = grouped_weights(weight, grid).abs()
    relative = grouped / grouped.amax(dim=-1, keepdim=True).clamp(min=1e-6)
    return relative.view(weight.shape).mean(dim=0)
