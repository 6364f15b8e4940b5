"""Spans: for each request, the stretches of steps that it spent in one phase.

    A  waiting──prefill────decode──────────────────┤
    B           waiting──prefill──decode─preempted──prefill──decode──┤

A request that samples several outputs or searches has several sequences; its spans are those of the request,
of all of them together.

Read next: `timeline.py`, which gives every step's record to the builder below.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.trace.events import SnapshotTaken
from minivllm.trace.replay import ReplayState
from minivllm.trace.step_record import Phase, StepRecord


@dataclass(slots=True)
class Span:
    """A request was in one phase from step `first` to step `last`, both included."""

    phase: Phase
    first: int
    last: int


class SpanBuilder:
    """Turns records into spans by looking only at requests whose phase may have changed.

    The waiting queue can be long, so requests that only continue to wait must cost nothing.
    """

    def __init__(self) -> None:
        self._done: dict[str, list[Span]] = {}
        self._open: dict[str, Span] = {}

    def add(self, record: StepRecord, state: ReplayState) -> None:
        """Note the phases of one step; `state` is the state after it."""
        step = record.step
        if record.snapshot:
            self._begin(record.snapshot, step)
        for request in record.queued:
            self._done.setdefault(request, [])
            self._open[request] = Span(Phase.WAITING, step, step)
        for event in record.preempted:
            swapped = event.mode == "swap"
            self._change(event.request, Phase.SWAPPED if swapped else Phase.PREEMPTED, step)
        for request in (item.request for event in record.rebuilt for item in event.requests):
            if request in self._open and self._open[request].phase is not Phase.WAITING:
                self._change(request, Phase.PREEMPTED, step)
        in_batch: dict[str, Phase] = {}
        for item in record.batch:
            # Of the sequences of one request some may still catch up while others have done so.
            if in_batch.get(item.request) is not Phase.PREFILL:
                in_batch[item.request] = item.phase
        for request, phase in in_batch.items():
            self._change(request, phase, step)
        for request in state.running:
            if request not in in_batch:
                self._change(request, Phase.PARKED, step)
        for request in record.ended:
            if request in record.ended_before:
                self._close(request, step - 1)
                continue
            if request not in in_batch:  # it computed nothing, and finished with the rest of its batch
                self._change(request, Phase.PARKED, step)
            self._close(request, step)

    def _begin(self, snapshot: SnapshotTaken, step: int) -> None:
        """What older requests were doing; of those in the batch, what they compute tells it."""
        sequences = {item.seq: item for item in snapshot.sequences}
        for request in sorted(snapshot.members, key=snapshot.first_sequences.__getitem__):
            self._done[request] = []
            if request in snapshot.running:
                continue
            seqs = snapshot.members[request]
            phase = Phase.WAITING
            if any(sequences[seq].num_preemptions for seq in seqs):
                is_swapped = any(seq in snapshot.host_tables for seq in seqs)
                phase = Phase.SWAPPED if is_swapped else Phase.PREEMPTED
            self._open[request] = Span(phase, step, step)

    def close(self, last_step: int) -> dict[str, list[Span]]:
        """All spans. A request that is unfinished when the trace ends was there until its last step."""
        for request in tuple(self._open):
            self._close(request, last_step)
        return self._done

    def _change(self, request: str, phase: Phase, step: int) -> None:
        span = self._open.get(request)
        if span is None or span.phase is not phase:
            if span is not None:
                self._close(request, step - 1)
            done = self._done[request]
            # A failed attempt at this step may have interrupted a phase that the next attempt continues.
            continues = done and done[-1].phase is phase and done[-1].last == step - 1
            self._open[request] = done.pop() if continues else Span(phase, step, step)

    def _close(self, request: str, last: int) -> None:
        span = self._open.pop(request, None)
        if span is not None and span.first <= last:
            span.last = last
            self._done[request].append(span)
