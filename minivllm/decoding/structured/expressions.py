"""Expressions: the one form in which patterns, schemas and grammars say what a text may be.

    Literal(b"null")                      these bytes
    Characters(((48, 57),))               one character of these ranges of code points
    Concat((…, …))                        one after the other
    Choice((…, …))                        any one of them; an empty choice allows nothing at all
    Repeat(…, 1, None)                    so many times
    Call("value")                         what the rule of this name allows

A set of rules by name, one of them the first, is a context-free grammar (`rules.py`).

Read next: `characters.py`, then `regex.py`, which makes them from a pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias


class StructureError(ValueError):
    """A schema, pattern, choice or grammar that cannot be followed, and why.

    Attributes:
        problem: the same without the name of the argument that it was given as.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem or message


@dataclass(frozen=True, slots=True)
class Literal:
    data: bytes


@dataclass(frozen=True, slots=True)
class Characters:
    ranges: tuple[tuple[int, int], ...]
    """Of code points, both ends included, ascending and apart (`characters.py`)."""


@dataclass(frozen=True, slots=True)
class Concat:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Expression
    least: int
    most: int | None
    """None: as often as one likes."""


@dataclass(frozen=True, slots=True)
class Call:
    rule: str


Expression: TypeAlias = Literal | Characters | Concat | Choice | Repeat | Call

EMPTY = Literal(b"")
NOTHING = Choice(())


def text(value: str) -> Literal:
    """Exactly this text."""
    return Literal(value.encode())


def concat(*parts: Expression) -> Expression:
    """One after the other; nothing if one of them is nothing."""
    kept = tuple(part for part in parts if part != EMPTY)
    if NOTHING in kept:
        return NOTHING
    if not kept:
        return EMPTY
    return kept[0] if len(kept) == 1 else Concat(kept)


def choice(options: Iterable[Expression]) -> Expression:
    """Any one of them."""
    kept = tuple(dict.fromkeys(option for option in options if option != NOTHING))
    return kept[0] if len(kept) == 1 else Choice(kept)


def optional(part: Expression) -> Expression:
    """It, or nothing."""
    return EMPTY if part == NOTHING else Repeat(part, 0, 1)
