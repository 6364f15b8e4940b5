"""The time axis: seconds along x, with labels at round numbers and in a unit that fits.

Read next: `comparison.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10

from viz.language import _
from viz.scene import Scene, rounded

LABEL_UNITS = 90.0
"""So many units of x have room for one label."""


@dataclass(frozen=True)
class TimeScale:
    """Time from `start` to `end`, in seconds, laid out along x from `left` to `right`."""

    start: float
    end: float
    left: float
    right: float
    in_steps: bool = False
    """A run whose clock counts steps: a second of it is one of them."""

    def x(self, time: float) -> float:
        """Where a time lies; never outside the axis."""
        share = (time - self.start) / self._length
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)

    @property
    def _length(self) -> float:
        return max(self.end - self.start, 1e-9)

    @property
    def unit(self) -> tuple[str, float]:
        """The unit's name, and its length in seconds."""
        return (_("step"), 1.0) if self.in_steps else unit_for(self.end)

    @property
    def tick(self) -> float:
        """Seconds between two labels: 1, 2 or 5 times a power of ten."""
        return round_step(self._length * LABEL_UNITS / (self.right - self.left))

    def words(self, time: float) -> str:
        """A time with as many decimals as tell two moments apart."""
        name, length = self.unit
        decimals = max(0, min(6, 3 - floor(log10(self._length / length))))
        return f"{time / length:,.{decimals}f} {name}"


def unit_for(seconds: float) -> tuple[str, float]:
    """The unit in which a time reads best, and its length in seconds."""
    for name, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return name, length
    return "µs", 1e-6


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, … (or 0.5, 0.2, …) that is at least `least`."""
    power = 10.0 ** floor(log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def time_axis_labels(scene: Scene, scale: TimeScale, y: float) -> None:
    """Times under a picture whose x means time."""
    name, length = scale.unit
    tick = scale.tick
    number = floor(scale.start / tick)
    while (time := number * tick) <= scale.end:
        number += 1
        x = scale.x(time)
        if time >= scale.start - tick * 1e-6 and x < scene.width - 24:
            scene.text(rounded(x), y, f"{time / length:,.6g}", size=13, fill="muted", anchor="middle")
    scene.text(scale.left - 14, y, name, size=13, fill="muted", anchor="end")
