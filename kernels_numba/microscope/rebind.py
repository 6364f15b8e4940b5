"""How a kernel gets to see the microscope: a copy of the function with other globals.

A kernel is a Python function that mentions `cuda`, perhaps device functions, instructions of ours, types
like `float32`. It is given a copy of its globals in which each of those has been exchanged:

    cuda                      ──►  `CudaModule`: the same names, and every wait is one for the machine
    a device function         ──►  itself, rebound in the same way
    an instruction in PTX     ──►  its meaning (`kernels_numba/meanings.py`)
    float32, int32, …         ──►  numpy's
    range                     ──►  one that counts iterations: lanes in the same one belong to one request

Its code stays the same object, so every position in it is a position in the author's file.

Read next: `machine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, FunctionType
from typing import Any

from numba import cuda as real_cuda
from numba.core import types as numba_types

from kernels_numba.meanings import meaning_of
from kernels_numba.microscope.counting import counted_math, is_math
from kernels_numba.microscope.cuda_module import CudaModule
from kernels_numba.microscope.executing_lane import ExecutingLane
from kernels_numba.microscope.faults import NotUnderstood
from kernels_numba.microscope.memory_spaces import SharedMemory, numpy_dtype
from kernels_numba.microscope.recording import Recording
from kernels_numba.microscope.threads import Running


def rebind(kernel: Callable[..., Any], recording: Recording, shared: SharedMemory) -> Callable[..., Any]:
    """The same function, with the microscope's names in the place of the real ones.

    Raises:
        NotUnderstood: it is no Python function.
    """
    return _Rebinding(recording, shared).function(kernel)


class _Rebinding:
    """One kernel and its device functions, each rebound once."""

    def __init__(self, recording: Recording, shared: SharedMemory) -> None:
        self._recording = recording
        self._cuda = CudaModule(recording, shared)
        self._lane = ExecutingLane(recording)
        self._range = counted_range(recording.running)
        self._rebound: dict[object, Callable[..., Any]] = {}

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        plain = getattr(function, "py_func", function)
        if not isinstance(plain, FunctionType):
            raise NotUnderstood(f"a kernel must be a Python function, got {function!r}")
        if plain in self._rebound:
            return self._rebound[plain]
        self._recording.source.add_kernel_code(plain.__code__)
        names = dict(plain.__globals__)
        closure = tuple(CellType() for _ in plain.__closure__ or ())
        new = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, closure or None)
        self._rebound[plain] = new
        for name in plain.__code__.co_names:
            if name in names:
                names[name] = self._exchanged(names[name])
        for cell, old in zip(closure, plain.__closure__ or (), strict=True):
            cell.cell_contents = self._exchanged(old.cell_contents)
        names["range"] = self._range
        return new

    def _exchanged(self, thing: Any) -> Any:
        recording = self._recording
        if thing is real_cuda:
            return self._cuda
        meaning = meaning_of(thing)
        if meaning is not None:
            return partial(meaning, self._lane)
        if hasattr(thing, "py_func"):
            return self.function(thing)
        if isinstance(thing, numba_types.Number | numba_types.Boolean):
            kind = numpy_dtype(thing)
            return recording.counted if recording.counted and kind.kind == "f" else kind.type
        if recording.tally and recording.counted and is_math(thing):
            return counted_math(recording.tally, recording.counted)
        return recording.as_number(thing)


def counted_range(running: Running) -> Callable[..., Iterator[int]]:
    """`range`, which tells the lane's loops how far it is."""

    def run(*bounds: int) -> Iterator[int]:
        loops = running.lane.loops
        depth = len(loops)
        loops.append(0)
        try:
            for iteration, value in enumerate(range(*(int(bound) for bound in bounds))):
                if len(loops) > depth + 1:  # of a loop inside, which was left half-way
                    del loops[depth + 1 :]
                loops[depth] = iteration
                yield value
        finally:
            del loops[depth:]

    return run
