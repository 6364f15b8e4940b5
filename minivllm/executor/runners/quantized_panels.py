"""Matrices of whole numbers in panels, multiplied by our own kernel as they are read.

    IntegerMatrix ──► codes less the middle, in panels     1 to 4 bits: half a byte each; 5 to 8 bits: a byte
                  ──► scales, a row for each group
                  ──► offsets = scale · (zero − middle)     only if zeros are not in the middle

    x Wᵀ = Σ over groups  scale · Σ x · code  −  offset · Σ x

Inputs that were quantised in the order of their activations are put in the order of their groups, once in the
matrix and each time in x. What cannot lie so (groups of an odd number of half bytes or of different sizes)
stays as it is, and so do 8-bit floats: `dequantized_matrix.py` multiplies them, which is the plain twin.

Read next: `kernels_numba/cpu/small_panels.py`, the kernel; `fused.py`, whose steps multiply by these.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu.panels import multiply, pack, padded
from kernels_numba.cpu.small_panels import multiply_small, pack_scales, pack_small, unpack_small
from minivllm.executor.cpu_hazards import code_kind, compiling, set_numba_threads
from minivllm.model.matrix import Matrix
from minivllm.model.packed import as_array
from minivllm.model.quantization.integer_matrix import IntegerMatrix, zeros_of
from minivllm.model.quantization.stacked_matrix import StackedMatrix

QUANTIZED = "quantized"
"""What compiled code of this kind is called (`cpu_hazards.code_kind`)."""


class QuantizedPanels(Matrix):
    """The weights of `matrix`, which `can_lie_in_panels`, in panels."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        weights = matrix.weights()
        middle, self._is_half = 1 << (matrix.bits - 1), matrix.bits <= 4
        numbers = (weights.codes.to(torch.int16) - middle).to(torch.int8)
        self._order = None if matrix.group_of is None else torch.argsort(weights.group_of, stable=True)
        if self._order is not None:
            numbers = numbers[:, self._order]
        self._codes = pack_small(numbers.numpy(), self._is_half)
        self._scales = pack_scales(weights.scales.numpy())
        steps = zeros_of(matrix).float() - middle
        self._offsets = None if matrix.zeros is None else steps * weights.scales  # [out, groups]
        if self._offsets is not None:
            self._offset_panels = pack(self._offsets.contiguous().numpy())
        self._num_outputs: int = matrix.num_outputs
        self._num_inputs: int = matrix.num_inputs
        self._num_groups: int = weights.scales.shape[1]
        self._activations, self._dtype = matrix.activations, matrix.dtype

    @property
    def is_quantized(self) -> bool:
        return True

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`, summed in float32 and rounded to the type of `x` before what is added."""
        left = x if self._activations is None else self._activations(x)
        left = left.contiguous() if self._order is None else left[:, self._order]
        out = torch.empty(len(x), padded(self._num_outputs))
        num_threads = set_numba_threads()
        multiply_small(as_array(left), self._codes, self._scales, out.numpy(), num_threads)
        if self._offsets is not None:
            size = self._num_inputs // self._num_groups
            sums = torch.zeros(len(x) * self._num_groups, padded(1))
            ones = pack(np.ones((1, size), np.float32))
            multiply(left.float().reshape(-1, size).numpy(), ones, sums.numpy(), False, num_threads)
            negative = sums[:, 0].reshape(len(x), -1).neg()
            multiply(negative.numpy(), self._offset_panels, out.numpy(), False, num_threads)
        product = out[:, : self._num_outputs]
        if bias is not None:
            product = product.add_(bias)
        product = product.to(x.dtype)
        return product.contiguous() if added is None else product.add_(added)

    def dense(self) -> Tensor:
        numbers = torch.from_numpy(unpack_small(self._codes, self._num_outputs)).float()
        groups = numbers.reshape(self._num_outputs, self._num_groups, -1)
        scales = torch.from_numpy(self._scales[:, : self._num_outputs]).T[:, :, None]
        values = groups * scales
        if self._offsets is not None:
            values = torch.where(scales == 0, values, (groups - self._offsets[:, :, None] / scales) * scales)
        values = values.reshape(self._num_outputs, self._num_inputs)
        if self._order is not None:
            values = values[:, torch.argsort(self._order)]
        return values.to(self._dtype)

    @property
    def num_bytes(self) -> int:
        num_codes: int = self._num_outputs * self._num_inputs
        per_group = 4 if self._offsets is None else 8  # a scale, and maybe an offset
        return num_codes // (2 if self._is_half else 1) + per_group * self._num_groups * self._num_outputs


def can_lie_in_panels(matrix: Matrix) -> bool:
    """Is this a matrix that `QuantizedPanels` can be made of?"""
    if not isinstance(matrix, IntegerMatrix) or matrix.words.device.type != "cpu":
        return False
    num_groups = matrix.scales.shape[1]
    size, rest = divmod(matrix.num_inputs, num_groups)
    if rest or (matrix.bits <= 4 and size % 2):
        return False
    if matrix.group_of is None:
        return True
    return bool((torch.bincount(matrix.group_of, minlength=num_groups) == size).all())


def in_panels(matrix: Matrix) -> Matrix:
    """The same matrix in panels, or its parts, where they can lie so."""
    if isinstance(matrix, StackedMatrix):
        return StackedMatrix([in_panels(part) for part in matrix.parts], matrix.sizes)
    return (
        QuantizedPanels(matrix) if isinstance(matrix, IntegerMatrix) and can_lie_in_panels(matrix) else matrix
    )


def compile_products(dtype: torch.dtype) -> None:
    """What products with such matrices call, before the first one: once for each type, then found on disk."""
    scales, out = np.zeros((1, padded(1)), np.float32), np.zeros((0, padded(1)), np.float32)
    codes = pack_small(np.zeros((1, 2), np.int8), False), pack_small(np.zeros((1, 2), np.int8), True)
    with compiling(code_kind(dtype, QUANTIZED)):
        for kind in {dtype, torch.float32}:  # rounded activations are float32
            for some in codes:
                multiply_small(as_array(torch.zeros(0, 2, dtype=kind)), some, scales, out, 1)
        no_rows = np.zeros((0, 2), np.float32)
        multiply(no_rows, pack(np.zeros((1, 2), np.float32)), out, False, 1)  # of offsets
