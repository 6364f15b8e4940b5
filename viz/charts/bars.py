"""Bars that carry their numbers: lying, with their names to the left, or standing side by side.

Read next: `buckets.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from viz.charts.style import CELL, KEY, PLOT, RIGHT, SMALL, TOP, stand
from viz.figures.common import PHONE, WASTE, hatch, text_cells
from viz.language import _
from viz.scene import Scene, rounded

BAR, BAR_GAP = 20.0, 12.0


@dataclass(frozen=True)
class Bar:
    """One bar: its name, how long it is, its colour, and its number in words."""

    name: str
    length: float
    fill: str
    words: str


def lying(title: str, across: str, bars: Sequence[Bar], captions: Sequence[str]) -> Scene:
    """Bars from left to right, one below the other, with their numbers behind them."""
    left = 14 + max(CELL * text_cells(bar.name) for bar in bars)
    room = PHONE - left - 12 - max(8.0 * text_cells(bar.words) for bar in bars)
    most = max(max(bar.length for bar in bars), 1e-12)
    bottom = 28 + len(bars) * (BAR + BAR_GAP)
    scene = Scene(title, PHONE, bottom + 24)
    scene.text(0, 15, title, size=15, weight="bold")
    for number, bar in enumerate(bars):
        y = 32 + number * (BAR + BAR_GAP)
        box = (rounded(left), y, rounded(room * bar.length / most), BAR)
        scene.text(left - 8, y + 15, bar.name, size=SMALL, anchor="end")
        scene.rect(*box, fill=bar.fill, tip=_("{name}: {what}").format(name=bar.name, what=bar.words))
        if bar.fill == WASTE:
            hatch(scene, [box])
        scene.text(box[0] + box[2] + 6, y + 15, bar.words, size=SMALL)
    scene.path(f"M{left:.2f},28L{left:.2f},{bottom - 6:g}", stroke="outline", stroke_width=1.0)
    scene.text(rounded(left), bottom + 12, across, size=SMALL, fill="muted")
    stand(scene, captions)
    return scene


def standing(title: str, across: str, up: str, bars: Sequence[Bar], captions: Sequence[str]) -> Scene:
    """Bars side by side, with their numbers on top; of many, not every name is written below."""
    bottom = TOP - KEY + PLOT
    scene = Scene(title, PHONE, bottom + 42)
    scene.text(0, 15, title, size=15, weight="bold")
    pitch = min(90.0, (PHONE - 2 * RIGHT) / max(len(bars), 1))
    every = ceil((max(CELL * text_cells(bar.name) for bar in bars) + 6) / pitch)
    most = max(max(bar.length for bar in bars), 1e-12)
    for number, bar in enumerate(bars):
        x, height = RIGHT + (number + 0.5) * pitch, (PLOT - 4) * bar.length / most
        box = (rounded(x - 0.38 * pitch), rounded(bottom - height), rounded(0.76 * pitch), rounded(height))
        scene.rect(*box, fill=bar.fill, tip=_("{name}: {what}").format(name=bar.name, what=bar.words))
        scene.text(rounded(x), box[1] - 5, bar.words, size=SMALL, anchor="middle")
        if not number % every:
            scene.text(rounded(x), bottom + 17, bar.name, size=SMALL, fill="muted", anchor="middle")
    scene.path(f"M0,{bottom:g}L{PHONE - RIGHT:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    scene.text(0, TOP - KEY - 14, up, size=SMALL, fill="muted")
    scene.text(PHONE / 2, bottom + 36, across, size=SMALL, fill="muted", anchor="middle")
    stand(scene, captions)
    return scene


def nothing(title: str, words: str, captions: Sequence[str]) -> Scene:
    """A chart of nothing: its title, and that there is nothing to draw."""
    scene = Scene(title, PHONE, 44)
    scene.text(0, 15, title, size=15, weight="bold")
    scene.text(0, 38, words, size=SMALL, fill="muted")
    stand(scene, captions)
    return scene
