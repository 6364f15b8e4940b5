"""Sampling a step: from its logits to the next tokens of every request in it.

Only sequences that were computed up to their last token have something to sample. All that sample are served
by one call of the sampler, however many requests and outputs they belong to; each beam search looks at the
best continuations of its own beams.

    plan order   A (chunk)   B       C, C, C (beams)      D (first token, n = 3)
    logits       –           row 0   rows 1 2 3           row 4
    sampled                  1 token    candidates           3 tokens from the same row

A sequence with drafts has a row behind each of them, and may get several tokens (`verify_drafts.py`).

A row without a likeliest token (NaN, infinity) fails its request, with all its sequences, and no other: the
others are sampled again, and draw the same.

Read next: `minivllm/decoding/sampler.py`, `beam_candidates.py`; `core.py` for what becomes of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from minivllm.decoding.beam_search import Candidate
from minivllm.decoding.finite_logits import NotFiniteError
from minivllm.decoding.parallel_sampling import SampleSlot
from minivllm.decoding.speculation.verify_drafts import Drafted, LawSampler, sample_drafted
from minivllm.engine.request_state import RequestState
from minivllm.scheduling.plan import BeamStep, ScheduledSequence, StepPlan
from minivllm.scheduling.request import Finish, Sequence

if TYPE_CHECKING:
    from minivllm.decoding.beam_decoding import BeamDecoding
    from minivllm.decoding.sampler import SampledToken
    from minivllm.decoding.sampling_state import SamplingState
    from minivllm.decoding.structured.token_masks import TokenMask
    from minivllm.outputs import Logprob


class TokenSampler(LawSampler, Protocol):
    """What the engine needs of a sampler. Here and below, `NotFiniteError` names rows that have no token."""

    def prompt_logprobs(
        self, logits: Any, next_token_ids: SequenceOf[int], num_logprobs: int
    ) -> list[dict[int, Logprob]]:
        """How likely each prompt token was."""
        ...

    def continuations(
        self,
        logits: Any,
        scores: SequenceOf[float],
        count: int,
        temperature: float,
        masks: SequenceOf[TokenMask] = (),
    ) -> list[Candidate]:
        """The `count` best ways to continue beams with these scores, one row of logits each."""
        ...


class SearchSlot(NamedTuple):
    """A beam search whose beams have all been computed to their ends, and how they may go on."""

    state: RequestState
    beams: list[Sequence]
    candidates: list[Candidate]


class StepSample(NamedTuple):
    """What was sampled in a step. Nothing has been told to any request yet."""

    slots: list[SampleSlot]
    """An output whose drafts were accepted has a slot for each of them, and one more."""
    tokens: list[SampledToken]
    """The token of each slot."""
    states: list[SamplingState]
    """The state that each token was sampled in."""
    searches: list[SearchSlot]
    failed: list[tuple[str, Finish]]
    """Requests for which no token can be chosen, and what to say of each. They have no slots here."""


def tokens_of(sample: StepSample) -> dict[int, int]:
    """The token that each sequence itself goes on with, by its id."""
    pairs = zip(sample.slots, sample.tokens, strict=True)
    return {slot.parent.seq_id: token.token_id for slot, token in pairs if not slot.is_fork}


def sample_step(
    plan: StepPlan,
    logits: Any,
    sampler: TokenSampler,
    sequences: Mapping[int, Sequence],
    requests: Mapping[str, RequestState],
    draft_laws: Mapping[int, SequenceOf[Any]] = MappingProxyType({}),
) -> StepSample:
    """Sample for every sequence that was computed to its end, in plan order.

    Args:
        logits: [sum of num_logits, vocab_size], as the executor returned them for `plan`.
        sequences, requests: the core's and the engine's, by sequence id and by request id.
        draft_laws: by sequence id, the laws that its drafts were drawn from; others are point masses.
    """
    slots: list[SampleSlot] = []
    rows: list[int] = []  # that the token of each slot is drawn from
    members: dict[str, list[tuple[Sequence, int]]] = {}
    drafts: dict[int, SequenceOf[int]] = {}
    failed: dict[str, str] = {}  # what is wrong with the logits of a request
    end = 0
    for item in plan.scheduled:
        sequence = sequences[item.seq_id]
        start, end = end, end + item.num_logits
        if sequence.finish is not None:
            continue  # it ended with a step that was in flight when this one was planned
        state = requests[sequence.request_id]
        has_rows = sequence.wants_prompt_logits and item.start < sequence.num_prompt_tokens
        if has_rows and (words := _note_prompt_logprobs(state, item, sequence, logits[start:end], sampler)):
            failed[sequence.request_id] = words
        if item.start + len(item.token_ids) < len(sequence.token_ids) or sequence.request_id in failed:
            continue
        if state.sampling is None:
            members.setdefault(sequence.request_id, []).append((sequence, end - 1))
        elif output := state.sampling.by_sequence.get(item.seq_id):
            slots.append(SampleSlot(sequence, output, False))
            rows.append(end - 1)
            if item.num_draft_tokens:
                drafts[item.seq_id] = item.token_ids[-item.num_draft_tokens :]
        else:
            first = state.sampling.first_slots(sequence)
            slots += first
            rows += [end - 1] * len(first)
    searches = _continue_searches(members, requests, logits, sampler, failed) if members else []
    tokens: list[SampledToken] = []
    states: list[SamplingState] = []
    while slots:
        try:
            if drafts:
                slots, tokens, states = _sample_drafts(slots, rows, drafts, draft_laws, logits, sampler)
            else:
                states = [slot.output.sampling for slot in slots]
                tokens = sampler.sample(logits if rows == list(range(len(logits))) else logits[rows], states)
            break
        except NotFiniteError as error:
            failed |= {slots[place].parent.request_id: words for place, words in error.found.items()}
            kept = [place for place, slot in enumerate(slots) if slot.parent.request_id not in failed]
            slots, rows = [slots[place] for place in kept], [rows[place] for place in kept]
    failures = [_failure(name, plan, failed[name]) for name in failed]
    return StepSample(slots, tokens, states[: len(slots)], searches, failures)


def _sample_drafts(
    slots: list[SampleSlot],
    rows: list[int],
    drafts: Mapping[int, SequenceOf[int]],
    draft_laws: Mapping[int, SequenceOf[Any]],
    logits: Any,
    sampler: TokenSampler,
) -> tuple[list[SampleSlot], list[SampledToken], list[SamplingState]]:
    """Slot, token and state of each token, where sequences have drafts: a row is the one behind them all."""
    outputs = []
    for slot, row in zip(slots, rows, strict=True):
        own = drafts.get(slot.parent.seq_id, ())
        laws = draft_laws.get(slot.parent.seq_id)
        outputs.append(Drafted(row - len(own), slot.output.sampling, own, laws))
    answers = sample_drafted(outputs, logits, sampler)
    found = [(slot, *pair) for slot, answer in zip(slots, answers, strict=True) for pair in answer]
    return [slot for slot, _, _ in found], [token for _, token, _ in found], [state for _, _, state in found]


def _failure(request_id: str, plan: StepPlan, words: str) -> tuple[str, Finish]:
    """How a request ends for whose logits `words` are true."""
    return request_id, Finish("error", f"request {request_id!r} failed in step {plan.step}: {words}")


def _continue_searches(
    members: Mapping[str, SequenceOf[tuple[Sequence, int]]],
    requests: Mapping[str, RequestState],
    logits: Any,
    sampler: TokenSampler,
    failed: dict[str, str],
) -> list[SearchSlot]:
    """Every search whose beams have rows of numbers; what is wrong with the others goes to `failed`."""
    searches: list[SearchSlot] = []
    for name, own in members.items():
        try:
            searches.append(_continue_search(requests[name], own, logits, sampler))
        except NotFiniteError as error:
            failed[name] = error.words
    return searches


def _continue_search(
    state: RequestState, members: SequenceOf[tuple[Sequence, int]], logits: Any, sampler: TokenSampler
) -> SearchSlot:
    """The best continuations of one search; `members` are its beams and their rows of logits."""
    decoding = state.search
    assert decoding is not None
    first, last = members[0][1], members[-1][1]
    assert last - first + 1 == len(members), "beams are planned one after another, each with one row"
    rows = logits[first : last + 1]
    candidates = _candidates(decoding, rows, sampler)
    return SearchSlot(state, [sequence for sequence, _ in members], candidates)


def _candidates(decoding: BeamDecoding, rows: Any, sampler: TokenSampler) -> list[Candidate]:
    """The best continuations. Where outputs have a structure, as many as it takes to find enough that do not
    complete it, or all there are."""
    search, masks, count = decoding.search, decoding.masks(), decoding.search.num_candidates
    if not masks:
        return sampler.continuations(rows, search.scores, count, decoding.temperature)
    while True:
        found = sampler.continuations(rows, search.scores, count, decoding.temperature, masks)
        if not found:
            raise NotFiniteError(dict.fromkeys(range(len(masks)), decoding.problem()))
        if len(found) < count or sum(map(decoding.goes_on, found)) >= search.beam_width:
            return found
        count *= 4


def advance_search(slot: SearchSlot) -> BeamStep:
    """Let a beam search choose among its candidates."""
    assert slot.state.search is not None
    return slot.state.search.advance(slot.state.request.request_id, slot.beams, slot.candidates)


def _note_prompt_logprobs(
    state: RequestState, item: ScheduledSequence, sequence: Sequence, logits: Any, sampler: TokenSampler
) -> str:
    """Row i was computed after token `item.start + i`, so it tells how likely the next one was.

    Returns what is wrong with the rows; nothing, usually.
    """
    assert state.sampling is not None
    output = state.sampling.outputs[0]
    start, known = (
        item.start,
        output.num_prompt_logprobs,
    )  # positions noted before a preemption are not noted twice
    end = min(start + len(logits) + 1, sequence.num_prompt_tokens)
    first = max(start + 1, known)
    num_logprobs = output.params.prompt_logprobs
    if first < end and num_logprobs is not None:
        rows = logits[first - start - 1 : end - start - 1]
        try:
            entries = sampler.prompt_logprobs(rows, sequence.token_ids[first:end].tolist(), num_logprobs)
        except NotFiniteError as error:
            return error.words
        output.append_prompt_logprobs(entries)
    return ""
