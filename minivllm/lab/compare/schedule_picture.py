"""The comparison of policies as one picture: four small panels with the same policies on the same lines.

Read next: `schedule_command.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from minivllm.lab.compare.schedule import PolicyRun
from minivllm.lab.drawing import INK, MUTED, check_picture, plain, write_picture
from minivllm.trace.summary import Percentiles, format_seconds

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#C9CDD3"


def save_picture(runs: Sequence[PolicyRun], title: str, path: Path) -> None:
    """Write the picture; the file's ending says the format.

    Raises:
        ValueError: it is no format for pictures, or the file cannot be written.
    """
    check_picture(path)
    figure = Figure(figsize=(13, 1.6 + 0.38 * len(runs)), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 4, sharey=True)
    lines = list(range(len(runs)))[::-1]
    axes[0].barh(lines, [run.output_tokens_per_second for run in runs], color=BLUE, height=0.6)
    _label(axes[0], "output tokens a second")
    axes[0].set_yticks(lines, [run.policy for run in runs], fontsize=9)
    _draw_latency(axes[1], lines, [run.ttft for run in runs])
    _label(axes[1], "time to the first token")
    _draw_latency(axes[2], lines, [run.inter_token for run in runs])
    _label(axes[2], "time between tokens")
    computed = [run.mean_computed for run in runs]
    axes[3].barh(lines, computed, color=BLUE, height=0.6, label="computed")
    parked = [max(0.0, run.mean_batch - run.mean_computed) for run in runs]
    axes[3].barh(
        lines, parked, left=computed, color=ORANGE, height=0.6, hatch="///", label="parked", edgecolor="white"
    )
    _label(axes[3], "requests in the batch, on average")
    _legend(axes[3])
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=11, color=INK)
    write_picture(figure, path)


def _draw_latency(axes: Any, lines: Sequence[int], latencies: Sequence[Percentiles]) -> None:
    """A line from p50 to p99, with marks at p50, p90 and p99."""
    for line, latency in zip(lines, latencies, strict=True):
        if not latency.count:
            continue
        values = [value or 0.0 for value in (latency.p50, latency.p90, latency.p99)]
        axes.plot(values, [line] * 3, color=BLUE, linewidth=1.5)
        for value, marker in zip(values, "o|D", strict=True):
            axes.plot(value, line, marker=marker, color=BLUE if marker != "D" else ORANGE, markersize=6)
    axes.set_xscale("log")
    smallest, largest = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if largest > 50 * smallest else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_seconds(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.plot([], [], "o", color=BLUE, label="p50")
    axes.plot([], [], "|", color=BLUE, label="p90")
    axes.plot([], [], "D", color=ORANGE, label="p99")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Below the panel, where it covers nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, fontsize=8, frameon=False)


def _label(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=9, color=INK, loc="left")
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.grid(axis="x", color=GREY, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
