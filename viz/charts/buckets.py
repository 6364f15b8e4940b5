"""Buckets: a histogram as Prometheus has it, drawn as it is: how many values lie between two edges.

A heat map in Grafana is many of these side by side, one for each interval of time, with colours for heights.

Read next: `minivllm/trace/tallies.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.trace.tallies import Tally
from viz.charts.style import SMALL, Chart
from viz.language import _


def buckets(tally: Tally, theme: int, x: str, fill: str = "decode") -> Chart:
    """The buckets from the first that has a value to the last; at least one must have one."""
    used = [index for index, count in enumerate(tally.counts) if count]
    names = [f"≤ {edge:,g}" for edge in tally.edges] + [f"> {tally.edges[-1]:,g}"]
    rows = range(used[0], used[-1] + 1)
    return bars({names[index]: tally.counts[index] for index in rows}, theme, x, fill)


def bars(counts: Mapping[str, int], theme: int, x: str, fill: str = "filled") -> Chart:
    """A bar for each name, in their order, with its number on top."""
    chart = Chart(theme, x, _("requests"))
    places = range(len(counts))
    chart.axes.bar(places, list(counts.values()), color=chart.ink(fill), width=0.75)
    chart.axes.set_xticks(
        places,
        list(counts),
        fontsize=SMALL,
        color=chart.ink("ink"),
        rotation=40 if len(counts) > 5 else 0,
        ha="right" if len(counts) > 5 else "center",
    )
    chart.axes.tick_params(axis="x", length=0)
    for place, number in zip(places, counts.values(), strict=True):
        chart.axes.annotate(
            f"{number:,}",
            (place, number),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=chart.ink("ink"),
        )
    chart.axes.margins(y=0.18)
    chart.axes.set_xlim(-0.8, max(len(counts), 3) - 0.2)
    chart.from_zero(whole=True)
    return chart
