"""Attention of prompts on a CPU: FlashAttention through the block table, made of products in registers.

Many new tokens of one sequence attend to all before them and to themselves. As in FlashAttention 2, a tile of
queries meets one tile of keys after the other, and scores live only as long as their tile. What is special
here is that a *column* is a query (a token of one of the heads that share a KV head), and a row is a key:

    scores   [keys, queries]     = keys [keys, d] · queries [d, queries]
    weights                        softmax, online: down the columns, so that no sum ever crosses lanes
    total    [d, queries]       += values [keys, d]ᵀ · weights [keys, queries]

Both products take their left side as it lies in the cache, block by block: nothing is gathered or transposed
but the queries, once. Torch's attention would need all keys and values copied side by side first. Where a
processor multiplies pairs of bfloat16, keys are such pairs already, and a tile's values are put in pairs of
two keys: it is worth it, as 64 queries use them.

The plain twin is `minivllm/executor/attention/torch_backend.py`; `tests/kernels/test_cpu_prefill.py` says
that the two agree.

Source: Dao, "FlashAttention-2" (2023), algorithm 1. Read next: `tile_product.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from kernels_numba.cpu.arithmetic import exp_fast, narrow, pair_of, widen
from kernels_numba.cpu.coded_cells import make_tile, numbers, open_tile
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.tile_product import add_product
from kernels_numba.cpu.vectors import HAS_PAIRS, LANES, as_pairs

UNSEEN = np.float32(-1e30)
"""The score of a key that a query may not see."""
LOWEST = np.float32(-5e29)
"""Where a maximum begins: so far above `UNSEEN` that what is not seen weighs nothing, even alone."""
ZERO, ONE = np.float32(0), np.float32(1)
MOST_COLUMNS = 64
"""Queries of a tile, times the heads that share a KV head; with fewer, keys are copied too often."""
TILE_KEYS = 128
PAIRS_AT_ONCE = 8
"""Of values in bfloat16 with one look at which columns see them."""
NO_KEY = np.int32(2**31 - 1)


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _hide(scores, rows, first_key, num_keys, positions, window):  # type: ignore[no-untyped-def]
    """Keys that a query may not see: those behind it, those out of its window, and those that are none."""
    width = len(positions)
    for t in range(rows):
        key = np.int32(first_key + t) if t < num_keys else NO_KEY
        for i in range(width):
            if key > positions[i] or key <= positions[i] - window:
                scores[t * width + i] = UNSEEN


@njit(nogil=True, cache=True)
def _first_column(distance, group):  # type: ignore[no-untyped-def]
    """The first vector of columns with a query that sees a key `distance` tokens behind the first query."""
    return max(0, distance) * group // LANES * LANES


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _soften(scores, num_keys, width, maxima, sums, rescale, scale):  # type: ignore[no-untyped-def]
    """Scores become weights; True if a maximum grew, so that what was added up must be scaled.

    Maxima are those of scores before they are scaled.
    """
    grew = False
    for i in range(width):
        rescale[i] = maxima[i]
    for t in range(num_keys):
        row = scores[t * width : (t + 1) * width]
        for i in range(width):
            maxima[i] = max(maxima[i], row[i])
    for i in range(width):
        grew |= maxima[i] > rescale[i]
        rescale[i] = exp_fast((rescale[i] - maxima[i]) * scale)
        sums[i] *= rescale[i]
    for t in range(num_keys):
        row = scores[t * width : (t + 1) * width]
        for i in range(width):
            weight = exp_fast((row[i] - maxima[i]) * scale)
            row[i] = weight
            sums[i] += weight
    return grew


def _as_columns(query, group, head, width, keys):  # type: ignore[no-untyped-def]
    """In compiled code: queries [tokens, heads, d] as columns [steps, width], flat, to multiply keys with."""
    raise NotImplementedError("only in compiled code")


@overload(_as_columns)
def _columns(query, group, head, width, keys):  # type: ignore[no-untyped-def]
    if isinstance(keys, types.Array) and keys.dtype == types.uint16 and HAS_PAIRS:

        def in_pairs(query, group, head, width, keys):  # type: ignore[no-untyped-def]
            columns = np.zeros((query.shape[2] + 1) // 2 * width * 2, np.uint16)
            for i in range(len(query) * group):
                row = query[i // group, head * group + i % group]
                for c in range(len(row)):
                    columns[(c // 2 * width + i) * 2 + c % 2] = narrow(widen(row[c]), columns)
            return columns.view(np.uint32)

        return in_pairs

    def one_by_one(query, group, head, width, keys):  # type: ignore[no-untyped-def]
        columns = np.zeros(query.shape[2] * width, np.float32)
        for i in range(len(query) * group):
            row = query[i // group, head * group + i % group]
            for c in range(len(row)):
                columns[c * width + i] = widen(row[c])
        return columns

    return one_by_one


def _add_values(values, table, head, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
    """In compiled code: `total` [d, width] grows by the values of keys `begin … end`, which are weighed.

    `weights` [keys, width] begins with key 0 of the first block in `table`; the first query is `distance`
    tokens behind that key. Values before `begin` and from `end` on may be anything.
    """
    raise NotImplementedError("only in compiled code")


@overload(_add_values)
def _values_added(values, table, head, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
    if values.dtype == types.uint16 and HAS_PAIRS:

        def in_pairs(values, table, head, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
            head_dim, block_size = values.shape[3], values.shape[2]
            num_pairs = (end + 1) // 2
            rows, nothing = np.empty(num_pairs * head_dim, np.uint32), np.zeros(head_dim, np.uint16)
            for pair in range(num_pairs):
                lower, upper = nothing, nothing
                if begin <= 2 * pair:
                    lower = values[table[2 * pair // block_size], head, 2 * pair % block_size]
                if begin <= 2 * pair + 1 < end:
                    upper = values[table[(2 * pair + 1) // block_size], head, (2 * pair + 1) % block_size]
                row = rows[pair * head_dim : (pair + 1) * head_dim]
                for c in range(head_dim):
                    row[c] = np.uint32(lower[c]) | (np.uint32(upper[c]) << np.uint32(16))
            weights[end * width : num_pairs * 2 * width] = ZERO
            factors = np.empty(num_pairs * width, np.uint32)
            for pair in range(num_pairs):
                first = weights[2 * pair * width : (2 * pair + 1) * width]
                second = weights[(2 * pair + 1) * width : (2 * pair + 2) * width]
                both = factors[pair * width : (pair + 1) * width]
                for i in range(width):
                    both[i] = pair_of(first[i], second[i])
            for pair in range(begin // 2, num_pairs, PAIRS_AT_ONCE):
                steps = min(PAIRS_AT_ONCE, num_pairs - pair)
                column = _first_column(2 * pair - distance, group)
                add_product(
                    rows, pair * head_dim, 1, head_dim, factors, pair * width, total, 0, head_dim, steps,
                    width, column,
                )  # fmt: skip

        return in_pairs

    def one_by_one(values, table, head, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
        kv_heads, block_size, head_dim = values.shape[1:]
        flat = values.reshape(-1)
        for b in range(begin // block_size, (end - 1) // block_size + 1):
            # Only rows that a query sees: the weight of others is 0, but 0 · NaN is not.
            skipped = max(0, begin - b * block_size)
            row = (np.int64(table[b]) * kv_heads + head) * block_size + skipped
            first = b * block_size + skipped
            steps = min((b + 1) * block_size, end) - first
            column = _first_column(b * block_size - distance, group)
            add_product(
                flat, row * head_dim, 1, head_dim, weights, first * width, total, 0, head_dim, steps, width,
                column,
            )  # fmt: skip

    return one_by_one


@njit(inline="always")
def _attend(query, keys, values, table, head, first_position, scale, window, out):  # type: ignore[no-untyped-def]
    """A tile of queries of one sequence, for the heads that share a KV head.

    query, out: [tokens, heads, head_dim], of this tile; `first_position` is that of its first token.
    """
    num_tokens, heads, head_dim = query.shape
    cache_heads, block_size = numbers(keys).shape[1:3]
    group = heads // cache_heads
    num_queries = num_tokens * group
    width = (num_queries + LANES - 1) // LANES * LANES
    queries = _as_columns(query, group, head, width, keys)
    positions = np.empty(width, np.int32)
    for i in range(width):
        positions[i] = first_position + min(i, num_queries - 1) // group
    blocks_per_tile = max(1, TILE_KEYS // block_size)
    tile = blocks_per_tile * block_size
    copies = make_tile(keys, blocks_per_tile)
    scores = np.empty((tile + 1) * width, np.float32)
    total = np.zeros(head_dim * width, np.float32)
    maxima, sums, rescale = np.full(width, LOWEST), np.zeros(width, np.float32), np.empty(width, np.float32)
    end = first_position + num_tokens
    first_seen = max(0, first_position - window + 1)
    last_block = (end - 1) // block_size
    for tile_block in range(first_seen // block_size, last_block + 1, blocks_per_tile):
        first_key = tile_block * block_size
        num_blocks = min(blocks_per_tile, last_block + 1 - tile_block)
        num_keys = min(tile, end - first_key)
        distance = first_position - first_key
        scores[: num_blocks * block_size * width] = ZERO
        tile_keys, tile_values, blocks, place = open_tile(
            keys, values, table, tile_block, num_blocks, head, copies
        )
        kv_heads, key_rows = tile_keys.shape[1], as_pairs(tile_keys.reshape(-1))
        row_size = head_dim * tile_keys.itemsize // key_rows.itemsize
        for b in range(num_blocks):
            row = (np.int64(blocks[b]) * kv_heads + place) * block_size
            column = _first_column(b * block_size - distance, group)
            add_product(
                key_rows, row * row_size, row_size, 1, queries, 0, scores, b * block_size * width, block_size,
                row_size, width, column,
            )  # fmt: skip
        if first_key + tile > first_position + 1 or first_key <= end - 1 - window:
            rows = num_blocks * block_size
            _hide(scores, rows, first_key, num_keys, positions, np.int32(window))
        if _soften(scores, num_keys, width, maxima, sums, rescale, scale):
            for c in range(head_dim):
                own = total[c * width : (c + 1) * width]
                for i in range(width):
                    own[i] *= rescale[i]
        _add_values(
            tile_values, blocks, place, max(0, first_seen - first_key), num_keys, scores, total, width,
            distance, group,
        )  # fmt: skip
    for i in range(num_queries):
        factor = ONE / sums[i]
        row = out[i // group, head * group + i % group]
        for c in range(head_dim):
            row[c] = narrow(total[c * width + i] * factor, out)


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _attend_items(thread, query, keys, values, tables, items, shares, out, scale):  # type: ignore[no-untyped-def]
    """The items of one thread."""
    for item in range(shares[thread], shares[thread + 1]):
        sequence, head, row, row_end, position, window = items[item]
        _attend(
            query[row:row_end], keys, values, tables[sequence], head, position, scale, window,
            out[row:row_end],
        )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def paged_prefill(query, keys, values, tables, items, shares, out, scale):  # type: ignore[no-untyped-def]
    """Many new tokens of each sequence.

    Args:
        query, out: [tokens, heads, head_dim], float32, or bfloat16 as uint16; rows of `items` are written.
            `head_dim` is even, as it is wherever positions rotate pairs.
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], of the same type, or in 8 bits
            (`coded_cells.py`), with the new tokens in it.
        tables: [sequences, most blocks].
        items: [items, 6]: sequence, KV head, first row, end row, position of the first row, window.
        shares: [threads + 1]: where the items of each thread begin.
        scale: of the scores.
    """
    in_parallel(_attend_items, len(shares) - 1, (query, keys, values, tables, items, shares, out, scale))


NO_WINDOW = 2**30


def plan_tiles(
    starts: Any, counts: Any, positions: Any, kv_heads: int, group: int, window: int | None, num_threads: int
) -> tuple[Any, Any]:
    """Tiles of queries, divided so that all threads have about the same to do.

    Args:
        starts, counts, positions: [sequences]: first row, number of rows, and position of the first.

    Returns:
        `items` and `shares` as `paged_prefill` takes them.
    """
    starts, counts, positions = (np.asarray(values, np.int64) for values in (starts, counts, positions))
    step = max(1, MOST_COLUMNS // group)
    tiles = -(-counts // step)
    sequence = np.repeat(np.arange(len(counts)), tiles)
    offset = (np.arange(len(sequence)) - np.repeat(tiles.cumsum() - tiles, tiles)) * step
    rows = np.minimum(step, counts[sequence] - offset)
    seen = NO_WINDOW if window is None else window
    columns = (sequence, starts[sequence] + offset, rows, positions[sequence] + offset)
    sequence, first, rows, position = (np.repeat(column, kv_heads) for column in columns)
    head = np.tile(np.arange(kv_heads), len(sequence) // kv_heads)
    cost = np.minimum(position + rows, seen + rows)
    items = np.stack((sequence, head, first, first + rows, position, np.full(len(first), seen)), axis=1)
    # Expensive tiles first, to threads 0 … n - 1 and back again.
    order = np.argsort(-cost, kind="stable")
    round_trip = np.arange(len(order)) % (2 * num_threads)
    thread = np.minimum(round_trip, 2 * num_threads - 1 - round_trip)
    sorted_items = items[order]
    # Within a thread, tiles of one head of one sequence follow each other: its keys are in the cache then.
    by_thread = np.lexsort((sorted_items[:, 2], sorted_items[:, 1], sorted_items[:, 0], thread))
    shares = np.searchsorted(thread[by_thread], np.arange(num_threads + 1))
    return sorted_items[by_thread], shares
