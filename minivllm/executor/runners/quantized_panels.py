"""Matrices of small whole numbers in panels, multiplied by our own kernels as they are read.

    IntegerMatrix ──► codes less the middle, in panels     1 to 4 bits: half a byte each; 5 to 8 bits: a byte
                  ──► scales, a row for each group
                  ──► offsets = scale · (zero − middle)     only if zeros are not in the middle

    x Wᵀ = Σ over groups  scale · Σ x · code  −  offset · Σ x

Where activations are rounded to whole numbers too (W8A8), both are multiplied as such, exactly. Inputs that
were quantised in the order of their activations are put in the order of their groups, once in the matrix and
each time in x. What cannot lie so (groups of an odd number, or of different sizes) stays as it is:
`dequantized_matrix.py` multiplies it, which is the plain twin.

Read next: `kernels_numba/cpu/matrix_products.py`, the kernel; `compiled.py`, whose steps multiply by these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu.matrix_packing import (
    fits,
    pack_groups,
    pack_integers,
    pack_numbers,
    unpack_numbers,
)
from kernels_numba.cpu.matrix_products import (
    BY_LARGEST,
    BY_RANGE,
    CODES,
    INTEGERS,
    KIND,
    OFFSETS,
    SCALES,
    STATIC,
    multiply_quantized,
    quantized_arguments,
)
from kernels_numba.cpu.panels import WIDTH
from kernels_numba.cpu.quantized_tile import BYTES, NIBBLES
from minivllm.executor.cpu_hazards import QUANTIZED, code_kind, compiling
from minivllm.executor.runners.float8_panels import Float8Panels, float8_fits
from minivllm.executor.runners.packed_matrix import PackedMatrix
from minivllm.model.matrix import Matrix
from minivllm.model.packed import as_array
from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.integer_matrix import IntegerMatrix, zeros_of
from minivllm.model.quantization.stacked_matrix import StackedMatrix

BLOCK_ROWS = 16 * WIDTH
"""Of a matrix that are unpacked at a time: memory for all of them would be that of several layers."""


class QuantizedPanels(PackedMatrix):
    """The weights of `matrix`, which `can_lie_in_panels`, in panels."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        kind, middle = kind_of(matrix), 1 << (matrix.bits - 1)
        self._num_outputs: int = matrix.num_outputs
        self._num_inputs: int = matrix.num_inputs
        self._num_groups: int = matrix.scales.shape[1]
        self._activations, self._dtype = matrix.activations, matrix.dtype
        self._is_rounding_apart = rounds_apart(matrix)
        self._order = None
        if matrix.group_of is not None:
            self._order = torch.argsort(matrix.group_of.long(), stable=True)
        codes = np.concatenate(
            [
                pack_numbers(kind, self._numbers(matrix, begin))
                for begin in range(0, len(matrix.words), BLOCK_ROWS)
            ]
        )
        scales = matrix.scales.float()
        if kind == INTEGERS:
            assert matrix.activations is not None
            self.packed = pack_integers(
                codes, self._num_inputs, scales.numpy(), *_rounding(matrix.activations)
            )
            return
        offsets = None
        if matrix.zeros is not None:
            offsets = ((zeros_of(matrix).float() - middle) * scales).numpy()  # [out, groups]
        order = None if self._order is None else self._order.numpy()
        self.packed = pack_groups(kind, codes, self._num_inputs, scales.numpy(), offsets, order)

    def _numbers(self, matrix: IntegerMatrix, begin: int) -> Any:
        """Some rows as int8, inputs in the order of their groups."""
        codes = matrix.weights(begin, begin + BLOCK_ROWS).codes
        numbers = (codes.to(torch.int16) - (1 << (matrix.bits - 1))).to(torch.int8)
        return (numbers if self._order is None else numbers[:, self._order]).numpy()

    def _left(self, x: Tensor) -> Tensor:
        if not self._is_rounding_apart:
            return super()._left(x)
        assert self._activations is not None
        return self._activations(x)

    def dense(self) -> Tensor:
        kind, arrays = int(self.packed.row[KIND]), self.packed.arrays
        numbers = unpack_numbers(kind, arrays[CODES], self._num_outputs, self._num_inputs)
        groups = torch.from_numpy(numbers).float().reshape(self._num_outputs, self._num_groups, -1)
        scales = self._per_group(SCALES)
        values = groups * scales
        if OFFSETS in arrays:
            offsets = self._per_group(OFFSETS)
            values = torch.where(scales == 0, values, (groups - offsets / scales) * scales)
        values = values.reshape(self._num_outputs, self._num_inputs)
        if self._order is not None:
            values = values[:, torch.argsort(self._order)]
        return values.to(self._dtype)

    def _per_group(self, which: int) -> Tensor:
        """[out, groups, 1]"""
        return torch.from_numpy(self.packed.arrays[which][:, : self._num_outputs]).T[:, :, None]

    @property
    def num_bytes(self) -> int:
        num_codes: int = self._num_outputs * self._num_inputs
        per_group = 8 if OFFSETS in self.packed.arrays else 4  # a scale, and maybe an offset
        return (
            num_codes // (2 if self.packed.row[KIND] == NIBBLES else 1)
            + per_group * self._num_groups * self._num_outputs
        )


