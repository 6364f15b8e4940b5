"""A matrix in oneDNN's order: the library that torch multiplies with on a CPU.

A product reads its weights in tiles. Row after row, as a checkpoint has them, they must be put in that order
every time, which for a few tokens takes as long as the product itself. A packed matrix is put in order once
and kept in that order only. This one is best where processors have matrix units of their own (AMX); our own
order, panels, is in `minivllm/executor/runners/compiled.py`.

oneDNN's operators are torch's own but not public, so everything here asks first whether they are there and
work. Read next: `minivllm/executor/runners/fused.py`, which multiplies by such matrices.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.matrix import Matrix

DTYPES = (torch.float32, torch.bfloat16)
"""Types of numbers that there are fast paths for on a CPU."""


class OneDnnMatrix(Matrix):
    """A matrix in oneDNN's order, an opaque tensor of the same size."""

    def __init__(self, weight: Tensor) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._num_bytes = weight.numel() * weight.element_size()

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
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

    @property
    def num_bytes(self) -> int:
        return self._num_bytes


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
