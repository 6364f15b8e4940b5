"""A failing story as text: what `minivllm lesson see LESSON --text` prints, where there is no browser.

     1 s0 takes 2 blocks                                        answer=2 blocks  free=1
     2 s1 takes 2 blocks                                        ← here the two part
         yours      answer=2 blocks  free=-1
                    blocks 0 …  │ s0 │ s0 │ s1 │
         reference  answer=refused  free=1
                    blocks 0 …  │ s0 │ s0 │ ·  │

Up to there the learner's run and the reference's agree in all that counts, so each step is told once.

Read next: `comparing.py`, where the two lanes come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from rich.text import Text

from lessons.catalogue import Lesson, find_lesson
from lessons.language import in_language
from minivllm.terminal import Console
from minivllm.trace.story_events import Cell, Row, StoryHeader, StoryStep, StoryTrace

MOST_STEPS_BEFORE = 12
"""The last ones before the two part; of those before, only how many there are."""
MOST_CELLS = 16
WORDS_WIDTH = 60
MARKS = {"free": "·", "waste": "·"}
"""What stands in an empty cell; elsewhere it is empty."""


def print_story(console: Console, story: StoryTrace, language: str = "en") -> None:
    """The whole story, and in the step in which the lanes part, both of them with their boards."""
    header = story.header
    lesson = find_lesson(header.lesson)
    _say(console, (lesson.heading(language), "bold"), f"   judged: {header.file}")
    _say(console, (" ✘ ", "red"), f"{header.property} {_sentence(lesson, header, language)}")
    first = max(0, header.parted - MOST_STEPS_BEFORE)
    if first:
        _say(console, (f"     … {first} steps before …", "dim"))
    before: dict[str, str] = dict(story.yours[first - 1].facts) if first else {}
    for number in range(first, header.parted):
        step = story.yours[number]
        _say(console, f"    {number + 1:2} {step.text:<{WORDS_WIDTH}} ", (_changed(step, before), "dim"))
        before = dict(step.facts)
    later = zip_longest(story.yours[header.parted :], story.reference[header.parted :])
    for number, (yours, reference) in enumerate(later, header.parted + 1):
        told = yours or reference
        here = "   ← here the two part" if number == header.parted + 1 else ""
        _say(console, f"    {number:2} {told.text}", (here, "bold"))
        for name, one in (("yours", yours), ("reference", reference)):
            for place, line in enumerate(_lane(one)):
                _say(console, f"        {name if place == 0 else '':<10} {line}")
        if yours is None or yours.error:
            break  # what the reference does afterwards is another story
    _say(console, f"   expected: {header.expected}")
    _say(console, f"   got     : {header.got}")
    if header.where:
        _say(console, f"   where   : {header.where}")


def _sentence(lesson: Lesson, header: StoryHeader, language: str) -> str:
    return in_language(lesson, header.sentence, language)


def _changed(step: StoryStep, before: dict[str, str]) -> str:
    return "  ".join(f"{key}={value}" for key, value in step.facts.items() if before.get(key) != value)


def _lane(step: StoryStep | None) -> Iterator[str]:
    """What one of the two did in a step: its facts, its picture, and how it ended."""
    if step is None:
        yield "–"
        return
    facts = "  ".join(f"{key}={value}" for key, value in step.facts.items())
    if facts or not step.error:
        yield facts or "done"
    yield from _board(step.board)
    if step.error:
        yield f"✘ {step.error}"


def _board(rows: tuple[Row, ...]) -> Iterator[str]:
    """Rows of boxes below each other: all labels, and all boxes, are of one width."""
    label = max((len(row.label) for row in rows), default=0)
    width = max((len(_inside(cell)) for row in rows for cell in row.cells[:MOST_CELLS]), default=0)
    for row in rows:
        cells = "".join(f"│ {_inside(cell):<{width}} " for cell in row.cells[:MOST_CELLS])
        more = f"… {len(row.cells) - MOST_CELLS} more" if len(row.cells) > MOST_CELLS else ""
        yield f"{row.label:<{label}}  {cells}{'│' if cells else ''}{more}"


def _inside(cell: Cell) -> str:
    wrong = "✘ " if cell.mark == "wrong" else ""
    return wrong + (cell.text or MARKS.get(cell.mark, ""))


def _say(console: Console, *parts: str | tuple[str, str]) -> None:
    """A line, however long, of texts and of texts with a style."""
    console.print(Text.assemble(*parts), soft_wrap=True)
