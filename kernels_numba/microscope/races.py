"""Races: two accesses to one cell, by different threads, one of them a write, and no barrier between them.

Barriers cut a block's time into *epochs*: whatever happened in one is over, for all threads, in the next. So
within an epoch the order of two threads is an accident. Lanes of one warp can be ordered by `syncwarp` as
well. Blocks are never ordered: between them every write that another block sees is a race, unless both
accesses are atomic.

A kernel with a race may give the right answer a thousand times. That is what makes them worth looking for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels_numba.microscope.faults import Fault
from kernels_numba.microscope.memory import ATOMIC, READ, WRITE
from kernels_numba.microscope.threads import WARP_SIZE

if TYPE_CHECKING:
    from kernels_numba.microscope.observation import Observation

VERBS = {READ: "reads", WRITE: "writes", ATOMIC: "changes"}


def find_races(seen: Observation) -> list[Fault]:
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
    order = np.lexsort((cells, blocks, columns["array"]))
    changed = np.zeros(len(order), bool)
    for values in (columns["array"], blocks, cells):
        changed[1:] |= np.diff(values[order]) != 0
    starts = np.flatnonzero(np.concatenate([[True], changed[1:]]))
    written = np.logical_or.reduceat(columns["kind"][order] != READ, starts)
    who = (columns["block"] * 2**20 + columns["thread"])[order]
    several = np.minimum.reduceat(who, starts) != np.maximum.reduceat(who, starts)
    ends = np.append(starts[1:], len(order))
    found: dict[tuple[int, int, int], Fault] = {}
    for start, end in zip(starts[written & several], ends[written & several], strict=True):
        members = np.sort(order[start:end])
        _races_of_cell(seen, columns, members, int(cells[members[0]]), found)
    return list(found.values())


def _races_of_cell(
    seen: Observation,
    columns: dict[str, np.ndarray],
    members: np.ndarray,
    cell: int,
    found: dict[tuple[int, int, int], Fault],
) -> None:
    accesses = {  # of equal ones, the first is enough
        tuple(int(columns[name][member]) for name in NEEDED): None for member in members
    }
    by_epoch: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for access in accesses:
        by_epoch.setdefault((access[0], access[3]), []).append(access)
    for group in by_epoch.values():
        if all(access[2] == READ for access in group):
            continue
        for place, one in enumerate(group):
            for other in group[place + 1 :]:
                if one[1] != other[1] and _conflict(one, other) and not _ordered_in_warp(one, other):
                    _report(seen, columns, members, cell, one, other, found)
    if len({access[0] for access in accesses}) > 1:
        # Of all that do the same at the same place, two of different blocks stand for the rest.
        alike: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}
        for access in accesses:
            blocks = alike.setdefault((access[2], access[5]), {})
            if len(blocks) < 2:
                blocks.setdefault(access[0], access)
        some = [access for blocks in alike.values() for access in blocks.values()]
        for place, one in enumerate(some):
            for other in some[place + 1 :]:
                if one[0] != other[0] and _conflict(one, other):
                    _report(seen, columns, members, cell, one, other, found)


NEEDED = ("block", "thread", "kind", "block_epoch", "warp_epoch", "position")


def _conflict(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[2] != other[2] or one[2] == WRITE


def _ordered_in_warp(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[1] // WARP_SIZE == other[1] // WARP_SIZE and one[4] != other[4]


def _report(
    seen: Observation,
    columns: dict[str, np.ndarray],
    members: np.ndarray,
    cell: int,
    one: tuple[int, ...],
    other: tuple[int, ...],
    found: dict[tuple[int, int, int], Fault],
) -> None:
    number = int(columns["array"][members[0]])
    key = (number, min(one[5], other[5]), max(one[5], other[5]))
    if key in found:
        return
    array = seen.arrays[number]
    index = tuple(int(i) for i in np.unravel_index(cell, array.shape))
    places = (seen.places[one[5]], seen.places[other[5]])
    blocks = f"blocks {one[0]} and {other[0]}" if one[0] != other[0] else f"block {one[0]}"
    message = (
        f"race in {blocks} on {array.name}{list(index)}: thread {one[1]} {VERBS[one[2]]} it ({places[0]}) "
        f"and thread {other[1]} {VERBS[other[2]]} it ({places[1]}), with no barrier between them"
    )
    found[key] = Fault("race", array.name, index, message, places, (one[0], other[0]))
