"""When a sequence is done: a token that ends it, a string that ends it, or enough tokens.

Checked after every token, in this order, as vLLM does:

    end-of-sequence token   unless `ignore_eos`          reason "stop"
    a stop token                                         reason "stop", names the token
    a stop string           may straddle several tokens  reason "stop", names the string, cuts the text
    `max_tokens`                                         reason "length"

Until `min_tokens` are out, only the last one counts. Read next: `generation.py`.
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
    """The rules of one request."""

    def __init__(self, params: SamplingParams, eos_token_ids: Sequence[int], max_tokens: int) -> None:
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._stop_tokens = frozenset(params.stop_token_ids or ())
        self._stop_strings = tuple(params.stop or ())
        self._include = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self.longest_stop = max((len(text) for text in self._stop_strings), default=0)
        self._searchable_from = 0  # text that came out before `min_tokens` is never searched

    def ends_with_token(self, token_id: int, num_output_tokens: int) -> Stop | None:
        """Does this token end the output, the `num_output_tokens`-th of it?"""
        if num_output_tokens < self._min_tokens:
            return None
        if token_id in self._eos:
            return Stop("stop")
        if token_id in self._stop_tokens:
            return Stop("stop", token_id)
        return None

    def ends_with_text(self, text: str, num_new: int, num_output_tokens: int) -> Stop | None:
        """Does `text`, whose last `num_new` characters are new, hold a stop string? The earliest counts."""
        if not self._stop_strings:
            return None
        if num_output_tokens < self._min_tokens:
            self._searchable_from = len(text)
            return None
        begin = max(self._searchable_from, len(text) - num_new - self.longest_stop + 1)
        found = [(text.find(stop, begin), stop) for stop in self._stop_strings]
        found = [(position, stop) for position, stop in found if position >= 0]
        if not found:
            return None
        position, stop = min(found, key=lambda item: item[0])
        return Stop("stop", stop, position + len(stop) if self._include else position)

    def ends_with_length(self, num_output_tokens: int) -> Stop | None:
        """Are there enough tokens?"""
        return Stop("length") if num_output_tokens >= self._max_tokens else None
