"""What the ranks of a run did when, read from its trace: computing, talking, waiting for each other, idle.

    events    all-gather of rank 0    ├───────────────┤        one call: it sends, receives, and waits
              of rank 1                        ├──────┤
    read as   rank 0                  ├─ wait ─┤─ talk ┤       until the last one comes nobody has anything
              rank 1                           ├─ talk ┤

A rank notes when a talk began and ended. On one clock that tells more: nothing can be exchanged before the
last of those who take part has come, so until then the others wait. The first receive of a step belongs to
the first send of the stage before it, the second to the second, and so on. Where partners cannot be told (a
rank's logits are taken by another thread, or talks were left out), all of a talk counts as that.

Read next: `rank_spans.py`, where this is noted; `viz/figures/rank_lanes.py`, which draws it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from minivllm.trace.contradictions import of_ranks
from minivllm.trace.events import RankShape, RanksTimed, RankTime, SnapshotTaken
from minivllm.trace.rank_spans import ALL_GATHER, RECEIVE, RECEIVE_LOGITS, SEND, SEND_LOGITS
from minivllm.trace.reader import Trace, TraceError


class Doing(StrEnum):
    """What a rank does."""

    COMPUTE = "compute"
    ALL_GATHER = "all-gather"
    SEND = "send"
    RECEIVE = "receive"
    WAIT = "wait"
    """For another rank, within a step."""
    IDLE = "idle"
    """Between two steps: it has no plan."""


DOING = {
    ALL_GATHER: Doing.ALL_GATHER,
    SEND: Doing.SEND,
    SEND_LOGITS: Doing.SEND,
    RECEIVE: Doing.RECEIVE,
    RECEIVE_LOGITS: Doing.RECEIVE,
}
TALKING = (Doing.ALL_GATHER, Doing.SEND, Doing.RECEIVE)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A rank did one thing from `start` to `end`, in seconds since the trace's header."""

    doing: Doing
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class RankStepTimes:
    """A step as one rank carried it out."""

    rank: int
    start: float
    end: float
    stretches: tuple[Stretch, ...]
    """All of it, in order, without gaps."""
    num_talks: int

    def seconds(self, *doing: Doing) -> float:
        """Spent in any of these."""
        return sum(stretch.seconds for stretch in self.stretches if stretch.doing in doing)


@dataclass(frozen=True)
class RankShare:
    """What one rank did in a whole run, in seconds."""

    rank: int
    seconds: Mapping[Doing, float]

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())

    def share(self, *doing: Doing) -> float:
        """Of the run, 0 … 1."""
        return sum(self.seconds[one] for one in doing) / self.whole if self.whole > 0 else 0.0


def rank_steps(trace: Trace) -> dict[int, tuple[RankStepTimes, ...]]:
    """Step of the trace, from 0 → what each rank did in it, by rank; without steps of which nothing is told.

    A trace may begin in the middle of a run: then its step 0 has another number in the run.

    Raises:
        TraceError: these events cannot be.
    """
    first = trace.events[0] if trace.events else None
    before = first.num_steps if isinstance(first, SnapshotTaken) else 0
    found: dict[int, tuple[RankStepTimes, ...]] = {}
    for event in trace.events:
        if isinstance(event, RanksTimed):
            if problem := of_ranks(event, before + trace.num_steps):
                raise TraceError(f"RanksTimed: {problem}")
            if event.step >= before:  # the later of two is of the attempt that succeeded
                found[event.step - before] = times_of(event, trace.header.ranks)
    return dict(sorted(found.items()))


def times_of(event: RanksTimed, shapes: Sequence[RankShape] = ()) -> tuple[RankStepTimes, ...]:
    """What each rank did in one step; `shapes` says who talks to whom."""
    begun = _partners_come({one.rank: one for one in event.ranks}, {shape.rank: shape for shape in shapes})
    return tuple(
        RankStepTimes(one.rank, one.start, one.end, tuple(_stretches(one, begun)), len(one.talks))
        for one in sorted(event.ranks, key=lambda one: one.rank)
    )


def _stretches(one: RankTime, begun: Mapping[tuple[int, int], float]) -> Iterator[Stretch]:
    time = one.start
    for number, (what, start, end) in enumerate(one.talks):
        come = min(end, max(start, begun.get((one.rank, number), start)))
        for doing, first, last in (
            (Doing.COMPUTE, time, start),
            (Doing.WAIT, start, come),
            (DOING[what], come, end),
        ):
            if last > first:
                yield Stretch(doing, first, last)
        time = end
    if one.end > time:
        yield Stretch(Doing.COMPUTE, time, one.end)


Numbered = list[tuple[int, float]]
"""The number of a talk among those of a step, and when it began."""


def _partners_come(
    ranks: Mapping[int, RankTime], shapes: Mapping[int, RankShape]
) -> dict[tuple[int, int], float]:
    """`(rank, number of its talk)` → when the last of those who take part in it had come."""
    talks: dict[int, dict[str, Numbered]] = {rank: defaultdict(list) for rank in ranks}
    for rank, one in ranks.items():
        for number, (what, start, _) in enumerate(one.talks):
            talks[rank][what].append((number, start))
    found: dict[tuple[int, int], float] = {}

    def meet(sides: Iterable[tuple[int, str]]) -> None:
        """These take part in the same talks, the first in the first, …"""
        lists = [(rank, talks[rank][what]) for rank, what in sides]
        if len({len(own) for _, own in lists}) != 1 or any(ranks[rank].num_left_out for rank, _ in lists):
            return
        for together in zip(*(own for _, own in lists), strict=True):
            come = max(start for _, start in together)
            for (rank, _), (number, _) in zip(lists, together, strict=True):
                found[rank, number] = come

    by_place = {(shape.stage, shape.tensor): rank for rank, shape in shapes.items() if rank in ranks}
    stages: dict[int, list[int]] = defaultdict(list)
    for (stage, tensor), rank in by_place.items():
        stages[stage].append(rank)
        if (following := by_place.get((stage + 1, tensor))) is not None:
            meet([(rank, SEND), (following, RECEIVE)])
    for row in stages.values():
        meet([(rank, ALL_GATHER) for rank in row])
    last = [rank for rank in stages[max(stages)] if rank] if stages else []
    if 0 in ranks and len(last) == 1:  # of several, rank 0 takes one after the other
        meet([(0, RECEIVE_LOGITS), (last[0], SEND_LOGITS)])
    return found


def rank_shares(steps: Iterable[Sequence[RankStepTimes]]) -> list[RankShare]:
    """What each rank did from the beginning of the first of these steps to the end of the last."""
    by_rank: dict[int, list[RankStepTimes]] = defaultdict(list)
    for step in steps:
        for one in step:
            by_rank[one.rank].append(one)
    everything = [one for own in by_rank.values() for one in own]
    if not everything:
        return []
    whole = max(one.end for one in everything) - min(one.start for one in everything)
    shares = []
    for rank, own in sorted(by_rank.items()):
        seconds = {doing: sum(one.seconds(doing) for one in own) for doing in Doing}
        seconds[Doing.IDLE] = max(0.0, whole - sum(one.end - one.start for one in own))
        shares.append(RankShare(rank, seconds))
    return shares


def expected_bubble(num_stages: int, num_plans: int) -> float:
    """What each of p stages idles if m micro-batches go through them once: (p - 1) / (m + p - 1) (GPipe)."""
    return (num_stages - 1) / (num_plans + num_stages - 1)
