"""FlashAttention-2: the loops turned around, so that there is work for a whole device.

    for each tile of queries, side by side:       ← a block each: parallel over the sequence, too
        for each tile of keys and values:         ← into shared memory
            scores, maximum, sum, output          ← all in registers

Three things follow. The running maximum, sum and output of a query stay in registers from the first key to
the last. Blocks need nothing from each other. And the output need not be right in between: it is kept as a
plain sum of weighted values, rescaled when the maximum grows, and divided by l once, at the end:

    FlashAttention       o' = (o · l · e^(m - m') + Σ e^(s - m') v) / l'        a division for each tile
    FlashAttention-2     o' =  o · e^(m - m') + Σ e^(s - m') v                  one at the end

Within a block, warps divide the queries among themselves and share keys and values, so they never have to
add up what they computed apart (the first version's warps divided the keys).

One warp works on `rows` queries. Its 32 lanes are 32 keys while scores are computed, and 32 columns of the
output while values are added up; a shuffle brings each weight from the one to the other.

Source: Dao (2023), algorithm 1 and section 3.3. Read next: `paged_attention.py`.
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
    check_longest,
    check_same,
    check_starts,
)
from kernels_numba.cuda.naive_attention import NO_SCORE
from kernels_numba.cuda.notes import note_score, note_softmax, note_tile
from kernels_numba.cuda.tiles import HEAD_DIMS, KEYS, Tiles, check_tiles, choose_tiles, shared_bytes
from kernels_numba.cuda.warp import ALL_LANES, warp_max, warp_sum


@lru_cache(maxsize=64)
def make_kernel(head_dim: int, tiles: Tiles) -> Callable[..., Any]:
    """The kernel for heads of this width: sizes of arrays must be known when it is compiled."""
    rows, num_queries, num_threads = tiles.rows, tiles.num_queries, tiles.num_threads
    columns = head_dim // 32
    query_shape, key_shape = (num_queries, head_dim), (KEYS, head_dim + 1)
    sums_shape = (rows, columns)

    @cuda.jit(fastmath=True)
    def flash_attention_2(query, key, value, out, starts_q, starts_k, scale, causal):  # type: ignore[no-untyped-def]
        """Grid (tiles of queries, heads, sequences), block 32 · warps."""
        head, sequence, thread = cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32
        kv_head = head // (query.shape[1] // key.shape[1])
        start_q, start_k = starts_q[sequence], starts_k[sequence]
        len_q, len_k = starts_q[sequence + 1] - start_q, starts_k[sequence + 1] - start_k
        first_query = cuda.blockIdx.x * num_queries
        if first_query >= len_q:
            return  # the whole block: this sequence is shorter than the longest
        queries = cuda.shared.array(query_shape, float32)
        # Keys first, then values. One column more than needed: so the lanes, each on a row of its own, are on
        # different banks.
        tile = cuda.shared.array(key_shape, float32)
        scores = cuda.local.array(rows, float32)
        maxima = cuda.local.array(rows, float32)
        sums = cuda.local.array(rows, float32)
        total = cuda.local.array(sums_shape, float32)
        for r in range(rows):
            maxima[r] = NO_SCORE
            sums[r] = float32(0)
            for n in range(columns):
                total[r, n] = float32(0)
        for i in range(thread, num_queries * head_dim, num_threads):
            r, c = i // head_dim, i % head_dim
            inside = first_query + r < len_q
            queries[r, c] = query[start_q + first_query + r, head, c] * scale if inside else float32(0)

        offset = len_k - len_q  # query i stands at position offset + i
        end_key = min(len_k, first_query + num_queries + offset) if causal else len_k
        for first_key in range(0, end_key, KEYS):
            for i in range(thread, KEYS * head_dim, num_threads):
                r, c = i // head_dim, i % head_dim
                inside = first_key + r < len_k
                tile[r, c] = key[start_k + first_key + r, kv_head, c] if inside else float32(0)
            cuda.syncthreads()
            if thread == 0:
                end_query = min(len_q, first_query + num_queries)
                note_tile(head, first_query, end_query, first_key, min(len_k, first_key + KEYS))

            for r in range(rows):
                scores[r] = float32(0)
            for c in range(head_dim):
                k = tile[lane, c]
                for r in range(rows):
                    scores[r] += queries[warp * rows + r, c] * k
            for r in range(rows):
                i = first_query + warp * rows + r
                j = first_key + lane
                visible = j < len_k and (not causal or j <= i + offset)
                score = scores[r] if visible else NO_SCORE
                if visible and i < len_q:
                    note_score(head, i, j, score)
                maximum = max(maxima[r], warp_max(score))
                weight = math.exp(score - maximum) if visible else float32(0)
                rescale = math.exp(maxima[r] - maximum)
                sums[r] = sums[r] * rescale + warp_sum(weight)
                maxima[r] = maximum
                scores[r] = weight
                for n in range(columns):
                    total[r, n] *= rescale
                if lane == 0 and i < len_q:
                    note_softmax(head, i, maximum, sums[r], rescale)
            cuda.syncthreads()  # all warps have read these keys: the values may replace them

            for i in range(thread, KEYS * head_dim, num_threads):
                r, c = i // head_dim, i % head_dim
                inside = first_key + r < len_k
                tile[r, c] = value[start_k + first_key + r, kv_head, c] if inside else float32(0)
            cuda.syncthreads()
            for j in range(KEYS):
                for r in range(rows):
                    weight = cuda.shfl_sync(ALL_LANES, scores[r], j)
                    for n in range(columns):
                        total[r, n] += weight * tile[j, lane + 32 * n]
            cuda.syncthreads()  # and these values: the next keys may replace them

        for r in range(rows):
            i = first_query + warp * rows + r
            if i < len_q:
                for n in range(columns):
                    # A query without any key (more queries than keys) gets nothing.
                    share = total[r, n] / sums[r] if sums[r] > 0 else float32(0)
                    out[start_q + i, head, lane + 32 * n] = share

    return flash_attention_2  # type: ignore[no-any-return]


def flash_attention_2(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    starts_q: Any,
    starts_k: Any,
    *,
    longest_query: int,
    scale: float | None = None,
    causal: bool = True,
    tiles: Tiles | None = None,
    num_processors: int = 108,
) -> Launch:
    """Attention of several sequences, one behind the other in the same arrays.

    Args:
        query, out: [tokens, heads, head_dim], float32; `out` is written.
        key, value: [keys, kv_heads, head_dim].
        starts_q, starts_k: [sequences + 1], int32: where each begins, and at the end how many there are.
        longest_query: most queries of one sequence.
        scale: of the scores; `head_dim ** -0.5` if None.
        causal: does a query see only keys that are not after it? Queries are the last tokens of their keys.
        tiles: queries of a block; chosen if None.
        num_processors: multiprocessors of the device, for the choice.

    Raises:
        ValueError: shapes that do not fit together, or a head that is not a multiple of 32 up to 256.
    """
    for name, array in (("query", query), ("key", key), ("value", value), ("out", out)):
        check_array(name, array, "tokens, heads, head_dim")
    num_tokens, num_heads, head_dim = query.shape
    check_head_dim(head_dim, HEAD_DIMS)
    check_heads(num_heads, key.shape[1])
    check_same("the shape of value", tuple(value.shape), "key", tuple(key.shape))
    check_same("head_dim of key", key.shape[2], "query", head_dim)
    check_same("the shape of out", tuple(out.shape), "query", tuple(query.shape))
    check_starts("starts_q", starts_q, "query", num_tokens)
    check_starts("starts_k", starts_k, "key", key.shape[0])
    check_same("the length of starts_k", len(starts_k), "starts_q", len(starts_q))
    check_longest(longest_query, starts_q)
    tiles = tiles or choose_tiles(head_dim, num_tokens, num_heads, num_processors)
    check_tiles(tiles, shared_bytes(tiles, head_dim))
    factor = np.float32(head_dim**-0.5 if scale is None else scale)
    grid = (-(-longest_query // tiles.num_queries), num_heads, len(starts_q) - 1)
    return Launch(
        make_kernel(head_dim, tiles),
        grid,
        (tiles.num_threads,),
        (query, key, value, out, starts_q, starts_k, factor, causal),
    )
