"""The pushdown automaton: where the rules may stand after some bytes, and where they go with the next one.

A rule that is called comes back to its caller, so a place is a node and, below it, a stack of nodes to come
back to. A text may be read in several ways, so a state is a *set* of stacks. It is kept as a tree: from the
top node to the stacks below it, which are such a set themselves. Stacks that end alike share their ends, and
equal sets are one object, so a state is looked up and not computed again:

    after  {"a": [1          value, item ── below ──► array ── below ──► object ── below ──► (empty)

A state holds only nodes that can read a byte: calls are already made and ends already left. The empty stack
in a state means that the text may end here.

Stacks are at most 200 deep (Python's own JSON reader gives up at about 1,000): a call that would need more
room than is left, for itself and for what must come after it, is not made (`Node.height`). So every state
that is reached has a way to the end.

Source: Lang (1974) and Tomita (1985) for sets of stacks as one graph. Read next: `vocabulary.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.rules import Node, Rule

DEEPEST = 200
"""Calls within calls."""
MOST_BRANCHES = 256
"""Nodes of one state: more ways to read a text are too many to follow."""
MOST_STATES = 20_000
"""Remembered; beyond that, all but the present one is forgotten."""


class Stacks:
    """A set of stacks; as a state of the automaton, the set of places where it may stand.

    Attributes:
        branches: top node → the stacks below it.
        has_empty: is the empty stack in it? As a state: may the text end here?
        depth: nodes of its longest stack.
        readable: bytes that one of its nodes can read, once they were asked for.
        steps: byte → next state (None: the byte is impossible), as far as it was asked for.
        mask: what `token_masks.py` knows of it.
    """

    __slots__ = ("branches", "depth", "has_empty", "mask", "readable", "steps")

    def __init__(self, branches: dict[Node, Stacks], has_empty: bool) -> None:
        self.branches = branches
        self.has_empty = has_empty
        self.depth: int = 1 + max(below.depth for below in branches.values()) if branches else 0
        self.readable: Set[int] | None = None
        self.steps: dict[int, Stacks | None] = {}
        self.mask: Any = None

    @property
    def is_exhausted(self) -> bool:
        """Can nothing come any more?"""
        return not self.branches


class Pushdown:
    """The automaton of one grammar.

    Args:
        root: the rule that the whole text must follow.

    Attributes:
        start: the state before the first byte.
    """

    def __init__(self, root: Rule) -> None:
        self._root = root
        self.highest = _highest(root)
        self.forget()

    def forget(self) -> None:
        """Begin again without any known state. States that are held elsewhere stay as good as they were."""
        self._known: dict[tuple[bool, frozenset[tuple[Node, Stacks]]], Stacks] = {}
        self._unions: dict[tuple[Stacks, Stacks], Stacks] = {}
        self._beyond: dict[tuple[Node, Stacks], Stacks | None] = {}
        self._bytes_beyond: dict[Node, Set[int] | None] = {}
        self._bottom = self._intern({}, True)
        self.start = self._closed([(self._root.entry, self._bottom)])

    @property
    def num_states(self) -> int:
        """States and parts of states that are remembered."""
        return len(self._known)

    def advance(self, state: Stacks, byte: int) -> Stacks | None:
        """The state after one more byte; None if it is impossible.

        Raises:
            StructureError: there are too many ways to read the text.
        """
        try:
            return state.steps[byte]
        except KeyError:
            pass
        seeds = []
        for node, below in state.branches.items():
            target = node.steps.get(byte)
            if target is not None and below.depth + (target.height or 0) <= DEEPEST:
                seeds.append((target, below))
        if not seeds:
            found = None
        elif len(seeds) == 1 and seeds[0][0].reads_only:  # as nearly everywhere: within a name, say
            found = self._intern(dict(seeds), False)
        else:
            found = self._closed(seeds)
        state.steps[byte] = found
        return found

    def only_next(self, state: Stacks) -> Stacks | None:
        """The state after the next byte, if there is only one that may come."""
        if state.has_empty or len(state.branches) != 1:
            return None
        (node,) = state.branches
        return self.advance(state, *node.steps) if len(node.steps) == 1 else None

    def readable(self, state: Stacks) -> Set[int]:
        """The bytes that may come next, and some that may not, where a stack is nearly full."""
        if state.readable is None:
            all_steps = [node.steps.keys() for node in state.branches]
            state.readable = all_steps[0] if len(all_steps) == 1 else frozenset().union(*all_steps)
        return state.readable

    def bytes_beyond(self, node: Node) -> Set[int] | None:
        """The bytes with which a text goes on from here, but for the node's own steps: those of rules that it
        calls, and what comes after those that may be empty. None, if its rule may end: then it may be any."""
        if node not in self._bytes_beyond:
            found, may_end = self._reach([(node, self._bottom)])
            if found.get(node) is self._bottom:
                del found[node]
            self._bytes_beyond[node] = None if may_end else frozenset().union(*(at.steps for at in found))
        return self._bytes_beyond[node]

    def read(self, state: Stacks | None, data: Iterable[int]) -> Stacks | None:
        """The state after several bytes."""
        for byte in data:
            if state is None:
                break
            state = self.advance(state, byte)
        return state

    def beyond(self, node: Node, below: Stacks) -> Stacks | None:
        """Where a rule that stands at `node` may stand otherwise: in rules it calls, or after its end."""
        key = (node, below)
        if key not in self._beyond:
            branches = dict(self._reach([key])[0])
            if branches.get(node) is below:
                del branches[node]
            self._beyond[key] = self._intern(branches, False) if branches else None
        return self._beyond[key]

    def _closed(self, seeds: Iterable[tuple[Node, Stacks]]) -> Stacks:
        return self._intern(*self._reach(seeds))

    def _reach(self, seeds: Iterable[tuple[Node, Stacks]]) -> tuple[dict[Node, Stacks], bool]:
        """All places that are reached without reading: calls are made, ends are left for the caller."""
        found: dict[Node, Stacks] = {}
        has_empty = False
        waiting = list(seeds)
        while waiting:
            node, below = waiting.pop()
            known = found.get(node)
            if known is not None:
                below = self._union(known, below)
                if below is known:
                    continue
            found[node] = below
            if len(found) > MOST_BRANCHES:
                raise StructureError(
                    f"the text can be read in too many ways at once (more than {MOST_BRANCHES})"
                )
            if node.is_final:
                has_empty |= below.has_empty
                waiting += below.branches.items()
            for rule, after in node.calls:
                # What comes back to an end need not come back: so lists that call themselves at their end
                # take no room.
                pushed = below if after.is_end else self._intern({after: below}, False)
                fits = pushed.depth + (rule.entry.height or 0) <= DEEPEST
                if fits and below.depth + (after.height or 0) <= DEEPEST:
                    waiting.append((rule.entry, pushed))
        return {node: below for node, below in found.items() if node.steps}, has_empty

    def _intern(self, branches: dict[Node, Stacks], has_empty: bool) -> Stacks:
        """The one object for this set."""
        key = (has_empty, frozenset(branches.items()))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Stacks(branches, has_empty)
        return found

    def _union(self, one: Stacks, other: Stacks) -> Stacks:
        """The stacks of both. It calls itself at most as deep as stacks are."""
        if one is other:
            return one
        known = self._unions.get((one, other))
        if known is None:
            branches = dict(one.branches)
            for node, below in other.branches.items():
                branches[node] = self._union(branches[node], below) if node in branches else below
            known = self._intern(branches, one.has_empty or other.has_empty)
            self._unions[one, other] = known
        return known


def _highest(root: Rule) -> int:
    """The greatest height of all nodes that a rule may come to."""
    seen, waiting, highest = {root}, [root], 0
    while waiting:
        for node in waiting.pop().nodes:
            highest = max(highest, node.height or 0)
            for rule, _ in node.calls:
                if rule not in seen:
                    seen.add(rule)
                    waiting.append(rule)
    return highest
