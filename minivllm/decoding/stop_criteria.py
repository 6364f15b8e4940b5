"""When a sequence is done: a token that ends it, a string that ends it, or enough tokens.

Checked after every token, in this order, as vLLM does:

    end-of-sequence token   unless `ignore_eos`          reason "stop"
    another of the model's  unless `ignore_eos`          reason "stop", names the token
    a stop token                                         reason "stop", names the token
    a stop string           may straddle several tokens  reason "stop", names the string, cuts the text
    `max_tokens`                                         reason "length"

The token that ends an output is one of its tokens, but not part of its text. Until `min_tokens` are out,
only the last rule counts: the sampler does not choose a stop token before, and a stop string must be
completed by a later token.

Read next: `generation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class Stop:
    """Why a sequence ended."""

    finish_reason: str
    stop_reason: int | str | None = None
    text_length: int | None = None
    """Characters of the output that remain, where a stop string cuts it."""


class StopCriteria:
    """The rules of one request. The first of `eos_token_ids` is the end-of-sequence token itself."""

    def __init__(self, params: SamplingParams, eos_token_ids: Sequence[int], max_tokens: int) -> None:
        eos_token_ids = () if params.ignore_eos else eos_token_ids
        self._eos = eos_token_ids[0] if eos_token_ids else None
        self._stop_tokens = frozenset([*eos_token_ids, *(params.stop_token_ids or ())])
        self._stop_strings = tuple(params.stop or ())
        self._include = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self.longest_stop = max((len(text) for text in self._stop_strings), default=0)

    def ends_with_token(self, token_id: int, num_output_tokens: int) -> Stop | None:
        """Does this token end the output, the `num_output_tokens`-th of it?"""
        if num_output_tokens < self._min_tokens:
            return None
        if token_id == self._eos:
            return Stop("stop")
        if token_id in self._stop_tokens:
            return Stop("stop", token_id)
        return None

    def ends_with_text(self, text: str, num_new: int, num_output_tokens: int) -> Stop | None:
        """Does a stop string end in the last `num_new` characters of `text`, those that are new?

        Where there are several, the one that begins first counts, so that no stop string remains in the
        text. (vLLM takes the one named first.)
        """
        if not self._stop_strings or not num_new or num_output_tokens <= self._min_tokens:
            return None
        found: list[tuple[int, str]] = []
        for stop in self._stop_strings:
            # What ended earlier was looked at earlier: the search costs the same however long the text is.
            position = text.find(stop, max(0, len(text) - num_new - len(stop) + 1))
            if position >= 0:
                found.append((position, stop))
        if not found:
            return None
        position, stop = min(found, key=lambda item: item[0])
        return Stop("stop", stop, position + len(stop) if self._include else position)

    def ends_with_length(self, num_output_tokens: int) -> Stop | None:
        """Are there enough tokens?"""
        return Stop("length") if num_output_tokens >= self._max_tokens else None
