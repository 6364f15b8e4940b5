"""A survey of a long trace: the run in ranges of steps, and any stretch of it in full, in bounded memory.

A million events are gigabytes as objects, and no screen has a hundred thousand columns. So a long file is
read once, event by event, and two things are kept:

    ranges       0–63 │ 64–127 │ 128–191 │ …      of each: most blocks, requests, tokens; twice as wide
                                                  whenever there are too many of them
    checkpoints  ▲               ▲                where in the file a step begins, and the state before it

A stretch of steps is then a trace of its own: the state before it as a snapshot, and its events. What
draws traces can draw it.

Read next: `snapshots.py`; `reader.py`, for files that fit into memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from minivllm.trace.events import (
    VERSION,
    AnyEvent,
    BatchPlanned,
    RequestPreempted,
    SnapshotTaken,
    StepFinished,
    TraceHeader,
)
from minivllm.trace.lines import MOST_LINE_BYTES, open_trace, read_header
from minivllm.trace.reader import Trace, TraceError, event_decoder, make_trace
from minivllm.trace.replay import ReplayState
from minivllm.trace.snapshots import forget_finished, take_snapshot

MOST_RANGES = 1024
"""Then neighbours are merged: never more ranges than a wide screen has columns."""
MOST_CHECKPOINTS = 64
FORGET_EVERY = 64
"""Steps after which finished sequences are forgotten."""


@dataclass(slots=True)
class StepRange:
    """Steps `first` to `last`, both included, in a few numbers: the most of each, or the sum."""

    first: int
    last: int
    start: float
    end: float
    most_used_blocks: int = 0
    num_tokens: int = 0
    num_preemptions: int = 0

    def join(self, other: StepRange) -> None:
        """Take over the next range."""
        self.last, self.end = other.last, other.end
        self.most_used_blocks = max(self.most_used_blocks, other.most_used_blocks)
        self.num_tokens += other.num_tokens
        self.num_preemptions += other.num_preemptions


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    step: int
    offset: int
    """Of the first byte of the step's first event."""
    snapshot: bytes
    """The state before it, packed; nothing for the first step."""


@dataclass
class Survey:
    """What is kept of a long trace."""

    path: Path
    header: TraceHeader
    num_events: int = 0
    num_steps: int = 0
    ranges: list[StepRange] = field(default_factory=list)
    width: int = 1
    """Steps in each range but the last."""
    was_cut: bool = False
    """The last line is incomplete, or damaged."""
    _checkpoints: list[_Checkpoint] = field(default_factory=list)
    _every: int = 64

    def stretch(self, first: int, num_steps: int) -> Trace:
        """Steps `first` … `first + num_steps - 1` as a trace that begins with a snapshot.

        Raises:
            ValueError: there is no such step.
            TraceError: the file has changed since.
        """
        if not 0 <= first < self.num_steps or num_steps < 1:
            raise ValueError(
                f"first must lie in 0 … {self.num_steps - 1} and num_steps be at least 1, "
                f"got {first} and {num_steps}"
            )
        nearest = max((c for c in self._checkpoints if c.step <= first), key=lambda c: c.step)
        state, events = ReplayState(self.header), list[AnyEvent]()
        if nearest.snapshot:
            state.apply(msgspec.msgpack.decode(zlib.decompress(nearest.snapshot), type=SnapshotTaken))
        step = nearest.step
        for event, _offset in _events(self.path, nearest.offset):
            if step >= first:
                events.append(event)
            else:
                state.apply(event)
            step += isinstance(event, StepFinished)
            if step >= first + num_steps:
                break
            if step == first and not events and isinstance(event, StepFinished):
                forget_finished(state)
        begin: list[AnyEvent] = [take_snapshot(state)] if first else []
        warnings = ["The last line was cut off and is left out."] if self.was_cut else []
        return make_trace(self.header, begin + events, warnings, self.path)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────

    def _add(self, step: StepRange) -> None:
        last = self.ranges[-1] if self.ranges else None
        if last and last.last - last.first + 1 < self.width:
            last.join(step)
            return
        if len(self.ranges) >= MOST_RANGES:
            for index in range(0, len(self.ranges) - 1, 2):
                self.ranges[index].join(self.ranges[index + 1])
            self.ranges = self.ranges[::2]
            self.width *= 2
        self.ranges.append(step)

    def _note_checkpoint(self, step: int, offset: int, state: ReplayState) -> None:
        if step % self._every:
            return
        if len(self._checkpoints) >= MOST_CHECKPOINTS:
            self._every *= 2
            self._checkpoints = [c for c in self._checkpoints if c.step % self._every == 0]
            if step % self._every:
                return
        forget_finished(state)
        packed = zlib.compress(msgspec.msgpack.encode(take_snapshot(state)), 1)
        self._checkpoints.append(_Checkpoint(step, offset, packed))


def survey(path: str | Path) -> Survey:
    """Read a trace to its end, and keep what `Survey` says.

    Raises:
        TraceError: it is no trace, or its events contradict each other.
    """
    path = Path(path)
    found, offset = _begin(path)
    state = ReplayState(found.header)
    found._checkpoints.append(_Checkpoint(0, offset, b""))
    now = StepRange(0, 0, 0.0, 0.0)
    for event, end in _events(path, offset, found):
        found.num_events += 1
        state.apply(event)
        match event:
            case BatchPlanned():
                now.num_tokens += sum(count for _seq, _start, count in event.items)
            case RequestPreempted():
                now.num_preemptions += 1
            case StepFinished():
                now.end = max(event.time, now.start)
                now.most_used_blocks = state.num_used_blocks
                found._add(now)
                found.num_steps += 1
                now = StepRange(found.num_steps, found.num_steps, now.end, now.end)
                if found.num_steps % FORGET_EVERY == 0:
                    forget_finished(state)
                    found._note_checkpoint(found.num_steps, end, state)
    return found


def _begin(path: Path) -> tuple[Survey, int]:
    """An empty survey, and where the events begin."""
    with open_trace(path) as file:
        header = msgspec.structs.replace(_header(path, file), version=VERSION)
        return Survey(path, header), file.tell()


def _header(path: Path, file: BinaryIO) -> TraceHeader:
    decode = msgspec.json.Decoder(TraceHeader).decode
    return read_header(path, file, "TraceHeader", VERSION, decode)


def _events(path: Path, offset: int, found: Survey | None = None) -> Iterator[tuple[AnyEvent, int]]:
    """Each event from a place of the file on, with the place at which the next one begins."""
    with open_trace(path) as file:
        decode = event_decoder(_header(path, file).version)
        file.seek(offset)
        while line := file.readline(MOST_LINE_BYTES + 1):
            offset += len(line)
            try:
                event = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if file.read(1):
                    raise TraceError(f"{path}: the line before byte {offset:,} is not an event") from error
                if found:
                    found.was_cut = True
                return
            yield event, offset
