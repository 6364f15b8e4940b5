"""The incremental detokenizer: tokens go in one by one, whole characters come out.

A token is not a piece of text. It may be one byte of a character that takes three, and the space before a
word may show only in the company of its neighbour. So the newest tokens are decoded together with a few
older ones, and only the difference is text:

    ids    … a b c | d          old = decode(a b c),  new = decode(a b c d)
           context └ read       if `new` ends in half a character, wait; else give out what `old` lacks

The window moves on with every piece, so each token costs the same however long the text has become.
All pieces together are what the whole output decodes to after its prompt (a property test).

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

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class IncrementalDetokenizer:
    """The text of one sequence's output, growing as tokens are appended."""

    def __init__(
        self, tokenizer: Decoder, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window = self._context(prompt_token_ids)
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
        return self._give_out(self._decode()) if len(self._window) > self._read else ""

    def _give_out(self, new: str) -> str:
        if new == self._old:
            # Tokens without text (special ones, say) would push the context out of the window.
            # Before the first text they stay: a lone "▁" is no text, and yet the next word's space.
            del self._window[self._read if new else LONGEST_WAIT_TOKENS :]
            self._read = len(self._window)
            return ""
        whole = self._old.rstrip(HALF_A_CHARACTER)
        if new.startswith(self._old):
            piece = new[len(self._old) :]
        elif new.startswith(whole):  # the prompt ended in half a character, and now it is complete
            piece = new[len(whole) :]
        else:
            # Some tokenizers judge bytes in a row together: bad ones spoil the good ones before them, which
            # are out already.
            piece = self._tokenizer.decode(self._window[self._read :], self._skip_special_tokens)
        del self._window[: self._read]  # the tokens just read become the context of the next ones
        self._read = len(self._window)
        self._old = self._decode()
        return piece

    def _context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The last few tokens of the prompt, from a place where a character begins."""
        longest = min(LONGEST_WAIT_TOKENS, len(prompt_token_ids))
        for count in range(CONTEXT_TOKENS, longest + 1):
            window = list(prompt_token_ids[-count:])
            if not self._tokenizer.decode(window, self._skip_special_tokens).startswith(HALF_A_CHARACTER):
                return window
        return list(prompt_token_ids[-CONTEXT_TOKENS:])

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, self._skip_special_tokens)


def token_texts(tokenizer: Decoder, token_ids: Sequence[int]) -> tuple[str, ...]:
    """What each token of a text adds to it, special tokens by name: how a reader sees a prompt."""
    detokenizer = IncrementalDetokenizer(tokenizer, (), skip_special_tokens=False)
    return tuple(detokenizer.append(token_id) for token_id in token_ids)
