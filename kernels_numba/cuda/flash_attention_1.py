"""FlashAttention: no N × N matrix. Tiles in shared memory, and a softmax that can be continued.

The weights of a row are e^(s - m) / l, with m the largest of all its scores and l the sum. Neither is known
before the last key. But if more keys come, what was computed so far can be corrected:

    tile of keys   ──►  its own maximum     m' = max(m, max of the new scores)
                        old sum, corrected  l' = l · e^(m - m') + Σ e^(s - m')
                        old output, too     o' = (o · l · e^(m - m') + Σ e^(s - m') v) / l'

So keys and values can come tile by tile, each tile is read into shared memory once, and scores are never
written anywhere. The first version has keys and values outside and queries inside:

    for each tile of keys and values:             ← into shared memory, once
        for each tile of queries:                 ← m, l and o come from global memory, and go back to it
            scores, maximum, sum, output

Every query's m, l and o travel once for each tile of keys; and since tiles of keys must come one after
another, only heads and sequences run side by side. `flash_attention_2.py` turns the loops around.

One warp works on `rows` queries at a time. Its 32 lanes are 32 keys while scores are computed, and 32 columns
of the output while values are added up.

Source: Dao et al. (NeurIPS 2022), algorithm 1: Θ(N² d² / M) accesses, M being the size of shared memory.
Read next: `flash_attention_2.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda, float32

from kernels_numba.cuda.launch import (
    Launch,
    check_array,
    check_head_dim,
    check_heads,
    check_keys,
    check_same,
)
from kernels_numba.cuda.naive_attention import NO_SCORE
from kernels_numba.cuda.notes import note_score, note_softmax, note_tile
from kernels_numba.cuda.tiles import KEYS, STATIC_SHARED_BYTES, Tiles, check_tiles, choose_tiles
from kernels_numba.cuda.warp import ALL_LANES, warp_max, warp_sum

HEAD_DIMS = (32, 64, 96, 128)
"""Keys and values of a tile are in shared memory at once, so wider heads do not fit."""


@lru_cache(maxsize=64)
def make_kernel(head_dim: int, tiles: Tiles) -> Callable[..., Any]:
    """The kernel for heads of this width: sizes of arrays must be known when it is compiled."""
    rows, num_queries, num_threads = tiles.rows, tiles.num_queries, tiles.num_threads
    columns = head_dim // 32
    num_keys, parts = tiles.keys, tiles.keys // 32  # a lane has a key in each part
    query_shape, key_shape = (num_queries, head_dim), (num_keys, head_dim + 1)
    score_shape = (rows, parts)

    @cuda.jit(fastmath=True)
    def flash_attention_1(query, key, value, out, maxima, sums, scale, causal):  # type: ignore[no-untyped-def]
        """Grid (heads), block 32 · warps."""
        head, thread = cuda.blockIdx.x, cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32
        kv_head = head // (query.shape[1] // key.shape[1])
        len_q, len_k = query.shape[0], key.shape[0]
        queries = cuda.shared.array(query_shape, float32)
        # One column more than needed: so the lanes, each on a row of its own, are on different banks.
        keys = cuda.shared.array(key_shape, float32)
        values = cuda.shared.array(key_shape, float32)
        scores = cuda.local.array(score_shape, float32)
        total = cuda.local.array(columns, float32)

        for first_key in range(0, len_k, num_keys):
            for i in range(thread, num_keys * head_dim, num_threads):
                r, c = i // head_dim, i % head_dim
                inside = first_key + r < len_k
                keys[r, c] = key[first_key + r, kv_head, c] if inside else float32(0)
                values[r, c] = value[first_key + r, kv_head, c] if inside else float32(0)
            for first_query in range(0, len_q, num_queries):
                # A tile of keys that is later than all of these queries has nothing for them.
                if causal and first_key > first_query + num_queries - 1 + len_k - len_q:
                    continue
                for i in range(thread, num_queries * head_dim, num_threads):
                    r, c = i // head_dim, i % head_dim
                    inside = first_query + r < len_q
                    queries[r, c] = query[first_query + r, head, c] * scale if inside else float32(0)
                cuda.syncthreads()
                if thread == 0:
                    end_query, end_key = (
                        min(len_q, first_query + num_queries),
                        min(len_k, first_key + num_keys),
                    )
                    note_tile(head, first_query, end_query, first_key, end_key)

                for r in range(rows):
                    for p in range(parts):
                        scores[r, p] = float32(0)
                for c in range(head_dim):
                    for p in range(parts):
                        k = keys[32 * p + lane, c]
                        for r in range(rows):
                            scores[r, p] += queries[warp * rows + r, c] * k
                for r in range(rows):
                    i = first_query + warp * rows + r
                    last_key = min(len_k - 1, i + len_k - len_q) if causal else len_k - 1
                    old_maximum = maxima[head, i] if i < len_q and first_key > 0 else NO_SCORE
                    old_sum = sums[head, i] if i < len_q and first_key > 0 else float32(0)
                    maximum = old_maximum
                    for p in range(parts):
                        if first_key + 32 * p + lane <= last_key:
                            maximum = max(maximum, scores[r, p])
                            if i < len_q:
                                note_score(head, i, first_key + 32 * p + lane, scores[r, p])
                    maximum = warp_max(maximum)
                    rescale = math.exp(old_maximum - maximum)
                    added = float32(0)
                    for p in range(parts):
                        visible = first_key + 32 * p + lane <= last_key
                        scores[r, p] = math.exp(scores[r, p] - maximum) if visible else float32(0)
                        added += scores[r, p]
                    new_sum = old_sum * rescale + warp_sum(added)
                    for n in range(columns):
                        total[n] = float32(0)
                    for p in range(parts):
                        for j in range(32):
                            weight = cuda.shfl_sync(ALL_LANES, scores[r, p], j)
                            for n in range(columns):
                                total[n] += weight * values[32 * p + j, lane + 32 * n]
                    if i < len_q and new_sum > 0:
                        for n in range(columns):
                            c = lane + 32 * n
                            old = out[i, head, c] * old_sum * rescale if first_key > 0 else float32(0)
                            out[i, head, c] = (old + total[n]) / new_sum
                    cuda.syncwarp()  # all lanes have read m and l before one of them writes
                    if lane == 0 and i < len_q:
                        maxima[head, i] = maximum
                        sums[head, i] = new_sum
                        note_softmax(head, i, maximum, new_sum, rescale)
                cuda.syncthreads()  # all warps have read these queries: the next tile may replace them

    return flash_attention_1  # type: ignore[no-any-return]


def flash_attention_1(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    maxima: Any,
    sums: Any,
    *,
    scale: float | None = None,
    causal: bool = True,
    tiles: Tiles | None = None,
) -> Launch:
    """Attention of one sequence.

    Args:
        query, out: [tokens, heads, head_dim], float32; `out` is written.
        key, value: [keys, kv_heads, head_dim]; as many keys as queries, or more.
        maxima, sums: [heads, tokens], float32: the running softmax, written.
        scale: of the scores; `head_dim ** -0.5` if None.
        causal: does a query see only keys that are not after it?
        tiles: queries of a block; chosen if None.

    Raises:
        ValueError: shapes that do not fit together, or a head whose width is not in `HEAD_DIMS`.
    """
    for name, array in (("query", query), ("key", key), ("value", value), ("out", out)):
        check_array(name, array, "tokens, heads, head_dim")
    num_tokens, num_heads, head_dim = query.shape
    check_head_dim(head_dim, HEAD_DIMS)
    check_heads(num_heads, key.shape[1])
    check_same("the shape of value", tuple(value.shape), "key", tuple(key.shape))
    check_same("head_dim of key", key.shape[2], "query", head_dim)
    check_keys(num_tokens, key.shape[0], causal)
    check_same("the shape of out", tuple(out.shape), "query", tuple(query.shape))
    for name, array in (("maxima", maxima), ("sums", sums)):
        check_array(name, array, "heads, tokens")
        check_same(f"the shape of {name}", tuple(array.shape), "heads, tokens", (num_heads, num_tokens))
    values = 4 * KEYS * (head_dim + 1)  # beside the keys, which `choose_tiles` counts
    tiles = tiles or choose_tiles(head_dim, num_tokens, num_heads, shared_memory=STATIC_SHARED_BYTES - values)
    needed = 4 * (2 * tiles.keys * (head_dim + 1) + tiles.num_queries * head_dim)
    check_tiles(tiles, needed, keys=(32, 64, 96, 128))
    factor = np.float32(head_dim**-0.5 if scale is None else scale)
    return Launch(
        make_kernel(head_dim, tiles),
        (num_heads,),
        (tiles.num_threads,),
        (query, key, value, out, maxima, sums, factor, causal),
    )
