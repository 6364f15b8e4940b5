"""Races: two accesses to one cell, by different threads, one of them a write, and no barrier between them.

Barriers cut a block's time into *epochs*: what happened in one is over, for all threads, in the next. So
within an epoch the order of two threads is an accident. Lanes of one warp can be ordered by `syncwarp` as
well. Blocks are never ordered: between them every write that another block sees is a race, unless both
accesses are atomic.

    thread 0   write tile[0]  │ barrier │                    epochs 0 and 1: in order
    thread 1                  │ barrier │ read tile[0]
    thread 2   read tile[0]   │ barrier │                    epoch 0, as the write: a race

A kernel with a race may give the right answer a thousand times. That is what makes them worth looking for.

Read next: `observation.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.accesses import ATOMIC, READ, WRITE, Accesses
from kernels_numba.microscope.faults import Fault
from kernels_numba.microscope.threads import WARP_SIZE

VERBS = {READ: "reads", WRITE: "writes", ATOMIC: "changes"}


def find_races(seen: Accesses) -> list[Fault]:
    """One fault for each array and pair of places in the source; the first cell stands for all."""
    if not seen.num_accesses:
        return []
    columns = {name: np.repeat(values, seen.columns["count"]) for name, values in seen.columns.items()}
    within = np.arange(len(columns["first"])) - np.repeat(
        np.cumsum(seen.columns["count"]) - seen.columns["count"], seen.columns["count"]
    )
    cells = columns["first"] + within
    shared = np.array([array.is_shared for array in seen.arrays])[columns["array"]]
    # A shared array is another one in every block; and in a global one, blocks are compared with each other.
    blocks = np.where(shared, columns["block"], -1)
    one_cell = (columns["array"], blocks, cells)
    one_epoch = (*one_cell, columns["block"], columns["block_epoch"])
    order = np.lexsort(one_epoch[::-1])
    writes, block, thread = columns["kind"][order] != READ, columns["block"][order], columns["thread"][order]
    starts, epochs = (_begins(order, *keys) for keys in (one_cell, one_epoch))
    # Most cells need no closer look: in no epoch are there a write and two threads.
    suspicious = np.logical_or.reduceat(writes, epochs) & _differ(thread, epochs)
    suspects = np.logical_or.reduceat(suspicious, np.searchsorted(epochs, starts))
    suspects |= np.logical_or.reduceat(writes, starts) & _differ(block, starts)
    ends = np.append(starts[1:], len(order))
    found: dict[tuple[int, int, int], Fault] = {}
    for start, end in zip(starts[suspects], ends[suspects], strict=True):
        members = np.sort(order[start:end])
        _races_of_cell(seen, columns, members, int(cells[members[0]]), found)
    return list(found.values())


def _begins(order: NDArray[np.int64], *keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where, in this order, one of the keys is another than before."""
    changed = np.zeros(len(order), bool)
    changed[0] = True
    for values in keys:
        changed[1:] |= np.diff(values[order]) != 0
    return np.flatnonzero(changed)


def _differ(values: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each part that begins there: are there two different values in it?"""
    differ: NDArray[np.bool_] = np.minimum.reduceat(values, begins) != np.maximum.reduceat(values, begins)
    return differ


class _Access(NamedTuple):
    """What it takes to compare one access with another."""

    block: int
    thread: int
    kind: int
    block_epoch: int
    warp_epoch: int
    position: int


def _races_of_cell(
    seen: Accesses,
    columns: dict[str, NDArray[np.int64]],
    members: NDArray[np.int64],
    cell: int,
    found: dict[tuple[int, int, int], Fault],
) -> None:
    number = int(columns["array"][members[0]])
    accesses = [  # of equal ones, the first is enough
        *dict.fromkeys(
            _Access(*(int(columns[name][member]) for name in _Access._fields)) for member in members
        )
    ]
    by_epoch: dict[tuple[int, int], list[_Access]] = {}
    for access in accesses:
        by_epoch.setdefault((access.block, access.block_epoch), []).append(access)
    for group in by_epoch.values():
        if all(access.kind == READ for access in group):
            continue
        for place, one in enumerate(group):
            for other in group[place + 1 :]:
                if one.thread != other.thread and _conflict(one, other) and not _ordered_in_warp(one, other):
                    _report(seen, number, cell, one, other, found)
    if len({access.block for access in accesses}) > 1:
        # Of all that do the same at the same place, two of different blocks stand for the rest.
        alike: dict[tuple[int, int], dict[int, _Access]] = {}
        for access in accesses:
            blocks = alike.setdefault((access.kind, access.position), {})
            if len(blocks) < 2:
                blocks.setdefault(access.block, access)
        some = [access for blocks in alike.values() for access in blocks.values()]
        for place, one in enumerate(some):
            for other in some[place + 1 :]:
                if one.block != other.block and _conflict(one, other):
                    _report(seen, number, cell, one, other, found)


def _conflict(one: _Access, other: _Access) -> bool:
    return one.kind != other.kind or one.kind == WRITE


def _ordered_in_warp(one: _Access, other: _Access) -> bool:
    return one.thread // WARP_SIZE == other.thread // WARP_SIZE and one.warp_epoch != other.warp_epoch


def _report(
    seen: Accesses,
    number: int,
    cell: int,
    one: _Access,
    other: _Access,
    found: dict[tuple[int, int, int], Fault],
) -> None:
    key = (number, min(one.position, other.position), max(one.position, other.position))
    if key in found:
        return
    array = seen.arrays[number]
    index = tuple(int(i) for i in np.unravel_index(cell, array.shape))
    places = (seen.places[one.position], seen.places[other.position])
    blocks = f"block {one.block}" if one.block == other.block else f"blocks {one.block} and {other.block}"
    message = (
        f"race in {blocks} on {array.name}{list(index)}: thread {one.thread} {VERBS[one.kind]} it "
        f"({places[0]}) and thread {other.thread} {VERBS[other.kind]} it ({places[1]}), "
        "with no barrier between them"
    )
    found[key] = Fault("race", array.name, index, message, places, (one.block, other.block))
