"""Weights as small whole numbers: the one form that every integer format is read into and written from.

    code      0 … 2^bits − 1, one for each weight
    value     (code − zero) · scale, with the zero and the scale of the weight's row and group

A group is a set of input channels that share a scale: 32 or 128 neighbours, or all of them. GPTQ's "act
order" groups channels that are no neighbours, so the group of each channel is written down. A symmetric grid
is one whose zero is the middle, 2^(bits − 1), in every group. Formats differ in how they pack codes into
words and in what they store for the zero; that is theirs (`minivllm/model/quantization/`).

Source: the grid is the one of GPTQ (Frantar et al., ICLR 2023) and AWQ (Lin et al., MLSys 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class IntegerWeights:
    """A matrix [out, in] as codes on a grid.

    Attributes:
        codes: uint8 [out, in].
        scales: float32 [out, groups].
        zeros: int16 [out, groups]: the code that means 0.0. It need not be a code that exists.
        group_of: int64 [in]: the group of each input channel.
        bits: 1 to 8.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor
    bits: int

    @property
    def is_symmetric(self) -> bool:
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def dense(self) -> Tensor:
        """The values, float32 [out, in]."""
        steps = self.codes.to(torch.float32) - self.zeros.to(torch.float32)[:, self.group_of]
        return steps * self.scales[:, self.group_of]


def contiguous_groups(num_inputs: int, group_size: int) -> Tensor:
    """The group of each channel where groups are neighbours: int64 [in]. A size of −1: one group."""
    return torch.arange(num_inputs) // (num_inputs if group_size == -1 else group_size)
