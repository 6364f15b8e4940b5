"""Plain text: where any character may come, most of the vocabulary is answered at once.

Within a string of JSON, a few tokens have a quote, a backslash or half a character in them; thousands have
nothing but characters that stand for themselves. Whether those may come is one question for all of them: how
many such characters can be read one after the other, whichever they are (a *run*)?

    {"name": "Wal           any number: no maxLength     all plain tokens at once; only the rest is walked
    {"name": "Walter        three: maxLength is 9        those of up to three characters at once

The rest is a tree of its own, made when it is first needed. For few of them to be made, a run counts as the
next lower power of two; where it is 0, the rest is the whole vocabulary.

Source: the slices of `llguidance`. Read next: `token_masks.py`.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from minivllm.decoding.structured.characters import byte_runs, minus
from minivllm.decoding.structured.json_values import ASCII, PLAIN, TO_ESCAPE
from minivllm.decoding.structured.rules import Node
from minivllm.decoding.structured.vocabulary import Vocabulary

ASCII_BYTES = tuple(code for low, high in PLAIN for code in range(low, min(high, 127) + 1))
OTHER_CHARACTERS = tuple(run for pair in minus(PLAIN, ASCII) for run in byte_runs(*pair))
"""The characters beyond ASCII, as runs of ranges of bytes."""
NEVER_PLAIN = bytes(code for low, high in TO_ESCAPE for code in range(low, high + 1))


class Parted(NamedTuple):
    """A vocabulary in two parts."""

    plain: list[int]
    """Tokens of plain characters, no more of them than the run."""
    rest: Vocabulary


class PlainText:
    """Which tokens are plain, and where they may come."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._parted = {0: Parted([], vocabulary)}
        self._after: dict[Node, Node | None] = {}
        # Where a byte is no token by itself, rules leave it out, and no node reads all characters.
        self._has_all_bytes = len(vocabulary.single_bytes) == 256

    def parted(self, run: int) -> Parted:
        """The plain tokens of at most so many characters, and the others."""
        if run not in self._parted:
            plain = [token for token, length in enumerate(self._lengths) if 0 < length <= run]
            self._parted[run] = Parted(plain, self._vocabulary.without(frozenset(plain)))
        return self._parted[run]

    def run(self, node: Node) -> int:
        """How many plain characters can be read from here at least, whichever they are."""
        if self._after_any(node) is None:  # as nearly everywhere outside of strings
            return 0
        run = 0
        while run < self._longest and (target := self._after_any(node)) is not None:
            if target is node:
                return self._longest
            run, node = run + 1, target
        return self._longest if run == self._longest else 1 << (run.bit_length() - 1)

    def forget(self) -> None:
        """Forget all nodes."""
        self._after.clear()

    @cached_property
    def _lengths(self) -> list[int]:
        """Of each token, by id, how many characters it has; 0, if it is not plain."""
        return [_plain_length(data or b"") for data in self._vocabulary.token_bytes]

    @cached_property
    def _longest(self) -> int:
        return max(self._lengths, default=0)

    def _after_any(self, node: Node) -> Node | None:
        """The one node to which every plain character leads."""
        if len(node.steps) < len(ASCII_BYTES) or not self._has_all_bytes:
            return None
        if node not in self._after:
            self._after[node] = _after_any(node)
        return self._after[node]


def _plain_length(data: bytes) -> int:
    if not data.isascii():
        try:
            return len(data.decode()) * (data.translate(None, NEVER_PLAIN) == data)
        except UnicodeDecodeError:
            return 0
    return len(data) * (data.translate(None, NEVER_PLAIN) == data)


def _after_any(node: Node) -> Node | None:
    targets = {node.steps.get(byte) for byte in ASCII_BYTES}
    target = targets.pop()
    if targets or target is None:
        return None
    if _after_others(node) == {target}:
        return target
    for rule, after in node.calls:  # a long string has those beyond ASCII in a rule of their own
        if after is target and all(end is not None and end.is_final for end in _after_others(rule.entry)):
            return target
    return None


def _after_others(node: Node) -> set[Node | None]:
    """Where one may stand after a character beyond ASCII; None among them, if one cannot be read."""
    found = set[Node | None]()
    for ranges in OTHER_CHARACTERS:
        places = {node}
        for low, high in ranges:
            reached = {place.steps.get(byte) for place in places for byte in range(low, high + 1)}
            if None in reached:
                return {None}
            places = reached  # type: ignore[assignment]
        found |= places
    return found
