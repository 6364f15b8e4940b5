"""Attention of prompts on a CPU: FlashAttention through the block table, made of products in registers.

Many new tokens of one sequence attend to all before them and to themselves. As in FlashAttention 2, a tile of
queries meets one part of the keys after the other, and scores live only as long as their part. What is
special here is that a *column* is a query (a token of one of the heads that share a KV head), and a row is a
key:

    scores   [keys, queries]     = keys [keys, d] · queries [d, queries]
    weights                        softmax, down the columns, so that no sum ever crosses lanes
    total    [d, queries]       += values [keys, d]ᵀ · weights [keys, queries]

Both products take their left side as it lies in the cache, block by block: nothing is gathered or transposed
but the queries, once. Torch's attention would need all keys and values copied side by side first. Where a
processor multiplies pairs of bfloat16, keys are such pairs already, and a part's values are put in pairs of
two keys: it is worth it, as 64 queries use them.

A query's result is, bit for bit, that of `paged_decode.py`: parts are of `PART_KEYS` positions, counted from
position 0; each has its own maximum and sums, which are folded into those of the parts before it; and every
sum has the order that is natural there. `tests/kernels/test_cpu_same_bits.py` says so.

The plain twin is `minivllm/executor/attention/torch_backend.py`; `tests/kernels/test_cpu_prefill.py` says
that the two agree.

Source: Dao, "FlashAttention-2" (2023), algorithm 1. Read next: `tile_product.py`, `fixed_sums.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from kernels_numba.cpu.arithmetic import exp_fast, multiply_add, narrow, pair_of, widen
from kernels_numba.cpu.coded_cells import make_tile, numbers, open_tile, scale_rows
from kernels_numba.cpu.fixed_sums import column_dots
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.softmax_parts import LOWEST, PART_KEYS, UNSEEN
from kernels_numba.cpu.tile_product import add_product
from kernels_numba.cpu.units import unit
from kernels_numba.cpu.vectors import HAS_PAIRS, LANES, MANY_REGISTERS, as_pairs

ZERO, ONE = np.float32(0), np.float32(1)
MOST_COLUMNS = 64
"""Queries of a tile, times the heads that share a KV head; with fewer, keys are copied too often."""
PAIRS_AT_ONCE = 8
"""Of values in bfloat16 with one look at which columns see them."""
NO_KEY = np.int32(2**31 - 1)
ROWS = 2
"""Keys that are multiplied with queries together."""
VECTORS = 2 if MANY_REGISTERS else 1
"""Of queries, at most."""

_dots_many, _dots_one, _dots_single = column_dots(ROWS, VECTORS), column_dots(ROWS, 1), column_dots(1, 1)


@njit(nogil=True, cache=True, error_model="numpy")
def _score(keys, first, row_size, queries, scores, target, rows, width, begin):  # type: ignore[no-untyped-def]
    """Scores [rows, width] of `rows` keys, from column `begin` on, a multiple of `LANES`."""
    row = 0
    while row < rows:
        many = ROWS if row + ROWS <= rows else 1
        left, column = first + row * row_size, begin
        while column < width:
            at = target + row * width + column
            if many == 1:
                _dots_single(keys, left, row_size, queries, column, width, scores, at, row_size)
                column += LANES
            elif column + VECTORS * LANES <= width:
                _dots_many(keys, left, row_size, queries, column, width, scores, at, row_size)
                column += VECTORS * LANES
            else:
                _dots_one(keys, left, row_size, queries, column, width, scores, at, row_size)
                column += LANES
        row += many


@njit(nogil=True, cache=True, error_model="numpy")
def _hide(scores, rows, first_key, positions, window):  # type: ignore[no-untyped-def]
    """Keys that a query may not see: those behind it, and those out of its window."""
    width = len(positions)
    for t in range(rows):
        key, row = np.int32(first_key + t), scores[t * width : (t + 1) * width]
        for i in range(width):
            is_seen = key <= positions[i] and key > positions[i] - window
            row[i] = row[i] if is_seen else UNSEEN


@njit(nogil=True, cache=True)
def _first_column(distance, group):  # type: ignore[no-untyped-def]
    """The first vector of columns with a query that sees a key `distance` tokens behind the first query."""
    return max(0, distance) * group // LANES * LANES


@njit(nogil=True, cache=True, error_model="numpy")
def _soften(scores, rows, width, maxima, sums, lanes, tops, scale):  # type: ignore[no-untyped-def]
    """Scores [rows, width] of a part become weights, relative to the largest of their column.

    Writes the maxima (of scores before they are scaled) and the sums. lanes, tops: [LANES · width], partial
    sums and maxima of every LANES-th row, so that many rows at once are one loop.
    """
    tops[:], lanes[:] = LOWEST, ZERO
    for start in range(0, rows * width, LANES * width):
        own = scores[start : min(start + LANES * width, rows * width)]
        for i in range(len(own)):
            tops[i] = max(tops[i], own[i])
    half = LANES
    while half > 1:
        half //= 2
        for i in range(half * width):
            tops[i] = max(tops[i], tops[half * width + i])
    maxima[:] = tops[:width]
    for t in range(1, LANES):
        tops[t * width : (t + 1) * width] = maxima
    for start in range(0, rows * width, LANES * width):
        own = scores[start : min(start + LANES * width, rows * width)]
        for i in range(len(own)):
            weight = exp_fast((own[i] - tops[i]) * scale)
            own[i] = weight
            lanes[i] += weight
    half = LANES
    while half > 1:  # as `fixed_sums.add_halves`
        half //= 2
        for i in range(half * width):
            lanes[i] += lanes[half * width + i]
    sums[:] = lanes[:width]


@njit(nogil=True, cache=True, error_model="numpy")
def _fold(maxima, sums, total, part_maxima, part_sums, part_total, scale):  # type: ignore[no-untyped-def]
    """A further part is folded into those before it, as `softmax_parts.fold` does it for one query."""
    width = len(maxima)
    for i in range(width):
        largest = max(maxima[i], part_maxima[i])
        before, own = exp_fast((maxima[i] - largest) * scale), exp_fast((part_maxima[i] - largest) * scale)
        sums[i] = multiply_add(part_sums[i], own, sums[i] * before)
        maxima[i], part_maxima[i], part_sums[i] = largest, before, own  # the factors, from here on
    for c in range(len(total) // width):
        row, added = total[c * width : (c + 1) * width], part_total[c * width : (c + 1) * width]
        for i in range(width):
            row[i] = multiply_add(added[i], part_sums[i], row[i] * part_maxima[i])


def _as_columns(query, group, head, width, keys):  # type: ignore[no-untyped-def]
    """In compiled code: queries [tokens, heads, d] as columns [steps, width], flat, to multiply keys with.

    Steps lie as `column_dots` takes them.
    """
    raise NotImplementedError("only in compiled code")


@overload(_as_columns)
def _columns(query, group, head, width, keys):  # type: ignore[no-untyped-def]
    if isinstance(keys, types.Array) and keys.dtype == types.uint16 and HAS_PAIRS:

        def in_pairs(query, group, head, width, keys):  # type: ignore[no-untyped-def]
            steps = (query.shape[2] + 1) // 2
            rows_of_lane = (steps + LANES - 1) // LANES
            columns = np.zeros(LANES * rows_of_lane * width * 2, np.uint16)
            for i in range(len(query) * group):
                row = query[i // group, head * group + i % group]
                for c in range(len(row)):
                    at = c // 2 % LANES * rows_of_lane + c // 2 // LANES
                    columns[(at * width + i) * 2 + c % 2] = narrow(widen(row[c]), columns)
            return columns.view(np.uint32)

        return in_pairs

    def one_by_one(query, group, head, width, keys):  # type: ignore[no-untyped-def]
        rows_of_lane = (query.shape[2] + LANES - 1) // LANES
        columns = np.zeros(LANES * rows_of_lane * width, np.float32)
        for i in range(len(query) * group):
            row = query[i // group, head * group + i % group]
            for c in range(len(row)):
                at = c % LANES * rows_of_lane + c // LANES
                columns[at * width + i] = widen(row[c])
        return columns

    return one_by_one


def _add_values(values, table, head, first, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
    """In compiled code: `total` [d, width] grows by the values of keys `begin … end`, which are weighed.

    `weights` [keys, width] begins with key `first`, an even position; the first query is `distance` tokens
    behind that key. Values before `begin` and from `end` on may be anything.
    """
    raise NotImplementedError("only in compiled code")


@overload(_add_values)
def _values_added(values, table, head, first, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
    if values.dtype == types.uint16 and HAS_PAIRS:

        def in_pairs(values, table, head, first, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
            head_dim, block_size = values.shape[3], values.shape[2]
            num_keys = end - first
            num_pairs = (num_keys + 1) // 2
            rows, nothing = np.empty(num_pairs * head_dim, np.uint32), np.zeros(head_dim, np.uint16)
            for pair in range(num_pairs):
                lower, upper, key = nothing, nothing, first + 2 * pair
                if begin <= key:
                    lower = values[table[key // block_size], head, key % block_size]
                if begin <= key + 1 < end:
                    upper = values[table[(key + 1) // block_size], head, (key + 1) % block_size]
                row = rows[pair * head_dim : (pair + 1) * head_dim]
                for c in range(head_dim):
                    row[c] = np.uint32(lower[c]) | (np.uint32(upper[c]) << np.uint32(16))
            weights[num_keys * width : num_pairs * 2 * width] = ZERO
            factors = np.empty(num_pairs * width, np.uint32)
            for pair in range(num_pairs):
                evens = weights[2 * pair * width : (2 * pair + 1) * width]
                odds = weights[(2 * pair + 1) * width : (2 * pair + 2) * width]
                both = factors[pair * width : (pair + 1) * width]
                for i in range(width):
                    both[i] = pair_of(evens[i], odds[i])
            for pair in range((begin - first) // 2, num_pairs, PAIRS_AT_ONCE):
                steps = min(PAIRS_AT_ONCE, num_pairs - pair)
                column = _first_column(2 * pair - distance, group)
                add_product(
                    rows, pair * head_dim, 1, head_dim, factors, pair * width, total, 0, head_dim, steps,
                    width, column,
                )  # fmt: skip

        return in_pairs

    def one_by_one(values, table, head, first, begin, end, weights, total, width, distance, group):  # type: ignore[no-untyped-def]
        kv_heads, block_size, head_dim = values.shape[1:]
        flat = values.reshape(-1)
        key = begin  # only rows that a query sees: the weight of others is 0, but 0 · NaN is not
        while key < end:
            row = (np.int64(table[key // block_size]) * kv_heads + head) * block_size + key % block_size
            steps = min(block_size - key % block_size, end - key)
            column = _first_column(key - first - distance, group)
            add_product(
                flat, row * head_dim, 1, head_dim, weights, (key - first) * width, total, 0, head_dim, steps,
                width, column,
            )  # fmt: skip
            key += steps

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
    copies = make_tile(keys, PART_KEYS // block_size + 2)
    positions = np.empty(width, np.int32)
    for i in range(width):
        positions[i] = first_position + min(i, num_queries - 1) // group
    end = first_position + num_tokens
    first_seen = max(0, first_position - window + 1)
    first_part = first_seen // PART_KEYS * PART_KEYS
    most_keys = min(PART_KEYS, end - first_part)
    scores = np.empty((most_keys + 1) * width, np.float32)
    lanes, tops = np.empty(LANES * width, np.float32), np.empty(LANES * width, np.float32)
    # Row 0 is of all parts so far, row 1 of the one at hand.
    maxima, sums = np.empty((2, width), np.float32), np.empty((2, width), np.float32)
    total = np.empty((2, head_dim * width), np.float32)
    for part in range(first_part, end, PART_KEYS):
        begin, stop = max(part, first_seen), min(part + PART_KEYS, end)
        distance, own = first_position - part, 0 if part == first_part else 1
        first_block = begin // block_size
        tile_keys, tile_values, blocks, place = open_tile(
            keys, values, table, first_block, (stop - 1) // block_size + 1 - first_block, head, copies
        )
        kv_heads, key_rows = tile_keys.shape[1], as_pairs(tile_keys.reshape(-1))
        row_size = head_dim * tile_keys.itemsize // key_rows.itemsize
        key = begin
        while key < stop:
            block = np.int64(blocks[key // block_size - first_block])
            row = (block * kv_heads + place) * block_size + key % block_size
            rows = min(block_size - key % block_size, stop - key)
            column = _first_column(key - first_position, group)
            _score(
                key_rows, row * row_size, row_size, queries, scores, (key - part) * width, rows, width,
                column,
            )  # fmt: skip
            key += rows
        scale_rows(scores, keys, table, part, begin, stop, head, width)
        if stop > first_position + 1 or part <= end - 1 - window:
            _hide(scores, stop - part, part, positions, np.int32(window))
        _soften(scores, stop - part, width, maxima[own], sums[own], lanes, tops, scale)
        scale_rows(scores, values, table, part, begin, stop, head, width)
        total[own] = ZERO
        skipped = first_block * block_size  # positions before the first of `blocks`
        _add_values(
            tile_values, blocks, place, part - skipped, begin - skipped, stop - skipped, scores, total[own],
            width, distance, group,
        )  # fmt: skip
        if own:
            _fold(maxima[0], sums[0], total[0], maxima[1], sums[1], total[1], scale)
    for i in range(num_queries):
        factor = ONE / sums[0, i]
        row = out[i // group, head * group + i % group]
        for c in range(head_dim):
            row[c] = narrow(total[0, c * width + i] * factor, out)


@njit(nogil=True, cache=True, error_model="numpy")
def _attend_items(thread, query, keys, values, tables, items, shares, out, scale):  # type: ignore[no-untyped-def]
    """The items of one thread."""
    for item in range(shares[thread], shares[thread + 1]):
        sequence, head, row, row_end, position, window = items[item]
        _attend(
            query[row:row_end], keys, values, tables[sequence], head, position, scale, window,
            out[row:row_end],
        )  # fmt: skip


@unit
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
    seen = NO_WINDOW if window is None else window
    if num_threads == 1:
        return _tiles_in_order(starts, counts, positions, tiles, kv_heads, step, seen)
    sequence = np.repeat(np.arange(len(counts)), tiles)
    offset = (np.arange(len(sequence)) - np.repeat(tiles.cumsum() - tiles, tiles)) * step
    rows = np.minimum(step, counts[sequence] - offset)
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


def _tiles_in_order(
    starts: Any, counts: Any, positions: Any, tiles: Any, kv_heads: int, step: int, seen: int
) -> tuple[Any, Any]:
    """The same for one thread, which takes sequence after sequence, head after head: nothing is divided."""
    each = tiles * kv_heads
    sequence = np.repeat(np.arange(len(each)), each)
    place = np.arange(len(sequence)) - np.repeat(each.cumsum() - each, each)
    head, tile = np.divmod(place, tiles[sequence])
    offset = tile * step
    items = np.empty((len(sequence), 6), np.int64)
    items[:, 0], items[:, 1], items[:, 5] = sequence, head, seen
    items[:, 2] = first = starts[sequence] + offset
    items[:, 3] = first + np.minimum(step, counts[sequence] - offset)
    items[:, 4] = positions[sequence] + offset
    return items, np.array([0, len(items)])
