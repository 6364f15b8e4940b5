"""The vocabulary as a tree: tokens that begin with the same bytes share the way to them.

    {   ►  token 90            An automaton walks the tree instead of reading token after token: where it
    ├ "   ►  token 4711        cannot go on, the whole subtree is struck out at once.
    │ └ a   ►  token 812
    └ }   ►  token 1201        In memory: rows in the order of a walk, each with the row after its subtree.

Special tokens have no bytes and are not in the tree: an output never holds one, but the one that ends it.

Source: the `toktrie` of `llguidance`. Read next: `token_masks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Place = TypeVar("Place")


class Vocabulary:
    """All tokens of a model, by the bytes that they stand for.

    Args:
        token_bytes: of each token, by id; None for special ones and for ids without a token.

    Attributes:
        single_bytes: bytes that are a token by themselves: with these, any text of them can be written.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self.token_bytes = tuple(token_bytes)
        spelled = sorted((data, token) for token, data in enumerate(self.token_bytes) if data)
        self.single_bytes = frozenset(data[0] for data, _ in spelled if len(data) == 1)
        self.bytes: list[int] = []
        self.depths: list[int] = []
        self.tokens: list[list[int]] = []
        self.ends: list[int] = []
        open_rows: list[int] = []
        before = b""
        for data, token in spelled:
            shared = _shared_length(before, data)
            while len(open_rows) > shared:
                self.ends[open_rows.pop()] = len(self.bytes)
            for depth in range(shared, len(data)):
                open_rows.append(len(self.bytes))
                self.bytes.append(data[depth])
                self.depths.append(depth)
                self.tokens.append([])
                self.ends.append(-1)
            self.tokens[open_rows[-1]].append(token)
            before = data
        for row in open_rows:
            self.ends[row] = len(self.bytes)
        self.longest = max(self.depths, default=0) + 1

    def __len__(self) -> int:
        return len(self.token_bytes)

    @property
    def num_rows(self) -> int:
        """Rows of the tree: its root is none."""
        return len(self.bytes)

    def walk(
        self,
        place: Place,
        advance: Callable[[Place, int], Place | None],
        first: int = 0,
        end: int | None = None,
        at_row: Callable[[int, Place], object] | None = None,
    ) -> list[int]:
        """The tokens that an automaton can read from `place` on.

        Args:
            advance: place and byte → the next place, or None.
            first, end: rows of one subtree; `place` is where its root was reached. The whole tree, if left
            out. at_row: is told of each row that is reached, with its place.
        """
        end = self.num_rows if end is None else end
        if first >= end:
            return []
        top = self.depths[first]
        places: list[Place] = [place] * (self.longest + 1 - top)
        found: list[int] = []
        row = first
        all_bytes, depths, tokens, ends = self.bytes, self.depths, self.tokens, self.ends
        while row < end:
            depth = depths[row] - top
            reached = advance(places[depth], all_bytes[row])
            if reached is None:
                row = ends[row]
                continue
            found += tokens[row]
            places[depth + 1] = reached
            if at_row is not None:
                at_row(row, reached)
            row += 1
        return found


def _shared_length(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with alike."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return index
    return min(len(one), len(other))
