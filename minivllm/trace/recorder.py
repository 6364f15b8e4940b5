"""The recorder: events go in, JSON lines come out.

Every module reports what it does by calling `emit(event)`. With no recorder there is no `emit` at all, so
a run without a trace does not even build the events. With one, an event is encoded at once (one or two
microseconds) and written at the end of each step, so that a crash loses at most one step.

    scheduler, KV-cache manager, engine ── emit(event) ──► buffer ── end of step ──► run.jsonl

Read next: `reader.py`, which opens what this writes, even when it was cut off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import BinaryIO

import msgspec

from minivllm.trace.events import Event, StepFinished, TraceEnded, TraceHeader


class Recorder:
    """Writes events to `path`, or keeps them in `events` if `path` is None.

    A `listener` is told of every event as it happens, as a live view needs it.
    After `most_steps` steps, if given, it closes itself: the beginning of a very long run.
    `seconds` is the time that recording itself has taken so far, for the benchmark's honesty.
    A disk that fills up ends the recording with a warning; it never stops the engine.

    Raises:
        ValueError: the file cannot be created.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        clock: Callable[[], float] = perf_counter,
        listener: Callable[[Event], None] | None = None,
        most_steps: int | None = None,
    ) -> None:
        self.path = Path(path) if path is not None else None
        self.events: list[Event] = []
        self.seconds = 0.0
        self._listener = listener
        self._steps_left = most_steps
        self._clock = clock
        self._epoch = clock()
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._file: BinaryIO | None = None
        self._closed = False
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            except OSError as error:
                raise ValueError(f"trace: cannot write to {self.path}: {error.strerror}") from error

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Take the time from another clock from now on: a simulator's."""
        self._clock = clock
        self._epoch = clock()

    def start(self, header: TraceHeader) -> None:
        """Write the header and set the clock of all later events to zero."""
        self._epoch = self._clock()
        self.emit(header)
        self.flush()

    def now(self) -> float:
        """Seconds since the header, to the microsecond."""
        return round(self._clock() - self._epoch, 6)

    def at(self, time: float) -> float:
        """A moment of the clock in seconds since the header; never before it, and never in the future."""
        return min(self.now(), max(0.0, round(time - self._epoch, 6)))

    def emit(self, event: Event) -> None:
        """Record one event."""
        if self._closed and not isinstance(event, TraceEnded):
            return
        began = perf_counter()
        if self._file is not None:
            self._buffer += self._encoder.encode(event)
            self._buffer += b"\n"
        elif self.path is None:
            self.events.append(event)
        if isinstance(event, StepFinished):
            self.flush()
            if self._steps_left is not None:
                self._steps_left -= 1
                if not self._steps_left:
                    self.close()
        self.seconds += perf_counter() - began
        if self._listener is not None:
            self._listener(event)

    def flush(self) -> None:
        """Hand everything recorded so far to the operating system."""
        if self._file is None or not self._buffer:
            return
        try:
            self._file.write(self._buffer)
            self._file.flush()
        except OSError as error:
            warnings.warn(f"the trace {self.path} ends here, it cannot be written: {error}", stacklevel=2)
            self._file.close()
            self._file = None
        self._buffer.clear()

    def close(self) -> None:
        """Write the last line and close the file. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.emit(TraceEnded(self.now()))
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def timestamp() -> str:
    """Now, in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
