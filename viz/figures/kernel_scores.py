"""Scores and weights as colours, tile by tile: what a running softmax makes of them.

    scores                 weights so far
    queries ▓░▒│           queries █░▒│        row by row the weights add up to 1 at every moment, of the keys
            ▒▓░│▒▓                 ▒█░│░█      that were seen. A larger maximum makes all older ones paler at
            ░▒▒│▓█                 ░░░│▒█      once: that is the rescale.

Score s of a row becomes the weight exp(s − m) / l, with the row's maximum m and sum l as they are now. Both
pictures hold one head; the next head begins them anew. None of these numbers is ever in global memory: the
kernel notes them under the microscope.

Read next: `kernel_softmax.py`, the m and l of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, sqrt
from typing import NamedTuple

from viz.figures.common import signed, swatches
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_tiles import Piece
from viz.language import _
from viz.palette import RAMP_STEPS, ramp
from viz.scene import Scene, bars_path, rounded

LEFT, TOP = 66.0, 48.0
MOST_WIDTH, MOST_HEIGHT = 480.0, 300.0
MOST_SCORES = 20_000
"""Of more scores in one head no picture is drawn: its cells could not be told apart."""
MOST_REDRAWN = 400_000
"""Cells that all steps together draw anew; beyond it a picture would take long to travel."""


class Row(NamedTuple):
    """What is known of a query after some tiles."""

    scores: dict[int, float]
    """By key."""
    maximum: float
    total: float

    def weights(self) -> dict[int, float]:
        """By key; together 1."""
        return {key: exp(score - self.maximum) / self.total for key, score in self.scores.items()}


def kernel_scores(found: Sequence[Piece], told: Sequence[str]) -> list[Scene]:
    """The scores and the weights; nothing if the kernel noted no scores, or too many to be drawn."""
    if not has_scores(found):
        return []
    largest = max((abs(s) for p in found for u in p.updates for s in u.scores), default=0.0) or 1.0

    def of_score(score: float) -> str:
        return ramp("above" if score > 0 else "below", abs(score) / largest)

    def of_weight(weight: float) -> str:
        return ramp("heat", sqrt(weight))  # most are far below 1, and still not alike

    scores = _Cells(_("Scores of the tiles so far"), found, ("below", "above"))
    weights = _Cells(_("Weights so far: softmax of the scores that were seen"), found, ("heat",))
    scores.legend([(value, of_score(value)) for value in (-largest, -largest / 2, 0.0, largest / 2, largest)])
    weights.legend([(value, of_weight(value)) for value in (0.0, 0.02, 0.1, 0.25, 0.5, 1.0)])
    rows: dict[int, Row] = {}
    panel = None
    for piece, sentence in zip(found, told, strict=True):
        for picture in (scores, weights):
            picture.scene.begin_step(sentence)
        if piece.panel != panel:
            panel, rows = piece.panel, {}
            for picture in (scores, weights):
                picture.clear()
        for update in piece.updates:
            old = rows[update.query].scores if update.query in rows else {}
            new = {piece.box.first_key + place: score for place, score in enumerate(update.scores)}
            row = rows[update.query] = Row(old | new, update.maximum, update.total)
            scores.draw(update.query, row.scores, of_score)
            weights.draw(update.query, row.weights(), of_weight)
        for picture in (scores, weights):
            picture.frame(piece)
    return [scores.scene, weights.scene]


def has_scores(found: Sequence[Piece]) -> bool:
    """Are there scores, and can they be drawn?"""
    sizes = [sum(len(update.scores) for update in piece.updates) for piece in found]
    by_panel: dict[tuple[int, int], int] = {}
    drawn = 0
    for piece, size in zip(found, sizes, strict=True):
        by_panel[piece.panel] = by_panel.get(piece.panel, 0) + size
        drawn += len(piece.updates) * piece.box.end_key
    return 0 < max(by_panel.values(), default=0) <= MOST_SCORES and drawn <= MOST_REDRAWN


class _Cells:
    """A cell for each score of one head; of each row and colour one shape."""

    def __init__(self, title: str, found: Sequence[Piece], ramps: Sequence[str]) -> None:
        num_queries = max(piece.box.end_query for piece in found)
        num_keys = max(piece.box.end_key for piece in found)
        self.unit = min(MOST_WIDTH / num_keys, MOST_HEIGHT / num_queries)
        self.height = max(self.unit, 24 / num_queries)
        self.bottom = TOP + num_queries * self.height
        self.ramps = ramps
        self.scene = scene = Scene(title, COLUMN, self.bottom + 34)
        scene.text(4, 16, title, size=15, weight="bold")
        scene.text(LEFT, TOP - 6, _("keys →"), size=12, fill="muted")
        scene.text(4, TOP + 12, _("queries ↓"), size=12, fill="muted")
        scene.rect(LEFT, TOP, rounded(num_keys * self.unit), rounded(self.bottom - TOP), stroke="rule")
        names = ["panel", *(f"{name}{step}" for name in ramps for step in range(1, RAMP_STEPS + 1))]
        self.shapes = [{name: scene.path("", fill=name) for name in names} for _row in range(num_queries)]
        self.border = scene.rect(0, 0, 0, 0, stroke="cursor", stroke_width=2.5)

    def legend(self, entries: Sequence[tuple[float, str]]) -> None:
        """Some values with their colours."""
        swatches(self.scene, self.bottom + 24, [(name, signed(value), 1.0) for value, name in entries], LEFT)

    def clear(self) -> None:
        """Another head begins."""
        for row in self.shapes:
            for shape in row.values():
                self.scene.set(shape, d="")

    def draw(self, query: int, values: dict[int, float], colour_of: Callable[[float], str]) -> None:
        """One row anew; neighbours of one colour are one bar."""
        bars: dict[str, list[list[float]]] = {}
        before, end = "", -1
        for key in sorted(values):
            name = colour_of(values[key])
            if name == before and key == end:
                bars[name][-1][1] += 1
            else:
                bars.setdefault(name, []).append([key, 1])
            before, end = name, key + 1
        y, height = rounded(TOP + query * self.height), rounded(self.height)
        for name, shape in self.shapes[query].items():
            boxes = [
                (rounded(LEFT + key * self.unit), y, rounded(count * self.unit), height)
                for key, count in bars.get(name, ())
            ]
            self.scene.set(shape, d=bars_path(boxes))

    def frame(self, piece: Piece) -> None:
        """Where the tile is."""
        box = piece.box
        self.scene.set(
            self.border,
            x=rounded(LEFT + box.first_key * self.unit),
            y=rounded(TOP + box.first_query * self.height),
            width=rounded((box.end_key - box.first_key) * self.unit),
            height=rounded((box.end_query - box.first_query) * self.height),
        )
