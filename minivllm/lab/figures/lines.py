"""Lines and ranges that several figures draw alike: a sweep of request rates, and a paper's block sizes.

Read next: `request_rate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minivllm.lab.drawing import MUTED, PAPER, label, logarithmic
from minivllm.lab.figures.serving import Point

BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PER_TOKEN = "seconds for each token, on average"


def draw_sweep(axes: Any, points: Sequence[Point], name: str, colour: str, marker: str) -> None:
    """Latency by request rate of one system."""
    axes.plot(
        [point.rate for point in points],
        [point.latency for point in points],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.4,
        label=name,
    )


def finish_sweeps(axes: Any, title: str, pace: float, highest: float) -> None:
    """Around the lines: the pace that counts as sustained, scales and words."""
    axes.axhline(pace, color=MUTED, linewidth=0.8, linestyle=":")
    logarithmic(axes)
    axes.set_ylim(0, highest)
    label(axes, title, "requests a second", PER_TOKEN)


def mark_block_sizes(axes: Any, low: int, high: int, name: str) -> None:
    """The paper's range of block sizes, on an axis that has one place for each of `BLOCK_SIZES`."""
    axes.axvspan(
        BLOCK_SIZES.index(low) - 0.3,
        BLOCK_SIZES.index(high) + 0.3,
        color=PAPER,
        alpha=0.18,
        linewidth=0,
        label=name,
    )
    axes.set_xticks(range(len(BLOCK_SIZES)), [str(size) for size in BLOCK_SIZES])
