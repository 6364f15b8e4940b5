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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from minivllm.trace.events import Event
from minivllm.trace.reader import TraceError

KERNEL_VERSION = 1


class KernelArray(msgspec.Struct, frozen=True):
    """One array that a kernel touches."""

    name: str
    is_shared: bool
    """In the shared memory of a block; otherwise in global memory."""
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    """Bytes of an element."""


class KernelHeader(Event, frozen=True):
    """The first line: which kernel, with which threads, on which arrays."""

    version: int
    created: str
    """ISO 8601, in UTC."""
    kernel: str
    title: str
    """What it was run on, in words."""
    file: str
    first_line: int
    """Of the kernel."""
    source: tuple[str, ...]
    """The whole file; line n is `source[n - 1]`."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arrays: tuple[KernelArray, ...]
    shared_bytes: int
    """Shared memory of a block."""
    launch: int = 0
    """Kernels of one computation are numbered in their order; each has a header of its own."""


class TileStarted(Event, frozen=True):
    """A block begins to work on queries `first_query … end_query` and keys `first_key … end_key`."""

    block: int
    head: int
    first_query: int
    end_query: int
    first_key: int
    end_key: int


class WarpAccess(Event, frozen=True):
    """One instruction of one warp."""

    block: int
    warp: int
    epoch: int
    """Barriers that the block has passed."""
    array: int
    """Place in the header's `arrays`."""
    kind: str
    """"read", "write" or "atomic"."""
    line: int
    """In the file; 0 if it is in another one."""
    column: int
    end_column: int
    """Of that line; beyond it if the expression continues on the next line."""
    loops: tuple[int, ...]
    """Iterations of the `for` loops that it is in, outermost first."""
    lanes: tuple[int, ...]
    first: tuple[int, ...]
    """Element at which each of these lanes begins."""
    count: int
    """Neighbours that each of them accesses."""
    units: int
    """Sectors of global memory, or turns of shared memory."""
    ideal_units: int


class SoftmaxUpdated(Event, frozen=True):
    """The running softmax of one query after a tile of keys."""

    block: int
    head: int
    query: int
    maximum: float
    total: float
    rescale: float
    """What the old sum and output were multiplied with: 1 if the maximum stayed."""


class FaultFound(Event, frozen=True):
    """Something is wrong with the kernel, whatever came out."""

    kind: str
    array: str
    cell: tuple[int, ...]
    message: str
    lines: tuple[int, ...]
    """Where in the file threads touch the cell; 0 if it is in another one."""
    blocks: tuple[int, ...] = ()
    """The block of the thread at each of these lines."""


class KernelEnded(Event, frozen=True):
    """The kernel ran to its end; by array, bytes asked for by all lanes together."""

    read_bytes: dict[str, int]
    written_bytes: dict[str, int]
    moved_bytes: dict[str, int]
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
        ValueError: the file cannot be written.
    """
    encode = msgspec.json.Encoder().encode
    lines = [encode(event) for trace in traces for event in (trace.header, *trace.events)]
    try:
        Path(path).write_bytes(b"\n".join(lines) + b"\n")
    except OSError as error:
        raise ValueError(f"trace: cannot write to {path}: {error.strerror}") from error


def is_kernel_trace(path: str | Path) -> bool:
    """Does the file begin like one?"""
    try:
        with Path(path).open("rb") as file:
            return b'"KernelHeader"' in file.read(100)
    except (OSError, ValueError):  # the latter: a path that cannot be one
        return False


def read_kernel_traces(path: str | Path) -> list[KernelTrace]:
    """Open a file that `write_kernel_traces` wrote; one that was cut off is read as far as it goes.

    Raises:
        TraceError: it cannot be read, is not such a file, is of a version that this program does not know, or
            is damaged in its middle.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}") from error
    return _decode(path, [line for line in lines if line])


def _decode(path: Path, lines: Sequence[bytes]) -> list[KernelTrace]:
    decoder = msgspec.json.Decoder(KernelHeader | KernelEvent)
    traces: list[KernelTrace] = []
    for number, line in enumerate(lines, 1):
        try:
            event = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == len(lines) and traces:
                break  # cut off
            raise TraceError(f"{path}, line {number}, is not an event of a kernel: {error}") from error
        if isinstance(event, KernelHeader):
            if event.version != KERNEL_VERSION:
                raise TraceError(
                    f"{path} is a kernel trace of version {event.version}; this program reads "
                    f"{KERNEL_VERSION}. Record it again."
                )
            traces.append(KernelTrace(event))
        elif not traces:
            raise TraceError(f"{path} is not a trace of a kernel: its first line is not a header")
        else:
            traces[-1].events.append(event)
    if not traces:
        raise TraceError(f"{path} is empty: a trace has at least a header line")
    return traces
