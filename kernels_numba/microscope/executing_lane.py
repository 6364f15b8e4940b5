"""What the meaning of an instruction may do: the lane that executes it, as `meanings.py` hands it over.

    @means(load_float4)
    def _(lane, array, row, column):
        return tuple(lane.read(array, (row, column), 4))

One object serves a whole run: it acts for the lane that runs at the moment. It keeps each lane's asynchronous
copies until their group is waited for.

Read next: `cuda_module.py`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from types import FrameType
from typing import Any

from kernels_numba.microscope.accesses import WRITE
from kernels_numba.microscope.memory import DeviceArray
from kernels_numba.microscope.recording import Recording

FULL_MASK = 0xFFFFFFFF


class ExecutingLane:
    """The lane that runs now, and what an instruction can have it do."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._copies: dict[tuple[int, int], list[list[Callable[[], None]]]] = defaultdict(lambda: [[]])
        """By block and thread, the copies that have not arrived: complete groups, and the open one."""

    def read(self, array: DeviceArray, index: tuple[Any, ...], count: int) -> Any:
        """`count` neighbours in the last dimension, in one instruction."""
        return array.read_vector(index, count, self._kernel_frame())

    def warp_collective(
        self, what: str, value: Any, exchange: Callable[[dict[int, Any]], dict[int, Any]]
    ) -> Any:
        """An operation of the whole warp, such as a matrix product: each lane gives a value and gets one."""
        position = self._recording.source.position(self._kernel_frame())
        return self._recording.running.wait_for(what, "warp", FULL_MASK, position, value, exchange, False)

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
        position = self._recording.source.position(frame)

        def arrive() -> None:
            self._recording.accessed(target.info, WRITE, flat, count, position)
            target.view[cells] = values

        self._groups()[-1].append(arrive)

    def commit_copies(self) -> None:
        """Close the group of copies."""
        self._groups().append([])

    def wait_for_copies(self, groups_left: int) -> None:
        """All groups but the newest arrive."""
        groups = self._groups()
        while len(groups) - 1 > groups_left:
            for copy in groups.pop(0):
                copy()

    def note(self, name: str, values: tuple[Any, ...]) -> None:
        """Something that the kernel says about itself (`kernels_numba/cuda/notes.py`)."""
        self._recording.note(name, values)

    def _groups(self) -> list[list[Callable[[], None]]]:
        running = self._recording.running
        return self._copies[running.block, running.lane.number]

    def _kernel_frame(self) -> FrameType:
        return self._recording.source.kernel_frame(sys._getframe(2))
