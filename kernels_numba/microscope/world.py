"""What `cuda` is to a kernel under the microscope, and how a kernel gets to see it.

A kernel is a Python function that mentions `cuda`, perhaps device functions, instructions of ours, types
like `float32`. It is given a copy of its globals in which each of those has been exchanged:

    cuda                      ──►  `KernelCuda`: the same names, and every wait is one for the machine
    a device function         ──►  itself, exchanged in the same way
    an instruction in PTX     ──►  its meaning (`kernels_numba/meanings.py`)
    float32, int32, …         ──►  numpy's
    range                     ──►  one that counts iterations: lanes in the same one are side by side

Its code stays the same object, so every position in it is a position in the author's file.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numba import cuda as real_cuda
from numba.core import types as numba_types
from numba.np import numpy_support

from kernels_numba.meanings import meaning_of
from kernels_numba.microscope.counting import counted_math, is_math
from kernels_numba.microscope.faults import NotUnderstood
from kernels_numba.microscope.memory import DeviceArray
from kernels_numba.microscope.threads import WARP_SIZE, Dim3, LaneMissing, Wait

if TYPE_CHECKING:
    from kernels_numba.microscope.machine import Machine

FULL_MASK = 0xFFFFFFFF


def numpy_dtype(name: Any) -> np.dtype[Any]:
    """Of a type as kernels name it: numba's or numpy's."""
    if isinstance(name, numba_types.Type):
        name = numpy_support.as_dtype(name)
    kind: np.dtype[Any] = np.dtype(name)
    return kind


def enter(function: Callable[..., Any], machine: Machine) -> Callable[..., Any]:
    """The same function in a world where `cuda` is the machine's."""
    return _enter(function, machine, KernelCuda(machine), {})


def _enter(
    function: Callable[..., Any], machine: Machine, cuda: KernelCuda, entered: dict[object, Any]
) -> Callable[..., Any]:
    plain = getattr(function, "py_func", function)
    if not isinstance(plain, FunctionType):
        raise NotUnderstood(f"a kernel must be a Python function, got {function!r}")
    if plain in entered:
        return entered[plain]  # type: ignore[no-any-return]
    machine.kernel_code.add(plain.__code__)
    world = dict(plain.__globals__)
    closure = tuple(CellType() for _ in plain.__closure__ or ())
    new = FunctionType(plain.__code__, world, plain.__name__, plain.__defaults__, closure or None)
    entered[plain] = new

    def exchanged(thing: Any) -> Any:
        if thing is real_cuda:
            return cuda
        meaning = meaning_of(thing)
        if meaning is not None:
            return lambda *given: meaning(machine.now, *given)
        if hasattr(thing, "py_func"):
            return _enter(thing, machine, cuda, entered)
        if isinstance(thing, numba_types.Number | numba_types.Boolean):
            kind = numpy_dtype(thing)
            return machine.counted if machine.counted and kind.kind == "f" else kind.type
        if machine.tally and machine.counted and is_math(thing):
            return counted_math(machine.tally, machine.counted)
        return machine.as_number(thing)

    for name in plain.__code__.co_names:
        if name in world:
            world[name] = exchanged(world[name])
    for cell, old in zip(closure, plain.__closure__ or (), strict=True):
        cell.cell_contents = exchanged(old.cell_contents)
    world["range"] = machine.counted_range
    return new


class _SharedMemory:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> DeviceArray:
        """The block's array that is declared here; the first thread that comes makes it."""
        frame = sys._getframe(1)
        return self._machine.shared_array((frame.f_code, frame.f_lasti), shape, numpy_dtype(dtype), frame)


class _LocalMemory:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        kind = numpy_dtype(dtype)
        if self._machine.counted and kind.kind == "f":
            return np.full(shape, self._machine.counted("nan"), object)
        return np.full(shape, np.nan, kind) if kind.kind == "f" else np.zeros(shape, kind)


class _ConstantMemory:
    def array_like(self, array: Any) -> Any:
        return array


class _Atomics:
    """`cuda.atomic.add(array, index, value)` and its like; each returns what was there before."""

    _CHANGES: ClassVar[dict[str, Callable[[Any, Any], Any]]] = {
        "add": operator.add,
        "sub": operator.sub,
        "max": max,
        "min": min,
        "nanmax": np.fmax,
        "nanmin": np.fmin,
        "and_": operator.and_,
        "or_": operator.or_,
        "xor": operator.xor,
        "exch": lambda old, new: new,
        "inc": lambda old, most: 0 if old >= most else old + 1,
        "dec": lambda old, most: most if old == 0 or old > most else old - 1,
    }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._CHANGES:
            raise NotUnderstood(f"cuda.atomic.{name} is not known to the microscope")
        change = self._CHANGES[name]

        def atomic(array: DeviceArray, index: Any, value: Any) -> Any:
            return array.atomic(index, lambda old: change(old, value), sys._getframe(1))

        return atomic

    def cas(self, array: DeviceArray, index: Any, expected: Any, value: Any) -> Any:
        """Write `value` if `expected` is there."""
        return array.atomic(index, lambda old: value if old == expected else old, sys._getframe(1))


