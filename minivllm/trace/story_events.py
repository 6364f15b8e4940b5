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

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from minivllm.trace.events import Event
from minivllm.trace.reader import TraceError

STORY_VERSION = 1
YOURS, REFERENCE = "yours", "reference"
MARKS = ("", "free", "waste", "new", "wrong")


class Cell(msgspec.Struct, frozen=True):
    """One box of a row."""

    text: str
    owner: int = -1
    """The number of its owner: cells of one owner have one colour; -1 for a cell without one."""
    mark: str = ""
    """"free", "waste" (held, and of no use), "new" (written in this step), "wrong", or nothing."""


class Row(msgspec.Struct, frozen=True):
    """A line of boxes with a name."""

    label: str
    cells: tuple[Cell, ...]


class StoryHeader(Event, frozen=True):
    """The first line: which lesson and property, and what went wrong."""

    version: int
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
    parted: int = 0
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
        ValueError: the file cannot be written.
    """
    encode = msgspec.json.Encoder().encode
    lines = [encode(event) for event in (story.header, *story.yours, *story.reference, StoryEnded())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\n".join(lines) + b"\n")
    except OSError as error:
        raise ValueError(f"story: cannot write to {path}: {error.strerror}") from error


def is_story(path: str | Path) -> bool:
    """Does the file begin like one?"""
    try:
        with Path(path).open("rb") as file:
            return b'"StoryHeader"' in file.read(100)
    except (OSError, ValueError):  # the latter: a path that cannot be one
        return False


def read_story(path: str | Path) -> StoryTrace:
    """Open a file that `write_story` wrote; one that was cut off is read as far as it goes.

    Raises:
        TraceError: it cannot be read, is not such a file, is of an unknown version, or is damaged.
    """
    path = Path(path)
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}") from error
    if not lines or not is_story(path):
        raise TraceError(f"{path} is not a story of a lesson: its first line is not a story's header")
    try:
        header = msgspec.json.decode(lines[0], type=StoryHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} has a damaged header: {error}") from error
    if header.version != STORY_VERSION:
        raise TraceError(
            f"{path} is a story of version {header.version}; this program reads {STORY_VERSION}. "
            f"Let `minivllm lesson check` write it again."
        )
    events = list(_decode(path, lines[1:]))
    steps = [event for event in events if isinstance(event, StoryStep)]
    return StoryTrace(
        header,
        [step for step in steps if step.lane == YOURS],
        [step for step in steps if step.lane != YOURS],
        is_whole=any(isinstance(event, StoryEnded) for event in events),
    )


def _decode(path: Path, lines: list[bytes]) -> Iterable[StoryEvent]:
    decoder = msgspec.json.Decoder(StoryEvent)
    for number, line in enumerate(lines, 2):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == len(lines) + 1:
                return  # cut off
            raise TraceError(f"{path}, line {number}, is not an event of a story: {error}") from error
