"""Scales folded into a model: what multiplies a matrix's inputs is divided out by what makes them.

AWQ and SmoothQuant want W·diag(s) instead of W. The model computes the same if the inputs arrive divided
by s:

    matrix         its inputs are made by               so there
    ────────────   ──────────────────────────────────   ─────────────────────────────────────────────────
    q, k, v        the norm before attention            its weights are divided by s
    gate, up       the norm before the MLP              its weights are divided by s
    o              attention: a weighted mean of v      rows of v and of its bias are divided by s
    down           act(gate) · up                       rows of up and of its bias are divided by s

Attention mixes tokens, not channels: what leaves query head h in channel d is a mean of channel d of the KV
head that h reads. With grouped heads several query heads read one KV head, so their channels must share a
scale (`tie_query_heads`); AutoAWQ leaves o alone there. Nothing comes between a norm and its matrices, and
norms of single heads (Qwen3) come after q and k, so they do not mind.

Source: AWQ (arXiv 2306.00978), §3.2; SmoothQuant (arXiv 2211.10438), §4.
Read next: `minivllm/model/layers.py`, the layer that this is true of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm.model.layers import Attention, DecoderLayer, DenseMatrix, RMSNorm, StackedLinear


def fold_into_norm(norm: RMSNorm, linear: StackedLinear, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply `linear`'s input channels by `scales` [in], and divide them out of `norm`.

    The norm will be stored in `dtype`, perhaps with 8 bits of precision. So it is rounded first, and the
    matrix takes what is left to multiply by, which is returned [in]: the product stays what it was.
    """
    stored = (norm.weight / scales).to(dtype).to(norm.weight.dtype)
    scales = torch.where(stored == 0, 1.0, norm.weight / stored)
    norm.weight = torch.where(stored == 0, norm.weight, stored)
    multiply_inputs(linear, scales)
    return scales


def fold_into_values(attention: Attention, scales: Tensor) -> None:
    """Multiply the output matrix's inputs by `scales` [query heads · head_dim], tied as query heads are."""
    size = attention.num_kv_heads * attention.head_dim
    of_values = _by_kv_head(attention, scales)[:, 0].reshape(size)
    divide_outputs(attention.qkv, of_values, len(attention.qkv.matrix.dense()) - size)
    multiply_inputs(attention.output, scales)


def fold_into_up(layer: DecoderLayer, scales: Tensor) -> None:
    """Multiply `down`'s inputs by `scales` [intermediate], and divide them out of `up`."""
    divide_outputs(layer.mlp.gate_up, scales, len(scales))
    multiply_inputs(layer.mlp.down, scales)


def tie_query_heads(attention: Attention, scales: Tensor) -> Tensor:
    """One scale for the query heads that read the same KV head: the geometric mean of their own."""
    grouped = _by_kv_head(attention, scales)
    return grouped.log().mean(dim=1, keepdim=True).exp().expand_as(grouped).reshape(scales.shape)


def multiply_inputs(linear: StackedLinear, scales: Tensor) -> None:
    linear.matrix = DenseMatrix(linear.matrix.dense() * scales)


def divide_outputs(linear: StackedLinear, scales: Tensor, first: int) -> None:
    """Divide the rows from `first` on, and their biases, by `scales`."""
    weight = linear.matrix.dense().clone()
    weight[first : first + len(scales)].div_(scales[:, None])
    linear.matrix = DenseMatrix(weight)
    if linear.bias is not None:
        linear.bias[first : first + len(scales)].div_(scales)


def _by_kv_head(attention: Attention, scales: Tensor) -> Tensor:
    """Scales of query heads as [KV heads, query heads of each, head_dim]."""
    return scales.view(attention.num_kv_heads, -1, attention.head_dim)
