"""The machine: a grid of thread blocks, one after another; in each, threads that run until they must wait.

    for every block:
        every thread runs until it waits, or ends
        all lanes of a warp have come to the same shuffle or barrier: they exchange values and run on
        no warp can run on, and all threads of the block wait at the same barrier: they all run on
        no thread can run on, and some wait: a fault, on a GPU they would wait for ever

Threads run one after another here and at the same time on a GPU, so an answer that is right here proves
little. What counts is what was written down: two accesses to one cell, by different threads, with no barrier
between them and one of them a write, are a race, whatever came out this time (`races.py`).

Read next: `observation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from greenlet import greenlet

from kernels_numba.microscope.faults import BarrierMismatch
from kernels_numba.microscope.memory_spaces import SharedMemory, global_array
from kernels_numba.microscope.rebind import rebind
from kernels_numba.microscope.recording import Recording
from kernels_numba.microscope.threads import WARP_SIZE, Dim3, Lane, LaneMissing, Wait


class Machine:
    """Runs one kernel once; see `observation.observe`.

    Args:
        recording: where everything is written down; its `running` says how many threads and blocks there are.
        shared_bytes: of the shared array that is declared with shape 0.
    """

    def __init__(self, recording: Recording, shared_bytes: int = 0) -> None:
        self.recording = recording
        self.shared = SharedMemory(recording, shared_bytes)
        self._running = recording.running

    def run(
        self, kernel: Callable[..., Any], arguments: Mapping[str, Any], poison: Mapping[str, Any]
    ) -> None:
        """All blocks, in order.

        Args:
            arguments: by the names of the kernel's parameters, in their order.
            poison: by the same names, True for each cell that must not be read before it is written.
        """
        function = rebind(kernel, self.recording, self.shared)
        given = [
            global_array(self.recording, name, argument, poison.get(name))
            if isinstance(argument, np.ndarray)
            else self.recording.as_number(argument)
            for name, argument in arguments.items()
        ]
        running = self._running
        for z in range(running.grid_size.z):
            for y in range(running.grid_size.y):
                for x in range(running.grid_size.x):
                    running.block_index = Dim3(x, y, z)
                    self._run_block(lambda: function(*given))
                    running.block += 1

    def _run_block(self, run: Callable[[], None]) -> None:
        self.shared.begin_block()
        size = self._running.block_size
        indices = [Dim3(x, y, z) for z in range(size.z) for y in range(size.y) for x in range(size.x)]
        lanes = [Lane(number, index) for number, index in enumerate(indices)]
        threads = [greenlet(run) for _ in lanes]
        warps = [lanes[first : first + WARP_SIZE] for first in range(0, len(lanes), WARP_SIZE)]
        ready = lanes
        try:
            while True:
                for lane in ready:
                    self._running.lane = lane
                    lane.wait = None
                    threads[lane.number].switch()
                    lane.has_ended = threads[lane.number].dead
                waiting = [lane for lane in lanes if not lane.has_ended]
                if not waiting:
                    return
                ready = [lane for warp in warps for lane in self._complete_in_warp(warp)]
                if not ready:
                    ready = self._complete_in_block(waiting)
        finally:
            for thread in threads:  # after a fault in one, the others end, too
                if not thread.dead:
                    thread.throw()

    def _complete_in_warp(self, warp: Sequence[Lane]) -> list[Lane]:
        """Lanes whose shuffle or barrier all others of its mask have reached; they have their answers."""
        alive = 0  # a bit for each lane
        groups: dict[Wait, dict[int, Lane]] = {}
        for lane in warp:
            if lane.has_ended:
                continue
            alive |= 1 << lane.lane
            if (wait := lane.wait) is not None and wait.scope == "warp":
                if not wait.mask >> lane.lane & 1:
                    raise self._mask_names_others(lane, wait)
                groups.setdefault(wait, {})[lane.lane] = lane
        ready: list[Lane] = []
        for wait, group in groups.items():
            here = sum(1 << number for number in group)
            if not wait.mask & alive & ~here:
                self._exchange(wait, group, whole=here == alive)
                ready += group.values()
        return ready

    def _complete_in_block(self, waiting: Sequence[Lane]) -> list[Lane]:
        """All threads of a block, if they wait at one barrier; otherwise no thread can ever run on.

        Raises:
            BarrierMismatch: with the places at which they wait.
        """
        wait, *others = {lane.wait for lane in waiting}
        if others or wait is None or wait.scope != "block":
            raise BarrierMismatch(self._who_waits_where(waiting))
        self._exchange(wait, {lane.number: lane for lane in waiting}, whole=True)
        return list(waiting)

    def _exchange(self, wait: Wait, group: Mapping[int, Lane], whole: bool) -> None:
        """From the values of all lanes to their answers; `whole`: all living lanes of the warp are here."""
        try:
            answers = wait.exchange({number: lane.given for number, lane in group.items()})
        except LaneMissing as missing:
            asking, giver = missing.args
            raise BarrierMismatch(
                f"{self._running.name_of(group[asking])} takes part in {wait.what} (line "
                f"{self._line(wait)}) and asks for the value of lane {giver}, which has ended or takes no "
                "part"
            ) from None
        for number, lane in group.items():
            lane.answer = answers[number]
            if wait.orders_memory and wait.scope == "block":
                lane.block_epoch += 1
            elif wait.orders_memory and whole:
                lane.warp_epoch += 1

    def _mask_names_others(self, lane: Lane, wait: Wait) -> BarrierMismatch:
        return BarrierMismatch(
            f"{self._running.name_of(lane)} takes part in {wait.what} (line {self._line(wait)}), and the "
            f"mask {wait.mask:#010x} does not name it"
        )

    def _who_waits_where(self, waiting: Sequence[Lane]) -> str:
        places: dict[tuple[str, int], list[Lane]] = {}
        for lane in waiting:
            assert lane.wait is not None
            places.setdefault((lane.wait.what, self._line(lane.wait)), []).append(lane)
        parts = [
            f"{len(lanes)} at {what} in line {line} (the first is {self._running.name_of(lanes[0])})"
            for (what, line), lanes in places.items()
        ]
        size = self._running.block_size
        ended = size.x * size.y * size.z - len(waiting)
        if ended:
            parts.append(f"{ended} have ended")
        block = tuple(self._running.block_index)
        return f"deadlock: threads of block {block} wait for each other: " + ", ".join(parts)

    def _line(self, wait: Wait) -> int:
        return self.recording.source.places[wait.position].line
