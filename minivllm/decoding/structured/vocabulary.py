"""The vocabulary as a tree: tokens that begin with the same bytes share the way to them.

    {   ►  token 90            An automaton walks the tree instead of reading token after token: where it
    ├ "   ►  token 4711        cannot go on, the whole branch is struck out at once.
    │ └ a   ►  token 812
    └ }   ►  token 1201        In memory: all tokens in the order of their bytes; a branch is a part of it.

Two things keep it cheap. Only bytes are looked at that the branch has *and* the automaton can read: within a
name that is one byte of two hundred. And a branch is parted by its next bytes when a walk first comes there.

Special tokens have no bytes and are not in the tree: an output never holds one, but the one that ends it.

Source: the `toktrie` of `llguidance`. Read next: `plain_text.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from copy import copy
from itertools import groupby
from typing import TypeVar

Place = TypeVar("Place")


class Branch:
    """The tokens that begin with the same bytes.

    Attributes:
        first, inner, end: they are `in_order[first:end]` of the vocabulary; those from `inner` on have more
            bytes than they share.
        depth: how many bytes they share.
        children: by the next byte; `Vocabulary.children` makes them. None: not asked for yet.
    """

    __slots__ = ("children", "depth", "end", "first", "inner")

    def __init__(self, first: int, inner: int, end: int, depth: int) -> None:
        self.first, self.inner, self.end, self.depth = first, inner, end, depth
        self.children: dict[int, Branch] | None = None if inner < end else {}


class Vocabulary:
    """All tokens of a model, by the bytes that they stand for.

    Args:
        token_bytes: of each token, by id; None for special ones and for ids without a token.

    Attributes:
        single_bytes: bytes that are a token by themselves: with these, any text of them can be written.
        in_order: the tokens that have bytes, in the order of these.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self.token_bytes = tuple(token_bytes)
        spelled = sorted((data, token) for token, data in enumerate(self.token_bytes) if data)
        self.single_bytes = frozenset(data[0] for data, _ in spelled if len(data) == 1)
        self._plant(spelled)

    def __len__(self) -> int:
        return len(self.token_bytes)

    def without(self, tokens: Set[int]) -> Vocabulary:
        """The same vocabulary, with a tree that lacks these tokens."""
        other = copy(self)
        pairs = zip(self._data, self.in_order, strict=True)
        other._plant([(data, token) for data, token in pairs if token not in tokens])
        return other

    def _plant(self, spelled: Sequence[tuple[bytes, int]]) -> None:
        self._data = [data for data, _ in spelled]
        self.in_order = [token for _, token in spelled]
        self.root = Branch(0, 0, len(spelled), 0)

    def children(self, branch: Branch) -> dict[int, Branch]:
        """The branches of a branch, by their byte."""
        if branch.children is None:
            branch.children = self._parted(branch)
        return branch.children

    def ending_at(self, branches: Iterable[Branch]) -> Iterable[int]:
        """The tokens that have no more bytes than one of these branches shares."""
        for branch in branches:
            yield from self.in_order[branch.first : branch.inner]

    def walk(
        self,
        place: Place,
        readable: Callable[[Place], Set[int]],
        advance: Callable[[Place, int], Place | None],
        branches: Iterable[Branch] | None = None,
        at_branch: Callable[[Branch, Place], object] = lambda branch, place: None,
    ) -> list[int]:
        """The tokens that an automaton can read from `place` on.

        Args:
            readable: place → bytes that may come next; others are not tried.
            advance: place and byte → the next place, or None.
            branches: where `place` was reached; tokens that end there are not meant. The root, if left out.
            at_branch: is told of each branch that is reached, if more bytes follow, and of its place.
        """
        found: list[int] = []
        waiting = [(branch, place) for branch in ((self.root,) if branches is None else branches)]
        in_order = self.in_order
        while waiting:
            branch, place = waiting.pop()
            children = self.children(branch)
            for byte in children.keys() & readable(place):
                child = children[byte]
                reached = advance(place, byte)
                if reached is None:
                    continue
                found += in_order[child.first : child.inner]
                if child.inner < child.end:
                    waiting.append((child, reached))
                    at_branch(child, reached)
        return found

    def _parted(self, branch: Branch) -> dict[int, Branch]:
        data, depth = self._data, branch.depth
        children = {}
        for byte, places in groupby(range(branch.inner, branch.end), lambda place: data[place][depth]):
            first, *others = places
            end = first + 1 + len(others)
            inner = first
            while inner < end and len(data[inner]) == depth + 1:
                inner += 1
            children[byte] = Branch(first, inner, end, depth + 1)
        return children
