"""The timeline: a trace goes in, one record per step comes out, and one row of spans per request.

Replay (`replay.py`) knows what *is* after each step. A reader also asks what *happened* in it: who came, who
left, which blocks changed hands, was that a prefill or a decode? That is noted here once, while the events
go by, and the summary, the Perfetto export and every figure of the dashboard use the same notes.

    walk(trace)        StepRecord + ReplayState, step by step; one pass, nothing kept
    make_timeline()    all records, and for each request its spans:

        A  waiting──prefill────decode──────────────────┤
        B           waiting──prefill──decode─preempted──prefill──decode──┤

There are no phases in the engine: a sequence only catches up with its tokens. "Decode" is the reader's word
for computing nothing but the newest token, "prefill" for everything else. A request that samples several
outputs or searches has several sequences; its spans are those of the request, of all of them together.

Read next: `summary.py` and `perfetto.py`, the two smallest users of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from minivllm.trace.events import (
    AnyEvent,
    BatchPlanned,
    BeamsAdvanced,
    BlockCopied,
    BlockMerged,
    BlocksAllocated,
    BlocksCached,
    BlocksEvicted,
    BlocksFreed,
    BlocksShared,
    BlocksSwappedIn,
    BlocksSwappedOut,
    HostBlocksFreed,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    StepAbandoned,
    StepStarted,
    TokensSampled,
)
from minivllm.trace.reader import Trace, TraceError
from minivllm.trace.replay import ReplayState, SequenceState


class Phase(StrEnum):
    """What a request does during one step."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    HELD = "held"
    """In the batch and keeping its blocks, but no token of it is computed in this step."""
    PREEMPTED = "preempted"
    """Out of the batch; its tokens will be computed again."""
    SWAPPED = "swapped"
    """Out of the batch; its blocks are in the swap space."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One sequence's share of a step."""

    seq: int
    request: str
    start: int
    num_tokens: int
    phase: Phase


