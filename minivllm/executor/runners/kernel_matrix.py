"""Quantised matrices on a GPU: few rows by our own kernel, many by torch after weights were made floats.

    rows of x    product
    ─────────    ────────────────────────────────────────────────────────────────────────────────────────────
    1 … 16       `kernels_numba/cuda/quantized_product.py`, padded to 1, 2, 4, 8 or 16: five kernels a format
    more         `dequantized_matrix.py`, the plain twin

It is for weights of 4 or 8 bits and activations that are left as they are (W4A16, W8A16); other matrices stay
what they are. Matrices share what carries attention's kernels out, so under the microscope (`"microscope"`)
the very kernel is interpreted. It was compiled for a GPU and interpreted, and has not run on one yet.

Read next: `kernels_numba/cuda/quantized_product.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cuda.quantized_product import BITS, MAX_ROWS, quantized_product
from minivllm.executor.attention.kernel_backend import KernelAttention
from minivllm.model.matrix import Matrix
from minivllm.model.quantization.integer_matrix import IntegerMatrix, zeros_of
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups
from minivllm.model.quantization.stacked_matrix import StackedMatrix


class KernelMatrix(Matrix):
    """The weights of `matrix`, which `has_kernel`, and where launches are carried out."""

    def __init__(self, matrix: IntegerMatrix, attention: KernelAttention) -> None:
        self._attention = attention
        self._order: Tensor | None = None
        if matrix.group_of is not None:
            self._order = torch.argsort(matrix.group_of.long(), stable=True)
            matrix = _in_order_of_groups(matrix, self._order)
        self._plain = matrix
        self._group_size: int = matrix.num_inputs // matrix.scales.shape[1]
        self._scales = matrix.scales.float().contiguous()
        self._zeros = zeros_of(matrix).float().contiguous()

    @property
    def is_quantized(self) -> bool:
        return True

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`; summed in float32 where rows are few."""
        if self._order is not None:
            x = x[:, self._order]
        if not 1 <= len(x) <= MAX_ROWS:
            return self._plain.product(x, bias, added)
        product = self._few(x.float())
        if bias is not None:
            product += bias
        product = product.to(x.dtype)
        return product if added is None else product.add_(added)

    def _few(self, x: Tensor) -> Tensor:
        rows = 1 << (len(x) - 1).bit_length()
        padded = x.contiguous()
        if rows > len(x):
            padded = torch.nn.functional.pad(x, (0, 0, 0, rows - len(x)))
        out = x.new_empty(rows, self._plain.num_outputs)
        array = self._attention.array
        launch = quantized_product(
            array(padded),
            array(self._plain.words).view(np.uint32),
            array(self._scales),
            array(self._zeros),
            array(out),
            bits=self._plain.bits,
            group_size=self._group_size,
        )
        self._attention.run([launch])
        return out[: len(x)]

    def dense(self) -> Tensor:
        weights = self._plain.dense()
        return weights if self._order is None else weights[:, torch.argsort(self._order)]

    @property
    def num_bytes(self) -> int:
        groups = self._scales.numel() * 8  # a scale and a zero
        order = 0 if self._order is None else 8 * len(self._order)
        return self._plain.num_bytes + groups + order


def _in_order_of_groups(matrix: IntegerMatrix, order: Tensor) -> IntegerMatrix:
    """The same with its inputs sorted by group, so that neighbours share a scale."""
    weights, num_groups = matrix.weights(), matrix.scales.shape[1]
    sorted_weights = IntegerWeights(
        codes=weights.codes[:, order],
        scales=weights.scales,
        zeros=weights.zeros,
        group_of=contiguous_groups(matrix.num_inputs, matrix.num_inputs // num_groups),
        bits=matrix.bits,
    )
    return IntegerMatrix(sorted_weights, matrix.dtype, matrix.words.device)


def has_kernel(matrix: Matrix) -> bool:
    """Is there a kernel for this matrix?"""
    if not isinstance(matrix, IntegerMatrix) or matrix.bits not in BITS or matrix.activations is not None:
        return False
    num_groups = matrix.scales.shape[1]
    size, rest = divmod(matrix.num_inputs, num_groups)
    if rest or size % (32 // matrix.bits):
        return False
    if matrix.group_of is None:
        return True
    return bool((torch.bincount(matrix.group_of, minlength=num_groups) == size).all())


def by_kernels(matrix: Matrix, attention: KernelAttention) -> Matrix:
    """The same matrix, or its parts, multiplied by the kernel, where there is one."""
    if isinstance(matrix, StackedMatrix):
        return StackedMatrix([by_kernels(part, attention) for part in matrix.parts], matrix.sizes)
    if isinstance(matrix, IntegerMatrix) and has_kernel(matrix):
        return KernelMatrix(matrix, attention)
    return matrix
