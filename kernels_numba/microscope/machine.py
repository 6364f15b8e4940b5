"""The machine: a grid of blocks, one after another; in each, threads that take turns and wait for each other.

    for every block:
        every thread runs until it waits, or ends
        warps whose lanes have all come to the same shuffle or barrier: exchange, and go on
        the block, once all of it waits at the same barrier: goes on
        nobody can go on, and somebody waits: they would wait for ever

Threads run one after another here and at the same time on a GPU, so an answer that is right here proves
little. What counts is what was written down: two accesses to one cell, by different threads, with no barrier
between them and one of them a write, are a race, whatever came out this time (`analysis.py`).

Read next: `observation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import numpy as np
from greenlet import getcurrent

from kernels_numba.microscope.counting import Tally, counted_float
from kernels_numba.microscope.faults import BarrierMismatch, Fault, Place, TooLong
from kernels_numba.microscope.memory import READ, WRITE, ArrayInfo, DeviceArray
from kernels_numba.microscope.threads import WARP_SIZE, Dim3, Lane, LaneMissing, Wait
from kernels_numba.microscope.world import counted_range, enter

Record = tuple[int, int, int, int, int, tuple[int, ...], int, int, int, int]
"""Array, kind of access, block, thread, position, iterations of its loops, first element, number of elements,
block barriers and warp barriers passed."""


FAR_RIGHT = 1000
"""Column of an expression that goes on in the next line."""


class Machine:
    """Runs one kernel once; see `observation.observe`."""

    def __init__(self, most_accesses: int, keep: bool, count: bool = False) -> None:
        self.most_accesses = most_accesses
        self.keep = keep
        self.tally = Tally() if count else None
        self.counted = counted_float(self.tally) if self.tally else None
        """The type of numbers whose uses are counted."""
        self.num_accesses = 0
        self.records: list[Record] = []
        self.arrays: list[ArrayInfo] = []
        self.faults: list[Fault] = []
        self.notes: list[tuple[Any, ...]] = []
        """What the kernel said about itself: block, thread, name, values."""
        self.kernel_code: set[CodeType] = set()
        self._positions: dict[tuple[CodeType, int], int] = {}
        self.places: list[Place] = []
        self.counted_range = counted_range(self)
        self.shared_bytes = 0
        self.shared: dict[Any, ArrayInfo] = {}
        self._shared_before: dict[Any, ArrayInfo] = {}
        """The newest array of each declaration, in whatever block."""
        self.most_shared_bytes = 0
        self.grid_size = self.block_size = self.block_index = Dim3()
        self.block = 0
        self.now: Lane = None  # type: ignore[assignment]  # there is one whenever a kernel asks
        self.scheduler = getcurrent()

    # ── the run ───────────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        kernel: Callable[..., Any],
        grid: Dim3,
        block: Dim3,
        arguments: Sequence[Any],
        names: Sequence[str],
        shared_bytes: int,
        poison: Mapping[str, Any],
    ) -> None:
        """All blocks, in order."""
        self.grid_size, self.block_size, self.shared_bytes = grid, block, shared_bytes
        function = enter(kernel, self)
        given = [
            self._global_array(name, argument, poison.get(name))
            if isinstance(argument, np.ndarray)
            else self.as_number(argument)
            for name, argument in zip(names, arguments, strict=True)
        ]
        self.scheduler = getcurrent()
        for z in range(grid.z):
            for y in range(grid.y):
                for x in range(grid.x):
                    self.block_index = Dim3(x, y, z)
                    self._run_block(lambda: function(*given))
                    self.block += 1

    def _run_block(self, run: Callable[[], None]) -> None:
        self.shared = {}
        size = self.block_size
        indices = [Dim3(x, y, z) for z in range(size.z) for y in range(size.y) for x in range(size.x)]
        lanes = [Lane(self, number, index, run) for number, index in enumerate(indices)]
        warps = [lanes[first : first + WARP_SIZE] for first in range(0, len(lanes), WARP_SIZE)]
        ready = lanes
        try:
            while True:
                for lane in ready:
                    self.now = lane
                    lane.wait = None
                    lane.context.switch()
                waiting = [lane for lane in lanes if not lane.context.dead]
                if not waiting:
                    return
                ready = [lane for warp in warps for lane in self._warp_meetings(warp)]
                if not ready:
                    ready = self._block_meeting(waiting)
        finally:
            for lane in lanes:  # a fault in one: let the others go, too
                if not lane.context.dead:
                    lane.context.throw()

    def _warp_meetings(self, warp: Sequence[Lane]) -> list[Lane]:
        """Those of a warp that have all come to what they wait for."""
        alive = [lane for lane in warp if not lane.context.dead]
        groups: dict[Any, list[Lane]] = {}
        for lane in alive:
            if lane.wait is not None and lane.wait.scope == "warp":
                self._check_mask(lane, lane.wait)
                groups.setdefault((lane.wait.what, lane.wait.mask, lane.wait.position), []).append(lane)
        ready: list[Lane] = []
        for (_, mask, _), group in groups.items():
            if all(lane in group for lane in alive if mask >> lane.lane & 1):
                self._meet(group, {lane.lane: lane for lane in group}, whole=len(group) == len(alive))
                ready += group
        return ready

    def _block_meeting(self, waiting: Sequence[Lane]) -> list[Lane]:
        """All of a block, at one barrier; a fault if they will never meet."""
        waits = [lane.wait for lane in waiting]
        same = {(wait.what, wait.position) for wait in waits if wait is not None and wait.scope == "block"}
        if len(same) != 1 or any(wait is None or wait.scope != "block" for wait in waits):
            raise BarrierMismatch(self._who_waits_where(waiting))
        self._meet(waiting, {lane.number: lane for lane in waiting}, whole=True)
        return list(waiting)

    def _meet(self, group: Sequence[Lane], by_number: Mapping[int, Lane], whole: bool) -> None:
        first = group[0].wait
        assert first is not None
        try:
            answers = first.meet({number: lane.wait.value for number, lane in by_number.items() if lane.wait})
        except LaneMissing as missing:
            asking, wanted = missing.args
            raise BarrierMismatch(
                f"{self._name(by_number[asking])} takes part in {first.what} (line {self._line(first)}) and "
                f"wants the value of lane {wanted}, which has ended or takes no part"
            ) from None
        for number, lane in by_number.items():
            lane.answer = answers[number]
            if first.orders_memory and first.scope == "block":
                lane.block_epoch += 1
            elif first.orders_memory and whole:
                lane.warp_epoch += 1

    def _check_mask(self, lane: Lane, wait: Wait) -> None:
        if not wait.mask >> lane.lane & 1:
            raise BarrierMismatch(
                f"{self._name(lane)} takes part in {wait.what} (line {self._line(wait)}), and the mask "
                f"{wait.mask:#010x} does not name it"
            )

    def _who_waits_where(self, waiting: Sequence[Lane]) -> str:
        places: dict[tuple[str, int], list[Lane]] = {}
        for lane in waiting:
            assert lane.wait is not None
            places.setdefault((lane.wait.what, self._line(lane.wait)), []).append(lane)
        parts = [
            f"{len(lanes)} at {what} in line {line} (the first is {self._name(lanes[0])})"
            for (what, line), lanes in places.items()
        ]
        ended = self.block_size.x * self.block_size.y * self.block_size.z - len(waiting)
        if ended:
            parts.append(f"{ended} have ended")
        return f"threads of block {tuple(self.block_index)} wait for each other for ever: " + ", ".join(parts)

    # ── what lanes ask for ────────────────────────────────────────────────────────────────────────────

    def shared_array(self, key: Any, shape: Any, dtype: np.dtype[Any], frame: FrameType) -> DeviceArray:
        """Of this block; `shape` 0 is the memory whose size was said at the launch."""
        if shape == 0:
            key, shape = ("dynamic", dtype), self.shared_bytes // dtype.itemsize
        info = self.shared.get(key)
        if info is None:
            data = np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
            known = self._shared_before.get(key)
            if known is None:
                name = self._free_name(_assigned_name(frame) or "shared")
                info = ArrayInfo(len(self.arrays), name, data, is_shared=True)
                self.arrays.append(info)
            else:  # declared at the same place in another block: other memory, one account
                info = ArrayInfo(known.number, known.name, data, is_shared=True)
                info.read_bytes, info.written_bytes = known.read_bytes, known.written_bytes
                self.arrays[known.number] = info
            info.written = np.zeros(data.size, bool)
            self._shared_before[key] = info
            self.shared[key] = info
            self.most_shared_bytes = max(
                self.most_shared_bytes, sum(array.data.nbytes for array in self.shared.values())
            )
        return DeviceArray(self, info, info.data)

    def _free_name(self, name: str) -> str:
        """Two device functions may both call an array `tile`; the second is `tile_2`."""
        taken = {array.name for array in self.arrays}
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        return free

    def accessed(self, info: ArrayInfo, kind: int, flat: int, count: int, position: int) -> None:
        """Write an access down, and look whether there was anything to read."""
        self.num_accesses += 1
        if kind != WRITE:
            info.read_bytes += count * info.data.itemsize
        if kind != READ:
            info.written_bytes += count * info.data.itemsize
        if self.num_accesses > self.most_accesses:
            raise TooLong(
                f"more than {self.most_accesses:,} memory accesses; {self.who()} was at "
                f"{self.places[position]}. "
                "Is there a loop without an end? If not, use a smaller shape, or raise most_accesses"
            )
        end = flat + count
        if info.written is not None:
            # An atomic reads, too.
            if kind != WRITE and not (info.written[flat] if count == 1 else info.written[flat:end].all()):
                first = flat + int(info.written[flat:end].argmin())
                self._note_fault("unwritten", info, first, position, "which nobody has written")
            if kind != READ:
                info.written[flat:end] = True
        if info.poison is not None:
            if kind != WRITE and info.poison[flat:end].any():
                first = flat + int(info.poison[flat:end].argmax())
                self._note_fault("poison", info, first, position, "which it should not look at")
            if kind != READ:
                info.poison[flat:end] = False
        if self.keep:
            lane = self.now
            self.records.append(
                (
                    info.number,
                    kind,
                    self.block,
                    lane.number,
                    position,
                    tuple(lane.loops),
                    flat,
                    count,
                    lane.block_epoch,
                    lane.warp_epoch,
                )
            )

    def as_number(self, value: Any) -> Any:
        """What a kernel gets for a number: itself, or one whose uses are counted."""
        if self.counted is not None and isinstance(value, float | np.floating):
            return self.counted(value)
        return value

    def note(self, name: str, values: tuple[Any, ...]) -> None:
        """Something that the kernel says about itself."""
        self.notes.append((self.num_accesses, self.block, self.now.number, name, values))

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────

    def who(self) -> str:
        """The thread that runs now."""
        return self._name(self.now)

    def place(self, frame: FrameType) -> Place:
        """Where in the source it is."""
        return self.places[self.position(frame)]

    def _name(self, lane: Lane) -> str:
        block = tuple(self.block_index)
        return f"thread {tuple(lane.index)} of block {block} (warp {lane.warp}, lane {lane.lane})"

    def _line(self, wait: Wait) -> int:
        return self.places[wait.position].line

    def position(self, frame: FrameType) -> int:
        """The number of a place. Python rewrites code as it runs, so one place may have several offsets."""
        code, offset = frame.f_code, frame.f_lasti
        number = self._positions.get((code, offset))
        if number is None:
            line, end_line, column, end = list(code.co_positions())[offset // 2]
            end = end if end_line == line else FAR_RIGHT
            place = Place(code.co_filename, line or 0, column or 0, end or 0)
            if place not in self.places:
                self.places.append(place)
            number = self._positions[code, offset] = self.places.index(place)
        return number

    def _note_fault(self, kind: str, info: ArrayInfo, flat: int, position: int, words: str) -> None:
        place = self.places[position]
        if any(fault[:2] == (kind, info.name) and fault.places == (place,) for fault in self.faults):
            return  # once for each array and place is enough
        index = info.index_of(flat)
        message = f"{self.who()} reads {info.name}{list(index)}, {words} ({place})"
        self.faults.append(Fault(kind, info.name, index, message, (place,), (self.block,)))

    def _global_array(self, name: str, data: Any, poison: Any) -> DeviceArray:
        info = ArrayInfo(len(self.arrays), name, data, is_shared=False)
        if poison is not None:
            info.poison = np.broadcast_to(np.asarray(poison, bool), data.shape).reshape(-1).copy()
        self.arrays.append(info)
        return DeviceArray(self, info, data)


def _assigned_name(frame: FrameType) -> str | None:
    """The variable that the array is about to be stored in: the instruction after the call says so."""
    import dis

    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset > frame.f_lasti and instruction.opname != "CACHE":
            return str(instruction.argval) if instruction.opname == "STORE_FAST" else None
    return None
