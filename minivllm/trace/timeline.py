"""The timeline: a trace goes in, one record per step comes out, and one row of spans per request.

    walk(trace)        StepRecord + ReplayState, step by step; one pass, nothing kept
    make_timeline()    all records, and for each request its spans:

        A  waiting──prefill────decode──────────────────┤
        B           waiting──prefill──decode─preempted──prefill──decode──┤

Read next: `step_record.py` and `spans.py`, its two parts; `summary.py` and `perfetto.py`, the two smallest
users of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minivllm.trace.reader import Trace
from minivllm.trace.replay import ReplayState, SequenceState, replay_step
from minivllm.trace.spans import Span, SpanBuilder
from minivllm.trace.step_record import BatchItem, Phase, StepRecord

__all__ = ["BatchItem", "Phase", "Span", "StepRecord", "Timeline", "make_timeline", "walk", "walk_again"]


@dataclass(frozen=True)
class Timeline:
    """All records of a trace, each request's spans, and every sequence as it was in the end.

    Attributes:
        spans: request → its spans, in order; requests in order of arrival.
        sequences: sequence id → its last state; in order of arrival, forks in order of their birth.
    """

    trace: Trace
    records: list[StepRecord]
    spans: dict[str, list[Span]]
    sequences: dict[int, SequenceState]

    @property
    def num_steps(self) -> int:
        return len(self.records)


def make_timeline(trace: Trace, see: Callable[[StepRecord, ReplayState], None] | None = None) -> Timeline:
    """Walk a trace once and keep what there is to say about it. Raises what `walk` raises.

    `see` is shown every step on the way: who needs more than the timeline need not walk again.
    """
    records: list[StepRecord] = []
    spans = SpanBuilder()
    state = ReplayState(trace.header)
    for record, state in walk(trace):
        records.append(record)
        spans.add(record, state)
        if see:
            see(record, state)
    sequences = dict(sorted((state.finished | state.sequences).items()))
    return Timeline(trace, records, spans.close(len(records) - 1), sequences)


def walk(trace: Trace) -> Iterator[tuple[StepRecord, ReplayState]]:
    """Every step's record, with the state after it. It is one state that changes: copy what you keep.

    Raises:
        TraceError: the events contradict each other (a block taken twice, an unknown sequence), and where.
    """
    state = ReplayState(trace.header)
    for step in range(trace.num_steps):
        record = StepRecord(step, start=state.time)
        replay_step(trace, step, state, record.note)
        record.close(state)
        yield record, state


def walk_again(timeline: Timeline) -> Iterator[tuple[StepRecord, ReplayState]]:
    """The same with the records that were made before: only the state is told anew.

    The first walk has seen that the events fit each other.
    """
    state = ReplayState(timeline.trace.header)
    for record in timeline.records:
        replay_step(timeline.trace, record.step, state, is_known_to_fit=True)
        yield record, state
