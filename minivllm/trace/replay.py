"""Replay: events go in, the engine's state comes out.

The trace is the truth (a rule of the house). All that the engine knew after a step, its free list, block
tables, queues, tokens, can be rebuilt from the events alone; a property test compares the two after every
step of random workloads. Every picture in the dashboard is drawn from this state and from nothing else. So
an event that replay does not know is refused, never ignored.

    ReplayState ── apply(event) ──► ReplayState          one event at a time, forward only
    Replay.state_at(step)                                any step, by the nearest keyframe before it

Read next: `blocks.py`, the part of the state that is about blocks; `viz/figures/`, which draws it.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from minivllm.trace.blocks import BlockBooks
from minivllm.trace.contradictions import contradiction
from minivllm.trace.events import (
    AnyEvent,
    BatchPlanned,
    BeamsAdvanced,
    BlocksShared,
    DraftsVerified,
    HostBlocksFreed,
    RanksTimed,
    RebuiltRequest,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    SnapshotSequence,
    SnapshotTaken,
    StateRebuilt,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensAllowed,
    TokensSampled,
    TraceEnded,
    TraceHeader,
)
from minivllm.trace.reader import Trace, TraceError


@dataclass(frozen=True)
class EngineSnapshot:
    """The control plane's whole state between two steps, in comparable form."""

    num_steps: int
    free_list: tuple[int, ...]
    ref_counts: tuple[int, ...]
    tables: dict[int, tuple[int, ...]]
    waiting: tuple[str, ...]
    running: tuple[str, ...]
    token_ids: dict[int, tuple[int, ...]]
    num_computed_tokens: dict[int, int]
    host_free_list: tuple[int, ...] = ()
    host_ref_counts: tuple[int, ...] = ()
    host_tables: dict[int, tuple[int, ...]] = field(default_factory=dict)
    cached: dict[int, int | None] = field(default_factory=dict)
    """Block that the prefix cache remembers → the one before it."""
    beam_scores: dict[int, float] = field(default_factory=dict)


@dataclass
class SequenceState:
    """One sequence as the trace tells it: its request, its tokens, and how many of them are computed."""

    seq: int
    request: str
    prompt: str | None
    num_prompt_tokens: int
    max_tokens: int
    queued_time: float
    token_ids: list[int]
    prompt_pieces: tuple[str, ...] = ()
    output_pieces: list[str] = field(default_factory=list)
    """What each output token added to the text."""
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    first_token_time: float | None = None
    finished_time: float | None = None
    finish_reason: str | None = None
    parent: int | None = None
    """The sequence that it was forked from."""
    num_cached_tokens: int = 0
    """Tokens that it did not have to compute, because the prefix cache or a sibling had them."""
    beam_score: float | None = None
    """Sum of log-probabilities, if it is a beam."""
    structure: str = ""
    """What its output must be, as it was asked for; or empty."""

    @property
    def text(self) -> str:
        """The output so far."""
        return "".join(self.output_pieces)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_prefilling(self) -> bool:
        """Is it computing tokens that it has had for a while, rather than only its newest one?"""
        return self.num_computed_tokens < len(self.token_ids) - 1 or not self.num_output_tokens


