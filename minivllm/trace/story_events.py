"""The events of a failing story: a third kind of trace, made by the judge of a lesson.

A property of a lesson failed, and Hypothesis has shrunk the counterexample. The story tells it twice: what
the learner's code did, and what the reference did on the same operations, step by step.

    StoryHeader
        StoryStep("yours")  …       one operation, and what could be seen after it
        StoryStep("reference")  …
    StoryEnded

What can be seen is a board: rows of labelled cells. A cell may have an owner (a number) and a mark.

Read next: `lessons/story.py`, which records it; `viz/figures/story.py`, which draws it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from minivllm.files import CannotWrite, reason, write_file
from minivllm.trace.events import Event, Integer
from minivllm.trace.lines import begins_as, open_trace, read_events, read_header

STORY_VERSION = 1
YOURS, REFERENCE = "yours", "reference"
MARKS = ("", "free", "waste", "new", "wrong")


class Cell(msgspec.Struct, frozen=True):
    """One box of a row."""

    text: str
    owner: Integer = -1
    """The number of its owner: cells of one owner have one colour; -1 for a cell without one."""
    mark: str = ""
    """"free", "waste" (held, and of no use), "new" (written in this step), "wrong", or nothing."""


class Row(msgspec.Struct, frozen=True):
    """A line of boxes with a name."""

    label: str
    cells: tuple[Cell, ...]


class StoryHeader(Event, frozen=True):
    """The first line: which lesson and property, and what went wrong."""

    version: Integer
    created: str
    """ISO 8601, in UTC."""
    lesson: str
    """The name of its folder."""
    title: str
    property: str
    """Its number, such as "P3"."""
    sentence: str
    """What must always hold."""
    expected: str
    got: str
    file: str
    """The learner's."""
    where: str = ""
    """The learner's line in which it was noticed, if it was in one."""
    parted: Integer = 0
    """The first step in which the two lanes differ."""
    kernels: tuple[str, ...] = ()
    """Files beside this one with the learner's kernel, and the reference's, under the microscope."""


class StoryStep(Event, frozen=True):
    """One operation of one lane."""

    lane: str
    """"yours" or "reference"."""
    text: str
    facts: dict[str, str] = msgspec.field(default_factory=dict)
    """What both lanes must agree on after this step, by name."""
    board: tuple[Row, ...] = ()
    error: str = ""
    """What stopped the lane here; it is its last step then."""


class StoryEnded(Event, frozen=True):
    """The file was written to its end."""


StoryEvent = StoryStep | StoryEnded


@dataclass(frozen=True)
class StoryTrace:
    """A failing story and its twin."""

    header: StoryHeader
    yours: list[StoryStep] = field(default_factory=list)
    reference: list[StoryStep] = field(default_factory=list)
    is_whole: bool = True
    """Was it written to its end?"""

    @property
    def num_steps(self) -> int:
        """Of the longer lane."""
        return max(len(self.yours), len(self.reference))


def write_story(path: Path, story: StoryTrace) -> None:
    """Write a story to a file.

    Raises:
        CannotWrite: and a file that was there before is still there.
    """
    encode = msgspec.json.Encoder().encode
    lines = [encode(event) for event in (story.header, *story.yours, *story.reference, StoryEnded())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"story: cannot write to {path}: {reason(error)}") from error
    write_file(path, b"\n".join(lines) + b"\n", "story")


def is_story(path: str | Path) -> bool:
    """Does the file begin like one?"""
    return begins_as(path, "StoryHeader")


def read_story(path: str | Path) -> StoryTrace:
    """Open a file that `write_story` wrote; one that was cut off is read as far as it goes.

    Raises:
        TraceError: it cannot be read, is not such a file, is of an unknown version, or is damaged or absurd.
    """
    path = Path(path)
    with open_trace(path) as file:
        header = read_header(
            path, file, "StoryHeader", STORY_VERSION, msgspec.json.Decoder(StoryHeader).decode
        )
        events, _ = read_events(path, file, msgspec.json.Decoder(StoryEvent).decode, "an event of a story")
    steps = [event for event in events if isinstance(event, StoryStep)]
    return StoryTrace(
        header,
        [step for step in steps if step.lane == YOURS],
        [step for step in steps if step.lane != YOURS],
        is_whole=any(isinstance(event, StoryEnded) for event in events),
    )
