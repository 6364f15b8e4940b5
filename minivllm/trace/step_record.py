"""The record of one step: what happened in it, noted while its events go by.

Replay (`replay.py`) knows what *is* after each step. A reader also asks what *happened* in it: which requests
arrived, were admitted, preempted or finished, which blocks were allocated and freed, was that a prefill or a
decode? Each event is noted here once, and the summary, the Perfetto export and every figure of the dashboard
use the same notes.

There are no phases in the engine: a sequence only catches up with its tokens. "Decode" is the reader's word
for computing nothing but the newest token (and drafts behind it), "prefill" for everything else.

Read next: `timeline.py`, which makes one of these for every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from minivllm.trace.events import (
    AllowedTokens,
    AnyEvent,
    BatchPlanned,
    BeamsAdvanced,
    BlockCopied,
    BlockEvent,
    BlockMerged,
    BlocksAllocated,
    BlocksCached,
    BlocksEvicted,
    BlocksFreed,
    BlocksShared,
    BlocksSwappedIn,
    BlocksSwappedOut,
    BlocksTruncated,
    DraftsVerified,
    HostBlocksFreed,
    RanksTimed,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    SnapshotTaken,
    StateRebuilt,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensAllowed,
    TokensSampled,
    TraceEnded,
    VerifiedDrafts,
)
from minivllm.trace.reader import refuse_event
from minivllm.trace.replay import ReplayState, SequenceState


class Phase(StrEnum):
    """What a request does during one step."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    PARKED = "parked"
    """In the batch, with its batch slots and blocks, but no token of it is computed in this step."""
    PREEMPTED = "preempted"
    """Out of the batch; its tokens will be computed again."""
    SWAPPED = "swapped"
    """Out of the batch; its blocks are in the swap space."""