class KernelCuda:
    """The module `numba.cuda`, as far as kernels use it."""

    warpsize = WARP_SIZE

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.shared = _SharedMemory(machine)
        self.local = _LocalMemory(machine)
        self.const = _ConstantMemory()
        self.atomic = _Atomics()

    def __getattr__(self, name: str) -> Any:
        raise NotUnderstood(f"cuda.{name} is not known to the microscope")

    # ── who am I? ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def threadIdx(self) -> Dim3:
        return self._machine.now.index

    @property
    def blockIdx(self) -> Dim3:
        return self._machine.block_index

    @property
    def blockDim(self) -> Dim3:
        return self._machine.block_size

    @property
    def gridDim(self) -> Dim3:
        return self._machine.grid_size

    @property
    def laneid(self) -> int:
        return self._machine.now.lane

    def grid(self, dimensions: int) -> Any:
        """This thread's place in the whole grid."""
        place = tuple(
            block * size + thread
            for block, size, thread in zip(self.blockIdx, self.blockDim, self.threadIdx, strict=True)
        )
        return place[0] if dimensions == 1 else place[:dimensions]

    def gridsize(self, dimensions: int) -> Any:
        """Threads of the whole grid."""
        sizes = tuple(grid * block for grid, block in zip(self.gridDim, self.blockDim, strict=True))
        return sizes[0] if dimensions == 1 else sizes[:dimensions]

    # ── waiting for the block ─────────────────────────────────────────────────────────────────────────

    def syncthreads(self) -> None:
        self._meet("syncthreads", "block", None, _nothing, orders_memory=True)

    def syncthreads_count(self, predicate: Any) -> Any:
        return self._meet("syncthreads_count", "block", bool(predicate), _same(sum), orders_memory=True)

    def syncthreads_and(self, predicate: Any) -> Any:
        return self._meet("syncthreads_and", "block", bool(predicate), _same(all), orders_memory=True)

    def syncthreads_or(self, predicate: Any) -> Any:
        return self._meet("syncthreads_or", "block", bool(predicate), _same(any), orders_memory=True)

    # ── within a warp ─────────────────────────────────────────────────────────────────────────────────

    def syncwarp(self, mask: int = FULL_MASK) -> None:
        self._meet("syncwarp", "warp", None, _nothing, mask, orders_memory=True)

    def shfl_sync(self, mask: int, value: Any, source: int) -> Any:
        return self._shuffle("shfl_sync", mask, value, int(source) % WARP_SIZE)

    def shfl_xor_sync(self, mask: int, value: Any, lanes: int) -> Any:
        return self._shuffle("shfl_xor_sync", mask, value, self._machine.now.lane ^ int(lanes))

    def shfl_down_sync(self, mask: int, value: Any, distance: int) -> Any:
        return self._shuffle("shfl_down_sync", mask, value, self._machine.now.lane + int(distance))

    def shfl_up_sync(self, mask: int, value: Any, distance: int) -> Any:
        return self._shuffle("shfl_up_sync", mask, value, self._machine.now.lane - int(distance))

    def ballot_sync(self, mask: int, predicate: Any) -> Any:
        return self._meet("ballot_sync", "warp", bool(predicate), _ballot, mask)

    def any_sync(self, mask: int, predicate: Any) -> Any:
        return self._meet("any_sync", "warp", bool(predicate), _same(any), mask)

    def all_sync(self, mask: int, predicate: Any) -> Any:
        return self._meet("all_sync", "warp", bool(predicate), _same(all), mask)

    def eq_sync(self, mask: int, predicate: Any) -> Any:
        return self._meet("eq_sync", "warp", bool(predicate), _same(lambda v: len(set(v)) == 1), mask)

    def _shuffle(self, what: str, mask: int, value: Any, source: int) -> Any:
        def exchange(values: dict[int, Any]) -> dict[int, Any]:
            for lane, (_, wanted) in values.items():
                if 0 <= wanted < WARP_SIZE and wanted not in values:
                    raise LaneMissing(lane, wanted)
            return {lane: values.get(wanted, (own,))[0] for lane, (own, wanted) in values.items()}

        return self._meet(what, "warp", (value, source), exchange, mask)

    def _meet(
        self,
        what: str,
        scope: str,
        value: Any,
        meet: Callable[[dict[int, Any]], dict[int, Any]],
        mask: int = FULL_MASK,
        orders_memory: bool = False,
    ) -> Any:
        frame = sys._getframe(2)
        while frame.f_code not in self._machine.kernel_code:
            assert frame.f_back is not None
            frame = frame.f_back
        position = self._machine.position(frame)
        return self._machine.now.wait_for(Wait(what, scope, int(mask), position, value, meet, orders_memory))

    # ── arithmetic ────────────────────────────────────────────────────────────────────────────────────

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return a * b + c

    def selp(self, condition: Any, a: Any, b: Any) -> Any:
        return a if condition else b

    def popc(self, value: Any) -> int:
        return int(value).bit_count()

    def ffs(self, value: Any) -> int:
        return (int(value) & -int(value)).bit_length()

    def clz(self, value: Any) -> int:
        return 32 - (int(value) & FULL_MASK).bit_length()

    def threadfence(self) -> None: ...

    def threadfence_block(self) -> None: ...

    def threadfence_system(self) -> None: ...


def _nothing(values: dict[int, Any]) -> dict[int, Any]:
    return dict.fromkeys(values)


def _same(function: Callable[[Any], Any]) -> Callable[[dict[int, Any]], dict[int, Any]]:
    return lambda values: dict.fromkeys(values, int(function(values.values())))


def _ballot(values: dict[int, Any]) -> dict[int, Any]:
    return dict.fromkeys(values, sum(1 << lane for lane, vote in values.items() if vote))


def counted_range(machine: Machine) -> Callable[..., Iterator[int]]:
    """`range`, which tells the lane's loops how far it is."""

    def run(*bounds: int) -> Iterator[int]:
        loops = machine.now.loops
        depth = len(loops)
        loops.append(0)
        try:
            for iteration, value in enumerate(range(*(int(bound) for bound in bounds))):
                loops[depth:] = [iteration]
                yield value
        finally:
            del loops[depth:]

    return run
