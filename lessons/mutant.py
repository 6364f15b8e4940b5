"""Mutants: wrong solutions made from the right one, by which a lesson's properties are judged themselves.

`mutants.py` of a lesson holds

    MUTANTS      wrong in behaviour; each says which property must catch it
    VARIANTS     right, but written otherwise: nothing may reject them
    TO_CATCH     the mutant that the learner is to write a property for
    EQUIVALENT   mechanical changes of the reference that change nothing (`mutation.py`), and why
    examples     the example-based test that one would naively write; `sly` mutants pass it

Read next: `mutation.py`, which makes mutants by the hundred; `catching.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from lessons.catalogue import Lesson
from lessons.loading import load_module


@dataclass(frozen=True)
class Mutant:
    """The reference with one text in the place of another.

    Attributes:
        name: in a few words, with underscores.
        old: text that occurs in the reference exactly once.
        new: what stands in its place.
        caught_by: number of the property that fails; "" for a variant, which is right.
        tells: a sentence on what it does, which must not give the solution away.
        sly: passes the naive examples.
    """

    name: str
    old: str
    new: str
    caught_by: str = ""
    tells: str = ""
    sly: bool = False

    def source(self, reference: str) -> str:
        """The mutated text.

        Raises:
            ValueError: `old` does not occur exactly once.
        """
        if reference.count(self.old) != 1:
            raise ValueError(f"mutant {self.name}: {reference.count(self.old)} places to change, not one")
        return reference.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutants:
    """All of a lesson's `mutants.py`."""

    wrong: Sequence[Mutant]
    right: Sequence[Mutant]
    to_catch: Mutant
    equivalent: Mapping[str, str]
    examples: Callable[[ModuleType], None]


def load_mutants(lesson: Lesson) -> Mutants:
    """The mutants of a lesson."""
    module = load_module(lesson.mutants, f"mutants_of_{lesson.name}")
    wrong = {mutant.name: mutant for mutant in module.MUTANTS}
    return Mutants(
        tuple(wrong.values()),
        tuple(module.VARIANTS),
        wrong[module.TO_CATCH],
        module.EQUIVALENT,
        module.examples,
    )
