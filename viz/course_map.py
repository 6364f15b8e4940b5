"""The map of the course: a box for each lesson, below those that it stands on, with how far the learner is.

    01 Roofline ○     02 The KV cache ✔
                     ┌──────┼──────┐
                   03 ✔   07 ◐   11 ○        filled: passed; thick: begun
                    │

Boxes have the same width on every screen, so the map can be read on a phone.

Read next: `views/lessons.py`, whose page begins with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lessons import course
from lessons.catalogue import Lesson
from viz.language import _
from viz.scene import Scene

BOX_WIDTH, BOX_HEIGHT = 178.0, 64.0
GAP_X, GAP_Y = 14.0, 26.0
MARGIN = 2.0
SIZE = 12.0
PASSED, BEGUN = "✔", "◐"


def course_map(lessons: Sequence[Lesson], marks: Mapping[str, str], titles: Mapping[str, str]) -> Scene:
    """The picture of the course.

    Args:
        marks: ○, ◐ or ✔ for each lesson, by its number.
        titles: of each lesson by its number, without the number.
    """
    levels: dict[int, list[Lesson]] = {}
    for lesson in lessons:
        levels.setdefault(course.level(lesson.number), []).append(lesson)
    most = max((len(row) for row in levels.values()), default=1)
    width = most * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    scene = Scene(_("The map of the course"), width, len(levels) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN)
    places: dict[str, tuple[float, float]] = {}
    for row, (_level, found) in enumerate(sorted(levels.items())):
        left = (width - len(found) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for column, lesson in enumerate(found):
            x = left + column * (BOX_WIDTH + GAP_X)
            places[lesson.number] = (x, MARGIN + row * (BOX_HEIGHT + GAP_Y))
    for lesson in lessons:
        for below in course.needs(lesson, places):
            goes_past = course.level(lesson.number) - course.level(below) > 1
            line = _line(places[below], places[lesson.number], goes_past)
            scene.path(line, stroke="outline", stroke_width=1.4, dash="5 3" if goes_past else "")
    for lesson in lessons:
        _box(scene, lesson, places[lesson.number], marks[lesson.number], titles[lesson.number])
    scene.begin_step(in_words(lessons))
    return scene


def _line(below: tuple[float, float], here: tuple[float, float], goes_past: bool) -> str:
    """From the bottom of one box to the top of another; past the boxes between them, where there are any."""
    x, y = below[0] + BOX_WIDTH / 2, below[1] + BOX_HEIGHT
    to_x, to_y = here[0] + BOX_WIDTH / 2, here[1]
    middle = to_y - GAP_Y / 2
    corners = [(x, y), (x, middle), (to_x, middle), (to_x, to_y)]
    if goes_past:
        x, to_x = x + BOX_WIDTH / 4, to_x + BOX_WIDTH / 4
        beside = below[0] - GAP_X / 2
        turns = [(x, y + 7), (beside, y + 7), (beside, to_y - 7), (to_x, to_y - 7)]
        corners = [(x, y), *turns, (to_x, to_y)]
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in corners)


def _box(scene: Scene, lesson: Lesson, place: tuple[float, float], mark: str, title: str) -> None:
    x, y = place
    is_passed, is_begun = mark == PASSED, mark == BEGUN
    scene.rect(x, y, BOX_WIDTH, BOX_HEIGHT, fill="page", radius=5)
    scene.rect(
        x,
        y,
        BOX_WIDTH,
        BOX_HEIGHT,
        fill="none",
        stroke="filled" if is_passed else "outline",
        stroke_width=2.5 if is_passed or is_begun else 1.0,
        radius=5,
        tip=f"{lesson.number} {title}",
    )
    scene.text(x + 9, y + 18, f"{lesson.number} {mark}", size=SIZE + 1, weight="bold")
    time = _("{minutes} min").format(minutes=course.minutes(lesson))
    scene.text(x + BOX_WIDTH - 9, y + 18, time, size=SIZE - 1, anchor="end", fill="muted")
    for number, line in enumerate(_lines(title)):
        scene.text(x + 9, y + 37 + 16 * number, line, size=SIZE)


def _lines(title: str) -> list[str]:
    """A title in lines as wide as a box: two of them, as titles are; a Chinese character is a word."""
    lines = [""]
    for word in re.findall(r"[\u2e80-\uffef]\s*|[^\s\u2e80-\uffef]+\s*", title):
        if _width(lines[-1] + word.rstrip()) > BOX_WIDTH - 18:
            lines.append("")
        lines[-1] += word
    return lines[:2]


def _width(text: str) -> float:
    return sum(SIZE * (1.0 if ord(letter) > 0x2E80 else 0.54) for letter in text)


def in_words(lessons: Sequence[Lesson]) -> str:
    """The same for those who cannot see it."""
    there = {lesson.number for lesson in lessons}
    parts = []
    for lesson in lessons:
        below = course.needs(lesson, there)
        words = _("{number} stands on {below}").format(number=lesson.number, below=_(", ").join(below))
        parts.append(words if below else _("{number} stands on none").format(number=lesson.number))
    return _("{sentence}.").format(sentence=_("; ").join(parts))
