"""A grid of blocks: one cell per physical block of a pool, in rows of a fixed length.

    ┌──────┐
    │+=2 17│   sign: what this step did; = and how many sequences read it, if several; its own number
    │   A  │   letter and colour: the request of its first reader
    │ ▁▁▁▁▁│   pale strip: the part that is still empty
    └──────┘

A dashed cell with a letter and no colour is cached and evictable: no table maps it, and a prefix hit can.
In smaller cells the signs follow the letter, so that nothing covers it; the smallest say the same by fill,
outline and tooltip. Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from viz.figures.common import NARROW, Mark
from viz.language import _
from viz.scene import Scene, Value, rounded

LABELLED = 20.0
"""Cells of at least this size carry letters and marks."""
ROOMY = 34.0
"""Cells of at least this size have room for a sign and a number of readers side by side."""
MOST_ARROWS = 32


@dataclass(frozen=True)
class Cell:
    """Where one physical block is drawn, and by which shapes."""

    x: float
    y: float
    shape: int
    free_tip: str
    badge: int | None = None
    number: int | None = None


class Look(NamedTuple):
    """All that one cell shows."""

    fill: str = "free"
    label: str = ""
    references: int = 0
    mark: Mark | None = None
    is_evictable: bool = False
    is_selected: bool = False
    tip: str = ""
    detail: str = ""
    filled: int = -1
    """Slots that hold a token; −1 if that means nothing."""
    of: str = ""
    """The requests that read it (`subjects.belongs_to`)."""


class BlockGrid:
    """The cells of one pool. `draw` ignores blocks that have no cell.

    Args:
        blocks: the physical blocks to draw, in order.
        noun: how tooltips call a block of this pool.
        about: what a click on a block asks about (`subjects.py`); None if it asks nothing.
    """

    def __init__(
        self,
        scene: Scene,
        blocks: Sequence[int],
        top: float,
        height: float,
        noun: str,
        *,
        about: Callable[[int], str] | None = None,
    ) -> None:
        # Rows of 16, 32 or 64, so that a block's number can be told from its place.
        self.columns = 16 if len(blocks) <= 256 else 32 if len(blocks) <= 1024 else 64
        rows = ceil(max(len(blocks), 1) / self.columns)
        self.scene, self.noun = scene, noun
        self.size = min(NARROW / self.columns, max(8.0, height / rows))
        self.bottom = top + rows * self.size
        self.inner = self.size - (2 if self.size >= 12 else 1)
        # An outline that would cover a small cell says less than a thin one.
        self.bold = 2.5 if self.size >= LABELLED else 1.6
        self.cells: dict[int, Cell] = {}
        # Letters of small cells can be read once the reader has zoomed in.
        self.label_size = 15.0 if self.size >= ROOMY else 11.0 if self.size >= LABELLED else self.size * 0.55
        self.label_size = rounded(self.label_size)
        for index, block in enumerate(blocks):
            x = (index % self.columns) * self.size + 1
            y = top + (index // self.columns) * self.size
            tip = _("{noun} {block}: free").format(noun=noun, block=block)
            shape = scene.rect(
                x,
                y,
                self.inner,
                self.inner,
                fill="free",
                stroke="outline",
                label_size=self.label_size,
                tip=tip,
                subject=about(block) if about else "",
            )
            self.cells[block] = Cell(x, y, shape, tip)
        if self.size >= ROOMY:
            for block, cell in self.cells.items():
                badge = scene.rect(cell.x - 1, cell.y - 1, 0, 13, label_size=12)
                x, y = cell.x + self.inner - 3, cell.y + 10
                number = scene.text(x, y, f"{block}", size=9, anchor="end", fill="on-free")
                self.cells[block] = replace(cell, badge=badge, number=number)
        self._arrows: list[tuple[int, int]] = []
        self._free_strips: list[int] = []
        self._strips: dict[int, int] = {}

    def add_strips(self, count: int) -> None:
        """Room for the empty parts of so many blocks at once."""
        self._free_strips = [self.scene.rect(0, 0, 0, 0, fill="free") for _ in range(count)]

    def add_arrows(self, count: int) -> None:
        """Room for so many copies in one step."""
        # Each lies on a pale one, so that it can be told from the letters and outlines below.
        self._arrows = [
            (
                self.scene.path("", stroke="page", stroke_width=5.0, opacity=0.85),
                self.scene.path("", stroke="ink", stroke_width=2.2),
            )
            for _ in range(min(count, MOST_ARROWS))
        ]

    def draw(self, block: int, look: Look) -> None:
        """Show what a block is now."""
        cell = self.cells.get(block)
        if cell is None:
            return
        mark = look.mark
        signs = self._badge(mark.sign if mark else "", look.references)
        label, size = look.label, self.label_size
        if cell.badge is None and self.size >= LABELLED and signs:
            label += signs
            size = rounded(min(size, self.inner / (0.62 * len(label))))
        attributes: dict[str, Value] = {
            "fill": look.fill,
            "label": label,
            "label_size": size,
            "stroke": "ink" if mark else "outline",
            "stroke_width": self.bold if mark else 1.0,
            "dash": mark.dash if mark else "",
            "tip": look.tip or cell.free_tip,
            "detail": look.detail,
            "filled": look.filled,
            "of": look.of,
        }
        if look.is_evictable:
            attributes |= {"dash": "2 2"}
        if look.is_selected:
            attributes |= {"stroke": "cursor", "stroke_width": self.bold + 0.5}
        self.scene.set(cell.shape, **attributes)
        if cell.badge is not None and cell.number is not None:
            width = 7.0 + 6.5 * len(signs) if signs else 0.0
            self.scene.set(cell.badge, label=signs, width=width, fill="ink" if signs else "none")
            # The number gives way to a long badge.
            room = self.inner - 4 - width >= 5.4 * len(f"{block}")
            self.scene.set(cell.number, text=f"{block}" if room else "", fill=f"on-{look.fill}")

    def _badge(self, sign: str, references: int) -> str:
        if references <= 1:
            return sign
        if sign == "=":
            return f"={references}"
        return f"{sign}={references}"

    def fill(self, block: int, filled: int) -> None:
        """Of a block that is drawn, only the number of its filled slots has changed."""
        if cell := self.cells.get(block):
            self.scene.set_one(cell.shape, "filled", filled)

    def draw_strips(self, empty: Mapping[int, float]) -> None:
        """Show the empty share of the blocks in `empty`, and of no others."""
        self.change_strips(dict.fromkeys(self._strips, 0.0) | dict(empty))

    def change_strips(self, empty: Mapping[int, float]) -> None:
        """Show the empty share of these blocks, and leave the others as they are.

        A block keeps its strip until it is full: then only what really changes is told.
        """
        for block in [block for block, share in empty.items() if not share and block in self._strips]:
            strip = self._strips.pop(block)
            self.scene.set_one(strip, "width", 0.0)
            self._free_strips.append(strip)
        for block, share in empty.items():
            if not share or (cell := self.cells.get(block)) is None:
                continue
            strip = self._strips.get(block, -1)
            if strip < 0:
                strip = self._strips[block] = self._free_strips.pop()
                self.scene.set(strip, **self._strip_box(cell))
            if self.size >= LABELLED:
                width = rounded(max(0.0, self.inner * share - 1))
                self.scene.set(strip, x=rounded(cell.x + self.inner * (1 - share)), width=width)
            else:
                self.scene.set_one(strip, "height", rounded((self.inner - 2) * share))

    def _strip_box(self, cell: Cell) -> dict[str, float]:
        """What stays the same while a block fills up."""
        if self.size >= LABELLED:
            return {"y": rounded(cell.y + self.inner - 8), "height": 6.5}
        return {"x": rounded(cell.x + 1), "y": rounded(cell.y + 1), "width": rounded(self.inner - 2)}

    def draw_copies(self, copies: Sequence[tuple[int, int]]) -> None:
        """An arrow from the source of each copy of this step to its target."""
        for index, (halo, arrow) in enumerate(self._arrows):
            d = self._arrow(*copies[index]) if index < len(copies) else ""
            self.scene.set(halo, d=d)
            self.scene.set(arrow, d=d)

    def _arrow(self, source: int, target: int) -> str:
        if source not in self.cells or target not in self.cells:
            return ""
        half = self.inner / 2
        x1, y1 = self.cells[source].x + half, self.cells[source].y + half
        x2, y2 = self.cells[target].x + half, self.cells[target].y + half
        # It bulges to one side, so that it does not run along a row through other blocks' letters, and
        # meets the target from above.
        bulge = y1 - self.size * 0.9 if y1 <= y2 else y2 - self.size * 0.9
        y2 -= half * 0.5
        return (
            f"M{x1:g},{y1 - half * 0.5:g}C{x1:g},{bulge:g},{x2:g},{bulge:g},{x2:g},{y2:g}"
            f"M{x2 - 4:g},{y2 - 7:g}L{x2:g},{y2:g}L{x2 + 4:g},{y2 - 7:g}"
        )