@dataclass
class ReplayState:
    """The engine's state after the events applied so far."""

    header: TraceHeader
    num_steps: int = 0
    step: int = -1
    time: float = 0.0
    blocks: BlockBooks = None  # type: ignore[assignment]  # made from the header
    """Both pools, all tables, and what is cached."""
    waiting: list[str] = field(default_factory=list)
    """In order of arrival; which of them is admitted first is the scheduling policy's business."""
    running: list[str] = field(default_factory=list)
    sequences: dict[int, SequenceState] = field(default_factory=dict)
    """Unfinished sequences; a finished one moves to `finished`."""
    finished: dict[int, SequenceState] = field(default_factory=dict)
    former: dict[int, SequenceState] = field(default_factory=dict)
    """Those that had finished before the trace began, and whose tokens the prefix cache holds."""
    members: dict[str, list[int]] = field(default_factory=dict)
    """Unfinished sequences of each request."""
    first_sequences: dict[str, int] = field(default_factory=dict)
    """The sequence that each unfinished request began with."""
    num_refused: int = 0
    num_rebuilds: int = 0
    batch: tuple[tuple[int, int, int], ...] = ()
    """`(seq, start, num_tokens)` of the latest step."""
    drafts: dict[int, int] = field(default_factory=dict)
    """Of these sequences, the last so many tokens of the batch are drafts; those that were accepted are not
    counted any more, once they were verified."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of the latest step, by part."""

    def __post_init__(self) -> None:
        if self.blocks is None:
            self.blocks = BlockBooks.of_sizes(self.header.num_blocks, self.header.num_host_blocks)

    @property
    def tables(self) -> dict[int, list[int]]:
        """Block table of each sequence that holds device blocks."""
        return self.blocks.tables

    @property
    def ref_counts(self) -> list[int]:
        """Of each device block: the number of tables that map it."""
        return self.blocks.device.ref_counts

    @property
    def free(self) -> dict[int, None]:
        """Free device blocks, in the order in which they will be allocated."""
        return self.blocks.device.free

    @property
    def num_used_blocks(self) -> int:
        """Device blocks that a table maps."""
        return self.header.num_blocks - len(self.free) - self.blocks.num_evictable

    def apply(
        self,
        event: AnyEvent,
        before: Callable[[AnyEvent, ReplayState], None] | None = None,
        *,
        is_known_to_fit: bool = False,
    ) -> None:
        """Let one event happen.

        Args:
            before: is told of the event, with this state, once the event is known to fit it.
            is_known_to_fit: it was applied to this very state before, so it need not be looked at again.

        Raises:
            TraceError: it contradicts what came before, and how, or it is not an event of `AnyEvent`.
        """
        if not is_known_to_fit and (problem := contradiction(event, self)):
            raise TraceError(f"{type(event).__name__}: {problem}")
        if before is not None:
            before(event, self)
        self._change(event)

    def _change(self, event: AnyEvent) -> None:
        """What an event that fits makes of the state."""
        match event:
            case StepStarted():
                self.step, self.time, self.batch, self.drafts = event.step, event.time, (), {}
            case RequestQueued():
                self._queue(event)
            case RequestRefused():
                self.num_refused += 1
            case RequestScheduled():
                self.waiting.remove(event.request)
                self.running.append(event.request)
            case RequestPreempted():
                self._preempt(event)
            case SequenceForked():
                self._fork(event)
                self.blocks.apply(event)
            case BatchPlanned():
                self.batch, self.drafts = event.items, dict(event.drafts)
            case DraftsVerified():
                rejected = {item.seq: len(item.token_ids) - item.num_accepted for item in event.items}
                self.drafts = self.drafts | rejected
            case TokensSampled():
                self._append_tokens(event)
            case BeamsAdvanced():
                self._score_beams(event)
            case SequenceFinished():
                self._finish(event)
            case StepFinished():
                self._complete_step(event)
            case BlocksShared():
                sequence = self.sequences[event.seq]
                sequence.num_computed_tokens += len(event.blocks) * self.header.block_size
                sequence.num_cached_tokens += len(event.blocks) * self.header.block_size
                self.blocks.apply(event)
            case HostBlocksFreed():
                self.sequences[event.seq].num_computed_tokens = 0
                self.blocks.apply(event)
            case StateRebuilt():
                self._rebuild(event)
                self.blocks.apply(event)
            case SnapshotTaken():
                self._restore(event)
                self.blocks.apply(event)
            case StepAbandoned() | TraceEnded() | TokensAllowed() | RanksTimed():
                pass  # events before them told what changed, or the one after it does
            case _:
                self.blocks.apply(event)  # only blocks change; what it does not know either, it refuses

    def snapshot(self) -> EngineSnapshot:
        """The state in the form in which the engine gives its own."""
        return EngineSnapshot(
            num_steps=self.num_steps,
            free_list=tuple(self.free),
            ref_counts=tuple(self.ref_counts),
            tables={seq: tuple(blocks) for seq, blocks in self.tables.items()},
            host_free_list=tuple(self.blocks.host.free),
            host_ref_counts=tuple(self.blocks.host.ref_counts),
            host_tables={seq: tuple(blocks) for seq, blocks in self.blocks.host_tables.items()},
            cached={block: entry.after for block, entry in self.blocks.cached.items()},
            beam_scores={
                seq: state.beam_score for seq, state in self.sequences.items() if state.beam_score is not None
            },
            waiting=tuple(self.waiting),
            running=tuple(self.running),
            token_ids={seq: tuple(state.token_ids) for seq, state in self.sequences.items()},
            num_computed_tokens={seq: state.num_computed_tokens for seq, state in self.sequences.items()},
        )

    def _queue(self, event: RequestQueued) -> None:
        self.waiting.append(event.request)
        self.members.setdefault(event.request, []).append(event.seq)
        self.first_sequences[event.request] = event.seq
        self.sequences[event.seq] = SequenceState(
            seq=event.seq,
            request=event.request,
            prompt=event.prompt,
            num_prompt_tokens=len(event.prompt_token_ids),
            max_tokens=event.max_tokens,
            queued_time=event.time,
            token_ids=list(event.prompt_token_ids),
            prompt_pieces=event.prompt_pieces,
            structure=event.structure,
        )

    def _arrival(self, request: str) -> int:
        """Its place in the order of arrival: the number of its first sequence."""
        return self.first_sequences[request]

    def _preempt(self, event: RequestPreempted) -> None:
        self.running.remove(event.request)
        bisect.insort(self.waiting, event.request, key=self._arrival)
        for seq in self.members[event.request]:
            sequence = self.sequences[seq]
            sequence.num_preemptions += 1
            if event.mode == "recompute":
                sequence.num_computed_tokens = 0

    def _fork(self, event: SequenceForked) -> None:
        parent = self.sequences[event.parent]
        child = copy.copy(parent)
        child.seq, child.parent = event.child, event.parent
        child.token_ids, child.output_pieces = list(parent.token_ids), list(parent.output_pieces)
        for seq, start, count in self.batch:  # it forks because this step has computed it to its end
            if seq == event.parent:
                child.num_computed_tokens = start + count
        self.sequences[event.child] = child
        self.members[event.request].append(event.child)

    def _append_tokens(self, event: TokensSampled) -> None:
        for seq, token_id, text in event.items:
            sequence = self.sequences[seq]
            sequence.token_ids.append(token_id)
            sequence.output_pieces.append(text)

    def _score_beams(self, event: BeamsAdvanced) -> None:
        if not event.kept:  # the search is over
            for seq in self.members[event.request]:
                self.sequences[seq].beam_score = None
        for _, seq, _, score, _ in event.kept:
            self.sequences[seq].beam_score = score

    def _finish(self, event: SequenceFinished) -> None:
        sequence = self.sequences.pop(event.seq)
        sequence.finish_reason, sequence.finished_time = event.reason, event.time
        self.finished[event.seq] = sequence
        siblings = self.members[sequence.request]
        siblings.remove(event.seq)
        if not siblings:
            del self.members[sequence.request], self.first_sequences[sequence.request]
            queue = self.running if sequence.request in self.running else self.waiting
            queue.remove(sequence.request)

    def _complete_step(self, event: StepFinished) -> None:
        self.num_steps, self.time, self.seconds = event.step + 1, event.time, event.seconds
        for seq, start, count in self.batch:
            if sequence := self.sequences.get(seq) or self.finished.get(seq):
                sequence.num_computed_tokens = start + count - self.drafts.get(seq, 0)
                if sequence.first_token_time is None and sequence.num_output_tokens:
                    sequence.first_token_time = event.time

    def _rebuild(self, event: StateRebuilt) -> None:
        """Start again from what the event names; what it does not name is gone."""
        self.time, self.num_steps, self.batch = event.time, event.num_steps, ()
        self.num_rebuilds += 1
        gone, self.sequences = self.sequences, {}
        self.members, self.first_sequences = {}, {}
        self.waiting, self.running = [request.request for request in event.requests], []
        for request in event.requests:
            self.members[request.request] = [item.seq for item in request.sequences]
            self.first_sequences[request.request] = request.first_seq
            first = gone.get(request.first_seq) or self.finished.get(request.first_seq)
            for item in request.sequences:
                known = gone.pop(item.seq, None) or self.finished.pop(item.seq, None)
                sequence = copy.copy(known) if known else _lost_sequence(request, item.seq, first)
                sequence.finish_reason = sequence.finished_time = None
                sequence.token_ids, sequence.beam_score = list(item.token_ids), item.beam_score
                sequence.output_pieces = sequence.output_pieces[: sequence.num_output_tokens]
                sequence.num_computed_tokens = 0
                self.sequences[item.seq] = sequence
        for seq, sequence in gone.items():
            sequence.finish_reason, sequence.finished_time = "abort", event.time
            self.finished[seq] = sequence

    def _restore(self, event: SnapshotTaken) -> None:
        """Begin in the middle of a run."""
        self.time, self.num_steps, self.batch = event.time, event.num_steps, ()
        self.waiting, self.running = list(event.waiting), list(event.running)
        self.members = {request: list(seqs) for request, seqs in event.members.items()}
        self.first_sequences = dict(event.first_sequences)
        self.sequences = {item.seq: _sequence_of(item) for item in event.sequences}
        self.former = {item.seq: _sequence_of(item) for item in event.former}


