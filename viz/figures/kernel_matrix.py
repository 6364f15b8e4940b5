"""The score matrix, N queries × N keys, as the pieces that a kernel cuts it into.

              keys →  0     32
    queries  0 – 7    [ 1 ]  ////      numbers: the order in which tiles are computed
             8 – 15   [ 2 ]  ////      hatched: skipped, all of these keys come after all of these queries
             …
            32 – 39   [ 5 ] [▒6▒]      framed: now

FlashAttention never writes the scores of a tile anywhere; a naive kernel writes all of them, skipping none.
Read next: `kernel_softmax.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from minivllm.trace.kernel_events import KernelHeader
from viz.figures.common import plural, swatches
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_softmax import is_told_late, rescaled
from viz.figures.kernel_tiles import Box, Piece
from viz.scene import Scene, hatch_path, lines_path, rounded

LEFT, TOP = 66.0, 62.0
MOST_WIDTH, MOST_HEIGHT = 480.0, 360.0
LEAST_LABEL = (20.0, 12.0)
WORDS = {"computes": "tile", "writes": "block", "reads": "block"}


def kernel_matrix(header: KernelHeader, found: Sequence[Piece], told: Sequence[str]) -> Scene:
    """All pieces of the head that is worked on; one step for each of `found`."""
    num_queries = max(piece.box.end_query for piece in found)
    num_keys = max(piece.box.end_key for piece in found)
    x_unit = y_unit = min(MOST_WIDTH / num_keys, MOST_HEIGHT / num_queries)
    y_unit = max(y_unit, 28 / num_queries)  # one query alone is still a row that can be seen
    bottom = TOP + num_queries * y_unit
    scene = Scene("Score matrix, queries down and keys across", COLUMN, bottom + 72)
    title = scene.text(4, 16, "", size=15, weight="bold")

    def place(box: Box) -> tuple[float, float, float, float]:
        x, y = LEFT + box.first_key * x_unit, TOP + box.first_query * y_unit
        width, height = (box.end_key - box.first_key) * x_unit, (box.end_query - box.first_query) * y_unit
        return rounded(x), rounded(y), rounded(width), rounded(height)

    boxes = sorted({piece.box for piece in found})
    skipped = skipped_boxes(boxes)
    for box in skipped:
        scene.rect(*place(box), fill="waiting", tip=f"{_ranges(box)}: skipped")
    if skipped:
        scene.path(hatch_path([place(box) for box in skipped]), stroke="outline", stroke_width=0.9)
    shapes = {}
    for box in boxes:
        x, y, width, height = place(box)
        size = 12.0 if height >= 16 else 10.0
        shapes[box] = scene.rect(
            x,
            y,
            width,
            height,
            fill="free",
            stroke="outline",
            stroke_width=0.8,
            label_size=size,
            tip=_ranges(box),
        )
    if skipped:
        _diagonal(scene, num_queries, num_keys, x_unit, y_unit)
    _axes(scene, boxes, x_unit, y_unit)
    frame = scene.rect(0, 0, 0, 0, stroke="cursor", stroke_width=3)
    noun = WORDS[found[0].verb]
    entries = [("filled", "done, in this order", 1.0), ("prefill", "now", 1.0)]
    y = swatches(scene, bottom + 22, entries, LEFT)
    words = "No part of the matrix is skipped."
    if skipped:
        words = "Hatched: skipped, these keys come after all of these queries (right of the line)."
    scene.text(LEFT, y + 20, words, size=12, fill="muted")
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
                scene.set(shapes[box], fill="filled")
        order[piece.box] = len(order) + 1
        x, y, width, height = place(piece.box)
        fits = width >= LEAST_LABEL[0] and height >= LEAST_LABEL[1]
        scene.set(shapes[piece.box], fill="prefill", label=f"{order[piece.box]}" if fits else "")
        scene.set(frame, x=x, y=y, width=width, height=height)
        whose = f"head {piece.panel[1]}" + (f" of sequence {piece.panel[0]}" if header.grid[2] > 1 else "")
        scene.set(title, text=f"Score matrix of {whose}: {noun} {len(order)} of {counts[piece.panel]}")
    return scene


def skipped_boxes(boxes: Sequence[Box]) -> list[Box]:
    """Of the grid that the pieces lie on, the cells that none of them covers."""
    queries = sorted({(box.first_query, box.end_query) for box in boxes})
    keys = sorted({(box.first_key, box.end_key) for box in boxes})
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
    return f"queries {box.first_query}–{box.end_query - 1}, keys {box.first_key}–{box.end_key - 1}"


def _diagonal(scene: Scene, num_queries: int, num_keys: int, x_unit: float, y_unit: float) -> None:
    """Query i sees the keys up to i + offset: the stairs between what it sees and what it does not."""
    points = [(LEFT + max(0, num_keys - num_queries + 1) * x_unit, TOP)]
    for query in range(num_queries):
        x = LEFT + min(num_keys, max(0, query + num_keys - num_queries + 1)) * x_unit
        points += [(x, TOP + query * y_unit), (x, TOP + (query + 1) * y_unit)]
    path = lines_path([(rounded(x), rounded(y)) for x, y in points])
    scene.path(path, stroke="ink", dash="3 2", stroke_width=1.2)


def _axes(scene: Scene, boxes: Sequence[Box], x_unit: float, y_unit: float) -> None:
    """Where tiles begin, as far as there is room for numbers."""
    scene.text(LEFT, 38, "keys →", size=12, fill="muted")
    scene.text(4, TOP - 6, "queries ↓", size=12, fill="muted")
    last = -100.0
    for key in sorted({box.first_key for box in boxes}):
        x = LEFT + key * x_unit
        if x - last >= 34:
            scene.text(rounded(x + 2), TOP - 6, f"{key}", size=12, fill="muted")
            last = x
    last = -100.0
    for query in sorted({box.first_query for box in boxes}):
        y = TOP + query * y_unit
        if y - last >= 15:
            scene.text(LEFT - 8, rounded(y + 12), f"{query}", size=12, fill="muted", anchor="end")
            last = y


def piece_captions(found: Sequence[Piece]) -> list[str]:
    """For each piece: who works on what, and what became of the running softmax."""
    sentences = []
    rescales, is_late = [sum(marks) for marks in rescaled(found)], is_told_late(found)
    for number, (piece, count) in enumerate(zip(found, rescales, strict=True), 1):
        box = piece.box
        words = (
            f"{'Tile' if piece.verb == 'computes' else 'Piece'} {number} of {len(found)}: "
            f"block {piece.block} {piece.verb} the scores of queries {box.first_query}–{box.end_query - 1} "
            f"and keys {box.first_key}–{box.end_key - 1}, head {piece.panel[1]}."
        )
        if piece.verb == "computes":
            words += f" {plural(box.num_scores, 'score')}, none of them written to memory."
        if piece.updates and is_late:
            words += f" {plural(len(piece.updates), 'row')} done."
        elif piece.updates:
            words += f" {count} of {plural(len(piece.updates), 'row')} found a larger maximum and rescaled."
        sentences.append(words)
    return sentences
