"""Matrices of 8-bit floats in panels, made 16-bit floats and then 32-bit ones as they are read.

    Float8Matrix ──► the file's own bytes, in panels
                 ──► scales of blocks, written out for each output, and for groups of inputs that all blocks
                     are made of:    192 inputs in blocks of 128, 64  ──►  three groups of 64

The plain twin is `minivllm/model/quantization/float8_matrix.py`. Read next:
`kernels_numba/cpu/quantized_tile.py`, the kernel.
"""

from __future__ import annotations

from math import gcd

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu.matrix_packing import fits, pack_groups, pack_numbers, unpack_numbers
from kernels_numba.cpu.matrix_products import CODES
from kernels_numba.cpu.panels import WIDTH
from kernels_numba.cpu.quantized_tile import E4M3
from minivllm.executor.runners.packed_matrix import PackedMatrix
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.float8_weights import Float8Weights

BLOCK_ROWS = 16 * WIDTH
"""Of a matrix that are put in order at a time."""


class Float8Panels(PackedMatrix):
    """The weights of `matrix`, for which `float8_fits`."""

    def __init__(self, matrix: Float8Matrix) -> None:
        self._shape = matrix.num_outputs, matrix.num_inputs
        self._dtype, self._block = matrix.dtype, matrix.block
        self._scales = matrix.scales
        bits = matrix.numbers.view(torch.int8).numpy()
        codes = np.concatenate(
            [
                pack_numbers(E4M3, bits[begin : begin + BLOCK_ROWS])
                for begin in range(0, len(bits), BLOCK_ROWS)
            ]
        )
        self.packed = pack_groups(E4M3, codes, matrix.num_inputs, _scales_of_groups(matrix).numpy())

    def dense(self) -> Tensor:
        bits = unpack_numbers(E4M3, self.packed.arrays[CODES], *self._shape)
        numbers = torch.from_numpy(bits).view(torch.float8_e4m3fn)
        weights = Float8Weights(numbers, self._scales.float(), self._block)
        return Float8Matrix(weights, self._dtype, numbers.device).dense()

    @property
    def num_bytes(self) -> int:
        num_outputs, num_inputs = self._shape
        groups = num_inputs // _group_size(num_inputs, self._block[1])
        return num_outputs * num_inputs + 4 * groups * num_outputs


def _group_size(num_inputs: int, width: int) -> int:
    """Inputs that have one scale in all blocks of this width, the last and smaller one included."""
    return gcd(num_inputs, width) if width < num_inputs else num_inputs


def _scales_of_groups(matrix: Float8Matrix) -> Tensor:
    """float32 [out, groups]"""
    height, width = matrix.block
    size = _group_size(matrix.num_inputs, width)
    of_row = torch.arange(matrix.num_outputs) // height
    of_group = torch.arange(0, matrix.num_inputs, size) // width
    return matrix.scales.float()[of_row][:, of_group].contiguous()


def float8_fits(matrix: Float8Matrix) -> bool:
    """Can it lie in panels? What is no number has no place there."""
    if matrix.numbers.device.type != "cpu":
        return False
    size = _group_size(matrix.num_inputs, matrix.block[1])
    bits = matrix.numbers.view(torch.uint8)
    return fits(E4M3, matrix.num_inputs, matrix.num_inputs // size) and not bool(
        ((bits & 0x7F) == 0x7F).any()
    )
