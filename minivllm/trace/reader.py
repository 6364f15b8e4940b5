"""The reader: a trace file goes in, events come out, cut into steps.

A trace may still be growing, or may have been cut off in the middle of a line; both open, with a warning.
Versions 1 and 2 open as if they had been written today (`upgrade.py`). What is not a trace of a version that
we know is refused in one sentence.

Step `k` holds all events after the end of step `k - 1` up to its own `StepFinished`: requests that arrive
between two steps belong to the second. Events after the last finished step, if there are any, form one
unfinished step of their own.

Read next: `replay.py`, which turns these events into the engine's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never, NoReturn

import msgspec

from minivllm.trace.events import VERSION, AnyEvent, StepFinished, TraceEnded, TraceHeader
from minivllm.trace.upgrade import upgrade_event


class TraceError(ValueError):
    """This trace cannot be read or replayed, and why, in one sentence."""


def refuse_event(event: Never) -> NoReturn:
    """The last case of every `match` over events: mypy calls it unreachable only if none is forgotten.

    Raises:
        TraceError: always; an event that a module does not know must never be ignored there.
    """
    raise TraceError(f"{type(event).__name__} is an event that this program cannot apply")


@dataclass(frozen=True)
class Trace:
    """A header, the events after it, and where each step begins.

    Attributes:
        header: limits and model of the run; its `version` is ours, whichever the file had.
        events: all events, in order, without the header.
        starts: `starts[k]` is the index of step k's first event; one more entry marks the end.
        warnings: what a reader should know about the file, in sentences.
    """

    header: TraceHeader
    events: list[AnyEvent]
    starts: list[int]
    warnings: list[str] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        return len(self.starts) - 1

    def step_events(self, step: int) -> list[AnyEvent]:
        """The events of one step, arrivals before it included."""
        return self.events[self.starts[step] : self.starts[step + 1]]


def make_trace(header: TraceHeader, events: list[AnyEvent], warnings: list[str] | None = None) -> Trace:
    """Cut events into steps."""
    ends = [index + 1 for index, event in enumerate(events) if isinstance(event, StepFinished)]
    starts = [0, *ends]
    if any(not isinstance(event, TraceEnded) for event in events[starts[-1] :]):
        starts.append(len(events))
    return Trace(header, events, starts, warnings or [])


def read_trace(path: str | Path) -> Trace:
    """Open a trace file.

    Raises:
        TraceError: there is no such file, it is empty, it is not a trace, it is of a version that this
            program does not know, or a line in its middle is damaged (named by number).
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}") from error
    if not any(lines):
        raise TraceError(f"{path} is empty: a trace has at least a header line")
    header = _read_header(path, lines[0])
    events, warnings = _read_events(path, lines, header.version)
    if not events or not isinstance(events[-1], TraceEnded):
        warnings.append("The trace has no end mark: the run was cut off, or is still going on.")
    return make_trace(msgspec.structs.replace(header, version=VERSION), events, warnings)


def _read_header(path: Path, line: bytes) -> TraceHeader:
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = None
    if isinstance(fields, dict) and fields.get("event") == "KernelHeader":
        raise TraceError(f"{path} is a trace of a kernel, not of a run of the engine")
    if not isinstance(fields, dict) or fields.get("event") != "TraceHeader":
        raise TraceError(f"{path} is not a minivllm trace: its first line is not a trace header")
    if fields.get("version") not in range(1, VERSION + 1):
        raise TraceError(
            f"{path} is a trace of version {fields.get('version')!r}; this program reads versions 1 to "
            f"{VERSION}. Open it with the minivllm that wrote it, or record it again."
        )
    try:
        return msgspec.convert(fields, TraceHeader)
    except msgspec.ValidationError as error:
        raise TraceError(f"{path} has a damaged trace header: {error}") from error


def _read_events(path: Path, lines: list[bytes], version: int) -> tuple[list[AnyEvent], list[str]]:
    decode = msgspec.json.Decoder(AnyEvent).decode if version == VERSION else _decode_old
    last = max(index for index, line in enumerate(lines) if line)
    events: list[AnyEvent] = []
    for index in range(1, last + 1):
        try:
            events.append(decode(lines[index]))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if index < last:
                raise TraceError(f"{path}, line {index + 1}, is not an event: {error}") from error
            return events, [f"The last line ({index + 1}) was cut off and is left out."]
    return events, []


def _decode_old(line: bytes) -> AnyEvent:
    fields = msgspec.json.decode(line, type=dict[str, Any])
    event: AnyEvent = msgspec.convert(upgrade_event(fields), AnyEvent)
    return event
