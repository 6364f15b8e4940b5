"""The curves of `scaling.py` as a picture: a small panel for each, both axes logarithmic.

    dots       what was measured
    dashes     the power law that fits the upper half of the sizes
    dotted     the slope that was predicted, from where the fit begins

All panels span at least a factor of thirty, so that noise in a flat curve does not look like a mountain.

Read next: `scaling.py`, which says why each should have its slope.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from pathlib import Path
from textwrap import fill
from typing import Any

from minivllm.lab.bench.report import check_writable
from minivllm.lab.bench.scaling import Curve, Scaling
from minivllm.lab.bench.scaling_laws import Fit, in_words, upper_half
from minivllm.lab.drawing import MUTED, OURS, PAPER, check_ending, label, panels, plain, write_picture
from minivllm.trace.summary import format_seconds

ENDINGS = (".svg", ".png", ".pdf")
LEAST_SPAN, MARGIN = 30.0, 2.0
"""Of a cost axis: the highest over the lowest value on it, and how much more than the curve needs."""
COLUMNS = 3
CHARACTERS = 40
"""Of the title that fit above one panel."""


def check_picture(path: Path) -> None:
    """Raise `ValueError` unless a picture can be written there."""
    check_ending(path, "out", ENDINGS)
    check_writable(path, "out")


def save_picture(result: Scaling, path: Path) -> None:
    """Write the picture; the file's ending says the format.

    Raises:
        ValueError: it is no format for pictures.
        CannotWrite: and a picture that was there before is still there.
    """
    check_picture(path)
    write_picture(draw(result), path, "out")


def draw(result: Scaling) -> Any:
    """The figure: panels in rows of three, one legend for all of them below."""
    figure, axes = panels(len(result.curves), width=3.7, height=2.9, columns=COLUMNS)
    for one, curve in zip(axes, result.curves, strict=True):
        _draw_curve(one, curve)
    handles, names = axes[0].get_legend_handles_labels()
    columns = min(len(result.curves), COLUMNS)
    figure.legend(handles, names, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    figure.suptitle(plain(_title(result)), x=0.01, ha="left", fontsize=10, color=MUTED)
    return figure


def _draw_curve(axes: Any, curve: Curve) -> None:
    expected = curve.expected
    fitted = upper_half(curve.sizes)
    fit = Fit(curve.exponent, curve.factor)
    first = fit.at(fitted[0])
    predicted = Fit(expected.exponent, first / fitted[0] ** expected.exponent)
    measured = [curve.shown(size, cost) for size, cost in zip(curve.sizes, curve.seconds, strict=True)]
    axes.plot(curve.sizes, measured, "o-", color=OURS, markersize=4, linewidth=1, label="measured")
    for law, style, colour, width, name in (
        (predicted, ":", MUTED, 1.4, "the slope that is expected"),
        (fit, "--", PAPER, 1.8, "fit over the upper half"),
    ):
        line = [curve.shown(size, law.at(size)) for size in fitted]
        axes.plot(fitted, line, style, color=colour, linewidth=width, label=name)
    _scale(axes, curve)
    slopes = f"cost ∝ size$^{{{in_words(curve.exponent)}}}$, expected {expected.exponent:g}"
    label(axes, f"{expected.title}\n{slopes}", expected.work, expected.cost)
    if curve.warning:
        axes.title.set_color("#B3261E")


def _scale(axes: Any, curve: Curve) -> None:
    """Logarithmic axes with few, short words on them; a size of 0 stands left of the first other one."""
    above = [size for size in curve.sizes if size > 0]
    if len(above) < len(curve.sizes):
        axes.set_xscale("symlog", linthresh=above[0], linscale=0.5)
        axes.set_xlim(-above[0] * 0.2, above[-1] * 1.6)
    else:
        axes.set_xscale("log")
        axes.margins(x=0.07)
    few = above[:: -max(1, -(-len(above) // 4))]
    if len(above) < len(curve.sizes):
        few.append(0)
    axes.set_xticks(few, [short(size) for size in few])
    axes.set_xticks([], minor=True)
    values = [value for line in axes.get_lines() for value in line.get_ydata()]
    middle = sqrt(min(values) * max(values))
    half = sqrt(max(LEAST_SPAN, MARGIN * max(values) / min(values)))
    low, high = middle / half, middle * half
    axes.set_ylim(low, high)
    axes.set_yscale("log")
    words: Callable[[float], str] = short if curve.expected.is_rate else format_seconds
    ticks = _ticks(low, high)
    axes.set_yticks(ticks, [words(tick) for tick in ticks])
    axes.set_yticks([], minor=True)


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten in this range, and their threes where there are few."""
    powers = [10.0**exponent for exponent in range(-9, 10)]
    inside = [power for power in powers if low <= power <= high]
    if len(inside) < 3:
        inside = sorted(tick for power in powers for tick in (power, 3 * power) if low <= tick <= high)
    return inside


def short(number: float) -> str:
    """1,000 as 1k and 300,000 as 300k: what fits below an axis; 2,048 as it is."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size and number % (size / 10) == 0:
            return f"{number / size:g}{letter}"
    return f"{number:,g}" if number < 1000 else f"{number:,.0f}"


def _title(result: Scaling) -> str:
    machine, subject = result.header.machine, result.header.subject
    threads = f"{machine.threads} thread{'' if machine.threads == 1 else 's'}"
    model = f"{subject['model']}, {subject['dtype']}, " if subject else ""
    width = CHARACTERS * min(len(result.curves), COLUMNS)
    return fill(f"How cost grows with work: {model}{threads}, {machine.cpu}", width)
