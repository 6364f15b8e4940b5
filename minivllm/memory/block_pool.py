"""The block pool: every physical block of the KV cache, and how many block tables map it.

Reserving one long contiguous strip per request wastes most of the memory, because the length of an answer
is not known beforehand. PagedAttention cuts the cache into small blocks of equal size instead, as an
operating system cuts memory into page frames. Any free block is as good as any other, so allocating one is
a pop, freeing it is an append, and nothing can ever fragment.

    ref_counts   [ 1 | 0 | 3 | 1 | 0 | 0 ]        0, 2 and 3 are in use; three tables map block 2
    cached       [   | × | × |   |   |   ]        the prefix cache knows what 1 and 2 hold
    free list      5 ─ 4                          taken at the head, appended at the tail

A block that no table maps is free, unless it is cached: then it is *evictable*, and `uncache` frees it.
Reference counts are numbers of tables and nothing else.

Blocks are only numbers here. Their keys and values live in `minivllm/executor/kv_storage.py`.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention"
(SOSP 2023), sections 4.1–4.4. Read next: `block_table.py`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from minivllm.validation import check_integer


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free. Nothing was taken."""


class BlockPool:
    """`num_blocks` physical blocks, numbered from 0; every operation costs O(blocks touched).

    Every operation looks at all of its blocks first: it happens as a whole, or it raises and changes nothing.

    Raises:
        ValueError: `num_blocks` is not an integer of at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        self.ref_counts: array[int] = array("i", bytes(4 * num_blocks))
        self.cached = bytearray(num_blocks)
        self.num_evictable_blocks = 0
        """Cached, and mapped by no table."""
        # First in, first out: a block rests as long as possible before it is reused. The free list is a
        # ring in an array: in a deque, a million blocks would be a million number objects all over memory,
        # and freeing a block was measured to cost 1.6 times as much as in a pool of a thousand, here 1.05.
        self._ring: array[int] = array("i", range(num_blocks))
        self._head = 0
        self._num_free = num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks on the free list."""
        return self._num_free

    @property
    def num_used_blocks(self) -> int:
        """Blocks that a table maps."""
        return self.num_blocks - self._num_free - self.num_evictable_blocks

    def free_list(self) -> tuple[int, ...]:
        """The free blocks in the order in which they will be allocated. O(free blocks): for readers."""
        return tuple(self._first_free(self._num_free))

    def get_new_blocks(self, count: int) -> list[int]:
        """Allocate `count` free blocks, each with one reference.

        Raises:
            OutOfBlocksError: fewer than `count` are free.
            ValueError: `count` is negative.
        """
        if count > self._num_free:
            raise OutOfBlocksError(
                f"{count} blocks were asked for, {self._num_free} of {self.num_blocks} are free"
            )
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        blocks = self._first_free(count)
        self._head = (self._head + count) % self.num_blocks
        self._num_free -= count
        for block in blocks:
            self.ref_counts[block] = 1
        return blocks

    def touch(self, blocks: Sequence[int]) -> None:
        """One more table maps each of these blocks.

        Raises:
            ValueError: a block is free, so what it holds may be overwritten at any time.
        """
        self._check_numbers(blocks)
        ref_counts, cached = self.ref_counts, self.cached
        if not all(map(ref_counts.__getitem__, blocks)):
            for block in blocks:
                if not ref_counts[block] and not cached[block]:
                    raise ValueError(f"block {block} is free: it cannot be shared, only newly taken")
        for block in blocks:
            count = ref_counts[block]
            if not count:
                self.num_evictable_blocks -= 1
            ref_counts[block] = count + 1

    def free_blocks(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block; those that lose their last one become free, in this order.

        Raises:
            ValueError: a block is free already, or is named more often than it is referenced.
        """
        self._check_numbers(blocks)
        ref_counts = self.ref_counts
        # The first look is without a Python loop: freeing a table must cost little.
        if len(set(blocks)) < len(blocks) or not all(map(ref_counts.__getitem__, blocks)):
            for block, count in Counter(blocks).items():
                if count > ref_counts[block]:
                    raise ValueError(f"block {block} was freed twice: it has no reference left to drop")
        for block in blocks:
            ref_counts[block] = count = ref_counts[block] - 1
            if not count:
                if self.cached[block]:
                    self.num_evictable_blocks += 1
                else:
                    self._append_to_ring(block)

    def cache(self, blocks: Sequence[int]) -> None:
        """The prefix cache knows these blocks now: they stay off the free list, even if no table maps them.

        Raises:
            ValueError: a block is free, or cached already, or named twice.
        """
        self._check_numbers(blocks, once=True)
        for block in blocks:
            if self.ref_counts[block] == 0 or self.cached[block]:
                raise ValueError(f"block {block} cannot be cached: it is free, or cached already")
        for block in blocks:
            self.cached[block] = 1

    def uncache(self, blocks: Sequence[int]) -> None:
        """The prefix cache has forgotten these blocks; those that no table maps become free, in this order.

        Raises:
            ValueError: a block is not cached, or named twice.
        """
        self._check_numbers(blocks, once=True)
        for block in blocks:
            if not self.cached[block]:
                raise ValueError(f"block {block} is not cached")
        for block in blocks:
            self.cached[block] = 0
            if self.ref_counts[block] == 0:
                self.num_evictable_blocks -= 1
                self._append_to_ring(block)

    def _check_numbers(self, blocks: Sequence[int], *, once: bool = False) -> None:
        """Raise `ValueError` unless there are such blocks; with `once`, unless each is named only once."""
        if blocks and not 0 <= min(blocks) <= max(blocks) < self.num_blocks:
            raise ValueError(f"blocks must have numbers from 0 to {self.num_blocks - 1}, got {list(blocks)}")
        if once and len(set(blocks)) < len(blocks):
            raise ValueError(f"each block must be named once, got {list(blocks)}")

    def _append_to_ring(self, block: int) -> None:
        self._ring[(self._head + self._num_free) % self.num_blocks] = block
        self._num_free += 1

    def _first_free(self, count: int) -> list[int]:
        """The next `count` blocks of the ring, which stay in it."""
        end = self._head + count
        blocks = self._ring[self._head : end].tolist()
        if end > self.num_blocks:  # around the end of the array
            blocks += self._ring[: end - self.num_blocks].tolist()
        return blocks

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every block is exactly one of free, evictable and referenced."""
        free = set(self.free_list())
        assert len(free) == self._num_free, "a block is on the free list twice"
        assert free <= set(range(self.num_blocks)), "the free list names a block that does not exist"
        num_evictable = 0
        for block, count in enumerate(self.ref_counts):
            assert count >= 0, f"block {block} has {count} references"
            evictable = count == 0 and self.cached[block] == 1
            num_evictable += evictable
            assert (count == 0 and not evictable) == (block in free), (
                f"block {block}: {count} references, cached: {self.cached[block]}, free: {block in free}"
            )
        assert num_evictable == self.num_evictable_blocks, "the number of evictable blocks is wrong"
