"""How decode attention is divided among threads: into items, and items into equal shares.

An item is a sequence, or some parts of a long one: each is worked on from its first block to its last, once
for each KV head. What threads computed apart is folded in the end, so there are no more items than they need.
Where a sequence is cut changes no bit of its result: parts are the same (`softmax_parts.py`), and an item
that is not a sequence's first keeps the results of its parts apart, in a row each, to be folded in order.

Source: Dao et al., "Flash-Decoding" (2023). Read next: `softmax_parts.py`, `paged_decode.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels_numba.cpu.softmax_parts import PART_KEYS

ITEMS_PER_THREAD = 4
"""So that a thread that was held up costs the others little."""


def plan_items(firsts: Any, lengths: Any, kv_heads: int, num_threads: int) -> tuple[Any, Any, Any]:
    """Work items: whole sequences, or parts of long ones if there are too few of them for all threads.

    Args:
        firsts, lengths: [sequences]: the first position that each new token sees, and tokens of each.

    Returns:
        `items`, `row_starts` and `shares` as `paged_decode` takes them: as many positions for each thread.
    """
    firsts, lengths = np.asarray(firsts), np.asarray(lengths)
    if num_threads == 1:  # nothing is divided
        return _whole_sequences(firsts, lengths, kv_heads)
    aligned = firsts // PART_KEYS * PART_KEYS
    spans = lengths - aligned
    most = int(spans.sum()) * kv_heads // (num_threads * ITEMS_PER_THREAD)
    most = -(-max(most, 1) // PART_KEYS) * PART_KEYS
    counts = -(-spans // most)
    ends = counts.cumsum()
    items = np.empty((ends[-1], 4), np.int64)
    sequences = np.repeat(np.arange(len(spans)), counts)
    number = np.arange(len(items)) - (ends - counts)[sequences]
    begins = aligned[sequences] + number * most
    items[:, 0] = sequences
    items[:, 1] = np.maximum(firsts[sequences], begins)
    items[:, 2] = np.minimum(lengths[sequences], begins + most)
    num_rows = np.where(number == 0, 1, -(-(items[:, 2] - begins) // PART_KEYS))
    row_ends = num_rows.cumsum()
    items[:, 3] = row_ends - num_rows
    done = np.repeat(items[:, 2] - items[:, 1], kv_heads).cumsum()
    shares = np.searchsorted(done, done[-1] * np.arange(1, num_threads) / num_threads)
    return items, np.concatenate(([0], row_ends[ends - 1])), np.concatenate(([0], shares, [len(done)]))


def _whole_sequences(firsts: Any, lengths: Any, kv_heads: int) -> tuple[Any, Any, Any]:
    """The same for one thread, in a fraction of the time: small models take many small steps."""
    rows = np.arange(len(lengths) + 1)
    items = np.empty((len(lengths), 4), np.int64)
    items[:, 0] = items[:, 3] = rows[:-1]
    items[:, 1] = firsts
    items[:, 2] = lengths
    return items, rows, np.array([0, len(lengths) * kv_heads])
