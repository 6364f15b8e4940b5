"""What attention does in a step on a CPU: which sequences go to which kernel, and how threads divide them.

Sequences with one new token (decoding, or the last one of a prompt) read their whole cache for it; sequences
with many compute. Each kind has a kernel of its own, so they are separated here once a step, and the work of
each is cut into pieces, so that all threads have about the same to do.

Read next: `kernels_numba/cpu/decode_items.py` and `paged_prefill.py`.
"""

from __future__ import annotations

import numpy as np

from kernels_numba.cpu.decode_items import plan_items
from kernels_numba.cpu.paged_prefill import plan_tiles
from kernels_numba.cpu.whole_step import AttentionWork
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.model.config import ModelConfig

NO_ITEMS = (np.zeros((0, 4), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
NO_TILES = (np.zeros((0, 6), np.int64), np.zeros(1, np.int64))


def plan_attention(
    metadata: AttentionMetadata, window: int | None, config: ModelConfig, num_threads: int
) -> AttentionWork:
    """The work of the layers that have this window."""
    tables, query_starts = metadata.block_tables, metadata.query_starts
    if metadata.num_tokens == metadata.num_sequences:  # every sequence has one, as in most steps
        if not metadata.num_sequences:
            return AttentionWork(query_starts[:0], tables, *NO_ITEMS, tables, *NO_TILES)
        firsts = metadata.first_seen(window)
        whole = plan_items(firsts, metadata.context_lens, config.num_kv_heads, num_threads)
        return AttentionWork(query_starts[:-1], tables, *whole, tables[:0], *NO_TILES)
    new_tokens = query_starts[1:] - query_starts[:-1]
    decoding, prompts = np.flatnonzero(new_tokens == 1), np.flatnonzero(new_tokens > 1)
    items, tiles = NO_ITEMS, NO_TILES
    starts = query_starts[prompts]
    if len(decoding):
        items = plan_items(
            metadata.first_seen(window)[decoding],
            metadata.context_lens[decoding],
            config.num_kv_heads,
            num_threads,
        )
    if len(prompts):
        tiles = plan_tiles(
            starts,
            new_tokens[prompts],
            metadata.positions[starts],
            config.num_kv_heads,
            config.num_heads // config.num_kv_heads,
            window,
            num_threads,
        )
    return AttentionWork(query_starts[decoding], tables[decoding], *items, tables[prompts], *tiles)
