"""One output: what a sequence has said so far as text, and whether it is done.

The sequence owns the tokens; an `OutputState` understands them. For each new token it makes the text, notes
its log-probability and asks the stop criteria, in that order: a stop string can only be found in text.

    SampledToken ──► text ──► stop? ──► the token is appended to the sequence ──► completion()

Everything here but the log-probabilities is a function of the tokens: so after an interrupt it is made again
from them (`rewind`).

Read next: `detokenizer.py`, `stop_criteria.py`, `sampling_state.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minivllm.decoding.detokenizer import IncrementalDetokenizer
from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.stop_criteria import Stop, StopCriteria
from minivllm.outputs import CompletionOutput, Logprob
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.request import Finish
from minivllm.scheduling.request import Sequence as TokenSequence

if TYPE_CHECKING:
    from minivllm.decoding.sampler import SampledToken
    from minivllm.decoding.structured.progress import AllowedHere, Progress
    from minivllm.model.tokenizer import Tokenizer


class OutputState:
    """The output of one sequence, growing token by token.

    Args:
        params: what the request asked for.
        sequence: owner of the tokens, with its prompt.
        max_tokens: final limit of output tokens, capped to what the model and the pool allow.
        tokenizer: None leaves all texts empty.
        eos_token_ids: tokens that end the sequence, unless `params.ignore_eos` (`stop_criteria.py`).
        structure: where it stands in the structure that it must have, if it must have one.

    Attributes:
        finish: why it ended; None while it goes on.
        num_tokens: output tokens that it has understood.
    """

    def __init__(
        self,
        params: SamplingParams,
        sequence: TokenSequence,
        *,
        max_tokens: int,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int],
        structure: Progress | None = None,
    ) -> None:
        self.params = params
        self.sequence = sequence
        self.cumulative_logprob = 0.0
        self.logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        # The first prompt token follows nothing, so nothing can say how likely it was.
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self.sampling = SamplingState(
            params, sequence, eos_token_ids=eos_token_ids, tokenizer=tokenizer, structure=structure
        )
        self._structure = structure
        self._tokenizer = tokenizer if params.detokenize else None
        self._criteria = StopCriteria(params, eos_token_ids, max_tokens)
        self._sent_tokens = 0  # what the caller has been given already, for DELTA outputs
        self._sent_characters = 0
        self._sent_finish = False
        self.was_aborted = False
        self._begin()

    def _begin(self) -> None:
        self.num_tokens = 0
        self.finish: Finish | None = None
        self._text = ""
        if self._structure:
            self._structure.rewind()
        self._detokenizer = (
            IncrementalDetokenizer(
                self._tokenizer,
                self.sequence.token_ids[: self.sequence.num_prompt_tokens],
                skip_special_tokens=self.params.skip_special_tokens,
            )
            if self._tokenizer
            else None
        )

    @property
    def num_prompt_logprobs(self) -> int:
        """Prompt positions that have their entry."""
        return len(self.prompt_logprobs or ())

    @property
    def output_token_ids(self) -> list[int]:
        """The tokens that it has understood."""
        return self.sequence.output_token_ids()[: self.num_tokens]

    def attach(self, sequence: TokenSequence) -> None:
        """From now on the output is that of `sequence`: a fork of the one that it began with."""
        self.sequence = self.sampling.sequence = sequence

    def append(self, token: SampledToken) -> str:
        """Understand one more token, which is about to be appended to the sequence; returns its text."""
        if token.logprobs is not None and self.logprobs is not None:
            self.logprobs.append(self._with_texts(token.logprobs))
            self.cumulative_logprob += token.logprobs[token.token_id].logprob
        return self._read(token.token_id)

    def told_of(self, allowed: AllowedHere) -> tuple[int, list[tuple[int, str, float, bool]]]:
        """What a token was chosen from, with the candidates' texts: for the trace."""
        text = self._tokenizer.token_text if self._tokenizer else str
        return allowed.num_allowed, [
            (token, text(token), round(chance, 6), is_allowed)
            for token, chance, is_allowed in allowed.candidates
        ]

    def rewind(self) -> None:
        """Make everything again from the tokens that the sequence has, after an interrupt."""
        self._begin()
        tokens = self.sequence.output_token_ids()
        if self.logprobs is not None:
            del self.logprobs[len(tokens) :]
            named = zip(tokens, self.logprobs, strict=True)
            self.cumulative_logprob = sum(entry[token].logprob for token, entry in named)
        for token_id in tokens:
            self._read(token_id)
        if self.was_aborted and self.finish is None:
            self.abort()

    def _read(self, token_id: int) -> str:
        self.num_tokens = count = self.num_tokens + 1
        before = len(self._text)
        stop = self._criteria.ends_with_token(token_id, count)
        if self._structure and stop is None:
            self._structure.append(token_id)
        # The token that ends an output is one of its tokens, but its text is not part of the text.
        if self._detokenizer and (stop is None or self.params.include_stop_str_in_output):
            self._text += self._detokenizer.append(token_id)
        stop = (
            stop
            or self._criteria.ends_with_text(self._text, len(self._text) - before, count)
            or (Stop("stop") if self._structure and self._structure.is_over else None)
            or self._criteria.ends_with_length(count)
        )
        if stop:
            self._end(stop)
        return self._text[before:]

    def abort(self) -> None:
        """End here, because the caller says so."""
        self.was_aborted = True
        self._end(Stop("abort"))

    def fail(self, reason: str) -> None:
        """End here, because no token can be chosen. `rewind` forgets it: the step will fail again."""
        self._end(Stop("error", reason))

    def append_prompt_logprobs(self, entries: list[dict[int, Logprob]]) -> None:
        """Note how likely the next prompt tokens were."""
        assert self.prompt_logprobs is not None, "prompt_logprobs were not asked for"
        self.prompt_logprobs.extend(self._with_texts(entry) for entry in entries)

    @property
    def has_news(self) -> bool:
        """Is there anything that the caller has not been given yet?"""
        return self.num_tokens > self._sent_tokens or (self.finish is not None and not self._sent_finish)

    def completion(self, index: int = 0) -> CompletionOutput:
        """The output so far, as number `index` of its request; with `output_kind=DELTA` only what was not
        sent yet (`mark_sent`)."""
        delta = self.params.output_kind is RequestOutputKind.DELTA
        text = self._releasable_text()
        first_token = self._sent_tokens if delta else 0
        first_character = self._sent_characters if delta else 0
        finish = self.finish or Finish("")
        return CompletionOutput(
            index=index,
            text=text[first_character:],
            token_ids=self.sequence.output_token_ids(first_token),
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            logprobs=None if self.logprobs is None else self.logprobs[first_token:],
            finish_reason=finish.reason or None,
            stop_reason=finish.stop,
        )

    def mark_sent(self) -> None:
        """The caller has been given what `completion` says now.

        Never less than before: after an interrupt, an output may have to catch up with what was sent.
        """
        self._sent_tokens = max(self._sent_tokens, self.num_tokens)
        self._sent_characters = max(self._sent_characters, len(self._releasable_text()))
        self._sent_finish = self._sent_finish or self.finish is not None

    def _end(self, stop: Stop) -> None:
        self.finish = Finish(stop.finish_reason, stop.stop_reason)
        if stop.text_length is not None:
            self._text = self._text[: stop.text_length]
        elif self._detokenizer:
            self._text += self._detokenizer.flush()

    def _releasable_text(self) -> str:
        """The text, without an ending that might yet turn out to be the beginning of a stop string."""
        held_back = self._criteria.longest_stop - 1
        if self.finish is not None or held_back <= 0 or self.params.include_stop_str_in_output:
            return self._text
        return self._text[: max(self._sent_characters, len(self._text) - held_back)]

    def _with_texts(self, entry: dict[int, Logprob]) -> dict[int, Logprob]:
        if self._tokenizer:
            for token_id, logprob in entry.items():
                logprob.decoded_token = self._tokenizer.token_text(token_id)
        return entry
