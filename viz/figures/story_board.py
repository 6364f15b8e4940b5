"""The board of a lane: rows of labelled cells, which are another picture after every step.

    blocks 0 …        ┌──┬──┬──┬──┐      colour: its owner;    dashed: free;  hatched: waste
                      │s0│s0│s1│  │      black corner: new in this step;  red frame and cross: wrong
                      └──┴──┴──┴──┘

A scene's shapes never come or go, so there is a place for every cell that any step of either lane shows. The
places are the same in both lanes: what differs, differs at the same place. Many cells wrap; what is beyond
the last place is counted in it ("+9").

Read next: `story.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from minivllm.trace.story_events import Cell, Row, StoryStep
from viz.figures.common import WASTE, clip, hatch, plural, text_cells
from viz.language import N_, _
from viz.palette import family
from viz.scene import Scene, bars_path, hatch_path, lines_path, rounded

MOST_ROWS = 8
MOST_CELLS = 64
MOST_TEXT = 10
"""Of a cell, in character cells."""
MOST_LABEL = 56
CELL, LABEL, GAP, BETWEEN = 26.0, 21.0, 3.0, 9.0
CHARACTER = 7.4
CORNER = 8.0
OVER = 4.0
"""By so much the sign of a wrong cell stands out of it, so that the text stays readable."""

WORDS = {
    "free": N_("free"),
    "waste": N_("waste: allocated, and of no use"),
    "new": N_("new in this step"),
    "wrong": N_("wrong"),
}


class Place(NamedTuple):
    """Where something is, from the top left of the board."""

    x: float
    y: float
    width: float


class Layout(NamedTuple):
    """Where rows and cells are, at every step of both lanes."""

    labels: list[float]
    """The y of each row's label."""
    cells: list[list[Place]]
    height: float


def layout(lanes: Iterable[Sequence[StoryStep]], width: float) -> Layout:
    """Room for all boards of these lanes."""
    boards = [step.board for lane in lanes for step in lane]
    most_rows = max(map(len, boards), default=0)
    counts, texts = [0] * min(MOST_ROWS, most_rows), [0] * min(MOST_ROWS, most_rows)
    names = [clip(row.label, MOST_LABEL) + " " * 7 * (not row.cells) for board in boards for row in board]
    for board in boards:
        for index, row in enumerate(board[:MOST_ROWS]):
            shown = cells_shown(row)
            counts[index] = max(counts[index], len(shown))
            texts[index] = max([texts[index], *(text_cells(clip(cell.text, MOST_TEXT)) for cell in shown)])
    # Rows of equal length are a table: their columns stand below each other.
    sizes = [
        max(CELL, CHARACTER * max(t for t, n in zip(texts, counts, strict=True) if n == count) + 8)
        for count in counts
    ]
    # Short names stand beside their cells where these still fit into one line, else above them.
    left = rounded(max(map(text_cells, names), default=0) * CHARACTER + 10)
    rows = list(zip(counts, sizes, strict=True))
    is_beside = left < width / 3 and all(n * (size + GAP) - GAP <= width - left for n, size in rows)
    labels, cells, y = [], [], 0.0
    for count, size in rows:
        labels.append(y + (18 if is_beside else 14))
        top = y if is_beside else y + LABEL
        cells.append(_places(count, size, left if is_beside else 0.0, top, width))
        y = max([top + (CELL if is_beside else 0), *(place.y + CELL for place in cells[-1])])
        y += GAP if is_beside else BETWEEN
    return Layout(labels, cells, y + (22 if most_rows > MOST_ROWS else 4 if most_rows else 0))


