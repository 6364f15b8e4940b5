"""Beam search in the engine: the search decides, block tables follow.

`BeamSearch` knows scores, the engine core knows sequences and blocks. Between them each step is

    logits of all beams ──► candidates ──► BeamSearch.advance ──► kept: (parent beam, token), best first
                                                                     │ BeamStep
            a parent with one child goes on in place                 │
            a parent with several children is forked   ◄── core ─────┘
            a parent without children is dropped, and its own blocks are free

so beams that have most of their past in common have most of their blocks in common too, and nothing is
ever copied but a block that two of them are about to write to.

A running beam's tokens belong to its sequence. A finished hypothesis is tokens only: it holds no blocks.

Source: Kwon et al. (SOSP 2023), section 4.4 and figure 9. Read next: `beam_search.py` for the decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minivllm.decoding.beam_search import BeamSearch, Candidate, Hypothesis
from minivllm.decoding.detokenizer import IncrementalDetokenizer
from minivllm.decoding.structured.guided_progress import begin
from minivllm.outputs import CompletionOutput
from minivllm.sampling_params import SamplingParams
from minivllm.scheduling.plan import BeamStep
from minivllm.scheduling.request import Finish
from minivllm.scheduling.request import Sequence as TokenSequence

if TYPE_CHECKING:
    from minivllm.decoding.structured.compile import AnyStructure
    from minivllm.decoding.structured.token_masks import TokenMask
    from minivllm.model.tokenizer import Tokenizer

REJECTED_SHOWN = 8
"""The trace shows so many of the best candidates that were not kept."""


class BeamDecoding:
    """The outputs of one request that searches.

    Args:
        params: what was asked for, `use_beam_search` among it.
        beams: the request's own list of its sequences: the prompt's at first, then the beams, best first.
        max_tokens: final limit of output tokens.
        tokenizer: None leaves all texts empty.
        eos_token_ids: tokens that end a beam, unless `params.ignore_eos`; the first is the end-of-sequence
            token itself, any other is named as the reason.
        temperature: divides the logits; 0 and 1 leave them alone.
        structure: what every output must be, if it must be something.

    Attributes:
        structures: where each running beam stands in it, in the order of their scores; empty without one.
    """

    def __init__(
        self,
        params: SamplingParams,
        beams: Sequence[TokenSequence],
        *,
        max_tokens: int,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int],
        temperature: float = 0.0,
        structure: AnyStructure | None = None,
    ) -> None:
        self.params = params
        self.beams = beams
        self._prompt = beams[0].token_ids[: beams[0].num_prompt_tokens].tolist()
        self.max_tokens = max_tokens
        self.temperature = temperature
        self._tokenizer = tokenizer if params.detokenize else None
        self._eos_token_ids = () if params.ignore_eos else tuple(eos_token_ids)
        self._structure = structure
        self.search = self._new_search()
        self._ended_early: Finish | None = None  # by its caller, or by logits that are no numbers
        self._last: list[CompletionOutput] | None = None  # of a search that failed: its beams are dropped

    def _new_search(self) -> BeamSearch:
        params = self.params
        self.structures = [begin(self._structure)] if self._structure else []
        return BeamSearch(
            params.width,
            max_tokens=self.max_tokens,
            eos_token_ids={*self._eos_token_ids, *(params.stop_token_ids or ())},
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,  # type: ignore[arg-type]  # checked by the parameters
        )

    @property
    def is_finished(self) -> bool:
        return self._ended_early is not None or self.search.is_done

    @property
    def was_aborted(self) -> bool:
        return self._ended_early is not None and self._ended_early.reason == "abort"

    @property
    def finish(self) -> Finish | None:
        """Why the best output ended; None while the search goes on."""
        if self._ended_early:
            return self._ended_early
        return Finish(self.search.best(1)[0].finish_reason) if self.search.is_done else None

    def advance(
        self, request_id: str, beams: Sequence[TokenSequence], candidates: Sequence[Candidate]
    ) -> BeamStep:
        """Take one step of the search with these beams, in the order of their scores."""

        def told(item: Candidate, score: float) -> tuple[int, int, float, str]:
            return beams[item.beam].seq_id, item.token_id, round(score, 6), self._text_of(item.token_id)

        def tokens_of(beam: int) -> Sequence[int]:
            return beams[beam].output_token_ids()

        selection = self.search.advance(candidates, tokens_of, lambda item: not self.goes_on(item))
        if self.structures:
            self.structures = [self.structures[item.beam].after(item.token_id) for item in selection.kept]
        return BeamStep(
            request_id,
            [told(item, item.score) for item in selection.kept],
            [told(item, score) for item, score in selection.finished],
            [told(item, item.score) for item in selection.rejected[:REJECTED_SHOWN]],
            self.finish,
        )

    def masks(self) -> list[TokenMask]:
        """Which tokens may come next, beam by beam."""
        return [progress.mask() for progress in self.structures]

    def goes_on(self, item: Candidate) -> bool:
        """Can anything follow this continuation?"""
        return not self.structures or not self.structures[item.beam].after(item.token_id).is_over

    def problem(self) -> str:
        """Why no beam has a continuation."""
        words = (progress.problem for progress in self.structures if progress.problem)
        return f"its structured output cannot go on: {next(words, 'no token is allowed')}"

    def mark_sent(self) -> None:
        """Nothing to note: a search is told only once, at its end."""

    def rewind(self) -> None:
        """After an interrupt, the search begins again from the prompt (`EngineCore`), unless aborted."""
        self.search = self._new_search()
        if not self.was_aborted:
            self._ended_early = self._last = None

    def abort(self) -> None:
        """End the search here; what has been found so far is the result."""
        if not self.is_finished:
            self._ended_early = Finish("abort")

    def fail(self, reason: str) -> None:
        """End the search here, because its beams cannot be compared any more."""
        self._ended_early = Finish("error", reason)
        self._last = self.completions()
        for completion in self._last:
            completion.finish_reason, completion.stop_reason = self._ended_early

    def completions(self) -> list[CompletionOutput]:
        """The `n` best outputs. If the search ended early, unfinished beams fill up what is missing; if it
        failed, all of them say so, because none is known to be among the best."""
        if self._last is not None:
            return self._last
        hypotheses = self.search.best(self.params.n)
        completions = [self._completion(index, item) for index, item in enumerate(hypotheses)]
        if self._ended_early:
            running = list(zip(self.beams, self.search.scores, strict=True))
            for beam, score in running[: self.params.n - len(completions)]:
                tokens = beam.output_token_ids()
                text = self._detokenize(tokens)
                unfinished = CompletionOutput(len(completions), text, tokens, score, None, *self._ended_early)
                completions.append(unfinished)
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
            stop_reason=None if stop_token in self._eos_token_ids[:1] else stop_token,
            score=hypothesis.score,
        )

    def _detokenize(self, token_ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return ""
        detokenizer = IncrementalDetokenizer(
            self._tokenizer, self._prompt, skip_special_tokens=self.params.skip_special_tokens
        )
        return "".join(map(detokenizer.append, token_ids)) + detokenizer.flush()

    def _text_of(self, token_id: int) -> str:
        """One token by itself, for the trace: a beam's text may still change as a whole."""
        return self._tokenizer.token_text(token_id) if self._tokenizer else ""
