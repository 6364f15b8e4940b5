"""More captions: forks, copies, beams, the prefix cache and the swap space, in words.

Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minivllm.trace.timeline import StepRecord
from viz.figures.common import Name, listing, plural, signed
from viz.language import _, counted, sentences

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
                _("{tag} has a prefix hit of {tokens}: {blocks} need not be computed.").format(
                    tag=tag, tokens=tokens, blocks=plural(count, "block")
                )
            )
        else:
            words.append(
                _("A sequence of {tag} shares {blocks} with its sibling.").format(
                    tag=tag, blocks=plural(count, "block")
                )
            )
    return _told(words)


def _forks(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    forks: dict[str, int] = {}
    for event in record.forked:
        forks[event.request] = forks.get(event.request, 0) + 1
    words = []
    for request, count in forks.items():
        told = counted(
            "{tag} forks once: the new sequence shares every block.",
            "{tag} forks {count} times: the new sequences share every block.",
            count,
            tag=names[request].tag,
        )
        words.append(told)
    return _told(words)


def _copies(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    return _told(
        [
            _(
                "Copy-on-write: {tag} is about to write to block {source}, which is shared, and gets a "
                "copy in block {target}."
            ).format(tag=names[requests[event.seq]].tag, source=event.source, target=event.target)
            for event in record.copied
        ]
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
                _("keeps {beams} from {parents}, the best with a score of {best}").format(
                    beams=plural(len(event.kept), "beam"),
                    parents=plural(parents, "parent"),
                    best=signed(best),
                )
            )
        if event.finished:
            best = max(score for _, _, score, _ in event.finished)
            parts.append(
                counted(
                    "finishes {count} hypothesis, the best with a score of {best} by length",
                    "finishes {count} hypotheses, the best with a score of {best} by length",
                    len(event.finished),
                    best=signed(best),
                )
            )
        if not parts:
            parts.append(_("fails, because no token could be chosen"))
        told = _("{tag}'s search {parts}.") if event.kept else _("{tag}'s search {parts}, and is over.")
        words.append(told.format(tag=tag, parts=listing(parts)))
    return _told(words)


def _pruned(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    pruned: dict[str, int] = {}
    for sequence in record.finished:
        if sequence.finish_reason == "pruned":
            pruned[sequence.request] = pruned.get(sequence.request, 0) + 1
    return _told(
        [
            counted(
                "{count} beam of {tag} without a descendant is pruned.",
                "{count} beams of {tag} without a descendant are pruned.",
                count,
                tag=names[request].tag,
            )
            for request, count in pruned.items()
        ]
    )


def _merged(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    return _told(
        [
            _("Block {block} holds the same as block {twin}, so {tag} maps that one now.").format(
                block=event.block, twin=event.twin, tag=names[requests[event.seq]].tag
            )
            for event in record.merged
        ]
    )


def _cached(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    count = sum(len(event.blocks) for event in record.cached)
    if not count:
        return ""
    return counted("{count} full block is cached.", "{count} full blocks are cached.", count)


def _evicted(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    counts = {"capacity": 0, "reset": 0}
    for event in record.evicted:
        if event.reason in counts:  # the evictions of a failed step are told with it
            counts[event.reason] += len(event.blocks)
    words = []
    if count := counts["capacity"]:
        words.append(
            counted(
                "{count} cached block is evicted to make room.",
                "{count} cached blocks are evicted to make room.",
                count,
            )
        )
    if count := counts["reset"]:
        words.append(
            counted(
                "The prefix cache is reset: {count} cached block is removed.",
                "The prefix cache is reset: {count} cached blocks are removed.",
                count,
            )
        )
    return sentences(words)


def _swapped(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    out: dict[str, set[int]] = {}
    for event in record.swapped_out:
        out.setdefault(requests[event.seq], set()).update(event.host_blocks)
    back: dict[str, set[int]] = {}
    for event_in in record.swapped_in:
        back.setdefault(requests[event_in.seq], set()).update(event_in.host_blocks)
    words = [
        counted(
            "{count} block of {tag} is swapped out.",
            "{count} blocks of {tag} are swapped out.",
            len(hosts),
            tag=names[request].tag,
        )
        for request, hosts in out.items()
    ]
    words += [
        counted(
            "{count} block of {tag} is swapped in.",
            "{count} blocks of {tag} are swapped in.",
            len(hosts),
            tag=names[request].tag,
        )
        for request, hosts in back.items()
    ]
    return _told(words)


def _failed(record: StepRecord, names: Mapping[str, Name], requests: Requests, block_size: int) -> str:
    if not record.abandoned:
        return ""
    again = listing(sorted({names[event.request].tag for event in record.preempted}))
    words = counted(
        "A first attempt at this step failed ({error}).",
        "{count} attempts at this step failed ({error}).",
        len(record.abandoned),
        error=record.abandoned[-1].error[:120],
    )
    if not again:
        return words
    return sentences([words, _("{again} will be computed again from the start.").format(again=again)])


def _told(words: list[str]) -> str:
    if len(words) > MOST_TOLD:
        more = len(words) - MOST_TOLD
        words = [*words[:MOST_TOLD], _("And {count} more events of this kind.").format(count=more)]
    return sentences(words)


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
