"""Rules: each expression becomes a deterministic automaton over bytes, which may call other rules.

    value ::= "[" value ("," value)* "]" | "0"

              ┌──────"0"──────────────────────┐
      ──► ( entry )──"["──►( )──value──►( )──"]"──►(( end ))       a call is an edge, too: the automaton of
                                 ▲        │                        the called rule runs, and comes back to
                                 └───","──┘                        the node that the edge leads to

The way is the usual one: the expression becomes a nondeterministic automaton (Thompson), and its sets of
states become the nodes (subset construction), with a called rule as one more letter of the alphabet.

A node's *height* is how many more calls, one within the other, the shortest way to an end needs. One that has
no way to an end has no height, and is taken out. So everything that is left can be completed, and a stack
that has room for the height will never get stuck (`pushdown.py`).

Everything counts against one budget, so that a pattern which explodes is refused in bounded time.

Sources: Thompson (1968); Woods (1970) for automata that call each other. Read next: `pushdown.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from minivllm.decoding.structured.characters import byte_runs
from minivllm.decoding.structured.expressions import (
    Call,
    Characters,
    Choice,
    Concat,
    Expression,
    Literal,
    Repeat,
    StructureError,
)
from minivllm.decoding.structured.subsets import Nondeterministic, determinise

MOST_WORK = 400_000
"""Elementary operations for one grammar: a second or so."""
MOST_NODES = 100_000
TOO_LARGE = (
    "it is too large: its automaton would need more states than are allowed; repeat fewer times, or use "
    "shorter lists"
)


class Node:
    """Where a rule's automaton may stand.

    Attributes:
        steps: byte → the node that it leads to.
        calls: rules that may be called here, each with the node where it goes on afterwards.
        is_final: the rule may end here.
        height: calls within calls that the shortest way to an end needs at least; None where there is none.
    """

    __slots__ = ("calls", "height", "is_final", "steps")

    def __init__(self) -> None:
        self.steps: dict[int, Node] = {}
        self.calls: tuple[tuple[Rule, Node], ...] = ()
        self.is_final = False
        self.height: int | None = None

    @property
    def reads_only(self) -> bool:
        """Can nothing come but a byte?"""
        return not self.is_final and not self.calls

    @property
    def is_end(self) -> bool:
        """Can nothing come but the end? Then a call that leads here need not remember to come back."""
        return self.is_final and not self.steps and not self.calls


class Rule:
    """A rule by its name, and the node where it begins."""

    __slots__ = ("entry", "name", "nodes")

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.entry = Node()


class Budget:
    """How much work may still be done."""

    def __init__(self, work: int = MOST_WORK) -> None:
        self.left = work

    def spend(self, work: int = 1) -> None:
        """Raise `StructureError` if there was too much."""
        self.left -= work
        if self.left < 0:
            raise StructureError(TOO_LARGE)


def make_rules(
    expressions: Mapping[str, Expression], root: str, usable: frozenset[int] | None = None
) -> Rule:
    """The automata of all rules that `root` may come to call; returns that of `root`.

    Args:
        usable: bytes that can be written one by one; None for all. No rule uses others.

    Raises:
        StructureError: a rule is missing, calls itself before it reads anything, or allows no text at all;
            or all of it is too large.
    """
    budget = Budget()
    rules: dict[str, Rule] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in rules:
            continue
        if name not in expressions:
            raise StructureError(f"grammar calls a rule {name!r}, which is not there")
        rule = rules[name] = Rule(name)
        rule.entry, rule.nodes, calls = _automaton(expressions[name], usable, budget)
        waiting += calls
    for rule in rules.values():
        for node in rule.nodes:
            node.calls = tuple((rules[str(called)], after) for called, after in node.calls)
    _refuse_left_recursion(rules.values())
    _find_heights(rules.values())
    if rules[root].entry.height is None:
        raise StructureError(
            "no text of any length satisfies it"
            + ("" if usable is None else ", or none that this model's tokens can spell byte by byte")
        )
    return rules[root]


def _automaton(
    expression: Expression, usable: frozenset[int] | None, budget: Budget
) -> tuple[Node, list[Node], list[str]]:
    """Entry, nodes and called rules. What calls nothing is made once, and shared by all grammars."""
    if _size(expression) > MOST_NODES:
        raise StructureError(TOO_LARGE)
    if not _has_calls(expression):
        found, work = _shared(expression, usable)
        budget.spend(work)
        return found
    return _make(expression, usable, budget)


@lru_cache(maxsize=256)
def _shared(
    expression: Expression, usable: frozenset[int] | None
) -> tuple[tuple[Node, list[Node], list[str]], int]:
    budget = Budget()
    found = _make(expression, usable, budget)
    return found, MOST_WORK - budget.left


def _size(expression: Expression) -> int:
    """States that it needs at least, so that what is far too large is refused before it is made."""
    match expression:
        case Literal():
            return len(expression.data)
        case Concat():
            return sum(map(_size, expression.parts))
        case Choice():
            return sum(map(_size, expression.options))
        case Repeat():
            times = expression.least + 1 if expression.most is None else expression.most
            return max(1, _size(expression.part)) * times
    return 1


def _has_calls(expression: Expression) -> bool:
    match expression:
        case Call():
            return True
        case Concat():
            return any(map(_has_calls, expression.parts))
        case Choice():
            return any(map(_has_calls, expression.options))
        case Repeat():
            return _has_calls(expression.part)
    return False


def _make(
    expression: Expression, usable: frozenset[int] | None, budget: Budget
) -> tuple[Node, list[Node], list[str]]:
    automaton = Nondeterministic(budget.spend)
    automaton.final = _add(automaton, expression, automaton.start)
    table = determinise(automaton, usable, budget.spend)
    nodes = [Node() for _ in table]
    called: dict[str, None] = {}
    for node, (steps, calls, is_final) in zip(nodes, table, strict=True):
        node.steps = {byte: nodes[target] for byte, target in steps.items()}
        node.calls = tuple((name, nodes[target]) for name, target in calls.items())  # type: ignore[misc]
        node.is_final = is_final
        called.update(dict.fromkeys(calls))
    return nodes[0], nodes, list(called)


def _add(automaton: Nondeterministic, expression: Expression, start: int) -> int:
    """Add what an expression allows from state `start` on; returns the state in which it ends."""
    match expression:
        case Literal():
            for byte in expression.data:
                start = automaton.step(start, byte, byte)
            return start
        case Characters():
            end = automaton.state()
            for low, high in expression.ranges:
                for *runs, (first, last) in _runs(low, high):
                    at = start
                    for run in runs:
                        at = automaton.step(at, *run)
                    automaton.step(at, first, last, end)
            return end
        case Concat():
            for part in expression.parts:
                start = _add(automaton, part, start)
            return start
        case Choice():
            end = automaton.state()
            for option in expression.options:
                automaton.skip(_add(automaton, option, start), end)
            return end
        case Repeat():
            return _add_repeat(automaton, expression, start)
        case Call():
            return automaton.call(start, expression.rule)


@lru_cache(maxsize=1024)
def _runs(low: int, high: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """A pattern repeats its classes of characters, each hundreds of times."""
    return tuple(byte_runs(low, high))


def _add_repeat(automaton: Nondeterministic, expression: Repeat, start: int) -> int:
    for _ in range(expression.least):
        automaton.spend()  # the part may be empty, and add nothing
        start = _add(automaton, expression.part, start)
    # A state of its own: the part may loop back to where it began.
    start = automaton.skip(start, automaton.state())
    if expression.most is None:
        automaton.skip(_add(automaton, expression.part, start), start)
        return automaton.skip(start, automaton.state())
    end = automaton.state()
    automaton.skip(start, end)
    for _ in range(expression.most - expression.least):
        start = automaton.skip(_add(automaton, expression.part, start), automaton.state())
        automaton.skip(start, end)
    return end


def _refuse_left_recursion(rules: Iterable[Rule]) -> None:
    """A rule that calls itself before it has read a byte would push on its stack for ever."""
    rules = list(rules)
    nullable: set[Rule] = set()
    first: dict[Rule, set[Rule]] = {}
    while True:
        before = len(nullable)
        for rule in rules:
            first[rule], is_nullable = _called_at_once(rule, nullable)
            if is_nullable:
                nullable.add(rule)
        if len(nullable) == before:
            break
    done: set[Rule] = set()
    for rule in rules:
        _visit(rule, first, done)


def _called_at_once(rule: Rule, nullable: set[Rule]) -> tuple[set[Rule], bool]:
    """Rules that it may call before it reads a byte, and whether it may end before."""
    seen, waiting, called = {rule.entry}, [rule.entry], set[Rule]()
    while waiting:
        for other, after in waiting.pop().calls:
            called.add(other)
            if other in nullable and after not in seen:
                seen.add(after)
                waiting.append(after)
    return called, any(node.is_final for node in seen)


def _visit(start: Rule, first: Mapping[Rule, set[Rule]], done: set[Rule]) -> None:
    """Depth first, without Python's own stack: a chain of rules may be long."""
    if start in done:
        return
    path: dict[Rule, None] = {start: None}
    waiting = [iter(first[start])]
    while waiting:
        rule = next(waiting[-1], None)
        if rule is None:
            done.add(path.popitem()[0])
            waiting.pop()
        elif rule in path:
            names = [item.name for item in path]
            circle = " → ".join([*names[names.index(rule.name) :], rule.name])
            raise StructureError(
                f"it is left-recursive: a rule calls itself before it has read anything ({circle}); let it "
                "repeat, or call itself at the end"
            )
        elif rule not in done:
            path[rule] = None
            waiting.append(iter(first[rule]))


