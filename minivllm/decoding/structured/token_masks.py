"""Token masks: in a state of the automaton, which tokens may come next.

A token is allowed if the automaton can read all its bytes. Where any characters may come, most tokens are
answered at once (`plain_text.py`). Of the others, most does not depend on the stack: few tokens go on after
the quote that ends a string, whichever object it is in. So for each node, once:

    inside     tokens that are read without leaving the node's rule, or calling another
    exits      branches of the vocabulary's tree where the rule might be left: after `"`, say

and for each state only what is below the exits is walked with the stacks. The mask of a state is then
remembered with it.

Source: the context-independent tokens of Dong et al., "XGrammar" (2024), section 3.1.
Read next: `progress.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.plain_text import PlainText
from minivllm.decoding.structured.pushdown import DEEPEST, MOST_STATES, Pushdown, Stacks
from minivllm.decoding.structured.rules import Node
from minivllm.decoding.structured.vocabulary import Branch, Vocabulary

MOST_MASK_BYTES = 1 << 26
"""Of remembered masks, for one grammar."""
MOST_AHEAD = 64
"""Masks that are made before they are asked for."""
FEW_TOKENS = 64
"""Up to so many, a list of them is joined sooner than a whole mask."""


class TokenMask:
    """Which tokens are struck out, as one byte each: 1 struck out, 0 allowed.

    Attributes:
        struck_out: [vocab_size] bytes.
        tensors: the same as tensors, by device, and as "ids" of what is allowed: kept by what applies them.
    """

    __slots__ = ("struck_out", "tensors")

    def __init__(self, struck_out: bytearray) -> None:
        self.struck_out = struck_out
        self.tensors: dict[Any, Any] = {}

    @property
    def num_allowed(self) -> int:
        """How many are not struck out."""
        return self.struck_out.count(0)


class Inside(NamedTuple):
    """What of the vocabulary a node can read within its rule."""

    few: list[int]
    """Tokens that it can read, if they are few."""
    struck_out: int | None
    """Otherwise, all others: as the bytes of `TokenMask` in one large integer, joined by `&`."""
    exits: dict[Node, dict[int, list[Branch]]]
    """Node at which the rule might be left → the byte that follows → branches to which it leads."""


class InsideMasks:
    """What does not depend on stacks, for all grammars over one vocabulary: many have nodes in common."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.plain_text = PlainText(vocabulary)
        self.all_struck_out = int.from_bytes(b"\1" * len(vocabulary), "little")
        self._known: dict[tuple[Node, Vocabulary], Inside] = {}
        self._not_plain: dict[int, int] = {0: self.all_struck_out}

    def of(self, node: Node, tree: Vocabulary, pushdown: Pushdown) -> Inside:
        """What a node of this automaton can read by itself, of the tokens in this tree."""
        found = self._known.get((node, tree))
        if found is None:
            if (len(self._known) + 1) * len(self.vocabulary) > MOST_MASK_BYTES:
                self._known.clear()
                self.plain_text.forget()
            found = self._known[node, tree] = self._make(node, tree, pushdown)
        return found

    def not_plain(self, run: int) -> int:
        """All tokens but the plain ones of up to so many characters, in one large integer."""
        if run not in self._not_plain:
            self._not_plain[run] = self._all_but(self.plain_text.tokens(run))
        return self._not_plain[run]

    def _make(self, node: Node, tree: Vocabulary, pushdown: Pushdown) -> Inside:
        exits: dict[Node, dict[int, list[Branch]]] = {}

        def note(branch: Branch, reached: Node) -> None:
            if reached.is_final or reached.calls:
                following = pushdown.bytes_beyond(reached)
                children = tree.children(branch)
                for byte in children if following is None else children.keys() & following:
                    exits.setdefault(reached, {}).setdefault(byte, []).append(children[byte])

        tokens = tree.walk(node, lambda at: at.steps.keys(), _advance, at_branch=note)
        if len(tokens) <= FEW_TOKENS:
            return Inside(tokens, None, exits)
        return Inside([], self._all_but(tokens), exits)

    def _all_but(self, tokens: Iterable[int]) -> int:
        return int.from_bytes(_without(bytearray(b"\1") * len(self.vocabulary), tokens), "little")


def _advance(node: Node, byte: int) -> Node | None:
    return node.steps.get(byte)


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
        self._of_few: dict[frozenset[int], TokenMask] = {}

    def of(self, state: Stacks) -> TokenMask:
        """The mask in a state.

        Raises:
            StructureError: the text can be read in too many ways.
        """
        if state.mask is None:
            self._remember(state)
            with suppress(StructureError):  # which is raised again where it matters, if it ever does
                self._make_ahead(state)
        found: TokenMask = state.mask
        return found

    def _make_ahead(self, state: Stacks) -> None:
        """Make the masks of the states that must come next, as in the names of a schema: made together, each
        costs a fraction of one that is made alone, after a step of the model has filled the caches."""
        for _ in range(MOST_AHEAD):
            following = self.pushdown.only_next(state)
            if following is None or following.mask is not None:
                break
            self._remember(following)
            state = following

    def _remember(self, state: Stacks) -> None:
        self._num_masks += 1
        if self._num_masks * len(self.vocabulary) > MOST_MASK_BYTES or self.pushdown.num_states > MOST_STATES:
            self.pushdown.forget()
            self._of_few.clear()
            self._num_masks = 1
        state.mask = self._make(state)

    def _make(self, state: Stacks) -> TokenMask:
        size, pushdown = len(self.vocabulary), self.pushdown
        if state.depth + pushdown.highest > DEEPEST:  # a stack that is nearly full forbids what a node allows
            few = self.vocabulary.walk(state, pushdown.readable, pushdown.advance)
            others = self._inside.all_struck_out
        else:
            few, others = self._readable(state)
        if state.has_empty:
            few += self._endings
        if others != self._inside.all_struck_out:
            return TokenMask(_without(bytearray(others.to_bytes(size, "little")), few))
        key = frozenset(few)
        if key not in self._of_few:  # states that allow the same share a mask: the same letter of two names
            self._of_few[key] = TokenMask(_without(bytearray(b"\1") * size, few))
        return self._of_few[key]

    def _readable(self, state: Stacks) -> tuple[list[int], int]:
        """Tokens that can be read; all but many more, in one large integer.

        They are what is plain, what the nodes read by themselves, and what is read on from their exits.
        """
        inside, pushdown = self._inside, self.pushdown
        run = inside.plain_text.run(state)
        tree = inside.plain_text.others if run else self.vocabulary
        few, others = list[int](), inside.not_plain(run)
        for node, below in state.branches.items():
            own = inside.of(node, tree, pushdown)
            if own.struck_out is None:
                few += own.few
            else:
                others &= own.struck_out
            for left, by_byte in own.exits.items():
                few += self._walk_beyond(pushdown.beyond(left, below), by_byte, tree)
        return few, others

    def _walk_beyond(
        self, state: Stacks | None, by_byte: dict[int, list[Branch]], tree: Vocabulary
    ) -> list[int]:
        """Tokens that are read on from `state`, when each of these bytes comes next."""
        found: list[int] = []
        if state is not None:
            pushdown = self.pushdown
            for byte in by_byte.keys() & pushdown.readable(state):
                reached = pushdown.advance(state, byte)
                if reached is not None:
                    found += tree.ending_at(by_byte[byte])
                    found += tree.walk(reached, pushdown.readable, pushdown.advance, by_byte[byte])
        return found


def _without(struck_out: bytearray, allowed: Iterable[int]) -> bytearray:
    for token in allowed:
        struck_out[token] = 0
    return struck_out
