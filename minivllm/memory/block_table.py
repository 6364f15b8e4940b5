"""The block table: where each token of one sequence has its keys and values.

A sequence believes that its cache is one contiguous strip; its block table maps that strip, block by
block, to wherever the pool had room. It grows by one block each time the last one is full, so a sequence
never holds more than one partly filled block.

    position         0 1 2 3   4 5 6 7   8 9            block_size = 4
    logical block       0         1       2
    physical block      7         2       5             blocks = [7, 2, 5]
    slot of position 9 = blocks[9 // 4] · 4 + 9 % 4 = 5 · 4 + 1 = 21

Because a table only *maps*, two sequences can share memory by mapping the same blocks: a fork is a copy
of the table, whatever the length of what it maps.

    parent  7 ─ 2 ─ 5            child  7 ─ 2 ─ 5            two tables map each of 7, 2, 5

Source: Kwon et al. (SOSP 2023), sections 4.2 and 4.4. Read next: `kv_cache_manager.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` tokens: the quotient, rounded up."""
    return -(-num_tokens // block_size)


class BlockTable:
    """The physical blocks of one sequence, in logical order.

    Attributes:
        blocks: physical block of each logical one. An `array('i')` and not a list, because the data plane
            reads it in bulk, without a Python loop.
        num_cached_blocks: so many blocks at its beginning are in the prefix cache.
        salt: it shares cached blocks only with tables of the same salt.
    """

    __slots__ = ("block_size", "blocks", "num_cached_blocks", "salt")

    def __init__(self, block_size: int, blocks: Iterable[int] = (), salt: str | None = None) -> None:
        self.block_size = block_size
        self.blocks: array[int] = array("i", blocks)
        self.num_cached_blocks = 0
        self.salt = salt

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def capacity_tokens(self) -> int:
        """Tokens for which there is room in the blocks held now."""
        return len(self.blocks) * self.block_size

    def slot(self, position: int) -> int:
        """The slot (block · block_size + offset) of the token at `position`.

        Raises:
            IndexError: the table does not reach that far.
        """
        if not 0 <= position < self.capacity_tokens:
            raise IndexError(f"position {position} is outside a block table of {self.capacity_tokens} tokens")
        return self.blocks[position // self.block_size] * self.block_size + position % self.block_size

    def missing_blocks(self, num_tokens: int) -> int:
        """Blocks still to be allocated before the table covers `num_tokens` tokens."""
        return max(0, blocks_needed(num_tokens, self.block_size) - len(self.blocks))

    def append(self, blocks: Iterable[int]) -> None:
        """The sequence continues in `blocks`."""
        self.blocks.extend(blocks)

    def fork(self) -> BlockTable:
        """Another table of the same blocks. The caller counts the references."""
        twin = BlockTable(self.block_size, self.blocks, self.salt)
        twin.num_cached_blocks = self.num_cached_blocks
        return twin
