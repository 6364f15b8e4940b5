"""What cannot be: events that contradict those before them, each in a sentence.

Types and ranges are those of `events.py`, and a reader checks them line by line. Here is what a single line
cannot show: a block that is taken twice, a sequence of which no event has told, a step that goes back. Replay
asks before every event, so whatever stands on its state (summary, Perfetto, every picture) stands on events
that fit each other.

    event + state before it ──► contradiction(event, state) ──► "" or "block 7 is not free"

It looks at what the event names and at nothing else, so that replaying costs as much as what happened.

Read next: `replay.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

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
)
from minivllm.trace.lines import words
from minivllm.trace.rank_spans import TALKS
from minivllm.trace.reader import refuse_event
from minivllm.trace.snapshot_contradictions import of_snapshot

MOST_REBUILT_BLOCKS = 2**28
"""In all, of a trace: a line of sixty bytes makes replay free a pool, which may have millions of blocks."""

if TYPE_CHECKING:
    from minivllm.trace.replay import ReplayState


def contradiction(event: AnyEvent, state: ReplayState) -> str:
    """Why this event cannot come now; empty if it can. `state` is the state before it."""
    match event:  # the most frequent first
        case TokensSampled():
            return _unknown([item[0] for item in event.items], state)
        case TokensAllowed():
            return _unknown([item.seq for item in event.items], state)
        case BatchPlanned():
            return _of_batch(event, state)
        case DraftsVerified():
            return _of_drafts(event, state)
        case StepStarted() | StepFinished():
            is_next = event.step == state.num_steps
            return "" if is_next else f"step {event.step} comes when {state.num_steps} is the next to finish"
        case RequestQueued():
            if event.request in state.members:
                return f"request {words(event.request, 40)} is not finished, and comes again"
            return _known(event.seq, state)
        case RequestScheduled():
            return (
                "" if event.request in state.waiting else f"request {words(event.request, 40)} waits nowhere"
            )
        case RequestPreempted():
            is_running = event.request in state.running
            return "" if is_running else f"request {words(event.request, 40)} is not in the batch"
        case SequenceFinished():
            has_blocks = event.seq in state.tables or event.seq in state.blocks.host_tables
            return f"sequence {event.seq} still has blocks" if has_blocks else _unknown([event.seq], state)
        case BeamsAdvanced():
            return _of_beams(event, state)
        case StateRebuilt():
            return _of_rebuilt(event, state)
        case SnapshotTaken():
            return of_snapshot(event, state)
        case RequestRefused() | StepAbandoned() | TraceEnded():
            return ""
        case RanksTimed():
            return of_ranks(event, state.num_steps)
        case BlocksEvicted():
            return _of_evicted(event, state)
        case SequenceForked():
            return _unknown([event.parent], state) or _of_fork(event, state)
        case BlocksSwappedOut() | BlocksSwappedIn() | HostBlocksFreed():
            return _unknown([event.seq], state) or _of_swap(event, state)
        case (
            BlocksAllocated()
            | BlocksShared()
            | BlockCopied()
            | BlockMerged()
            | BlocksCached()
            | BlocksFreed()
            | BlocksTruncated()
        ):
            return _unknown([event.seq], state) or _of_table(event, state)
        case _:
            refuse_event(event)


def of_ranks(event: RanksTimed, num_steps: int) -> str:
    """Why these times of ranks cannot be, after so many steps were finished."""
    if event.step >= num_steps:
        return f"step {event.step} is timed by ranks before it is over"
    for one in event.ranks:
        time = one.start
        for what, start, end in one.talks:
            if what not in TALKS:
                return f"a rank does {words(what, 40)!r}, and there are only {', '.join(TALKS)}"
            if not time <= start <= end <= one.end:
                return f"the talks of rank {one.rank} do not follow each other within its step"
            time = end
        if one.end < one.start:
            return f"rank {one.rank} ends before it begins"
    return _repeated([one.rank for one in event.ranks], "rank")


def _of_table(
    event: BlocksAllocated
    | BlocksShared
    | BlockCopied
    | BlockMerged
    | BlocksCached
    | BlocksFreed
    | BlocksTruncated,
    state: ReplayState,
) -> str:
    """The events that change the table of a known sequence, or cache its blocks."""
    tables = state.tables
    match event:
        case BlocksAllocated():
            return _not_free(event.blocks, state)
        case BlocksShared():
            table = tables.get(event.seq, [])
            return _unfilled(event.blocks, state) or _repeated([*table, *event.blocks])
        case BlockCopied():
            return _not_at(event.seq, event.index, event.source, state) or _not_free([event.target], state)
        case BlockMerged():
            if event.twin in tables.get(event.seq, []):
                return f"sequence {event.seq} has block {event.twin} twice"
            return _not_at(event.seq, event.index, event.block, state) or _unfilled([event.twin], state)
        case BlocksCached():
            part = tables.get(event.seq, [])[event.first : event.first + len(event.blocks)]
            return _unlike(part, event.blocks, event.seq)
        case BlocksFreed():
            held = tables.get(event.seq)  # a paged table is freed from its end, a strip from its beginning
            return _unlike(held and sorted(held), sorted(event.blocks), event.seq)

        case BlocksTruncated():
            if not event.blocks:
                return f"the table of sequence {event.seq} is cut, and loses nothing"
            return _unlike(tables.get(event.seq, [])[-len(event.blocks) :], event.blocks[::-1], event.seq)


def _of_swap(event: BlocksSwappedOut | BlocksSwappedIn | HostBlocksFreed, state: ReplayState) -> str:
    """The events that move the table of a known sequence between the pools."""
    tables, host_tables = state.tables, state.blocks.host_tables
    match event:
        case BlocksSwappedOut():
            if event.seq in host_tables:
                return f"sequence {event.seq} is swapped out, and comes again"
            size = len(state.blocks.host.ref_counts)
            return (
                _unlike(tables.get(event.seq), event.blocks[::-1], event.seq)
                or _unpaired(event.blocks, event.host_blocks)
                or _outside(event.host_blocks, size)
            )
        case BlocksSwappedIn():
            if event.seq in tables:
                return f"sequence {event.seq} has blocks, and more are swapped in"
            return (
                _unlike(host_tables.get(event.seq), event.host_blocks, event.seq)
                or _unpaired(event.blocks, event.host_blocks)
                or _outside(event.blocks, state.header.num_blocks)
                or _repeated(event.blocks)
            )
        case HostBlocksFreed():
            table = host_tables.get(event.seq)  # in whichever order
            return _unlike(table and sorted(table), sorted(event.host_blocks), event.seq)


def _of_fork(event: SequenceForked, state: ReplayState) -> str:
    if state.sequences[event.parent].request != event.request:
        return f"sequence {event.parent} is not of request {words(event.request, 40)}"
    return _known(event.child, state)


def _of_batch(event: BatchPlanned, state: ReplayState) -> str:
    drafts = dict(event.drafts)
    # A plan made ahead counts on a token that was pending; its sequence may have ended without it.
    pending = 1 if event.is_ahead else 0
    for seq, start, count in event.items:
        count -= drafts.pop(seq, 0)
        sequence = state.sequences.get(seq)
        if sequence is None:
            return _unknown([seq], state)
        if count < 0:
            return f"of sequence {seq} more drafts are computed than tokens"
        if start + count > len(sequence.token_ids) + pending:
            most = len(sequence.token_ids)
            return f"of sequence {seq}, which has {most} tokens, {start} + {count} are computed"
    if drafts:
        return f"sequence {next(iter(drafts))} has drafts, and is not in the batch"
    return _repeated([item[0] for item in event.items], "sequence")


def _of_drafts(event: DraftsVerified, state: ReplayState) -> str:
    for item in event.items:
        planned = state.drafts.get(item.seq, 0)
        if len(item.token_ids) != planned:
            return f"of sequence {item.seq}, {planned} drafts were planned, and {len(item.token_ids)} come"
        if item.num_accepted > planned:
            return f"of {planned} drafts of sequence {item.seq}, {item.num_accepted} are accepted"
    return _unknown([item.seq for item in event.items], state) or _repeated(
        [item.seq for item in event.items], "sequence"
    )


def _of_beams(event: BeamsAdvanced, state: ReplayState) -> str:
    members = state.members.get(event.request)
    if members is None:
        return f"request {words(event.request, 40)} is not known"
    parents = [beam[0] for part in (event.kept, event.finished, event.rejected) for beam in part]
    for parent in parents:
        sequence = state.sequences.get(parent) or state.finished.get(parent)
        if sequence is None or sequence.request != event.request:
            return f"beam {parent} is not of request {words(event.request, 40)}"
    strange = next((seq for _, seq, _, _, _ in event.kept if seq not in members), None)
    if strange is not None:
        return f"beam {strange} is not of request {words(event.request, 40)}"
    return _repeated([seq for _, seq, _, _, _ in event.kept], "beam")


def _of_evicted(event: BlocksEvicted, state: ReplayState) -> str:
    for block in event.blocks:
        if block not in state.blocks.cached or state.ref_counts[block]:
            return f"block {block} is not evictable"
    return _repeated(event.blocks)


def _of_rebuilt(event: StateRebuilt, state: ReplayState) -> str:
    if state.num_rebuilds * state.header.num_blocks > MOST_REBUILT_BLOCKS:
        return f"the state is rebuilt again, after {state.num_rebuilds:,} times"
    seqs = [sequence.seq for request in event.requests for sequence in request.sequences]
    names = [request.request for request in event.requests]
    for request in event.requests:
        if not request.sequences:
            return f"request {words(request.request, 40)} has no sequence"
        if any(len(it.token_ids) < request.num_prompt_tokens for it in request.sequences):
            return f"request {words(request.request, 40)} has fewer tokens than its prompt"
    if len(set(names)) < len(names):
        return "a request comes twice"
    return _repeated(seqs, "sequence")


def _unknown(seqs: Iterable[int], state: ReplayState) -> str:
    for seq in seqs:
        if seq not in state.sequences:
            return f"sequence {seq} is not known, or has finished"
    return ""


def _known(seq: int, state: ReplayState) -> str:
    is_known = seq in state.sequences or seq in state.finished or seq in state.former
    return f"sequence {seq} is not new" if is_known else ""


def _repeated(numbers: Sequence[int], noun: str = "block") -> str:
    return f"a {noun} comes twice" if len(set(numbers)) < len(numbers) else ""


def _outside(blocks: Iterable[int], size: int) -> str:
    for block in blocks:
        if block >= size:
            return f"block {block} is beyond the pool of {size}"
    return ""


def _not_free(blocks: Sequence[int], state: ReplayState) -> str:
    for block in blocks:
        if block not in state.free:
            return f"block {block} is not free"
    return _repeated(blocks)


def _unfilled(blocks: Iterable[int], state: ReplayState) -> str:
    """Blocks that hold nothing, so no table can continue in them."""
    if problem := _outside(blocks, state.header.num_blocks):
        return problem
    for block in blocks:
        if not state.ref_counts[block] and block not in state.blocks.cached:
            return f"block {block} holds nothing that could be shared"
    return ""


def _not_at(seq: int, index: int, block: int, state: ReplayState) -> str:
    if state.tables.get(seq, [])[index : index + 1] != [block]:
        return f"block {block} is not at place {index} in the table of sequence {seq}"
    return ""


def _unlike(table: Sequence[int] | None, blocks: Sequence[int], seq: int) -> str:
    return (
        "" if table is not None and list(table) == list(blocks) else f"the table of sequence {seq} is another"
    )


def _unpaired(blocks: Sequence[int], host_blocks: Sequence[int]) -> str:
    return "" if len(blocks) == len(host_blocks) else "the two lists of blocks are not of one length"
