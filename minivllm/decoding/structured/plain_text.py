"""Plain text: where any character may come, most of the vocabulary is answered at once.

Within a string of JSON, a few tokens have a quote, a backslash or half a character in them; thousands have
nothing but characters that stand for themselves. Whether those may come is one question for all of them: how
many such characters can be read one after the other, whichever they are (a *run*)?

    {"name": "Wal       any number: no maxLength     all plain tokens at once; only the others are walked
    {"name": "Walter    three: maxLength is 9        those of up to three characters at once, none longer

A run that ends sooner than the longest token counts only where nothing plain can be read behind it, and in no
other way: a pattern that goes on with letters has to be walked.

Source: the slices of `llguidance`. Read next: `token_masks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from minivllm.decoding.structured.characters import byte_runs, minus
from minivllm.decoding.structured.json_values import ASCII as ASCII_RANGE
from minivllm.decoding.structured.json_values import PLAIN, TO_ESCAPE
from minivllm.decoding.structured.pushdown import Stacks
from minivllm.decoding.structured.rules import Node
from minivllm.decoding.structured.vocabulary import Vocabulary

ASCII_BYTES = tuple(code for low, high in PLAIN for code in range(low, min(high, 127) + 1))
OTHER_CHARACTERS = tuple(run for pair in minus(PLAIN, ASCII_RANGE) for run in byte_runs(*pair))
"""The characters beyond ASCII, as runs of ranges of bytes."""
FIRST_BYTES = frozenset(ASCII_BYTES) | set(range(0xC2, 0xF5))
ASCII = frozenset(range(128))
NEVER_PLAIN = bytes(code for low, high in TO_ESCAPE for code in range(low, high + 1))


class After(NamedTuple):
    """What comes after any plain character."""

    node: Node
    is_only: bool
    """No plain character leads anywhere else."""


class PlainText:
    """Which tokens are plain, and where they may come."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._runs: dict[Node, int] = {}
        self._after: dict[Node, After | None] = {}
        self._ends: dict[Node, set[Node | None]] = {}

    @cached_property
    def others(self) -> Vocabulary:
        """The vocabulary with a tree of what is not plain."""
        return self._vocabulary.without({token for token, length in enumerate(self._lengths) if length})

    def tokens(self, run: int) -> list[int]:
        """The plain tokens of at most so many characters."""
        return [token for token, length in enumerate(self._lengths) if 0 < length <= run]

    def run(self, state: Stacks) -> int:
        """Plain tokens of up to so many characters may come, and none longer; 0, if that cannot be said."""
        wide = [node for node in state.branches if len(node.steps) >= len(ASCII_BYTES)]
        if not wide:  # as nearly everywhere outside of strings
            return 0
        run = max(map(self._run, wide))
        return run if run == self._longest or _is_alone(wide[0], state) else 0

    def forget(self) -> None:
        """Forget all nodes."""
        self._runs.clear()
        self._after.clear()
        self._ends.clear()

    @cached_property
    def _lengths(self) -> list[int]:
        """Of each token, by id, how many characters it has; 0, if it is not plain."""
        if len(self._vocabulary.single_bytes) < 256:  # rules leave bytes out that are no token by themselves
            return [0] * len(self._vocabulary)
        return [_plain_length(data or b"") for data in self._vocabulary.token_bytes]

    @cached_property
    def _longest(self) -> int:
        return max(self._lengths, default=0)

    def _run(self, node: Node) -> int:
        """The same, where a text can be read by this node alone."""
        if node not in self._runs:
            self._runs[node] = self._count(node)
        return self._runs[node]

    def _count(self, node: Node) -> int:
        is_only = True
        for run in range(self._longest):
            after = self._after_any(node)
            if after is None:
                return run if is_only and reads_nothing_plain(node) else 0
            is_only = is_only and after.is_only
            if after.node is node:
                break
            node = after.node
        return self._longest

    def _after_any(self, node: Node) -> After | None:
        """Where one stands after a plain character, if that is the same for all of them."""
        if node not in self._after:
            targets = {node.steps.get(byte) for byte in ASCII_BYTES}
            target = targets.pop()
            self._after[node] = None if targets or target is None else self._after_others(node, target)
        return self._after[node]

    def _after_others(self, node: Node, target: Node) -> After | None:
        """The same, where those of ASCII lead to this target."""
        if self._ends_of(node) == {target}:
            return After(target, not node.calls and not node.is_final)
        for rule, after in node.calls:  # a long string has the others in a rule of their own
            ends = self._ends_of(rule.entry)
            if after is target and all(end is not None and end.is_final for end in ends):
                is_only = len(node.calls) == 1 and not node.is_final and node.steps.keys() <= ASCII
                return After(target, is_only and _is_only_others(rule.entry, ends))
        return None

    def _ends_of(self, node: Node) -> set[Node | None]:
        if node not in self._ends:
            self._ends[node] = ends_of_others(node)
        return self._ends[node]


def _plain_length(data: bytes) -> int:
    if not data.isascii():
        try:
            return len(data.decode()) * (data.translate(None, NEVER_PLAIN) == data)
        except UnicodeDecodeError:
            return 0
    return len(data) * (data.translate(None, NEVER_PLAIN) == data)


def reads_nothing_plain(node: Node) -> bool:
    """Can no plain character come next?"""
    return not node.calls and not node.is_final and node.steps.keys().isdisjoint(FIRST_BYTES)


def _is_only_others(entry: Node, ends: Iterable[Node | None]) -> bool:
    """Does a rule allow, of plain texts, only a single character beyond ASCII?"""
    is_apart = not entry.is_final and not entry.calls and entry.steps.keys().isdisjoint(ASCII_BYTES)
    return is_apart and all(end is not None and end.is_end for end in ends)


def _is_alone(node: Node, state: Stacks) -> bool:
    """Is all that may come next read by this node, or by rules that it calls and that come back to it?"""
    back = {rule.entry: after for rule, after in node.calls}
    return all(
        at is node or (at in back and not below.has_empty and [*below.branches] == [back[at]])
        for at, below in state.branches.items()
    )


def ends_of_others(node: Node) -> set[Node | None]:
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
