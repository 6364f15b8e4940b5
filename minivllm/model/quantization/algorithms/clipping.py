"""AWQ's second search: clip a group's largest weights, so that the steps for all the others become finer.

For each row and group the range is shrunk to 95 %, 90 % … 50 %, and the one with the smallest output error
on the calibration inputs is kept:

    loss(shrink) = Σ over tokens (Σ over the group's channels (w − ŵ)·x)² = d M dᵀ

with d = w − ŵ and M the group's own block of the inputs' second moments, so all tokens count and none has to
be kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm.model.quantization.algorithms.rounding import Grid, grouped_limits, grouped_weights

SHRINKS = tuple(1 - step / 20 for step in range(10))


def search_clipping(weight: Tensor, moments: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The lowest and highest value [out, groups] that each group of `weight` [out, in] should keep."""
    grouped = grouped_weights(weight, grid)
    blocks = own_blocks(moments, grid)  # [groups, length, length]
    lowest, highest = grouped_limits(grouped)
    best_loss = torch.full_like(lowest, torch.inf)
    best_shrink = torch.ones_like(lowest)
    for shrink in SHRINKS:
        scales, zeros = grid.fit(lowest * shrink, highest * shrink)
        codes = grid.codes(grouped, scales[..., None], zeros[..., None])
        difference = grouped - (codes - zeros[..., None]) * scales[..., None]
        by_group = difference.transpose(0, 1)  # [groups, out, length]
        loss = torch.bmm(by_group, blocks).mul_(by_group).sum(dim=-1).T
        better = loss < best_loss
        best_loss[better], best_shrink[better] = loss[better], shrink
    return lowest * best_shrink, highest * best_shrink


def own_blocks(moments: Tensor, grid: Grid) -> Tensor:
    """The blocks on the diagonal of `moments` [in, in], one for each group."""
    length = grid.group_length(len(moments))
    cut = moments.view(len(moments) // length, length, -1, length)
    return torch.stack([cut[index, :, index] for index in range(len(cut))])
