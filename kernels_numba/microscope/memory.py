"""Arrays as a kernel under the microscope sees them: every index is checked, every access written down.

Global arrays are the caller's own memory. Shared arrays belong to one block, and nothing is in them until
somebody writes: floating-point cells begin as NaN, and a read of a cell that nobody has written is noted.
Local arrays are registers: they cost no traffic, so they are not watched.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.faults import OutOfBounds

if TYPE_CHECKING:
    from kernels_numba.microscope.machine import Machine

READ, WRITE, ATOMIC = 0, 1, 2


class ArrayInfo:
    """One array of a run, and all its views."""

    __slots__ = (
        "address",
        "data",
        "is_shared",
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
        self.is_shared = is_shared
        self.read_bytes = self.written_bytes = 0
        """Asked for by all lanes so far."""
        self.address = data.__array_interface__["data"][0]
        self.written: NDArray[np.bool_] | None = None
        """Of a shared array: which cells have been written (flat)."""
        self.poison: NDArray[np.bool_] | None = None
        """Of a global array: cells that nobody may read (flat)."""

    def index_of(self, flat: int) -> tuple[int, ...]:
        """Coordinates of a cell."""
        return tuple(int(i) for i in np.unravel_index(flat, self.data.shape))


class DeviceArray:
    """A view of an array, as kernels use it: `a[i, j]`, `a[i, j] = x`, `a[i]` for a row, `a.shape`."""

    __slots__ = ("dtype", "info", "machine", "ndim", "shape", "size", "start", "steps", "view")

    def __init__(self, machine: Machine, info: ArrayInfo, view: NDArray[Any], start: int = 0) -> None:
        self.machine = machine
        self.info = info
        self.view = view
        self.shape, self.dtype, self.ndim, self.size = view.shape, view.dtype, view.ndim, view.size
        self.start = start
        self.steps = tuple(stride // view.itemsize for stride in view.strides)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Any:
        if self._is_part(index):
            return self._part(index)
        frame = sys._getframe(1)
        flat = self._flat(index, frame)
        self.machine.accessed(self.info, READ, flat, 1, self.machine.position(frame))
        return self.machine.as_number(self.view[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        frame = sys._getframe(1)
        flat = self._flat(index, frame)
        self.machine.accessed(self.info, WRITE, flat, 1, self.machine.position(frame))
        self.view[index] = value

    def read_vector(self, index: tuple[Any, ...], count: int, frame: FrameType) -> NDArray[Any]:
        """`count` neighbours along the last dimension, as one access."""
        cells, flat = self.vector(index, count, frame)
        self.machine.accessed(self.info, READ, flat, count, self.machine.position(frame))
        values: NDArray[Any] = self.view[cells]
        return values

    def atomic(self, index: Any, change: Any, frame: FrameType) -> Any:
        """Read, change and write in one piece; returns what was there."""
        flat = self._flat(index, frame)
        self.machine.accessed(self.info, ATOMIC, flat, 1, self.machine.position(frame))
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
                f"{self.machine.who()} reads or writes {count} neighbours at {self.info.name}"
                f"{_numbers(index)} in one instruction: their address must be a multiple of "
                f"{count * self.view.itemsize} bytes ({self.machine.place(frame)})"
            )
        return (*(int(i) for i in index[:-1]), slice(first, first + count)), flat

    def _is_part(self, index: Any) -> bool:
        if type(index) is tuple:
            return len(index) < self.ndim or slice in map(type, index)
        return self.ndim > 1 or type(index) is slice

    def _part(self, index: Any) -> DeviceArray:
        frame = sys._getframe(2)
        for i, size in zip(index if isinstance(index, tuple) else (index,), self.shape, strict=False):
            if not isinstance(i, slice) and not 0 <= i < size:
                raise self._outside(index, frame)
        view = self.view[index]
        start = (view.__array_interface__["data"][0] - self.info.address) // view.itemsize
        return DeviceArray(self.machine, self.info, view, start)

    def _flat(self, index: Any, frame: FrameType) -> int:
        """Where a cell lies in the whole array, counted in elements; numpy's negative indices are errors."""
        flat = self.start
        indices = index if type(index) is tuple else (index,)
        if len(indices) != self.ndim:
            raise self._outside(index, frame)
        for i, step, size in zip(indices, self.steps, self.shape, strict=True):
            if not 0 <= i < size:
                raise self._outside(index, frame)
            flat += int(i) * step
        return flat

    def _outside(self, index: Any, frame: FrameType) -> OutOfBounds:
        return OutOfBounds(
            f"{self.machine.who()} accesses {self.info.name}{_numbers(index)}, and {self.info.name} has the "
            f"shape {self.shape} ({self.machine.place(frame)})"
        )


def _numbers(index: Any) -> list[Any]:
    parts = index if isinstance(index, tuple) else (index,)
    return [part if isinstance(part, slice) else int(part) for part in parts]
