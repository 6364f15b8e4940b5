"""The trial of the judge: after a solution has passed, would this judge still notice a wrong one?

A solution runs in the same process as the judge, and might have bent it: replaced what a story expects, drawn
only harmless stories, written "passed" where the judge writes its words. So after a pass the judge gets more
to judge: solutions that are known to be wrong, one for each property where there is one, and a right one
among them, in random order, with a secret that it is to say in the end.

    all passed ─► trial: sources, secret ─► a verdict on each ─► done, secret

No solution can have known before what the answers are. If a wrong one passes, if the right one does not, or
if the secret does not come back, the pass is worth nothing, and the runner says so.

Read next: `runner.py`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any

from lessons.catalogue import Lesson
from lessons.mutant import Mutant, load_mutants

SEED = 7
"""The one by which every wrong solution is known to be caught (the tests of the lessons see to it)."""


@dataclass
class Trial:
    """What is to be judged after a pass, and what the answers must be."""

    sources: list[dict[str, str]]
    """For the judge: the number of a property, and the solution to judge by it."""
    answers: list[bool]
    """Whether each of them passes."""
    secret: str = field(default_factory=lambda: secrets.token_hex(16))

    def to_data(self) -> dict[str, Any]:
        return {"sources": self.sources, "secret": self.secret}

    def problem(self, answers: list[bool], secret: str) -> str:
        """What is wrong with the judge, in a sentence; "" if nothing is."""
        if secret != self.secret or len(answers) != len(self.answers):
            return "the judge ended before it had said all"
        for right, said in zip(self.answers, answers, strict=True):
            if said and not right:
                return "a solution that is known to be wrong passes, too"
            if right and not said:
                return "a solution that is known to be right fails now"
        return ""


def make_trial(lesson: Lesson) -> Trial:
    """Wrong solutions and a right one, in random order."""
    dice = SystemRandom()
    reference = lesson.reference.read_text(encoding="utf-8")
    mutants = load_mutants(lesson)
    wrong: dict[str, list[Mutant]] = {}
    for mutant in mutants.wrong:
        wrong.setdefault(mutant.caught_by, []).append(mutant)
    cases = [(number, dice.choice(some).source(reference), False) for number, some in wrong.items()]
    right = dice.choice(mutants.right).source(reference)
    cases.append((dice.choice(list(wrong)), right, True))
    dice.shuffle(cases)
    return Trial(
        [{"number": number, "source": source} for number, source, _ in cases],
        [passes for _, _, passes in cases],
    )
