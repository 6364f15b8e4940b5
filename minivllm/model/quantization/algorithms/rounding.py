"""Round to nearest (RTN): the grid of each group of weights, and the codes on it.

A group is the weights of one row that share a scale. Its grid has 2^bits steps, and must reach from the
smallest weight to the largest:

    symmetric     zero in the middle;  scale = max|w| / 7  ("full": / 7.5)               for 4 bits
    asymmetric    scale = (max − min) / 15,  zero = round(−min / scale)

All numbers are for 4 bits. "/ 7" reaches the largest weight on either side and leaves the lowest code
unused, as GPTQ and AutoAWQ have it. "/ 7.5" makes steps finer by a fifteenth and rounds the largest positive
weight by half a step, as compressed-tensors has it.

Formats store the zero as a code of the grid. A group whose weights are all positive has no such zero between
its smallest and its largest, and a zero that is merely clamped, as AutoAWQ's is, cuts the range. Here the
range is stretched to contain 0 first: nothing is cut, and the steps are as fine as the format permits.

Source: Dettmers et al., "LLM.int8()" (arXiv 2208.07339), §2.1, for both kinds of grid.
Read next: `gptq.py`, which rounds channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups

SCALE_RANGES = ("restricted", "full")
"""What max|w| of a symmetric group falls on: the last code (2^(bits−1) − 1), or half a step beyond it."""


@dataclass(frozen=True)
class Grid:
    """What a kind of grid looks like, for any weights.

    Attributes:
        bits: 2 to 8.
        group_size: input channels that share a scale; −1 for all of them.
        symmetric: whether the zero is the middle.
        scale_range: of `SCALE_RANGES`; for symmetric grids.
        scale_dtype: what scales are stored as. Codes are chosen for the scales as they will be read back.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    scale_range: str = "restricted"
    scale_dtype: torch.dtype = torch.float16

    @property
    def last_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    def group_length(self, num_inputs: int) -> int:
        return num_inputs if self.group_size == -1 else self.group_size

    def fit(self, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zeros, float32, of groups whose weights lie between `lowest` and `highest`."""
        if self.symmetric:
            steps = self.middle - (1.0 if self.scale_range == "restricted" else 0.5)
            scales = torch.maximum(-lowest, highest) / steps
        else:
            lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
            scales = (highest - lowest) / self.last_code
        scales = stored_scales(scales, self.scale_dtype)
        if self.symmetric:
            return scales, torch.full_like(scales, self.middle)
        return scales, (-lowest / scales).round_().clamp_(0, self.last_code)

    def codes(self, weights: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """The nearest codes, float32."""
        return (weights / scales).round_().add_(zeros).clamp_(0, self.last_code)


def stored_scales(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as a file gives them back. One that is 0, or too small for the type, would divide by 0.

    Raises:
        ValueError: a scale is too large for the type.
    """
    largest = torch.finfo(dtype).max
    if scales.numel() and float(scales.max()) > largest:
        raise ValueError(
            f"a scale of {float(scales.max()):.3g} does not fit {dtype}, which ends at {largest:g}"
        )
    stored = scales.to(dtype).float()
    return torch.where(scales == 0, 1.0, stored.clamp_(min=torch.finfo(dtype).smallest_normal))


def round_to_nearest(
    weight: Tensor, grid: Grid, limits: tuple[Tensor, Tensor] | None = None
) -> IntegerWeights:
    """Codes of `weight` [out, in] on a grid that reaches every weight of its group.

    Args:
        limits: the lowest and highest value [out, groups] that each group keeps; weights beyond are clipped.
            None keeps all of them.
    """
    grouped = grouped_weights(weight, grid)  # [out, groups, group_length]
    lowest, highest = grouped_limits(grouped) if limits is None else limits
    scales, zeros = grid.fit(lowest, highest)
    codes = grid.codes(grouped, scales[..., None], zeros[..., None])
    return IntegerWeights(
        codes.view(weight.shape).to(torch.uint8),
        scales,
        zeros.to(torch.int16),
        contiguous_groups(weight.shape[1], grid.group_size),
        grid.bits,
    )


def grouped_weights(weight: Tensor, grid: Grid) -> Tensor:
    """[out, groups, group_length] of [out, in]. Groups must divide the inputs (`check_groups`)."""
    return weight.reshape(len(weight), -1, grid.group_length(weight.shape[1]))


def grouped_limits(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of each group [out, groups]."""
    lowest, highest = torch.aminmax(grouped, dim=-1)
    return lowest, highest


def check_groups(name: str, num_inputs: int, group_size: int) -> None:
    """Raises `ValueError` naming the matrix if groups do not divide its inputs."""
    if group_size != -1 and num_inputs % group_size:
        dividing = [size for size in (256, 128, 64, 32, 16) if num_inputs % size == 0]
        others = f"{', '.join(map(str, dividing))} or -1" if dividing else "-1"
        raise ValueError(
            f"group_size {group_size} does not divide the {num_inputs} inputs of {name}; it could be {others}"
            " (−1: one group a row)".replace("−", "-")
        )


def check_finite(name: str, weight: Tensor) -> None:
    """Raises `ValueError` naming the tensor if it holds NaN or infinity, which no grid has."""
    wrong = int((~torch.isfinite(weight)).sum())
    if wrong:
        raise ValueError(f"{name} has {wrong} of {weight.numel()} weights that are NaN or infinite")
