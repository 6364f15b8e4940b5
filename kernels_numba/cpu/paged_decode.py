"""Paged decode on a CPU: reading keys and values as fast as memory gives them.

One work item is a KV head of one sequence, or of a part of a long one. It walks the sequence's blocks; each
is, for one head, one contiguous tile [block_size, head_dim] of keys and another of values:

    keys of a part           scores of all query heads that share them, four keys at a time (`row_dots.py`)
    softmax                  of each part by itself; parts are folded together (`softmax_parts.py`)
    values of this part      times the weights: a small product whose sums stay in registers

Three things make it fast. Query heads of a group share every number that is loaded. While a row is used,
the row in the same place of the *next* block is fetched: consecutive blocks lie anywhere in memory, and no
hardware prefetcher guesses where. And nothing is gathered or copied first: torch's attention would need the
blocks side by side. (Only sizes that do not fill vectors are copied, a few blocks at a time, into rows that
do. Where a processor multiplies pairs of bfloat16, values are put in pairs of two keys.)

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
    copy_rows,
    make_copies,
    must_copy,
    numbers,
    rows_of,
)
from kernels_numba.cpu.fixed_sums import lane_sum
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.row_dots import ROWS, dots
from kernels_numba.cpu.softmax_parts import LOWEST, PART_KEYS, UNSEEN, fold
from kernels_numba.cpu.tile_product import tile
from kernels_numba.cpu.units import unit
from kernels_numba.cpu.vectors import HAS_PAIRS, LANES, LINE_BYTES, MANY_REGISTERS, as_pairs

ZERO = np.float32(0)
NOTHING, ONE_PAIR = np.int64(0), np.int64(1)
"""To fetch, and to add. (A literal would be a type of its own, and the function be compiled for it, too.)"""
AHEAD = 2
"""Blocks by which rows are fetched in advance."""
HALF_PART = PART_KEYS // 2
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
    """`count` rows (or pairs of rows) of values, weighed for each head, are added to `total` [group, width].

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


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "nsz"})
def _largest(scores):  # type: ignore[no-untyped-def]
    """The largest of them. (No order of comparisons changes it, so the compiler may choose one.)"""
    largest = LOWEST
    for t in range(len(scores)):
        largest = max(largest, scores[t])
    return largest


@njit(nogil=True, cache=True, error_model="numpy")
def _soften(scores, begin, stop, scale):  # type: ignore[no-untyped-def]
    """Scores of a part become weights; those before `begin` and from `stop` on, 0.

    Returns the largest score, before it is scaled, and the sum of the weights.
    """
    for t in range(begin):
        scores[t] = UNSEEN
    for t in range(stop, len(scores)):
        scores[t] = UNSEEN
    largest = _largest(scores)
    for t in range(len(scores)):
        scores[t] = exp_fast((scores[t] - largest) * scale)
    return largest, lane_sum(scores, 0, len(scores))


