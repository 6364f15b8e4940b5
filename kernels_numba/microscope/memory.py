"""Arrays as a kernel under the microscope sees them: every index is checked, every access written down.

An access names its cell by its number in the whole array, whichever view it comes through:

    a[2]  of an array [4, 8]  ──►  a view that begins at cell 16;  a[2][3]  ──►  cell 19

Read next: `memory_spaces.py`, where arrays come from.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from numpy.typing import NDArray

from kernels_numba.microscope.accesses import ATOMIC, READ, WRITE
from kernels_numba.microscope.faults import OutOfBounds
from kernels_numba.microscope.recording import ArrayInfo, Recording


class DeviceArray:
    """A view of an array, as kernels use it: `a[i, j]`, `a[i, j] = x`, `a[i]` for a row, `a.shape`."""

    __slots__ = (
        "_accessed",
        "_counted",
        "_position",
        "dtype",
        "info",
        "ndim",
        "recording",
        "shape",
        "size",
        "start",
        "steps",
        "view",
    )

    def __init__(self, recording: Recording, info: ArrayInfo, view: NDArray[Any], start: int = 0) -> None:
        self.recording = recording
        self._accessed, self._position = recording.accessed, recording.source.position
        self._counted = recording.counted
        self.info = info
        self.view = view
        self.shape, self.dtype, self.ndim, self.size = view.shape, view.dtype, view.ndim, view.size
        self.start = start
        self.steps = tuple(stride // view.itemsize for stride in view.strides)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Any:
        frame = sys._getframe(1)
        if (len(index) if type(index) is tuple else 1) < self.ndim:
            return self._part(index, frame)
        try:
            flat = self._flat(index, frame)
        except TypeError:  # a slice, which is no number
            return self._part(index, frame)
        self._accessed(self.info, READ, flat, 1, self._position(frame))
        value = self.view[index]
        return value if self._counted is None else self.recording.as_number(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        frame = sys._getframe(1)
        flat = self._flat(index, frame)
        self._accessed(self.info, WRITE, flat, 1, self._position(frame))
        self.view[index] = value

    def read_vector(self, index: tuple[Any, ...], count: int, frame: FrameType) -> NDArray[Any]:
        """`count` neighbours along the last dimension, as one access."""
        cells, flat = self.vector(index, count, frame)
        self._accessed(self.info, READ, flat, count, self._position(frame))
        values: NDArray[Any] = self.view[cells]
        return values

    def atomic(self, index: Any, change: Any, frame: FrameType) -> Any:
        """Read, change and write in one piece; returns what was there."""
        flat = self._flat(index, frame)
        self._accessed(self.info, ATOMIC, flat, 1, self._position(frame))
        old = self.view[index]
        self.view[index] = change(old)
        return old

    def vector(self, index: tuple[Any, ...], count: int, frame: FrameType) -> tuple[tuple[Any, ...], int]:
        """Where `count` neighbours along the last dimension are; their address must suit their size."""
        first = int(index[-1])
        self._flat((*index[:-1], first + count - 1), frame)  # is the last of them still within bounds?
        flat = self._flat(index, frame)
        if (flat * self.view.itemsize) % (count * self.view.itemsize):
            raise OutOfBounds(
                f"{self.recording.running.who()} reads or writes {count} neighbours at {self.info.name}"
                f"{_numbers(index)} in one instruction: their address must be a multiple of "
                f"{count * self.view.itemsize} bytes ({self.recording.source.place(frame)})"
            )
        return (*(int(i) for i in index[:-1]), slice(first, first + count)), flat

    def _part(self, index: Any, frame: FrameType) -> DeviceArray:
        for i, size in zip(index if isinstance(index, tuple) else (index,), self.shape, strict=False):
            if not isinstance(i, slice) and not 0 <= i < size:
                raise self._outside(index, frame)
        view = self.view[index]
        start = (view.__array_interface__["data"][0] - self.info.address) // view.itemsize
        return DeviceArray(self.recording, self.info, view, start)

    def _flat(self, index: Any, frame: FrameType) -> int:
        """Where a cell lies in the whole array, counted in elements; numpy's negative indices are errors."""
        flat = self.start
        indices = index if type(index) is tuple else (index,)
        if len(indices) != self.ndim:
            raise self._outside(index, frame)
        for i, step, size in zip(indices, self.steps, self.shape):  # noqa: B905 (the slowest line here)
            number = int(i)
            if not 0 <= number < size:
                raise self._outside(index, frame)
            flat += number * step
        return flat

    def _outside(self, index: Any, frame: FrameType) -> OutOfBounds:
        return OutOfBounds(
            f"{self.recording.running.who()} accesses {self.info.name}{_numbers(index)}, and "
            f"{self.info.name} has the shape {self.shape} ({self.recording.source.place(frame)})"
        )


def _numbers(index: Any) -> list[Any]:
    parts = index if isinstance(index, tuple) else (index,)
    return [part if isinstance(part, slice) else int(part) for part in parts]
