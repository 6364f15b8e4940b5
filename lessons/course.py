"""The course as a whole: which lesson stands on which, how long each takes, and where one may begin.

A lesson *needs* another if its text or its exercise uses what was built there. Nothing is forbidden: who
knows paging already begins with lesson 05.

Read next: `viz/course_map.py`, which draws it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from lessons.catalogue import Lesson

NEEDS = {
    "01": (),
    "02": (),
    "03": ("02",),
    "04": ("03",),
    "05": ("04",),
    "06": ("05",),
    "07": ("02",),
    "08": ("05", "07"),
    "09": ("07",),
    "10": ("05",),
    "11": ("02",),
    "12": ("11",),
    "13": ("04", "11"),
    "14": ("04",),
}
"""Number → numbers of the lessons that it stands on directly."""
PATHS = {
    "a beginner": ("01", "02", "03", "04"),
    "an engineer": ("05", "10", "13"),
    "a writer of kernels": ("11", "12", "13"),
}
"""Who begins with which lessons, and goes on from there."""


def needs(lesson: Lesson, there: Collection[str]) -> tuple[str, ...]:
    """What a lesson stands on, of those that are there."""
    return tuple(number for number in NEEDS.get(lesson.number, ()) if number in there)


def path(who: str, there: Collection[str]) -> tuple[str, ...]:
    """The lessons with which a kind of reader begins, of those that are there."""
    return tuple(number for number in PATHS[who] if number in there)


def level(number: str) -> int:
    """How many lessons stand below it at most: 0 for one that needs none."""
    return max((1 + level(below) for below in NEEDS.get(number, ())), default=0)


def minutes(lesson: Lesson) -> int:
    """To read, to step and to write, as its text says."""
    return sum(int(number) for number in re.findall(r"\d+", lesson.about()))
