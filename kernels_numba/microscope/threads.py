"""Threads of a kernel, as coroutines: each runs until it must wait for others.

    thread ──► runs ──► barrier or shuffle: it says what it waits for, and gives control back
               … the machine lets the others run until they wait, too …
           ◄── its answer, and on it goes

A greenlet is a function that can be left in the middle, from any depth of calls, and be entered again there.
So a kernel needs no rewriting: it is the same function that the compiler gets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import greenlet

from kernels_numba.microscope.memory import WRITE

if TYPE_CHECKING:
    from kernels_numba.microscope.machine import Machine
    from kernels_numba.microscope.memory import DeviceArray

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


class LaneMissing(Exception):
    """A lane wants something from one that takes no part: the two numbers."""


class Wait(NamedTuple):
    """What a thread waits for: the others of its block, or those lanes of its warp that `mask` names."""

    what: str
    scope: str
    """"block" or "warp"."""
    mask: int
    position: int
    """Where in the source: two barriers in different places are two barriers."""
    value: Any
    meet: Callable[[dict[int, Any]], dict[int, Any]]
    """From everybody's value (by lane, or by thread of the block) to everybody's answer."""
    orders_memory: bool


class Lane:
    """One thread of a block; within its warp, one of 32 lanes."""

    __slots__ = (
        "answer",
        "block_epoch",
        "context",
        "index",
        "lane",
        "loops",
        "machine",
        "number",
        "pending",
        "wait",
        "warp",
        "warp_epoch",
    )

    def __init__(self, machine: Machine, number: int, index: Dim3, run: Callable[[], None]) -> None:
        self.machine = machine
        self.number = number
        self.index = index
        self.warp, self.lane = divmod(number, WARP_SIZE)
        self.context = greenlet(run)
        self.wait: Wait | None = None
        self.answer: Any = None
        self.loops: list[int] = []
        """Iteration of each `for` loop that it is in, outermost first."""
        self.block_epoch = self.warp_epoch = 0
        """Barriers passed so far: what happened before one is seen by all after it."""
        self.pending: list[list[Callable[[], None]]] = [[]]
        """Asynchronous copies that have not arrived: groups that are complete, and the open one."""

    def wait_for(self, wait: Wait) -> Any:
        """Give control back; returns when everybody has come."""
        self.wait = wait
        self.machine.scheduler.switch()
        return self.answer

    def together(self, what: str, value: Any, meet: Callable[[dict[int, Any]], dict[int, Any]]) -> Any:
        """An operation of the whole warp, such as a matrix product: all lanes bring a value and get one."""
        position = self.machine.position(self._kernel_frame())
        return self.wait_for(Wait(what, "warp", 0xFFFFFFFF, position, value, meet, orders_memory=False))

    # ── for the meanings of instructions ──────────────────────────────────────────────────────────────

    def read(self, array: DeviceArray, index: tuple[Any, ...], count: int) -> Any:
        """`count` neighbours in the last dimension, in one instruction."""
        return array.read_vector(index, count, self._kernel_frame())

    def copy_later(
        self,
        target: DeviceArray,
        target_index: tuple[Any, ...],
        source: DeviceArray,
        source_index: tuple[Any, ...],
        count: int,
        is_inside: bool,
    ) -> None:
        """Copy neighbours, in one instruction; they arrive when their group is waited for, and not before.

        Args:
            is_inside: otherwise nothing is read, and zeros arrive.
        """
        frame = self._kernel_frame()
        cells, flat = target.vector(target_index, count, frame)
        values = source.read_vector(source_index, count, frame).copy() if is_inside else 0
        position = self.machine.position(frame)

        def arrive() -> None:
            self.machine.accessed(target.info, WRITE, flat, count, position)
            target.view[cells] = values

        self.pending[-1].append(arrive)

    def commit_copies(self) -> None:
        """Close the group of copies."""
        self.pending.append([])

    def wait_for_copies(self, groups_left: int) -> None:
        """Let all but the newest groups arrive."""
        while len(self.pending) - 1 > groups_left:
            for copy in self.pending.pop(0):
                copy()

    def _kernel_frame(self) -> FrameType:
        frame = sys._getframe(2)
        while frame.f_code not in self.machine.kernel_code:
            assert frame.f_back is not None
            frame = frame.f_back
        return frame
