"""Paged decode on a CPU: reading keys and values as fast as memory gives them.

One work item is a KV head of one sequence, or of a part of a long one. It walks the sequence's blocks; each
is, for one head, one contiguous tile [block_size, head_dim] of keys and another of values:

    tile of keys      scores of all query heads that share it: a dot product for each row, two at a time
    softmax           online: if the maximum grows, what was added up is scaled down
    tile of values    added up, four rows at a time, so that sums stay in registers

Three things make it fast. Query heads of a group share every number that is loaded. While a row is used,
the row in the same place of the *next* block is fetched: block tables jump about, and no hardware guesses
where to. And nothing is gathered or copied first: torch's attention would need the blocks side by side.

The plain twin is `minivllm/executor/attention/torch_backend.py`; `tests/kernels/test_cpu_decode.py` says that
the two agree.

Source: Kwon et al. (SOSP 2023), section 5.1; Dao et al., "Flash-Decoding" (2023), for the splits.
Read next: `minivllm/executor/attention/numba_cpu_backend.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from kernels_numba.cpu.arithmetic import exp_fast, narrow, prefetch, widen

NO_SCORE = np.float32(-1e30)
ZERO = np.float32(0)
LINE_BYTES = 64
"""Of a cache line: what one prefetch brings."""


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def _attend(query, keys, values, table, first, end, head, scale, maxima, sums, total):  # type: ignore[no-untyped-def]
    """Positions `first … end` of one sequence for the query heads of one KV head.

    query: [group, head_dim] of the sequence; maxima, sums: [group]; total: [group, head_dim], all written.
    """
    group, head_dim = query.shape
    kv_heads, block_size = keys.shape[1], keys.shape[2]
    tile = block_size * head_dim
    line = LINE_BYTES // keys.itemsize
    flat_keys, flat_values = keys.reshape(-1), values.reshape(-1)
    queries = np.empty((group, head_dim), np.float32)
    scores = np.empty((group, block_size), np.float32)
    for g in range(group):
        maxima[g] = NO_SCORE
        sums[g] = ZERO
        for c in range(head_dim):
            queries[g, c] = widen(query[g, c]) * scale
            total[g, c] = ZERO
    last_block = (end - 1) // block_size
    for index in range(first // block_size, last_block + 1):
        block = table[index]
        begin = max(0, first - index * block_size)
        stop = min(block_size, end - index * block_size)
        next_tile = (np.int64(table[min(index + 1, last_block)]) * kv_heads + head) * tile
        key, value = keys[block, head], values[block, head]
        t = begin
        while t + 2 <= stop:
            for r in range(2):
                for c in range(0, head_dim, line):
                    prefetch(flat_keys, next_tile + (t + r) * head_dim + c)
            for g in range(group):
                s0, s1 = ZERO, ZERO
                for c in range(head_dim):
                    q = queries[g, c]
                    s0 += q * widen(key[t, c])
                    s1 += q * widen(key[t + 1, c])
                scores[g, t] = s0
                scores[g, t + 1] = s1
            t += 2
        while t < stop:
            for g in range(group):
                score = ZERO
                for c in range(head_dim):
                    score += queries[g, c] * widen(key[t, c])
                scores[g, t] = score
            t += 1
        for g in range(group):
            maximum = maxima[g]
            for t in range(begin, stop):
                maximum = max(maximum, scores[g, t])
            if maximum > maxima[g]:
                rescale = exp_fast(maxima[g] - maximum)
                maxima[g] = maximum
                sums[g] *= rescale
                for c in range(head_dim):
                    total[g, c] *= rescale
            added = ZERO
            for t in range(begin, stop):
                weight = exp_fast(scores[g, t] - maximum)
                scores[g, t] = weight
                added += weight
            sums[g] += added
        t = begin
        while t + 4 <= stop:
            for r in range(4):
                for c in range(0, head_dim, line):
                    prefetch(flat_values, next_tile + (t + r) * head_dim + c)
            for g in range(group):
                w0, w1, w2, w3 = scores[g, t], scores[g, t + 1], scores[g, t + 2], scores[g, t + 3]
                for c in range(head_dim):
                    total[g, c] += (
                        w0 * widen(value[t, c])
                        + w1 * widen(value[t + 1, c])
                        + w2 * widen(value[t + 2, c])
                        + w3 * widen(value[t + 3, c])
                    )
            t += 4
        while t < stop:
            for g in range(group):
                for c in range(head_dim):
                    total[g, c] += scores[g, t] * widen(value[t, c])
            t += 1


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy", parallel=True)
def paged_decode(query, keys, values, rows, tables, items, item_starts, out, scale):  # type: ignore[no-untyped-def]
    """One new token of each sequence.

    Args:
        query, out: [tokens, heads, head_dim], float32, or bfloat16 as uint16; `rows` of `out` are written.
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], of the same type.
        rows: [sequences], the row of each sequence's token.
        tables: [sequences, most blocks].
        items: [items, 3]: sequence, first position, end; those of one sequence one behind the other.
        item_starts: [sequences + 1]: where the items of each sequence begin.
        scale: of the scores.
    """
    num_items, kv_heads, head_dim = len(items), keys.shape[1], query.shape[2]
    group = query.shape[1] // kv_heads
    maxima = np.empty((num_items * kv_heads, group), np.float32)
    sums = np.empty((num_items * kv_heads, group), np.float32)
    totals = np.empty((num_items * kv_heads, group, head_dim), np.float32)
    for work in prange(num_items * kv_heads):
        item, head = work // kv_heads, work % kv_heads
        sequence, first, end = items[item, 0], items[item, 1], items[item, 2]
        own = query[rows[sequence], head * group : (head + 1) * group]
        _attend(
            own,
            keys,
            values,
            tables[sequence],
            first,
            end,
            head,
            scale,
            maxima[work],
            sums[work],
            totals[work],
        )
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


ITEMS_PER_THREAD = 4
"""So that a thread that was held up costs the others little."""
LEAST_POSITIONS = 256
"""Of a part of a sequence; shorter ones cost more to merge than they gain."""


def plan_items(
    firsts: Any, lengths: Any, kv_heads: int, num_threads: int, block_size: int
) -> tuple[Any, Any]:
    """Work items: whole sequences, or parts of long ones if there are too few of them for all threads.

    Args:
        firsts, lengths: [sequences]: the first position that each new token sees, and tokens of each.

    Returns:
        `items` and `item_starts` as `paged_decode` takes them.
    """
    firsts, lengths = np.asarray(firsts), np.asarray(lengths)
    aligned = firsts // block_size * block_size  # parts begin and end with blocks
    spans = lengths - aligned
    most = int(spans.max())
    if num_threads > 1:
        wanted = num_threads * ITEMS_PER_THREAD
        most = max(LEAST_POSITIONS, int(spans.sum()) * kv_heads // wanted)
    most = -(-most // block_size) * block_size
    counts = -(-spans // most)
    starts = np.concatenate(([0], counts.cumsum()))
    items = np.empty((starts[-1], 3), np.int64)
    sequences = np.repeat(np.arange(len(spans)), counts)
    begins = aligned[sequences] + (np.arange(len(items)) - starts[sequences]) * most
    items[:, 0] = sequences
    items[:, 1] = np.maximum(firsts[sequences], begins)
    items[:, 2] = np.minimum(lengths[sequences], begins + most)
    return items, starts
