"""Curves over logarithmic axes: how a number falls or grows with another one.

    influence │ ━━━━━━━━━ ─ ─ ─ ─ ─         each line has a colour and a dash of its own
              │     ╲
              │       ╲                     a step of the player is one x, at which all values are told
              └──────────────── distance

Read next: `minivllm/trace/curves.py`, the numbers.
"""

from __future__ import annotations

from minivllm.trace.curves import Curves
from viz.engine_words import said_in
from viz.figures.common import NARROW, clip
from viz.figures.log_axis import LogScale, log_grid
from viz.language import _
from viz.scene import Point, Scene, lines_path, rounded
from viz.trace_words import CURVES

LEFT, RIGHT, LINE = 76.0, 12.0, 22.0
HEIGHT = 260.0
LOOKS = (
    ("line0", ""),
    ("line1", "9 4"),
    ("line2", "3 3"),
    ("line3", "12 4 2 4"),
    ("line4", "1.5 3"),
    ("ink", "6 2"),
)
"""Of each curve, in order: its colour and its dash."""


def curves(found: Curves) -> Scene:
    """All curves, their legend, and their values at one x."""
    top = 40 + LINE * len(found.curves)
    bottom = top + HEIGHT
    scene = Scene(said_in(found.title, CURVES), NARROW, bottom + 52)
    numbers = [value for curve in found.curves for value in curve.values]
    x = LogScale.around(found.x, LEFT, NARROW - RIGHT)
    y = LogScale.around(numbers, bottom, top + 18)
    across_words, names = (
        said_in(found.across, CURVES),
        [said_in(curve.name, CURVES) for curve in found.curves],
    )
    log_grid(scene, x, y, across_words, said_in(found.up, CURVES))
    now = []
    for number, (curve, name, (stroke, dash)) in enumerate(zip(found.curves, names, LOOKS, strict=False)):
        at = 16 + LINE * number
        scene.path(lines_path([(4, at - 5), (44, at - 5)]), stroke=stroke, dash=dash, stroke_width=2.6)
        scene.text(54, at, clip(name, 60), size=14)
        now.append(scene.text(NARROW - RIGHT, at, "", size=14, anchor="end"))
        points = zip(found.x, curve.values, strict=True)
        line = [(rounded(x.place(across)), rounded(y.place(value))) for across, value in points]
        scene.points += [
            Point(*place, step, _("{name}: {value:.3g} at {across:,.10g}").format(
                name=name, value=value, across=across
            ))
            for step, (place, across, value) in enumerate(zip(line, found.x, curve.values, strict=True))
        ]  # fmt: skip
        scene.path(lines_path(line), stroke=stroke, dash=dash, stroke_width=2.6)
    cursor = scene.path("", stroke="cursor", stroke_width=1.6)
    for step, across in enumerate(found.x):
        told = [
            _("{name}: {value:.2g}").format(name=name, value=curve.values[step])
            for name, curve in zip(names, found.curves, strict=True)
        ]
        words = _("{name}: {across:,.10g}. {values}.")
        scene.begin_step(words.format(name=across_words, across=across, values=_(", ").join(told)))
        place = rounded(x.place(across))
        scene.set(cursor, d=lines_path([(place, top + 6), (place, bottom)]))
        for text, curve in zip(now, found.curves, strict=True):
            scene.set(
                text, text=_("at {across:,.10g}: {value:.2g}").format(across=across, value=curve.values[step])
            )
    return scene
