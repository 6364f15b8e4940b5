"""More captions: forks, copies, beams, the prefix cache and the swap space, in words.

Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minivllm.trace.timeline import StepRecord
from viz.figures.common import Name, listing, plural, signed

Requests = Mapping[int, str]
"""Sequence → its request."""
MOST_TOLD = 3
"""Of each kind of event in one step; further ones are counted."""


def _hits(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    words = []
    for event in record.shared:
        tag, count = names[requests[event.seq]].tag, len(event.blocks)
        tokens = plural(count * block_size, "token")
        if event.source == "cache":
            words.append(
                f"{tag} has a prefix hit of {tokens}: {plural(count, 'block')} need not be computed."
            )
        else:
            words.append(f"A sequence of {tag} shares {plural(count, 'block')} with its sibling.")
    return _told(words)


def _forks(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    forks: dict[str, int] = {}
    for event in record.forked:
        forks[event.request] = forks.get(event.request, 0) + 1
    words = []
    for request, count in forks.items():
        times = "once" if count == 1 else "twice" if count == 2 else f"{count} times"
        verb = "shares" if count == 1 else "share"
        words.append(f"{names[request].tag} forks {times}: the new {_sequences(count)} {verb} every block.")
    return _told(words)


def _sequences(count: int) -> str:
    return "sequence" if count == 1 else "sequences"


def _copies(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    return _told(
        [
            f"Copy-on-write: {names[requests[event.seq]].tag} is about to write to block {event.source}, "
            f"which is shared, and gets a copy in block {event.target}."
            for event in record.copied
        ],
        "copies",
    )


def _beams(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    words = []
    for event in record.beams:
        tag = names[event.request].tag
        parts = []
        if event.kept:
            parents = len({parent for parent, *_ in event.kept})
            best = max(score for _, _, _, score, _ in event.kept)
            parts.append(
                f"keeps {plural(len(event.kept), 'beam')} from {plural(parents, 'parent')}, "
                f"the best with a score of {signed(best)}"
            )
        if event.finished:
            best = max(score for _, _, score, _ in event.finished)
            count = len(event.finished)
            noun = "hypothesis" if count == 1 else "hypotheses"
            parts.append(f"finishes {count} {noun}, the best with a score of {signed(best)} by length")
        if not parts:
            parts.append("fails, because no token could be chosen")
        words.append(f"{tag}'s search {listing(parts)}{'' if event.kept else ', and is over'}.")
    return _told(words)


def _pruned(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    pruned: dict[str, int] = {}
    for sequence in record.finished:
        if sequence.finish_reason == "pruned":
            pruned[sequence.request] = pruned.get(sequence.request, 0) + 1
    return _told(
        [
            f"{plural(count, 'beam')} of {names[request].tag} without a descendant {_is(count)} pruned."
            for request, count in pruned.items()
        ]
    )


def _merged(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    return _told(
        [
            f"Block {event.block} holds the same as block {event.twin}, so "
            f"{names[requests[event.seq]].tag} maps that one now."
            for event in record.merged
        ]
    )


def _cached(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    count = sum(len(event.blocks) for event in record.cached)
    if not count:
        return ""
    return f"{plural(count, 'full block')} {_is(count)} cached."


def _evicted(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    counts = {"capacity": 0, "reset": 0}
    for event in record.evicted:
        if event.reason in counts:  # the evictions of a failed step are told with it
            counts[event.reason] += len(event.blocks)
    words = []
    if count := counts["capacity"]:
        words.append(f"{plural(count, 'cached block')} {_is(count)} evicted to make room.")
    if count := counts["reset"]:
        words.append(f"The prefix cache is reset: {plural(count, 'cached block')} {_is(count)} removed.")
    return " ".join(words)


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _swapped(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    out: dict[str, set[int]] = {}
    for event in record.swapped_out:
        out.setdefault(requests[event.seq], set()).update(event.host_blocks)
    back: dict[str, set[int]] = {}
    for event_in in record.swapped_in:
        back.setdefault(requests[event_in.seq], set()).update(event_in.host_blocks)
    words = [
        f"{plural(len(hosts), 'block')} of {names[request].tag} {_is(len(hosts))} swapped out."
        for request, hosts in out.items()
    ]
    words += [
        f"{plural(len(hosts), 'block')} of {names[request].tag} {_is(len(hosts))} swapped in."
        for request, hosts in back.items()
    ]
    return _told(words)


def _failed(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    if not record.abandoned:
        return ""
    again = listing(sorted({names[event.request].tag for event in record.preempted}))
    times = "A first attempt" if len(record.abandoned) == 1 else f"{len(record.abandoned)} attempts"
    words = f"{times} at this step failed ({record.abandoned[-1].error[:120]})"
    return f"{words}; {again} will be computed again from the start." if again else f"{words}."


def _told(words: list[str], noun: str = "events of this kind") -> str:
    if len(words) > MOST_TOLD:
        more = len(words) - MOST_TOLD
        words = [*words[:MOST_TOLD], f"And {more} more {noun}."]
    return " ".join(words)


# In the order in which they are told. Each returns "" if it has nothing to say.
SHARING_SENTENCES: tuple[Callable[[StepRecord, Mapping[str, Name], Requests, int], str], ...] = (
    _failed,
    _swapped,
    _hits,
    _evicted,
    _copies,
    _forks,
    _beams,
    _pruned,
    _merged,
    _cached,
)
