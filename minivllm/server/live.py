"""Live: the events of the running engine, for everyone who watches it, from any moment on.

    engine ── emit ──► a step's events ──hop──► replayed state ──► a watcher joins: header, snapshot
                                        └────► encoded once ──┬──► watcher's buffer ──► its connection
                                                              └──► …

A watcher first gets the state as it is (`SnapshotTaken`), then what happens. Without the words `data: ` the
stream is a trace file, which every reader of traces opens.

The engine's thread only keeps events in a list, and passes on whole steps; while there is no watcher, many
at once. All else is done in the event loop: replaying, encoding (once, however many watch), sending. No lock
is needed: the engine's thread appends, the loop takes. A watcher that does not read what is sent is cut off:
the engine never waits for it.

Source: server-sent events, WHATWG HTML, section 9.2. Read next: `live_stream.py`, which sends them;
`minivllm/trace/snapshots.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from minivllm.trace.events import (
    AnyEvent,
    Event,
    StateRebuilt,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TraceEnded,
    TraceHeader,
)
from minivllm.trace.replay import ReplayState
from minivllm.trace.snapshots import forget_finished, take_snapshot

logger = logging.getLogger(__name__)

MOST_UNSENT_BYTES = 8 * 2**20
"""What may wait for one watcher; of a small model, minutes of a busy server."""
MOST_UNREAD_STEPS = 64
"""Steps that wait to be replayed while there is no watcher."""
MOST_FINISHED = 256
"""Finished sequences that are kept until they are forgotten together."""

STEP_ENDS = frozenset((StepFinished, StepAbandoned, StateRebuilt))

Hop = Callable[[Callable[[], None]], None]
"""Has something done in the event loop, soon; called in the engine's thread."""


class LiveError(RuntimeError):
    """There is nothing to watch, and why."""


class Watcher:
    """What has come for one watcher and is not sent yet. Lives in the event loop.

    Attributes:
        is_cut: set once this watcher gets no more, because it was too slow.
    """

    def __init__(self, most_bytes: int) -> None:
        self.is_cut = asyncio.Event()
        self._chunks: deque[bytes] = deque()
        self._num_bytes = 0
        self._most_bytes = most_bytes
        self._is_over = False
        self._has_come = asyncio.Event()

    def begin(self, first: bytes) -> None:
        """Forget what has come: all of it is in this, which does not count as unread."""
        self._chunks, self._num_bytes = deque([first]), 0
        self._has_come.set()

    def put(self, chunk: bytes) -> None:
        """Keep this until it is sent, or cut the watcher off."""
        if self._is_over:
            return
        if self._num_bytes + len(chunk) > self._most_bytes:
            self._chunks.clear()
            self.is_cut.set()
            mib = self._most_bytes / 2**20
            self.end(comment(f"cut off: more than {mib:g} MiB were not read"))
            return
        self._chunks.append(chunk)
        self._num_bytes += len(chunk)
        self._has_come.set()

    def end(self, last: bytes) -> None:
        """Nothing comes after this."""
        if not self._is_over:
            self._chunks.append(last)
            self._is_over = True
            self._has_come.set()

    async def next(self) -> bytes:
        """All that has come; nothing (`b""`) at the end."""
        while not self._chunks:
            if self._is_over:
                return b""
            self._has_come.clear()
            await self._has_come.wait()
        chunks = b"".join(self._chunks)
        self._chunks.clear()
        self._num_bytes = 0
        return chunks


class LiveEvents:
    """A sink of events (`minivllm/trace/tee.py`), and those who watch it.

    `hop` must be set before the first request; `emit` belongs to the engine's thread, all else to the loop's.
    """

    def __init__(self, most_unsent_bytes: int = MOST_UNSENT_BYTES) -> None:
        self.hop: Hop = lambda work: None
        self._most_unsent_bytes = most_unsent_bytes
        self._open: list[Event] = []  # what has happened in this step so far
        self._is_stepping = False
        self._inbox: deque[list[Event]] = deque()
        self._state: ReplayState | None = None
        self._time = 0.0  # of the newest event; the state's is that of the last step
        self._watchers: set[Watcher] = set()
        self._encode = msgspec.json.Encoder().encode
        self._problem = ""

    def emit(self, event: Event) -> None:
        """Take one event; those of a step are passed on when it is over."""
        kind = type(event)
        self._open.append(event)
        if kind is StepStarted:
            self._is_stepping = True
        elif kind in STEP_ENDS:
            self._is_stepping = False
        if self._is_stepping:
            return
        # First the inbox, then the look at the watchers: `join` does it the other way round, so that one of
        # both sees what the other has done.
        self._inbox.append(self._open)
        self._open = []
        if self._watchers or len(self._inbox) >= MOST_UNREAD_STEPS:
            self.hop(self.take_in)

    # ── in the event loop ─────────────────────────────────────────────────────────────────────────────

    @property
    def num_watchers(self) -> int:
        return len(self._watchers)

    def join(self) -> Watcher:
        """A new watcher, which gets the state as it is first.

        Raises:
            LiveError: the live view has ended.
        """
        watcher = Watcher(self._most_unsent_bytes)
        self._watchers.add(watcher)
        self.take_in()
        if self._problem or self._state is None:
            self._watchers.discard(watcher)
            raise LiveError(self._problem or "the engine has not begun")
        watcher.begin(self._message([self._state.header, take_snapshot(self._state)]))
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def end(self) -> None:
        """The server stops: everyone gets the last line of a trace."""
        self.take_in()
        last = self._message([TraceEnded(self._time)])
        self._end_all(last)
        self._problem = self._problem or "the server is shutting down"

    def take_in(self) -> None:
        """Replay what has happened, and pass it on."""
        while self._inbox:
            events = self._inbox.popleft()
            if self._problem:
                continue
            try:
                self._follow(events)
            except Exception as error:  # a fault of ours must not reach those who ask for tokens
                logger.exception("the live view has ended")
                self._problem = f"the live view has ended: {type(error).__name__}: {error}"
                self._end_all(comment(self._problem))

    def _follow(self, events: Sequence[Event]) -> None:
        if isinstance(events[0], TraceHeader):
            self._state, events = ReplayState(events[0]), events[1:]
        state = self._state
        assert state is not None, "the header comes first"
        for event in events:
            state.apply(cast(AnyEvent, event))
        self._time = next((event.time for event in reversed(events) if hasattr(event, "time")), self._time)
        if len(state.finished) > MOST_FINISHED:
            forget_finished(state)
        if self._watchers and events:
            message = self._message(events)
            for watcher in tuple(self._watchers):
                watcher.put(message)

    def _message(self, events: Sequence[Event]) -> bytes:
        """Lines of a trace as one server-sent event."""
        return b"data: " + b"\ndata: ".join(map(self._encode, events)) + b"\n\n"

    def _end_all(self, last: bytes) -> None:
        for watcher in self._watchers:
            watcher.end(last)
        self._watchers.clear()


def comment(words: str) -> bytes:
    """A line of the stream that is no event: for people, and for programs that want to know why it ends."""
    return b": " + " ".join(words.split()).encode(errors="replace") + b"\n\n"
