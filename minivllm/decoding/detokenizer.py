"""The incremental detokenizer: tokens go in one by one, whole characters come out.

A token is not a piece of text. It may be one byte of a character that takes three, and the space before a
word may show only in the company of its neighbour. So the newest tokens are decoded together with a few
older ones, and only the difference is text:

    ids    … a b c | d          old = decode(a b c),  new = decode(a b c d)
             └ prefix └ read    if `new` ends in half a character, wait; else give out new[len(old):]

The window moves on with every piece, so each token costs the same however long the text has become.

Source: the prefix and read offsets of Hugging Face's text-generation-inference and of vLLM.
Read next: `stop_criteria.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

HALF_A_CHARACTER = "\ufffd"
CONTEXT_TOKENS = 6
"""Prompt tokens that the first output token is decoded with."""
LONGEST_WAIT_TOKENS = 32
"""Bytes that are no text at all would otherwise be waited for, and decoded again, for ever."""


class Decoder(Protocol):
    """What a detokenizer needs of a tokenizer."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class IncrementalDetokenizer:
    """The text of one sequence's output, growing as tokens are appended."""

    def __init__(
        self, tokenizer: Decoder, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window = list(prompt_token_ids[-CONTEXT_TOKENS:])
        self._read = len(self._window)  # the tokens before it have become text
        self._old = self._decode()

    def append(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still incomplete."""
        self._window.append(token_id)
        new = self._decode()
        waiting = len(self._window) - self._read
        if new.endswith(HALF_A_CHARACTER) and waiting < LONGEST_WAIT_TOKENS:
            return ""
        return self._give_out(new)

    def flush(self) -> str:
        """What is left at the end of the output, incomplete characters included."""
        return self._give_out(self._decode())

    def _give_out(self, new: str) -> str:
        piece = new[len(self._old) :]
        if piece:
            # The tokens just read become the context of the next ones.
            del self._window[: self._read]
            self._old = self._decode()
        self._read = len(self._window)
        if self._read > LONGEST_WAIT_TOKENS:  # tokens without any text, special ones say, must not pile up
            del self._window[:-CONTEXT_TOKENS]
            self._read = len(self._window)
            self._old = self._decode()
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, self._skip_special_tokens)
