"""Latency against rate as a picture: the curve that says how much load a server can bear.

    TTFT, TPOT      p50 as a line, p90 and p99 thinner, over the rate that was really sent
    throughput      tokens a second, with goodput where a bound was given

A point of a run with doubts is hollow. The ground is white in the file itself, so the picture reads on a dark
page as on a light one.

Read next: `command.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivllm.lab.bench.serve.results import ServeResult
from minivllm.lab.drawing import MUTED, OURS, PAPER, label, panels, plain, write_picture

STYLES = (("p50", "-", 1.8), ("p90", "--", 1.1), ("p99", ":", 1.1))
PANELS = (("ttft", "Time to first token"), ("tpot", "Time per output token"))


def save_plot(results: Sequence[ServeResult], title: str, path: Path) -> None:
    """Write the picture; its ending says the format. Raises `CannotWrite`."""
    write_picture(draw(results, title), path)


def draw(results: Sequence[ServeResult], title: str) -> Any:
    """Three panels side by side."""
    figure, axes = panels(3, width=4.0, height=3.3)
    ordered = sorted(results, key=_rate)
    rates = [_rate(result) for result in ordered]
    for one, (name, words) in zip(axes, PANELS, strict=False):
        for share, style, width in STYLES:
            values = [getattr(result.latencies[name], share) for result in ordered]
            one.plot(rates, values, style, color=OURS, linewidth=width, label=share)
        _mark(one, rates, [result.latencies[name].p50 for result in ordered], ordered, OURS)
        bound = ordered[0].goodput.get(name) if ordered else None
        if bound is not None:
            one.axhline(bound, color=PAPER, linewidth=1.2, label="bound")
        label(one, words, "requests a second, sent", "milliseconds")
    _draw_throughput(axes[2], rates, ordered)
    for one in axes:
        one.set_xlim(left=0)
        one.set_ylim(bottom=0)
        one.legend(fontsize=8, frameon=False)
    hollow = "; hollow: a run with doubts" if any(result.doubts for result in ordered) else ""
    figure.suptitle(plain(title + hollow), x=0.01, ha="left", fontsize=10, color=MUTED)
    return figure


def _draw_throughput(axes: Any, rates: Sequence[float], results: Sequence[ServeResult]) -> None:
    answered = [result.request_throughput for result in results]
    axes.plot(rates, rates, ":", color=MUTED, linewidth=1.1, label="as fast as sent")
    axes.plot(rates, answered, "-", color=OURS, linewidth=1.8, label="answered")
    _mark(axes, rates, answered, results, OURS)
    if results and results[0].goodput:
        good = [result.request_goodput or 0.0 for result in results]
        axes.plot(rates, good, "-", color=PAPER, linewidth=1.8, label="goodput")
        _mark(axes, rates, good, results, PAPER)
    label(axes, "Throughput", "requests a second, sent", "requests a second")


def _mark(
    axes: Any, rates: Sequence[float], values: Sequence[float], results: Sequence[ServeResult], colour: str
) -> None:
    for rate, value, result in zip(rates, values, results, strict=True):
        axes.plot(
            [rate], [value], "o", color=colour, markersize=5, fillstyle="none" if result.doubts else "full"
        )


def _rate(result: ServeResult) -> float:
    return result.offered_rate or result.request_rate or 0.0
