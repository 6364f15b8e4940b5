"""Weights in the order in which the processor's matrix units want them.

A product reads its weights in tiles. Row after row, as a checkpoint has them, they must be put in that order
every time, which for a few tokens takes as long as the product itself. oneDNN, which torch comes with, does
it once and keeps the result, an opaque tensor of the same size.

The operators are torch's own but not public, so everything here asks first whether they are there and work.
Read next: `minivllm/model/layers.py`, whose products use them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

DTYPES = (torch.float32, torch.bfloat16)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether products of this type can be packed on this processor, found out by trying."""
    if dtype not in DTYPES or not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    try:
        x, weight = torch.ones(2, 16, dtype=dtype), torch.ones(16, 16, dtype=dtype)
        return torch.equal(packed_linear(x, pack(weight), None, x), functional.linear(x, weight) + x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def pack(weight: Tensor) -> Tensor:
    """`weight` [out, in] in oneDNN's order; `to_dense()` gives it back."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
    """`x Wᵀ + bias + added` for a packed W; the sum is rounded once."""
    product: Tensor
    if added is None:
        product = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    else:
        product = torch.ops.mkldnn._linear_pointwise.binary(x, added, packed, bias, "add")
    return product