def kind_of(matrix: IntegerMatrix) -> int:
    """How its numbers lie in panels."""
    num_inputs, num_groups = matrix.num_inputs, matrix.scales.shape[1]
    is_plain = matrix.zeros is None and matrix.group_of is None
    if matrix.activations is not None and is_plain and fits(INTEGERS, num_inputs, num_groups):
        return INTEGERS
    return NIBBLES if matrix.bits <= 4 and fits(NIBBLES, num_inputs, num_groups) else BYTES


def rounds_apart(matrix: Matrix) -> bool:
    """Are its activations rounded before the product, and not in it?"""
    return (
        isinstance(matrix, IntegerMatrix) and matrix.activations is not None and kind_of(matrix) != INTEGERS
    )


def _rounding(activations: ActivationRounding) -> tuple[int, float, int]:
    if activations.scale is not None:
        return STATIC, activations.scale, activations.zero
    return (BY_LARGEST if activations.is_symmetric else BY_RANGE), 0.0, 0


def can_lie_in_panels(matrix: Matrix) -> bool:
    """Is this a matrix that `in_panels` puts into panels?"""
    if isinstance(matrix, Float8Matrix):
        return float8_fits(matrix)
    if not isinstance(matrix, IntegerMatrix) or matrix.words.device.type != "cpu":
        return False
    num_groups = matrix.scales.shape[1]
    if not fits(kind_of(matrix), matrix.num_inputs, num_groups):
        return False
    if matrix.group_of is None:
        return True
    size = matrix.num_inputs // num_groups
    return bool((torch.bincount(matrix.group_of, minlength=num_groups) == size).all())


def in_panels(matrix: Matrix) -> Matrix:
    """The same matrix in panels, or its parts, where they can lie so."""
    if isinstance(matrix, StackedMatrix):
        return StackedMatrix([in_panels(part) for part in matrix.parts], matrix.sizes)
    if not can_lie_in_panels(matrix):
        return matrix
    if isinstance(matrix, Float8Matrix):
        return Float8Panels(matrix)
    assert isinstance(matrix, IntegerMatrix)
    return QuantizedPanels(matrix)


def compile_products(dtype: torch.dtype) -> None:
    """What products with such matrices call, before the first one: once for each type, then found on disk."""
    with compiling(code_kind(dtype, QUANTIZED)) as prepare:
        for kind in {dtype, torch.float32}:  # activations that are rounded apart are float32
            prepare(multiply_quantized, *quantized_arguments(as_array(torch.empty(0, dtype=kind)).dtype))
