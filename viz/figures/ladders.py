"""Two ladders: the same tokens by a block table and by a page table, side by side.

    PagedAttention: block table             vAttention: page table
    tokens 0–15   → 7  ───╲   ┌─┬─┬─┐       keys 0–15    → 9  ───╲   ┌─┬─┬─┐
                           ╲  │A│B│ │       keys 16–31   → 4  ──╲ ╲  │A│ │B│
    tokens 16–31  → 0  ─────  └─┴─┴─┘       values 0–15  → 8  …      └─┴─┴─┘

On the left the rungs lie apart: a kernel must ask for each of them. On the right they touch: to a kernel they
are one array, and what is behind each part of it, the machine looks up by itself. The second trace is one of
pages: its blocks are pages of memory, its tables page tables, and `ranges` in its header's config names the
ranges of addresses that a request has, whose pages follow one another in the table.

Dashed: addresses with no memory behind them. Read next: `selected_tables.py`.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import Timeline, walk
from viz.figures.captions import captions
from viz.figures.common import NARROW, names_of
from viz.figures.selected_tables import longest_table
from viz.language import N_, _
from viz.scene import Scene

COLUMNS, CELL = 8, 18.0
RUNG, BETWEEN, TOP = 24.0, 8.0, 48.0
WIDTH, BOX, ENTRY = 310.0, 104.0, 110.0
GRID = WIDTH - COLUMNS * CELL
RUNGS = {
    "tokens": N_("tokens {first}–{last}"),
    "keys": N_("keys {first}–{last}"),
    "values": N_("values {first}–{last}"),
}
"""Ranges of addresses that have a word of their own; others are called as the trace calls them."""
MOST_RUNGS, MOST_PLACES = 24, 256


def ladders(paged: Timeline, in_pages: Timeline, selected: str) -> Scene:
    """The table of one request in both runs; steps are those of the first."""
    height = max(_height(timeline, selected) for timeline in (paged, in_pages))
    scene = Scene(_("A block table and a page table, side by side"), NARROW, height)
    first = _Ladder(scene, paged, selected, 0.0, _("PagedAttention: block table"))
    second = _Ladder(scene, in_pages, selected, NARROW - WIDTH, _("vAttention: page table"))
    sentences = captions(paged)
    theirs = walk(in_pages.trace)
    for record, state in walk(paged.trace):
        scene.begin_step(sentences[record.step])
        first.update(state)
        if (other := next(theirs, None)) is not None:
            second.update(other[1])
    return scene


class _Rung(NamedTuple):
    box: int
    entry: int
    arrow: int
    y: float


class _Ladder:
    """Rungs on the left, the memory on the right, arrows between."""

    def __init__(self, scene: Scene, timeline: Timeline, selected: str, x: float, title: str) -> None:
        self.scene, self.x, self.selected = scene, x, selected
        self.names, header = names_of(timeline), timeline.trace.header
        self.ranges = _ranges(timeline)
        self.tokens = header.block_size * len(self.ranges)
        self.num_places = min(MOST_PLACES, header.num_blocks)
        scene.text(x, 16, title, size=15, weight="bold")
        where = _("looked up by the machine") if len(self.ranges) > 1 else _("looked up by the kernel")
        scene.text(x, 37, where, size=13, fill="muted")
        memory = _("{count:,} pages of memory") if len(self.ranges) > 1 else _("{count:,} blocks of memory")
        scene.text(
            x + GRID,
            37,
            memory.format(count=header.num_blocks),
            size=13,
            fill="muted",
        )
        self.places = [
            scene.rect(*self._corner(n), CELL, CELL, label_size=12) for n in range(self.num_places)
        ]
        per_range = _rungs_per_range(timeline, selected)
        apart = BETWEEN if len(self.ranges) == 1 else 0.0
        self.rungs: dict[tuple[int, int], _Rung] = {}
        y = TOP
        for number in range(len(self.ranges)):
            for index in range(per_range):
                box = scene.rect(x + 1, y, BOX, RUNG, label_size=13)
                entry = scene.text(x + ENTRY, y + 17, "", size=13)
                arrow = scene.path("", stroke="cursor", stroke_width=1.3, opacity=0.75)
                self.rungs[number, index] = _Rung(box, entry, arrow, y)
                y += RUNG + apart
            y += BETWEEN

    def _corner(self, place: int) -> tuple[float, float]:
        return self.x + GRID + place % COLUMNS * CELL, TOP + place // COLUMNS * CELL

    def update(self, state: ReplayState) -> None:
        owners = {
            block: self.names[sequence.request]
            for seq, sequence in state.sequences.items()
            for block in state.tables.get(seq, ())
        }
        for place, shape in enumerate(self.places):
            name = owners.get(place)
            fill, label = (name.colour, name.tag) if name else ("free", "")
            self.scene.set(
                shape,
                fill=fill,
                stroke="outline",
                label=label,
                tip=_("{name}: {what}").format(name=place, what=label or _("free")),
            )
        members = [seq for seq in state.members.get(self.selected, []) if seq in state.tables]
        table = list(state.tables[members[0]]) if members else []
        for (number, index), rung in self.rungs.items():
            place = index * len(self.ranges) + number
            self._show(rung, number, index, table[place] if place < len(table) else None)

    def _show(self, rung: _Rung, number: int, index: int, block: int | None) -> None:
        if block is None:
            # Addresses are there, whether or not there is memory behind them; a block table just ends.
            stroke = "outline" if len(self.ranges) > 1 else "none"
            self.scene.set(rung.box, fill="none", stroke=stroke, dash="3 2", label="")
            self.scene.set(rung.entry, text="")
            self.scene.set(rung.arrow, d="")
            return
        first = index * self.tokens
        name, last = self.ranges[number], first + self.tokens - 1
        known = name in RUNGS
        label = _(RUNGS[name]).format(first=first, last=last) if known else f"{name} {first}–{last}"
        fill = self.names[self.selected].colour
        self.scene.set(rung.box, fill=fill, stroke="cursor", dash="", label=label)
        self.scene.set(rung.entry, text=f"→ {block}")
        self.scene.set(rung.arrow, d=self._arrow(rung.y + RUNG / 2, block))

    def _arrow(self, y: float, block: int) -> str:
        if block >= self.num_places:
            return ""
        left, top = self._corner(block)
        start, end, middle = self.x + ENTRY + 36, left + 3, top + CELL / 2
        bend = max(16.0, (end - start) * 0.4)
        curve = f"M{start:g},{y:g}C{start + bend:g},{y:g},{end - bend:g},{middle:g},{end:g},{middle:g}"
        return curve + f"M{end - 5:g},{middle - 3:g}L{end:g},{middle:g}L{end - 5:g},{middle + 3:g}"


def _ranges(timeline: Timeline) -> list[str]:
    """Names of the ranges that a table has, one word each; a block table has one."""
    found = timeline.trace.header.config.get("ranges")
    return [str(name) for name in found] if isinstance(found, list) and found else ["tokens"]


def _rungs_per_range(timeline: Timeline, selected: str) -> int:
    seqs = {seq for seq, sequence in timeline.sequences.items() if sequence.request == selected}
    ranges = len(_ranges(timeline))
    return max(1, min(MOST_RUNGS // ranges, ceil(longest_table(timeline, seqs) / ranges)))


def _height(timeline: Timeline, selected: str) -> float:
    ranges = len(_ranges(timeline))
    rungs = ranges * _rungs_per_range(timeline, selected)
    apart = BETWEEN * (rungs if ranges == 1 else ranges)
    rows = ceil(min(MOST_PLACES, timeline.trace.header.num_blocks) / COLUMNS)
    return TOP + max(rungs * RUNG + apart, rows * CELL) + 4
