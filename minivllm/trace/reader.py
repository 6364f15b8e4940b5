"""The reader: a trace file goes in, events come out, cut into steps.

A trace may still be growing, or may have been cut off in the middle of a line; both open, with a warning.
Older versions open as if they had been written today (`upgrade.py`). What is not a trace of a version that
we know is refused in one sentence.

Step `k` holds all events after the end of step `k - 1` up to its own `StepFinished`: requests that arrive
between two steps belong to the second. Events after the last finished step, if there are any, form one
unfinished step of their own; what ranks tell of steps before, and the end mark, are no step.

Read next: `replay.py`, which turns these events into the engine's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never, NoReturn

import msgspec

from minivllm.trace.events import VERSION, AnyEvent, RanksTimed, StepFinished, TraceEnded, TraceHeader
from minivllm.trace.lines import TraceError, open_trace, read_events, read_header, words
from minivllm.trace.upgrade import NEWEST_RENAMED, upgrade_event

__all__ = ["Trace", "TraceError", "make_trace", "read_trace", "refuse_event"]


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
        path: the file, if it was read from one.
    """

    header: TraceHeader
    events: list[AnyEvent]
    starts: list[int]
    warnings: list[str] = field(default_factory=list)
    path: Path | None = None

    @property
    def num_steps(self) -> int:
        return len(self.starts) - 1

    def step_events(self, step: int) -> list[AnyEvent]:
        """The events of one step, arrivals before it included."""
        return self.events[self.starts[step] : self.starts[step + 1]]

    def place(self, index: int) -> str:
        """Where an event stands, for a message: `run.jsonl, line 12`."""
        return f"event {index + 1}" if self.path is None else f"{words(self.path)}, line {index + 2}"


def make_trace(
    header: TraceHeader, events: list[AnyEvent], warnings: list[str] | None = None, path: Path | None = None
) -> Trace:
    """Cut events into steps."""
    ends = [index + 1 for index, event in enumerate(events) if isinstance(event, StepFinished)]
    starts = [0, *ends]
    if any(not isinstance(event, TraceEnded | RanksTimed) for event in events[starts[-1] :]):
        starts.append(len(events))
    return Trace(header, events, starts, warnings or [], path)


def read_trace(path: str | Path) -> Trace:
    """Open a trace file.

    Raises:
        TraceError: there is no such file, it is empty, it is not a trace, it is of a version that this
            program does not know, or a line in its middle is damaged or absurd (named by number).
    """
    path = Path(path)
    with open_trace(path) as file:
        header = read_header(path, file, "TraceHeader", VERSION, msgspec.json.Decoder(TraceHeader).decode)
        events, cut = read_events(path, file, event_decoder(header.version), "an event")
    warnings = [f"The last line ({cut}) was cut off and is left out."] if cut else []
    if not events or not isinstance(events[-1], TraceEnded):
        warnings.append("The trace has no end mark: the run was cut off, or is still going on.")
    return make_trace(msgspec.structs.replace(header, version=VERSION), events, warnings, path)


def event_decoder(version: int) -> Callable[[bytes], AnyEvent]:
    return _decode_old if version <= NEWEST_RENAMED else msgspec.json.Decoder(AnyEvent).decode


def _decode_old(line: bytes) -> AnyEvent:
    fields = msgspec.json.decode(line, type=dict[str, Any])
    event: AnyEvent = msgspec.convert(upgrade_event(fields), AnyEvent)
    return event
