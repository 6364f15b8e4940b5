"""The window: the last minutes of a run that goes on, of which any step can be seen again.

Events are kept in chunks; each begins with a copy of the state before it, so that a step is at most a chunk
away. The oldest chunk is dropped when there are too many steps, seconds or bytes: memory stays bounded,
however long the server runs.

    state ░ 64 steps │ state ░ 64 steps │ state ░ 12 steps ◄── events
    └ dropped first                        └ what was seen can be written as a trace from here

Read next: `connection.py`, which fills it; `minivllm/trace/snapshots.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from minivllm.trace.events import AnyEvent, StepFinished, TraceEnded, TraceHeader
from minivllm.trace.replay import ReplayState, copy_state
from minivllm.trace.snapshots import forget_finished, take_snapshot
from minivllm.trace.timeline import Phase, StepRecord
from viz.figures.common import Name, letters, plural
from viz.language import _
from viz.palette import family

CHUNK_STEPS = 64
MOST_STEPS = 20_000
MOST_SECONDS = 600.0
MOST_BYTES = 64 * 2**20
"""Of the events as they came; in memory they take a few times as much."""
KEPT_FINISHED = 48
"""Finished sequences that a picture may still show."""
MOST_ROWS = 20
NUM_LETTERS = 26 + 26**2
"""After ZZ comes A again: few requests live that long."""


class Numbers(NamedTuple):
    """What the curve over the steps shows of one step."""

    time: float
    used: int
    running: int
    waiting: int
    prefill: int
    decode: int


class Moment(NamedTuple):
    """One step as a picture needs it."""

    state: ReplayState
    record: StepRecord
    rows: tuple[str | None, ...]
    since: str = ""
    """What has happened since that step, if it is the latest."""


@dataclass
class _Chunk:
    state: ReplayState
    """Before its first event."""
    rows: Rows
    first_step: int
    steps: list[list[AnyEvent]] = field(default_factory=list)
    numbers: list[Numbers] = field(default_factory=list)
    num_bytes: int = 0
    end: float = 0.0


@dataclass
class Rows:
    """Which request stands in which row. A request keeps its row until another needs it."""

    names: list[str | None] = field(default_factory=lambda: [None] * MOST_ROWS)
    ended: list[str] = field(default_factory=list)
    """Requests that have finished and still have their row, the oldest first."""

    def copy(self) -> Rows:
        return Rows(list(self.names), list(self.ended))

    def update(self, record: StepRecord, state: ReplayState) -> None:
        """Take over what a step changed. Those that compute are at the top, those that wait below them."""
        self.ended += [name for name in record.ended if name in self.names]
        running = dict.fromkeys(state.running)
        for request in running:
            place = self.names.index(request) if request in self.names else None
            better = self._first(running, before=len(self.names) if place is None else place)
            if better is None:
                continue
            if place is not None:
                self.names[place] = self.names[better]
            elif self.names[better] in self.ended:
                self.ended.remove(str(self.names[better]))
            self.names[better] = request
        for request in state.waiting:
            if request in self.names:
                continue
            if None in self.names:
                place = max(i for i, name in enumerate(self.names) if name is None)
            elif self.ended:
                place = self.names.index(self.ended.pop(0))
            else:
                break
            self.names[place] = request

    def _first(self, running: Mapping[str, None], before: int) -> int | None:
        """The first row that has no running request: an empty one, or else another's."""
        rows = [i for i, name in enumerate(self.names[:before]) if name not in running]
        if before < len(self.names):  # it has a row already, and moves only up
            return rows[0] if rows else None
        empty = [i for i in rows if self.names[i] is None]
        ended = [self.names.index(name) for name in self.ended]
        return next(iter([*empty, *ended, *reversed(rows)]), None)


