"""Paged attention: one new token of each sequence against a cache that lies in blocks.

Decoding is reading. Each key and value is used for a handful of multiplications, so the time is that of
fetching them, and what counts is that they are fetched once, all lanes at work, in wide loads:

    block table of sequence 3:   [ 7 | 2 | 9 | 4 ]
                                   │   │   │   └─ warp 3      each warp walks its own blocks: 0, 4, 8, …
                                   │   │   └───── warp 2                                     1, 5, 9, …
                                   │   └───────── warp 1
                                   └───────────── warp 0
    in block 7, head 0:   ┌ row 0: 16 bytes a lane │ lane 0 │ lane 1 │ … │ lane 15 │    (head_dim 64, float32)
                          └ row 1:                 │ lane 16 │          … │ lane 31 │   one load: 512 bytes

A row of 64 float32 is 16 lanes wide, so a warp takes two rows at a time. Each group of lanes multiplies its
part of the key with its part of the query, a butterfly adds the parts up, and an online softmax goes on from
there, in registers, for the rows of that group. At the end there are 2 groups × 4 warps with a maximum, a sum
and an output each: they are merged by shuffles, and then through shared memory.

Query heads that share a KV head (grouped-query attention) are served by one thread block: what was loaded
once is used for all of them. With few sequences and long contexts a device has more multiprocessors than
there are thread blocks; then a sequence is cut into *splits*, each a thread block of its own, and a second
kernel merges them.

The number of splits follows from the batch, and with it the order of sums, and so the last bits of a result.
Where their *size* is given instead (`split_keys`), all follows from positions: warps walk tiles of 16 tokens,
whatever the size of blocks, and splits behind a sequence's end add nothing, exactly. Then a token's result is
the same bits alone and in any company (`docs/batch-invariance.md`).

In 8 bits a row has half the bytes again. Numbers are widened as they are loaded, and their scales are not
multiplied into each of them: a score is multiplied by that of its key, and a weight by that of its value.

Sources: Kwon et al. (SOSP 2023), section 5.1; Dao et al., "Flash-Decoding" (2023), for the splits.
Read next: `quantized_product.py`, `kv_write.py`, `copy_blocks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda, float32

from kernels_numba.cuda.instructions import (
    e4m3_at,
    high_half,
    int8_at,
    load_float4,
    load_uint4,
    low_half,
)
from kernels_numba.cuda.launch import Launch, check_array, check_head_dim, check_heads, check_same
from kernels_numba.cuda.naive_attention import NO_SCORE
from kernels_numba.cuda.warp import ALL_LANES

HEAD_DIMS = (32, 64, 96, 128, 160, 192, 224, 256)
PLAIN_DTYPES, SMALL_DTYPES = ("float32", "float16", "bfloat16"), ("int8", "fp8")
CACHE_DTYPES = (*PLAIN_DTYPES, *SMALL_DTYPES)
PER_WORD = {"float32": 1, "float16": 2, "bfloat16": 2, "int8": 4, "fp8": 4}
"""Numbers of a cache in 32 bits."""
MAX_HEADS_PER_BLOCK = 4
"""Query heads that one thread block serves: more of them take registers and leave fewer warps resident."""
NUM_WARPS = 4
BLOCKS_PER_PROCESSOR = 2
"""Thread blocks for each multiprocessor, so that one computes while another waits for memory."""
MIN_BLOCKS_PER_SPLIT = 16
"""KV-cache blocks of a split: fewer are not worth merging."""
TILE_KEYS, SPLIT_KEYS = 16, 256
"""Positions that a warp takes together and those of a split, where the order of sums must not depend on the
batch: a multiple of the rows that are loaded at once, and of all warps' tiles."""


