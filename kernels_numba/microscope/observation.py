"""One run of a kernel, written down: `observe` a launch, then ask what it did.

    seen = observe(kernel, grid, block, q, k, v, out)
    seen.faults             races, reads of what nobody wrote, reads of poison
    seen.by_place()         for each access in the source: sectors, bank conflicts, bytes (`analysis.py`)
    seen.traffic()          for each array: bytes asked for, bytes moved, bytes that had to be moved
    seen.check()            raises if there is any fault

What a *request* is: one instruction of one warp. Lanes are side by side if they execute the same place of the
source, in the same iterations of its loops, for the same time.

Read next: `analysis.py`, `races.py`.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.counting import Tally
from kernels_numba.microscope.faults import Fault, KernelFault, Place
from kernels_numba.microscope.machine import Machine, Record
from kernels_numba.microscope.threads import WARP_SIZE, Dim3

MOST_ACCESSES = 5_000_000
MOST_THREADS_IN_BLOCK = 1024
NAMES = ("array", "kind", "block", "thread", "position", "first", "count", "block_epoch", "warp_epoch")


class Array(NamedTuple):
    """One array of a run."""

    name: str
    is_shared: bool
    shape: tuple[int, ...]
    dtype: str
    itemsize: int

    @property
    def num_bytes(self) -> int:
        return self.itemsize * int(np.prod(self.shape, dtype=np.int64))


class Note(NamedTuple):
    """Something that the kernel said about itself (`kernels_numba/cuda/notes.py`)."""

    after: int
    """Accesses of the run before it."""
    block: int
    thread: int
    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Observation:
    """What was seen; numbers of accesses are places in the columns."""

    kernel: str
    file: str
    first_line: int
    """Of the kernel."""
    source: tuple[str, ...]
    """The whole file; line n is `source[n - 1]`."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arrays: tuple[Array, ...]
    places: tuple[Place, ...]
    columns: Mapping[str, NDArray[np.int64]]
    """`NAMES`, each with one entry for every access, in the order in which threads took their turns."""
    requests: NDArray[np.int64]
    """For every access, the number of the request that it belongs to."""
    loops: tuple[tuple[int, ...], ...]
    """For every request, the iterations of the loops that it was in."""
    notes: tuple[Note, ...]
    shared_bytes: int
    noted_faults: tuple[Fault, ...] = field(repr=False)
    asked_bytes: Mapping[str, tuple[int, int]]
    """By array: read and written, by all lanes together."""
    tally: Tally | None
    """Floating-point operations, if they were counted."""

    @property
    def num_accesses(self) -> int:
        return len(self.requests)

    @cached_property
    def faults(self) -> tuple[Fault, ...]:
        """All that went wrong without ending the run."""
        from kernels_numba.microscope.races import find_races

        return (*self.noted_faults, *find_races(self))

    def check(self) -> Observation:
        """Itself, if there is no fault.

        Raises:
            KernelFault: there is one; the message has all of them.
        """
        if self.faults:
            raise KernelFault("\n".join(fault.message for fault in self.faults))
        return self

    def by_place(self) -> list[Any]:
        """One row for each array that is accessed at each place of the source: see `analysis.by_place`."""
        from kernels_numba.microscope.analysis import by_place

        return by_place(self)

    def traffic(self) -> list[Any]:
        """One row for each array: see `analysis.traffic`."""
        from kernels_numba.microscope.analysis import traffic

        return traffic(self)


