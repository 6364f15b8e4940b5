"""What each rank does when: noted by itself, told to rank 0 now and then, and from there to the trace.

    rank 0   │ step 7 ▓▓▓▓▓▓ all-gather ▒ ▓▓▓▓▓▓ all-gather ▒▒▒▒ ▓▓▓ │ (plans the next one)   │ step 8 …
    rank 1   │ step 7 ▓▓▓▓▓▓▓▓▓▓ all-gather ▒ ▓▓▓▓▓▓▓ all-gather ▒ ▓ │ idle                   │ step 8 …

What of a step is in no talk is computing. Ranks of one machine share its monotonic clock, so nothing has to
be put right; those of other machines would be off by the difference of the machines' clocks.

All ranks carry out the same plans in the same order, so the seventh plan of one is the seventh of every
other: that number, and not the step's, says what belongs together, for an interrupted step comes again.

Read next: `rank_times.py`, which reads them from a trace; `minivllm/executor/distributed/groups.py`, which
notes them, and `telling.py` beside it, which sends them.
"""

from __future__ import annotations

from collections import deque

import msgspec

from minivllm.trace.events import MOST_TALKS, RankTime

ALL_GATHER, SEND, RECEIVE = "all-gather", "send", "receive"
SEND_LOGITS, RECEIVE_LOGITS = "send logits", "receive logits"
TALKS = (ALL_GATHER, SEND, RECEIVE, SEND_LOGITS, RECEIVE_LOGITS)
MOST_STEPS = 10_000
"""A rank remembers only its latest ones until it is asked."""
Talk = tuple[str, float, float]
"""What was done, and when it began and ended, in seconds of the machine's monotonic clock."""


class RankStep(msgspec.Struct, frozen=True, array_like=True):
    """One plan, carried out by one rank."""

    number: int
    """Of the plan among all that this rank has carried out."""
    step: int
    start: float
    end: float
    talks: tuple[Talk, ...]
    num_left_out: int

    def time(self, rank: int, epoch: float) -> RankTime:
        """For the trace, in seconds since `epoch`."""
        talks = tuple((what, _since(epoch, start), _since(epoch, end)) for what, start, end in self.talks)
        return RankTime(rank, _since(epoch, self.start), _since(epoch, self.end), talks, self.num_left_out)


def _since(epoch: float, moment: float) -> float:
    return max(0.0, round(moment - epoch, 6))


class RankSpans:
    """Of one rank. Its own thread notes; any other may take."""

    def __init__(self) -> None:
        self._talks: list[Talk] = []
        self._num_talks = self._num_steps = 0
        self._steps: deque[RankStep] = deque(maxlen=MOST_STEPS)

    def note_talk(self, what: str, start: float, end: float) -> None:
        """It belongs to the step that ends next."""
        self._num_talks += 1
        if len(self._talks) < MOST_TALKS:
            self._talks.append((what, start, end))

    def note_step(self, step: int, start: float, end: float) -> None:
        talks, left_out = tuple(self._talks), self._num_talks - len(self._talks)
        self._talks, self._num_talks = [], 0
        self._steps.append(RankStep(self._num_steps, step, start, end, talks, left_out))
        self._num_steps += 1

    def take(self) -> list[RankStep]:
        """Those that were not taken yet."""
        taken: list[RankStep] = []
        while self._steps:
            taken.append(self._steps.popleft())
        return taken
