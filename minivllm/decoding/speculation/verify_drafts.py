"""From rows of logits to accepted drafts: the rule of `rejection.py`, for a whole batch.

    sequence   … t                        row 0    the law of the next token
    drafts       a   b   c                row 1    … if a is accepted
                                          row 2    … if a and b are
                                          row 3    … if all are

Each row is sampled in the state that the sequence would have: penalties and bad words see the drafts before
it, and a structure has read them. Drafts that are point masses need nothing else: all rows of all sequences
are sampled at once, by the same call as without drafts, and a draft is accepted if it is what was sampled
before it. Drafts that were drawn from a law are decided by `verify`.

A row that nothing can be drawn from fails its request only if it is reached: behind a draft that its
structure does not allow, there is nothing, and that draft is never accepted.

Read next: `rejection.py`; `minivllm/engine/sample_step.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from minivllm.decoding.finite_logits import NotFiniteError
from minivllm.decoding.speculation.rejection import Uniforms, verify

if TYPE_CHECKING:
    from minivllm.decoding.sampler import SampledToken
    from minivllm.decoding.sampling_state import SamplingState


class LawSampler(Protocol):
    """What is needed of a sampler; see `Sampler`."""

    def sample(self, logits: Any, states: Sequence[SamplingState]) -> list[SampledToken]:
        """One token for each row of logits."""
        ...

    def laws(self, logits: Any, states: Sequence[SamplingState]) -> Any:
        """The law that each row's token would be drawn from."""
        ...

    def entry(self, row: Any, token: int, state: SamplingState) -> SampledToken:
        """A token that was chosen by its law, with its log-probabilities."""
        ...


@dataclass
class Drafted:
    """One output that is to be sampled, perhaps with drafts behind it.

    Args:
        first_row: of logits; each draft has one more.
        state: how it is sampled.
        drafts: tokens that its sequence may come to have; none for an output that is sampled as usual.
        draft_laws: of each draft, the law that it was drawn from; None if they are point masses.
    """

    first_row: int
    state: SamplingState
    drafts: Sequence[int] = ()
    draft_laws: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        self.states = [self.state.ahead(self.drafts[:count]) for count in range(len(self.drafts) + 1)]

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + len(self.drafts) + 1)

    def cut(self, count: int) -> None:
        """Leave only the first `count` drafts."""
        self.drafts, self.states = self.drafts[:count], self.states[: count + 1]


def sample_drafted(
    outputs: Sequence[Drafted], logits: Any, sampler: LawSampler
) -> list[list[tuple[SampledToken, SamplingState]]]:
    """The next tokens of each output, at least one, each with the state that it was sampled in.

    Args:
        logits: [n, vocab_size]; the outputs' rows are among them.

    Raises:
        NotFiniteError: outputs for which no token can be chosen, by their place.
    """
    points = [place for place, output in enumerate(outputs) if output.draft_laws is None]
    found: dict[int, list[tuple[SampledToken, SamplingState]]] = {}
    answers = _sample_points([outputs[place] for place in points], points, logits, sampler)
    found.update(zip(points, answers, strict=True))
    failed: dict[int, str] = {}
    for place, output in enumerate(outputs):
        if output.draft_laws is not None:
            try:
                found[place] = _sample_by_law(output, logits, sampler)
            except NotFiniteError as error:
                failed[place] = error.words
    if failed:
        raise NotFiniteError(failed)
    return [found[place] for place in range(len(outputs))]


def _sample_points(
    outputs: Sequence[Drafted], places: Sequence[int], logits: Any, sampler: LawSampler
) -> list[list[tuple[SampledToken, SamplingState]]]:
    """Outputs whose drafts are tokens: one call of the sampler, and a comparison."""
    while True:
        rows = [row for output in outputs for row in output.rows]
        states = [state for output in outputs for state in output.states]
        owners = [(index, count) for index, out in enumerate(outputs) for count in range(len(out.states))]
        try:
            wanted = logits if rows == list(range(len(logits))) else logits[rows]
            tokens = sampler.sample(wanted, states) if rows else []
            break
        except NotFiniteError as error:
            hit = [(*owners[row], words) for row, words in error.found.items()]
            dead = {places[index]: words for index, count, words in hit if count == 0}
            if dead:
                raise NotFiniteError(dead) from None
            for index, count, _ in hit:  # what comes before such a row may well be accepted
                outputs[index].cut(min(count - 1, len(outputs[index].drafts)))
    answers: list[list[tuple[SampledToken, SamplingState]]] = []
    begin = 0
    for output in outputs:
        own = tokens[begin : (begin := begin + len(output.states))]
        accepted = 0
        while accepted < len(output.drafts) and own[accepted].token_id == output.drafts[accepted]:
            accepted += 1
        answers.append(list(zip(own[: accepted + 1], output.states[: accepted + 1], strict=True)))
    return answers


def _sample_by_law(
    output: Drafted, logits: Any, sampler: LawSampler
) -> list[tuple[SampledToken, SamplingState]]:
    """An output whose drafts were drawn from laws."""
    assert output.draft_laws is not None
    while True:
        try:
            laws = sampler.laws(logits[output.first_row : output.rows.stop], output.states)
            break
        except NotFiniteError as error:
            first = min(error.found)
            if first == 0:
                raise
            output.cut(first - 1)
    uniforms = [Uniforms(s.next_draft_uniforms()[1], s.next_uniform()) for s in output.states]
    token_ids = verify(output.drafts, laws, output.draft_laws, uniforms)
    return [
        (sampler.entry(logits[output.first_row + index], token, state), state)
        for index, (token, state) in enumerate(zip(token_ids, output.states, strict=False))
    ]
