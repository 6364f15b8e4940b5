"""A chart: one small pair of axes, the palette's colours, few lines, and words for every point.

What is drawn is collected first (`line`, `area`, …), in the units of the data; only then its limits are
known, and `scene` lays it out. A chart is a scene like any other: it follows the theme, is played by the
player (whose step is a line over it where x means time), and can be taken along as every picture can. Its
points say what a pointer reads there, and which step a click, or Enter, leads to.

It is as wide as a column of the page, so that charts stand side by side where there is room, and below each
other on a phone. Read next: `bars.py`, `latencies.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from viz.figures.common import PHONE, text_cells
from viz.figures.time_axis import round_step
from viz.scene import Point, Scene, StepAxis, lines_path, rounded

LEFT, RIGHT, TOP, PLOT = 62.0, 12.0, 68.0, 150.0
"""Units: the margins around the axes, and how high they are."""
KEY = 20.0
"""The line of the legend."""
MOST_POINTS = 160
"""Points of a chart of this size that a pointer can tell apart."""
MOST_DRAWN = 400
SMALL = 12.0
CELL = 7.0
"""Units that a character of this size takes at most."""

Place = Callable[[float], float]
Drawing = Callable[[Scene, Place, Place], None]


@dataclass(frozen=True)
class Steps:
    """Where the player's steps lie along x: their starts and ends, in the units of the axis."""

    starts: Sequence[float]
    ends: Sequence[float]


class Chart:
    """One pair of axes.

    Args:
        title: drawn above it, and what those hear who cannot see it.
        across: the name of x.
        up: the name of y.
        first: where x begins.
        last: where it ends.
        steps: if x is the time of the run.
    """

    def __init__(
        self,
        title: str,
        across: str,
        up: str,
        first: float = 0.0,
        last: float = 1.0,
        steps: Steps | None = None,
    ) -> None:
        self.title, self.across, self.up = title, across, up
        self.first, self.last = first, after(first, last)
        self.steps = steps
        self.top = 0.0
        """How far up y goes; grows with what is drawn."""
        self.tick = 0.0
        """From one label of y to the next; 0: whatever is round."""
        self.whole = False
        self.drawn: list[Drawing] = []
        self.key: list[tuple[str, Callable[[Scene, float, float], None]]] = []
        self.points: list[tuple[float, float, int, str]] = []

    # ── what is drawn, in the units of the data ───────────────────────────────────────────────────────

    def line(
        self,
        points: Sequence[tuple[float, float]],
        stroke: str,
        dash: str = "",
        width: float = 2.2,
        words: str = "",
    ) -> None:
        """A line through points; `words` explain it above the axes."""
        self.top = max(self.top, *(y for _x, y in points))

        def draw(scene: Scene, x: Place, y: Place) -> None:
            d = _path(points, x, y)
            scene.path(d, stroke=stroke, dash=dash, stroke_width=width)

        def sample(scene: Scene, left: float, at: float) -> None:
            scene.path(
                lines_path([(left, at), (left + 22, at)]), stroke=stroke, dash=dash, stroke_width=width
            )

        self._draw(draw, words, sample)

    def area(
        self,
        points: Sequence[tuple[float, float]],
        fill: str,
        words: str = "",
        *,
        opacity: float = 1.0,
        stroke: str = "none",
    ) -> None:
        """What lies below a line through points, down to zero."""
        self.top = max(self.top, *(y for _x, y in points))

        def draw(scene: Scene, x: Place, y: Place) -> None:
            ends = [(points[0][0], 0.0), *points, (points[-1][0], 0.0)]
            d = _path(ends, x, y) + "Z"
            scene.path(d, fill=fill, opacity=opacity, stroke=stroke, stroke_width=0.8)

        def sample(scene: Scene, left: float, at: float) -> None:
            scene.rect(left + 2, at - 5, 16, 10, fill=fill, stroke="outline", stroke_width=0.8)

        self._draw(draw, words, sample)

    def dot(self, across: float, up: float, fill: str = "cursor") -> None:
        """A dot on a curve."""

        def draw(scene: Scene, x: Place, y: Place) -> None:
            size = 7.0
            place = rounded(x(across) - size / 2), rounded(y(up) - size / 2)
            scene.rect(*place, size, size, fill=fill, radius=size / 2)

        self._draw(draw)

    def note(self, across: float, up: float, words: str, anchor: str = "start") -> None:
        """Words beside a place of the axes."""
        away = 6.0 if anchor == "start" else -6.0

        def draw(scene: Scene, x: Place, y: Place) -> None:
            place = rounded(x(across) + away), rounded(y(up) + 4)
            scene.text(*place, words, size=SMALL, anchor=anchor)

        self._draw(draw)

    def point(self, across: float, up: float, step: int, words: str) -> None:
        """What a pointer reads here, and where a click leads."""
        self.points.append((across, up, step, words))

    def _draw(
        self, draw: Drawing, words: str = "", sample: Callable[[Scene, float, float], None] | None = None
    ) -> None:
        self.drawn.append(draw)
        if words and sample:
            self.key.append((words, sample))

    # ── the picture ───────────────────────────────────────────────────────────────────────────────────

    def scene(self, captions: Sequence[str]) -> Scene:
        """The chart, with the player's step as a line over it where x is the time of the run."""
        high = TOP if self.key else TOP - KEY  # where the axes begin
        scene = Scene(self.title, PHONE, high + PLOT + 42)
        right, bottom, top = PHONE - RIGHT, high + PLOT, (self.top or 1.0) * 1.04
        length = self.last - self.first

        def x(value: float) -> float:
            return LEFT + (value - self.first) / length * (right - LEFT)

        def y(value: float) -> float:
            return bottom - value / top * PLOT

        scene.text(0, 15, self.title, size=15, weight="bold")
        self._explain(scene)
        self._grid(scene, x, y, high, top)
        for draw in self.drawn:
            draw(scene, x, y)
        scene.points = [Point(rounded(x(a)), rounded(y(u)), step, words) for a, u, step, words in self.points]
        if self.steps:
            _play(scene, self.steps, x, high, captions)
        else:
            stand(scene, captions)
        return scene

    def _explain(self, scene: Scene) -> None:
        """The legend, between the title and the axes."""
        left = 0.0
        for words, sample in self.key:
            sample(scene, left, 32)
            scene.text(left + 28, 36, words, size=SMALL)
            left += 28 + CELL * text_cells(words) + 12

    def _grid(self, scene: Scene, x: Place, y: Place, high: float, top: float) -> None:
        right, bottom = PHONE - RIGHT, high + PLOT
        tick = self.tick or max(round_step(top / 4.2), 1.0 if self.whole else 0.0)
        for number in range(int(top / tick * (1 + 1e-9)) + 1):
            at = rounded(y(number * tick))
            scene.path(f"M{LEFT:g},{at:g}L{right:g},{at:g}", stroke="rule", stroke_width=0.8)
            scene.text(LEFT - 7, at + 4, f"{number * tick:,.6g}", size=SMALL, fill="muted", anchor="end")
        scene.path(f"M{LEFT:g},{bottom:g}L{right:g},{bottom:g}", stroke="outline", stroke_width=1.0)
        scene.text(0, high - 11, self.up, size=SMALL, fill="muted")
        scene.text((LEFT + right) / 2, bottom + 36, self.across, size=SMALL, fill="muted", anchor="middle")
        step = round_step((self.last - self.first) * 80 / (right - LEFT))
        for number in range(ceil(self.first / step - 1e-9), int(self.last / step + 1e-9) + 1):
            at, words = x(number * step), f"{number * step:,.6g}"
            scene.path(f"M{at:.2f},{bottom:g}L{at:.2f},{bottom + 4:g}", stroke="outline", stroke_width=1.0)
            anchor = "middle" if at < right - 20 else "end"
            scene.text(rounded(at), bottom + 18, words, size=SMALL, fill="muted", anchor=anchor)


