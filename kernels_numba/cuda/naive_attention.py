"""Naive attention, as the formula is written: all N × N scores, in global memory.

    scores = Q Kᵀ · scale          N · N cells written
    weights = softmax(scores)      N · N cells read, and written
    out = weights V                N · N cells read

Three kernels, and between them everything goes through global memory. For 4,096 tokens and one head in
float32 that is 64 MB of scores to save 6 MB of queries, keys and values: the arithmetic units wait. It is
the baseline that FlashAttention is measured against, and easy to read.

Source: Vaswani et al. (2017), section 3.2.1; counted as in Dao et al., "FlashAttention" (2022), section 3.1:
Θ(N d + N²) accesses. Read next: `flash_attention_1.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32

from kernels_numba.cuda.launch import Launch, check_array, check_heads, check_keys, check_same
from kernels_numba.cuda.warp import warp_max, warp_sum

NO_SCORE = np.float32(-1e30)
"""Of a key that a query may not see. Its weight, e to this power, is exactly 0."""
TILE = 16
"""The score kernel's blocks: 16 queries × 16 keys."""


@cuda.jit(fastmath=True)
def score_kernel(query, key, scores, scale, causal):  # type: ignore[no-untyped-def]
    """One thread for one score: grid (keys / 16, queries / 16, heads), block (16, 16)."""
    j, i = cuda.grid(2)
    head = cuda.blockIdx.z
    if i >= query.shape[0] or j >= key.shape[0]:
        return
    kv_head = head // (query.shape[1] // key.shape[1])
    total = float32(0)
    for c in range(query.shape[2]):
        total += query[i, head, c] * key[j, kv_head, c]
    # Query i is the i-th of the last tokens: with more keys than queries, it stands that much later.
    visible = not causal or j <= i + key.shape[0] - query.shape[0]
    scores[head, i, j] = total * scale if visible else NO_SCORE


@cuda.jit(fastmath=True)
def softmax_kernel(scores):  # type: ignore[no-untyped-def]
    """One warp for one row: grid (queries, heads), block 32."""
    i, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    num_keys = scores.shape[2]
    maximum = NO_SCORE
    for j in range(lane, num_keys, 32):
        maximum = max(maximum, scores[head, i, j])
    maximum = warp_max(maximum)
    total = float32(0)
    for j in range(lane, num_keys, 32):
        weight = math.exp(scores[head, i, j] - maximum)
        scores[head, i, j] = weight
        total += weight
    total = warp_sum(total)
    for j in range(lane, num_keys, 32):
        scores[head, i, j] /= total


@cuda.jit(fastmath=True)
def value_kernel(scores, value, out):  # type: ignore[no-untyped-def]
    """One thread for one number of the output: grid (queries, heads), block head_dim."""
    i, head, c = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    kv_head = head // (out.shape[1] // value.shape[1])
    total = float32(0)
    for j in range(value.shape[0]):
        total += scores[head, i, j] * value[j, kv_head, c]
    out[i, head, c] = total


def naive_attention(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    scores: Any,
    *,
    scale: float | None = None,
    causal: bool = True,
) -> list[Launch]:
    """Attention of one sequence, in three launches.

    Args:
        query, out: [tokens, heads, head_dim], float32; `out` is written.
        key, value: [keys, kv_heads, head_dim]; as many keys as queries, or more.
        scores: [heads, tokens, keys], written: the room that this takes is the point.
        scale: of the scores; `head_dim ** -0.5` if None.
        causal: does a query see only keys that are not after it?

    Raises:
        ValueError: shapes that do not fit together.
    """
    for name, array in (("query", query), ("key", key), ("value", value), ("out", out)):
        check_array(name, array, "tokens, heads, head_dim")
    check_array("scores", scores, "heads, tokens, keys")
    num_tokens, num_heads, head_dim = query.shape
    check_heads(num_heads, key.shape[1])
    check_same("the shape of value", tuple(value.shape), "key", tuple(key.shape))
    check_same("head_dim of key", key.shape[2], "query", head_dim)
    check_keys(num_tokens, key.shape[0], causal)
    check_same("the shape of out", tuple(out.shape), "query", tuple(query.shape))
    check_same(
        "the shape of scores",
        tuple(scores.shape),
        "heads, tokens, keys",
        (num_heads, num_tokens, key.shape[0]),
    )
    factor = np.float32(head_dim**-0.5 if scale is None else scale)
    tiles = (-(-key.shape[0] // TILE), -(-num_tokens // TILE), num_heads)
    return [
        Launch(score_kernel, tiles, (TILE, TILE), (query, key, scores, factor, causal)),
        Launch(softmax_kernel, (num_tokens, num_heads), (32,), (scores,)),
        Launch(value_kernel, (num_tokens, num_heads), (head_dim,), (scores, value, out)),
    ]
