"""Paged decode on a CPU: reading keys and values as fast as memory gives them.

One work item is a KV head of one sequence, or of a part of a long one. It walks the sequence's blocks; each
is, for one head, one contiguous tile [block_size, head_dim] of keys and another of values:

    keys of some blocks      scores of all query heads that share them, four keys at a time (`row_dots.py`)
    softmax                  online: if the maximum grows, what was added up is scaled down
    values of these blocks   times the weights: a small product whose sums stay in registers

Three things make it fast. Query heads of a group share every number that is loaded. While a row is used,
the row in the same place of the *next* block is fetched: consecutive blocks lie anywhere in memory, and no
hardware prefetcher guesses where. And nothing is gathered or copied first: torch's attention would need the
blocks side by side. (Only sizes that do not fill vectors are copied, a few blocks at a time, into rows that
do.)

The plain twin is `minivllm/executor/attention/torch_backend.py`; `tests/kernels/test_cpu_decode.py` says that
the two agree.

Source: Kwon et al. (SOSP 2023), section 5.1; Dao et al., "Flash-Decoding" (2023), for the splits.
Read next: `decode_items.py`, then `row_dots.py`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from kernels_numba.cpu.arithmetic import exp_fast, narrow, prefetch, widen
from kernels_numba.cpu.coded_cells import (
    apply_scales,
    copy_block,
    make_copies,
    must_copy,
    numbers,
    rows_of,
)
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.row_dots import ROWS, dots
from kernels_numba.cpu.tile_product import tile
from kernels_numba.cpu.vectors import HAS_PAIRS, LANES, LINE_BYTES, MANY_REGISTERS, as_pairs

NO_SCORE = np.float32(-1e30)
ZERO = np.float32(0)
TILE_KEYS = 64
"""Keys between two updates of the running maximum, if blocks are not larger."""
AHEAD = 2
"""Blocks by which rows are fetched in advance."""
MOST_HEADS = 4 if MANY_REGISTERS else 2
"""Query heads that are worked on together."""

_dots1, _dots2, _dots4 = dots(1), dots(2), dots(4)
(_tile11, _tile12), (_tile21, _tile22), (_tile41, _tile42) = (
    [tile(heads, vectors, vectors) for vectors in (1, 2)] for heads in (1, 2, 4)
)


def _as_queries(wide, keys):  # type: ignore[no-untyped-def]
    """In compiled code: queries [group, head_dim] in the type that these keys are multiplied with, flat."""
    raise NotImplementedError("only in compiled code")


@overload(_as_queries)
def _queries_in_compiled_code(wide, keys):  # type: ignore[no-untyped-def]
    if keys.dtype == types.uint16 and HAS_PAIRS:

        def narrowed(wide, keys):  # type: ignore[no-untyped-def]
            flat, out = wide.reshape(-1), np.empty(wide.size, np.uint16)
            for i in range(len(flat)):
                out[i] = narrow(flat[i], out)
            return as_pairs(out)

        return narrowed
    return lambda wide, keys: wide.reshape(-1)


@njit(nogil=True, cache=True, error_model="numpy")
def _score(queries, rows, source, row_size, count, scores, place, group, capacity, flat, soon, size):  # type: ignore[no-untyped-def]
    """Scores of `count` keys, a multiple of four, for all heads of a group.

    Meanwhile the rows of `flat` behind `soon`, of `size` numbers each, are fetched, one for each key.
    """
    for t in range(0, count, ROWS):
        for c in range(0, ROWS * size, LINE_BYTES // flat.itemsize):
            prefetch(flat, soon + t * size + c)
        row, target = source + t * row_size, place + t
        g = 0
        while g < group:
            first, at = g * row_size, g * capacity + target
            if MOST_HEADS == 4 and g + 4 <= group:
                _dots4(queries, first, row_size, rows, row, row_size, scores, at, capacity)
                g += 4
            elif g + 2 <= group:
                _dots2(queries, first, row_size, rows, row, row_size, scores, at, capacity)
                g += 2
            else:
                _dots1(queries, first, row_size, rows, row, row_size, scores, at, capacity)
                g += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _add(scores, place, capacity, rows, start, count, total, group, width, size, soon):  # type: ignore[no-untyped-def]
    """`count` rows of values [size], weighed for each head, are added to `total` [group, width].

    Meanwhile the rows behind `soon` are fetched.
    """
    g = 0
    while g < group:
        heads = 4 if MOST_HEADS == 4 and g + 4 <= group else 2 if g + 2 <= group else 1
        first = g * capacity + place
        column = 0
        while column < size:
            vectors = 2 if column + 2 * LANES <= size else 1
            row, at, ahead = start + column, g * width + column, soon + column
            if heads == 4 and vectors == 2:
                _tile42(
                    scores, first, capacity, 1, rows, row, size, total, at, width, count, False, ahead, size,
                )  # fmt: skip
            elif heads == 4:
                _tile41(
                    scores, first, capacity, 1, rows, row, size, total, at, width, count, False, ahead, size,
                )  # fmt: skip
            elif heads == 2 and vectors == 2:
                _tile22(
                    scores, first, capacity, 1, rows, row, size, total, at, width, count, False, ahead, size,
                )  # fmt: skip
            elif heads == 2:
                _tile21(
                    scores, first, capacity, 1, rows, row, size, total, at, width, count, False, ahead, size,
                )  # fmt: skip
            elif vectors == 2:
                _tile12(
                    scores, first, capacity, 1, rows, row, size, total, at, width, count, False, ahead, size,
                )  # fmt: skip
            else:
                _tile11(
                    scores, first, capacity, 1, rows, row, size, total, at, width, count, False, ahead, size,
                )  # fmt: skip
            column += vectors * LANES
        g += heads


@njit(nogil=True, cache=True, error_model="numpy")
def _block_at(index, last, table, head, next_index, next_last, next_table, next_head, kv_heads):  # type: ignore[no-untyped-def]
    """Which tile of the cache comes so many blocks later, of this item or the next; else the last one."""
    if index > last:
        index, last, table, head = next_index + index - last - 1, next_last, next_table, next_head
    return np.int64(table[min(index, last)]) * kv_heads + head


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _soften(scores, begin, stop, maximum, scale):  # type: ignore[no-untyped-def]
    """Scores become weights, relative to the largest so far; those before `begin` and from `stop` on, 0.

    Returns the largest, and the sum of the weights.
    """
    for t in range(begin):
        scores[t] = NO_SCORE
    for t in range(stop, len(scores)):
        scores[t] = NO_SCORE
    for t in range(len(scores)):
        score = scores[t] * scale
        scores[t] = score
        maximum = max(maximum, score)
    total = ZERO
    for t in range(len(scores)):
        weight = exp_fast(scores[t] - maximum)
        scores[t] = weight
        total += weight
    return maximum, total


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _weigh(scores, begin, stop, scale, maximum, weight_sum, total):  # type: ignore[no-untyped-def]
    """Scores of one head become weights; if its maximum (element 0 of each array) grew, sums are rescaled."""
    largest, added = _soften(scores, begin, stop, maximum[0], scale)
    if largest > maximum[0]:
        rescale = exp_fast(maximum[0] - largest)
        maximum[0] = largest
        weight_sum[0] *= rescale
        for c in range(len(total)):
            total[c] *= rescale
    weight_sum[0] += added


@njit(inline="always")
def _attend(query, keys, values, table, first, end, head, scale, maxima, sums, total, room, soon):  # type: ignore[no-untyped-def]
    """Positions `first … end` of one sequence for the query heads of one KV head.

    query: [group, head_dim] of the sequence; maxima, sums: [group]; total: [group, width], all written.
    room: as `_make_room` makes it.
    soon: first and last block, table and KV head of the item that this thread works on next.
    """
    (group, head_dim), width = query.shape, total.shape[1]
    kv_heads, block_size = numbers(keys).shape[1:3]
    scores, wide, copies = room
    capacity, flat_total = len(scores) // group, total.reshape(-1)
    for g in range(group):
        for c in range(head_dim):
            wide[g, c] = widen(query[g, c])
    is_copied = copies.size > 0
    size = width if is_copied else head_dim
    key_rows, value_rows = rows_of(keys, copies[0], is_copied), rows_of(values, copies[1], is_copied)
    queries = _as_queries(wide, key_rows)
    key_pairs = as_pairs(key_rows)
    per_number = key_pairs.itemsize // key_rows.itemsize
    blocks_per_tile = max(1, TILE_KEYS // block_size)
    maxima[:], sums[:], flat_total[:] = NO_SCORE, ZERO, ZERO
    last = (end - 1) // block_size
    for tile_block in range(first // block_size, last + 1, blocks_per_tile):
        num_blocks = min(blocks_per_tile, last + 1 - tile_block)
        first_key = tile_block * block_size
        begin, stop = max(0, first - first_key), min(num_blocks * block_size, end - first_key)
        if is_copied:
            for b in range(num_blocks):
                copy_block(keys, table[tile_block + b], head, copies[0], b * block_size)
                copy_block(values, table[tile_block + b], head, copies[1], b * block_size)
        for b in range(1 if is_copied else num_blocks):
            row, ahead, count = np.int64(0), np.int64(0), capacity
            if not is_copied:
                row = (np.int64(table[tile_block + b]) * kv_heads + head) * block_size
                ahead = block_size * _block_at(tile_block + b + AHEAD, last, table, head, *soon, kv_heads)
                count = block_size
            _score(
                queries, key_pairs, row * size // per_number, size // per_number, count, scores,
                b * block_size, group, capacity, key_rows, ahead * size, size,
            )  # fmt: skip
        apply_scales(scores, keys, table, tile_block, num_blocks, head, group, capacity)
        for g in range(group):
            own = scores[g * capacity : g * capacity + (stop + LANES - 1) // LANES * LANES]
            _weigh(own, begin, stop, scale, maxima[g:], sums[g:], total[g])
        apply_scales(scores, values, table, tile_block, num_blocks, head, group, capacity)
        for b in range(1 if is_copied else num_blocks):
            # Only rows that are seen: the weight of others is 0, but 0 · NaN is not.
            place, row, ahead, count = begin, begin, begin, stop - begin
            if not is_copied:
                place = max(begin, b * block_size)
                row = (
                    (np.int64(table[tile_block + b]) * kv_heads + head) * block_size + place - b * block_size
                )
                ahead = block_size * _block_at(tile_block + b + AHEAD, last, table, head, *soon, kv_heads)
                count = min(stop, (b + 1) * block_size) - place
            _add(
                scores, place, capacity, value_rows, row * size, count, flat_total, group, width, size,
                ahead * size,
            )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _make_room(keys, group, width):  # type: ignore[no-untyped-def]
    """For one thread: scores [group · capacity], queries, and copies of keys and values, if they must be."""
    block_size, head_dim = numbers(keys).shape[2:]
    capacity = (max(1, TILE_KEYS // block_size) * block_size + LANES - 1) // LANES * LANES
    fits = head_dim == width and block_size % ROWS == 0 and not must_copy(keys)
    return (
        np.empty(group * capacity, np.float32),
        np.zeros((group, width), np.float32),
        make_copies(keys, 0 if fits else capacity, width),
    )


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _attend_items(thread, query, keys, values, rows, tables, items, shares, scale, maxima, sums, totals):  # type: ignore[no-untyped-def]
    """The work of one thread: each is a KV head of an item."""
    (kv_heads, block_size), group = numbers(keys).shape[1:3], totals.shape[1]
    room = _make_room(keys, group, totals.shape[2])
    for work in range(shares[thread], shares[thread + 1]):
        item, head = work // kv_heads, work % kv_heads
        sequence, first, stop = items[item]
        own = query[rows[sequence], head * group : (head + 1) * group]
        following = min(work + 1, len(totals) - 1)
        after = items[following // kv_heads]
        soon = (after[1] // block_size, (after[2] - 1) // block_size, tables[after[0]], following % kv_heads)
        _attend(
            own, keys, values, tables[sequence], first, stop, head, scale, maxima[work], sums[work],
            totals[work], room, soon,
        )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def paged_decode(query, keys, values, rows, tables, items, item_starts, shares, out, scale):  # type: ignore[no-untyped-def]
    """One new token of each sequence.

    Args:
        query, out: [tokens, heads, head_dim], float32, or bfloat16 as uint16; `rows` of `out` are written.
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], of the same type; or in 8 bits,
            as in `coded_cells.py`.
        rows: [sequences], the row of each sequence's token.
        tables: [sequences, most blocks].
        items: [items, 3]: sequence, first position, end; those of one sequence one behind the other.
        item_starts: [sequences + 1]: where the items of each sequence begin.
        shares: [threads + 1]: where the work of each thread begins; there is one for each item and KV head.
        scale: of the scores.
    """
    cells = numbers(keys)
    kv_heads = cells.shape[1]
    vector = LANES * as_pairs(cells.reshape(-1)).itemsize // cells.itemsize
    group, width = query.shape[1] // kv_heads, (query.shape[2] + vector - 1) // vector * vector
    num_work = len(items) * kv_heads
    maxima, sums = np.empty((num_work, group), np.float32), np.empty((num_work, group), np.float32)
    totals = np.empty((num_work, group, width), np.float32)
    in_parallel(
        _attend_items, len(shares) - 1,
        (query, keys, values, rows, tables, items, shares, scale, maxima, sums, totals),
    )  # fmt: skip
    for sequence in range(len(item_starts) - 1):
        for head in range(kv_heads):
            for g in range(group):
                _merge(
                    maxima, sums, totals, item_starts[sequence], item_starts[sequence + 1], kv_heads, head, g,
                    out[rows[sequence], head * group + g],
                )  # fmt: skip


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _merge(maxima, sums, totals, begin, end, kv_heads, head, g, out):  # type: ignore[no-untyped-def]
    """The parts of one sequence, each with a maximum of its own, as one."""
    maximum = NO_SCORE
    for item in range(begin, end):
        maximum = max(maximum, maxima[item * kv_heads + head, g])
    all_sums = ZERO
    merged = totals[begin * kv_heads + head, g]  # the first one is added to
    for item in range(begin, end):
        work = item * kv_heads + head
        share = exp_fast(maxima[work, g] - maximum)
        all_sums += share * sums[work, g]
        if item == begin:
            for c in range(len(out)):
                merged[c] *= share
        else:
            for c in range(len(out)):
                merged[c] += share * totals[work, g, c]
    factor = np.float32(1) / all_sums
    for c in range(len(out)):
        out[c] = narrow(merged[c] * factor, out)
