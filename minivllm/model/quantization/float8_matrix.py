"""A matrix of 8-bit floats, as it lies in memory: the file's own bytes, and a scale for each block.

Activations are left as they are. The formats also say how to round them to 8-bit floats, which saves time
where a processor multiplies such numbers. vLLM, on devices that do not, multiplies by the weights alone
(W8A16, its Marlin kernels), and so do we, everywhere: no CPU multiplies e4m3, and rounding would only lose.

Read next: `float8_weights.py` for what the numbers mean, `dequantized_matrix.py` for the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.model.quantization.dequantized_matrix import DequantizedMatrix, exact_type, narrowest
from minivllm.model.quantization.float8_weights import Float8Weights


class Float8Matrix(DequantizedMatrix):
    """Weights in e4m3; `weights` are copied."""

    def __init__(self, weights: Float8Weights, dtype: torch.dtype, device: torch.device) -> None:
        num_outputs, num_inputs = weights.numbers.shape
        super().__init__(num_outputs, num_inputs, dtype)
        self.numbers = weights.numbers.clone(memory_format=torch.contiguous_format).to(device)
        self.scales = narrowest(weights.scales).clone().to(device)
        self.block = weights.block

    def weights(self) -> Float8Weights:
        return Float8Weights(self.numbers, self.scales.float(), self.block)

    def rows(self, begin: int, end: int) -> Tensor:
        kind = exact_type(self.dtype)
        height, width = self.block
        of_block = torch.arange(begin, end, device=self.scales.device) // height
        scales = self.scales[of_block].to(kind)  # [rows, blocks across]
        numbers = self.numbers[begin:end].to(kind)
        if scales.shape[1] > 1:
            scales = scales.repeat_interleave(width, 1)[:, : self.num_inputs]
        return numbers * scales

    def shard(self, rows: slice, columns: slice) -> Float8Matrix:
        """Where an edge falls within a block, blocks are cut finer, with the same scale in each piece."""
        own_rows, own_columns = range(self.num_outputs)[rows], range(self.num_inputs)[columns]
        height, width = self.block
        fine = math.gcd(height, own_rows.start), math.gcd(width, own_columns.start)
        scales = self.scales.float()
        scales = scales.repeat_interleave(height // fine[0], 0).repeat_interleave(width // fine[1], 1)
        down = slice(own_rows.start // fine[0], -(-own_rows.stop // fine[0]))
        across = slice(own_columns.start // fine[1], -(-own_columns.stop // fine[1]))
        weights = Float8Weights(self.numbers[rows, columns], scales[down, across], fine)
        return Float8Matrix(weights, self.dtype, self.numbers.device)

    @property
    def num_bytes(self) -> int:
        return self.numbers.numel() + self.scales.numel() * self.scales.element_size()

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self.num_inputs, dtype=self.dtype, device=self.numbers.device)


def joined(parts: Sequence[Float8Matrix]) -> Float8Matrix | None:
    """The rows of several matrices as one, if their blocks allow it; otherwise None."""
    first = parts[0]
    height, _ = first.block
    is_alike = all(part.block == first.block and part.num_inputs == first.num_inputs for part in parts)
    if not is_alike or any(part.num_outputs % height for part in parts[:-1]):
        return None
    whole = Float8Weights(
        torch.cat([part.numbers for part in parts]),
        torch.cat([part.scales.float() for part in parts]),
        first.block,
    )
    return Float8Matrix(whole, first.dtype, first.numbers.device)
