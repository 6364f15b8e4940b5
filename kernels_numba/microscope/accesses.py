"""The accesses of one run, as columns, and which of them are one *request*.

A request is one instruction of one warp: the lanes that execute the same place of the source, in the same
iterations of its loops, for the same time.

    access     array  kind  thread  position  iterations          request
    0          a      read       0        17  (0,)                0
    1          a      read       1        17  (0,)                0      the same instruction, another lane
    2          a      read       0        17  (1,)                1      the next iteration

`races.py` and `analysis.py` work on these columns. Read next: `recording.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.faults import Place
from kernels_numba.microscope.threads import WARP_SIZE

READ, WRITE, ATOMIC = 0, 1, 2
NAMES = ("array", "kind", "block", "thread", "position", "first", "count", "block_epoch", "warp_epoch")

Record = tuple[int, int, int, int, int, tuple[int, ...], int, int, int, int]
"""Array, kind of access, block, thread, position, iterations of its loops, first element, number of elements,
block barriers and warp barriers passed."""


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


@dataclass(frozen=True)
class Accesses:
    """What was written down of every access; the number of an access is its place in the columns."""

    arrays: tuple[Array, ...]
    places: tuple[Place, ...]
    columns: Mapping[str, NDArray[np.int64]]
    """`NAMES`, each with one entry for every access, in the order in which the machine ran the threads."""
    requests: NDArray[np.int64]
    """For every access, the number of the request that it belongs to."""
    loops: tuple[tuple[int, ...], ...]
    """For every request, the iterations of the loops that it was in."""

    @property
    def num_accesses(self) -> int:
        return len(self.requests)


def columns_of(records: Sequence[Record]) -> dict[str, NDArray[np.int64]]:
    """Records as columns."""
    plain = [(*record[:5], *record[6:]) for record in records]
    table = np.array(plain, np.int64).reshape(len(plain), len(NAMES))
    return {name: table[:, i] for i, name in enumerate(NAMES)}


def requests_of(records: Sequence[Record]) -> tuple[NDArray[np.int64], tuple[tuple[int, ...], ...]]:
    """For every access its request, and for every request the iterations of its loops."""
    times: dict[Any, int] = {}
    numbers: dict[Any, int] = {}
    loops: list[tuple[int, ...]] = []
    requests = np.empty(len(records), np.int64)
    for access, (array, kind, block, thread, position, iterations, *_) in enumerate(records):
        own = (array, kind, block, thread, position, iterations)
        time = times[own] = times.get(own, -1) + 1
        shared = (array, kind, block, thread // WARP_SIZE, position, iterations, time)
        number = numbers.setdefault(shared, len(numbers))
        if number == len(loops):
            loops.append(iterations)
        requests[access] = number
    return requests, tuple(loops)
