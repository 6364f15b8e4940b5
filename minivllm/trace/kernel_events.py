"""The events of a kernel under the microscope: another kind of trace, in the same kind of file.

The first line is a `KernelHeader`, every other line one event:

    KernelHeader
        TileStarted                 a block begins to work on other queries and keys
        WarpAccess                  one instruction of one warp: which lanes, where, at what price
        SoftmaxUpdated              the running maximum and sum of one query
        FaultFound                  a race, a read of uninitialised memory
    KernelEnded

Requests of one warp come in the order in which the program has them; warps come one after another, and only
between two barriers does that order mean nothing. Addresses count elements from the beginning of an array.

Read next: `kernels_numba/microscope/observation.py`, which sees all this;
`minivllm/lab/microscope/record.py`, which writes it down.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec

from minivllm.files import write_file
from minivllm.trace.events import Count, Event, Positive, Score
from minivllm.trace.lines import TraceError, begins_as, open_trace, read_events, read_header, words

KERNEL_VERSION = 1
WARP_SIZE = 32
MOST_LANE_BYTES = 4096
"""That a lane requests at once."""
MOST_TILE = 4096
"""Queries or keys of a tile."""

Line = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
Lane = Annotated[int, msgspec.Meta(ge=0, lt=WARP_SIZE)]
Lanes = Annotated[tuple[Lane, ...], msgspec.Meta(min_length=1)]
Shape = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=16)]


class KernelArray(msgspec.Struct, frozen=True):
    """One array that a kernel touches."""

    name: str
    is_shared: bool
    """In the shared memory of a block; otherwise in global memory."""
    shape: Shape
    dtype: str
    itemsize: Positive
    """Bytes of an element."""


class KernelHeader(Event, frozen=True):
    """The first line: which kernel, with which threads, on which arrays."""

    version: Count
    created: str
    """ISO 8601, in UTC."""
    kernel: str
    title: str
    """What it was run on, in words."""
    file: str
    first_line: Line
    """Of the kernel."""
    source: tuple[str, ...]
    """The whole file; line n is `source[n - 1]`."""
    grid: tuple[Positive, Positive, Positive]
    block: tuple[Positive, Positive, Positive]
    arrays: tuple[KernelArray, ...]
    shared_bytes: Count
    """Shared memory of a block."""
    launch: Count = 0
    """Kernels of one computation are numbered in their order; each has a header of its own."""


class TileStarted(Event, frozen=True):
    """A block begins to work on queries `first_query … end_query` and keys `first_key … end_key`."""

    block: Count
    head: Count
    first_query: Count
    end_query: Count
    first_key: Count
    end_key: Count


class WarpAccess(Event, frozen=True):
    """One instruction of one warp."""

    block: Count
    warp: Count
    epoch: Count
    """Barriers that the block has passed."""
    array: Count
    """Place in the header's `arrays`."""
    kind: str
    """"read", "write" or "atomic"."""
    line: Line
    """In the file; 0 if it is in another one."""
    column: Count
    end_column: Count
    """Of that line; beyond it if the expression continues on the next line."""
    loops: tuple[Count, ...]
    """Iterations of the `for` loops that it is in, outermost first."""
    lanes: Lanes
    first: tuple[Count, ...]
    """Element at which each of these lanes begins."""
    count: Positive
    """Neighbours that each of them accesses."""
    units: Count
    """Sectors of global memory, or turns of shared memory."""
    ideal_units: Count


class SoftmaxUpdated(Event, frozen=True):
    """The running softmax of one query after a tile of keys."""

    block: Count
    head: Count
    query: Count
    maximum: Score
    total: Score
    rescale: Score
    """What the old sum and output were multiplied with: 1 if the maximum stayed."""
    scores: tuple[Score, ...] = ()
    """Of the keys of this tile that the query sees, in order from the tile's first; empty if not noted."""