class BatchItem(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step.

    A long run has a hundred thousand of them: such a struct is made fast, and the garbage collector passes it
    by, as no cycle leads through it.
    """

    seq: int
    request: str
    start: int
    num_tokens: int
    phase: Phase
    num_generated: int = 0
    """Of the tokens, those behind its prompt: with a second copy of the weights, they are computed by it."""


@dataclass(slots=True)
class StepRecord:
    """What happened in one step, and the few numbers that describe the state after it."""

    step: int
    start: float = 0.0
    end: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    batch: tuple[BatchItem, ...] = ()
    num_padding_tokens: int = 0
    is_ahead: bool = False
    """It was planned while an earlier step was computed: that time is not within its own."""
    queued: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """`(request, reason)`."""
    scheduled: list[str] = field(default_factory=list)
    preempted: list[RequestPreempted] = field(default_factory=list)
    sampled: tuple[tuple[int, int, str], ...] = ()
    """`(seq, token_id, text)` of every new token."""
    allowed: list[AllowedTokens] = field(default_factory=list)
    """What new tokens were chosen from, of sequences with a structure."""
    drafts: list[VerifiedDrafts] = field(default_factory=list)
    """Guesses at the next tokens, and how many of them were right."""
    finished: list[SequenceState] = field(default_factory=list)
    """Sequences that ended, beams that were pruned among them."""
    ended: list[str] = field(default_factory=list)
    """Requests whose last sequence ended."""
    ended_before: set[str] = field(default_factory=set)
    """The part of `ended` that was aborted before the step began, or while it waited."""
    forked: list[SequenceForked] = field(default_factory=list)
    beams: list[BeamsAdvanced] = field(default_factory=list)
    abandoned: list[StepAbandoned] = field(default_factory=list)
    """Attempts at this step that failed before one succeeded."""
    rebuilt: list[StateRebuilt] = field(default_factory=list)
    """Interrupts before or in this step, after each of which all requests wait and all blocks are free."""
    snapshot: SnapshotTaken | None = None
    """With it the trace begins, in the middle of a run."""

    # Blocks, by what happened to them. The events are kept as they are: they say which sequence, and where.
    taken: dict[int, int] = field(default_factory=dict)
    """Physical block → the sequence that took it from the free list."""
    returned: dict[int, int] = field(default_factory=dict)
    """Physical block that became free → the last sequence whose table mapped it, or that had filled it."""
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
    num_evictable_blocks: int = 0
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
        """Note one event. `state` is the state just before it.

        Raises:
            TraceError: it is not an event of `AnyEvent`.
        """
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
                self.num_padding_tokens, self.is_ahead = event.num_padding_tokens, event.is_ahead
                drafts = dict(event.drafts)
                self.batch = tuple(_batch_item(state, *item, drafts.get(item[0], 0)) for item in event.items)
            case DraftsVerified():
                self.drafts += event.items
            case TokensSampled():
                self.sampled += event.items  # two such events, if an interrupt undid the step's end
            case TokensAllowed():
                self.allowed += event.items
            case BeamsAdvanced():
                self.beams.append(event)
            case SequenceFinished():
                self._note_finished([event.seq], state)
            case StepAbandoned():
                self.abandoned.append(event)
                self.batch = ()
            case StepFinished() | TraceEnded() | RanksTimed():
                pass  # `close` takes their numbers from the state; of ranks, `rank_times.py` tells
            case _:
                self._note_blocks(event, state)

    def _note_blocks(self, event: BlockEvent, state: ReplayState) -> None:
        """The events that move blocks."""
        match event:
            case BlocksAllocated():
                self.taken.update(dict.fromkeys(event.blocks, event.seq))
            case BlocksFreed() | BlocksTruncated():
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
                return
            case BlocksSwappedOut():
                self.swapped_out.append(event)
                self._note_returned(event.blocks, event.seq, state)
            case BlocksSwappedIn():
                self.swapped_in.append(event)
                fresh = [block for block in event.blocks if not state.ref_counts[block]]
                self.taken.update(dict.fromkeys(fresh, event.seq))
            case SequenceForked():
                self.forked.append(event)
            case HostBlocksFreed():
                pass
            case StateRebuilt():
                self._note_rebuilt(event, state)
                return
            case SnapshotTaken():
                self.snapshot, self.start = event, event.time
                self.touched_seqs.update(event.tables, event.host_tables)
                return
            case _:
                refuse_event(event)
        self.touched_seqs.add(event.child if isinstance(event, SequenceForked) else event.seq)

    def _note_finished(self, seqs: Iterable[int], state: ReplayState) -> None:
        """Sequences end, and with its last sequence each of their requests."""
        gone: dict[str, set[int]] = {}
        for seq in seqs:
            sequence = state.sequences[seq]
            self.finished.append(sequence)
            gone.setdefault(sequence.request, set()).add(seq)
        for request, ended in gone.items():
            if ended == set(state.members[request]):
                self.ended.append(request)
                if not self.has_started:
                    self.ended_before.add(request)

    def _note_rebuilt(self, event: StateRebuilt, state: ReplayState) -> None:
        """All requests wait again and all blocks are free, as if the step had not begun."""
        self.rebuilt.append(event)
        self.batch, self.num_padding_tokens = (), 0
        self.queued += [it.request for it in event.requests if it.request not in state.members]
        named = {item.seq for request in event.requests for item in request.sequences}
        self._note_finished([seq for seq in state.sequences if seq not in named], state)
        self.ended_before.update(set(self.ended) & set(state.waiting))
        self.returned.update({block: entry.seq for block, entry in state.blocks.cached.items()})
        for seq, table in state.tables.items():
            self.returned.update(dict.fromkeys(table, seq))
        self.touched_seqs.update(state.tables, state.blocks.host_tables)

    def _note_returned(self, blocks: Iterable[int], seq: int, state: ReplayState) -> None:
        """Of the blocks that lose a reference, those that lose their last one and are free then."""
        for block in blocks:
            if state.ref_counts[block] == 1 and block not in state.blocks.cached:
                self.returned[block] = seq

    def close(self, state: ReplayState) -> None:
        """The step is over: note the numbers of the state after it. Costs O(sequences that hold blocks)."""
        self.end, self.seconds = max(state.time, self.start), state.seconds
        self.num_waiting, self.num_running = len(state.waiting), len(state.running)
        self.num_tables = len(state.tables)
        self.num_used_blocks = state.num_used_blocks
        self.num_evictable_blocks = state.blocks.num_evictable
        self.num_host_blocks = state.header.num_host_blocks - len(state.blocks.host.free)
        self.num_saved_blocks = sum(map(len, state.tables.values())) - self.num_used_blocks
        self.num_filled_slots = _filled_slots(state)


def _filled_slots(state: ReplayState) -> int:
    """Slots that hold a token, over used blocks; of a shared block, the most that one of its readers filled.

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


def _batch_item(state: ReplayState, seq: int, start: int, num_tokens: int, num_drafts: int) -> BatchItem:
    sequence = state.sequences[seq]
    length, num_prompt_tokens = len(sequence.token_ids), sequence.num_prompt_tokens
    newest_only = num_tokens - num_drafts == 1 and start == length - 1
    phase = Phase.DECODE if newest_only and length > num_prompt_tokens else Phase.PREFILL
    generated = max(0, start + num_tokens - max(start, num_prompt_tokens))
    return BatchItem(seq, sequence.request, start, num_tokens, phase, generated)
