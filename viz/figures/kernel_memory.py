"""What one request of a warp does to memory: its bytes, its sectors, its banks and turns.

    global memory    sectors of 32 bytes: one that is touched at all is moved as a whole
    shared memory    32 banks of 4 bytes: two words of one bank take two turns

The trace says how many; a picture must know which. So the arithmetic is here once more, on the addresses of
one request, and the tests hold it to the trace's own numbers.

Read next: `kernel_lanes.py`, which draws it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelArray, KernelHeader, WarpAccess

WARP_SIZE = 32
SECTOR_BYTES = 32
NUM_BANKS, BANK_BYTES = 32, 4
TURN_BYTES = NUM_BANKS * BANK_BYTES
"""What shared memory gives in one turn."""


class Word(NamedTuple):
    """A word of shared memory that a lane requests."""

    lane: int
    bank: int
    turn: int
    """In which it is served, from 0."""
    is_late: bool
    """Another word of the same bank, requested at the same time, is served before it."""


def asked_bytes(access: WarpAccess, array: KernelArray) -> int:
    """Bytes that all lanes together ask for."""
    return len(access.lanes) * access.count * array.itemsize


def moved_bytes(access: WarpAccess, array: KernelArray) -> int:
    """Bytes of the sectors that global memory moves for it; 0 for shared memory."""
    return 0 if array.is_shared else access.units * SECTOR_BYTES


def byte_starts(access: WarpAccess, array: KernelArray) -> list[int]:
    """For each active lane, where its bytes begin, from the beginning of the array."""
    return [first * array.itemsize for first in access.first]


def touched_sectors(starts: Iterable[int], size: int) -> list[int]:
    """Sectors that lanes touch which access `size` bytes each from `starts` on; in order of address."""
    return sorted(
        {
            sector
            for start in set(starts)
            for sector in range(start // SECTOR_BYTES, (start + size - 1) // SECTOR_BYTES + 1)
        }
    )


def requested_ranges(starts: Iterable[int], size: int) -> list[tuple[int, int]]:
    """The bytes that the lanes request, as few ranges `(begin, end)`."""
    ranges: list[tuple[int, int]] = []
    for start in sorted(set(starts)):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], start + size)
        else:
            ranges.append((start, start + size))
    return ranges


def bank_words(lanes: Sequence[int], starts: Sequence[int], size: int) -> list[Word]:
    """Every word that a lane requests, and the turn in which its bank serves it.

    Wide accesses are served half a warp, or a quarter, at a time: as many lanes as ask for 128 bytes. To
    these, every bank serves one word a turn, to all lanes that request it.
    """
    lanes_a_turn = max(1, TURN_BYTES // max(size, BANK_BYTES))
    words: list[Word] = []
    turns = 0
    for begin in range(0, len(lanes), lanes_a_turn):
        order: dict[int, list[int]] = defaultdict(list)
        for lane, start in zip(
            lanes[begin : begin + lanes_a_turn], starts[begin : begin + lanes_a_turn], strict=True
        ):
            for word in range(start // BANK_BYTES, (start + size - 1) // BANK_BYTES + 1):
                waiting = order[word % NUM_BANKS]
                if word not in waiting:
                    waiting.append(word)
                place = waiting.index(word)
                words.append(Word(lane, word % NUM_BANKS, turns + place, place > 0))
        turns += max(map(len, order.values()), default=0)
    return words


def colliding_lanes(lanes: Sequence[int], starts: Sequence[int], size: int) -> list[int]:
    """Lanes that request a word of a bank from which another lane of the same group requests another word."""
    lanes_a_turn = max(1, TURN_BYTES // max(size, BANK_BYTES))
    colliding: set[int] = set()
    for begin in range(0, len(lanes), lanes_a_turn):
        wanted: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for lane, start in zip(
            lanes[begin : begin + lanes_a_turn], starts[begin : begin + lanes_a_turn], strict=True
        ):
            for word in range(start // BANK_BYTES, (start + size - 1) // BANK_BYTES + 1):
                wanted[word % NUM_BANKS][word].add(lane)
        for words in wanted.values():
            if len(words) > 1:
                colliding |= set().union(*words.values())
    return sorted(colliding)


def cell(element: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Which cell of an array an element is, counted from its beginning."""
    place: list[int] = []
    for size in reversed(shape):
        element, rest = divmod(element, size)
        place.append(rest)
    return tuple(reversed(place))


def cell_words(element: int, array: KernelArray) -> str:
    """`key[32, 0, 5]`."""
    return f"{array.name}[{', '.join(map(str, cell(element, array.shape)))}]"


def array_of(access: WarpAccess, header: KernelHeader) -> KernelArray:
    """The array that a request goes to."""
    return header.arrays[access.array]
