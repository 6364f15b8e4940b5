"""Buckets: a histogram as Prometheus has it, drawn as it is: how many values lie between two edges.

A heat map in Grafana is many of these side by side, one for each interval of time, with colours for heights.

Read next: `minivllm/trace/tallies.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minivllm.trace.tallies import Tally
from viz.charts.bars import Bar, standing
from viz.language import _
from viz.scene import Scene


def buckets(tally: Tally, title: str, across: str, fill: str, captions: Sequence[str]) -> Scene:
    """The buckets from the first that has a value to the last; at least one must have one."""
    used = [index for index, count in enumerate(tally.counts) if count]
    names = [f"≤ {edge:,g}" for edge in tally.edges] + [f"> {tally.edges[-1]:,g}"]
    rows = range(used[0], used[-1] + 1)
    return counts({names[index]: tally.counts[index] for index in rows}, title, across, fill, captions)


def counts(numbers: Mapping[str, int], title: str, across: str, fill: str, captions: Sequence[str]) -> Scene:
    """A bar for each name, in their order."""
    bars = [Bar(name, number, fill, f"{number:,}") for name, number in numbers.items()]
    return standing(title, across, _("requests"), bars, captions)
