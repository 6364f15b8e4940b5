"""Beam search in the engine: the search decides, block tables follow.

`BeamSearch` knows scores and tokens, the scheduler knows sequences and blocks. Between them each step is

    logits of all beams ──► candidates ──► BeamSearch.advance ──► kept: (parent beam, token), best first
                                                                     │
            a parent with one child goes on in place                 │
            a parent with several children is forked   ◄── grow ─────┘
            a parent without children is dropped, and its own blocks are free

so beams that have most of their past in common have most of their blocks in common too, and nothing is
ever copied but a block that two of them are about to write to.

A finished hypothesis is only remembered as tokens. It holds no blocks.

Source: Kwon et al. (SOSP 2023), section 4.4 and figure 9. Read next: `beam_search.py` for the decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minivllm.decoding.beam_search import BeamSearch, Candidate, Hypothesis, Step
from minivllm.decoding.detokenizer import IncrementalDetokenizer
from minivllm.outputs import CompletionOutput
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import BeamsAdvanced

if TYPE_CHECKING:
    from minivllm.model.tokenizer import Tokenizer
    from minivllm.scheduling.request import Sequence as TokenSequence

REJECTED_SHOWN = 8
"""The trace shows so many of the best candidates that were not kept."""


class BeamDecoding:
    """The outputs of one request that searches.

    Args:
        params: what was asked for, `use_beam_search` among it.
        prompt_token_ids: what the beams continue.
        max_tokens: final limit of output tokens.
        tokenizer: None leaves all texts empty.
        eos_token_ids: tokens that end a beam, unless `params.ignore_eos`.
        temperature: divides the logits; 0 and 1 leave them alone.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: list[int],
        *,
        max_tokens: int,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int],
        temperature: float = 0.0,
    ) -> None:
        self.params = params
        self.prompt_token_ids = prompt_token_ids
        self.temperature = temperature
        self._tokenizer = tokenizer if params.detokenize else None
        stop_token_ids = params.stop_token_ids or ()
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self.search = BeamSearch(
            params.width,
            max_tokens=max_tokens,
            eos_token_ids=self._eos_token_ids | frozenset(stop_token_ids),
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,  # type: ignore[arg-type]  # checked by the parameters
        )
        self._was_aborted = False

    @property
    def is_finished(self) -> bool:
        return self._was_aborted or self.search.is_done

    @property
    def finish_reason(self) -> str | None:
        """Why the best output ended; None while the search goes on."""
        if self._was_aborted:
            return "abort"
        return self.search.best(1)[0].finish_reason if self.search.is_done else None

    def advance(
        self, beams: Sequence[TokenSequence], candidates: Sequence[Candidate]
    ) -> tuple[Step, list[tuple[TokenSequence, int]]]:
        """Take one step of the search; returns it, and `(parent, token)` of each beam that goes on."""
        step = self.search.advance(candidates)
        return step, [(beams[candidate.beam], candidate.token_id) for candidate in step.kept]

    def describe(
        self, request_id: str, parents: Sequence[int], step: Step, grown: Sequence[TokenSequence]
    ) -> BeamsAdvanced:
        """The step as an event; `parents` are the sequence ids of the beams before it."""
        kept = [
            (
                parents[item.beam],
                sequence.seq_id,
                item.token_id,
                round(item.score, 6),
                self.text_of(item.token_id),
            )
            for item, sequence in zip(step.kept, grown, strict=True)
        ]
        finished = [
            (parents[item.beam], item.token_id, round(score, 6), self.text_of(item.token_id))
            for item, score in step.finished
        ]
        rejected = [
            (parents[item.beam], item.token_id, round(item.score, 6), self.text_of(item.token_id))
            for item in step.rejected[:REJECTED_SHOWN]
        ]
        return BeamsAdvanced(request_id, tuple(kept), tuple(finished), tuple(rejected))

    def ending_of(self, seq_id: int) -> tuple[str, int | str | None] | None:
        """Reason of the request's end, which is that of all its beams."""
        reason = self.finish_reason
        return None if reason is None else (reason, None)

    def abort(self) -> None:
        """End the search here; what has been found so far is the result."""
        self._was_aborted = not self.search.is_done

    def completions(self) -> list[CompletionOutput]:
        """The `n` best outputs; after an abort, unfinished beams fill up what is missing."""
        hypotheses = self.search.best(self.params.n)
        completions = [self._completion(index, item) for index, item in enumerate(hypotheses)]
        if self._was_aborted:
            running = zip(self.search.beams, self.search.scores, strict=True)
            for tokens, score in list(running)[: self.params.n - len(completions)]:
                text = self._detokenize(tokens)
                completions.append(
                    CompletionOutput(len(completions), text, list(tokens), score, None, "abort")
                )
        return completions

    def _completion(self, index: int, hypothesis: Hypothesis) -> CompletionOutput:
        stop_token = hypothesis.stop_token
        told = hypothesis.token_ids
        if stop_token is not None and not self.params.include_stop_str_in_output:
            told = told[:-1]  # the token that ends an output is one of its tokens, its text is not its text
        return CompletionOutput(
            index=index,
            text=self._detokenize(told),
            token_ids=list(hypothesis.token_ids),
            cumulative_logprob=hypothesis.cum_logprob,
            finish_reason=hypothesis.finish_reason,
            stop_reason=None if stop_token in self._eos_token_ids else stop_token,
            score=hypothesis.score,
        )

    def _detokenize(self, token_ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return ""
        detokenizer = IncrementalDetokenizer(
            self._tokenizer, self.prompt_token_ids, skip_special_tokens=self.params.skip_special_tokens
        )
        return "".join(map(detokenizer.append, token_ids)) + detokenizer.flush()

    def text_of(self, token_id: int) -> str:
        """One token by itself, for the trace: a beam's text may still change as a whole."""
        return self._tokenizer.token_text(token_id) if self._tokenizer else ""
