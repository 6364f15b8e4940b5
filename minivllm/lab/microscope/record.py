"""From an observation to a trace: accesses become requests of warps, in the order of the program.

The machine ran the threads one after another, so the accesses of one instruction lie far apart in what was
written down. But the accesses of each lane are in order. A request comes after all that its lanes did before:
a topological order, for each warp; between two barriers, one warp follows another.

Read next: `minivllm/trace/kernel_events.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernels_numba.microscope.analysis import KINDS, request_costs
from kernels_numba.microscope.faults import Place
from kernels_numba.microscope.observation import Note, Observation
from kernels_numba.microscope.threads import WARP_SIZE
from minivllm.trace.kernel_events import (
    KERNEL_VERSION,
    FaultFound,
    KernelArray,
    KernelEnded,
    KernelEvent,
    KernelHeader,
    KernelTrace,
    SoftmaxUpdated,
    TileStarted,
    WarpAccess,
)
from minivllm.trace.recorder import timestamp


def kernel_trace(seen: Observation, title: str, launch: int = 0) -> KernelTrace:
    """Everything that was seen, as events."""
    header = KernelHeader(
        version=KERNEL_VERSION,
        created=timestamp(),
        kernel=seen.kernel,
        title=title,
        file=seen.file,
        first_line=seen.first_line,
        source=seen.source,
        grid=seen.grid,
        block=seen.block,
        arrays=tuple(KernelArray(*array) for array in seen.arrays),
        shared_bytes=seen.shared_bytes,
        launch=launch,
    )
    events: list[KernelEvent] = []
    notes = sorted(seen.notes, key=lambda note: note.after)
    members = _members(seen)
    costs = request_costs(seen)
    waiting = _notes_by_warp(seen, notes)
    for request in program_order(seen):
        accesses = members[request]
        block, thread = (int(seen.columns[name][accesses[0]]) for name in ("block", "thread"))
        mine = waiting[block, thread // WARP_SIZE]
        while mine and mine[0].after <= max(accesses):
            events.append(_noted(mine.pop(0)))
        events.append(_access(seen, request, accesses, costs[request].units, costs[request].ideal_units))
    for rest in waiting.values():
        events += [_noted(note) for note in rest]
    for fault in seen.faults:
        lines = tuple(_line(seen, place) for place in fault.places)
        events.append(FaultFound(fault.kind, fault.array, fault.cell, fault.message, lines, fault.blocks))
    traffic = seen.traffic()
    events.append(
        KernelEnded(
            {row.array: row.read_bytes for row in traffic},
            {row.array: row.written_bytes for row in traffic},
            {row.array: row.moved_bytes for row in traffic if not row.is_shared},
        )
    )
    return KernelTrace(header, events)


def program_order(seen: Observation) -> list[int]:
    """All requests: blocks in order, barriers in order, warps in order, each warp as its lanes have it."""
    columns, requests = seen.columns, seen.requests
    followers: dict[int, list[int]] = defaultdict(list)
    open_before: dict[int, int] = defaultdict(int)
    last: dict[tuple[int, int], int] = {}
    place: dict[int, tuple[int, int, int]] = {}
    lane_order = zip(
        columns["block"].tolist(),
        columns["thread"].tolist(),
        columns["block_epoch"].tolist(),
        requests.tolist(),
        strict=True,
    )
    for block, thread, epoch, request in lane_order:
        place.setdefault(request, (block, epoch, thread // WARP_SIZE))
        before = last.get((block, thread))
        if before is not None and before != request:
            followers[before].append(request)
            open_before[request] += 1
        last[block, thread] = request
    groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    ready = [request for request in place if not open_before[request]]
    for request in ready:  # grows while we walk
        groups[place[request]].append(request)
        for follower in followers[request]:
            open_before[follower] -= 1
            if not open_before[follower]:
                ready.append(follower)
    return [request for key in sorted(groups) for request in groups[key]]


def _members(seen: Observation) -> dict[int, list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for access, request in enumerate(seen.requests.tolist()):
        members[request].append(access)
    return members


def _notes_by_warp(seen: Observation, notes: Sequence[Note]) -> dict[tuple[int, int], list[Note]]:
    by_warp: dict[tuple[int, int], list[Note]] = defaultdict(list)
    for note in _with_scores(notes):
        by_warp[note.block, note.thread // WARP_SIZE].append(note)
    return by_warp


def _with_scores(notes: Sequence[Note]) -> list[Note]:
    """Every lane notes a score of its own; the softmax that takes them in has them all, by key."""
    found: list[Note] = []
    pending: dict[tuple[int, float, float], dict[float, float]] = defaultdict(dict)
    for note in notes:
        head, query, *rest = note.values
        if note.name == "score":
            key, score = rest
            pending[note.block, head, query][key] = round(score, 4)
        elif note.name == "softmax":
            scores = pending.pop((note.block, head, query), {})
            found.append(note._replace(values=(*note.values, *(scores[key] for key in sorted(scores)))))
        else:
            found.append(note)
    return found


def _access(
    seen: Observation, request: int, accesses: Sequence[int], units: int, ideal_units: int
) -> WarpAccess:
    columns = seen.columns
    first = accesses[0]
    place = seen.places[int(columns["position"][first])]
    chosen = np.array(accesses)
    return WarpAccess(
        block=int(columns["block"][first]),
        warp=int(columns["thread"][first]) // WARP_SIZE,
        epoch=int(columns["block_epoch"][first]),
        array=int(columns["array"][first]),
        kind=KINDS[int(columns["kind"][first])],
        line=_line(seen, place),
        column=place.column,
        end_column=place.end_column,
        loops=seen.loops[request],
        lanes=tuple((columns["thread"][chosen] % WARP_SIZE).tolist()),
        first=tuple(columns["first"][chosen].tolist()),
        count=int(columns["count"][first]),
        units=units,
        ideal_units=ideal_units,
    )


def _line(seen: Observation, place: Place) -> int:
    """In the file of the kernel; 0 if it is in another one."""
    return place.line if Path(place.file).name == seen.file else 0


def _noted(note: Note) -> KernelEvent:
    if note.name == "tile":
        return TileStarted(note.block, *(int(value) for value in note.values))
    head, query, *state = note.values
    maximum, total, rescale, *scores = state
    return SoftmaxUpdated(note.block, int(head), int(query), maximum, total, rescale, tuple(scores))
