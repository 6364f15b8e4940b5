"""A generation: what one sequence has said so far, and whether it is done.

The scheduler counts tokens; a `Generation` understands them. For each new token it keeps the id, turns it
into text, notes its log-probability and asks the stop criteria, in that order, because a stop string can
only be found in text.

    SampledToken ──► output_token_ids ──► text ──► stop? ──► completion()

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

if TYPE_CHECKING:
    from minivllm.decoding.sampler import SampledToken
    from minivllm.model.tokenizer import Tokenizer


class Generation:
    """The output of one sequence, growing token by token.

    Args:
        params: what the request asked for.
        prompt, prompt_token_ids: what it continues.
        max_tokens: final limit of output tokens, capped to what the model and the pool allow.
        tokenizer: None leaves all texts empty.
        eos_token_ids: tokens that end the sequence, unless `params.ignore_eos`.
        fallback_seed: seed of the random stream if `params.seed` is None.

    Attributes:
        finish_reason: None while it goes on, then "stop", "length" or "abort".
        stop_reason: the stop token id or stop string that ended it, if one did.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: str | None,
        prompt_token_ids: list[int],
        *,
        max_tokens: int,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int],
        fallback_seed: int,
    ) -> None:
        self.params = params
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.output_token_ids: list[int] = []
        self.cumulative_logprob = 0.0
        self.logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        # The first prompt token follows nothing, so nothing can say how likely it was.
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.sampling = SamplingState(
            params,
            prompt_token_ids,
            self.output_token_ids,
            fallback_seed=fallback_seed,
            eos_token_ids=eos_token_ids,
            tokenizer=tokenizer,
        )
        self._tokenizer = tokenizer
        self._criteria = StopCriteria(params, eos_token_ids, max_tokens)
        self._text = ""
        self._detokenizer = (
            IncrementalDetokenizer(
                tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens
            )
            if tokenizer and params.detokenize
            else None
        )
        self._told_tokens = 0  # how much the caller has been given already, for DELTA outputs
        self._told_characters = 0

    @property
    def num_prompt_logprobs(self) -> int:
        """Prompt positions that have their entry."""
        return len(self.prompt_logprobs or ())

    def append(self, token: SampledToken) -> str:
        """Take one more token; returns the text that it added to the output."""
        self.output_token_ids.append(token.token_id)
        if token.logprobs is not None and self.logprobs is not None:
            self.logprobs.append(self._with_texts(token.logprobs))
            self.cumulative_logprob += token.logprobs[token.token_id].logprob
        count = len(self.output_token_ids)
        before = len(self._text)
        stop = self._criteria.ends_with_token(token.token_id, count)
        # The token that ends an output is one of its tokens, but its text is not part of the text.
        if self._detokenizer and (stop is None or self.params.include_stop_str_in_output):
            self._text += self._detokenizer.append(token.token_id)
        stop = (
            stop
            or self._criteria.ends_with_text(self._text, len(self._text) - before, count)
            or self._criteria.ends_with_length(count)
        )
        if stop:
            self._end(stop)
        return self._text[before:]

    def abort(self) -> None:
        """End here, because the caller says so."""
        self._end(Stop("abort"))

    def append_prompt_logprobs(self, entries: list[dict[int, Logprob]]) -> None:
        """Note how likely the next prompt tokens were."""
        assert self.prompt_logprobs is not None, "nobody asked for prompt_logprobs"
        self.prompt_logprobs.extend(self._with_texts(entry) for entry in entries)

    def completion(self, index: int = 0) -> CompletionOutput:
        """The output so far, as number `index` of its request; with `output_kind=DELTA` only what is new
        since the last call."""
        delta = self.params.output_kind is RequestOutputKind.DELTA
        text = self._releasable_text()
        first_token = self._told_tokens if delta else 0
        first_character = self._told_characters if delta else 0
        self._told_tokens, self._told_characters = len(self.output_token_ids), len(text)
        return CompletionOutput(
            index=index,
            text=text[first_character:],
            token_ids=self.output_token_ids[first_token:],
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            logprobs=None if self.logprobs is None else self.logprobs[first_token:],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _end(self, stop: Stop) -> None:
        self.finish_reason, self.stop_reason = stop.finish_reason, stop.stop_reason
        if stop.text_length is not None:
            self._text = self._text[: stop.text_length]
        elif self._detokenizer:
            self._text += self._detokenizer.flush()

    def _releasable_text(self) -> str:
        """The text, without an ending that might yet turn out to be the beginning of a stop string."""
        held_back = self._criteria.longest_stop - 1
        if self.finish_reason is not None or held_back <= 0 or self.params.include_stop_str_in_output:
            return self._text
        return self._text[: max(self._told_characters, len(self._text) - held_back)]

    def _with_texts(self, entry: dict[int, Logprob]) -> dict[int, Logprob]:
        if self._tokenizer and self.params.detokenize:
            for token_id, logprob in entry.items():
                logprob.decoded_token = self._tokenizer.token_text(token_id)
        return entry