def _sequence_of(item: SnapshotSequence) -> SequenceState:
    fields = msgspec.structs.asdict(item)
    lists = {name: list(fields[name]) for name in ("token_ids", "output_pieces")}
    return SequenceState(**fields | lists)


def _lost_sequence(request: RebuiltRequest, seq: int, first: SequenceState | None) -> SequenceState:
    """A sequence of which no event told: the interrupt came before its `RequestQueued` or `SequenceForked`.

    The text of its tokens is lost with that event. `first` is the sequence that its request began with.
    """
    return SequenceState(
        seq=seq,
        request=request.request,
        prompt=first.prompt if first else None,
        num_prompt_tokens=request.num_prompt_tokens,
        max_tokens=request.max_tokens,
        queued_time=first.queued_time if first else request.time,
        token_ids=[],
        prompt_pieces=first.prompt_pieces if first else (),
    )


def replay_step(
    trace: Trace,
    step: int,
    state: ReplayState,
    before: Callable[[AnyEvent, ReplayState], None] | None = None,
    *,
    is_known_to_fit: bool = False,
) -> None:
    """Let a step's events happen to the state before it.

    Args:
        before, is_known_to_fit: as for `ReplayState.apply`.

    Raises:
        TraceError: an event contradicts what came before; with its place in the file.
    """
    for index, event in enumerate(trace.step_events(step), trace.starts[step]):
        try:
            state.apply(event, before, is_known_to_fit=is_known_to_fit)
        except TraceError as error:
            raise TraceError(
                f"{trace.place(index)}, contradicts what came before ({error}): the file was changed after "
                f"it was recorded, or the recorder has a fault"
            ) from error


