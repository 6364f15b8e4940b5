"""A matrix of small numbers, multiplied a block of rows at a time: the plain way for every format.

    numbers of 1 to 8 bits ──► some rows of weights, float ──► x · rowsᵀ ──► some columns of the result

Never more than `BLOCK_WEIGHTS` weights are floats at a time, so a product needs little memory beyond its
result, whatever the size of the matrix. Faster products that read the small numbers themselves are compared
with this one (`minivllm/executor/runners/quantized_panels.py`).

Read next: `integer_matrix.py`, `float8_matrix.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.matrix import Matrix
from minivllm.model.quantization.activations import ActivationRounding

BLOCK_WEIGHTS = 1 << 22
"""Weights that are floats at a time: 16 MiB."""


class DequantizedMatrix(Matrix):
    """Weights [num_outputs, num_inputs] in a format from which rows can be had.

    Args:
        dtype: of the model: of the rows that `dense` gives.
        activations: how what is multiplied is rounded first; as it is, if None.
    """

    def __init__(
        self,
        num_outputs: int,
        num_inputs: int,
        dtype: torch.dtype,
        activations: ActivationRounding | None = None,
    ) -> None:
        self.num_outputs, self.num_inputs = num_outputs, num_inputs
        self.dtype = dtype
        self.activations = activations

    @abstractmethod
    def rows(self, begin: int, end: int) -> Tensor:
        """The values of some rows [end − begin, num_inputs], in float32 (float64 for a float64 model)."""

    @property
    def is_quantized(self) -> bool:
        return True

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`. Rounded activations are multiplied in float32, others in their own type."""
        left = x if self.activations is None else self.activations(x)
        out = x.new_empty(len(x), self.num_outputs)
        for begin, end in self._blocks():
            weights = self.rows(begin, end).to(left.dtype)
            out[:, begin:end] = functional.linear(left, weights)
        if bias is not None:
            out += bias
        return out if added is None else out.add_(added)

    def dense(self) -> Tensor:
        """A copy, in the model's type."""
        whole = self._empty(self.num_outputs)
        for begin, end in self._blocks():
            whole[begin:end] = self.rows(begin, end)
        return whole

    @abstractmethod
    def _empty(self, num_rows: int) -> Tensor:
        """Room for so many rows, of the model's type and on the matrix's device."""

    def _blocks(self) -> Iterator[tuple[int, int]]:
        step = max(1, BLOCK_WEIGHTS // max(1, self.num_inputs))
        for begin in range(0, self.num_outputs, step):
            yield begin, min(begin + step, self.num_outputs)


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """In which weights of a model of this type are computed from their small numbers."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def narrowest(numbers: Tensor) -> Tensor:
    """The same numbers in 16 bits, if that changes none of them. Scales mostly come from such."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = numbers.to(dtype)
        if torch.equal(narrow.to(numbers.dtype), numbers):
            return narrow
    return numbers