@dataclass(slots=True)
class StepRecord:
    """What happened in one step, and the few numbers that describe the state after it."""

    step: int
    start: float = 0.0
    end: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    batch: tuple[BatchItem, ...] = ()
    num_padding_tokens: int = 0
    queued: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """`(request, reason)`."""
    scheduled: list[str] = field(default_factory=list)
    preempted: list[RequestPreempted] = field(default_factory=list)
    sampled: tuple[tuple[int, int, str], ...] = ()
    """`(seq, token_id, text)` of every new token."""
    finished: list[SequenceState] = field(default_factory=list)
    """Sequences that ended, beams that were pruned among them."""
    ended: list[str] = field(default_factory=list)
    """Requests whose last sequence ended."""
    ended_before: set[str] = field(default_factory=set)
    """Those of them that were aborted before the step began, and took no part in it."""
    forked: list[SequenceForked] = field(default_factory=list)
    beams: list[BeamsAdvanced] = field(default_factory=list)
    abandoned: list[StepAbandoned] = field(default_factory=list)
    """Attempts at this step that failed before one went through."""

    # Blocks, by what happened to them. The events are kept as they are: they say who and where.
    taken: dict[int, int] = field(default_factory=dict)
    """Physical block → the sequence that took it from the free list."""
    returned: dict[int, int] = field(default_factory=dict)
    """Physical block that is free since its last reader let it go → that sequence."""
    shared: list[BlocksShared] = field(default_factory=list)
    copied: list[BlockCopied] = field(default_factory=list)
    cached: list[BlocksCached] = field(default_factory=list)
    merged: list[BlockMerged] = field(default_factory=list)
    evicted: list[BlocksEvicted] = field(default_factory=list)
    swapped_out: list[BlocksSwappedOut] = field(default_factory=list)
    swapped_in: list[BlocksSwappedIn] = field(default_factory=list)
    touched_seqs: set[int] = field(default_factory=set)
    """Sequences whose block table changed, in either pool."""

    num_waiting: int = 0
    num_running: int = 0
    num_tables: int = 0
    """Sequences that hold device blocks."""
    num_used_blocks: int = 0
    num_idle_blocks: int = 0
    """Cached blocks that no table maps."""
    num_host_blocks: int = 0
    """Blocks of the swap space in use."""
    num_saved_blocks: int = 0
    """Blocks that would be needed on top if nothing were shared: table entries without used blocks."""
    num_filled_slots: int = 0
    """Slots of used blocks that hold a token's keys and values; the other slots of used blocks are waste.
    A slot counts once, however many sequences share it."""
    has_started: bool = False

    def num_tokens(self, phase: Phase) -> int:
        """Tokens that this step computed in one phase."""
        return sum(item.num_tokens for item in self.batch if item.phase is phase)

    def note(self, event: AnyEvent, state: ReplayState) -> None:
        """Take down one event. `state` is what was true just before it."""
        match event:
            case StepStarted():
                self.start, self.has_started = event.time, True
            case RequestQueued():
                self.queued.append(event.request)
            case RequestRefused():
                self.refused.append((event.request, event.reason))
            case RequestScheduled():
                self.scheduled.append(event.request)
            case RequestPreempted():
                self.preempted.append(event)
            case BatchPlanned():
                self.num_padding_tokens = event.num_padding_tokens
                self.batch = tuple(_batch_item(state, *item) for item in event.items)
            case TokensSampled():
                self.sampled = event.items
            case BeamsAdvanced():
                self.beams.append(event)
            case SequenceFinished():
                sequence = state.sequences[event.seq]
                self.finished.append(sequence)
                if state.members[sequence.request] == [event.seq]:
                    self.ended.append(sequence.request)
                    if not self.has_started:
                        self.ended_before.add(sequence.request)
            case StepAbandoned():
                self.abandoned.append(event)
                self.batch = ()
            case _:
                self._note_blocks(event, state)

    def _note_blocks(self, event: AnyEvent, state: ReplayState) -> None:
        """The events that move blocks."""
        match event:
            case BlocksAllocated():
                self.taken.update(dict.fromkeys(event.blocks, event.seq))
            case BlocksFreed():
                self._note_returned(event.blocks, event.seq, state)
            case BlocksShared():
                self.shared.append(event)
            case BlockCopied():
                self.copied.append(event)
                self.taken[event.target] = event.seq
            case BlocksCached():
                self.cached.append(event)
            case BlockMerged():
                self.merged.append(event)
                self._note_returned((event.block,), event.seq, state)
            case BlocksEvicted():
                self.evicted.append(event)
            case BlocksSwappedOut():
                self.swapped_out.append(event)
                self._note_returned(event.blocks, event.seq, state)
            case BlocksSwappedIn():
                self.swapped_in.append(event)
                fresh = [block for block in event.blocks if not state.ref_counts[block]]
                self.taken.update(dict.fromkeys(fresh, event.seq))
            case SequenceForked():
                self.forked.append(event)
                self.touched_seqs.add(event.child)
            case HostBlocksFreed():
                pass
            case _:
                return
        if (seq := getattr(event, "seq", None)) is not None:
            self.touched_seqs.add(seq)

    def _note_returned(self, blocks: Iterable[int], seq: int, state: ReplayState) -> None:
        """Of the blocks that lose a reference, those that lose their last one and are free then."""
        for block in blocks:
            if state.ref_counts[block] == 1 and block not in state.blocks.cached:
                self.returned[block] = seq

    def close(self, state: ReplayState) -> None:
        """The step is over: note where it left things. Costs O(sequences that hold blocks)."""
        self.end, self.seconds = max(state.time, self.start), state.seconds
        self.num_waiting, self.num_running = len(state.waiting), len(state.running)
        self.num_tables = len(state.tables)
        self.num_used_blocks = state.num_used_blocks
        self.num_idle_blocks = state.blocks.num_idle
        self.num_host_blocks = state.header.num_host_blocks - len(state.blocks.host.free)
        self.num_saved_blocks = sum(map(len, state.tables.values())) - self.num_used_blocks
        self.num_filled_slots = _filled_slots(state)


