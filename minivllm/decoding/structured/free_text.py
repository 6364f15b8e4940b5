"""Text that is free until one of some strings stands in it, as rules.

    stops "<a>", "<b"        0: any text ──"<"──► 1: "<" so far ──"a"──► 2: "<a" ──">"──► what follows "<a>"
                             ▲                     │  ▲               │
                             └──any other──────────┘  └──"<"──        └── any other ──► 0, "<" ──► 1

Each rule is a state of the automaton of Aho and Corasick: the longest end of the text so far that is the
beginning of a stop. A rule ends by calling the next one, so the stack does not grow.

Source: Aho and Corasick (1975). Read next: `structural_tags.py`, which needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from minivllm.decoding.structured.characters import complement, normal
from minivllm.decoding.structured.expressions import (
    EMPTY,
    NOTHING,
    Call,
    Characters,
    Expression,
    Repeat,
    choice,
    concat,
    text,
)

State = str
"""The beginning of a stop that the text so far ends with."""


def free_text_rules(
    name: str, stops: Mapping[str, Expression], *, never: Iterable[str] = (), may_end: bool
) -> dict[str, Expression]:
    """Rules, of which the one called `name` reads any text up to the first stop, and what comes after it.

    Args:
        stops: string → what follows it. None of them is empty, or within another.
        never: strings that may not stand in the text.
        may_end: it may also end without a stop.
    """
    ends: dict[str, Expression] = {**dict.fromkeys(never, NOTHING), **stops}
    states = dict.fromkeys(end[:length] for end in ends for length in range(len(end)))
    names = {state: f"{name} {state!r}" if state else name for state in states or {"": None}}
    letters = sorted(set("".join(ends)))
    codes = [(ord(letter), ord(letter)) for letter in letters]
    others = complement(codes)
    rules: dict[str, Expression] = {}
    for state, rule in names.items():
        options: list[Expression] = [EMPTY] if may_end else []
        groups: dict[Expression, list[tuple[int, int]]] = {}
        for letter in letters:
            groups.setdefault(_after(state + letter, ends, names), []).append((ord(letter), ord(letter)))
        if state:
            groups.setdefault(Call(name), []).extend(others)
        options += [concat(Characters(normal(ranges)), after) for after, ranges in groups.items()]
        # In the first state other letters change nothing: a loop, so that most tokens stay in one rule.
        loop = EMPTY if state else Repeat(Characters(others), 0, None)
        rules[rule] = concat(loop, choice(options))
    return rules


def _after(read: str, ends: Mapping[str, Expression], names: Mapping[State, str]) -> Expression:
    """What follows a text that ends so."""
    for start in range(len(read) + 1):
        if read[start:] in ends:
            return ends[read[start:]]
        if read[start:] in names:
            return Call(names[read[start:]])
    raise AssertionError("the empty text is a state")


def until(stop_strings: Iterable[str]) -> Expression:
    """One of these strings; nothing at all if there are none, because then the end of the text ends it."""
    strings = list(stop_strings)
    return choice(map(text, strings)) if strings else EMPTY
