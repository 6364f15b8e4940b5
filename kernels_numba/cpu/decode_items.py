"""How decode attention is divided among threads: into items, and items into equal shares.

An item is a sequence, or a part of a long one: each is worked on from its first block to its last, once for
each KV head. Parts are merged in the end, so there are no more of them than threads need.

Source: Dao et al., "Flash-Decoding" (2023). Read next: `paged_decode.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ITEMS_PER_THREAD = 4
"""So that a thread that was held up costs the others little."""
LEAST_POSITIONS = 256
"""Of a part of a sequence; shorter ones cost more to merge than they gain."""


def plan_items(
    firsts: Any, lengths: Any, kv_heads: int, num_threads: int, block_size: int
) -> tuple[Any, Any, Any]:
    """Work items: whole sequences, or parts of long ones if there are too few of them for all threads.

    Args:
        firsts, lengths: [sequences]: the first position that each new token sees, and tokens of each.

    Returns:
        `items`, `item_starts` and `shares` as `paged_decode` takes them: as many positions for each thread.
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
    done = np.repeat(items[:, 2] - begins, kv_heads).cumsum()
    shares = np.searchsorted(done, done[-1] * np.arange(1, num_threads) / num_threads)
    return items, starts, np.concatenate(([0], shares, [len(done)]))