class LiveWindow:
    """The last steps of a run. Not safe for threads: its owner holds a lock.

    Args:
        number: tells this window from the others of its owner.
    """

    def __init__(
        self,
        header: TraceHeader,
        most_steps: int = MOST_STEPS,
        most_bytes: int = MOST_BYTES,
        number: int = 0,
    ) -> None:
        self.header = header
        self.number = number
        self.state = ReplayState(header)
        self.record = StepRecord(0)
        """Of the latest step."""
        self.is_ended = False
        self._most_steps, self._most_bytes = most_steps, most_bytes
        self._chunks: deque[_Chunk] = deque()
        self._open: list[AnyEvent] = []  # since the last step was over
        self._open_record = StepRecord(0)
        self._rows = Rows()
        self._num_bytes = 0
        self._names: dict[str, Name] = {}
        self._num_names = 0

    # ── events come in ────────────────────────────────────────────────────────────────────────────────

    def add(self, events: Sequence[AnyEvent], num_bytes: int) -> None:
        """What happened next. Raises `TraceError` if it contradicts what came before."""
        for event in events:
            self.state.apply(event, self._open_record.note)
            if isinstance(event, TraceEnded):
                self.is_ended = True
                continue
            if not self._chunks:
                # The snapshot is the beginning of the window, and no part of a step.
                self._begin_chunk()
                self.record = StepRecord(self.state.num_steps - 1, start=self.state.time)
                self.record.close(self.state)
                self._rows.update(self.record, self.state)
                self._chunks[-1].rows = self._rows.copy()
                continue
            self._open.append(event)
            if isinstance(event, StepFinished):
                self._end_step()
        if self._chunks:
            self._chunks[-1].num_bytes += num_bytes
            self._num_bytes += num_bytes
        self._drop_old()

    def _end_step(self) -> None:
        record = self._open_record
        record.close(self.state)
        self._rows.update(record, self.state)
        chunk = self._chunks[-1]
        chunk.steps.append(self._open)
        prefill = record.num_tokens(Phase.PREFILL)
        chunk.numbers.append(
            Numbers(
                self.state.time,
                record.num_used_blocks,
                record.num_running,
                record.num_waiting,
                prefill,
                record.num_tokens(Phase.DECODE),
            )
        )
        chunk.end = self.state.time
        self.record = record
        self._open, self._open_record = [], StepRecord(self.last + 1, start=self.state.time)
        if len(chunk.steps) >= CHUNK_STEPS:
            self._begin_chunk()

    def _begin_chunk(self) -> None:
        forget_finished(self.state, keep=KEPT_FINISHED)
        state = copy_state(self.state)
        self._chunks.append(_Chunk(state, self._rows.copy(), self.state.num_steps, end=self.state.time))
        self._open_record = StepRecord(self.state.num_steps, start=self.state.time)

    def _drop_old(self) -> None:
        while len(self._chunks) > 1 and (
            self._num_bytes > self._most_bytes
            or self.num_steps > self._most_steps
            or self.state.time - self._chunks[0].end > MOST_SECONDS
        ):
            self._num_bytes -= self._chunks.popleft().num_bytes
        if len(self._names) > 4 * self._most_steps:
            self._names.clear()

    # ── what can be seen ──────────────────────────────────────────────────────────────────────────────

    @property
    def first(self) -> int:
        """The oldest step that is kept, counted as the engine counts them."""
        return self._chunks[0].first_step if self._chunks else 0

    @property
    def last(self) -> int:
        """The latest step that is over; `first - 1` if there is none yet."""
        if not self._chunks:
            return -1
        return self._chunks[-1].first_step + len(self._chunks[-1].steps) - 1

    @property
    def num_steps(self) -> int:
        return self.last - self.first + 1

    def latest(self) -> Moment:
        """The state as it is now, with what the latest step did."""
        record = self.record
        if self._open:  # something has happened since that step: its numbers are not those of now
            record = copy(record)
            record.close(self.state)
        return Moment(self.state, record, tuple(self._rows.names), self._since())

    def _since(self) -> str:
        """What has happened since the latest step, in a sentence."""
        left, came = len(self._open_record.ended), len(self._open_record.queued)
        told = [_("{requests} left").format(requests=plural(left, "request"))] if left else []
        told += [_("{requests} arrived").format(requests=plural(came, "request"))] if came else []
        return " " + _("Since then {changes}.").format(changes=_(" and ").join(told)) if told else ""

    def at(self, step: int) -> Moment:
        """The state after a step that is kept; the nearest that is, if this one is not."""
        step = max(self.first, min(self.last, step))
        chunk = next((one for one in reversed(self._chunks) if one.first_step <= step and one.steps), None)
        if chunk is None or (step >= self.last and not self._open):
            return self.latest()
        state, rows = copy_state(chunk.state), chunk.rows.copy()
        record = self.record
        for number, events in enumerate(chunk.steps[: step - chunk.first_step + 1], chunk.first_step):
            record = StepRecord(number, start=state.time)
            for event in events:
                state.apply(event, record.note)
            record.close(state)
            rows.update(record, state)
        return Moment(state, record, tuple(rows.names))

    def numbers_after(self, step: int, most: int = 4000) -> tuple[int, list[Numbers]]:
        """The numbers of the steps after `step`, at most the latest `most`, and the first one's number."""
        start = max(step + 1, self.first, self.last - most + 1)
        found: list[Numbers] = []
        for chunk in self._chunks:
            found += chunk.numbers[max(0, start - chunk.first_step) :]
        return start, found

    def name_of(self, request: str) -> Name:
        """What a request is called; the same for as long as it is shown."""
        if request not in self._names:
            index = self._num_names % NUM_LETTERS
            self._names[request] = Name(letters(index), family(index), request)
            self._num_names += 1
        return self._names[request]

    def lines(self) -> Iterator[bytes]:
        """The window as the lines of a trace file."""
        encode = msgspec.json.Encoder().encode
        yield encode(self.header)
        if not self._chunks:
            return
        yield encode(take_snapshot(self._chunks[0].state))
        for chunk in self._chunks:
            for events in chunk.steps:
                yield from map(encode, events)
        yield from map(encode, self._open)
        yield encode(TraceEnded(self.state.time))
