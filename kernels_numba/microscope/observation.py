"""One run of a kernel, written down: `observe` a launch, then ask what it did.

    seen = observe(kernel, grid, block, q, k, v, out)
    seen.faults             races, reads of unwritten memory, reads of poison
    seen.by_place()         for each access in the source: sectors, bank conflicts, bytes (`analysis.py`)
    seen.traffic()          for each array: bytes requested, bytes moved, bytes that had to be moved
    seen.check()            raises if there is any fault

An observation is data and outlives the machine. Its faults and costs are computed on demand, from the columns
of `accesses.py`.

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

from kernels_numba.microscope import analysis, races
from kernels_numba.microscope.accesses import Accesses, columns_of, requests_of
from kernels_numba.microscope.counting import Tally
from kernels_numba.microscope.faults import Fault, KernelFault
from kernels_numba.microscope.machine import Machine
from kernels_numba.microscope.recording import Recording
from kernels_numba.microscope.threads import Dim3, Running

MAX_ACCESSES = 5_000_000
MAX_THREADS_PER_BLOCK = 1024


class Note(NamedTuple):
    """Something that the kernel said about itself (`kernels_numba/cuda/notes.py`)."""

    after: int
    """Accesses of the run before it."""
    block: int
    thread: int
    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Observation(Accesses):
    """What was seen: every access, and what belongs to the run as a whole."""

    kernel: str
    file: str
    first_line: int
    """Of the kernel."""
    source: tuple[str, ...]
    """The whole file; line n is `source[n - 1]`."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    notes: tuple[Note, ...]
    shared_bytes: int
    noted_faults: tuple[Fault, ...] = field(repr=False)
    asked_bytes: Mapping[str, tuple[int, int]]
    """By array: read and written, by all lanes together."""
    tally: Tally | None
    """Floating-point operations, if they were counted."""

    @cached_property
    def faults(self) -> tuple[Fault, ...]:
        """All that went wrong without ending the run."""
        return (*self.noted_faults, *races.find_races(self))

    def check(self) -> Observation:
        """Itself, if there is no fault.

        Raises:
            KernelFault: there is one; the message has all of them.
        """
        if self.faults:
            raise KernelFault("\n".join(fault.message for fault in self.faults))
        return self

    def by_place(self) -> list[analysis.PlaceCost]:
        """One row for each array that is accessed at each place of the source: see `analysis.by_place`."""
        return analysis.by_place(self)

    def traffic(self) -> list[analysis.ArrayTraffic]:
        """One row for each array: see `analysis.traffic`."""
        return analysis.traffic(self)


def observe(
    kernel: Callable[..., Any],
    grid: int | Sequence[int],
    block: int | Sequence[int],
    *arguments: Any,
    shared_bytes: int = 0,
    poison: Mapping[str, Any] | None = None,
    max_accesses: int = MAX_ACCESSES,
    keep: bool = True,
    count: bool = False,
) -> Observation:
    """Run a kernel thread by thread, and write down what it does to memory.

    Args:
        kernel: a `@cuda.jit` function, or the Python function itself.
        grid: thread blocks, one to three numbers.
        block: threads in each, one to three numbers, at most 1,024 together.
        arguments: numpy arrays (or tensors on the CPU), which the kernel may change, and numbers.
        shared_bytes: of the shared array that is declared with shape 0.
        poison: by the name of a parameter, True for each cell that must not be read before it is written.
        max_accesses: more of them end the run.
        keep: write accesses down; without, only faults are looked for and bytes counted, which is faster.
        count: count floating-point operations, too (`tally`).

    Raises:
        KernelFault: an index out of bounds, a deadlock, …
        ValueError: a launch that no device would accept.
    """
    plain = getattr(kernel, "py_func", kernel)
    given, marked = _named_arguments(plain, arguments), poison or {}
    for name in marked:
        if name not in given:
            raise ValueError(
                f"poison must name parameters of {plain.__name__} ({', '.join(given)}), got {name!r}"
            )
    for name, argument in given.items():
        _check_argument(name, argument, marked.get(name))
    block_size = _dim3("block", block)
    if block_size.x * block_size.y * block_size.z > MAX_THREADS_PER_BLOCK:
        raise ValueError(f"block must have at most {MAX_THREADS_PER_BLOCK} threads, got {tuple(block_size)}")
    recording = Recording(Running(_dim3("grid", grid), block_size), max_accesses, keep, count)
    machine = Machine(recording, shared_bytes)
    machine.run(plain, given, marked)
    return _observation(plain, recording, machine.shared.max_bytes)


def _observation(plain: Callable[..., Any], recording: Recording, shared_bytes: int) -> Observation:
    columns = columns_of(recording.records)
    requests, loops = requests_of(recording.records, columns)
    code, running = plain.__code__, recording.running
    return Observation(
        kernel=plain.__name__,
        file=Path(code.co_filename).name,
        first_line=code.co_firstlineno,
        source=tuple(line.rstrip("\n") for line in linecache.getlines(code.co_filename)),
        grid=running.grid_size.as_tuple(),
        block=running.block_size.as_tuple(),
        arrays=tuple(info.summary() for info in recording.arrays),
        places=tuple(recording.source.places),
        columns=columns,
        requests=requests,
        loops=loops,
        notes=tuple(Note(*note) for note in recording.notes),
        shared_bytes=shared_bytes,
        noted_faults=tuple(recording.faults),
        asked_bytes={info.name: (info.read_bytes, info.written_bytes) for info in recording.arrays},
        tally=recording.tally,
    )


def _named_arguments(plain: Callable[..., Any], arguments: Sequence[Any]) -> dict[str, Any]:
    names = tuple(inspect.signature(plain).parameters)
    if len(names) != len(arguments):
        raise ValueError(
            f"{plain.__name__} takes {len(names)} arguments ({', '.join(names)}), got {len(arguments)}"
        )
    return {name: _as_array(argument) for name, argument in zip(names, arguments, strict=True)}


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
