"""Which mutants of a reference survive: all are judged in one process, by stories that are drawn once.

A mutant needs no secrecy and no shortest story, only an answer: does any property fail? So the stories are
played in another order, and none is left out:

    stories      drawn once with the reference, for they do not depend on what is judged, and played again
    rounds       some small stories of each property, then the large ones, then all the other small ones
    properties   the one that caught the last mutant comes first: neighbours break the same

A mutant that takes the process down with it, or never gives it back, is caught, and the next has a new one.

Read next: `judge.py`, which is that process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import Any

from lessons.catalogue import Lesson
from lessons.guard import Printed, guarded
from lessons.judge_process import JudgeProcess
from lessons.loading import SUBJECT, load_module, load_properties, load_reference
from lessons.playing import LARGE_STORY, judge_property, play_once
from lessons.story import Property, Story
from lessons.trial import SEED
from lessons.verdict import IMPORT_SECONDS
from minivllm.scratch import ScratchFolder

FEW = 10
"""Small stories of each property that are played before the large ones."""
IMPORT = "import"
"""Caught before the first property."""
LOST = "lost"
"""Caught, for it took the judge with it."""


def caught_by(lesson: Lesson, sources: Sequence[str], processes: int = 1) -> list[str]:
    """For each solution what catches it: the number of a property, `IMPORT` or `LOST`; "" if nothing does.

    Raises:
        ValueError: after them the right solution is caught, too, so nothing that was said means anything.
    """
    reference = lesson.reference.read_text(encoding="utf-8")
    shares = [range(start, len(sources), processes) for start in range(processes)]
    found = [""] * len(sources)
    with ThreadPoolExecutor(processes) as pool:
        asked = [[*(sources[index] for index in share), reference] for share in shares]
        answers = pool.map(lambda some: list(_ask(lesson, some)), asked)
        for share, (*some, last) in zip(shares, answers, strict=True):
            if last:
                raise ValueError(f"the right solution is caught by {last}: a mutant has changed its judge")
            for index, answer in zip(share, some, strict=True):
                found[index] = answer
    return found


def _ask(lesson: Lesson, sources: Sequence[str]) -> Iterator[str]:
    """The same, one after the other in one process, as long as that lives."""
    left = iter(sources)
    source = next(left, None)
    while source is not None:
        with (
            ScratchFolder("judge") as scratch,
            JudgeProcess(lesson, lesson.reference, {"mutants": True}, scratch) as judge,
        ):
            answer = ""
            while source is not None and answer != LOST:
                judge.tell({"source": source})
                yield (answer := _answer(judge))
                source = next(left, None)


def _answer(judge: JudgeProcess) -> str:
    for message in judge.words():
        if message["event"] == "tried":
            return str(message["caught_by"])
        if message["event"] != "playing":
            break
    return LOST


# ── in the judge's process ────────────────────────────────────────────────────────────────────────────


def answer_all(lesson: Lesson, lines: Iterable[str], tell: Callable[[dict[str, Any]], None]) -> None:
    """Judge the solution in each line, and tell what catches it."""
    rounds = _Rounds(lesson, lambda number: tell({"event": "playing", "number": number}))
    for line in lines:
        tell({"event": "tried", "caught_by": rounds.caught_by(json.loads(line)["source"])})


class _Rounds:
    """The stories of all properties, in the order in which they are played."""

    def __init__(self, lesson: Lesson, playing: Callable[[str], None]) -> None:
        self._lesson = lesson
        self._playing = playing
        properties = load_properties(lesson, load_reference(lesson))
        small = {prop.number: drawn(prop) for prop in properties}
        large = {prop.number: [json.dumps(prop.large(Random(SEED)))] for prop in properties if prop.large}
        self._order = list(small)
        self._rounds: Sequence[tuple[int, dict[str, list[str]]]] = (
            (1, {number: stories[:FEW] for number, stories in small.items()}),
            (LARGE_STORY, large),
            (1, {number: stories[FEW:] for number, stories in small.items()}),
        )

    def caught_by(self, source: str) -> str:
        """What catches a solution; "" if nothing does."""
        try:
            with guarded(IMPORT_SECONDS, Printed()):
                subject = load_module(self._lesson.reference, SUBJECT, source)
                properties = {prop.number: prop for prop in load_properties(self._lesson, subject)}
        except BaseException:
            return IMPORT
        for limit, stories in self._rounds:
            for number in self._order:
                self._playing(number)
                if self._fails(properties[number], stories.get(number, ()), limit):
                    self._order.remove(number)
                    self._order.insert(0, number)
                    return number
        return ""

    def _fails(self, prop: Property, stories: Iterable[str], limit: int) -> bool:
        file, seconds = str(self._lesson.reference), limit * prop.seconds
        return any(play_once(prop, json.loads(story), file, seconds) is not None for story in stories)


def drawn(prop: Property) -> list[str]:
    """The small stories that a solution is judged by, as JSON: what a story does to it, no other sees."""
    stories: list[str] = []

    def keep(case: Any) -> None:
        stories.append(json.dumps(case))

    def play(case: Any, story: Story) -> None:
        """Any story holds."""

    judge_property(replace(prop, play=play, large=None), "", number_of_seed=SEED, playing=keep)
    return stories
