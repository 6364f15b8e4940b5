"""Beam search: of everything that could be said next, only the best few beginnings are followed.

Greedy decoding takes the likeliest token and cannot take it back. Beam search follows `beam_width`
beginnings at once, the *running beams*. Each step looks at every continuation of every beam, takes the best
of them all, whichever beam they come from, and so lets one beam branch and another one end:

    width 2       step 1              step 2                    step 3
                ┌ "a"    −0.5 ──┬── "a cat"    −0.9 ──────── "a cat <eos>"  −1.0   finished
    prompt ─────┤               └── "a dog"    −1.3 ──────── "a dog runs"   −1.7   running
                ├ "the"  −1.1 ───── no child among the best two: pruned
                └ "one"  −2.0       rejected at once

What a score is. A running beam has the sum of its tokens' log-probabilities. A finished one has that sum
divided by `length ** length_penalty`, the length counting generated tokens, the end-of-sequence (EOS) token
included: a sum only falls as it grows, so without the division short answers would win. A `length_penalty`
above 0 favours long answers, below 0 short ones. (Wu et al. divide by ((5 + length) / 6) ** α instead.)

The rules are those of `generate(num_beams=beam_width, do_sample=False)` in Hugging Face transformers:

- Of `num_candidates` continuations, the `beam_width` best that do not end go on.
- An EOS token ends a hypothesis only within the `beam_width` best continuations. Further down it is dropped.
- At `max_tokens` the `beam_width` best continuations have all ended.
- Of all that have ever ended, the `beam_width` best are remembered.
- Where outputs must have a structure, a token with which it is complete ends a beam as an EOS token does.
- Once so many are remembered, the search may stop: at once with `early_stopping=True`; otherwise when even
  the best running beam, at the length that is assumed for it, would not beat the worst of them:

      False      the length it has now. It could still improve, so this may stop a little early.
      "never"    the length that suits it best: `max_tokens` if `length_penalty` is above 0, else its own.
                 Log-probabilities are never positive, so nothing better can be missed.

Three differences. transformers fills up beams that do not exist, as in the first step, with copies of score
−1e9, which come to light where a vocabulary has fewer tokens that do not end than there are beams: here there
are fewer beams then. With `num_beams=1` it runs its greedy search: the same, but that "never" with a
`length_penalty` above 0 may go on here behind an EOS token. And of equal scores, whose order it leaves open,
those that came first stay first.

There is no model here, no tensor and no list of running beams' tokens, which belong to their sequences:
candidates come in, decisions come out.

Sources: Graves, "Sequence Transduction with Recurrent Neural Networks" (2012) and Sutskever et al., "Sequence
to Sequence Learning with Neural Networks" (2014) for the search; Wu et al., "Google's Neural Machine
Translation System" (2016), section 7, for the length penalty.
Read next: `beam_candidates.py`, which finds the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple


class Candidate(NamedTuple):
    """One way to go on: a running beam and its next token."""

    beam: int
    """Index of the running beam that it continues."""
    token_id: int
    score: float
    """Sum of the log-probabilities of all generated tokens, this one included."""


class Hypothesis(NamedTuple):
    """A finished beam."""

    token_ids: tuple[int, ...]
    """The generated tokens, without the prompt, with the EOS token if one ended it."""
    cum_logprob: float
    """Sum of their log-probabilities."""
    score: float
    """`cum_logprob / len(token_ids) ** length_penalty`, by which the best are chosen."""
    finish_reason: Literal["stop", "length"]
    stop_token: int | None
    """The EOS token that ended it; None if `max_tokens` did, or its structure."""


class Selection(NamedTuple):
    """What became of the candidates of one step: each of them is in one of the three lists."""

    kept: list[Candidate]
    """The new running beams, best first: beam i now is `kept[i]`. Empty once the search is done."""
    finished: list[tuple[Candidate, float]]
    """Those that ended now and are among the best so far, best first, each with its normalised score."""
    rejected: list[Candidate]
    """All others, best first."""


class BeamSearch:
    """The decisions of one beam search.

        search, beams = BeamSearch(4, max_tokens=20, eos_token_ids=[2]), [[]]
        while not search.is_done:
            candidates = best_continuations(logits_after(beams), search.scores, search.num_candidates)
            kept, _, _ = search.advance(candidates, beams.__getitem__)
            beams = [[*beams[beam], token] for beam, token, _ in kept]
        print(search.best())

    Args:
        beam_width: running beams that are followed, and finished ones that are remembered. At least 1.
        max_tokens: generated tokens after which every beam has ended. At least 1.
        eos_token_ids: tokens that end a beam.
        length_penalty: exponent of the length in a finished score.
        early_stopping: when the search may end before `max_tokens`; see the top of this module.
    """

    def __init__(
        self,
        beam_width: int,
        *,
        max_tokens: int,
        eos_token_ids: Collection[int] = (),
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> None:
        assert beam_width >= 1 and max_tokens >= 1, "nothing to search for"
        assert early_stopping in (True, False, "never"), early_stopping
        self.beam_width = beam_width
        self.max_tokens = max_tokens
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self._eos = frozenset(eos_token_ids)
        self._scores = [0.0]
        self._num_steps = 0
        self._finished: list[Hypothesis] = []  # best first, at most beam_width
        self._is_done = False

    @property
    def num_candidates(self) -> int:
        """How many of the best continuations `advance` must see.

        Each beam has one continuation for each EOS token at most, so `beam_width` others remain at least.
        """
        return max(2, 1 + len(self._eos)) * self.beam_width

    @property
    def scores(self) -> list[float]:
        """Sum of log-probabilities of each running beam, best first; before the first step `[0.0]`."""
        return list(self._scores)

    @property
    def is_done(self) -> bool:
        """Nothing is left to do; `best` holds the result."""
        return self._is_done

    def advance(
        self,
        candidates: Sequence[Candidate],
        tokens_of: Callable[[int], Sequence[int]],
        completes: Callable[[Candidate], bool] = lambda _: False,
    ) -> Selection:
        """Take one step.

        Args:
            candidates: the `num_candidates` best continuations of the running beams, best first, no two the
                same. Fewer only if there are no more; with `completes` as many as it takes to go on.
            tokens_of: index of a running beam → the tokens that it has generated. Asked for beams that end.
            completes: does this continuation end its beam, though its token is no EOS token?
        """
        assert not self._is_done, "the search is done"
        assert candidates, "nothing to choose from"
        assert all(better.score >= worse.score for better, worse in pairwise(candidates)), "not best first"
        self._num_steps += 1
        length = self._num_steps
        is_last = length == self.max_tokens
        kept: list[Candidate] = []
        ended: list[tuple[Candidate, Hypothesis]] = []
        for rank, candidate in enumerate(candidates):
            is_complete = candidate.token_id in self._eos or completes(candidate)
            if is_last or is_complete:
                if rank < self.beam_width:
                    tokens = tokens_of(candidate.beam)
                    ended.append((candidate, self._hypothesis(candidate, tokens, is_complete)))
            elif len(kept) < self.beam_width:
                kept.append(candidate)
        # The sort is stable, so an older one stays ahead of its equals.
        finished = [*self._finished, *(hypothesis for _, hypothesis in ended)]
        self._finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[: self.beam_width]
        self._is_done = is_last or not kept or self._may_stop(kept[0].score, length)
        if self._is_done:
            kept = []
        self._scores = [candidate.score for candidate in kept]
        return self._selection(candidates, kept, ended)

    def _selection(
        self,
        candidates: Sequence[Candidate],
        kept: list[Candidate],
        ended: Sequence[tuple[Candidate, Hypothesis]],
    ) -> Selection:
        remembered = {id(hypothesis) for hypothesis in self._finished}
        finished = [(item, hypothesis.score) for item, hypothesis in ended if id(hypothesis) in remembered]
        finished.sort(key=lambda pair: -pair[1])
        chosen = {*kept, *(candidate for candidate, _ in finished)}
        return Selection(kept, finished, [candidate for candidate in candidates if candidate not in chosen])

    def best(self, count: int | None = None) -> list[Hypothesis]:
        """The `count` best finished hypotheses so far, best first (None: all, at most `beam_width`)."""
        return self._finished[:count]

    def _may_stop(self, best_running: float, length: int) -> bool:
        """Are there enough finished hypotheses, and none to be expected that would replace one?"""
        if len(self._finished) < self.beam_width:
            return False
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_tokens
        return self._normalised(best_running, length) <= self._finished[-1].score

    def _normalised(self, score: float, length: int) -> float:
        return score / math.pow(length, self.length_penalty)

    def _hypothesis(self, candidate: Candidate, tokens: Sequence[int], is_complete: bool) -> Hypothesis:
        """The beam with these tokens, ended by the candidate's."""
        return Hypothesis(
            (*tokens, candidate.token_id),
            candidate.score,
            self._normalised(candidate.score, len(tokens) + 1),
            "stop" if is_complete else "length",
            candidate.token_id if candidate.token_id in self._eos else None,
        )
