"""Live: the events of the running engine, for everyone who watches it, from any moment on.

    engine ── emit ──► kept steps ──┬──► replayed state ──► a watcher joins: header, snapshot, what is kept
                                    └──► encoded once ──┬──► watcher ──► its connection
                                                        └──► …

A watcher first gets the state as it is (`SnapshotTaken`), then what happens. Without the words `data: ` the
stream is a trace file, which every reader of traces opens.

The engine's thread only keeps events in a list, a list a step. All else is done in the event loop, and as
rarely as can be: without watchers, nothing is done until very much is kept, and then the oldest is
replayed. The texts of a prompt's tokens are made when a watcher is to see them. While there are watchers, all
that has come in a tenth of a second is encoded once, however many watch, and written straight to their
connections. No lock is needed: the engine's thread appends, the loop takes. A watcher that does not read what
is sent is cut off: the engine never waits for it.

Read next: `watcher.py`; `live_stream.py`, which answers a watcher; `minivllm/trace/snapshots.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

import msgspec

from minivllm.decoding.detokenizer import Decoder, token_texts
from minivllm.server.watcher import Watcher, comment
from minivllm.trace.events import (
    AnyEvent,
    BatchPlanned,
    Event,
    RequestQueued,
    StateRebuilt,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TraceEnded,
    TraceHeader,
)
from minivllm.trace.replay import ReplayState
from minivllm.trace.snapshots import cache_owners, forget_finished, take_snapshot
from minivllm.validation import error_words

logger = logging.getLogger(__name__)

MOST_UNSENT_BYTES = 8 * 2**20
"""What may wait for one watcher; of a small model, minutes of a busy server."""
MOST_KEPT = 2**18
"""Events and tokens that are kept until they are replayed: some 35 MiB, and a tenth of a second's work."""
STEPS_AT_ONCE = 32
"""Steps that are replayed before others have their turns: a millisecond."""
MOST_FINISHED = 256
"""Finished sequences that are kept until they are forgotten together."""

STEP_ENDS = frozenset((StepFinished, StepAbandoned, StateRebuilt))

Hop = Callable[[Callable[[], None]], None]
"""Has something done in the event loop, soon; called in the engine's thread."""


class LiveError(RuntimeError):
    """There is nothing to watch, and why."""


