"""A story: what a property did with the judged code, and what was seen after each step.

Properties in `checks.py` are written with this and with Hypothesis, and import nothing else but `subject`,
the code that is judged:

    OPERATIONS = st.lists(st.tuples(st.just("grow"), st.integers(0, 3)))

    @judged("P1", "Free and held blocks are all blocks.", OPERATIONS, hints=("…", "…", "…"))
    def conservation(case, story):
        pool = subject.BlockPool(4)
        for name, count in case:
            story.step(f"take {count}")
            blocks = pool.get_new_blocks(count)
            story.see({"free": pool.num_free_blocks}, [row("pool", …)])
            story.expect(…, "…", "…")

Beside the small stories that Hypothesis draws, `large=` makes one of the size of real life. `when=` has hints
by symptom: what helps when the code crashes does not help when it gives a wrong number.

A case is plain data (it survives JSON), so that it can be kept, shown, and played again with other code. What
a case means must not depend on the code that is judged: the learner's code is never its own oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from hypothesis.strategies import SearchStrategy

from minivllm.trace.story_events import MARKS, YOURS, Cell, Row, StoryStep

MOST_TEXT = 300
"""Characters of what the judged code says of itself that are kept."""

# ── symptoms: how a step failed ───────────────────────────────────────────────────────────────────────

EMPTY = "empty"
"""In a step in which something was empty: no tokens, no blocks."""
CRASH = "crash"
"""An exception that the contract does not ask for."""
ENDLESS = "endless"
"""No answer within the time or the memory that there is."""
REFUSED = "refused"
"""A refusal (an exception; None or False, where that says no) where an answer belongs."""
ACCEPTED = "accepted"
"""An answer where a refusal belongs."""
AFTER_REFUSAL = "after refusal"
"""Something else went wrong, but after the code had refused something."""
NOT_A_NUMBER = "not a number"
"""NaN, where a number belongs."""
WRONG = "wrong"
"""Another answer than the right one."""


class Broken(AssertionError):
    """A property does not hold: what should have been, and what was."""

    def __init__(self, expected: str, got: str, symptom: str = "") -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got, self.symptom = expected, got, symptom


@dataclass
class Answer:
    """What came of a call that may be refused."""

    error: BaseException | None = None

    @property
    def is_refused(self) -> bool:
        return self.error is not None


@dataclass
class Story:
    """The steps so far. `lane`: whose run it is."""

    lane: str = YOURS
    steps: list[StoryStep] = field(default_factory=list)
    kernels: list[Any] = field(default_factory=list)
    """Observations under the microscope, of lessons about kernels."""
    refusal: BaseException | None = None
    """The last exception of the judged code that the check was ready for."""
    _refused_in: int = 0
    _refused_before: bool = False
    _empty_step: int = 0

    def step(self, text: str, *, empty: bool = False) -> None:
        """The next operation, in words; say it before it is done. `empty`: something in it is."""
        self.steps.append(StoryStep(self.lane, text))
        if empty:
            self._empty_step = len(self.steps)

    @contextmanager
    def allowing(self, *errors: type[BaseException]) -> Iterator[Answer]:
        """A block in which the judged code may raise one of these: whether it did, and in which line."""
        answer = Answer()
        try:
            yield answer
        except errors as error:
            self._refused_before |= self.refusal is not None and self._refused_in < len(self.steps)
            self._refused_in = len(self.steps)
            answer.error = self.refusal = error

    def see(self, facts: Mapping[str, object] | None = None, board: Sequence[Row] = ()) -> None:
        """What can be seen after it.

        Args:
            facts: what every right solution agrees on; nothing that it is free to choose.
            board: a picture of it, in which right solutions may differ.
        """
        shown = {name: shortened(value) for name, value in (facts or {}).items()}
        last = self.steps.pop()
        self.steps.append(StoryStep(self.lane, last.text, shown, tuple(board)))

    def expect(self, holds: object, expected: str, got: object = "", symptom: str = "") -> None:
        """Go on only if this holds; `symptom` says what it means if it does not, where that is known.

        Raises:
            Broken: it does not. Its cause is the refusal in this step, if there was one.
        """
        if not holds:
            cause = self.refusal if self._refused_in == len(self.steps) else None
            raise Broken(expected, shortened(got), symptom) from cause

    def symptoms(self, first: str) -> list[str]:
        """How the last step failed, in several words, the most telling first."""
        found = [EMPTY] if self.steps and self._empty_step == len(self.steps) else []
        found += [first] if first else []
        is_refusal = first == REFUSED and self._refused_in == len(self.steps)
        was_refused = self._refused_before if is_refusal else self.refusal is not None
        found += [AFTER_REFUSAL] if was_refused and first not in (ACCEPTED, AFTER_REFUSAL) else []
        return found if first else [*found, WRONG]

    def stopped(self, error: str) -> None:
        """The lane ends in this step, and why."""
        last = self.steps.pop() if self.steps else StoryStep(self.lane, "before the first step")
        self.steps.append(StoryStep(self.lane, last.text, last.facts, last.board, error))


@dataclass(frozen=True)
class Property:
    """One thing that must always hold.

    Attributes:
        number: "P1", "P2" … in the order in which they are judged.
        sentence: what must hold, as a sentence.
        cases: draws stories; plain data.
        play: plays one with `subject` and raises `Broken` if the property does not hold.
        hints: from a nudge to nearly the answer.
        when: what to say before these, by the symptom with which it failed.
        examples: stories that are tried.
        seconds: of processor time for one story, after which the code is said to loop.
        large: makes one large story, which is played after them; None if size can change nothing.
    """

    number: str
    sentence: str
    cases: SearchStrategy[Any]
    play: Callable[[Any, Story], None]
    hints: tuple[str, ...]
    examples: int
    seconds: float
    large: Callable[[Random], Any] | None = None
    when: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.play.__name__

    def hints_for(self, symptoms: Sequence[str]) -> tuple[str, ...]:
        """The ladder for a failure: what its symptom says comes first."""
        first = next((self.when[symptom] for symptom in symptoms if symptom in self.when), "")
        return (first, *self.hints) if first else self.hints


def judged(
    number: str,
    sentence: str,
    cases: SearchStrategy[Any],
    *,
    hints: Sequence[str],
    examples: int = 150,
    seconds: float = 2.0,
    large: Callable[[Random], Any] | None = None,
    when: Mapping[str, str] | None = None,
) -> Callable[[Callable[[Any, Story], None]], Property]:
    """Makes a property of a function `(case, story)`; see `Property`."""

    def decorate(play: Callable[[Any, Story], None]) -> Property:
        return Property(number, sentence, cases, play, tuple(hints), examples, seconds, large, when or {})

    return decorate


def properties_of(checks: object) -> list[Property]:
    """The properties of a `checks.py`, in their order.

    Raises:
        ValueError: there is none, or two have the same number.
    """
    found = [thing for thing in vars(checks).values() if isinstance(thing, Property)]
    numbers = [prop.number for prop in found]
    if not found:
        raise ValueError(f"{getattr(checks, '__file__', checks)} has no properties: it would pass anything")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{getattr(checks, '__file__', checks)}: two properties have the same number")
    return found


def given_as(number: int, items: Sequence[Any]) -> Iterable[Any]:
    """The same things in one of the forms that a caller may have: list, tuple, iterator, generator."""
    return (list, tuple, iter, _one_by_one)[number % 4](items)


def _one_by_one(items: Sequence[Any]) -> Iterable[Any]:
    yield from items


def counted(count: int, noun: str) -> str:
    """Such as "1 token", "2 tokens" and "3 queries"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("ry") else f"{count} {noun}s"


# ── boards ────────────────────────────────────────────────────────────────────────────────────────────


def cell(text: object = "", owner: int | None = None, mark: str = "") -> Cell:
    """A box; `mark` is one of `MARKS`."""
    assert mark in MARKS, f"mark must be one of {MARKS}, got {mark!r}"
    return Cell(shortened(text, 24), -1 if owner is None else owner, mark)


def row(label: str, cells: Iterable[Cell | object]) -> Row:
    """A line of boxes; whatever is not a cell becomes one."""
    return Row(label, tuple(item if isinstance(item, Cell) else cell(item) for item in cells))


def shortened(value: object, most: int = MOST_TEXT) -> str:
    """As text, but not longer than `most` characters; numbers with four digits.

    The value may be the learner's own object, whose `repr` may do anything.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:
        text = f"something whose repr raises {type(error).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"
