"""Snapshots: a trace that begins in the middle of a run, and a replay that may go on for months.

A server runs for months, and its events are too many to be kept. A reader that comes later needs the state as
it is, and then what happens:

    ReplayState ── take_snapshot ──► SnapshotTaken ── apply ──► a ReplayState that goes on alike

The snapshot is taken of a state that was replayed, so whatever replay knows, it knows. A state that follows a
run without end forgets the sequences that finished, except those whose tokens the prefix cache still holds:
a picture of the cache shows them.

Read next: `minivllm/server/live.py`, which begins a live stream with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from minivllm.trace.events import SnapshotSequence, SnapshotTaken
from minivllm.trace.replay import ReplayState, SequenceState


def take_snapshot(state: ReplayState) -> SnapshotTaken:
    """All that is, as the first event of a trace. The state must stand between two steps."""
    blocks = state.blocks
    return SnapshotTaken(
        time=state.time,
        num_steps=state.num_steps,
        waiting=tuple(state.waiting),
        running=tuple(state.running),
        members={request: tuple(seqs) for request, seqs in state.members.items()},
        first_sequences=dict(state.first_sequences),
        sequences=tuple(map(_in_snapshot, state.sequences.values())),
        former=tuple(_in_snapshot(sequence) for sequence in cache_owners(state)),
        free=tuple(_runs(blocks.device.free)),
        tables={seq: tuple(table) for seq, table in blocks.tables.items()},
        cached=tuple(
            (block, entry.after, entry.seq, entry.index, entry.salt) for block, entry in blocks.cached.items()
        ),
        host_free=tuple(_runs(blocks.host.free)),
        host_tables={seq: tuple(table) for seq, table in blocks.host_tables.items()},
    )


def forget_finished(state: ReplayState, *, keep: int = 0) -> None:
    """Forget sequences that have finished, except the latest `keep`, and those that the cache holds.

    To be called between two steps.
    """
    former = {sequence.seq: sequence for sequence in cache_owners(state)}
    latest = dict(islice(reversed(state.finished.items()), keep))
    state.finished = dict(reversed(latest.items()))
    state.former = {seq: sequence for seq, sequence in former.items() if seq not in latest}


def older_requests(snapshot: SnapshotTaken) -> tuple[set[tuple[str, float]], set[tuple[str, float]]]:
    """Requests, each with its arrival, of which a trace cannot tell all: scheduled before it, or with tokens.

    How long the first kind waited, and when the second kind got its first token, is not in the trace.
    """
    scheduled, with_tokens = set(), set()
    for item in snapshot.sequences:
        request = (item.request, item.queued_time)
        if item.request in snapshot.running or item.num_preemptions:
            scheduled.add(request)
        if len(item.token_ids) > item.num_prompt_tokens:
            with_tokens.add(request)
    return scheduled, with_tokens


def cache_owners(state: ReplayState) -> Iterator[SequenceState]:
    """Finished sequences whose tokens the prefix cache holds."""
    for seq in dict.fromkeys(entry.seq for entry in state.blocks.cached.values()):
        if seq not in state.sequences:
            yield state.finished.get(seq) or state.former[seq]


def _in_snapshot(sequence: SequenceState) -> SnapshotSequence:
    values: dict[str, Any] = {name: getattr(sequence, name) for name in SnapshotSequence.__struct_fields__}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return SnapshotSequence(**values | lists)


def _runs(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """A free list as runs of rising numbers: that of an idle pool is one of them."""
    first = length = -1
    for block in blocks:
        if length > 0 and block == first + length:
            length += 1
            continue
        if length > 0:
            yield first, length
        first, length = block, 1
    if length > 0:
        yield first, length
