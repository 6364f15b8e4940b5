"""Logarithmic axes: powers of ten at equal distances, and numbers with the prefixes that engineers use.

Read next: `roofline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from viz.scene import Scene, rounded

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class LogScale:
    """Values from `low` to `high`, both positive, laid out from `start` to `end` (which may be smaller)."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> LogScale:
        """A scale that has some room on either side of all values, and at least a power of ten."""
        low, high = log10(min(values)), log10(max(values))
        room = max(0.06 * (high - low), 0.1, (1 - high + low) / 2)
        return cls(10 ** (low - room), 10 ** (high + room), start, end)

    def place(self, value: float) -> float:
        """Where a value lies; never outside the axis."""
        share = (log10(max(value, 1e-300)) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten, at most about seven; between them 2 and 5 where there is room."""
        first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
        every = max(1, ceil((last - first + 1) / 7))
        powers = [10.0**power for power in range(first, last + 1, every)]
        if len(powers) > 2:
            return powers
        finer = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
        return [value for value in finer if self.low <= value <= self.high]


def log_grid(scene: Scene, x: LogScale, y: LogScale, across: str, up: str) -> None:
    """Axes with ticks and their names; y's scale starts at the bottom."""
    for value in y.ticks():
        at = rounded(y.place(value))
        scene.path(f"M{x.start:g},{at:g}L{x.end:g},{at:g}", stroke="rule", stroke_width=0.8)
        scene.text(x.start - 8, at + 5, engineering(value).strip(), size=13, fill="muted", anchor="end")
    for value in x.ticks():
        at = rounded(x.place(value))
        scene.path(f"M{at:g},{y.start:g}L{at:g},{y.start + 5:g}", stroke="outline", stroke_width=1.0)
        scene.text(at, y.start + 20, f"{value:,.10g}", size=13, fill="muted", anchor="middle")
    scene.path(f"M{x.start:g},{y.start:g}L{x.end:g},{y.start:g}", stroke="outline", stroke_width=1.0)
    scene.text((x.start + x.end) / 2, y.start + 42, across, size=13, fill="muted", anchor="middle")
    scene.text(4, y.end - 12, up, size=13, fill="muted")


def engineering(value: float) -> str:
    """Three digits and a prefix, ready for a unit: "312 T", "1.5 G", "20 "."""
    for size, prefix in PREFIXES:
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {prefix}" if value < 1e18 else f"{value / size:,.0f} {prefix}"
    return f"{value:.3g} "
