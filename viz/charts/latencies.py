"""Distributions of latencies: for each duration, the share of cases that took no longer.

    100 % ┤            ╭─────── p99       a steep curve: all wait about as long
          │       ╭────╯                  a long foot to the right: some wait much longer than most
     50 % ┤   ╭───╯ p50
          └───┴──────────────► duration

A cumulative distribution needs no bins to choose, hides no single case, and its percentiles can be read off:
between two cases it rises as straight as percentiles are interpolated, so each of them lies on the curve.
Averages are left out on purpose: they hide exactly the requests that wait.

Read next: `over_time.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from minivllm.trace.summary import Percentiles, format_seconds, percentiles
from viz.charts.style import Chart
from viz.figures.time_axis import unit_for
from viz.language import _

MOST_POINTS = 500
"""More than that a curve of this size cannot show."""
MARKS = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))


def distribution(values: Sequence[float], theme: int, fill: str = "decode") -> Chart:
    """Durations in seconds, at least one, as a cumulative distribution with p50, p90 and p99 marked."""
    ordered = sorted(max(0.0, value) for value in values)
    found = percentiles(ordered)
    unit, length = unit_for(found.p90 or ordered[-1] or 1.0)
    chart = Chart(theme, _("duration ({unit})").format(unit=unit), _("share of cases (%)"))
    curve = cumulative(ordered)
    points, shares = [value / length for value, _ in curve], [100 * share for _, share in curve]
    # The curve begins on the ground, and goes on to the right of the slowest.
    end = points[-1] * 1.25 or 1.0
    across, up = [points[0], *points, end], [0.0, *shares, 100.0]
    chart.axes.plot(across, up, color=chart.ink(fill), linewidth=2)
    chart.axes.fill_between(across, up, color=chart.ink(fill), alpha=0.15, linewidth=0)
    for name, share in MARKS:
        value = getattr(found, name) / length
        chart.axes.plot([value], [100 * share], "o", color=chart.ink("cursor"), markersize=5, zorder=3)
    for (name, share), above in zip(MARKS, (58.0, 98.0, 111.0), strict=True):
        value = getattr(found, name)
        # A curve that only rises leaves room above it to the left, and below it to the right.
        to_the_left = value / length > 0.35 * end
        height = above if to_the_left else 100 * share - 10
        words = f"{name} {format_seconds(value)}"
        chart.note(value / length, height, words, align="right" if to_the_left else "left")
    chart.axes.set_xlim(0, end)
    chart.axes.set_ylim(0, 122)
    chart.axes.set_yticks([0, 50, 100])
    return chart


def cumulative(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """`(value, share)` of sorted values, at least one: the share at which a percentile is that value.

    Of many, evenly chosen ones, those beside the marked percentiles, and the last.
    """
    count = len(ordered)
    last = count - 1
    if not last:
        return [(ordered[0], 0.0), (ordered[0], 1.0)]
    num_chosen = min(last, MOST_POINTS)
    chosen = {k * last // num_chosen for k in range(num_chosen)}
    for _name, share in MARKS:
        chosen |= {floor(share * last), min(floor(share * last) + 1, last)}
    return [(ordered[index], index / last) for index in sorted(chosen | {last})]


def in_words(found: Percentiles) -> str:
    """The marked percentiles as text, for screen readers."""
    if not found.count:
        return _("Nothing of this kind was measured in this run.")
    marks = _(", ").join(f"{name} {format_seconds(getattr(found, name))}" for name, _share in MARKS)
    return _("{marks}; {count:,} measured.").format(marks=marks, count=found.count)
