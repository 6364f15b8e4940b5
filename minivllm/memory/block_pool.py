"""The block pool: every physical block of the KV cache, either free or in use.

Reserving one long contiguous strip per request wastes most of the memory, because nobody knows how long
an answer will be. PagedAttention cuts the cache into small blocks of equal size instead, as an operating
system cuts memory into page frames. Any free block is as good as any other, so handing one out is a pop,
taking it back is an append, and nothing can ever fragment.

    ref_counts   [ 1 | 0 | 1 | 1 | 0 | 0 ]        block 0, 2, 3 in use
    free list      5 ─ 1 ─ 4                      taken at the head, given back at the tail

Blocks are only numbers here. Their keys and values live in `minivllm/executor/kv_storage.py`.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention"
(SOSP 2023), sections 4.1–4.2. Read next: `block_table.py`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable

from minivllm.validation import check_integer


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free. Nothing was taken."""


class BlockPool:
    """`num_blocks` physical blocks, numbered from 0; every operation costs O(blocks touched).

    Raises:
        ValueError: `num_blocks` is not an integer of at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        # An array and not a list, because a pool may have a million blocks: half the memory.
        self.ref_counts: array[int] = array("i", bytes(4 * num_blocks))
        # First in, first out: a block rests as long as possible before it is reused, so that what it
        # still holds can be found again by whoever remembers it.
        self._free: deque[int] = deque(range(num_blocks))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._free)

    def free_list(self) -> tuple[int, ...]:
        """The free blocks in the order in which they will be handed out. O(free blocks): for readers."""
        return tuple(self._free)

    def get_new_blocks(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference.

        Raises:
            OutOfBlocksError: fewer than `count` are free; the pool is unchanged.
        """
        if count > len(self._free):
            raise OutOfBlocksError(
                f"{count} blocks were asked for, {len(self._free)} of {self.num_blocks} are free"
            )
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self.ref_counts[block] = 1
        return blocks

    def free_blocks(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block; those that lose their last one become free, in this order.

        Raises:
            ValueError: a block is free already (or is named more often than it is referenced).
        """
        for block in blocks:
            count = self.ref_counts[block]
            if count == 0:
                raise ValueError(f"block {block} was freed twice: it has no reference left to drop")
            self.ref_counts[block] = count - 1
            if count == 1:
                self._free.append(block)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every block is exactly one of free and referenced."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is on the free list twice"
        assert free <= set(range(self.num_blocks)), "the free list names a block that does not exist"
        for block, count in enumerate(self.ref_counts):
            assert count >= 0, f"block {block} has {count} references"
            assert (count == 0) == (block in free), (
                f"block {block}: {count} references, free: {block in free}"
            )
