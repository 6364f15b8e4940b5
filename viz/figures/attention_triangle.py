"""The attention triangle of one request: which cells a step computes, with a KV cache and without one.

    queries │ ▒                 ▒ computed in an earlier step, and never again
            │ ▒ ▒
            │ ▒ ▒ ▒             ■ computed in this step, with a key and a value that come from the cache
            │ ■ ■ ■ ◆           ◆ computed in this step, with a key and a value of this step
            └───────── keys

Beside it the same step without a cache: all rows up to the new one are computed again, for its sake alone.
Both follow from the plans of one run: a cache changes what a step costs, never what it gives.

Read next: `cache_work.py`, the same as numbers over a longer run.
"""

from __future__ import annotations

from minivllm.trace.timeline import Timeline
from viz.figures.common import NARROW, WASTE, names_of, plural, swatches
from viz.language import _
from viz.scene import Scene, bars_path, hatch_path, lines_path, rounded

LEFT, GAP, TOP = 26.0, 44.0, 104.0
SIDE = (NARROW - 2 * LEFT - GAP) / 2
MOST_GRID = 40
"""Tokens up to which single cells are drawn."""


def attention_triangle(timeline: Timeline, request: str) -> Scene:
    """The triangle of the request's first sequence, step by step, in two panels."""
    steps, tag = spans_of(timeline, request), names_of(timeline)[request].tag
    most = max((end for start, end in steps.values()), default=1)
    scene = Scene(
        _("Attention of {tag}, with a KV cache and without").format(tag=tag), NARROW, TOP + SIDE + 52
    )
    entries = [
        ("cached", _("computed before, kept"), 1.0),
        ("filled", _("key and value from the cache"), 1.0),
        ("decode", _("new key and value"), 1.0),
        (WASTE, _("computed again"), 1.0),
    ]
    swatches(scene, 18, entries, 4, hatched=True)
    panels = [_Panel(scene, LEFT, most), _Panel(scene, LEFT + SIDE + GAP, most)]
    names = (_("with the KV cache"), _("without it"))
    totals = [0, 0]
    now = []
    for panel, name in zip(panels, names, strict=True):
        scene.text(panel.left, TOP - 36, name, size=15, weight="bold")
        now.append(scene.text(panel.left, TOP - 14, "", size=14))
        scene.text(
            panel.left,
            TOP + SIDE + 20,
            _("a row for each query, a column for each key"),
            size=13,
            fill="muted",
        )
    sums = scene.text(LEFT, TOP + SIDE + 44, "", size=14)
    for step in range(timeline.num_steps):
        start, end = steps.get(step, (0, 0))
        scene.begin_step(_told(tag, step, start, end))
        totals = [totals[0] + end - start, totals[1] + end]
        if end:
            panels[0].show(cached=(0, start), kept=(start, end, start), new=(start, end))
            panels[1].show(again=(0, start), new=(start, end), is_whole=True)
        for text, count in zip(now, (end - start, end), strict=True):
            scene.set(text, text=_("this step: {rows}").format(rows=plural(count, "row")) if end else "")
        scene.set(
            sums,
            text=_("rows computed so far: {cached:,} with the cache, {recomputed:,} without it").format(
                cached=totals[0], recomputed=totals[1]
            ),
        )
    return scene


def spans_of(timeline: Timeline, request: str) -> dict[int, tuple[int, int]]:
    """Step → the positions that it computes, from … to before, of the request's first sequence."""
    found: dict[int, tuple[int, int]] = {}
    for record in timeline.records:
        for item in record.batch:
            if item.request == request:
                found.setdefault(record.step, (item.start, item.start + item.num_tokens))
    return found


def _told(tag: str, step: int, start: int, end: int) -> str:
    if not end:
        return _("Step {step}: {tag} computes nothing.").format(step=step, tag=tag)
    told = _(
        "Step {step}: {tag} computes {rows} and has nothing to read yet; without a cache it would compute "
        "{all}."
    )
    if start:
        told = _(
            "Step {step}: {tag} computes {rows} and reads {keys} and values from the cache; without a cache "
            "it would compute {all}."
        )
    return told.format(
        step=step,
        tag=tag,
        rows=plural(end - start, "row"),
        keys=plural(start, "key"),
        all=plural(end, "row"),
    )


class _Panel:
    """One triangle: a row for each query, a column for each key."""

    def __init__(self, scene: Scene, left: float, most: int) -> None:
        self.scene, self.left, self.cell = scene, left, SIDE / most
        stairs = [(left, TOP)]
        for row in range(most):
            x, y, width, height = self._row(row, 0, row + 1)
            stairs += [(x + width, y), (x + width, rounded(y + height))]
        scene.path(lines_path([*stairs, (left, TOP + SIDE), (left, TOP)]), stroke="outline", stroke_width=0.8)
        self.cached = scene.path("", fill="cached")
        self.again = scene.path("", fill=WASTE)
        self.lines = scene.path("", stroke="outline", stroke_width=0.9)
        self.kept = scene.path("", fill="filled")
        self.new = scene.path("", fill="decode")
        if most <= MOST_GRID:
            scene.path(self._grid(most), stroke="page", stroke_width=1.4)

    def show(
        self,
        *,
        cached: tuple[int, int] = (0, 0),
        again: tuple[int, int] = (0, 0),
        kept: tuple[int, int, int] = (0, 0, 0),
        new: tuple[int, int] = (0, 0),
        is_whole: bool = False,
    ) -> None:
        """Rows from … to before. `kept`: and the columns before which keys are the cache's.

        `is_whole`: nothing comes from the cache, so new rows are new from the first column on.
        """
        scene = self.scene
        scene.set(self.cached, d=bars_path([self._row(row, 0, row + 1) for row in range(*cached)]))
        boxes = [self._row(row, 0, row + 1) for row in range(*again)]
        scene.set(self.again, d=bars_path(boxes))
        scene.set(self.lines, d=hatch_path(boxes))
        first, last, columns = kept
        scene.set(self.kept, d=bars_path([self._row(row, 0, columns) for row in range(first, last)]))
        begin = 0 if is_whole else new[0]
        scene.set(self.new, d=bars_path([self._row(row, begin, row + 1) for row in range(*new)]))

    def _row(self, row: int, first: int, last: int) -> tuple[float, float, float, float]:
        x, y = self.left + first * self.cell, TOP + row * self.cell
        return rounded(x), rounded(y), rounded((last - first) * self.cell), rounded(self.cell)

    def _grid(self, most: int) -> str:
        parts = []
        for number in range(most + 1):
            across, down = rounded(self.left + number * self.cell), rounded(TOP + number * self.cell)
            parts.append(f"M{across:g},{TOP:g}L{across:g},{TOP + SIDE:g}")
            parts.append(f"M{self.left:g},{down:g}L{self.left + SIDE:g},{down:g}")
        return "".join(parts)
