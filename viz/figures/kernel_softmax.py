"""The running softmax of the rows of a tile: their maximum, their sum, and by what the old was rescaled.

    query    maximum m    sum l     old sum and output
       32         1.52    11.90     × 1
       33         2.07     9.13     [× 0.371]             a larger maximum was found

Before the first key there is nothing to rescale. Source: Milakov & Gimelshein, "Online normalizer calculation
for softmax" (2018). Read next: `kernel_traffic.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.kernel_events import SoftmaxUpdated
from viz.figures.common import plural
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_tiles import Piece
from viz.language import N_, _, counted
from viz.scene import Scene

MOST_ROWS = 16
ROW, TOP = 21.0, 46.0
NOTHING = -1e29
"""A maximum below it: no key of this query has been visible yet."""
COUNTED = N_("A rescale is counted where there was something to rescale.")
LATE = N_("This kernel notes its rows only at their end.")
COLUMNS = {N_("query"): 60.0, N_("maximum m"): 170.0, N_("sum l"): 270.0}
FACTOR, FACTOR_WIDTH = 330.0, 84.0


def rescaled(found: Sequence[Piece]) -> list[list[bool]]:
    """For each piece, for each of its updates: was there an old sum, and was it rescaled?"""
    seen: set[tuple[tuple[int, int], int]] = set()
    marks = []
    for piece in found:
        own = []
        for update in piece.updates:
            key = piece.panel, update.query
            own.append(key in seen and update.rescale != 1)
            if update.maximum > NOTHING:
                seen.add(key)
        marks.append(own)
    return marks


def is_told_late(found: Sequence[Piece]) -> bool:
    """Does the kernel note its rows only at their end? Then the rescales on the way are not known."""
    first: dict[tuple[tuple[int, int], int], int] = {}
    for number, piece in enumerate(found):
        for query in range(piece.box.first_query, piece.box.end_query):
            first.setdefault((piece.panel, query), number)
        if any(first.get((piece.panel, update.query), number) != number for update in piece.updates):
            return True
        if piece.updates:
            return False
    return False


def kernel_softmax(found: Sequence[Piece], told: Sequence[str]) -> Scene:
    """One row for each query of the current tile."""
    num_rows = max(1, min(MOST_ROWS, max(len(_latest(piece)) for piece in found)))
    scene = Scene(_("Running softmax of the rows of this tile"), COLUMN, TOP + num_rows * ROW + 50)
    scene.text(4, 16, _("Running softmax of these rows"), size=15, weight="bold")
    scene.notes += [] if is_told_late(found) else [("words", _(COUNTED))]
    for heading, x in COLUMNS.items():
        scene.text(x, 38, _(heading), size=13, fill="muted", anchor="end")
    scene.text(FACTOR, 38, _("old sum and output"), size=13, fill="muted")
    rows = []
    for index in range(num_rows):
        y = TOP + index * ROW
        own = [scene.text(x, y + 15, "", size=14, anchor="end") for x in COLUMNS.values()]
        factor = scene.rect(FACTOR, y + 1, FACTOR_WIDTH, ROW - 3, radius=3, label_size=13)
        rows.append((own, factor))
    more = scene.text(4, TOP + num_rows * ROW + 16, "", size=13, fill="muted")
    count = scene.text(4, TOP + num_rows * ROW + 38, "", size=14, weight="bold")
    num_rescales = num_updates = 0
    is_late = is_told_late(found)
    started: set[tuple[tuple[int, int], int]] = set()
    for piece, sentence, marks in zip(found, told, rescaled(found), strict=True):
        scene.begin_step(sentence)
        num_rescales += sum(marks)
        num_updates += len(piece.updates)
        latest = _latest(piece)
        mark_of = {update.query: mark for update, mark in zip(piece.updates, marks, strict=True)}
        for index, (own, factor) in enumerate(rows):
            if index >= len(latest):
                for text in own:
                    scene.set(text, text="")
                scene.set(factor, fill="none", label="", stroke="none")
                continue
            update = latest[index]
            is_first = (piece.panel, update.query) not in started
            numbers = [f"{update.query}", maximum_words(update.maximum), f"{update.total:.3f}"]
            for text, words in zip(own, numbers, strict=True):
                scene.set(text, text=words)
            is_marked = mark_of[update.query]
            known = _("nothing yet") if is_first else f"× {update.rescale:.3g}"
            label = _("not told") if is_late else known
            scene.set(
                factor,
                label=label,
                fill="prefill" if is_marked else "none",
                stroke="ink" if is_marked else "none",
            )
        started |= {(piece.panel, update.query) for update in latest if update.maximum > NOTHING}
        hidden = len(latest) - num_rows
        words = ""
        if hidden > 0:
            words = counted("{count} more row is not drawn.", "{count} more rows are not drawn.", hidden)
        if not latest:
            words = _("The kernel noted nothing about its rows here.")
        scene.set(more, text=words)
        words = _("{rescales} so far, in {updates}").format(
            rescales=plural(num_rescales, "rescale"), updates=plural(num_updates, "update")
        )
        scene.set(count, text=_(LATE) if is_late else words)
    return scene


def maximum_words(maximum: float) -> str:
    """With a real minus sign; a dash if no key was visible."""
    return "–" if maximum <= NOTHING else f"{maximum:.3f}".replace("-", "−")


def _latest(piece: Piece) -> list[SoftmaxUpdated]:
    """The last update of each row, in the order of the queries."""
    return [update for _, update in sorted({update.query: update for update in piece.updates}.items())]
