"""Choosing: from the logits of a step to the next tokens of every request in it.

Only sequences that were computed up to their last token have something to choose. All that sample are
served by one call of the sampler, however many requests and outputs they belong to; each beam search looks
at the best continuations of its own beams.

    plan order   A (chunk)   B       C, C, C (beams)      D (first token, n = 3)
    logits       –           row 0   rows 1 2 3           row 4
    chosen                   1 token    candidates           3 tokens from the same row

Read next: `decoding/sampler.py`, `decoding/beam_candidates.py`; `engine.py` for what becomes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from minivllm.decoding.beam_search import Candidate
from minivllm.decoding.parallel_sampling import Draw
from minivllm.engine.request_state import LiveRequest
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import Sequence

if TYPE_CHECKING:
    from minivllm.decoding.sampler import SampledToken
    from minivllm.decoding.sampling_state import SamplingState
    from minivllm.outputs import Logprob


class TokenChooser(Protocol):
    """What the engine needs of a sampler."""

    def sample(self, logits: Any, states: SequenceOf[SamplingState]) -> list[SampledToken]:
        """One token for each row of logits."""
        ...

    def prompt_logprobs(
        self, logits: Any, next_token_ids: SequenceOf[int], num_logprobs: int
    ) -> list[dict[int, Logprob]]:
        """How likely each prompt token was."""
        ...

    def continuations(
        self, logits: Any, scores: SequenceOf[float], count: int, temperature: float
    ) -> list[Candidate]:
        """The `count` best ways to continue beams with these scores, one row of logits each."""
        ...


class Search(NamedTuple):
    """A beam search whose beams have all been computed to their ends, and how they may go on."""

    live: LiveRequest
    beams: list[Sequence]
    candidates: list[Candidate]


class Choices(NamedTuple):
    """What a step has chosen."""

    draws: list[Draw]
    tokens: list[SampledToken]
    """The token of each draw."""
    searches: list[Search]


def choose(
    plan: StepPlan,
    logits: Any,
    sampler: TokenChooser,
    sequences: Mapping[int, Sequence],
    live: Mapping[str, LiveRequest],
) -> Choices:
    """Choose for every request that has something to choose, in plan order.

    Args:
        logits: [sum of num_logits, vocab_size], as the executor returned them for `plan`.
        sequences, live: the engine's books, by sequence id and by request id.
    """
    draws: list[Draw] = []
    rows: list[int] = []  # that each draw is drawn from
    beams: dict[str, list[tuple[Sequence, int]]] = {}
    end = 0
    for item in plan.scheduled:
        sequence = sequences[item.seq_id]
        request = live[sequence.request_id]
        start, end = end, end + item.num_logits
        if sequence.wants_prompt_logits and item.start < sequence.num_prompt_tokens:
            _note_prompt_logprobs(request, sequence, item.start, logits[start:end], sampler)
        if item.end < sequence.num_tokens:
            continue
        if request.params.use_beam_search:
            beams.setdefault(sequence.request_id, []).append((sequence, end - 1))
        else:
            own = request.sampling.draws(sequence)
            draws += own
            rows += [end - 1] * len(own)
    searches = [_search(live[name], members, logits, sampler) for name, members in beams.items()]
    if not draws:
        return Choices([], [], searches)
    if rows != list(range(len(logits))):
        logits = logits[rows]
    return Choices(draws, sampler.sample(logits, [draw.generation.sampling for draw in draws]), searches)


def _search(
    live: LiveRequest, members: SequenceOf[tuple[Sequence, int]], logits: Any, sampler: TokenChooser
) -> Search:
    """The best continuations of one search; `members` are its beams and their rows of logits."""
    search = live.beams.search
    first, last = members[0][1], members[-1][1]
    assert last - first + 1 == len(members), "beams are planned one after another, each with one row"
    rows = logits[first : last + 1]
    candidates = sampler.continuations(rows, search.scores, search.num_candidates, live.beams.temperature)
    return Search(live, [sequence for sequence, _ in members], candidates)


def _note_prompt_logprobs(
    live: LiveRequest, sequence: Sequence, start: int, logits: Any, sampler: TokenChooser
) -> None:
    """Row i was computed after token `start + i`, so it tells how likely token `start + i + 1` was."""
    generation = live.sampling.generations[0]
    known = generation.num_prompt_logprobs  # positions noted before a preemption are not noted twice
    end = min(start + len(logits) + 1, sequence.num_prompt_tokens)
    first = max(start + 1, known)
    num_logprobs = generation.params.prompt_logprobs
    if first < end and num_logprobs is not None:
        rows = logits[first - start - 1 : end - start - 1]
        entries = sampler.prompt_logprobs(rows, sequence.token_ids[first:end].tolist(), num_logprobs)
        generation.append_prompt_logprobs(entries)
