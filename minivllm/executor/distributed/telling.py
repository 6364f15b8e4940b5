"""How ranks tell rank 0 what they did when: by the store where they met, a few times a second.

    rank r    step, step, step … ──► spans/0/r, spans/1/r, …        (`Teller`)
    rank 0                           one after the other ──► what all have told of a plan    (`Listener`)

So a trace has it while the run goes on, a run that is cut off loses less than a second of it, and no step
waits for it. A message is removed once it was read.

Read next: `minivllm/trace/rank_spans.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter

import msgspec

from minivllm.executor.distributed.meeting import Meeting
from minivllm.trace.events import RanksTimed
from minivllm.trace.rank_spans import MOST_STEPS, RankSpans, RankStep

TELL_SECONDS = 0.25
TOLD, TOLD_ALL = "spans", "told"


class Teller:
    """Of a rank above 0."""

    def __init__(self, meeting: Meeting, spans: RankSpans) -> None:
        self._meeting, self._spans = meeting, spans
        self._number, self._next = 0, perf_counter() + TELL_SECONDS

    def tell(self, *, is_last: bool = False) -> None:
        """What was not told yet, if it is time, or the end."""
        now = perf_counter()
        if now < self._next and not is_last:
            return
        self._next = now + TELL_SECONDS
        if steps := self._spans.take():
            self._meeting.note(f"{TOLD}/{self._number}", msgspec.json.encode(steps).decode())
            self._number += 1
        if is_last:
            self._meeting.note(TOLD_ALL)


class Listener:
    """Of rank 0."""

    def __init__(self, meeting: Meeting, spans: RankSpans) -> None:
        self._meeting, self._spans = meeting, spans
        self._numbers = dict.fromkeys(range(1, meeting.size), 0)
        self._plans: dict[int, dict[int, RankStep]] = {}  # of which not all have told
        self._done: deque[dict[int, RankStep]] = deque(maxlen=MOST_STEPS)
        self._next = 0.0
        self._read = msgspec.json.Decoder(list[RankStep]).decode

    def listen(self, *, is_last: bool = False) -> None:
        """Take over what was told, if it is time, or the end."""
        now = perf_counter()
        if now < self._next and not is_last:
            return
        self._next = now + TELL_SECONDS
        self._note(0, self._spans.take())
        store = self._meeting.store
        for rank in self._numbers:
            while store.check([key := f"{TOLD}/{self._numbers[rank]}/{rank}"]):
                self._note(rank, self._read(store.get(key)))
                store.delete_key(key)
                self._numbers[rank] += 1

    def take(self, epoch: float) -> list[RanksTimed]:
        """The plans of which all ranks have told, in order, in seconds since `epoch`; none from before it."""
        found: list[RanksTimed] = []
        while self._done:
            ranks = self._done.popleft()
            if min(one.start for one in ranks.values()) >= epoch:
                times = tuple(ranks[rank].time(rank, epoch) for rank in sorted(ranks))
                found.append(RanksTimed(ranks[0].step, times))
        return found

    def _note(self, rank: int, steps: Sequence[RankStep]) -> None:
        """Each rank tells in the order of its plans, so they are done in that order, too."""
        for step in steps:
            told = self._plans.setdefault(step.number, {})
            told[rank] = step
            if len(told) == self._meeting.size:
                self._done.append(self._plans.pop(step.number))
        while len(self._plans) > MOST_STEPS:  # a rank tells no more
            del self._plans[min(self._plans)]