class LiveEvents:
    """A sink of events (`minivllm/trace/tee.py`), and those who watch it.

    `hop` must be set before the first request; `emit` belongs to the engine's thread, all else to the loop's.

    Attributes:
        hop: the way from the engine's thread to the event loop.
        tokenizer: makes the texts of prompts' tokens; without one they are not told.
    """

    wants_prompt_texts = False
    """They are made here, once a watcher is to see them."""

    def __init__(self, most_unsent_bytes: int = MOST_UNSENT_BYTES, most_kept: int = MOST_KEPT) -> None:
        self.hop: Hop = lambda work: None
        self.tokenizer: Decoder | None = None
        self._most_unsent_bytes, self._most_kept = most_unsent_bytes, most_kept
        self._open: list[Event] = []  # what has happened in this step so far
        self._is_stepping = False
        self._is_due = False  # the loop was asked to take in, and has not done so yet
        self._num_told = 0  # events and tokens, of all steps
        self._num_replayed = 0  # those of them that the state knows
        # Steps, each with `_num_told` at its end: those that the loop has not seen, and those that it has.
        self._came: deque[tuple[list[Event], int]] = deque()
        self._kept: deque[tuple[list[Event], int]] = deque()
        self._state: ReplayState | None = None
        self._time = 0.0  # of the newest event that the loop has seen; the state's is that of a step
        self._watchers: set[Watcher] = set()
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._problem = ""

    def emit(self, event: Event) -> None:
        """Take one event; those of a step are passed on when it is over."""
        kind = type(event)
        self._open.append(event)
        if kind is StepStarted:
            self._is_stepping = True
        elif kind is BatchPlanned:
            self._num_told += 2 * len(cast(BatchPlanned, event).items)  # the tokens to come, too
        elif kind is RequestQueued:
            self._num_told += len(cast(RequestQueued, event).prompt_token_ids)
        elif kind in STEP_ENDS:
            self._is_stepping = False
        if self._is_stepping:
            return
        self._num_told += len(self._open)
        # First the steps, then the look at the watchers: `join` does it the other way round, so that one of
        # both sees what the other has done. So it is with `_is_due` and `take_in`.
        self._came.append((self._open, self._num_told))
        self._open = []
        if not self._is_due and (self._watchers or self._is_too_much()):
            self._is_due = True
            self.hop(self.take_in)

    def _is_too_much(self) -> bool:
        return self._num_told - self._num_replayed > self._most_kept

    # ── in the event loop ─────────────────────────────────────────────────────────────────────────────

    @property
    def num_watchers(self) -> int:
        return len(self._watchers)

    async def prepare(self) -> None:
        """Do most of what `join` has to do, a little at a time, so that others have their turns meanwhile."""
        self.take_in()
        while self._kept:
            self._replay(STEPS_AT_ONCE)
            await asyncio.sleep(0)
        for _ in self._fill_in_texts():
            await asyncio.sleep(0)

    def join(self) -> Watcher:
        """A new watcher, which gets the state as it is first.

        Raises:
            LiveError: the live view has ended.
        """
        self.take_in()  # what those get who watch already
        watcher = Watcher(self._most_unsent_bytes)
        self._watchers.add(watcher)
        self.take_in()
        self._replay()
        if self._problem or self._state is None:
            self._watchers.discard(watcher)
            raise LiveError(self._problem or "the engine has not begun")
        for _ in self._fill_in_texts():
            pass
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
        """Pass on what has happened, and replay the oldest steps, if too much is kept."""
        self._is_due = False
        first = len(self._kept)
        while self._came:
            events, _ = step = self._came.popleft()
            self._time = next((it.time for it in reversed(events) if hasattr(it, "time")), self._time)
            self._kept.append(step)
        if self._watchers:
            with self._guarded():
                self._send([events for events, _ in islice(self._kept, first, None)])
        while self._kept and self._is_too_much():
            self._replay(1)

    def _send(self, steps: Sequence[list[Event]]) -> None:
        """To all watchers: a message a step, encoded once."""
        for events in steps:
            for place, event in enumerate(events):
                if type(event) is RequestQueued and not event.prompt_pieces:
                    texts = self._texts(event.prompt_token_ids)
                    events[place] = msgspec.structs.replace(event, prompt_pieces=texts)
        if messages := b"".join(map(self._message, steps)):
            for watcher in tuple(self._watchers):
                watcher.put(messages)

    def _replay(self, most: int | None = None) -> None:
        """Let the oldest steps that are kept become part of the state: all, or at most so many."""
        with self._guarded():
            for _ in range(len(self._kept) if most is None else min(most, len(self._kept))):
                events, self._num_replayed = self._kept.popleft()
                if self._problem:
                    continue
                if isinstance(events[0], TraceHeader):
                    self._state, events = ReplayState(events[0]), events[1:]
                state = self._state
                assert state is not None, "the header comes first"
                for event in events:
                    state.apply(cast(AnyEvent, event))
                if len(state.finished) > MOST_FINISHED:
                    forget_finished(state)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a fault of ours must not reach those who ask for tokens
            logger.exception("the live view has ended")
            self._problem = f"the live view has ended: {error_words(error)}"
            self._end_all(comment(self._problem))

    def _fill_in_texts(self) -> Iterator[None]:
        """Give each sequence of the next snapshot the texts of its prompt, one after the other."""
        if self._state is None or self.tokenizer is None:
            return
        made: dict[tuple[int, ...], tuple[str, ...]] = {}  # the sequences of a request have one prompt
        for sequence in (*self._state.sequences.values(), *cache_owners(self._state)):
            if not sequence.prompt_pieces:
                prompt = tuple(sequence.token_ids[: sequence.num_prompt_tokens])
                if prompt not in made:
                    made[prompt] = self._texts(prompt)
                sequence.prompt_pieces = made[prompt]
                yield

    def _texts(self, prompt: Sequence[int]) -> tuple[str, ...]:
        return token_texts(self.tokenizer, prompt) if self.tokenizer else ()

    def _message(self, events: Sequence[Event]) -> bytes:
        """Lines of a trace as one server-sent event. JSON has no line breaks but those between the lines."""
        lines = self._encode_lines(events).removesuffix(b"\n")
        return b"data: " + lines.replace(b"\n", b"\ndata: ") + b"\n\n"

    def _end_all(self, last: bytes) -> None:
        for watcher in self._watchers:
            watcher.end(last)
        self._watchers.clear()
