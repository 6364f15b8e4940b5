"""Threads of a kernel: what each one is, where it stands, and how it waits for others.

    thread ──► runs ──► barrier or shuffle: it says what it waits for, and gives control back
               … the machine runs the other threads until they wait, too …
           ◄── its answer, and it goes on

A greenlet is a function that can be left in the middle, from any depth of calls, and be entered again there.
So a kernel needs no rewriting: it is the same function that the compiler gets. The machine starts a greenlet
for each thread, as a child of its own loop; so a thread that waits switches to its greenlet's parent.

Nothing here knows memory or the machine: this is what both need. Read next: `accesses.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent

WARP_SIZE = 32


class Dim3:
    """Three coordinates."""

    __slots__ = ("x", "y", "z")

    def __init__(self, x: int = 1, y: int = 1, z: int = 1) -> None:
        self.x, self.y, self.z = x, y, z

    def __iter__(self) -> Any:
        return iter((self.x, self.y, self.z))

    def __repr__(self) -> str:
        return f"({self.x}, {self.y}, {self.z})"

    def as_tuple(self) -> tuple[int, int, int]:
        return (self.x, self.y, self.z)


class LaneMissing(Exception):
    """A lane asks for the value of one that takes no part: the two numbers."""


@dataclass(frozen=True, eq=False, slots=True)
class Wait:
    """What a thread waits for: the rest of its thread block, or those lanes of its warp that `mask` names.

    One object for all threads that wait for the same (`Running.wait_for`).
    """

    what: str
    scope: str
    """"block" or "warp"."""
    mask: int
    position: int
    """Where in the source: two barriers in different places are two barriers."""
    exchange: Callable[[dict[int, Any]], dict[int, Any]]
    """From the values of all that take part to their answers; keys are lanes, or threads of the block."""
    orders_memory: bool


class Lane:
    """One thread of a thread block; within its warp, one of 32 lanes."""

    __slots__ = (
        "answer",
        "block_epoch",
        "given",
        "has_ended",
        "index",
        "lane",
        "loops",
        "number",
        "wait",
        "warp",
        "warp_epoch",
    )

    def __init__(self, number: int, index: Dim3) -> None:
        self.number = number
        self.index = index
        self.warp, self.lane = divmod(number, WARP_SIZE)
        self.has_ended = False
        self.wait: Wait | None = None
        self.given: Any = None
        """To the others that wait for the same."""
        self.answer: Any = None
        self.loops: list[int] = []
        """Iteration of each `for` loop that it is in, outermost first."""
        self.block_epoch = self.warp_epoch = 0
        """Barriers passed so far: what happened before one is seen by all after it."""


class Running:
    """Which thread runs, of which block of which grid. The machine sets it, everything else reads it."""

    __slots__ = ("_waits", "block", "block_index", "block_size", "grid_size", "lane")

    def __init__(self, grid_size: Dim3, block_size: Dim3) -> None:
        self.grid_size, self.block_size = grid_size, block_size
        self.block_index, self.block = Dim3(0, 0, 0), 0
        """Coordinates and number of the thread block."""
        self.lane = Lane(0, Dim3(0, 0, 0))
        self._waits: dict[tuple[str, int, int], Wait] = {}

    def wait_for(
        self,
        what: str,
        scope: str,
        mask: int,
        position: int,
        given: Any,
        exchange: Callable[[dict[int, Any]], dict[int, Any]],
        orders_memory: bool,
    ) -> Any:
        """The lane that runs gives control back to the machine; returns once all that take part have come."""
        lane, key = self.lane, (what, mask, position)
        wait = self._waits.get(key)
        if wait is None:
            wait = self._waits[key] = Wait(what, scope, mask, position, exchange, orders_memory)
        lane.wait, lane.given = wait, given
        getcurrent().parent.switch()
        return lane.answer

    def who(self) -> str:
        """The thread that runs."""
        return self.name_of(self.lane)

    def name_of(self, lane: Lane) -> str:
        """A thread of the block that runs."""
        block = tuple(self.block_index)
        return f"thread {tuple(lane.index)} of block {block} (warp {lane.warp}, lane {lane.lane})"
