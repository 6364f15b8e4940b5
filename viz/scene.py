"""The scene: a picture with a step cursor, as plain data that any backend can draw.

A scene is a list of shapes, a sparse patch for each step, and a caption for each step. A figure (`figures/`)
is a pure function from a trace to a scene; the browser's player, the SVG and matplotlib backends and the
self-contained page all draw the same one, so there is one place that knows what an event looks like.

    shapes    [ rect 0 | rect 1 | text 2 | path 3 ]       the picture before step 0
    patches   step 0: {1: {fill: "family2"}}              what step 0 changes
              step 1: {}                                  nothing
              step 2: {1: {fill: "free"}, 2: {text: "B"}}

The picture at a step is the shapes with all patches up to that step laid over them, in order. Stepping
forward applies one patch; jumping starts from a keyframe that the player keeps every 64 steps. Patches are
kept as columns of numbers (`changes.py`), so that a long run costs a few bytes for each change.

Read next: `changes.py`; `figures/block_pool.py`, the largest scene; `player/player.js`, which plays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, NamedTuple

from minivllm.text import printable
from viz.changes import Changes, Shape, Value

__all__ = [
    "DEFAULTS",
    "LEGIBLE",
    "Point",
    "Scene",
    "Shape",
    "StepAxis",
    "Value",
    "bars_path",
    "hatch_path",
    "lines_path",
    "rounded",
    "skyline_path",
]

LEGIBLE = 7.0
"""Still pictures leave out labels that are smaller; the player shows them once one has zoomed in."""

# Attributes of each kind, with the value that is meant where a shape does not give one. They are spelled
# out in `player.js` too; a test holds the two lists together.
DEFAULTS: dict[str, Shape] = {
    "rect": {
        "x": 0.0,
        "y": 0.0,
        "width": 0.0,
        "height": 0.0,
        "fill": "none",
        "stroke": "none",
        "stroke_width": 1.0,
        "dash": "",
        "opacity": 1.0,
        "radius": 0.0,
        "label": "",
        "label_size": 12.0,
        "tip": "",
        "detail": "",
        "filled": -1,
        "subject": "",
        "of": "",
    },
    "text": {
        "x": 0.0,
        "y": 0.0,
        "text": "",
        "fill": "ink",
        "size": 13.0,
        "anchor": "start",
        "weight": "normal",
        "tip": "",
        "subject": "",
        "of": "",
    },
    "path": {
        "d": "",
        "fill": "none",
        "stroke": "none",
        "stroke_width": 1.5,
        "dash": "",
        "opacity": 1.0,
        "tip": "",
        "subject": "",
        "of": "",
    },
}


@dataclass(frozen=True)
class StepAxis:
    """Steps run along x from `left`, `step_width` units each: a click on the picture goes to that step.

    Where x means time, steps are not equally wide: then `ends` has the x at which each step ends.
    """

    left: float
    step_width: float
    ends: tuple[float, ...] = ()


class Point(NamedTuple):
    """A point of a chart: a pointer near it reads its words, and a click, or Enter, leads to its step.

    Where x means steps or time (`Scene.axis`), it is near wherever its step is. A point without words tells
    the step's caption.
    """

    x: float
    y: float
    step: int
    words: str = ""


@dataclass
class Scene:
    """A picture of `width` × `height` units that changes from step to step.

    Attributes:
        title: names the picture for people who cannot see it.
        shapes: each has a `kind` ("rect", "text" or "path") and the attributes of `DEFAULTS`; coordinates
            are in units from the top left, colours are names of the palette. Later shapes lie on top.
            A path's `d` uses M, L, C and Z with absolute coordinates only. `tip` is what a pointer reads
            (and `detail`, the part of it that changes often, follows it: patches stay short; last comes
            `filled`, a number if it is not negative, in the scene's `filled_words`). `subject` is what a
            click asks about, `of` whose it is (`subjects.py`).
        changes: for each step, which attributes of which shapes become what.
        captions: for each step, in words, what happens.
        axis: set if x means steps.
        histories: what there is to tell of the blocks or edges that it draws (`figures/block_history.py`,
            `figures/prefix_cards.py`).
        idle: for each step, is there nothing to see? Empty: there always is.
        stacked: on a page it stands where the scene before it stands: at each step one of the two is idle.
        filled_words: what a pointer reads about `filled`, which stands for "{filled}" in it.
        points: of a chart, those that can be asked about; by step, where there is an axis.
        notes: what stands below the picture on a page: "words" (with `code` and **bold** in it) and "code".
        section: a heading above this picture on a page; "" if none begins here.
        screen: "wide" or "narrow" if there is another scene for other screens, "" if it suits all.
    """

    title: str
    width: float
    height: float
    shapes: list[Shape] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    captions: list[str] = field(default_factory=list)
    axis: StepAxis | None = None
    points: list[Point] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    section: str = ""
    screen: str = ""
    idle: list[bool] = field(default_factory=list)
    stacked: bool = False
    filled_words: str = ""
    histories: dict[str, Any] | None = None
    _now: list[Shape] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.title = printable(self.title)

    @property
    def num_steps(self) -> int:
        return self.changes.num_steps

    @property
    def patches(self) -> list[dict[int, Shape]]:
        """For each step, shape number → the attributes that change; made anew whenever it is asked for."""
        return [self.changes.patch(step) for step in range(self.num_steps)]

    def rect(self, x: float, y: float, width: float, height: float, **attributes: Value) -> int:
        """Add a rectangle and return its number."""
        return self._add("rect", x=x, y=y, width=width, height=height, **attributes)

    def text(self, x: float, y: float, text: str, **attributes: Value) -> int:
        """Add a line of text whose baseline starts (or, by `anchor`, ends or is centred) at x, y."""
        return self._add("text", x=x, y=y, text=text, **attributes)

    def path(self, d: str, **attributes: Value) -> int:
        """Add a path and return its number."""
        return self._add("path", d=d, **attributes)

    def begin_step(self, caption: str) -> None:
        """What is `set` from here on happens in the next step."""
        self.changes.begin_step()
        self.captions.append(printable(caption))

    def set(self, shape: int, **attributes: Value) -> None:
        """Change a shape in this step. What stays the same is left out of the patch."""
        self.changes.add(shape, self._now[shape], attributes)

    def set_one(self, shape: int, name: str, value: Value) -> None:
        """The same for one attribute, where a long run changes it at every step."""
        self.changes.add_one(shape, self._now[shape], name, value)

    def forget_steps(self) -> None:
        """Drop all steps, and go on from the picture as it is: for a run that has no end."""
        self.changes = Changes()
        self.captions.clear()

    def now(self) -> Iterator[Shape]:
        """All shapes as they are after the last step."""
        return iter(self._now)

    def at(self, step: int) -> list[Shape]:
        """All shapes as they are after `step`, every attribute spelled out."""
        shapes = [DEFAULTS[str(shape["kind"])] | shape for shape in self.shapes]
        self.changes.apply(shapes, step)
        return shapes

    def tip_of(self, shape: Shape) -> str:
        """What a pointer reads about a shape of `at`."""
        filled = shape.get("filled", -1)
        words = [shape["tip"], shape.get("detail")]
        if isinstance(filled, int | float) and filled >= 0:
            words.append(self.filled_words.replace("{filled}", f"{filled:g}"))
        return ", ".join(str(part) for part in words if part) if shape["tip"] else ""

    def to_data(self) -> dict[str, Any]:
        """For the player: JSON without captions, which all scenes of a page share."""
        return {
            "title": self.title,
            "width": self.width,
            "height": self.height,
            "shapes": self.shapes,
            "changes": self.changes.to_data(),
            "points": self.points,
            "notes": [(kind, printable(words)) for kind, words in self.notes],
            "section": self.section,
            "screen": self.screen,
            "idle": "".join(str(int(is_idle)) for is_idle in self.idle),
            "stacked": self.stacked,
            "filled_words": self.filled_words,
            "axis": [self.axis.left, self.axis.step_width, list(self.axis.ends)] if self.axis else None,
        }

    def _add(self, kind: str, **attributes: Value) -> int:
        assert not self.num_steps, "shapes are added before the first step, and only change afterwards"
        unknown = attributes.keys() - DEFAULTS[kind].keys()
        assert not unknown, f"a {kind} has no {', '.join(sorted(unknown))}"
        self.shapes.append({"kind": kind, **{name: _shown(value) for name, value in attributes.items()}})
        self._now.append(DEFAULTS[kind] | self.shapes[-1])
        return len(self.shapes) - 1


def _shown(value: Value) -> Value:
    """A trace may hold any text; none may act on what stands around it, in whichever backend."""
    return printable(value) if isinstance(value, str) else value


def rounded(value: float) -> float:
    """A coordinate with two decimals: the picture cannot show more, and the file is half as long."""
    return round(value, 2)


def lines_path(points: list[tuple[float, float]]) -> str:
    """A path's `d` through the points."""
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points) if points else ""


