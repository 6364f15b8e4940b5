"""Copy-on-write: a sequence that writes to a shared block gets a copy of it first.

A fork maps all blocks of its parent, the last one only partly filled. As long as both only read, that is
right. The first that writes would overwrite what the other reads, so the manager gives the writer a block of
its own, and orders a move that is carried out before anything of the step is written:

    A: 7 ─ 2 ─ 5     A writes to 5      A: 7 ─ 2 ─ 8     move: copy 5 → 8
    B: 7 ─ 2 ─ 5     ────────────►      B: 7 ─ 2 ─ 5     only B maps 5 now, and writes in place

Of a block that r tables map and w of them write to, min(w, r - 1) are copied: the last writer is alone with
the original. Full blocks are never written again, so they stay shared.

Source: Kwon et al. (SOSP 2023), section 4.4. Read next: `kv_cache_manager.py`, which makes the copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable
from minivllm.memory.cache_manager import Span


class CopyOnWrite:
    """Counts what writes cost, and names the blocks to copy.

    Args:
        block_size: tokens per block.
        copy_on_fork: a sequence that writes gets copies of *all* shared blocks that it maps, not only of
            those it writes to: what sharing is compared with (`minivllm bench beams`).
    """

    def __init__(self, block_size: int, *, copy_on_fork: bool = False) -> None:
        self.block_size = block_size
        self.copy_on_fork = copy_on_fork

    def count_new_blocks(
        self, spans: Sequence[Span], tables: Mapping[int, BlockTable], pool: BlockPool
    ) -> int:
        """Blocks that must be allocated before these spans are written: to grow, and for copies.

        `left` counts the tables of each block down as the copies will.
        """
        size, copies_all = self.block_size, self.copy_on_fork
        ref_counts = pool.ref_counts
        needed = 0
        left: dict[int, int] = {}
        for seq_id, start, end in spans:
            blocks = tables[seq_id].blocks
            covered = -(-end // size)
            if covered > len(blocks):
                needed += covered - len(blocks)
                covered = len(blocks)
            for index in range(0 if copies_all else start // size, covered):
                block = blocks[index]
                num_tables = left.get(block) or ref_counts[block]
                if num_tables > 1:
                    needed += 1
                    left[block] = num_tables - 1
        return needed

    def shared_blocks(self, span: Span, table: BlockTable, pool: BlockPool) -> Sequence[int]:
        """Logical blocks of a table that must be copied before `span` is written."""
        blocks = table.blocks
        first = 0 if self.copy_on_fork else span.start // self.block_size
        end = min(-(-span.end // self.block_size), len(blocks))
        if first >= end:
            return ()  # the usual case: the span lies behind all that the table maps
        return [index for index in range(first, end) if pool.ref_counts[blocks[index]] > 1]