def _play(scene: Scene, steps: Steps, x: Place, high: float, captions: Sequence[str]) -> None:
    """The step as a line where it ends; what comes after it is dimmed."""
    height = PLOT + 6
    veil = scene.rect(LEFT, high - 6, PHONE - LEFT, height, fill="page", opacity=0.62)
    line = scene.rect(LEFT, high - 6, 1.5, height, fill="cursor")
    ends = [rounded(x(end)) for end in steps.ends]
    scene.axis = StepAxis(LEFT, 0.0, tuple(ends))
    scene.captions = list(captions)
    for end in ends:
        place = round(4 * end) / 4  # in a long run, most steps lie where the one before them does
        scene.changes.begin_step()
        scene.set(veil, x=place)
        scene.set(line, x=place - 0.75)


def stand(scene: Scene, captions: Sequence[str]) -> None:
    """The same picture at every step, with captions as `figures/captions.py` tells them."""
    scene.captions = list(captions)
    for _caption in captions:
        scene.changes.begin_step()


def _path(points: Sequence[tuple[float, float]], x: Place, y: Place) -> str:
    return lines_path([(rounded(x(across)), rounded(y(up))) for across, up in points])


def stairs(steps: Steps, values: Sequence[float]) -> list[tuple[float, float]]:
    """The corners of a line that has each step's value from its start to the next one's.

    Of very many steps, for each place along x that can be told from the next: the least value, the largest
    and the last, so that no peak is lost.
    """
    size = max(1, ceil(len(values) / MOST_DRAWN))
    corners: list[tuple[float, float]] = []
    for first in range(0, len(values), size):
        part, at = values[first : first + size], steps.starts[first]
        heights = [part[0]] if size == 1 else [part[0], min(part), max(part), part[-1]]
        for height in heights:
            if not corners or height != corners[-1][1]:
                corners += [(at, corners[-1][1] if corners else height), (at, height)]
    return [*corners, (steps.ends[-1], values[-1])]


def after(first: float, last: float) -> float:
    """An end that lies behind the beginning: `last`, or a little more than `first`."""
    return last if last > first else first + max(1e-9, 1e-9 * abs(first))


def spread(count: int, most: int = MOST_POINTS) -> list[int]:
    """At most so many of `count` numbers from 0 on, evenly, the last among them."""
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]