def bars_path(bars: list[tuple[float, float, float, float]]) -> str:
    """One path for many rectangles `(x, y, width, height)`: thousands of bars as a single shape."""
    return "".join(
        f"M{x:g},{y:g}L{x + width:g},{y:g}L{x + width:g},{y + height:g}L{x:g},{y + height:g}Z"
        for x, y, width, height in bars
        if width > 0 and height > 0
    )


def skyline_path(tops: list[tuple[float, float, float]], bottom: float) -> str:
    """One outline around columns `(x, width, y of the top)` that stand side by side on `bottom`.

    A browser fills it many times faster than as many rectangles.
    """
    if not tops:
        return ""
    line = "".join(f"L{x:g},{y:g}L{x + width:g},{y:g}" for x, width, y in tops)
    end = tops[-1][0] + tops[-1][1]
    return f"M{tops[0][0]:g},{bottom:g}{line}L{end:g},{bottom:g}Z"


def hatch_path(bars: list[tuple[float, float, float, float]], gap: float = 5.0) -> str:
    """Slanted lines within rectangles `(x, y, width, height)`: what says "waste" without colour.

    The lines of all rectangles lie on one grid, so that neighbours look like one area.
    """
    lines = []
    for x, y, width, height in bars:
        for number in range(ceil((x + y) / gap), floor((x + width + y + height) / gap) + 1):
            total = number * gap
            left, right = max(x, total - y - height), min(x + width, total - y)
            if left < right:
                lines.append(f"M{left:g},{total - left:g}L{right:g},{total - right:g}")
    return "".join(lines)
