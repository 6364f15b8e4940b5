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
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.faults import Place
from kernels_numba.microscope.threads import WARP_SIZE

READ, WRITE, ATOMIC = 0, 1, 2
NAMES = ("array", "kind", "block", "thread", "position", "first", "count", "block_epoch", "warp_epoch")

LOOPS: Final = 5
"""Where in a record the iterations are."""
MOST_NUMBERS = 2**60
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
    columns = list(zip(*records, strict=True)) or [()] * (len(NAMES) + 1)
    del columns[LOOPS]
    return {name: np.array(column, np.int64) for name, column in zip(NAMES, columns, strict=True)}


def requests_of(
    records: Sequence[Record], columns: Mapping[str, NDArray[np.int64]]
) -> tuple[NDArray[np.int64], tuple[tuple[int, ...], ...]]:
    """For every access its request, and for every request the iterations of its loops."""
    numbers: dict[tuple[int, ...], int] = {}
    iterations = [numbers.setdefault(record[LOOPS], len(numbers)) for record in records]
    place = _numbered(*(columns[name] for name in ("array", "kind", "block", "position")), iterations)
    time = _times_before(_numbered(place, columns["thread"]))
    shared = _numbered(place, columns["thread"] // WARP_SIZE, time)
    _, first, request = np.unique(shared, return_index=True, return_inverse=True)
    order = np.argsort(first)  # requests are numbered as they come
    number = np.empty(len(first), np.int64)
    number[order] = np.arange(len(first))
    return number[request], tuple(records[access][LOOPS] for access in first[order].tolist())


def _numbered(*columns: Any) -> NDArray[np.int64]:
    """For every row of some columns a number, the same for rows that are the same."""
    numbers, count = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        most = int(np.max(column, initial=0)) + 1
        if count * most > MOST_NUMBERS:
            numbers = np.unique(numbers, return_inverse=True)[1]
            count = len(numbers)
        numbers = numbers * most + column
        count *= most
    return numbers


def _times_before(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each number has come before: [7, 9, 7, 7] → [0, 0, 1, 2]."""
    order = np.argsort(numbers, kind="stable")
    is_first = np.diff(numbers[order], prepend=-1) != 0
    begins = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    times = np.empty(len(order), np.int64)
    times[order] = np.arange(len(order)) - begins
    return times
