"""What is written down while a kernel runs: places of the source, arrays, accesses, faults, notes.

    DeviceArray ── accessed(array, kind, cell, position) ──►  Recording ──►  records, bytes, faults
    a frame of the kernel ── position(frame) ──────────────►     ▲
                                                                 └── which thread runs now (`threads.py`)

An access is looked at once, here: is there anything to read in that cell? Races need all accesses, and are
found afterwards (`races.py`). Read next: `memory.py`.
"""

from __future__ import annotations

from types import CodeType, FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.accesses import READ, WRITE, Array, Record
from kernels_numba.microscope.counting import Tally, counted_float
from kernels_numba.microscope.faults import Fault, Place, TooLong
from kernels_numba.microscope.threads import Running

FAR_RIGHT = 1000
"""Column of an expression that goes on in the next line."""


class Recording:
    """Everything that one run leaves.

    Args:
        running: which thread runs now.
        max_accesses: more of them end the run.
        keep: write accesses down, and not only count them.
        count: count floating-point operations, too.
    """

    def __init__(self, running: Running, max_accesses: int, keep: bool, count: bool) -> None:
        self.running = running
        self.max_accesses = max_accesses
        self.keep = keep
        self.source = SourcePlaces()
        self.tally = Tally() if count else None
        self.counted = counted_float(self.tally) if self.tally else None
        """The type of numbers whose uses are counted."""
        self.num_accesses = 0
        self.records: list[Record] = []
        self.arrays: list[ArrayInfo] = []
        self.faults: list[Fault] = []
        self.notes: list[tuple[int, int, int, str, tuple[Any, ...]]] = []
        """What the kernel said about itself: accesses before it, block, thread, name, values."""

    def accessed(self, info: ArrayInfo, kind: int, flat: int, count: int, position: int) -> None:
        """Write an access down, and look whether there was anything to read."""
        self.num_accesses += 1
        if kind != WRITE:
            info.read_bytes += count * info.itemsize
        if kind != READ:
            info.written_bytes += count * info.itemsize
        if self.num_accesses > self.max_accesses:
            raise TooLong(
                f"more than {self.max_accesses:,} memory accesses; {self.running.who()} was at "
                f"{self.source.places[position]}. "
                "Is there a loop without an end? If not, use a smaller shape, or raise max_accesses"
            )
        end = flat + count
        if info.written is not None:
            # An atomic reads, too.
            if kind != WRITE and (first := info.written.find(0, flat, end)) >= 0:
                self._note_fault("unwritten", info, first, position, "which no thread has written")
            if kind != READ:
                info.written[flat:end] = b"\1" * count
        if info.poison is not None:
            if kind != WRITE and (first := info.poison.find(1, flat, end)) >= 0:
                self._note_fault("poison", info, first, position, "which it should not look at")
            if kind != READ:
                info.poison[flat:end] = bytes(count)
        if self.keep:
            running, lane = self.running, self.running.lane
            self.records.append(
                (
                    info.number,
                    kind,
                    running.block,
                    lane.number,
                    position,
                    tuple(lane.loops),
                    flat,
                    count,
                    lane.block_epoch,
                    lane.warp_epoch,
                )
            )

    def note(self, name: str, values: tuple[Any, ...]) -> None:
        """Something that the kernel says about itself."""
        running = self.running
        self.notes.append((self.num_accesses, running.block, running.lane.number, name, values))

    def as_number(self, value: Any) -> Any:
        """What a kernel gets for a number: itself, or one whose uses are counted."""
        if self.counted is not None and isinstance(value, float | np.floating):
            return self.counted(value)
        return value

    def _note_fault(self, kind: str, info: ArrayInfo, flat: int, position: int, words: str) -> None:
        place = self.source.places[position]
        if any(fault[:2] == (kind, info.name) and fault.places == (place,) for fault in self.faults):
            return  # once for each array and place is enough
        index = info.index_of(flat)
        message = f"{self.running.who()} reads {info.name}{list(index)}, {words} ({place})"
        self.faults.append(Fault(kind, info.name, index, message, (place,), (self.running.block,)))


class ArrayInfo:
    """One array of a run, and all its views."""

    __slots__ = (
        "address",
        "data",
        "is_shared",
        "itemsize",
        "name",
        "number",
        "poison",
        "read_bytes",
        "written",
        "written_bytes",
    )

    def __init__(self, number: int, name: str, data: NDArray[Any], is_shared: bool) -> None:
        self.number = number
        self.name = name
        self.data = data
        self.itemsize = data.itemsize
        self.is_shared = is_shared
        self.read_bytes = self.written_bytes = 0
        """Requested by all lanes so far."""
        self.address = data.__array_interface__["data"][0]
        self.written: bytearray | None = None
        """Of a shared array: 1 for each cell that has been written."""
        self.poison: bytearray | None = None
        """Of a global array: 1 for each cell that no thread may read."""

    def index_of(self, flat: int) -> tuple[int, ...]:
        """Coordinates of a cell."""
        return tuple(int(i) for i in np.unravel_index(flat, self.data.shape))

    def summary(self) -> Array:
        """What an observation keeps of it."""
        return Array(self.name, self.is_shared, self.data.shape, str(self.data.dtype), self.data.itemsize)


class SourcePlaces:
    """Positions in the source, as numbers: `places[position(frame)]` is where a frame stands."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._positions: dict[tuple[int, int], int] = {}
        """By the identity of some code, whose hash takes long, and an offset in it."""
        self._offsets: dict[int, list[Any]] = {}
        """By the identity of some code: lines and columns of its instructions."""
        self._kernel_code: set[int] = set()
        """The kernel and its device functions, by their identity."""
        self._codes: list[CodeType] = []
        """They live, so no others get their identities."""

    def add_kernel_code(self, code: CodeType) -> None:
        """This is code of the kernel, or of a device function."""
        self._codes.append(code)
        self._kernel_code.add(id(code))

    def position(self, frame: FrameType) -> int:
        """The number of a place. Python rewrites code as it runs, so one place may have several offsets."""
        code, offset = frame.f_code, frame.f_lasti
        number = self._positions.get((id(code), offset))
        if number is None:
            if id(code) not in self._offsets:
                self._codes.append(code)
                self._offsets[id(code)] = list(code.co_positions())
            line, end_line, column, end = self._offsets[id(code)][offset // 2]
            end = end if end_line == line else FAR_RIGHT
            place = Place(code.co_filename, line or 0, column or 0, end or 0)
            if place not in self.places:
                self.places.append(place)
            number = self._positions[id(code), offset] = self.places.index(place)
        return number

    def place(self, frame: FrameType) -> Place:
        """Where in the source it is."""
        return self.places[self.position(frame)]

    def kernel_frame(self, frame: FrameType) -> FrameType:
        """The innermost caller that is code of the kernel."""
        while id(frame.f_code) not in self._kernel_code:
            assert frame.f_back is not None
            frame = frame.f_back
        return frame