@njit(nogil=True, cache=True, error_model="numpy")
def _pair_rows(values, table, head, key, begin, stop, pairs):  # type: ignore[no-untyped-def]
    """Values of position `key`, which is even, and of the next, side by side; 0 for what is not in
    `begin … stop`."""
    block_size, head_dim = values.shape[2:]
    pairs[:] = np.uint32(0)
    if begin <= key:
        row = values[table[key // block_size], head, key % block_size]
        for c in range(head_dim):
            pairs[c] = np.uint32(row[c])
    if begin <= key + 1 < stop:
        row = values[table[(key + 1) // block_size], head, (key + 1) % block_size]
        for c in range(head_dim):
            pairs[c] |= np.uint32(row[c]) << np.uint32(16)


def _add_values(values, room, table, part, begin, stop, head, total, group, width, last, soon):  # type: ignore[no-untyped-def]
    """In compiled code: `total` [group, width], flat, grows by the values of positions `begin … stop`.

    They are weighed by the scores in `room`, which begin with position `part`.
    """
    raise NotImplementedError("only in compiled code")


@overload(_add_values)
def _values_added(values, room, table, part, begin, stop, head, total, group, width, last, soon):  # type: ignore[no-untyped-def]
    if isinstance(values, types.Array) and values.dtype == types.uint16 and HAS_PAIRS:

        def in_pairs(values, room, table, part, begin, stop, head, total, group, width, last, soon):  # type: ignore[no-untyped-def]
            scores, pairs, factors = room[0], room[3], room[4]
            kv_heads, block_size, head_dim = values.shape[1:]
            flat, rounded = values.reshape(-1), factors.view(np.uint16)
            for t in range(group * PART_KEYS):
                rounded[t] = narrow(scores[t], rounded)
            if head_dim != width or block_size % 2:
                first, end = (begin - part) // 2, (stop - part + 1) // 2
                for pair in range(first, end):
                    _pair_rows(values, table, head, part + 2 * pair, begin, stop, pairs[pair])
                _add(
                    factors, first, HALF_PART, pairs.reshape(-1), first * width, end - first, total, group,
                    width, width, first * width,
                )  # fmt: skip
                return
            key = begin
            while key < stop:
                block, offset = key // block_size, key % block_size
                count = min(block_size - offset, stop - key)
                pair = (key - part) // 2
                if offset % 2 or count == 1:  # half a pair, at an end
                    _pair_rows(values, table, head, part + 2 * pair, begin, stop, pairs[pair])
                    _add(
                        factors, pair, HALF_PART, pairs.reshape(-1), pair * width, ONE_PAIR, total, group,
                        width, width, pair * width,
                    )  # fmt: skip
                    key += 1
                    continue
                row = (np.int64(table[block]) * kv_heads + head) * block_size + offset
                ahead = _block_at(block + AHEAD, last, table, head, *soon, kv_heads) * block_size
                _add(
                    factors, pair, HALF_PART, flat, row * width, count // 2, total, group, width, width,
                    ahead * width,
                )  # fmt: skip
                key += count // 2 * 2

        return in_pairs

    def one_by_one(values, room, table, part, begin, stop, head, total, group, width, last, soon):  # type: ignore[no-untyped-def]
        scores, copies = room[0], room[2]
        kv_heads, block_size, head_dim = numbers(values).shape[1:]
        is_copied = copies.size > 0
        key, flat = begin, rows_of(values, copies[1], is_copied)
        apply_scales(scores, values, table, part, begin, stop, head, group, PART_KEYS)
        # Only rows that are seen: the weight of others is 0, but 0 · NaN is not.
        if is_copied:
            copy_rows(values, table, head, begin, stop, copies[1], begin - part)
            row = (begin - part) * width
            _add(
                scores, begin - part, PART_KEYS, flat, row, stop - begin, total, group, width, width, row,
            )  # fmt: skip
            return
        while key < stop:
            block, offset = key // block_size, key % block_size
            count = min(block_size - offset, stop - key)
            row = (np.int64(table[block]) * kv_heads + head) * block_size + offset
            ahead = _block_at(block + AHEAD, last, table, head, *soon, kv_heads) * block_size
            _add(
                scores, key - part, PART_KEYS, flat, row * head_dim, count, total, group, width, head_dim,
                ahead * head_dim,
            )  # fmt: skip
            key += count

    return one_by_one


@njit(inline="always")
def _attend(query, keys, values, table, first, end, head, scale, is_folded, maxima, sums, totals, room, soon):  # type: ignore[no-untyped-def]
    """Positions `first … end` of one sequence for the query heads of one KV head.

    query: [group, head_dim] of the sequence.
    is_folded: fold all parts into one row; otherwise each has a row of its own.
    maxima, sums: [rows, group]; totals: [rows, group, width], all written.
    room: as `_make_room` makes it.
    soon: first and last block, table and KV head of the item that this thread works on next.
    """
    (group, head_dim), width = query.shape, totals.shape[2]
    kv_heads, block_size = numbers(keys).shape[1:3]
    scores, wide, copies, spare, spare_maxima, spare_sums = (
        room[0],
        room[1],
        room[2],
        room[5],
        room[6],
        room[7],
    )
    for g in range(group):
        for c in range(head_dim):
            wide[g, c] = widen(query[g, c])
    is_copied = copies.size > 0
    size = width if is_copied else head_dim
    key_rows = rows_of(keys, copies[0], is_copied)
    queries = _as_queries(wide, key_rows)
    key_pairs = as_pairs(key_rows)
    per_number = key_pairs.itemsize // key_rows.itemsize
    last, first_part = (end - 1) // block_size, first // PART_KEYS
    for number in range(first_part, (end - 1) // PART_KEYS + 1):
        part = number * PART_KEYS
        begin, stop = max(part, first), min(part + PART_KEYS, end)
        key = begin // ROWS * ROWS  # four keys at a time: blocks and parts end with a fourth one, too
        if is_copied:
            copy_rows(keys, table, head, begin, stop, copies[0], begin - part)
            count = (stop - key + ROWS - 1) // ROWS * ROWS
            _score(
                queries, key_pairs, (key - part) * size // per_number, size // per_number, count, scores,
                key - part, group, PART_KEYS, key_rows, NOTHING, NOTHING,
            )  # fmt: skip
            key = stop
        while key < stop:
            block, offset = key // block_size, key % block_size
            count = min(block_size - offset, (stop - key + ROWS - 1) // ROWS * ROWS)
            row = (np.int64(table[block]) * kv_heads + head) * block_size + offset
            ahead = _block_at(block + AHEAD, last, table, head, *soon, kv_heads) * block_size
            _score(
                queries, key_pairs, row * size // per_number, size // per_number, count, scores, key - part,
                group, PART_KEYS, key_rows, ahead * size, size,
            )  # fmt: skip
            key += count
        apply_scales(scores, keys, table, part, begin, stop, head, group, PART_KEYS)
        is_first = number == first_part or not is_folded
        at = 0 if is_folded else number - first_part
        total = totals[at] if is_first else spare
        total[:] = ZERO
        for g in range(group):
            own = scores[g * PART_KEYS : g * PART_KEYS + (stop - part + LANES - 1) // LANES * LANES]
            spare_maxima[g], spare_sums[g] = _soften(own, begin - part, stop - part, scale)
        _add_values(
            values, room, table, part, begin, stop, head, total.reshape(-1), group, width, last, soon,
        )  # fmt: skip
        for g in range(group):
            if is_first:
                maxima[at, g], sums[at, g] = spare_maxima[g], spare_sums[g]
            else:
                maxima[at, g], sums[at, g] = fold(
                    maxima[at, g], sums[at, g], totals[at, g], spare_maxima[g], spare_sums[g], spare[g],
                    scale,
                )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _make_room(keys, group, width):  # type: ignore[no-untyped-def]
    """For one thread, what a part needs.

    Scores [group · PART_KEYS] and queries; copies of keys and values, if they must be; pairs of values
    and of weights, if they are multiplied so; and the total of a part.
    """
    block_size, head_dim = numbers(keys).shape[2:]
    fits = head_dim == width and block_size % ROWS == 0 and not must_copy(keys)
    num_pairs = HALF_PART if HAS_PAIRS and numbers(keys).itemsize == 2 else 0
    return (
        np.empty(group * PART_KEYS, np.float32),
        np.zeros((group, width), np.float32),
        make_copies(keys, 0 if fits else PART_KEYS, width),
        np.zeros((num_pairs, width), np.uint32),
        np.empty(group * num_pairs, np.uint32),
        np.empty((group, width), np.float32),
        np.empty(group, np.float32),
        np.empty(group, np.float32),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _attend_items(  # type: ignore[no-untyped-def]
    thread, query, keys, values, rows, tables, items, row_starts, shares, scale, maxima, sums, totals
):
    """The work of one thread: each is a KV head of an item."""
    (kv_heads, block_size), group = numbers(keys).shape[1:3], totals.shape[2]
    room = _make_room(keys, group, totals.shape[3])
    for work in range(shares[thread], shares[thread + 1]):
        item, head = work // kv_heads, work % kv_heads
        sequence, first, stop, row = items[item]
        own = query[rows[sequence], head * group : (head + 1) * group]
        following = min(work + 1, len(items) * kv_heads - 1)
        after = items[following // kv_heads]
        soon = (after[1] // block_size, (after[2] - 1) // block_size, tables[after[0]], following % kv_heads)
        _attend(
            own, keys, values, tables[sequence], first, stop, head, scale, row == row_starts[sequence],
            maxima[head, row:], sums[head, row:], totals[head, row:], room, soon,
        )  # fmt: skip


@unit
@njit(nogil=True, cache=True, error_model="numpy")
def paged_decode(query, keys, values, rows, tables, items, row_starts, shares, out, scale):  # type: ignore[no-untyped-def]
    """One new token of each sequence.

    Args:
        query, out: [tokens, heads, head_dim], float32, or bfloat16 as uint16; `rows` of `out` are written.
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], of the same type; or in 8 bits,
            as in `coded_cells.py`.
        rows: [sequences], the row of each sequence's token.
        tables: [sequences, most blocks].
        items: [items, 4]: sequence, first position, end, row of results; those of one sequence one behind
            the other, each from the beginning of a part on.
        row_starts: [sequences + 1]: where the rows of each sequence begin: one for all parts of its first
            item, and one for each further part.
        shares: [threads + 1]: where the work of each thread begins; there is one for each item and KV head.
        scale: of the scores.
    """
    cells = numbers(keys)
    kv_heads = cells.shape[1]
    vector = LANES * as_pairs(cells.reshape(-1)).itemsize // cells.itemsize
    group, width = query.shape[1] // kv_heads, (query.shape[2] + vector - 1) // vector * vector
    num_rows = row_starts[-1]
    maxima = np.empty((kv_heads, num_rows, group), np.float32)
    sums = np.empty((kv_heads, num_rows, group), np.float32)
    totals = np.empty((kv_heads, num_rows, group, width), np.float32)
    in_parallel(
        _attend_items, len(shares) - 1,
        (query, keys, values, rows, tables, items, row_starts, shares, scale, maxima, sums, totals),
    )  # fmt: skip
    for sequence in range(len(row_starts) - 1):
        begin, end = row_starts[sequence], row_starts[sequence + 1]
        for head in range(kv_heads):
            for g in range(group):
                total, maximum, weight_sum = (
                    totals[head, begin, g],
                    maxima[head, begin, g],
                    sums[head, begin, g],
                )
                for row in range(begin + 1, end):
                    maximum, weight_sum = fold(
                        maximum, weight_sum, total, maxima[head, row, g], sums[head, row, g],
                        totals[head, row, g], scale,
                    )  # fmt: skip
                factor, target = np.float32(1) / weight_sum, out[rows[sequence], head * group + g]
                for c in range(len(target)):
                    target[c] = narrow(total[c] * factor, out)
