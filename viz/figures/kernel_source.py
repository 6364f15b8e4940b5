"""The kernel's source, and in it the expression that this request comes from.

     92 │             k = tile[lane, c]
     93 │             for r in range(rows):
     94 │                 scores[r] += ┃queries[warp * rows + r, c]┃ * k

A window of some lines that moves only when the lit line leaves it, so that inner loops stand still. A line
that is too long goes on below itself. Columns are places only in a font whose characters are equally wide:
`viz/kernel_stage.py` sees to that.

Read next: `kernel_totals.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelHeader, WarpAccess
from viz.figures.common import PHONE, WIDE, clip
from viz.figures.kernel_captions import kernel_captions
from viz.language import N_, _, ngettext
from viz.scene import Scene, bars_path

SIZE, ROW, TOP, MARGIN = 13.0, 19.0, 30.0, 46.0
CHARACTER = 0.6 * SIZE
"""Width of a character: three fifths of its height, in nearly all such fonts."""
ROWS = {WIDE: 13, PHONE: 16}
CONTINUED = "    "
TITLE = N_("Source of the kernel")
"""`viz/kernel_stage.py` gives pictures whose title begins so a font for code."""


class Piece(NamedTuple):
    """A line of the source, or the part of it that fits into a row."""

    line: int
    begin: int
    end: int
    text: str
    """As it is shown: continued rows are indented."""
    shift: int
    """Columns by which the text is moved to the right."""


def kernel_source(
    header: KernelHeader, accesses: Sequence[WarpAccess], width: float = WIDE, screen: str = ""
) -> Scene:
    """The lines around the one that is lit."""
    pieces = wrapped(header, accesses, int((width - MARGIN - 4) / CHARACTER))
    first_rows: dict[int, int] = {}
    for row, piece in enumerate(pieces):
        first_rows.setdefault(piece.line, row)
    num_rows = max(1, min(ROWS.get(width, 13), len(pieces)))
    scene = Scene(_(TITLE), width, TOP + num_rows * ROW + 6, screen=screen)
    place = scene.text(4, 16, "", size=SIZE, weight="bold")
    most = int((width - 8) / CHARACTER)
    stripe = scene.rect(0, 0, width, ROW, fill="none")
    lit = scene.path("", fill="none", stroke="cursor", stroke_width=2.0)
    rows = []
    for row in range(num_rows):
        y = TOP + row * ROW + 14
        number = scene.text(MARGIN - 14, y, "", size=SIZE, fill="muted", anchor="end")
        rows.append((number, scene.text(MARGIN, y, "", size=SIZE)))
    top: int | None = None
    for access, sentence in zip(accesses, kernel_captions(header, accesses), strict=True):
        scene.begin_step(sentence)
        target = first_rows.get(access.line)
        if target is None:
            scene.set(stripe, fill="none")
            scene.set(lit, d="")
        moved = window(top, target, num_rows, len(pieces))
        if moved != top:
            top = moved
            for row, (number, text) in enumerate(rows):
                piece = pieces[top + row] if top + row < len(pieces) else Piece(0, 0, 0, "", 0)
                is_first = bool(piece.line) and not piece.begin
                scene.set(number, text=f"{piece.line}" if is_first else "")
                scene.set(text, text=piece.text)
        scene.set(place, text=_place(header, access, most))
        if target is not None:
            scene.set(stripe, y=TOP + (target - moved) * ROW, fill="panel")
            scene.set(lit, d=bars_path(lit_boxes(pieces, moved, num_rows, access)))
    return scene


def wrapped(header: KernelHeader, accesses: Sequence[WarpAccess], most: int) -> list[Piece]:
    """From the kernel's first line (or that of a function before it) to the last that accesses anything."""
    lines = [access.line for access in accesses if 0 < access.line <= len(header.source)]
    begin = min([max(1, header.first_line), *lines])
    while 1 < begin < header.first_line and not header.source[begin - 1].lstrip().startswith("def "):
        begin -= 1
    end = min(len(header.source), max([begin, *lines]) + 2)
    while end > begin and not header.source[end - 1].strip():
        end -= 1
    shown = [(line, header.source[line - 1].expandtabs(1)) for line in range(begin, end + 1)]
    indents = [len(text) - len(text.lstrip()) for _, text in shown if text.strip()]
    common = min(indents, default=0)
    pieces = []
    for line, text in shown:
        text, start = text.rstrip(), common
        while True:
            indent = CONTINUED if start > common else ""
            stop = min(len(text), start + most - len(indent))
            if stop < len(text) and (space := text.rfind(" ", start + most // 2, stop)) > 0:
                stop = space + 1
            first = 0 if start == common else start
            pieces.append(Piece(line, first, stop, indent + text[start:stop], len(indent) - start))
            if stop >= len(text):
                break
            start = stop
    return pieces


def window(top: int | None, target: int | None, num_rows: int, num_pieces: int) -> int:
    """The first row that is shown; as before, if the lit line and those beside it can still be seen."""
    last = max(0, num_pieces - num_rows)
    if target is None:
        return top or 0
    if top is not None and (top + 1 <= target or top == 0) and target + 2 < top + num_rows and target >= top:
        return top
    if top == last and target >= top:
        return top
    return max(0, min(last, target - num_rows // 2))


def lit_boxes(
    pieces: Sequence[Piece], top: int, num_rows: int, access: WarpAccess
) -> list[tuple[float, float, float, float]]:
    """Around the expression: one box for each row that it is in."""
    boxes = []
    for row, piece in enumerate(pieces[top : top + num_rows]):
        if piece.line == access.line:
            left, right = max(access.column, piece.begin), min(access.end_column, piece.end)
            if left < right:
                x = MARGIN + (left + piece.shift) * CHARACTER
                boxes.append((x - 1, TOP + row * ROW + 1, (right - left) * CHARACTER + 2, ROW - 2))
    return boxes


def _place(header: KernelHeader, access: WarpAccess, most: int) -> str:
    """File, line and iterations, in at most `most` characters: first to go is what can be guessed."""
    if not access.line:
        where = _(": in a function of another file")
        return clip(header.file, most - len(where)) + where
    where = _(", line {line}").format(line=access.line)
    if not access.loops:
        return clip(header.file, most - len(where)) + where
    count = len(access.loops)
    loops = " · ".join(map(str, access.loops))
    where += ngettext(", iteration {loops}", ", iterations {loops}", count).format(loops=loops)
    around = ngettext(" of the loop around it", " of the loops around it", count)
    if len(header.file + where + around) <= most:
        return header.file + where + around
    return clip(clip(header.file, max(8, most - len(where))) + where, most)
