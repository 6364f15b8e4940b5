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
from viz.charts.style import Chart, spread
from viz.figures.time_axis import unit_for
from viz.language import _
from viz.scene import Scene

MOST_POINTS = 400
"""More than that a curve of this size cannot show."""
MARKS = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))


def distribution(
    values: Sequence[float], steps: Sequence[int], title: str, fill: str, captions: Sequence[str]
) -> Scene:
    """Durations in seconds, at least one, as a cumulative distribution with p50, p90 and p99 marked.

    Args:
        steps: for each duration, the step in which it ended: a click on the curve leads to it.
    """
    cases = sorted((max(0.0, value), step) for value, step in zip(values, steps, strict=True))
    ordered = [value for value, _step in cases]
    found = percentiles(ordered)
    unit, length = unit_for(found.p90 or ordered[-1] or 1.0)
    curve = [(value / length, 100 * share) for value, share in cumulative(ordered)]
    # The curve begins on the ground, and goes on to the right of the slowest.
    end = curve[-1][0] * 1.25 or 1.0
    across = _("duration ({unit})").format(unit=unit)
    chart = Chart(title, across, _("share of cases (%)"), 0.0, end)
    line = [(curve[0][0], 0.0), *curve, (end, 100.0)]
    chart.area(line, fill, opacity=0.15)
    chart.line(line, fill)
    chart.top, chart.tick = 117.0, 50.0
    for name, share in MARKS:
        chart.dot(getattr(found, name) / length, 100 * share)
    for (name, share), above in zip(MARKS, (58.0, 97.0, 110.0), strict=True):
        value = getattr(found, name)
        # A curve that only rises leaves room above it to the left, and below it to the right.
        to_the_left = value / length > 0.35 * end
        height = above if to_the_left else 100 * share - 10
        words = f"{name} {format_seconds(value)}"
        chart.note(value / length, height, words, "end" if to_the_left else "start")
    _point_out(chart, cases, length)
    return chart.scene(captions)


def _point_out(chart: Chart, cases: Sequence[tuple[float, int]], length: float) -> None:
    """Cases that a pointer can ask about."""
    last = max(len(cases) - 1, 1)
    for index in spread(len(cases)):
        value, step = cases[index]
        words = _(
            "{duration}: {share:.0%} of the cases took no longer; this one ended in step {step}"
        ).format(duration=format_seconds(value), share=index / last if len(cases) > 1 else 1.0, step=step)
        chart.point(value / length, 100 * index / last if len(cases) > 1 else 100.0, step, words)


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
