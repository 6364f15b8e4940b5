"""Two lanes: the failing story once more, with the reference, and where the two part.

Lanes part at the first step whose facts differ, or that one of them does not have, or where the learner's
stopped. Boards may differ before, where a solution is free to choose (which free block, say).

A story that stops the reference says nothing of the learner's code: the judge is at fault, and says so.

Read next: `minivllm/trace/story_events.py`, the file that comes of it.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import msgspec

from lessons.catalogue import Lesson, relative
from lessons.loading import load_properties, load_reference
from lessons.runner import Outcome, Result
from lessons.story import Property, Story
from lessons.verdict import words_of
from minivllm.trace.recorder import timestamp
from minivllm.trace.story_events import (
    REFERENCE,
    STORY_VERSION,
    StoryHeader,
    StoryStep,
    StoryTrace,
    write_story,
)

FAULT = (
    "but the right solution cannot play this story: the judge is at fault, not your code. Please report it"
)

# There is one place of `subject` in a process, and the dashboard has many threads.
_place = Lock()


def properties_with_reference(lesson: Lesson) -> list[Property]:
    """The lesson's properties, with the right solution in the place of `subject`."""
    with _place:
        return load_properties(lesson, load_reference(lesson))


def compare(result: Result, outcome: Outcome) -> tuple[StoryTrace, Story]:
    """The story on which a property failed, in two lanes; and the reference's own record of it."""
    yours = [msgspec.convert(step, StoryStep) for step in outcome.steps]
    prop = next(p for p in properties_with_reference(result.lesson) if p.number == outcome.number)
    twin = Story(REFERENCE)
    try:
        prop.play(outcome.case, twin)
    except Exception as error:
        outcome.fault = f"{type(error).__name__}: {words_of(error)}"
        twin.stopped(outcome.fault)
        outcome.got += f"; {FAULT} ({outcome.fault})"
    if not yours:  # the process that played it was lost, with all that it had seen
        yours = [StoryStep("yours", "somewhere in this story", error=outcome.got)]
    header = StoryHeader(
        version=STORY_VERSION,
        created=timestamp(),
        lesson=result.lesson.name,
        title=result.lesson.heading(),
        property=outcome.number,
        sentence=outcome.sentence,
        expected=outcome.expected,
        got=outcome.got,
        file=relative(result.path),
        where=outcome.where,
        parted=parting(yours, twin.steps),
    )
    return StoryTrace(header, yours, twin.steps), twin


def parting(yours: list[StoryStep], reference: list[StoryStep]) -> int:
    """The first step in which two lanes differ."""
    for number, step in enumerate(yours):
        if step.error or number >= len(reference) or step.facts != reference[number].facts:
            return number
    return max(0, len(yours) - 1)


def write_comparison(result: Result, outcome: Outcome, path: Path) -> StoryTrace:
    """Write the story to a file; kernels under the microscope into two files beside it.

    Raises:
        ValueError: they cannot be written.
    """
    story, twin = compare(result, outcome)
    if outcome.kernels and twin.kernels:
        from lessons.kernels import write_kernels

        names = write_kernels(path, outcome.kernels, twin)
        story = StoryTrace(msgspec.structs.replace(story.header, kernels=names), story.yours, story.reference)
    write_story(path, story)
    return story
