"""Token masks: in a state of the automaton, which tokens may come next.

A token is allowed if the automaton can read all its bytes. Most of that does not depend on the stack: within
a string, any token of letters stays in the string, whichever object the string is in. So for each node, once:

    inside     tokens that are read without leaving the node's rule, or calling another
    exits      rows of the vocabulary's tree where the rule might be left: after `"`, say

and for each state only the subtrees below the exits are walked with the stacks: few, as few tokens go on
after the end of a string. The mask of a state is then remembered with it.

Source: the context-independent tokens of Dong et al., "XGrammar" (2024), section 3.1.
Read next: `progress.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from minivllm.decoding.structured.pushdown import DEEPEST, MOST_STATES, Pushdown, Stacks
from minivllm.decoding.structured.rules import Node
from minivllm.decoding.structured.vocabulary import Vocabulary

MOST_MASK_BYTES = 1 << 26
"""Of remembered masks, for one grammar."""


class TokenMask:
    """Which tokens are struck out, as one byte each: 1 struck out, 0 allowed.

    Attributes:
        struck_out: [vocab_size] bytes.
        num_allowed: how many are not.
        tensors: the same as tensors, by device, and as "ids" of what is allowed: kept by what applies them.
    """

    __slots__ = ("num_allowed", "struck_out", "tensors")

    def __init__(self, struck_out: bytearray) -> None:
        self.struck_out = struck_out
        self.num_allowed = struck_out.count(0)
        self.tensors: dict[Any, Any] = {}


class Inside(NamedTuple):
    """What of the vocabulary a node can read within its rule."""

    struck_out: int
    """All other tokens, as the bytes of `TokenMask` in one large integer: then masks are joined by `&`."""
    exits: dict[Node, list[int]]
    """Node at which the rule might be left → rows of the tree where that is, if more bytes follow."""


class InsideMasks:
    """What does not depend on stacks, for all grammars over one vocabulary: many have nodes in common."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.all_struck_out = int.from_bytes(b"\1" * len(vocabulary), "little")
        self._known: dict[Node, Inside] = {}

    def of(self, node: Node) -> Inside:
        """What a node can read by itself."""
        found = self._known.get(node)
        if found is None:
            if (len(self._known) + 1) * len(self.vocabulary) > MOST_MASK_BYTES:
                self._known.clear()
            found = self._known[node] = self._make(node)
        return found

    def _make(self, node: Node) -> Inside:
        exits: dict[Node, list[int]] = {}
        ends = self.vocabulary.ends

        def note(row: int, reached: Node) -> None:
            if (reached.is_final or reached.calls) and ends[row] > row + 1:
                exits.setdefault(reached, []).append(row)

        tokens = self.vocabulary.walk(node, lambda at, byte: at.steps.get(byte), at_row=note)
        return Inside(int.from_bytes(_struck_out(tokens, len(self.vocabulary)), "little"), exits)


class TokenMasks:
    """The masks of one grammar.

    Args:
        endings: tokens that may come where the text may end.
    """

    def __init__(self, pushdown: Pushdown, inside: InsideMasks, endings: Iterable[int]) -> None:
        self.pushdown = pushdown
        self.vocabulary = inside.vocabulary
        self._inside = inside
        self._endings = tuple(token for token in endings if token < len(self.vocabulary))
        self._num_masks = 0

    def of(self, state: Stacks) -> TokenMask:
        """The mask in a state.

        Raises:
            StructureError: the text can be read in too many ways.
        """
        if state.mask is None:
            self._make_room()
            state.mask = self._make(state)
        found: TokenMask = state.mask
        return found

    def _make(self, state: Stacks) -> TokenMask:
        size = len(self.vocabulary)
        pushdown = self.pushdown
        if state.depth + pushdown.highest > DEEPEST:  # a stack that is nearly full forbids what a node allows
            struck_out = _struck_out(self.vocabulary.walk(state, pushdown.advance), size)
        else:
            joined, more = self._inside.all_struck_out, list[int]()
            for node, below in state.branches.items():
                inside = self._inside.of(node)
                joined &= inside.struck_out
                for left, rows in inside.exits.items():
                    more += self._walk_beyond(pushdown.beyond(left, below), rows)
            struck_out = bytearray(joined.to_bytes(size, "little"))
            for token in more:
                struck_out[token] = 0
        if state.has_empty:
            for token in self._endings:
                struck_out[token] = 0
        return TokenMask(struck_out)

    def _walk_beyond(self, state: Stacks | None, rows: Iterable[int]) -> list[int]:
        """Tokens that are read on from `state`, from each of these rows."""
        found: list[int] = []
        if state is not None:
            ends = self.vocabulary.ends
            for row in rows:
                found += self.vocabulary.walk(state, self.pushdown.advance, row + 1, ends[row])
        return found

    def _make_room(self) -> None:
        self._num_masks += 1
        if self._num_masks * len(self.vocabulary) > MOST_MASK_BYTES or self.pushdown.num_states > MOST_STATES:
            self.pushdown.forget()
            self._num_masks = 1


def _struck_out(allowed: Iterable[int], size: int) -> bytearray:
    struck_out = bytearray(b"\1") * size
    for token in allowed:
        struck_out[token] = 0
    return struck_out
