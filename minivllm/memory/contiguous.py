"""First fit: strips of any length, each in the first gap that is long enough.

This is how memory was allocated before paging. It works until strips of different lengths come and go:
then the gaps between them add up to a lot, and none is long enough. That is *external fragmentation*.

    A A A · · B B B B · · · C C · ·        seven blocks are free, in gaps of 2, 3 and 2
                                           a strip of four must wait

Source: Knuth, "The Art of Computer Programming", volume 1, section 2.5 (first fit, and merging gaps again).
Read next: `buddy.py`, the other classic; then `reservation.py`, which uses both.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from minivllm.memory.strips import Strip
from minivllm.validation import check_integer


class FirstFit:
    """A `Placement` without rounding; O(number of gaps) per call.

    Raises:
        ValueError: `num_blocks` is not an integer of at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        self.num_free_blocks = num_blocks
        self._gaps = [Strip(0, num_blocks)]  # by address; no two touch, else they would be one

    def gaps(self) -> tuple[Strip, ...]:
        """The free strips, by address."""
        return tuple(self._gaps)

    def rounded(self, num_blocks: int) -> int:
        return num_blocks

    def take(self, num_blocks: int) -> Strip | None:
        """The beginning of the first gap that has `num_blocks` blocks; None if there is no such gap."""
        for index, gap in enumerate(self._gaps):
            if gap.num_blocks >= num_blocks:
                if gap.num_blocks == num_blocks:
                    del self._gaps[index]
                else:
                    self._gaps[index] = Strip(gap.first + num_blocks, gap.num_blocks - num_blocks)
                self.num_free_blocks -= num_blocks
                return Strip(gap.first, num_blocks)
        return None

    def give_back(self, strip: Strip) -> None:
        """The strip is free again, and one with the gaps that it touches.

        Raises:
            ValueError: part of it is free already.
        """
        index = bisect_left(self._gaps, strip)
        before = self._gaps[index - 1] if index else Strip(0, 0)
        after = self._gaps[index] if index < len(self._gaps) else Strip(self.num_blocks, 0)
        if before.first + before.num_blocks > strip.first or strip.first + strip.num_blocks > after.first:
            raise ValueError(f"blocks {strip.first} to {strip.blocks[-1]} are free already, at least in part")
        self.num_free_blocks += strip.num_blocks
        first, end = strip.first, strip.first + strip.num_blocks
        if after.num_blocks and after.first == end:
            end += after.num_blocks
            del self._gaps[index]
        if before.num_blocks and before.first + before.num_blocks == first:
            first = before.first
            del self._gaps[index - 1]
        insort(self._gaps, Strip(first, end - first))

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless gaps are apart, in order, and as large as is said together."""
        end = -1
        for gap in self._gaps:
            assert gap.num_blocks > 0, "an empty gap"
            assert gap.first > end, "two gaps touch or overlap"
            end = gap.first + gap.num_blocks
        assert end <= self.num_blocks, "a gap reaches beyond the memory"
        assert sum(gap.num_blocks for gap in self._gaps) == self.num_free_blocks
