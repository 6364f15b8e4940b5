"""The KV-cache manager: the face of the memory that the scheduler talks to.

The scheduler asks one question, "may this sequence grow to so many tokens?", and never sees a free list.
The answer is all or nothing: either the block table now covers them, or nothing has changed and the
scheduler must make room or wait. Every change of ownership becomes an event.

    scheduler ── allocate_slots(seq, num_tokens) ──► manager ──► pool.get_new_blocks
              ── free(seq) ───────────────────────►         ──► pool.free_blocks

Source: vLLM's `KVCacheManager` (allocate_slots, free). Read next: `minivllm/scheduling/scheduler.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.trace.events import BlocksAllocated, BlocksFreed, Event
from minivllm.validation import check_integer


class KVCacheManager:
    """One block pool and the block tables of all sequences that hold blocks.

    Args:
        num_blocks: physical blocks in the pool.
        block_size: tokens per block.
        emit: receives every change as an event; None records nothing and costs nothing.
    """

    def __init__(self, num_blocks: int, block_size: int, emit: Callable[[Event], None] | None = None) -> None:
        self.block_size = check_integer("block_size", block_size, at_least=1)
        self.pool = BlockPool(num_blocks)
        self.tables: dict[int, BlockTable] = {}
        self._emit = emit

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks that are in use, 0 … 1 (vLLM's `kv_cache_usage_perc`)."""
        return self.pool.num_used_blocks / self.pool.num_blocks

    def blocks_needed(self, num_tokens: int) -> int:
        """Blocks that a sequence of `num_tokens` tokens holds."""
        return blocks_needed(num_tokens, self.block_size)

    def table(self, seq_id: int) -> BlockTable:
        """The block table of a sequence; `KeyError` if it holds none."""
        return self.tables[seq_id]

    def allocate_slots(self, seq_id: int, num_tokens: int) -> bool:
        """Let the sequence's table cover its first `num_tokens` tokens, taking blocks only as needed.

        Returns:
            True if it does now; False if too few blocks are free, and then nothing has changed.
        """
        table = self.tables.get(seq_id)
        held = len(table.blocks) if table is not None else 0
        if num_tokens <= held * self.block_size and table is not None:
            return True  # the usual case: a decode needs a new block only once in `block_size` steps
        missing = blocks_needed(num_tokens, self.block_size) - held
        if missing > self.pool.num_free_blocks:
            return False
        if table is None:
            table = self.tables[seq_id] = BlockTable(self.block_size)
        if missing > 0:
            blocks = self.pool.get_new_blocks(missing)
            table.append(blocks)
            if self._emit:
                self._emit(BlocksAllocated(seq_id, tuple(blocks)))
        return True

    def free(self, seq_id: int) -> None:
        """Give back every block of a sequence. One that holds none is left alone.

        The last block goes first: it is the least likely to be wanted again, so it should be reused first.
        """
        table = self.tables.pop(seq_id, None)
        if table is None or not table.blocks:
            return
        blocks = tuple(reversed(table.blocks))
        self.pool.free_blocks(blocks)
        if self._emit:
            self._emit(BlocksFreed(seq_id, blocks))

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless references equal the number of tables that map each block."""
        self.pool.check_invariants()
        mapped = array("i", bytes(4 * self.pool.num_blocks))
        for seq_id, table in self.tables.items():
            assert table.block_size == self.block_size, f"sequence {seq_id} uses another block size"
            for block in table.blocks:
                mapped[block] += 1
        assert mapped == self.pool.ref_counts, "references differ from the tables that map each block"
