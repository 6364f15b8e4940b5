"""Captions: what happened in each step, in words; the part of a picture that a screen reader can read.

One caption serves all pictures of a page. It is shown above them, read out by screen readers, and given to
the step slider as its value. To caption a new event, note it in `StepRecord` and add a sentence below.

Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minivllm.trace.events import RequestPreempted, TraceHeader
from minivllm.trace.timeline import BatchItem, Phase, StepRecord, Timeline
from viz.figures.captions_sharing import SHARING_SENTENCES
from viz.figures.common import Name, listing, names_of, plural
from viz.measures import num_computed_tokens

REASONS = {
    "stop": "a stop token or string",
    "length": "its length limit",
    "abort": "aborted",
    "error": "failed, because no token could be chosen",
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
        caption(record, names, requests, header, parked.get(record.step, ())) for record in timeline.records
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
    return f"Step {record.step}. " + " ".join(told)


def _batch(record: StepRecord, names: Mapping[str, Name], budget: int) -> str:
    parts = []
    prefill, decode = _by_request(record, Phase.PREFILL), _by_request(record, Phase.DECODE)
    if prefill:
        words = [
            f"{names[request].tag} prefills {plural(sum(i.num_tokens for i in items), 'token')}"
            for request, items in prefill.items()
        ]
        parts.append(listing(words, most=3))
    if decode:
        drafts = sum(len(item.token_ids) for item in record.drafts)
        verb = "decodes one token" if len(decode) == 1 else "decode one token each"
        tags = [
            names[request].tag + (f" ({len(items)} sequences)" if len(items) > 1 else "")
            for request, items in decode.items()
        ]
        if len(decode) == 1 and len(next(iter(decode.values()))) > 1:
            verb = "decodes one token each"
        with_drafts = f", and {plural(drafts, 'draft')}" if drafts else ""
        parts.append(f"{listing(tags, most=6)} {verb}{with_drafts}")
    if not parts:
        return "Nothing is computed."
    told = f"{'; '.join(parts)}: {num_computed_tokens(record):,} of at most {budget:,} tokens."
    if padding := record.num_padding_tokens:
        told += f" {plural(padding, 'token')} of padding more, to make the batch rectangular: thrown away."
    return told


def _drafts(record: StepRecord) -> str:
    drafted = sum(len(item.token_ids) for item in record.drafts)
    accepted = sum(item.num_accepted for item in record.drafts)
    return f"Of {plural(drafted, 'draft')} {accepted:,} {'is' if accepted == 1 else 'are'} accepted."


def _allowed(record: StepRecord, names: Mapping[str, Name], requests: Mapping[int, str]) -> str:
    words = [
        f"{names[requests[item.seq]].tag} {plural(item.num_allowed, 'token')}" for item in record.allowed
    ]
    return f"Structured output leaves {listing(words, most=3)} to choose from."


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
        return f"{_tags(requests, names)} is parked: it keeps its slot and its blocks, and computes nothing."
    return f"{_tags(requests, names)} are parked: they keep their slots and blocks, and compute nothing."


def _by_request(record: StepRecord, phase: Phase) -> dict[str, list[BatchItem]]:
    items: dict[str, list[BatchItem]] = {}
    for item in record.batch:
        if item.phase is phase:
            items.setdefault(item.request, []).append(item)
    return items


def _arrivals(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.queued:
        return ""
    verb = "arrives" if len(record.queued) == 1 else "arrive"
    return f"{_tags(record.queued, names)} {verb}."


def _admitted(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.scheduled:
        return ""
    verb = "is admitted" if len(record.scheduled) == 1 else "are admitted"
    return f"{_tags(record.scheduled, names)} {verb} to the batch."


def _waiting(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.num_waiting:
        return ""
    return f"{plural(record.num_waiting, 'request')} {'waits' if record.num_waiting == 1 else 'wait'}."


def _shortage(event: RequestPreempted, names: Mapping[str, Name]) -> str:
    """Why a request is preempted."""
    if event.shortage == "batch_slots" and event.preempted_for in names:
        return f"The batch is full, and {names[event.preempted_for].tag} is scheduled first"
    return "The pool is full"


def _preempted(record: StepRecord, names: Mapping[str, Name]) -> str:
    """Requests that the scheduler preempted; those of a failed step are told with it."""
    if record.abandoned:
        return ""
    sentences = []
    for event in record.preempted[:4]:
        tag = names[event.request].tag
        if event.mode == "swap":
            sentences.append(f"{_shortage(event, names)}: {tag} is preempted, its blocks are swapped out.")
        else:
            because = f" (not swapped: {event.reason})" if event.reason else ""
            sentences.append(
                f"{_shortage(event, names)}: {tag} is preempted, its blocks are freed, and "
                f"{plural(event.num_computed_tokens, 'token')} will be computed again{because}."
            )
    return " ".join(sentences)


def _rebuilt(record: StepRecord, names: Mapping[str, Name]) -> str:
    """An interrupt came before the step was over, and the engine started again from its requests."""
    if not record.rebuilt:
        return ""
    told = "The run was interrupted, and the engine rebuilt its state: all blocks are free"
    requests = [request.request for request in record.rebuilt[-1].requests]
    if not requests:
        return f"{told}."
    verb = "waits" if len(requests) == 1 else "wait"
    return f"{told}, and {_tags(requests, names)} {verb} with nothing computed."


def _snapshot(record: StepRecord, names: Mapping[str, Name]) -> str:
    """The trace begins in the middle of a run."""
    if record.snapshot is None:
        return ""
    running, waiting = len(record.snapshot.running), len(record.snapshot.waiting)
    return (
        f"The trace begins here, after {plural(record.snapshot.num_steps, 'step')} of the run, with "
        f"{plural(running, 'request')} in the batch and {waiting:,} waiting."
    )


def _finished(record: StepRecord, names: Mapping[str, Name]) -> str:
    """Finished outputs. A beam is none: what a search found is told with its steps."""
    searching = {event.request for event in record.beams}
    outputs = [
        sequence
        for sequence in record.finished
        if sequence.beam_score is None and sequence.request not in searching
    ]
    return " ".join(
        f"{names[sequence.request].tag} finishes after {plural(sequence.num_output_tokens, 'token')}: "
        f"{REASONS.get(sequence.finish_reason or '', sequence.finish_reason)}."
        for sequence in outputs[:4]
    )


def _refused(record: StepRecord, names: Mapping[str, Name]) -> str:
    return " ".join(f"Request {request} is refused: {reason}." for request, reason in record.refused[:2])


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
        changes.append(f"{plural(len(record.taken), 'block')} allocated")
    if record.returned:
        changes.append(f"{plural(len(record.returned), 'block')} freed")
    prefix = f"{', '.join(changes)}; " if changes else ""
    evictable = f", {record.num_evictable_blocks:,} evictable" if record.num_evictable_blocks else ""
    saved = f"; sharing saves {record.num_saved_blocks:,}" if record.num_saved_blocks else ""
    return f"{prefix}{record.num_used_blocks:,} of {num_blocks:,} blocks in use{evictable}{saved}."


def _tags(requests: list[str], names: Mapping[str, Name]) -> str:
    return listing([names[request].tag for request in requests])
