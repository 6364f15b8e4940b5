"""Sharing: several sequences map the same block, and a write to a shared block goes to a copy of it.

A fork copies a table and no data. Each block counts how many tables map it: its references.

    s0   7 ─ 2 ─ 5         s0 writes to 5,        s0   7 ─ 2 ─ 8     8 is a copy of 5, then written to
    s1   7 ─ 2 ─ 5         which s1 reads  ──►    s1   7 ─ 2 ─ 5     5 has one reader now: it writes in place

    references   7: 2   2: 2   5: 2        ──►    7: 2   2: 2   5: 1   8: 1

The keys and values of a token are one number here, so that one can see which sequence reads what.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP
2023), sections 4.3 and 4.4. In the engine: minivllm/memory/block_pool.py and kv_cache_manager.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class OutOfBlocksError(RuntimeError):
    """More blocks are needed than are free. Nothing was taken."""


# given
def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Fewest blocks of `block_size` tokens that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockPool:
    """`num_blocks` physical blocks, numbered from 0, and how many tables map each of them.

    Attributes:
        ref_counts: `ref_counts[block]` is the number of its references; 0 while it is free.
        free_list: the free blocks, each once, in any order.
    """

    # given
    def __init__(self, num_blocks: int) -> None:
        self.ref_counts = [0] * num_blocks
        self.free_list = list(range(num_blocks))

    # given
    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table maps."""
        return len(self.free_list)

    # given
    def get_new_blocks(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference.

        Raises:
            OutOfBlocksError: fewer than `count` are free; the pool is unchanged.
        """
        if count > len(self.free_list):
            raise OutOfBlocksError(f"{count} blocks were asked for, {len(self.free_list)} are free")
        blocks = [self.free_list.pop() for _ in range(count)]
        for block in blocks:
            self.ref_counts[block] = 1
        return blocks

    def touch(self, blocks: Iterable[int]) -> None:
        """One reference more each time that a block is named: one more table maps it.

        Only numbers of blocks that there are will be given, here and in `free_blocks`.

        Raises:
            ValueError: one of them is free: no table maps it, so it cannot be shared; the pool is unchanged.
        """
        raise NotImplementedError

    def free_blocks(self, blocks: Iterable[int]) -> None:
        """One reference less each time that a block is named; one without references is free.

        Raises:
            ValueError: one of them is named more often than it has references; the pool is unchanged.
        """
        raise NotImplementedError


class KVCache:
    """The keys and values of all sequences, in blocks that sequences share.

    Attributes:
        block_size: tokens per block.
        pool: which blocks are free, and how many tables map each of the others.
        storage: `storage[block][offset]` holds one token; what a free block holds means nothing.
        tables: `tables[seq_id][i]` is the physical block of its logical block i.
        lengths: `lengths[seq_id]` is the number of its tokens.
    """

    # given
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.storage: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    # given
    def add_sequence(self, seq_id: int) -> None:
        """A new sequence, without tokens.

        Raises:
            ValueError: there is one of this name.
        """
        if seq_id in self.tables:
            raise ValueError(f"sequence {seq_id} is there already")
        self.tables[seq_id] = []
        self.lengths[seq_id] = 0

    # given
    def read(self, seq_id: int) -> list[int | None]:
        """All tokens of a sequence in their order, as attention reads them: through its table."""
        table, size = self.tables[seq_id], self.block_size
        return [self.storage[table[i // size]][i % size] for i in range(self.lengths[seq_id])]

    def fork(self, parent: int, child: int) -> None:
        """Let a new sequence `child` map the blocks of `parent`. No data is copied, no block is taken.

        Raises:
            KeyError: there is no `parent`; nothing changes.
            ValueError: there is a `child` already; nothing changes.
        """
        raise NotImplementedError

    def missing_blocks(self, seq_id: int, start: int, end: int) -> int:
        """Free blocks that a write to the positions `start` … `end` - 1 will take; nothing changes.

        It takes one for each block by which the table has to grow, and one for each block that it writes to
        while other tables map it.
        """
        raise NotImplementedError

    def write(self, seq_id: int, start: int, values: Sequence[int]) -> None:
        """Put one or more tokens at the positions `start`, `start` + 1 …, over older ones or behind them.

        Tokens that are not written to stay as they are, those of this sequence and those of all others. A
        block that other tables map is not written to: this sequence gets a new block in its place, with the
        same tokens in it, and drops its reference to the old one. A block that no other table maps is written
        to in place.

        Raises:
            KeyError: there is no such sequence; nothing changes.
            ValueError: `start` is negative or leaves a gap behind the last token; nothing changes.
            OutOfBlocksError: it takes more blocks than are free; nothing changes.
        """
        raise NotImplementedError

    def free(self, seq_id: int) -> None:
        """A sequence ends: each of its blocks has one reader less, and is free if that was the last one.

        Raises:
            KeyError: there is no such sequence, or no more; nothing changes.
        """
        raise NotImplementedError
