"""Matrices that share their input, one above the other, each in a format of its own.

Query, key and value are multiplied at once, and so are the two halves of the MLP (`layers.py`). In a
quantised checkpoint each has its own scales, maybe its own number of bits, and one may be left unquantised.
Parts of one kind become one matrix; others keep their forms. (One scale for all, where there are several,
would change the weights: what vLLM does with FP8 scales of whole tensors is not done here.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.model.matrix import Matrix
from minivllm.model.quantization import float8_matrix, integer_matrix
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.integer_matrix import IntegerMatrix


class StackedMatrix(Matrix):
    """The rows of `parts`, in order."""

    def __init__(self, parts: Sequence[Matrix], sizes: Sequence[int]) -> None:
        """`sizes`: how many rows each part has."""
        self.parts = tuple(parts)
        self.sizes = tuple(sizes)

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        biases = [None] * len(self.parts) if bias is None else bias.split_with_sizes([*self.sizes])
        product = torch.cat(
            [part.product(x, own) for part, own in zip(self.parts, biases, strict=True)], dim=-1
        )
        return product if added is None else product.add_(added)

    def dense(self) -> Tensor:
        return torch.cat([part.dense() for part in self.parts])

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def is_quantized(self) -> bool:
        return any(part.is_quantized for part in self.parts)


def stack(parts: Sequence[Matrix], sizes: Sequence[int]) -> Matrix:
    """One matrix of several, as plain as they allow."""
    if len(parts) == 1:
        return parts[0]
    integers = [part for part in parts if isinstance(part, IntegerMatrix)]
    floats = [part for part in parts if isinstance(part, Float8Matrix)]
    whole: Matrix | None = None
    if len(integers) == len(parts):
        whole = integer_matrix.joined(integers)
    elif len(floats) == len(parts):
        whole = float8_matrix.joined(floats)
    return StackedMatrix(parts, sizes) if whole is None else whole
