"""Paging: a pool of equal blocks, and a table that says where a sequence's tokens lie in them.

A sequence believes that its keys and values are one contiguous strip. Its block table maps that strip, block
by block, to wherever the pool had room:

    position         0 1 2 3   4 5 6 7   8 9            block_size = 4
    logical block       0         1       2
    physical block      7         2       5             blocks = [7, 2, 5]
    slot of position 9 = 5 · 4 + 1 = 21

Blocks are only numbers here; a slot is the number of one token's place in the whole memory.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP
2023), sections 4.1 and 4.2. In the engine: minivllm/memory/block_pool.py and block_table.py.
"""

from __future__ import annotations

from collections.abc import Iterable


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free. Nothing was taken."""


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Fewest blocks of `block_size` tokens that hold `num_tokens` tokens; 0 for no tokens."""
    return -(-num_tokens // block_size)


class BlockPool:
    """`num_blocks` physical blocks, numbered from 0. Any free block is as good as any other."""

    def __init__(self, num_blocks: int) -> None:
        """All blocks are free."""
        self._free = list(range(num_blocks))
        self._held: set[int] = set()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def get_new_blocks(self, count: int) -> list[int]:
        """Allocate `count` free blocks; the caller holds them now.

        Raises:
            OutOfBlocksError: fewer than `count` are free; the pool is unchanged.
        """
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks were asked for, {len(self._free)} are free")
        blocks = [self._free.pop() for _ in range(count)]
        self._held.update(blocks)
        return blocks

    def free_blocks(self, blocks: Iterable[int]) -> None:
        """These blocks are free again.

        Raises:
            ValueError: one of them is not held (it is free, or there is no such block), or is named twice;
                the pool is unchanged.
        """
        given = list(blocks)
        if len(set(given)) != len(given) or not self._held.issuperset(given):
            raise ValueError(f"not all of {given} are held, each once")
        self._held.difference_update(given)
        self._free.extend(given)


class BlockTable:
    """The physical blocks of one sequence, in the order of its tokens.

    Attributes:
        block_size: tokens per block.
        blocks: `blocks[i]` is the physical block of logical block i.
    """

    # given
    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.blocks: list[int] = []

    def missing_blocks(self, num_tokens: int) -> int:
        """Blocks still to be appended before the table covers `num_tokens` tokens; 0 if it does."""
        return max(0, blocks_needed(num_tokens, self.block_size) - len(self.blocks))

    def append(self, blocks: Iterable[int]) -> None:
        """The strip goes on in these blocks."""
        self.blocks.extend(blocks)

    def slot(self, position: int) -> int:
        """The slot of the token at `position`: block · block_size + offset in the block.

        Raises:
            IndexError: the table does not reach that far, or `position` is negative.
        """
        if not 0 <= position < len(self.blocks) * self.block_size:
            raise IndexError(f"position {position} is outside a table of {len(self.blocks)} blocks")
        return self.blocks[position // self.block_size] * self.block_size + position % self.block_size