@lru_cache(maxsize=256)
def make_kernel(
    head_dim: int, group: int, cache_dtype: str, in_one_order: bool = False
) -> Callable[..., Any]:
    """The kernel for these heads and this cache; `in_one_order`, warps walk tiles instead of blocks."""
    is_wide, is_bf16 = cache_dtype == "float32", cache_dtype == "bfloat16"
    is_small, is_int8 = cache_dtype in SMALL_DTYPES, cache_dtype == "int8"
    byte_at = int8_at if is_int8 else e4m3_at
    per_load = 4 * PER_WORD[cache_dtype]  # numbers in 16 bytes
    loads = -(-head_dim // (32 * per_load))  # of a lane, for each row
    row_lanes = 1
    while row_lanes * per_load * loads < head_dim:
        row_lanes *= 2  # a power of two, for the butterfly; the last of them may have nothing to do
    rows = 32 // row_lanes
    own = per_load * loads  # numbers of a row that are one lane's
    own_shape, state_shape, merged_shape = (group, own), (NUM_WARPS, group), (NUM_WARPS, group, head_dim)
    num_threads = 32 * NUM_WARPS

    @cuda.jit(device=True)
    def load_row(cache, block, head, row, part, loaded):  # type: ignore[no-untyped-def]
        """This lane's part of a row, as float32."""
        for n in range(loads):
            first = (n * row_lanes + part) * per_load
            if first >= head_dim:
                for e in range(per_load):
                    loaded[n * per_load + e] = float32(0)
            elif is_wide:
                a, b, c, d = load_float4(cache, (block, head, row, first))
                loaded[n * per_load] = a
                loaded[n * per_load + 1] = b
                loaded[n * per_load + 2] = c
                loaded[n * per_load + 3] = d
            elif is_small:
                a, b, c, d = load_uint4(cache, (block, head, row, first // 4))
                for e in range(4):
                    loaded[n * per_load + e] = byte_at(a, e)
                    loaded[n * per_load + 4 + e] = byte_at(b, e)
                    loaded[n * per_load + 8 + e] = byte_at(c, e)
                    loaded[n * per_load + 12 + e] = byte_at(d, e)
            else:
                a, b, c, d = load_uint4(cache, (block, head, row, first // 2))
                loaded[n * per_load] = low_half(a, is_bf16)
                loaded[n * per_load + 1] = high_half(a, is_bf16)
                loaded[n * per_load + 2] = low_half(b, is_bf16)
                loaded[n * per_load + 3] = high_half(b, is_bf16)
                loaded[n * per_load + 4] = low_half(c, is_bf16)
                loaded[n * per_load + 5] = high_half(c, is_bf16)
                loaded[n * per_load + 6] = low_half(d, is_bf16)
                loaded[n * per_load + 7] = high_half(d, is_bf16)

    @cuda.jit(device=True)
    def scale_at(scales, block, head, row):  # type: ignore[no-untyped-def]
        """What a row in 8 bits is multiplied by: its own number, or that of all rows."""
        if is_int8:
            return scales[block, head, row]
        return scales

    @cuda.jit(fastmath=True)
    def paged_attention(  # type: ignore[no-untyped-def]
        query, keys, values, tables, lengths, out, log_sums, scale, split_keys, key_scales, value_scales
    ):
        """Grid (sequences, groups of heads, splits), block 32 · warps."""
        sequence, heads, split = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        thread = cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32
        part, row_of_lane = lane % row_lanes, lane // row_lanes
        first_head = heads * group
        kv_head = first_head // (query.shape[1] // keys.shape[1])
        block_size, first_key = keys.shape[2], split * split_keys
        end_key = min(lengths[sequence], first_key + split_keys)

        queries = cuda.local.array(own_shape, float32)
        total = cuda.local.array(own_shape, float32)
        maxima = cuda.local.array(group, float32)
        sums = cuda.local.array(group, float32)
        weights = cuda.local.array(group, float32)
        loaded = cuda.local.array(own, float32)
        for g in range(group):
            maxima[g] = NO_SCORE
            sums[g] = float32(0)
            for n in range(loads):
                for e in range(per_load):
                    c = (n * row_lanes + part) * per_load + e
                    total[g, n * per_load + e] = float32(0)
                    queries[g, n * per_load + e] = float32(0)
                    if c < head_dim:
                        queries[g, n * per_load + e] = query[sequence, first_head + g, c] * scale

        tile = TILE_KEYS if in_one_order else block_size
        for first in range(first_key + warp * tile, end_key, NUM_WARPS * tile):
            block = tables[sequence, first // block_size]
            for first_row in range(0, tile, rows):
                row = first_row + row_of_lane
                position = first + row
                inside = row < tile and position < end_key
                key_scale = float32(1)
                if inside:  # cells behind the last token belong to no sequence and are never read
                    if in_one_order:
                        block, row = tables[sequence, position // block_size], position % block_size
                    load_row(keys, block, kv_head, row, part, loaded)
                    if is_small:
                        key_scale = scale_at(key_scales, block, kv_head, row)
                for g in range(group):
                    score = float32(0)
                    if inside:
                        for c in range(own):
                            score += queries[g, c] * loaded[c]
                    distance = row_lanes // 2
                    while distance > 0:
                        score += cuda.shfl_xor_sync(ALL_LANES, score, distance)
                        distance //= 2
                    if is_small:
                        score *= key_scale
                    maximum = max(maxima[g], score) if inside else maxima[g]
                    weights[g] = math.exp(score - maximum) if inside else float32(0)
                    rescale = math.exp(maxima[g] - maximum)
                    maxima[g] = maximum
                    sums[g] = sums[g] * rescale + weights[g]
                    for c in range(own):
                        total[g, c] *= rescale
                if inside:
                    load_row(values, block, kv_head, row, part, loaded)
                    for g in range(group):
                        if is_small:
                            weights[g] *= scale_at(value_scales, block, kv_head, row)
                        for c in range(own):
                            total[g, c] += weights[g] * loaded[c]

        # The groups of lanes of this warp have each seen other rows.
        distance = row_lanes
        while distance < 32:
            for g in range(group):
                other = cuda.shfl_xor_sync(ALL_LANES, maxima[g], distance)
                maximum = max(maxima[g], other)
                mine, theirs = math.exp(maxima[g] - maximum), math.exp(other - maximum)
                maxima[g] = maximum
                sums[g] = sums[g] * mine + cuda.shfl_xor_sync(ALL_LANES, sums[g], distance) * theirs
                for c in range(own):
                    added = cuda.shfl_xor_sync(ALL_LANES, total[g, c], distance)
                    total[g, c] = total[g, c] * mine + added * theirs
            distance *= 2

        # The warps have each seen other blocks.
        warp_maxima = cuda.shared.array(state_shape, float32)
        warp_sums = cuda.shared.array(state_shape, float32)
        warp_totals = cuda.shared.array(merged_shape, float32)
        if row_of_lane == 0:
            for g in range(group):
                if part == 0:
                    warp_maxima[warp, g] = maxima[g]
                    warp_sums[warp, g] = sums[g]
                for n in range(loads):
                    for e in range(per_load):
                        c = (n * row_lanes + part) * per_load + e
                        if c < head_dim:
                            warp_totals[warp, g, c] = total[g, n * per_load + e]
        cuda.syncthreads()
        for i in range(thread, group * head_dim, num_threads):
            g, c = i // head_dim, i % head_dim
            maximum = NO_SCORE
            for w in range(NUM_WARPS):
                maximum = max(maximum, warp_maxima[w, g])
            all_sums, all_totals = float32(0), float32(0)
            for w in range(NUM_WARPS):
                weight = math.exp(warp_maxima[w, g] - maximum)
                all_sums += warp_sums[w, g] * weight
                all_totals += warp_totals[w, g, c] * weight
            is_empty = all_sums == 0  # a split behind the end of this sequence
            out[sequence, first_head + g, split, c] = float32(0) if is_empty else all_totals / all_sums
            if c == 0:
                log_sum = NO_SCORE if is_empty else maximum + math.log(all_sums)
                log_sums[sequence, first_head + g, split] = log_sum

    return paged_attention  # type: ignore[no-any-return]


@cuda.jit(fastmath=True)
def combine_splits(parts, log_sums, out):  # type: ignore[no-untyped-def]
    """One output from those of the splits: grid (sequences, heads), block head_dim.

    A split's weight among all is its sum of e^score, which it has left as a logarithm.
    """
    sequence, head, c = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    maximum = NO_SCORE
    for split in range(parts.shape[2]):
        maximum = max(maximum, log_sums[sequence, head, split])
    weights, total = float32(0), float32(0)
    for split in range(parts.shape[2]):
        weight = math.exp(log_sums[sequence, head, split] - maximum)
        weights += weight
        total += weight * parts[sequence, head, split, c]
    out[sequence, head, c] = total / weights


def choose_splits(num_sequences: int, num_kv_heads: int, max_blocks: int, num_processors: int = 108) -> int:
    """Into how many parts to cut each sequence: one, if there is enough to do for every multiprocessor.

    Args:
        max_blocks: KV-cache blocks of the longest sequence.
    """
    splits = BLOCKS_PER_PROCESSOR * num_processors // max(1, num_sequences * num_kv_heads)
    return max(1, min(splits, max_blocks // MIN_BLOCKS_PER_SPLIT))


def paged_attention(
    query: Any,
    keys: Any,
    values: Any,
    tables: Any,
    lengths: Any,
    out: Any,
    parts: Any,
    log_sums: Any,
    *,
    scale: float | None = None,
    split_keys: int | None = None,
    cache_dtype: str = "float32",
    key_scales: Any = 1.0,
    value_scales: Any = 1.0,
) -> list[Launch]:
    """One new token of each sequence against its keys and values in the cache.

    Args:
        query, out: [sequences, heads, head_dim], float32; `out` is written.
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], float32; of narrower numbers the
            same memory as uint32, so that the last dimension is head_dim / 2, or head_dim / 4.
        tables: [sequences, max blocks], int32: the block of each piece of a sequence.
        lengths: [sequences], int32: tokens of each, the new one included.
        parts, log_sums: [sequences, heads, splits, head_dim] and [sequences, heads, splits], float32,
            written: what each split comes to. With one split, `parts` may be `out` in that shape.
        scale: of the scores; `head_dim ** -0.5` if None.
        split_keys: positions of a split, so that results do not depend on how many there are; None: tables
            are cut into as many equal parts as `parts` has room for.
        cache_dtype: one of `CACHE_DTYPES`.
        key_scales, value_scales: what 8-bit numbers are multiplied by: of "int8" [blocks, kv_heads,
            block_size], float32; of "fp8" a number.

    Raises:
        ValueError: shapes that do not fit together, heads that the kernel is not made for, a table that
            points outside the cache, or a length beyond its table.
    """
    group = _check_arguments(query, keys, values, tables, lengths, out, parts, log_sums, cache_dtype)
    if cache_dtype == "int8":
        for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
            check_array(name, scales, "blocks, kv_heads, block_size")
            check_same(f"the shape of {name}", tuple(scales.shape), "keys", tuple(keys.shape[:3]))
    else:
        key_scales, value_scales = np.float32(key_scales), np.float32(value_scales)
    num_sequences, num_heads, head_dim = query.shape
    num_splits = parts.shape[2]
    together = max(n for n in range(1, MAX_HEADS_PER_BLOCK + 1) if group % n == 0)
    factor = np.float32(head_dim**-0.5 if scale is None else scale)
    block_size, room = keys.shape[2], tables.shape[1] * keys.shape[2]
    in_one_order = split_keys is not None
    split_keys = check_splits(split_keys, num_splits, block_size, room)
    launches = [
        Launch(
            make_kernel(head_dim, together, cache_dtype, in_one_order),
            (num_sequences, num_heads // together, num_splits),
            (32 * NUM_WARPS,),
            (
                query,
                keys,
                values,
                tables,
                lengths,
                parts,
                log_sums,
                factor,
                split_keys,
                key_scales,
                value_scales,
            ),
        )
    ]
    if _address(parts) != _address(out):
        arguments = (parts, log_sums, out)
        launches.append(Launch(combine_splits, (num_sequences, num_heads), (head_dim,), arguments))
    return launches


def _check_arguments(
    query: Any,
    keys: Any,
    values: Any,
    tables: Any,
    lengths: Any,
    out: Any,
    parts: Any,
    log_sums: Any,
    cache_dtype: str,
) -> int:
    """Refuse arrays that do not fit together; returns the query heads of one KV head."""
    if cache_dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype must be one of {', '.join(CACHE_DTYPES)}, got {cache_dtype!r}")
    check_array("query", query, "sequences, heads, head_dim")
    check_array("out", out, "sequences, heads, head_dim")
    num_sequences, num_heads, head_dim = query.shape
    check_head_dim(head_dim, HEAD_DIMS)
    check_same("the shape of out", tuple(out.shape), "query", tuple(query.shape))
    width = head_dim // PER_WORD[cache_dtype]
    dtype = "float32" if cache_dtype == "float32" else "uint32"
    for name, cache in (("keys", keys), ("values", values)):
        check_array(name, cache, "blocks, kv_heads, block_size, head_dim", (dtype,))
        check_same(f"the last dimension of {name}", cache.shape[3], "head_dim", width)
    check_same("the shape of values", tuple(values.shape), "keys", tuple(keys.shape))
    group = check_heads(num_heads, keys.shape[1])
    check_array("tables", tables, "sequences, max blocks", ("int32",))
    check_array("lengths", lengths, "sequences", ("int32",))
    check_same("the number of lengths", len(lengths), "sequences", num_sequences)
    check_same("the number of tables", len(tables), "sequences", num_sequences)
    check_array("parts", parts, "sequences, heads, splits, head_dim")
    num_splits = parts.shape[2]
    if num_splits < 1:
        raise ValueError(f"parts must have room for at least one split, got the shape {tuple(parts.shape)}")
    check_same(
        "the shape of parts", tuple(parts.shape), "query", (num_sequences, num_heads, num_splits, head_dim)
    )
    check_array("log_sums", log_sums, "sequences, heads, splits")
    check_same("the shape of log_sums", tuple(log_sums.shape), "parts", tuple(parts.shape[:3]))
    if isinstance(tables, np.ndarray):  # on a GPU, the caller has checked them
        check_tables(tables, lengths, num_blocks=keys.shape[0], block_size=keys.shape[2])
    return group


def num_fixed_splits(room: int) -> int:
    """Splits of `SPLIT_KEYS` positions in a table that has room for so many."""
    return max(1, -(-room // SPLIT_KEYS))


def check_splits(split_keys: int | None, num_splits: int, block_size: int, room: int) -> int:
    """Positions of a split: those that were asked for, or an equal part, in whole blocks, of `room`.

    Raises:
        ValueError: warps' tiles do not come out even, or the splits do not reach to the end.
    """
    if split_keys is None:
        return -(-room // (num_splits * block_size)) * block_size
    together = NUM_WARPS * TILE_KEYS
    if split_keys < 1 or split_keys % together:
        raise ValueError(f"split_keys must be a multiple of {together}, got {split_keys}")
    if num_splits * split_keys < room:
        raise ValueError(
            f"parts must have room for {-(-room // split_keys)} splits of {split_keys} positions, as many as "
            f"tables have room for ({room}); got {num_splits}"
        )
    return split_keys


def _address(array: Any) -> int:
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__array_interface__["data"][0])


def check_tables(tables: Any, lengths: Any, *, num_blocks: int, block_size: int) -> None:
    """Refuse tables and lengths with which a kernel would read what is not there.

    Raises:
        ValueError: with the first sequence that is wrong.
    """
    needed = -(-lengths // block_size)
    for sequence in np.flatnonzero((lengths < 0) | (needed > tables.shape[1])):
        raise ValueError(
            f"lengths[{sequence}] must be from 0 to {tables.shape[1] * block_size}, what its table has room "
            f"for, got {lengths[sequence]}"
        )
    used = np.arange(tables.shape[1]) < needed[:, None]
    for sequence, index in np.argwhere(used & ((tables < 0) | (tables >= num_blocks))):
        raise ValueError(
            f"tables[{sequence}, {index}] must be a block of the cache (0 to {num_blocks - 1}), "
            f"got {tables[sequence, index]}"
        )
