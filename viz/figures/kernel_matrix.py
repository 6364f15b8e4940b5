"""The score matrix, N queries × N keys, as the pieces that a kernel cuts it into.

              keys →  0     32
    queries  0 – 7    [ 1 ]  ////      numbers: the order in which tiles are computed
             8 – 15   [ 2 ]  ////      hatched: skipped, all of these keys come after all of these queries
             …
            32 – 39   [ 5 ] [▒6▒]      framed: now

FlashAttention never writes the scores of a tile anywhere; a naive kernel writes all of them, skipping none.
Read next: `kernel_scores.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelHeader
from viz.figures.common import plural, swatches
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_softmax import is_told_late, rescaled
from viz.figures.kernel_tiles import Box, Piece
from viz.language import N_, _, counted, sentences
from viz.scene import Scene, hatch_path, lines_path, rounded

LEFT, TOP = 66.0, 62.0
MOST_WIDTH, MOST_HEIGHT = 480.0, 360.0
LEAST_LABEL = (20.0, 12.0)
LABEL_ROOM = 9.0
MOST_CELLS = 8000
"""Of the grid that pieces lie on; of a larger one, no cell is told to be skipped."""
MOST_STAIRS = 1000
WORDS = {"computes": N_("tile"), "writes": N_("block"), "reads": N_("block")}
TOLD = {
    "computes": N_(
        "Tile {number} of {count}: thread block {block} computes the scores of queries "
        "{first_query}–{end_query} and keys {first_key}–{end_key}, head {head}."
    ),
    "writes": N_(
        "Piece {number} of {count}: thread block {block} writes the scores of queries "
        "{first_query}–{end_query} and keys {first_key}–{end_key}, head {head}."
    ),
    "reads": N_(
        "Piece {number} of {count}: thread block {block} reads the scores of queries "
        "{first_query}–{end_query} and keys {first_key}–{end_key}, head {head}."
    ),
}


def kernel_matrix(header: KernelHeader, found: Sequence[Piece], told: Sequence[str]) -> Scene:
    """All pieces of the head that is worked on; one step for each of `found`."""
    grid = _Grid.of(found)
    scene = Scene(_("Score matrix, queries down and keys across"), COLUMN, grid.bottom + 72)
    title = scene.text(4, 16, "", size=15, weight="bold")
    boxes = sorted({piece.box for piece in found})
    skipped = skipped_boxes(boxes)
    _lay_skipped(scene, grid, skipped)
    shapes = _lay_boxes(scene, grid, boxes)
    if skipped:
        _diagonal(scene, grid, boxes)
    _axes(scene, boxes, grid)
    frame = scene.rect(0, 0, 0, 0, stroke="cursor", stroke_width=3)
    _legend(scene, grid, bool(skipped))
    noun = _(WORDS[found[0].verb])
    counts = Counter(piece.panel for piece in found)
    order: dict[Box, int] = {}
    panel = None
    for piece, sentence in zip(found, told, strict=True):
        scene.begin_step(sentence)
        if piece.panel != panel:
            panel, order = piece.panel, {}
            for shape in shapes.values():
                scene.set(shape, fill="free", label="")
        else:
            for box in order:
                scene.set(shapes[box], fill="cached")
        order[piece.box] = len(order) + 1
        x, y, width, height = grid.place(piece.box)
        fits = width >= LEAST_LABEL[0] and height >= LEAST_LABEL[1]
        scene.set(shapes[piece.box], fill="decode", label=f"{order[piece.box]}" if fits else "")
        scene.set(frame, x=x, y=y, width=width, height=height)
        head = _("head {head} of sequence {sequence}") if header.grid[2] > 1 else _("head {head}")
        head = head.format(head=piece.panel[1], sequence=piece.panel[0])
        scene.set(
            title,
            text=_("Score matrix of {head}: {noun} {order} of {count}").format(
                head=head, noun=noun, order=len(order), count=counts[piece.panel]
            ),
        )
    return scene


class _Grid(NamedTuple):
    """Where a box of the matrix is drawn."""

    num_queries: int
    num_keys: int
    x_unit: float
    y_unit: float

    @classmethod
    def of(cls, found: Sequence[Piece]) -> _Grid:
        num_queries = max(piece.box.end_query for piece in found)
        num_keys = max(piece.box.end_key for piece in found)
        unit = min(MOST_WIDTH / num_keys, MOST_HEIGHT / num_queries)
        # One query alone is still a row that can be seen.
        return cls(num_queries, num_keys, unit, max(unit, 28 / num_queries))

    @property
    def bottom(self) -> float:
        return TOP + self.num_queries * self.y_unit

    def place(self, box: Box) -> tuple[float, float, float, float]:
        """`(x, y, width, height)`."""
        x, y = LEFT + box.first_key * self.x_unit, TOP + box.first_query * self.y_unit
        width = (box.end_key - box.first_key) * self.x_unit
        height = (box.end_query - box.first_query) * self.y_unit
        return rounded(x), rounded(y), rounded(width), rounded(height)


def _lay_skipped(scene: Scene, grid: _Grid, skipped: Sequence[Box]) -> None:
    for box in skipped:
        scene.rect(*grid.place(box), fill="waiting", tip=_("{place}: skipped").format(place=_ranges(box)))
    if skipped:
        hatching = hatch_path([grid.place(box) for box in skipped])
        scene.path(hatching, stroke="outline", stroke_width=0.9)


def _lay_boxes(scene: Scene, grid: _Grid, boxes: Sequence[Box]) -> dict[Box, int]:
    """A shape for each box that a piece covers."""
    shapes = {}
    for box in boxes:
        x, y, width, height = grid.place(box)
        shapes[box] = scene.rect(
            x,
            y,
            width,
            height,
            fill="free",
            stroke="outline",
            stroke_width=0.8,
            label_size=12.0 if height >= 16 else 10.0,
            tip=_ranges(box),
        )
    return shapes


def _legend(scene: Scene, grid: _Grid, has_skipped: bool) -> None:
    entries = [("cached", _("done, in this order"), 1.0), ("decode", _("now"), 1.0)]
    y = swatches(scene, grid.bottom + 22, entries, LEFT)
    words = _("No part of the matrix is skipped.")
    if has_skipped:
        words = _("Hatched: skipped, these keys come after all of these queries (right of the line).")
    scene.text(LEFT, y + 20, words, size=12, fill="muted")


def skipped_boxes(boxes: Sequence[Box]) -> list[Box]:
    """Of the grid that the pieces lie on, the cells that none of them covers."""
    queries = sorted({(box.first_query, box.end_query) for box in boxes})
    keys = sorted({(box.first_key, box.end_key) for box in boxes})
    if len(queries) * len(keys) > MOST_CELLS:
        return []
    known = set(boxes)
    grid = [Box(*rows, *columns) for rows in queries for columns in keys]
    return [
        box
        for box in grid
        if box not in known
        and not any(
            other.first_query <= box.first_query
            and box.end_query <= other.end_query
            and other.first_key <= box.first_key
            and box.end_key <= other.end_key
            for other in boxes
        )
    ]


def _ranges(box: Box) -> str:
    return _("queries {first_query}–{end_query}, keys {first_key}–{end_key}").format(
        first_query=box.first_query,
        end_query=box.end_query - 1,
        first_key=box.first_key,
        end_key=box.end_key - 1,
    )


def _diagonal(scene: Scene, grid: _Grid, boxes: Sequence[Box]) -> None:
    """Query i sees the keys up to i + offset: the stairs between what it sees and what it does not.

    They make room for the numbers of the tiles that they cross.
    """
    num_queries, num_keys, x_unit, y_unit = grid
    points = [(LEFT + max(0, num_keys - num_queries + 1) * x_unit, TOP)]
    stride = max(1, num_queries // MOST_STAIRS)
    for query in range(0, num_queries, stride):
        x = LEFT + min(num_keys, max(0, query + num_keys - num_queries + 1)) * x_unit
        points += [(x, TOP + query * y_unit), (x, TOP + min(num_queries, query + stride) * y_unit)]
    numbers = [(x + width / 2, y + height / 2) for x, y, width, height in map(grid.place, boxes)]
    lines: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if any(abs(x - middle) < LABEL_ROOM and abs(y - line) < LABEL_ROOM for middle, line in numbers):
            lines.append([])
        else:
            lines[-1].append((rounded(x), rounded(y)))
    path = "".join(lines_path(line) for line in lines if len(line) > 1)
    scene.path(path, stroke="ink", dash="3 2", stroke_width=1.2)


def _axes(scene: Scene, boxes: Sequence[Box], grid: _Grid) -> None:
    """Where tiles begin, as far as there is room for numbers."""
    scene.text(LEFT, 38, _("keys →"), size=12, fill="muted")
    scene.text(4, TOP - 6, _("queries ↓"), size=12, fill="muted")
    last = -100.0
    for key in sorted({box.first_key for box in boxes}):
        x = LEFT + key * grid.x_unit
        if x - last >= 34:
            scene.text(rounded(x + 2), TOP - 6, f"{key}", size=12, fill="muted")
            last = x
    last = -100.0
    for query in sorted({box.first_query for box in boxes}):
        y = TOP + query * grid.y_unit
        if y - last >= 15:
            scene.text(LEFT - 8, rounded(y + 12), f"{query}", size=12, fill="muted", anchor="end")
            last = y


def piece_captions(found: Sequence[Piece]) -> list[str]:
    """For each piece: what a block works on, and what became of the running softmax."""
    captions = []
    rescales, is_late = [sum(marks) for marks in rescaled(found)], is_told_late(found)
    for number, (piece, count) in enumerate(zip(found, rescales, strict=True), 1):
        box = piece.box
        told = _(TOLD[piece.verb]).format(
            number=number,
            count=len(found),
            block=piece.block,
            first_query=box.first_query,
            end_query=box.end_query - 1,
            first_key=box.first_key,
            end_key=box.end_key - 1,
            head=piece.panel[1],
        )
        parts = [told]
        if piece.verb == "computes":
            parts.append(
                counted(
                    "{count} score, not written to memory.",
                    "{count} scores, none of them written to memory.",
                    box.num_scores,
                )
            )
        if piece.updates and is_late:
            parts.append(counted("{count} row done.", "{count} rows done.", len(piece.updates)))
        elif piece.updates:
            parts.append(
                _("{count} of {rows} found a larger maximum and rescaled.").format(
                    count=count, rows=plural(len(piece.updates), "row")
                )
            )
        captions.append(sentences(parts))
    return captions
