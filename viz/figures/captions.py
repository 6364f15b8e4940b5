"""Captions: what happened in each step, in words; the part of a picture that a screen reader can read.

One caption serves all pictures of a page. It is shown above them, read out by screen readers, and given to
the step slider as its value. To caption a new event, note it in `StepRecord` and add a sentence below.

Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minivllm.text import printable
from minivllm.trace.events import RequestPreempted, TraceHeader
from minivllm.trace.timeline import BatchItem, Phase, StepRecord, Timeline
from viz.figures.captions_sharing import SHARING_SENTENCES
from viz.figures.common import Name, listing, names_of, plural
from viz.language import N_, _, counted, ngettext, sentences
from viz.measures import num_computed_tokens
from viz.refusal_words import refused_in_words

REASONS = {
    "stop": N_("a stop token or string"),
    "length": N_("its length limit"),
    "abort": N_("aborted"),
    "error": N_("failed, because no token could be chosen"),
}


def captions(timeline: Timeline, names: Mapping[str, Name] | None = None) -> list[str]:
    """One caption for each step: two to six short sentences, more only where much happens at once.

    Args:
        names: what requests are called, if others than this run's own names are in use on the page.
    """
    names = names or names_of(timeline)
    parked = _parked_requests(timeline)
    header = timeline.trace.header
    requests = {seq: sequence.request for seq, sequence in timeline.sequences.items()}
    return [
        printable(caption(record, names, requests, header, parked.get(record.step, ())))
        for record in timeline.records
    ]


def caption(
    record: StepRecord,
    names: Mapping[str, Name],
    requests: Mapping[int, str],
    header: TraceHeader,
    parked: Sequence[str] = (),
) -> str:
    """The caption of one step.

    Args:
        requests: the request of each sequence.
        parked: requests in the batch of which nothing is computed.
    """
    told = [_batch(record, names, header.max_num_batched_tokens)]
    if parked:
        told.append(_parked(list(parked), names))
    told += [sentence for tell in SENTENCES if (sentence := tell(record, names))]
    for tell_sharing in SHARING_SENTENCES:
        if sentence := tell_sharing(record, names, requests, header.block_size):
            told.append(sentence)
    if record.drafts:
        told.append(_drafts(record))
    if record.allowed:
        told.append(_allowed(record, names, requests))
    told.append(_blocks(record, header.num_blocks))
    return sentences([_("Step {step}.").format(step=record.step), *told])


def _batch(record: StepRecord, names: Mapping[str, Name], budget: int) -> str:
    parts = []
    prefill, decode = _by_request(record, Phase.PREFILL), _by_request(record, Phase.DECODE)
    if prefill:
        prefills = [
            _("{tag} prefills {tokens}").format(
                tag=names[request].tag, tokens=plural(sum(i.num_tokens for i in items), "token")
            )
            for request, items in prefill.items()
        ]
        parts.append(listing(prefills, most=3))
    if decode:
        drafts = sum(len(item.token_ids) for item in record.drafts)
        words = _("{requests} decode one token each")
        if len(decode) == 1:
            several = len(next(iter(decode.values()))) > 1
            words = _("{requests} decodes one token each") if several else _("{requests} decodes one token")
        requests = [_decoding(names[request], len(items)) for request, items in decode.items()]
        told = words.format(requests=listing(requests, most=6))
        if drafts:
            told = _("{told}, and {drafts}").format(told=told, drafts=plural(drafts, "draft"))
        parts.append(told)
    if not parts:
        return _("Nothing is computed.")
    told = _("{work}: {tokens:,} of at most {budget:,} tokens.").format(
        work=_("; ").join(parts), tokens=num_computed_tokens(record), budget=budget
    )
    if not (padding := record.num_padding_tokens):
        return told
    padded = counted(
        "{count} token of padding more, to make the batch rectangular: thrown away.",
        "{count} tokens of padding more, to make the batch rectangular: thrown away.",
        padding,
    )
    return sentences([told, padded])


def _decoding(name: Name, num_sequences: int) -> str:
    if num_sequences == 1:
        return name.tag
    return _("{tag} ({count} sequences)").format(tag=name.tag, count=num_sequences)


def _drafts(record: StepRecord) -> str:
    drafted = sum(len(item.token_ids) for item in record.drafts)
    accepted = sum(item.num_accepted for item in record.drafts)
    drafts = plural(drafted, "draft")
    return counted(
        "Of {drafts} {count} is accepted.", "Of {drafts} {count} are accepted.", accepted, drafts=drafts
    )


def _allowed(record: StepRecord, names: Mapping[str, Name], requests: Mapping[int, str]) -> str:
    words = [
        f"{names[requests[item.seq]].tag} {plural(item.num_allowed, 'token')}" for item in record.allowed
    ]
    return _("Structured output leaves {words} to choose from.").format(words=listing(words, most=3))


def _parked_requests(timeline: Timeline) -> dict[int, list[str]]:
    parked: dict[int, list[str]] = {}
    for request, spans in timeline.spans.items():
        for span in spans:
            if span.phase is Phase.PARKED:
                for step in range(span.first, span.last + 1):
                    parked.setdefault(step, []).append(request)
    return parked


def _parked(requests: list[str], names: Mapping[str, Name]) -> str:
    if len(requests) == 1:
        return _("{requests} is parked: it keeps its slot and its blocks, and computes nothing.").format(
            requests=_tags(requests, names)
        )
    return _("{requests} are parked: they keep their slots and blocks, and compute nothing.").format(
        requests=_tags(requests, names)
    )


def _by_request(record: StepRecord, phase: Phase) -> dict[str, list[BatchItem]]:
    items: dict[str, list[BatchItem]] = {}
    for item in record.batch:
        if item.phase is phase:
            items.setdefault(item.request, []).append(item)
    return items


def _arrivals(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.queued:
        return ""
    told = ngettext("{requests} arrives.", "{requests} arrive.", len(record.queued))
    return told.format(requests=_tags(record.queued, names))


def _admitted(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.scheduled:
        return ""
    told = ngettext(
        "{requests} is admitted to the batch.",
        "{requests} are admitted to the batch.",
        len(record.scheduled),
    )
    return told.format(requests=_tags(record.scheduled, names))


def _waiting(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.num_waiting:
        return ""
    return counted("{count} request waits.", "{count} requests wait.", record.num_waiting)


def _shortage(event: RequestPreempted, names: Mapping[str, Name]) -> str:
    """Why a request is preempted."""
    if event.shortage == "batch_slots" and event.preempted_for in names:
        return _("The batch is full, and {tag} is scheduled first").format(tag=names[event.preempted_for].tag)
    return _("The pool is full")


def _preempted(record: StepRecord, names: Mapping[str, Name]) -> str:
    """Requests that the scheduler preempted; those of a failed step are told with it."""
    if record.abandoned:
        return ""
    told = []
    for event in record.preempted[:4]:
        tag = names[event.request].tag
        if event.mode == "swap":
            told.append(
                _("{shortage}: {tag} is preempted, its blocks are swapped out.").format(
                    shortage=_shortage(event, names), tag=tag
                )
            )
        else:
            because = (
                _(" (not swapped: {reason})").format(reason=refused_in_words(event.reason))
                if event.reason
                else ""
            )
            told.append(
                _(
                    "{shortage}: {tag} is preempted, its blocks are freed, and {tokens} will be computed "
                    "again{because}."
                ).format(
                    shortage=_shortage(event, names),
                    tag=tag,
                    tokens=plural(event.num_computed_tokens, "token"),
                    because=because,
                )
            )
    return sentences(told)


def _rebuilt(record: StepRecord, names: Mapping[str, Name]) -> str:
    """An interrupt came before the step was over, and the engine started again from its requests."""
    if not record.rebuilt:
        return ""
    requests = [request.request for request in record.rebuilt[-1].requests]
    if not requests:
        return _("The run was interrupted, and the engine rebuilt its state: all blocks are free.")
    told = ngettext(
        "The run was interrupted, and the engine rebuilt its state: all blocks are free, and {requests} "
        "waits with nothing computed.",
        "The run was interrupted, and the engine rebuilt its state: all blocks are free, and {requests} "
        "wait with nothing computed.",
        len(requests),
    )
    return told.format(requests=_tags(requests, names))


def _snapshot(record: StepRecord, names: Mapping[str, Name]) -> str:
    """The trace begins in the middle of a run."""
    if record.snapshot is None:
        return ""
    running, waiting = len(record.snapshot.running), len(record.snapshot.waiting)
    return _(
        "The trace begins here, after {steps} of the run, with {requests} in the batch and "
        "{waiting:,} waiting."
    ).format(
        steps=plural(record.snapshot.num_steps, "step"), requests=plural(running, "request"), waiting=waiting
    )


def _finished(record: StepRecord, names: Mapping[str, Name]) -> str:
    """Finished outputs. A beam is none: what a search found is told with its steps."""
    searching = {event.request for event in record.beams}
    outputs = [
        sequence
        for sequence in record.finished
        if sequence.beam_score is None and sequence.request not in searching
    ]
    return sentences(
        _("{tag} finishes after {tokens}: {reason}.").format(
            tag=names[sequence.request].tag,
            tokens=plural(sequence.num_output_tokens, "token"),
            reason=_(REASONS.get(sequence.finish_reason or "", sequence.finish_reason or "")),
        )
        for sequence in outputs[:4]
    )


def _refused(record: StepRecord, names: Mapping[str, Name]) -> str:
    return sentences(
        _("Request {request} is refused: {reason}.").format(request=request, reason=refused_in_words(reason))
        for request, reason in record.refused[:2]
    )


# In the order in which they are told. Each returns "" if it has nothing to say.
SENTENCES: tuple[Callable[[StepRecord, Mapping[str, Name]], str], ...] = (
    _snapshot,
    _preempted,
    _rebuilt,
    _finished,
    _arrivals,
    _admitted,
    _waiting,
    _refused,
)


def _blocks(record: StepRecord, num_blocks: int) -> str:
    changes = []
    if record.taken:
        changes.append(_("{blocks} allocated").format(blocks=plural(len(record.taken), "block")))
    if record.returned:
        changes.append(_("{blocks} freed").format(blocks=plural(len(record.returned), "block")))
    told = _("{used:,} of {all:,} blocks in use").format(used=record.num_used_blocks, all=num_blocks)
    if record.num_evictable_blocks:
        told = _("{told}, {count:,} evictable").format(told=told, count=record.num_evictable_blocks)
    parts = [_(", ").join(changes)] if changes else []
    parts.append(told)
    if record.num_saved_blocks:
        parts.append(_("sharing saves {count:,}").format(count=record.num_saved_blocks))
    return _("{sentence}.").format(sentence=_("; ").join(parts))


def _tags(requests: list[str], names: Mapping[str, Name]) -> str:
    return listing([names[request].tag for request in requests])
