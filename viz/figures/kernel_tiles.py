"""Which piece of the score matrix a kernel works on, and which of its events belong to that piece.

    FlashAttention    a piece is a tile, as the kernel itself notes it
    naive             a piece is what one block writes of the array `scores` (or reads, if it writes none)

A tile begins with the barrier before its keys were sent for, so that bringing them is counted as its own; all
that comes before the next tile belongs to it. Read next: `kernel_matrix.py`, which draws them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from minivllm.trace.kernel_events import (
    KernelArray,
    KernelHeader,
    KernelTrace,
    SoftmaxUpdated,
    TileStarted,
    WarpAccess,
)
from viz.figures.kernel_memory import cell

SCORE_BYTES = 4
"""Of a score that a kernel keeps in registers: float32."""


class Box(NamedTuple):
    """Queries `first_query … end_query - 1` and keys `first_key … end_key - 1`."""

    first_query: int
    end_query: int
    first_key: int
    end_key: int

    @property
    def num_scores(self) -> int:
        return (self.end_query - self.first_query) * (self.end_key - self.first_key)


class Piece(NamedTuple):
    """One step: a part of the score matrix of one head, and its events."""

    block: int
    panel: tuple[int, int]
    """Sequence and head: each has a score matrix of its own."""
    box: Box
    begin: int
    """Number of its first event."""
    end: int
    """Number of the event after its last."""
    updates: tuple[SoftmaxUpdated, ...]
    verb: str
    """What the block does with these scores: "computes", "writes" or "reads"."""


def pieces(trace: KernelTrace) -> list[Piece]:
    """All pieces in order; none if the kernel neither notes tiles nor has an array of scores."""
    found = _tiles(trace) or _score_blocks(trace)
    ends = [*(piece.begin for piece in found), len(trace.events)][1:]
    return [piece._replace(end=end) for piece, end in zip(found, ends, strict=True)]


def score_array(header: KernelHeader) -> int | None:
    """The array of all scores, [heads, queries, keys], in global memory; None if there is none."""
    for index, array in enumerate(header.arrays):
        if array.name == "scores" and len(array.shape) == 3 and not array.is_shared:
            return index
    return None


def matrix_bytes(header: KernelHeader, found: Sequence[Piece]) -> int:
    """What the scores of all heads take, or would take if they were written."""
    index = score_array(header)
    if index is not None:
        array = header.arrays[index]
        return prod(array.shape) * array.itemsize
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for piece in found:
        queries, keys = sizes.get(piece.panel, (0, 0))
        sizes[piece.panel] = max(queries, piece.box.end_query), max(keys, piece.box.end_key)
    return SCORE_BYTES * sum(queries * keys for queries, keys in sizes.values())


def _tiles(trace: KernelTrace) -> list[Piece]:
    numbers: dict[int, list[int]] = defaultdict(list)
    epochs: dict[int, list[int]] = defaultdict(list)
    for number, event in enumerate(trace.events):
        if isinstance(event, WarpAccess):
            numbers[event.block].append(number)
            epochs[event.block].append(event.epoch)
    updates = _updates(trace)
    found: list[Piece] = []
    previous: dict[int, int] = {}
    for number, event in enumerate(trace.events):
        if not isinstance(event, TileStarted):
            continue
        own, own_epochs = numbers[event.block], epochs[event.block]
        begin = own[0] if own else number
        if own and event.block in previous:
            place = bisect_left(own, number)
            epoch = own_epochs[place] if place < len(own) else own_epochs[-1] + 1
            begin = max(own[bisect_left(own_epochs, epoch - 1)], previous[event.block])
        previous[event.block] = number + 1
        box = Box(event.first_query, event.end_query, event.first_key, event.end_key)
        panel = _sequence(trace.header, event.block), event.head
        told = tuple(updates.get(number, ()))
        found.append(Piece(event.block, panel, box, min(begin, number), 0, told, "computes"))
    return found


def _updates(trace: KernelTrace) -> dict[int, list[SoftmaxUpdated]]:
    """By the number of the tile's event: what was noted about its rows."""
    current: dict[int, int] = {}
    updates: dict[int, list[SoftmaxUpdated]] = defaultdict(list)
    for number, event in enumerate(trace.events):
        if isinstance(event, TileStarted):
            current[event.block] = number
        elif isinstance(event, SoftmaxUpdated) and event.block in current:
            updates[current[event.block]].append(event)
    return updates


def _sequence(header: KernelHeader, block: int) -> int:
    """The third number of a block's place in the grid: sequences lie along it."""
    return block // (header.grid[0] * header.grid[1])


def _score_blocks(trace: KernelTrace) -> list[Piece]:
    index = score_array(trace.header)
    if index is None:
        return []
    mine = [e for e in trace.events if isinstance(e, WarpAccess) and e.array == index]
    verb = "writes" if any(event.kind == "write" for event in mine) else "reads"
    mine = [event for event in mine if (event.kind == "read") == (verb == "reads")]
    begins: dict[int, int] = {}
    for number, event in enumerate(trace.events):
        if isinstance(event, WarpAccess):
            begins.setdefault(event.block, number)
    boxes: dict[tuple[int, int], Box] = {}
    for event in mine:
        head, box = _scores_of(event, trace.header.arrays[index])
        old = boxes.get((event.block, head), box)
        boxes[event.block, head] = Box(
            min(old.first_query, box.first_query),
            max(old.end_query, box.end_query),
            min(old.first_key, box.first_key),
            max(old.end_key, box.end_key),
        )
    return [Piece(block, (0, head), box, begins[block], 0, (), verb) for (block, head), box in boxes.items()]


def _scores_of(access: WarpAccess, array: KernelArray) -> tuple[int, Box]:
    """The head, and the smallest box around the scores that this request touches."""
    cells = [cell(first + more, array.shape) for first in access.first for more in (0, access.count - 1)]
    queries, keys = [place[1] for place in cells], [place[2] for place in cells]
    return cells[0][0], Box(min(queries), max(queries) + 1, min(keys), max(keys) + 1)
