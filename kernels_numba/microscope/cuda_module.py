"""What `cuda` is to a kernel under the microscope: the names of `numba.cuda`, in plain Python.

    cuda.threadIdx, cuda.grid(2)     read from `Running`: which thread runs now
    cuda.shared.array                `memory_spaces.py`
    cuda.syncthreads, shuffles       a `Wait`: the thread gives control back until all of them have come
    cuda.atomic.add                  read, change and write as one access

A name that is not here is a fault (`NotUnderstood`), so no kernel runs with a meaning that was guessed.

Read next: `rebind.py`, which puts it in the place of the real one.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from kernels_numba.microscope.executing_lane import FULL_MASK
from kernels_numba.microscope.faults import NotUnderstood
from kernels_numba.microscope.memory import DeviceArray
from kernels_numba.microscope.memory_spaces import ConstantMemory, LocalMemory, SharedMemory
from kernels_numba.microscope.recording import Recording
from kernels_numba.microscope.threads import WARP_SIZE, Dim3, LaneMissing


class CudaModule:
    """The module `numba.cuda`, as far as kernels use it."""

    warpsize = WARP_SIZE

    def __init__(self, recording: Recording, shared: SharedMemory) -> None:
        self._running = recording.running
        self._source = recording.source
        self.shared = shared
        self.local = LocalMemory(recording)
        self.const = ConstantMemory()
        self.atomic = _Atomics()

    def __getattr__(self, name: str) -> Any:
        raise NotUnderstood(f"cuda.{name} is not known to the microscope")

    # ── thread, block, grid ───────────────────────────────────────────────────────────────────────────────

    @property
    def threadIdx(self) -> Dim3:
        return self._running.lane.index

    @property
    def blockIdx(self) -> Dim3:
        return self._running.block_index

    @property
    def blockDim(self) -> Dim3:
        return self._running.block_size

    @property
    def gridDim(self) -> Dim3:
        return self._running.grid_size

    @property
    def laneid(self) -> int:
        return self._running.lane.lane

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

    # ── barriers of the thread block ───────────────────────────────────────────────────────────────────────

    def syncthreads(self) -> None:
        self._collective("syncthreads", "block", None, _nothing, orders_memory=True)

    def syncthreads_count(self, predicate: Any) -> Any:
        return self._collective("syncthreads_count", "block", bool(predicate), _same(sum), orders_memory=True)

    def syncthreads_and(self, predicate: Any) -> Any:
        return self._collective("syncthreads_and", "block", bool(predicate), _same(all), orders_memory=True)

    def syncthreads_or(self, predicate: Any) -> Any:
        return self._collective("syncthreads_or", "block", bool(predicate), _same(any), orders_memory=True)

    # ── collectives of a warp ───────────────────────────────────────────────────────────────────────────────

    def syncwarp(self, mask: int = FULL_MASK) -> None:
        self._collective("syncwarp", "warp", None, _nothing, mask, orders_memory=True)

    def shfl_sync(self, mask: int, value: Any, source: int) -> Any:
        return self._shuffle("shfl_sync", mask, value, int(source) % WARP_SIZE)

    def shfl_xor_sync(self, mask: int, value: Any, lanes: int) -> Any:
        return self._shuffle("shfl_xor_sync", mask, value, self._running.lane.lane ^ int(lanes))

    def shfl_down_sync(self, mask: int, value: Any, distance: int) -> Any:
        return self._shuffle("shfl_down_sync", mask, value, self._running.lane.lane + int(distance))

    def shfl_up_sync(self, mask: int, value: Any, distance: int) -> Any:
        return self._shuffle("shfl_up_sync", mask, value, self._running.lane.lane - int(distance))

    def ballot_sync(self, mask: int, predicate: Any) -> Any:
        return self._collective("ballot_sync", "warp", bool(predicate), _ballot, mask)

    def any_sync(self, mask: int, predicate: Any) -> Any:
        return self._collective("any_sync", "warp", bool(predicate), _same(any), mask)

    def all_sync(self, mask: int, predicate: Any) -> Any:
        return self._collective("all_sync", "warp", bool(predicate), _same(all), mask)

    def eq_sync(self, mask: int, predicate: Any) -> Any:
        return self._collective("eq_sync", "warp", bool(predicate), _same(lambda v: len(set(v)) == 1), mask)

    def _shuffle(self, what: str, mask: int, value: Any, source: int) -> Any:
        return self._collective(what, "warp", (value, source), _shuffled, mask)

    def _collective(
        self,
        what: str,
        scope: str,
        value: Any,
        exchange: Callable[[dict[int, Any]], dict[int, Any]],
        mask: int = FULL_MASK,
        orders_memory: bool = False,
    ) -> Any:
        position = self._source.position(self._source.kernel_frame(sys._getframe(2)))
        return self._running.wait_for(what, scope, int(mask), position, value, exchange, orders_memory)

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


def _nothing(values: dict[int, Any]) -> dict[int, Any]:
    return dict.fromkeys(values)


def _shuffled(values: dict[int, Any]) -> dict[int, Any]:
    """Each lane gives a value and names another lane, whose value it gets; of lanes outside, its own."""
    for lane, (_, giver) in values.items():
        if 0 <= giver < WARP_SIZE and giver not in values:
            raise LaneMissing(lane, giver)
    return {lane: values.get(giver, (own,))[0] for lane, (own, giver) in values.items()}


def _same(function: Callable[[Any], Any]) -> Callable[[dict[int, Any]], dict[int, Any]]:
    return lambda values: dict.fromkeys(values, int(function(values.values())))


def _ballot(values: dict[int, Any]) -> dict[int, Any]:
    return dict.fromkeys(values, sum(1 << lane for lane, vote in values.items() if vote))
