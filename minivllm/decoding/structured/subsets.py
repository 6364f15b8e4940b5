"""Nondeterministic automata over bytes, and the subset construction that makes them deterministic.

A state has edges of three kinds: a range of bytes, the call of a rule, or nothing at all (a skip). What a set
of states can do decides which set comes next; each set is a state of the deterministic automaton:

    (ab|ac)      0 ─a─► 1 ─b─► 3            {0} ─a─► {1, 2} ─b─► {3}
                 0 ─a─► 2 ─c─► 3                            ─c─► {3}

Only states that can do something count in a set, so sets that differ in skips alone are one.

Source: Rabin and Scott (1959); Aho et al., "Compilers", section 3.7. Read next: `rules.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

Edge = TypeVar("Edge")
Row = tuple[dict[int, int], dict[str, int], bool]
"""Of a deterministic state: byte → state, called rule → state, and whether it is final."""


class Nondeterministic:
    """An automaton in the making; state 0 is where it starts. `spend` is told of each state and edge."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.spend = spend
        # Lists of edges by state, None where there are none: most states have edges of one kind, and Python's
        # collector of garbage stops everything for as long as it takes to look at each list.
        self.steps: list[list[tuple[int, int, int]] | None] = []
        self.calls: list[list[tuple[str, int]] | None] = []
        self.skips: list[list[int] | None] = []
        self.start = self.state()
        self.final = self.start

    def state(self) -> int:
        """A new state."""
        self.spend()
        self.steps.append(None)
        self.calls.append(None)
        self.skips.append(None)
        return len(self.steps) - 1

    def step(self, start: int, low: int, high: int, end: int | None = None) -> int:
        """A byte from `low` to `high` leads from `start` to `end`, or to a new state; returns which."""
        end = self.state() if end is None else end
        _add(self.steps, start, (low, high, end))
        return end

    def skip(self, start: int, end: int) -> int:
        """Nothing at all leads from `start` to `end`."""
        _add(self.skips, start, end)
        return end

    def call(self, start: int, rule: str) -> int:
        """A rule leads from `start` to a new state."""
        end = self.state()
        _add(self.calls, start, (rule, end))
        return end

    def reach(self, states: Iterable[int], spend: Callable[[int], None]) -> frozenset[int]:
        """What is reached without reading anything, as far as it can do something."""
        seen = set(states)
        waiting = list(seen)
        while waiting:
            for state in self.skips[waiting.pop()] or ():
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        spend(len(seen))
        steps, calls, final = self.steps, self.calls, self.final
        return frozenset([state for state in seen if steps[state] or calls[state] or state == final])


def _add(edges: list[list[Edge] | None], start: int, edge: Edge) -> None:
    known = edges[start]
    if known is None:
        edges[start] = [edge]
    else:
        known.append(edge)


def determinise(
    automaton: Nondeterministic, usable: frozenset[int] | None, spend: Callable[[int], None]
) -> list[Row]:
    """The deterministic automaton; state 0 is where it starts. Bytes that are not `usable` are left out."""
    first = automaton.reach([automaton.start], spend)
    numbers = {first: 0}
    waiting = [first]
    rows: list[Row] = []

    def number(states: Iterable[int]) -> int:
        found = automaton.reach(states, spend)
        if found not in numbers:
            numbers[found] = len(numbers)
            waiting.append(found)
        return numbers[found]

    while len(rows) < len(waiting):
        states = waiting[len(rows)]
        edges: list[tuple[int, int, int]] = []
        called: dict[str, set[int]] = {}
        for state in states:
            edges += automaton.steps[state] or ()
            for rule, end in automaton.calls[state] or ():
                called.setdefault(rule, set()).add(end)
        known: dict[frozenset[int], int] = {}  # several ranges lead to the same states
        steps: dict[int, int] = {}
        for low, high, ends in _pieces(edges, spend):
            read = [byte for byte in range(low, high + 1) if usable is None or byte in usable]
            if read and ends not in known:
                known[ends] = number(ends)
            steps |= dict.fromkeys(read, known.get(ends, 0))
        calls = {rule: number(ends) for rule, ends in called.items()}
        rows.append((steps, calls, automaton.final in states))
    return rows


def _pieces(
    edges: Sequence[tuple[int, int, int]], spend: Callable[[int], None]
) -> Iterable[tuple[int, int, frozenset[int]]]:
    """Ranges of bytes that lead to the same states, in order: where ranges overlap, they are cut."""
    spend(len(edges))
    if len(edges) == 1:  # as nearly everywhere: a schema is mostly names
        ((low, high, end),) = edges
        spend(1 + (high + 1 - low) // 16)
        yield low, high, frozenset((end,))
        return
    begun: dict[int, list[int]] = {}  # where a range begins → the states that it leads to
    over: dict[int, list[int]] = {}  # behind where it ends → the same
    for low, high, end in edges:
        begun.setdefault(low, []).append(end)
        over.setdefault(high + 1, []).append(end)
    open_ends: Counter[int] = Counter()
    for low, after in pairwise(sorted(begun.keys() | over.keys())):
        open_ends.update(begun.get(low, ()))
        for end in over.get(low, ()):
            open_ends[end] -= 1
            if not open_ends[end]:
                del open_ends[end]
        if open_ends:
            spend(1 + (after - low) // 16 + len(open_ends) // 8)
            yield low, after - 1, frozenset(open_ends)