def _find_heights(rules: Iterable[Rule]) -> None:
    """Give each node its height, and take out what has none."""
    nodes = [node for rule in rules for node in rule.nodes]
    if len(nodes) > MOST_NODES:
        raise StructureError(f"it is too large: it has {len(nodes):,} states, at most {MOST_NODES:,} may be")
    above: dict[Node, list[Node]] = {}  # node → those whose height depends on its height
    for node in nodes:
        for target in set(node.steps.values()):
            above.setdefault(target, []).append(node)
        for rule, after in node.calls:
            above.setdefault(rule.entry, []).append(node)
            above.setdefault(after, []).append(node)
    waiting = [node for node in nodes if node.is_final and node.height != 0]
    for node in waiting:
        node.height = 0
    # Nodes that are shared with another grammar have their heights already, and call nothing.
    waiting += [node for node in nodes if node.height is not None]
    while waiting:
        for node in above.get(waiting.pop(), ()):
            if node.height == 0:  # no way is lower
                continue
            height = _height_from(node)
            if height is not None and (node.height is None or height < node.height):
                node.height = height
                waiting.append(node)
    if all(node.height is not None for node in nodes):  # as nearly always: nothing to take out
        return
    for node in nodes:
        node.steps = {byte: target for byte, target in node.steps.items() if target.height is not None}
        node.calls = tuple(
            (rule, after)
            for rule, after in node.calls
            if rule.entry.height is not None and after.height is not None
        )


def _height_from(node: Node) -> int | None:
    """The lowest way to an end, as far as it is known."""
    if node.is_final:
        return 0
    found = [target.height for target in set(node.steps.values()) if target.height is not None]
    found += [
        max(after.height, rule.entry.height + (not after.is_end))
        for rule, after in node.calls
        if rule.entry.height is not None and after.height is not None
    ]
    return min(found, default=None)