class Replay:
    """Any step of a trace, quickly: a copy of the state every `KEYFRAME` steps, and the events between.

    Of a large pool there are fewer copies, so that all of them together hold at most `MOST_COPIED` blocks.
    """

    KEYFRAME = 64
    MOST_COPIED = 2**24

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        num_blocks = trace.header.num_blocks + trace.header.num_host_blocks
        self._every = max(self.KEYFRAME, -(-trace.num_steps * num_blocks // self.MOST_COPIED))
        self._keyframes = [ReplayState(trace.header)]
        for step, state in self.walk():
            if (step + 1) % self._every == 0:
                self._keyframes.append(copy_state(state))

    def walk(self) -> Iterator[tuple[int, ReplayState]]:
        """Every step with the state after it. It is one state that changes: copy what you keep."""
        state = ReplayState(self.trace.header)
        for step in range(self.trace.num_steps):
            self._advance(state, step)
            yield step, state

    def state_at(self, step: int) -> ReplayState:
        """The state after `step`; the caller may keep it."""
        nearest = (step + 1) // self._every
        state = copy_state(self._keyframes[nearest])
        for index in range(nearest * self._every, step + 1):
            self._advance(state, index)
        return state

    def _advance(self, state: ReplayState, step: int) -> None:
        replay_step(self.trace, step, state)


def copy_state(state: ReplayState) -> ReplayState:
    """A copy that shares only what never changes again: the header and the finished sequences."""
    duplicate = copy.copy(state)
    duplicate.blocks = state.blocks.copy()
    duplicate.waiting, duplicate.running = list(state.waiting), list(state.running)
    duplicate.members = {request: list(seqs) for request, seqs in state.members.items()}
    duplicate.first_sequences = dict(state.first_sequences)
    duplicate.finished, duplicate.former = dict(state.finished), dict(state.former)
    duplicate.sequences = {}
    for seq, sequence in state.sequences.items():
        duplicate.sequences[seq] = copy.copy(sequence)
        duplicate.sequences[seq].token_ids = list(sequence.token_ids)
        duplicate.sequences[seq].output_pieces = list(sequence.output_pieces)
    return duplicate
