"""What a snapshot cannot say: blocks that are nowhere or in two places, sequences that belong to no request.

A snapshot is a single line from which replay makes a whole state (`snapshots.py`), so all that later events
would be held against is looked at here, once: every block is free, mapped or cached, and every request is in
one queue, with sequences of its own.

Read next: `contradictions.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from minivllm.trace.events import SnapshotTaken
from minivllm.trace.lines import words

if TYPE_CHECKING:
    from minivllm.trace.replay import ReplayState

Runs = Iterable[tuple[int, int]]
Tables = Mapping[int, Sequence[int]]


def of_snapshot(event: SnapshotTaken, state: ReplayState) -> str:
    """Why this snapshot cannot be; empty if it can. `state` is the state before it, which must be new."""
    if state.num_steps or state.members or state.finished or state.former:
        return "a snapshot comes after other events"
    cached = [item[0] for item in event.cached]
    if len(set(cached)) < len(cached):
        return "a block is cached twice"
    header = state.header
    return (
        _of_queues(event)
        or _of_sequences(event)
        or _of_pool(event.free, event.tables, cached, header.num_blocks, "block")
        or _of_pool(event.host_free, event.host_tables, (), header.num_host_blocks, "host block")
        or _of_owners(event, header.num_blocks)
    )


def _of_queues(event: SnapshotTaken) -> str:
    queued = [*event.waiting, *event.running]
    if len(set(queued)) < len(queued):
        return "a request is in a queue twice"
    if set(queued) != set(event.members) or set(queued) != set(event.first_sequences):
        return "the queues and the sequences are those of different requests"
    return ""


def _of_sequences(event: SnapshotTaken) -> str:
    request_of = {item.seq: item.request for item in event.sequences}
    known = request_of | {item.seq: item.request for item in event.former}
    if len(known) < len(event.sequences) + len(event.former):
        return "a sequence comes twice"
    members = [(seq, request) for request, seqs in event.members.items() for seq in seqs]
    if not all(event.members.values()):
        return "a request has no sequence"
    if len(members) != len(request_of) or dict(members) != request_of:
        return "the sequences of the requests are others than those that are told"
    for item in (*event.sequences, *event.former):
        if len(item.token_ids) < item.num_prompt_tokens:
            return f"sequence {item.seq} has fewer tokens than its prompt"
        if item.num_computed_tokens > len(item.token_ids):
            return f"sequence {item.seq} has computed more tokens than it has"
    for seq in (*event.tables, *event.host_tables):
        if seq not in request_of:
            return f"sequence {seq} is not known, or has finished"
    both = event.tables.keys() & event.host_tables.keys()
    return f"sequence {min(both)} has blocks in both pools" if both else ""


def _of_pool(free: Runs, tables: Tables, cached: Sequence[int], size: int, noun: str) -> str:
    """Every block is in one place: free, or mapped by tables, or cached (and perhaps mapped)."""
    free = tuple(free)
    if sum(length for _, length in free) > size or any(first + length > size for first, length in free):
        return f"a free {noun} is beyond the pool of {size}"
    is_free = [block for first, length in free for block in range(first, first + length)]
    held = set(cached)
    for seq, table in tables.items():
        if len(set(table)) < len(table):
            return f"sequence {seq} has a {noun} twice"
        held.update(table)
    if any(block >= size for block in held):
        return f"{noun} {max(held)} is beyond the pool of {size}"
    if both := held & set(is_free):
        return f"{noun} {min(both)} is free, and in use"
    if len(set(is_free)) < len(is_free):
        return f"a {noun} is free twice"
    missing = size - len(is_free) - len(held)
    return f"{missing:,} of {size:,} {noun}s are nowhere" if missing else ""


def _of_owners(event: SnapshotTaken, num_blocks: int) -> str:
    owners = {item.seq for item in (*event.sequences, *event.former)}
    for block, after, seq, _, _ in event.cached:
        if seq not in owners:
            return f"block {block} is cached for sequence {seq}, of which nothing is told"
        if after is not None and after >= num_blocks:
            return f"block {words(after)} is beyond the pool of {num_blocks}"
    return ""
