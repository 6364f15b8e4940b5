"""FlashAttention-2 on tensor cores: matrix products by whole warps, copies that run beside them.

The algorithm is that of `flash_attention_2.py`. What changes is the unit that computes: a multiply-add of one
lane becomes a 16 × 8 × 16 product of one warp, 2,048 of them in one instruction.

    one warp        16 queries, in registers for the whole time, and the 16 rows of the output
    one tile        32 keys and 32 values, in shared memory, for all 4 warps
    two buffers     while one tile is worked on, the next is on its way

    S = Q Kᵀ        for each 8 keys: a product for each 16 columns
    softmax         a row of S lies in the registers of 4 lanes: two shuffles find its maximum
    O += P V        the registers of S, packed to 16 bits, have the pattern of a left operand already

Rows of a tile are 16 bytes longer than they need to be, so that the eight rows of a matrix begin on different
banks, and `load_matrices` needs one turn for each.

Scores, sums and the output are float32; only what goes into a product is rounded to 16 bits.

Sources: Dao (2023); NVIDIA, CUTLASS, for how registers of one product become operands of the next.
Read next: `tensor_core.py`, `microscope/__init__.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda, float32, uint32

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
from kernels_numba.cuda.notes import note_softmax, note_tile
from kernels_numba.cuda.tensor_core import (
    commit_copies,
    copy_later,
    load_matrices,
    load_matrices_transposed,
    multiply_add_bf16,
    multiply_add_f16,
    pack_bf16,
    pack_f16,
    wait_for_all_but_newest,
)
from kernels_numba.cuda.warp import ALL_LANES

HEAD_DIMS = (32, 64, 96, 128)
"""Wider heads have more sums than a lane has registers."""
DTYPES = ("float16", "bfloat16")
KEYS = 32
NUM_WARPS = 4
QUERIES = 16 * NUM_WARPS
NUM_THREADS = 32 * NUM_WARPS


@lru_cache(maxsize=16)
def make_kernel(head_dim: int, dtype: str) -> Callable[..., Any]:
    """The kernel for heads of this width and type."""
    is_bf16 = dtype == "bfloat16"
    multiply_add, pack = (multiply_add_bf16, pack_bf16) if is_bf16 else (multiply_add_f16, pack_f16)
    words = head_dim // 2  # of two numbers, in a row
    steps, columns, key_groups = head_dim // 16, head_dim // 8, KEYS // 8
    chunks = KEYS * words // 4  # of 16 bytes, in a tile
    tile_shape = (2, KEYS, words + 4)
    query_shape, total_shape, score_shape = (steps, 4), (columns, 4), (key_groups, 4)
    weight_shape = (key_groups // 2, 4)

    @cuda.jit(fastmath=True)
    def flash_attention_tensor_core(query, key, value, out, starts_q, starts_k, scale, causal):  # type: ignore[no-untyped-def]
        """Grid (tiles of 64 queries, heads, sequences), block 128."""
        head, sequence, thread = cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32
        g, t = lane // 4, lane % 4
        kv_head = head // (query.shape[1] // key.shape[1])
        start_q, start_k = starts_q[sequence], starts_k[sequence]
        len_q, len_k = starts_q[sequence + 1] - start_q, starts_k[sequence + 1] - start_k
        first_query = cuda.blockIdx.x * QUERIES
        if first_query >= len_q:
            return  # the whole block
        keys = cuda.shared.array(tile_shape, uint32)
        values = cuda.shared.array(tile_shape, uint32)
        queries = cuda.local.array(query_shape, uint32)
        total = cuda.local.array(total_shape, float32)
        scores = cuda.local.array(score_shape, float32)
        weights = cuda.local.array(weight_shape, uint32)

        row0 = first_query + 16 * warp + g  # this lane's two rows
        row1 = row0 + 8
        for n in range(columns):
            for i in range(4):
                total[n, i] = float32(0)
        for k in range(steps):
            for i in range(4):
                row = row0 if i % 2 == 0 else row1
                queries[k, i] = uint32(0)
                if row < len_q:
                    queries[k, i] = query[start_q + row, head, 8 * k + t + 4 * (i // 2)]
        maximum0 = maximum1 = NO_SCORE
        sum0 = sum1 = float32(0)
        offset = len_k - len_q  # query i stands at position offset + i
        end_key = min(len_k, first_query + QUERIES + offset) if causal else len_k
        num_tiles = max(0, (end_key + KEYS - 1) // KEYS)

        for n in range(num_tiles + 1):
            # Send for tile n, then work on tile n - 1.
            for i in range(thread, chunks, NUM_THREADS):
                r, c = i // (words // 4), 4 * (i % (words // 4))
                j = n * KEYS + r
                inside = n < num_tiles and j < len_k
                source = start_k + (j if inside else 0)
                copy_later(keys, (n % 2, r, c), key, (source, kv_head, c), inside)
                copy_later(values, (n % 2, r, c), value, (source, kv_head, c), inside)
            commit_copies()
            if n > 0:
                wait_for_all_but_newest()
                cuda.syncthreads()  # the copies of all threads have arrived
                buffer, first_key = (n - 1) % 2, (n - 1) * KEYS
                if thread == 0:
                    end_query = min(len_q, first_query + QUERIES)
                    note_tile(head, first_query, end_query, first_key, min(len_k, first_key + KEYS))

                for j in range(key_groups):
                    x0 = x1 = x2 = x3 = float32(0)
                    for k in range(0, steps, 2):
                        # 8 keys × 32 columns: the right operands of two products
                        b0, b1, b2, b3 = load_matrices(
                            keys, (buffer, 8 * j + lane % 8, 8 * k + 4 * (lane // 8))
                        )
                        x0, x1, x2, x3 = multiply_add(
                            queries[k, 0], queries[k, 1], queries[k, 2], queries[k, 3], b0, b1, x0, x1, x2, x3
                        )
                        x0, x1, x2, x3 = multiply_add(
                            queries[k + 1, 0], queries[k + 1, 1], queries[k + 1, 2], queries[k + 1, 3],
                            b2, b3, x0, x1, x2, x3,
                        )  # fmt: skip
                    column = first_key + 8 * j + 2 * t
                    last0 = min(len_k - 1, row0 + offset) if causal else len_k - 1
                    last1 = min(len_k - 1, row1 + offset) if causal else len_k - 1
                    scores[j, 0] = x0 * scale if column <= last0 else NO_SCORE
                    scores[j, 1] = x1 * scale if column + 1 <= last0 else NO_SCORE
                    scores[j, 2] = x2 * scale if column <= last1 else NO_SCORE
                    scores[j, 3] = x3 * scale if column + 1 <= last1 else NO_SCORE

                new0, new1 = maximum0, maximum1
                for j in range(key_groups):
                    new0 = max(new0, max(scores[j, 0], scores[j, 1]))
                    new1 = max(new1, max(scores[j, 2], scores[j, 3]))
                for distance in (1, 2):  # the other three lanes of these rows
                    new0 = max(new0, cuda.shfl_xor_sync(ALL_LANES, new0, distance))
                    new1 = max(new1, cuda.shfl_xor_sync(ALL_LANES, new1, distance))
                rescale0, rescale1 = math.exp(maximum0 - new0), math.exp(maximum1 - new1)
                maximum0, maximum1 = new0, new1
                sum0 *= rescale0
                sum1 *= rescale1
                for j in range(key_groups):
                    for i in range(4):
                        seen = scores[j, i] > NO_SCORE
                        w = math.exp(scores[j, i] - (maximum0 if i < 2 else maximum1))
                        scores[j, i] = w if seen else float32(0)
                    sum0 += scores[j, 0] + scores[j, 1]
                    sum1 += scores[j, 2] + scores[j, 3]
                for j in range(key_groups // 2):
                    weights[j, 0] = pack(scores[2 * j, 0], scores[2 * j, 1])
                    weights[j, 1] = pack(scores[2 * j, 2], scores[2 * j, 3])
                    weights[j, 2] = pack(scores[2 * j + 1, 0], scores[2 * j + 1, 1])
                    weights[j, 3] = pack(scores[2 * j + 1, 2], scores[2 * j + 1, 3])
                for c in range(columns):
                    total[c, 0] *= rescale0
                    total[c, 1] *= rescale0
                    total[c, 2] *= rescale1
                    total[c, 3] *= rescale1
                for j in range(key_groups // 2):
                    for c in range(0, columns, 2):
                        # 16 keys × 16 columns, by columns: the right operands of two products
                        b0, b1, b2, b3 = load_matrices_transposed(
                            values, (buffer, 16 * j + lane % 16, 4 * c + 4 * (lane // 16))
                        )
                        total[c, 0], total[c, 1], total[c, 2], total[c, 3] = multiply_add(
                            weights[j, 0], weights[j, 1], weights[j, 2], weights[j, 3], b0, b1,
                            total[c, 0], total[c, 1], total[c, 2], total[c, 3],
                        )  # fmt: skip
                        total[c + 1, 0], total[c + 1, 1], total[c + 1, 2], total[c + 1, 3] = multiply_add(
                            weights[j, 0], weights[j, 1], weights[j, 2], weights[j, 3], b2, b3,
                            total[c + 1, 0], total[c + 1, 1], total[c + 1, 2], total[c + 1, 3],
                        )  # fmt: skip
                cuda.syncthreads()  # all warps have read this buffer: the copies after next may fill it

        for distance in (1, 2):
            sum0 += cuda.shfl_xor_sync(ALL_LANES, sum0, distance)
            sum1 += cuda.shfl_xor_sync(ALL_LANES, sum1, distance)
        if t == 0 and row0 < len_q:
            note_softmax(head, row0, maximum0, sum0, float32(1))
        if t == 0 and row1 < len_q:
            note_softmax(head, row1, maximum1, sum1, float32(1))
        share0 = float32(1) / sum0 if sum0 > 0 else float32(0)
        share1 = float32(1) / sum1 if sum1 > 0 else float32(0)
        for c in range(columns):
            if row0 < len_q:
                out[start_q + row0, head, 4 * c + t] = pack(total[c, 0] * share0, total[c, 1] * share0)
            if row1 < len_q:
                out[start_q + row1, head, 4 * c + t] = pack(total[c, 2] * share1, total[c, 3] * share1)

    return flash_attention_tensor_core  # type: ignore[no-any-return]


def flash_attention_tensor_core(
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    starts_q: Any,
    starts_k: Any,
    *,
    longest_query: int,
    dtype: str = "bfloat16",
    scale: float | None = None,
    causal: bool = True,
) -> Launch:
    """Attention of several sequences, one behind the other in the same arrays.

    Args:
        query, out: [tokens, heads, head_dim / 2], uint32: words of two 16-bit numbers; `out` is written.
        key, value: [keys, kv_heads, head_dim / 2], the same.
        starts_q, starts_k: [sequences + 1], int32: where each begins, and at the end how many there are.
        longest_query: most queries of one sequence.
        dtype: of the numbers, one of `DTYPES`.
        scale: of the scores; `head_dim ** -0.5` if None.
        causal: does a query see only keys that are not after it? Queries are the last tokens of their keys.

    Raises:
        ValueError: shapes that do not fit together, or a head whose width is not in `HEAD_DIMS`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    for name, array in (("query", query), ("key", key), ("value", value), ("out", out)):
        check_array(name, array, "tokens, heads, head_dim / 2", ("uint32",))
    num_tokens, num_heads, words = query.shape
    check_head_dim(2 * words, HEAD_DIMS)
    check_heads(num_heads, key.shape[1])
    check_same("the shape of value", tuple(value.shape), "key", tuple(key.shape))
    check_same("head_dim of key", 2 * key.shape[2], "query", 2 * words)
    check_same("the shape of out", tuple(out.shape), "query", tuple(query.shape))
    check_starts("starts_q", starts_q, "query", num_tokens)
    check_starts("starts_k", starts_k, "key", key.shape[0])
    check_same("the length of starts_k", len(starts_k), "starts_q", len(starts_q))
    check_longest(longest_query, starts_q)
    factor = np.float32((2 * words) ** -0.5 if scale is None else scale)
    return Launch(
        make_kernel(2 * words, dtype),
        (-(-longest_query // QUERIES), num_heads, len(starts_q) - 1),
        (NUM_THREADS,),
        (query, key, value, out, starts_q, starts_k, factor, causal),
    )