def _places(count: int, size: float, left: float, top: float, width: float) -> list[Place]:
    """Lines of equally many cells, as far as that goes."""
    if not count:
        return []
    num_lines = ceil(count / max(1, int((width - left + GAP) // (size + GAP))))
    per_line = ceil(count / num_lines)
    return [
        Place(
            rounded(left + number % per_line * (size + GAP)),
            rounded(top + number // per_line * (CELL + GAP)),
            rounded(size),
        )
        for number in range(count)
    ]


def cells_shown(row: Row) -> tuple[Cell, ...]:
    """The cells that have a place; the last one counts those that have none."""
    if len(row.cells) <= MOST_CELLS:
        return row.cells
    hidden = row.cells[MOST_CELLS - 1 :]
    is_wrong = any(cell.mark == "wrong" for cell in hidden)
    return (*row.cells[: MOST_CELLS - 1], Cell(f"+{len(hidden)}", -1, "wrong" if is_wrong else ""))


def marks_in(lanes: Iterable[Sequence[StoryStep]]) -> list[str]:
    """The marks that occur, in the order of `WORDS`."""
    found = {cell.mark for lane in lanes for step in lane for row in step.board for cell in row.cells}
    return [mark for mark in WORDS if mark in found]


def fill_of(cell: Cell) -> str:
    """A cell's colour: its owner's; waste without an owner has a colour of its own."""
    if cell.owner >= 0:
        return family(cell.owner)
    return WASTE if cell.mark == "waste" else "free"


class Board:
    """The places of one lane, and what stands in them now."""

    def __init__(self, scene: Scene, x: float, y: float, plan: Layout) -> None:
        self.scene, self.x, self.y, self.plan = scene, x, y, plan
        self.cells = [
            [scene.rect(x + p.x, y + p.y, p.width, CELL, label_size=13, radius=2) for p in places]
            for places in plan.cells
        ]
        self.labels = [scene.text(x, y + base, "", size=13, fill="muted") for base in plan.labels]
        self.hatch = scene.path("", stroke="outline", stroke_width=0.9)
        self.new = scene.path("", fill="ink")
        self.wrong = scene.path("", stroke="cursor", stroke_width=3)
        self.behind = scene.path("", fill="page", stroke="cursor", stroke_width=1)
        self.cross = scene.path("", stroke="cursor", stroke_width=2.4)
        self.more = scene.text(x, y + plan.height - 8, "", size=13, fill="muted")

    def show(self, rows: Sequence[Row]) -> None:
        """Draw another board."""
        boxes: dict[str, list[tuple[float, float, float, float]]] = {mark: [] for mark in WORDS}
        for index, (label, shapes) in enumerate(zip(self.labels, self.cells, strict=True)):
            row = rows[index] if index < len(rows) else None
            cells = cells_shown(row) if row else ()
            words = clip(row.label, MOST_LABEL) + ("" if cells else ": empty") if row else ""
            self.scene.set(label, text=words)
            for number, shape in enumerate(shapes):
                if row is None or number >= len(cells):
                    self.scene.set(shape, fill="none", stroke="none", label="", tip="")
                    continue
                self._fill(
                    shape,
                    cells[number],
                    _("{label}, cell {number}").format(label=clip(row.label, 40), number=number),
                )
                place = self.plan.cells[index][number]
                if cells[number].mark in boxes:
                    box = (self.x + place.x, self.y + place.y, place.width, CELL)
                    boxes[cells[number].mark].append(box)
        self.scene.set(self.hatch, d=hatch_path(boxes["waste"]))
        self.scene.set(self.new, d="".join(map(_corner, boxes["new"])))
        signs = [_sign(box) for box in boxes["wrong"]]
        self.scene.set(self.wrong, d=bars_path(boxes["wrong"]))
        self.scene.set(self.behind, d=bars_path(signs))
        self.scene.set(self.cross, d="".join(map(_cross, signs)))
        hidden = len(rows) - MOST_ROWS
        self.scene.set(
            self.more, text=_("and {rows}").format(rows=plural(hidden, "more row")) if hidden > 0 else ""
        )

    def _fill(self, shape: int, cell: Cell, where: str) -> None:
        whose = _(" of {owner}").format(owner=cell.owner) if cell.owner >= 0 else ""
        words = WORDS.get(cell.mark, "")
        self.scene.set(
            shape,
            fill=fill_of(cell),
            stroke="outline",
            stroke_width=1.0,
            dash="3 2" if cell.mark == "free" else "",
            label=clip(cell.text, MOST_TEXT),
            tip=f"{where}{whose}: {clip(cell.text, 60) or _('nothing')}" + (f" ({words})" if words else ""),
        )


def legend(scene: Scene, y: float, marks: Sequence[str]) -> float:
    """Cells as they look, with words; returns the y below them."""
    x = 0.0
    for mark in marks:
        width = 32 + 7.6 * text_cells(_(WORDS[mark])) + 16
        if x and x + width > scene.width:
            x, y = 0.0, y + 24
        box = (x, y, 24.0, 18.0)
        fill = WASTE if mark == "waste" else "free"
        scene.rect(*box, fill=fill, stroke="outline", dash="3 2" if mark == "free" else "", radius=2)
        if mark == "waste":
            hatch(scene, [box])
        elif mark == "new":
            scene.path(_corner(box), fill="ink")
        elif mark == "wrong":
            scene.path(bars_path([box]), stroke="cursor", stroke_width=3)
            scene.path(bars_path([_sign(box)]), fill="page", stroke="cursor", stroke_width=1)
            scene.path(_cross(_sign(box)), stroke="cursor", stroke_width=2.4)
        scene.text(x + 32, y + 14, _(WORDS[mark]), size=13)
        x += width
    return y + 30 if marks else y


def _corner(box: tuple[float, float, float, float]) -> str:
    x, y, _, _ = box
    return lines_path([(x, y), (x + CORNER, y), (x, y + CORNER)]) + "Z"


def _cross(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box[0] + 2, box[1] + 2, box[0] + box[2] - 2, box[1] + box[3] - 2
    return lines_path([(left, top), (right, bottom)]) + lines_path([(right, top), (left, bottom)])


def _sign(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The small square of a wrong cell, over its upper right corner."""
    return box[0] + box[2] + OVER - 11, box[1] - OVER, 11.0, 11.0
