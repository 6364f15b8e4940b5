"""Replay: events go in, the engine's state comes out.

The trace is the truth (house rule 4). Whatever the engine knew after a step, its free list, block tables,
queues, tokens, can be rebuilt from the events alone; a property test compares the two after every step of
random workloads. Every picture in the dashboard is drawn from this state and from nothing else.

    ReplayState ── apply(event) ──► ReplayState          one event at a time, forward only
    Replay.state_at(step)                                any step, by the nearest keyframe before it

Read next: `viz/figures/`, which draws it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

from minivllm.trace.events import (
    AnyEvent,
    BatchPlanned,
    BlocksAllocated,
    BlocksFreed,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)
from minivllm.trace.reader import Trace


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


@dataclass
class SequenceState:
    """One sequence as the trace tells it: what it is, how far it is, what it has written."""

    seq: int
    request: str
    prompt: str | None
    num_prompt_tokens: int
    max_tokens: int
    queued_time: float
    token_ids: list[int]
    prompt_pieces: tuple[str, ...] = ()
    text: str = ""
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    first_token_time: float | None = None
    finished_time: float | None = None
    finish_reason: str | None = None

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
    # Ordered: blocks are taken from the front and come back at the end, as in the block pool.
    free: dict[int, None] = field(default_factory=dict)
    ref_counts: list[int] = field(default_factory=list)
    tables: dict[int, list[int]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    sequences: dict[int, SequenceState] = field(default_factory=dict)
    """Live sequences; a finished one moves to `finished`."""
    finished: dict[int, SequenceState] = field(default_factory=dict)
    members: dict[str, list[int]] = field(default_factory=dict)
    """Live sequences of each request."""
    num_refused: int = 0
    batch: tuple[tuple[int, int, int], ...] = ()
    """`(seq, start, num_tokens)` of the latest step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of the latest step, by part."""

    def __post_init__(self) -> None:
        if not self.ref_counts:
            self.free = dict.fromkeys(range(self.header.num_blocks))
            self.ref_counts = [0] * self.header.num_blocks

    @property
    def num_used_blocks(self) -> int:
        return self.header.num_blocks - len(self.free)

    def apply(self, event: AnyEvent) -> None:
        """Let one event happen."""
        match event:
            case StepStarted():
                self.step, self.time, self.batch = event.step, event.time, ()
            case RequestQueued():
                self._queue(event)
            case RequestRefused():
                self.num_refused += 1
            case RequestScheduled():
                self.waiting.remove(event.request)
                self.running.append(event.request)
            case RequestPreempted():
                self.running.remove(event.request)
                self.waiting.insert(0, event.request)
                for seq in self.members[event.request]:
                    self.sequences[seq].num_computed_tokens = 0
                    self.sequences[seq].num_preemptions += 1
            case BlocksAllocated():
                self.tables.setdefault(event.seq, []).extend(event.blocks)
                for block in event.blocks:
                    del self.free[block]
                    self.ref_counts[block] = 1
            case BlocksFreed():
                self._free_blocks(event)
            case BatchPlanned():
                self.batch = event.items
            case TokensSampled():
                self._append_tokens(event)
            case SequenceFinished():
                self._finish(event)
            case StepFinished():
                self._complete_step(event)

    def snapshot(self) -> EngineSnapshot:
        """The state in the form in which the engine gives its own."""
        return EngineSnapshot(
            num_steps=self.num_steps,
            free_list=tuple(self.free),
            ref_counts=tuple(self.ref_counts),
            tables={seq: tuple(blocks) for seq, blocks in self.tables.items()},
            waiting=tuple(self.waiting),
            running=tuple(self.running),
            token_ids={seq: tuple(state.token_ids) for seq, state in self.sequences.items()},
            num_computed_tokens={seq: state.num_computed_tokens for seq, state in self.sequences.items()},
        )

    def _queue(self, event: RequestQueued) -> None:
        self.waiting.append(event.request)
        self.members.setdefault(event.request, []).append(event.seq)
        self.sequences[event.seq] = SequenceState(
            seq=event.seq,
            request=event.request,
            prompt=event.prompt,
            num_prompt_tokens=len(event.prompt_token_ids),
            max_tokens=event.max_tokens,
            queued_time=event.time,
            token_ids=list(event.prompt_token_ids),
            prompt_pieces=event.prompt_pieces,
        )

    def _free_blocks(self, event: BlocksFreed) -> None:
        del self.tables[event.seq]
        for block in event.blocks:
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self.free[block] = None

    def _append_tokens(self, event: TokensSampled) -> None:
        for seq, token_id, text in event.items:
            self.sequences[seq].token_ids.append(token_id)
            self.sequences[seq].text += text

    def _finish(self, event: SequenceFinished) -> None:
        sequence = self.sequences.pop(event.seq)
        sequence.finish_reason, sequence.finished_time = event.reason, event.time
        self.finished[event.seq] = sequence
        siblings = self.members[sequence.request]
        siblings.remove(event.seq)
        if not siblings:
            del self.members[sequence.request]
            queue = self.running if sequence.request in self.running else self.waiting
            queue.remove(sequence.request)

    def _complete_step(self, event: StepFinished) -> None:
        self.num_steps, self.time, self.seconds = event.step + 1, event.time, event.seconds
        for seq, start, count in self.batch:
            if sequence := self.sequences.get(seq) or self.finished.get(seq):
                sequence.num_computed_tokens = start + count
                if sequence.num_output_tokens and sequence.first_token_time is None:
                    sequence.first_token_time = event.time


class Replay:
    """Any step of a trace, quickly: a copy of the state every `KEYFRAME` steps, and the events between."""

    KEYFRAME = 64

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._keyframes = [ReplayState(trace.header)]
        for step, state in self.walk():
            if (step + 1) % self.KEYFRAME == 0:
                self._keyframes.append(_copy(state))

    def walk(self) -> Iterator[tuple[int, ReplayState]]:
        """Every step with the state after it. It is one state that changes: copy what you keep."""
        state = ReplayState(self.trace.header)
        for step in range(self.trace.num_steps):
            self._advance(state, step)
            yield step, state

    def state_at(self, step: int) -> ReplayState:
        """The state after `step`; the caller may keep it."""
        nearest = (step + 1) // self.KEYFRAME
        state = _copy(self._keyframes[nearest])
        for index in range(nearest * self.KEYFRAME, step + 1):
            self._advance(state, index)
        return state

    def _advance(self, state: ReplayState, step: int) -> None:
        for event in self.trace.step_events(step):
            state.apply(event)


def _copy(state: ReplayState) -> ReplayState:
    """A copy that shares only what never changes again: the header and the finished sequences."""
    duplicate = copy.copy(state)
    duplicate.free = dict(state.free)
    duplicate.ref_counts = list(state.ref_counts)
    duplicate.tables = {seq: list(blocks) for seq, blocks in state.tables.items()}
    duplicate.waiting, duplicate.running = list(state.waiting), list(state.running)
    duplicate.members = {request: list(seqs) for request, seqs in state.members.items()}
    duplicate.finished = dict(state.finished)
    duplicate.sequences = {}
    for seq, sequence in state.sequences.items():
        duplicate.sequences[seq] = copy.copy(sequence)
        duplicate.sequences[seq].token_ids = list(sequence.token_ids)
    return duplicate