class FaultFound(Event, frozen=True):
    """Something is wrong with the kernel, whatever came out."""

    kind: str
    array: str
    cell: tuple[Count, ...]
    message: str
    lines: tuple[Line, ...]
    """Where in the file threads touch the cell; 0 if it is in another one."""
    blocks: tuple[Count, ...] = ()
    """The block of the thread at each of these lines."""


class KernelEnded(Event, frozen=True):
    """The kernel ran to its end; by array, bytes asked for by all lanes together."""

    read_bytes: dict[str, Count]
    written_bytes: dict[str, Count]
    moved_bytes: dict[str, Count]
    """Of global arrays: in whole sectors, request by request."""


KernelEvent = TileStarted | WarpAccess | SoftmaxUpdated | FaultFound | KernelEnded


@dataclass(frozen=True)
class KernelTrace:
    """One kernel: its header and what happened."""

    header: KernelHeader
    events: list[KernelEvent] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Was it written to its end?"""
        return bool(self.events) and isinstance(self.events[-1], KernelEnded)


def write_kernel_traces(path: str | Path, traces: Iterable[KernelTrace]) -> None:
    """Kernels of one computation, one behind the other.

    Raises:
        CannotWrite: and a file that was there before is still there.
    """
    encode = msgspec.json.Encoder().encode
    lines = [encode(event) for trace in traces for event in (trace.header, *trace.events)]
    write_file(path, b"\n".join(lines) + b"\n", "trace")


def is_kernel_trace(path: str | Path) -> bool:
    """Does the file begin like one?"""
    return begins_as(path, "KernelHeader")


def read_kernel_traces(path: str | Path) -> list[KernelTrace]:
    """Open a file that `write_kernel_traces` wrote; one that was cut off is read as far as it goes.

    Raises:
        TraceError: it cannot be read, is not such a file, is of a version that this program does not know, or
            is damaged or absurd in its middle.
    """
    path = Path(path)
    decode = msgspec.json.Decoder(KernelHeader | KernelEvent).decode
    with open_trace(path) as file:
        header = read_header(path, file, "KernelHeader", KERNEL_VERSION, decode)
        rest, _ = read_events(path, file, decode, "an event of a kernel")
    traces: list[KernelTrace] = []
    epochs: dict[int, int] = {}
    for number, event in enumerate((header, *rest), 1):
        if isinstance(event, KernelHeader):
            traces.append(KernelTrace(event))
            epochs = {}
            problem = "" if event.version == KERNEL_VERSION else f"its version is {event.version}"
        else:
            problem = _contradiction(event, traces[-1].header, epochs)
            traces[-1].events.append(event)
        if problem:
            raise TraceError(f"{words(path)}, line {number}, cannot be: {problem}")
    return traces


def _contradiction(event: KernelEvent, header: KernelHeader, epochs: dict[int, int]) -> str:
    """Why this event cannot be of this kernel, or empty. `epochs` has the latest one of each block."""
    if isinstance(event, WarpAccess):
        if event.epoch < epochs.setdefault(event.block, event.epoch):
            return f"thread block {event.block} goes back to epoch {event.epoch}"
        epochs[event.block] = event.epoch
        return _of_access(event, header)
    if isinstance(event, TileStarted):
        sizes = event.end_query - event.first_query, event.end_key - event.first_key
        return "" if all(1 <= size <= MOST_TILE for size in sizes) else f"a tile of {sizes[0]} × {sizes[1]}"
    if isinstance(event, FaultFound) and event.blocks and len(event.blocks) != len(event.lines):
        return "the fault has as many blocks as lines, or none"
    return ""


def _of_access(access: WarpAccess, header: KernelHeader) -> str:
    if access.array >= len(header.arrays):
        return f"there is no array {access.array}"
    array = header.arrays[access.array]
    if len(access.first) != len(access.lanes):
        return f"{len(access.lanes)} lanes begin at {len(access.first)} elements"
    if max(access.first) + access.count > prod(array.shape):
        return f"a lane goes beyond the array {words(array.name, 40)}"
    if access.count * array.itemsize > MOST_LANE_BYTES:
        return f"a lane requests {access.count * array.itemsize} bytes"
    return ""
