"""Weights in the order in which a processor multiplies them.

A product reads its weights in tiles. Row after row, as a checkpoint has them, they must be put in that order
every time, which for a few tokens takes as long as the product itself. Whoever packs does it once, and the
matrix is kept in that order only:

    our own panels    `minivllm/executor/compiled_steps.py`, for whole steps in one compiled call
    oneDNN's          here: torch comes with it; best where processors have matrix units of their own (AMX)

oneDNN's operators are torch's own but not public, so everything here asks first whether they are there and
work. Read next: `minivllm/model/layers.py`, whose products use them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DTYPES = (torch.float32, torch.bfloat16)


class PackedMatrix(Protocol):
    """A matrix [out, in] in another order."""

    def product(self, x: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`."""

    def dense(self) -> Tensor:
        """The matrix as it was, a copy."""


class OneDnnMatrix:
    """A matrix in oneDNN's order, an opaque tensor of the same size."""

    def __init__(self, weight: Tensor) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def product(self, x: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`; the sum is rounded once."""
        operator = torch.ops.mkldnn._linear_pointwise
        product: Tensor
        if added is None:
            product = operator(x, self._packed, bias, "none", [], "")
        else:
            product = operator.binary(x, added, self._packed, bias, "add")
        return product

    def dense(self) -> Tensor:
        return self._packed.to_dense()


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN can pack products of this type on this processor, found out by trying."""
    if dtype not in DTYPES or not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    try:
        x, weight = torch.ones(2, 16, dtype=dtype), torch.ones(16, 16, dtype=dtype)
        return torch.equal(OneDnnMatrix(weight).product(x, None, x), functional.linear(x, weight) + x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def as_array(tensor: Tensor) -> Any:
    """The same memory as an array; a bfloat16 as the 16 bits that it is."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def as_tensor(array: Any) -> Tensor:
    """The inverse of `as_array`."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
