"""Where a kernel's arrays come from: global, shared, local and constant memory.

    an argument            global: the caller's own memory
    cuda.shared.array      one for each thread block; begins unwritten: floating-point cells are NaN, and a
                           read of a cell that no thread has written is noted
    cuda.local.array       registers of one thread: they cost no traffic, so they are not watched
    cuda.const.array_like  the array itself

Read next: `executing_lane.py`.
"""

from __future__ import annotations

import dis
import sys
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np
from numba.core import types as numba_types
from numba.np import numpy_support
from numpy.typing import NDArray

from kernels_numba.microscope.memory import DeviceArray
from kernels_numba.microscope.recording import ArrayInfo, Recording


def global_array(recording: Recording, name: str, data: NDArray[Any], poison: Any) -> DeviceArray:
    """An argument of the kernel; `poison`: True for each cell that must not be read before it is written."""
    info = ArrayInfo(len(recording.arrays), name, data, is_shared=False)
    if poison is not None:
        info.poison = bytearray(np.broadcast_to(np.asarray(poison, bool), data.shape).tobytes())
    recording.arrays.append(info)
    return DeviceArray(recording, info, data)


class SharedMemory:
    """The shared arrays of one thread block after another: each declaration in the source makes one.

    Args:
        recording: where arrays and their accesses are written down.
        dynamic_bytes: size of the array that is declared with shape 0, said at the launch.
    """

    def __init__(self, recording: Recording, dynamic_bytes: int) -> None:
        self.recording = recording
        self.dynamic_bytes = dynamic_bytes
        self.max_bytes = 0
        """Most that one block had."""
        self._arrays: dict[Any, ArrayInfo] = {}
        self._newest: dict[Any, ArrayInfo] = {}
        """The newest array of each declaration, in whatever block."""

    def begin_block(self) -> None:
        """The next thread block has none yet."""
        self._arrays = {}

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> DeviceArray:
        """The block's array that is declared here; the first thread that comes here makes it."""
        frame, kind = sys._getframe(1), numpy_dtype(dtype)
        key: Any = (frame.f_code, frame.f_lasti)
        if shape == 0:
            key, shape = ("dynamic", kind), self.dynamic_bytes // kind.itemsize
        info = self._arrays.get(key)
        if info is None:
            info = self._arrays[key] = self._declare(key, shape, kind, frame)
            self.max_bytes = max(self.max_bytes, sum(array.data.nbytes for array in self._arrays.values()))
        return DeviceArray(self.recording, info, info.data)

    def _declare(self, key: Any, shape: Any, kind: np.dtype[Any], frame: FrameType) -> ArrayInfo:
        data = np.full(shape, np.nan if kind.kind == "f" else 0, kind)
        arrays, known = self.recording.arrays, self._newest.get(key)
        if known is None:
            name = self._free_name(_assigned_name(frame.f_code, frame.f_lasti) or "shared")
            info = ArrayInfo(len(arrays), name, data, is_shared=True)
            arrays.append(info)
        else:  # declared at the same place in another block: other memory, one account
            info = ArrayInfo(known.number, known.name, data, is_shared=True)
            info.read_bytes, info.written_bytes = known.read_bytes, known.written_bytes
            arrays[known.number] = info
        info.written = bytearray(data.size)
        self._newest[key] = info
        return info

    def _free_name(self, name: str) -> str:
        """Two device functions may both call an array `tile`; the second is `tile_2`."""
        taken = {array.name for array in self.recording.arrays}
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        return free


class LocalMemory:
    """Arrays of one thread, `cuda.local`."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        """A plain array of numpy; what is not yet written is NaN."""
        kind = numpy_dtype(dtype)
        counted = self._recording.counted
        if counted and kind.kind == "f":
            return np.full(shape, counted("nan"), object)
        return np.full(shape, np.nan, kind) if kind.kind == "f" else np.zeros(shape, kind)


class ConstantMemory:
    """Arrays that no kernel writes, `cuda.const`."""

    def array_like(self, array: Any) -> Any:
        return array


def numpy_dtype(name: Any) -> np.dtype[Any]:
    """Of a type as kernels name it: numba's or numpy's."""
    if isinstance(name, numba_types.Type):
        name = numpy_support.as_dtype(name)
    kind: np.dtype[Any] = np.dtype(name)
    return kind


@cache
def _assigned_name(code: CodeType, offset: int) -> str | None:
    """The variable that the array is about to be stored in: the instruction after the call says so."""
    for instruction in dis.get_instructions(code):
        if instruction.offset > offset and instruction.opname != "CACHE":
            return str(instruction.argval) if instruction.opname == "STORE_FAST" else None
    return None