def observe(
    kernel: Callable[..., Any],
    grid: int | Sequence[int],
    block: int | Sequence[int],
    *arguments: Any,
    shared_bytes: int = 0,
    poison: Mapping[str, Any] | None = None,
    most_accesses: int = MOST_ACCESSES,
    keep: bool = True,
    count: bool = False,
) -> Observation:
    """Run a kernel thread by thread, and write down what it does to memory.

    Args:
        kernel: a `@cuda.jit` function, or the Python function itself.
        grid: blocks, one to three numbers.
        block: threads in each, one to three numbers, at most 1,024 together.
        arguments: numpy arrays (or tensors on the CPU), which the kernel may change, and numbers.
        shared_bytes: of the shared array that is declared with shape 0.
        poison: by the name of a parameter, True for each cell that must not be read before it is written.
        most_accesses: more of them end the run.
        keep: write accesses down; without, only faults are looked for and bytes counted, which is faster.
        count: count floating-point operations, too (`tally`).

    Raises:
        KernelFault: an index out of bounds, threads that wait for each other for ever, …
        ValueError: a launch that no device would accept.
    """
    plain = getattr(kernel, "py_func", kernel)
    names = tuple(inspect.signature(plain).parameters)
    given = [_as_array(argument) for argument in arguments]
    if len(names) != len(given):
        raise ValueError(
            f"{plain.__name__} takes {len(names)} arguments ({', '.join(names)}), got {len(given)}"
        )
    for name in poison or {}:
        if name not in names:
            raise ValueError(
                f"poison must name parameters of {plain.__name__} ({', '.join(names)}), got {name!r}"
            )
    for name, argument in zip(names, given, strict=True):
        _check_argument(name, argument, (poison or {}).get(name))
    block_size = _dim3("block", block)
    if block_size.x * block_size.y * block_size.z > MOST_THREADS_IN_BLOCK:
        raise ValueError(f"block must have at most {MOST_THREADS_IN_BLOCK} threads, got {tuple(block_size)}")
    machine = Machine(most_accesses, keep, count)
    grid_size = _dim3("grid", grid)
    machine.run(plain, grid_size, block_size, given, names, shared_bytes, poison or {})
    requests, loops = _requests(machine.records)
    code = plain.__code__
    return Observation(
        kernel=plain.__name__,
        file=Path(code.co_filename).name,
        first_line=code.co_firstlineno,
        source=tuple(line.rstrip("\n") for line in linecache.getlines(code.co_filename)),
        grid=(grid_size.x, grid_size.y, grid_size.z),
        block=(block_size.x, block_size.y, block_size.z),
        arrays=tuple(
            Array(a.name, a.is_shared, a.data.shape, str(a.data.dtype), a.data.itemsize)
            for a in machine.arrays
        ),
        places=tuple(machine.places),
        columns=_columns(machine.records),
        requests=requests,
        loops=loops,
        notes=tuple(Note(*note) for note in machine.notes),
        shared_bytes=machine.most_shared_bytes,
        noted_faults=tuple(machine.faults),
        asked_bytes={a.name: (a.read_bytes, a.written_bytes) for a in machine.arrays},
        tally=machine.tally,
    )


def _as_array(argument: Any) -> Any:
    if isinstance(argument, np.ndarray | np.generic):
        return argument
    if hasattr(argument, "detach") and hasattr(argument, "numpy"):  # a tensor: the same memory
        return argument.detach().numpy()
    return argument


def _check_argument(name: str, argument: Any, poison: Any) -> None:
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:  # cells are counted in the order of memory
            raise ValueError(f"{name} must be contiguous in memory: hand over a copy")
        if poison is not None and np.shape(poison) not in ((), argument.shape):
            raise ValueError(
                f"poison of {name} must be True, or of its shape {argument.shape}, got {np.shape(poison)}"
            )
    elif poison is not None:
        raise ValueError(f"poison of {name} must be for an array, and it is {argument!r}")


def _dim3(name: str, numbers: int | Sequence[int]) -> Dim3:
    given = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    if not 1 <= len(given) <= 3 or any(not isinstance(n, int) or n < 1 for n in given):
        raise ValueError(f"{name} must be one to three integers of at least 1, got {numbers!r}")
    return Dim3(*given)


def _columns(records: Sequence[Record]) -> dict[str, NDArray[np.int64]]:
    plain = [(*record[:5], *record[6:]) for record in records]
    table = np.array(plain, np.int64).reshape(len(plain), len(NAMES))
    return {name: table[:, i] for i, name in enumerate(NAMES)}


def _requests(records: Sequence[Record]) -> tuple[NDArray[np.int64], tuple[tuple[int, ...], ...]]:
    """Which accesses are one instruction of one warp."""
    times: dict[Any, int] = {}
    numbers: dict[Any, int] = {}
    loops: list[tuple[int, ...]] = []
    requests = np.empty(len(records), np.int64)
    for place, (array, kind, block, thread, position, iterations, *_) in enumerate(records):
        own = (array, kind, block, thread, position, iterations)
        time = times[own] = times.get(own, -1) + 1
        shared = (array, kind, block, thread // WARP_SIZE, position, iterations, time)
        number = numbers.setdefault(shared, len(numbers))
        if number == len(loops):
            loops.append(iterations)
        requests[place] = number
    return requests, tuple(loops)
