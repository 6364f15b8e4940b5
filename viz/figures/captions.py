"""Captions: what happened in each step, in words; the part of a picture that everybody can read.

One caption serves all pictures of a page. It is shown above them, read out by screen readers, and given to
the step slider as its value. To caption a new event, note it in `StepRecord` and add a sentence below.

Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minivllm.trace.timeline import Phase, StepRecord, Timeline
from viz.figures.common import Name, listing, names_of, plural

REASONS = {
    "stop": "it said its stop word",
    "length": "it reached its length limit",
    "abort": "it was aborted",
}


def captions(timeline: Timeline) -> list[str]:
    """One caption for each step: two to six short sentences."""
    names = names_of(timeline)
    header = timeline.trace.header
    limits = (header.max_num_batched_tokens, header.num_blocks)
    return [_caption(record, names, *limits) for record in timeline.records]


def _caption(record: StepRecord, names: Mapping[str, Name], budget: int, num_blocks: int) -> str:
    sentences = [_batch(record, names, budget)]
    sentences += [sentence for tell in SENTENCES if (sentence := tell(record, names))]
    sentences.append(_blocks(record, num_blocks))
    return f"Step {record.step}. " + " ".join(sentences)


def _batch(record: StepRecord, names: Mapping[str, Name], budget: int) -> str:
    parts = []
    prefill = [item for item in record.batch if item.phase is Phase.PREFILL]
    if prefill:
        words = [f"{names[i.request].tag} prefills {plural(i.num_tokens, 'token')}" for i in prefill]
        parts.append(listing(words, most=3))
    decode = [names[item.request].tag for item in record.batch if item.phase is Phase.DECODE]
    if decode:
        verb = "decodes one token" if len(decode) == 1 else "decode one token each"
        parts.append(f"{listing(decode, most=6)} {verb}")
    if not parts:
        return "Nothing is computed."
    total = sum(item.num_tokens for item in record.batch)
    return f"{'; '.join(parts)}: {total:,} of at most {budget:,} tokens."


def _arrivals(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.queued:
        return ""
    verb = "arrives" if len(record.queued) == 1 else "arrive"
    return f"{_tags(record.queued, names)} {verb}."


def _admitted(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.scheduled:
        return ""
    verb = "leaves the queue and joins" if len(record.scheduled) == 1 else "leave the queue and join"
    return f"{_tags(record.scheduled, names)} {verb} the batch."


def _waiting(record: StepRecord, names: Mapping[str, Name]) -> str:
    if not record.num_waiting:
        return ""
    return f"{plural(record.num_waiting, 'request')} {'waits' if record.num_waiting == 1 else 'wait'}."


def _preempted(record: StepRecord, names: Mapping[str, Name]) -> str:
    return " ".join(
        f"The pool is full: {names[request].tag} is preempted, gives all its blocks back and will compute "
        f"{plural(lost, 'token')} again."
        for request, lost in record.preempted
    )


def _finished(record: StepRecord, names: Mapping[str, Name]) -> str:
    return " ".join(
        f"{names[sequence.request].tag} ends after {plural(sequence.num_output_tokens, 'token')}: "
        f"{REASONS.get(sequence.finish_reason or '', sequence.finish_reason)}."
        for sequence in record.finished[:4]
    )


def _refused(record: StepRecord, names: Mapping[str, Name]) -> str:
    return " ".join(f"Request {request} is refused: {reason}." for request, reason in record.refused[:2])


# In the order in which they are told. Each returns "" if it has nothing to say.
SENTENCES: tuple[Callable[[StepRecord, Mapping[str, Name]], str], ...] = (
    _preempted,
    _finished,
    _arrivals,
    _admitted,
    _waiting,
    _refused,
)


def _blocks(record: StepRecord, num_blocks: int) -> str:
    changes = []
    if record.taken:
        changes.append(f"{plural(len(record.taken), 'block')} taken")
    if record.returned:
        changes.append(f"{len(record.returned):,} given back")
    prefix = f"{', '.join(changes)}; " if changes else ""
    return f"{prefix}{record.num_used_blocks:,} of {num_blocks:,} blocks in use."


def _tags(requests: list[str], names: Mapping[str, Name]) -> str:
    return listing([names[request].tag for request in requests])
