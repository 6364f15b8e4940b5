"""How ranks tell rank 0 what they did when: by the store where they met, a few times a second.

    rank r    step, step, step … ──► spans/0/r, spans/1/r, …        (`Teller`)
    rank 0                           one after the other ──► what all have told of a plan    (`Listener`)

So a trace has it while the run goes on, a run that is cut off loses less than a second of it, and no step
waits for it. A message is removed once it was read.

Read next: `minivllm/trace/rank_spans.py`.
"""

from __future__ import annotations

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
        self._plans: dict[int, dict[int, RankStep]] = {}
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
        done = sorted(number for number, ranks in self._plans.items() if len(ranks) == self._meeting.size)
        found = [self._plans.pop(number) for number in done]
        return [
            RanksTimed(ranks[0].step, tuple(ranks[rank].time(rank, epoch) for rank in sorted(ranks)))
            for ranks in found
            if min(one.start for one in ranks.values()) >= epoch
        ]

    def _note(self, rank: int, steps: Sequence[RankStep]) -> None:
        for step in steps:
            self._plans.setdefault(step.number, {})[rank] = step
        while len(self._plans) > MOST_STEPS:  # nobody takes them, or a rank tells no more
            del self._plans[min(self._plans)]