def _filled_slots(state: ReplayState) -> int:
    """Slots that hold a token, over used blocks; of a shared block, as many as its furthest reader filled.

    All blocks are full but those at the end of a table, so only those are looked at.
    """
    size = state.header.block_size
    partly: dict[int, tuple[int, int]] = {}  # block → readers that have not filled it, most slots they have
    for seq, table in state.tables.items():
        computed = state.sequences[seq].num_computed_tokens
        for index in range(computed // size, len(table)):
            readers, most = partly.get(table[index], (0, 0))
            partly[table[index]] = (readers + 1, max(most, computed - index * size))
    missing = sum(
        size - max(most, 0) for block, (readers, most) in partly.items() if readers == state.ref_counts[block]
    )
    return state.num_used_blocks * size - missing


def _batch_item(state: ReplayState, seq: int, start: int, num_tokens: int) -> BatchItem:
    sequence = state.sequences[seq]
    newest_only = num_tokens == 1 and start == len(sequence.token_ids) - 1
    phase = Phase.DECODE if newest_only and sequence.num_output_tokens else Phase.PREFILL
    return BatchItem(seq, sequence.request, start, num_tokens, phase)


def walk(trace: Trace) -> Iterator[tuple[StepRecord, ReplayState]]:
    """Every step's record, with the state after it. It is one state that changes: copy what you keep.

    Raises:
        TraceError: the events contradict each other (a block taken twice, an unknown sequence).
    """
    state = ReplayState(trace.header)
    for step in range(trace.num_steps):
        record = StepRecord(step, start=state.time)
        try:
            for event in trace.step_events(step):
                record.note(event, state)
                state.apply(event)
            record.close(state)
        except (KeyError, IndexError, ValueError, AssertionError) as error:
            raise TraceError(
                f"step {step} of the trace contradicts what came before ({type(error).__name__}: {error}); "
                f"the file was changed after it was recorded, or the recorder has a fault"
            ) from error
        yield record, state


@dataclass(slots=True)
class Span:
    """A request was in one phase from step `first` to step `last`, both included."""

    phase: Phase
    first: int
    last: int


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


def make_timeline(trace: Trace) -> Timeline:
    """Walk a trace once and keep what there is to say about it. Raises what `walk` raises."""
    records: list[StepRecord] = []
    spans = _SpanKeeper()
    state = ReplayState(trace.header)
    for record, state in walk(trace):
        records.append(record)
        spans.add(record, state)
    sequences = dict(sorted((state.finished | state.sequences).items()))
    return Timeline(trace, records, spans.close(len(records) - 1), sequences)


class _SpanKeeper:
    """Turns records into spans by looking only at requests whose phase may have changed.

    The waiting queue can be long, so those who merely go on waiting must cost nothing.
    """

    def __init__(self) -> None:
        self._done: dict[str, list[Span]] = {}
        self._open: dict[str, Span] = {}

    def add(self, record: StepRecord, state: ReplayState) -> None:
        step = record.step
        for request in record.queued:
            self._done.setdefault(request, [])
            self._open[request] = Span(Phase.WAITING, step, step)
        for event in record.preempted:
            swapped = event.mode == "swap"
            self._change(event.request, Phase.SWAPPED if swapped else Phase.PREEMPTED, step)
        in_batch: dict[str, Phase] = {}
        for item in record.batch:
            # Of the sequences of one request some may still catch up while others could go on.
            if in_batch.get(item.request) is not Phase.PREFILL:
                in_batch[item.request] = item.phase
        for request, phase in in_batch.items():
            self._change(request, phase, step)
        for request in state.running:
            if request not in in_batch:
                self._change(request, Phase.HELD, step)
        for request in record.ended:
            if request in record.ended_before:
                self._close(request, step - 1)
                continue
            if request not in in_batch:  # it computed nothing, and is let go when the step is over
                self._change(request, Phase.HELD, step)
            self._close(request, step)

    def close(self, last_step: int) -> dict[str, list[Span]]:
        """Requests that are still there when the trace ends were there until its last step."""
        for request in tuple(self._open):
            self._close(request, last_step)
        return self._done

    def _change(self, request: str, phase: Phase, step: int) -> None:
        span = self._open.get(request)
        if span is None or span.phase is not phase:
            if span is not None:
                self._close(request, step - 1)
            done = self._done[request]
            # A failed attempt at this step may have interrupted a phase that goes on in the next attempt.
            goes_on = done and done[-1].phase is phase and done[-1].last == step - 1
            self._open[request] = done.pop() if goes_on else Span(phase, step, step)

    def _close(self, request: str, last: int) -> None:
        span = self._open.pop(request, None)
        if span is not None and span.first <= last:
            span.last = last
            self._done[request].append(span)
