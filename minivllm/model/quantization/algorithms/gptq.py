"""GPTQ: round one input channel at a time, and let the channels after it make good what that spoils.

A layer's output is wrong by (w − ŵ)·x. With the second moments H = Σ x xᵀ of its inputs, the squared error
of a row is (w − ŵ) H (w − ŵ)ᵀ. If channel i is rounded to q, the best that the later channels can do about it
has a closed form, which for all rows comes from one Cholesky factor U of H⁻¹ = UᵀU:

    error = (w[i] − q) / U[i, i]          w[j] −= error · U[i, j]   for j > i

    blocks of 128:  w = [ done │ rounded one by one │ later ]     the errors of a block reach what comes later
                                └───── error ──► ───┴─► U ──►     in one product, which is what makes it fast

    act order       channels with the largest inputs first, while there is still much to make good with.
                    A group is then 128 channels that are no neighbours, and `group_of` says which.
    static groups   act order, but groups are neighbours with grids fixed before: no `group_of` at run time.

A channel that never sees an input (H[i, i] = 0) is set to 0. Too few tokens leave H without an inverse: a
hundredth of its mean diagonal is added, and more if that is not enough.

One thing is not in the paper: the choices are greedy, and now and then a row comes out worse than by plain
rounding. Such a row is rounded plainly, so that on what it was calibrated with GPTQ never loses.

Source: Frantar et al., "GPTQ" (ICLR 2023, arXiv 2210.17323), §3.3, Algorithm 1; act order and static groups
from its authors' repository. Read next: `awq.py`, which needs no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.quantization.algorithms.rounding import Grid, grouped_limits, grouped_weights
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups

BLOCK = 128
MOST_DAMPING = 1.0


@dataclass(frozen=True)
class GptqOptions:
    """How channels are visited.

    Attributes:
        act_order: those with the largest inputs first.
        static_groups: groups of neighbours with grids that are fixed before, even under `act_order`.
        damping: the share of H's mean diagonal that is added to it.
    """

    act_order: bool = False
    static_groups: bool = False
    damping: float = 0.01


def gptq(weight: Tensor, moments: Tensor, grid: Grid, options: GptqOptions | None = None) -> IntegerWeights:
    """Codes of `weight` [out, in] for inputs whose second moments are `moments` [in, in] (any factor)."""
    options = options or GptqOptions()
    diagonal = moments.diagonal()
    alive = torch.where(diagonal == 0, 0.0, weight)
    order = torch.argsort(diagonal, descending=True, stable=True) if options.act_order else None
    groups = _Groups(weight, alive, grid, order, is_static=options.static_groups)
    if order is not None:
        alive, moments = alive[:, order], moments[order][:, order]
    factor = inverse_factor(moments, options.damping)
    codes = _round_channels(alive.clone(), factor, grid, groups)
    plain = grid.codes(alive, *groups.plain_columns())
    _keep_better_rows(codes, plain, alive, moments, groups)
    if order is not None:
        codes = codes[:, torch.argsort(order)]
    return IntegerWeights(
        codes.to(torch.uint8), groups.scales, groups.zeros.to(torch.int16), groups.group_of, grid.bits
    )


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """The upper factor U [in, in] of the inverse, H⁻¹ = UᵀU, in float32, of H with its diagonal damped.

    Computed in float64: with little damping a float32 inverse is not even symmetric. Damping grows tenfold
    where there is still no factor, which a few tokens and many channels make happen.
    """
    exact = moments.double()
    diagonal = exact.diagonal()
    mean = diagonal.mean()
    exact = exact.clone()
    exact.diagonal()[diagonal == 0] = mean if mean > 0 else 1.0
    while True:
        damped = exact.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(upper).all():
                inverse: Tensor = upper.float()
                return inverse
        if damping >= MOST_DAMPING:
            raise ValueError("the inputs' second moments have no inverse: are the activations finite?")
        damping = max(damping, 0.001) * 10


class _Groups:
    """The grids of all groups, in the order in which channels are visited.

    Grids are fixed at once if they are static; otherwise a group's is when its first channel is reached, from
    the weights as they are by then. The grids of plain rounding are kept beside them.
    """

    def __init__(
        self, weight: Tensor, alive: Tensor, grid: Grid, order: Tensor | None, *, is_static: bool
    ) -> None:
        num_inputs = weight.shape[1]
        self.grid, self.is_static = grid, is_static
        self.length = grid.group_length(num_inputs)
        neighbours = contiguous_groups(num_inputs, grid.group_size)
        if order is None:
            self.group_of = self.visited = neighbours
        elif is_static:
            self.group_of, self.visited = neighbours, neighbours[order]
        else:
            self.group_of, self.visited = neighbours[torch.argsort(order)], neighbours
        if order is not None and not is_static:
            weight, alive = weight[:, order], alive[:, order]
        self.plain_scales, self.plain_zeros = grid.fit(*grouped_limits(grouped_weights(weight, grid)))
        self.scales, self.zeros = grid.fit(*grouped_limits(grouped_weights(alive, grid)))

    def enter(self, weight: Tensor, column: int) -> None:
        """Fix the grid of the group that begins at `column` of `weight` [out, in], if one does."""
        if not self.is_static and column % self.length == 0:
            limits = grouped_limits(weight[:, column : column + self.length])
            self.scales[:, column // self.length], self.zeros[:, column // self.length] = self.grid.fit(
                *limits
            )

    def columns(self) -> tuple[Tensor, Tensor]:
        """Scale and zero of each weight, [out, in] as visited."""
        return self.scales[:, self.visited], self.zeros[:, self.visited]

    def plain_columns(self) -> tuple[Tensor, Tensor]:
        return self.plain_scales[:, self.visited], self.plain_zeros[:, self.visited]


def _round_channels(weight: Tensor, factor: Tensor, grid: Grid, groups: _Groups) -> Tensor:
    """Codes [out, in] of `weight`, which is spoilt, its columns in the order of `factor`."""
    codes = torch.empty_like(weight)
    num_inputs = weight.shape[1]
    for start in range(0, num_inputs, BLOCK):
        end = min(start + BLOCK, num_inputs)
        errors = torch.empty(len(weight), end - start)
        for column in range(start, end):
            groups.enter(weight, column)
            group = int(groups.visited[column])
            scale, zero = groups.scales[:, group], groups.zeros[:, group]
            code = grid.codes(weight[:, column], scale, zero)
            codes[:, column] = code
            error = (weight[:, column] - (code - zero) * scale) / factor[column, column]
            weight[:, column:end].addr_(error, factor[column, column:end], alpha=-1)
            errors[:, column - start] = error
        weight[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return codes


def _keep_better_rows(codes: Tensor, plain: Tensor, weight: Tensor, moments: Tensor, groups: _Groups) -> None:
    """Take plain rounding in `codes` and in the grids where a row's error is smaller that way."""
    scales, zeros = groups.columns()
    plain_scales, plain_zeros = groups.plain_columns()
    ours = squared_error(weight - (codes - zeros) * scales, moments)
    theirs = squared_error(weight - (plain - plain_zeros) * plain_scales, moments)
    worse = ours > theirs
    codes[worse] = plain[worse]
    groups.scales[worse], groups.zeros[worse] = groups.plain_scales[worse], groups.plain_zeros[worse]


def squared_error(difference: Tensor, moments: Tensor) -> Tensor:
    """The squared error of each output [out]: d H dᵀ of the differences [out, in] from the true weights."""
    return (difference @ moments).mul_(difference).sum(dim=1)
