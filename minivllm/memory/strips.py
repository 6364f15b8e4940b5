"""Strips: blocks that lie side by side, and a pool whose blocks are taken by name.

A paged sequence takes whichever block is free. A sequence that needs consecutive slots must take *these*
blocks and no others, so here a block leaves the free list from wherever it stands in it:

    free list    3 ─ 4 ─ 5 ─ 6 ─ 0         strip(first=4, num_blocks=2)
    after        3 ─ 6 ─ 0                 its table is [4, 5]: no attention kernel can tell the difference

The order of the free list decides nothing here. It is kept because the events of a trace do, one by one,
what this pool does, and the replay compares (`minivllm/trace/replay.py`).

Read next: `contiguous.py` and `buddy.py`, which say where a strip may lie.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from minivllm.validation import check_integer


class Strip(NamedTuple):
    """The blocks `first … first + num_blocks - 1`."""

    first: int
    num_blocks: int

    @property
    def blocks(self) -> range:
        return range(self.first, self.first + self.num_blocks)


class Placement(Protocol):
    """Decides where in the memory a strip lies."""

    num_free_blocks: int

    def rounded(self, num_blocks: int) -> int:
        """Blocks that a strip of `num_blocks` really takes."""
        ...

    def take(self, num_blocks: int) -> Strip | None:
        """A strip of `rounded(num_blocks)` blocks; None if no gap is large enough, and nothing changes."""
        ...

    def give_back(self, strip: Strip) -> None:
        """Undo one `take`."""
        ...

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless everything adds up."""
        ...


class NamedPool:
    """Reference counts and the free list, for blocks that are taken by their numbers.

    Raises:
        ValueError: `num_blocks` is not an integer of at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        self.ref_counts: array[int] = array("i", bytes(4 * num_blocks))
        self._free = dict.fromkeys(range(num_blocks))  # an ordered set

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table maps. They may be promised to a sequence all the same."""
        return len(self._free)

    def free_list(self) -> tuple[int, ...]:
        """The blocks that no table maps, those that were freed last at the end."""
        return tuple(self._free)

    def take(self, blocks: Sequence[int]) -> None:
        """One table maps these blocks now.

        Raises:
            ValueError: a block is in use already, or named twice; nothing has changed.
        """
        if len(set(blocks)) < len(blocks) or not self._free.keys() >= set(blocks):
            raise ValueError(f"blocks must be free and named once, got {list(blocks)}")
        for block in blocks:
            del self._free[block]
            self.ref_counts[block] = 1

    def touch(self, blocks: Sequence[int]) -> None:
        """One more table maps each of these blocks.

        Raises:
            ValueError: a block is free; nothing has changed.
        """
        for block in blocks:
            if self.ref_counts[block] == 0:
                raise ValueError(f"block {block} is free: it cannot be shared")
        for block in blocks:
            self.ref_counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One table less maps each of these blocks; those that lose the last one are free, in this order.

        Raises:
            ValueError: a block is free already, or named more often than it is mapped; nothing has changed.
        """
        for block, count in Counter(blocks).items():
            if count > self.ref_counts[block]:
                raise ValueError(f"block {block} was freed twice: it has no reference left to drop")
        for block in blocks:
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self._free[block] = None

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every block is either free or referenced."""
        for block, count in enumerate(self.ref_counts):
            assert count >= 0, f"block {block} has {count} references"
            assert (count == 0) == (block in self._free), f"block {block}: {count} references, or free?"
