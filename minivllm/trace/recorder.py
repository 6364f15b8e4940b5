"""The recorder: events go in, JSON lines come out.

It is a sink (`tee.py`). An event is encoded at once (one or two microseconds) and written at the end of each
step, so that a crash loses at most one step.

    scheduler, KV-cache manager, engine ── emit(event) ──► buffer ── end of step ──► run.jsonl

An interrupt may come between any two lines. Then a line is in the file whole or not at all, and never twice:
what is lost, `StateRebuilt` makes up for; what stood there twice, it could not.

Read next: `reader.py`, which opens what this writes, even when it was cut off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import BinaryIO

import msgspec

from minivllm.files import reason
from minivllm.text import shown
from minivllm.trace.clock import TraceClock
from minivllm.trace.events import Event, StepFinished, TraceEnded, TraceHeader


class Recorder:
    """Writes events to `path`, or keeps them in `events` if `path` is None.

    After `max_steps` steps, if given, it closes itself: the beginning of a very long run.
    `seconds` is the time that recording itself has taken so far, for the benchmark's honesty.
    A disk that fills up, or an event that JSON cannot express, ends the recording with a warning, which
    `problem` keeps; neither ever stops the engine. What was written until then can be read.

    Raises:
        ValueError: the file cannot be created.
    """

    is_safe = True
    """`emit` raises nothing, so no tee needs to guard it."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        clock: Callable[[], float] = perf_counter,
        max_steps: int | None = None,
    ) -> None:
        self.path = Path(path) if path is not None else None
        self.events: list[Event] = []
        self.seconds = 0.0
        self.problem = ""
        self._steps_left = max_steps
        self._clock = TraceClock(clock)
        self._encode = msgspec.json.Encoder().encode
        self._buffer = bytearray()
        self._file: BinaryIO | None = None
        self._closed = False
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            except (OSError, ValueError) as error:
                raise ValueError(f"trace: cannot write to {self.path}: {reason(error)}") from error

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Take the time from another clock from now on: a simulator's."""
        self._clock = TraceClock(clock)

    def start(self, header: TraceHeader) -> None:
        """Record the header."""
        self.emit(header)

    def now(self) -> float:
        """Seconds since the header, to the microsecond."""
        return self._clock.now()

    def at(self, time: float) -> float:
        """A moment of the clock in seconds since the header; never before it, and never in the future."""
        return self._clock.at(time)

    def emit(self, event: Event) -> None:
        """Record one event. A header sets the clock of all later events to zero, and is written at once."""
        if self._closed and not isinstance(event, TraceEnded):
            return
        began = perf_counter()
        if self._file is not None:
            try:
                self._buffer += self._encode(event) + b"\n"  # at once: no half line, ever
            except Exception as error:  # a lone surrogate, or a setting that JSON cannot express
                self.flush()
                self._give_up(error)
        elif self.path is None:
            self.events.append(event)
        kind = type(event)  # cheaper than isinstance, and no event has subclasses
        if kind is StepFinished:
            self.flush()
            if self._steps_left is not None:
                self._steps_left -= 1
                if not self._steps_left:
                    self.close()
        elif kind is TraceHeader:
            self._clock.restart()
            self.flush()
        self.seconds += perf_counter() - began

    def flush(self) -> None:
        """Hand everything recorded so far to the operating system."""
        if self._file is None or not self._buffer:
            return
        lines, self._buffer = self._buffer, bytearray()  # first: what is interrupted must not come again
        try:
            self._file.write(lines)
            self._file.flush()
        except (OSError, ValueError) as error:  # the latter: the file was closed
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """The trace ends here; the run continues."""
        self.problem = f"the trace {shown(str(self.path))} ends here, it cannot be written: {reason(error)}"
        warnings.warn(self.problem, stacklevel=3)
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError, ValueError):  # closing tries to write once more
                file.close()

    def close(self) -> None:
        """Write the last line and close the file. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.emit(TraceEnded(self.now()))
        self.flush()
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:  # some file systems say only now that the disk is full
                self._give_up(error)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def timestamp() -> str:
    """Now, in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
