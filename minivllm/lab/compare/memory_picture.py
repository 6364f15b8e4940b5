"""The comparison of memories as one picture: where the memory goes, and what sharing saves.

Above, one bar for each allocator, cut into the five kinds of slots; a diamond marks the paper's effective
share. Below, the blocks that sharing saves; a bracket marks the paper's range from 2 to 6 sequences.

Read next: `resident.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minivllm.lab import papers
from minivllm.lab.compare.memory import ALLOCATORS, WIDTHS, MemoryComparison
from minivllm.lab.compare.memory_report import WHAT_IS_RESERVED
from minivllm.lab.drawing import INK, MUTED, check_picture, write_picture
from minivllm.lab.workloads.lengths import DATA_SETS

COLOURS = {
    "effective": "#009E73",
    "reserved": "#56B4E9",
    "internal": "#E69F00",
    "external": "#C9CDD3",
}
"""Okabe and Ito's, which people with any kind of colour vision can tell apart, and a grey."""
SHADES = ("#9CC9E8", "#4C97C9", "#0072B2")
"""2, 4 and 6 sequences."""


def save_picture(result: MemoryComparison, path: Path) -> None:
    """Write the picture; the file's ending says the format.

    Raises:
        ValueError: it is no format for pictures, or the file cannot be written.
    """
    check_picture(path)
    figure = Figure(figsize=(11, 8), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1), hspace=0.14)
    for column, data_set in enumerate(DATA_SETS):
        _draw_shares(figure.add_subplot(grid[0, column]), result, data_set, first=column == 0)
    for column, kind in enumerate(("parallel", "beam")):
        _draw_saved(figure.add_subplot(grid[1, column]), result, kind, first=column == 0)
    write_picture(figure, path)


def _draw_shares(axes: Any, result: MemoryComparison, data_set: str, *, first: bool) -> None:
    names = list(ALLOCATORS)
    runs = [result.find("single", data_set=data_set, allocator=name) for name in names]
    left = [0.0] * len(runs)
    for kind, colour in COLOURS.items():
        widths = [100 * getattr(run.played.shares, kind) for run in runs]
        bars = axes.barh(names, widths, left=left, color=colour, edgecolor="white", height=0.72, label=kind)
        texts = [f"{width:.0f}" if width >= 5 else "" for width in widths]
        axes.bar_label(bars, texts, label_type="center", color=INK, fontsize=9)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, run in enumerate(runs):
        axes.text(101, row, f"{run.played.requests_at_once:.0f}", va="center", fontsize=9, color=INK)
        theirs = papers.EFFECTIVE.get(run.allocator) if data_set == "sharegpt" else None
        if theirs:
            label = "effective in the paper" if row == 0 else None
            axes.plot(100 * theirs, row, "D", color=INK, markersize=6, mec="white", label=label)
    axes.set_title("requests at once", loc="right", fontsize=9, color=MUTED)
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.6), xlabel="share of the KV cache, %")
    shape = DATA_SETS[data_set]
    axes.set_title(
        f"{shape.name}: {shape.mean_prompt:.0f} tokens in, {shape.mean_output:.0f} out",
        loc="left",
        fontsize=11,
        color=INK,
    )
    labels = [f"{name}\n{WHAT_IS_RESERVED[name]}" for name in names] if first else [""] * len(names)
    axes.set_yticks(range(len(names)), labels, fontsize=9)
    _tidy(axes)
    if first:
        legend = axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=5, frameon=False, fontsize=9)
        legend.set_in_layout(False)  # it may reach under its neighbour, which is not to make room for it


def _draw_saved(axes: Any, result: MemoryComparison, kind: str, *, first: bool) -> None:
    for place, data_set in enumerate(DATA_SETS):
        for number, (width, shade) in enumerate(zip(WIDTHS, SHADES, strict=True)):
            saved = result.find("sharing", data_set=data_set, kind=kind, width=width).played.saved
            label = f"{width} sequences" if place == 0 else None
            bars = axes.bar(place + (number - 1) * 0.24, 100 * saved, 0.22, color=shade, label=label)
            axes.bar_label(bars, [f"{100 * saved:.0f}"], fontsize=9, color=INK)
        theirs = papers.SAVED[data_set, kind].values()
        low, high = 100 * min(theirs), 100 * max(theirs)
        label = "paper, 2 to 6" if place == 0 else None
        axes.errorbar(
            place + 0.44, (low + high) / 2, (high - low) / 2, color=INK, capsize=4, lw=1.5, label=label
        )
    title = "parallel samples" if kind == "parallel" else "beams"
    axes.set_title(f"Blocks saved by sharing: {title}", loc="left", fontsize=11, color=INK)
    axes.set(ylim=(0, 92), xlim=(-0.5, len(DATA_SETS) - 0.4))
    axes.set_xticks(range(len(DATA_SETS)), [shape.name for shape in DATA_SETS.values()])
    if first:
        axes.set_ylabel("% of the blocks needed alone")
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, length=0)
    for spine in axes.spines.values():
        spine.set_color("#D6D9DE")
