"""The buddy allocator: strips of 1, 2, 4, 8, … blocks, each at a multiple of its own length.

A strip that is too long is cut into two halves, the buddies; when both are free again, they are merged. A
strip of length n at address a has its buddy at `a XOR n`, so merging needs no search:

    [               16              ]        take 3: rounded up to 4
    [       8       ][       8      ]
    [   4   ][   4  ][       8      ]        the first 4 is taken, its buddy and the 8 are free

Finding and merging cost O(log n), and neighbours of equal length leave few odd gaps. The price is rounding:
up to half of what is taken was never asked for.

A memory whose size is no power of two is seen as several that are: 13 blocks are 8 + 4 + 1.

Source: Knowlton, "A fast storage allocator" (CACM 1965); Knuth, volume 1, section 2.5. The vLLM paper
(Kwon et al., SOSP 2023, section 6.1) assumes it for Orca. Read next: `reservation.py`.
"""

from __future__ import annotations

from minivllm.memory.strips import Strip
from minivllm.validation import check_integer


def next_power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count` (1 for 0)."""
    return 1 << max(0, count - 1).bit_length()


class Buddy:
    """A `Placement` that rounds up to powers of two; of the free strips of a size, the lowest goes first.

    Raises:
        ValueError: `num_blocks` is not an integer of at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        self.num_free_blocks = num_blocks
        self._free: dict[int, set[int]] = {}  # length → addresses of free strips of that length
        self._taken: dict[int, int] = {}  # address → length
        first = 0
        for bit in reversed(range(num_blocks.bit_length())):
            length = 1 << bit
            self._free[length] = set()
            if num_blocks & length:
                self._free[length].add(first)
                first += length

    def gaps(self) -> tuple[Strip, ...]:
        """The free strips, by address; buddies that are both free are one."""
        return tuple(sorted(Strip(first, length) for length in self._free for first in self._free[length]))

    def rounded(self, num_blocks: int) -> int:
        return next_power_of_two(num_blocks)

    def take(self, num_blocks: int) -> Strip | None:
        """A strip of the next power of two; None if none of that length or longer is free."""
        length = wanted = self.rounded(num_blocks)
        while not self._free.get(length):
            if length > self.num_blocks:
                return None
            length *= 2
        first = min(self._free[length])
        self._free[length].remove(first)
        while length > wanted:  # keep the lower half, leave the upper one
            length //= 2
            self._free[length].add(first + length)
        self._taken[first] = wanted
        self.num_free_blocks -= wanted
        return Strip(first, wanted)

    def give_back(self, strip: Strip) -> None:
        """The strip is free again, and merged with its buddy as long as that one is free too.

        Raises:
            ValueError: it was not taken.
        """
        first, length = strip
        if self._taken.get(first) != length:
            raise ValueError(f"no strip of {length} blocks was taken at block {first}")
        del self._taken[first]
        self.num_free_blocks += length
        while (first ^ length) in self._free[length]:
            self._free[length].remove(first ^ length)
            first &= ~length
            length *= 2
        self._free[length].add(first)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every block is free or taken once, and free buddies are merged."""
        seen: set[int] = set()
        taken = [Strip(first, length) for first, length in self._taken.items()]
        for strip in (*self.gaps(), *taken):
            assert strip.first % strip.num_blocks == 0, f"{strip} is not at a multiple of its length"
            assert not seen & set(strip.blocks), f"{strip} overlaps another strip"
            seen.update(strip.blocks)
        assert seen == set(range(self.num_blocks)), "blocks are lost"
        for length, addresses in self._free.items():
            assert not {first ^ length for first in addresses} & addresses, "free buddies are apart"
        assert sum(gap.num_blocks for gap in self.gaps()) == self.num_free_blocks
