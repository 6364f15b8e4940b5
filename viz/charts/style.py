"""The look of charts: one small pair of axes, the palette's colours, few lines, text that stays readable.

A chart is as wide as a column of the page, so that charts stand side by side where there is room, and below
each other on a phone. It is an SVG: sharp on every screen, and its text is drawn as outlines, so that it
looks the same without the fonts.

Read next: `latencies.py`.
"""

from __future__ import annotations

import warnings
from io import BytesIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from viz.backends.mpl import has_chinese, installed_fonts
from viz.language import current
from viz.palette import colour

WIDTH_INCHES, HEIGHT_INCHES = 4.6, 2.3
SMALL, NORMAL = 8.5, 9.5
"""Points."""


class Chart:
    """One pair of axes in the colours of a theme (`palette.LIGHT` or `DARK`)."""

    def __init__(self, theme: int, x: str, y: str, height: float = HEIGHT_INCHES) -> None:
        self.theme = theme
        self.figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        self.figure.set_facecolor("none")
        self.axes: Axes = self.figure.subplots()
        self.axes.set_facecolor("none")
        for side in ("top", "right"):
            self.axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            self.axes.spines[side].set_color(self.ink("outline"))
        self.axes.tick_params(colors=self.ink("outline"), labelcolor=self.ink("muted"), labelsize=SMALL)
        self.axes.set_xlabel(x, color=self.ink("muted"), fontsize=SMALL)
        self.axes.set_ylabel(y, color=self.ink("muted"), fontsize=SMALL)
        self.axes.grid(axis="y", color=self.ink("rule"), linewidth=0.6)
        self.axes.set_axisbelow(True)

    def ink(self, name: str) -> str:
        """A colour of the palette in this chart's theme."""
        return colour(name, self.theme)

    def from_zero(self, *, whole: bool = False) -> None:
        """Heights are compared with zero, or not at all."""
        top = self.axes.get_ylim()[1]
        self.axes.set_ylim(0, top if top > 0 else 1)
        self.axes.yaxis.set_major_locator(MaxNLocator(4, integer=whole))

    def note(self, x: float, y: float, words: str, name: str = "ink", align: str = "left") -> None:
        """Words at a place of the axes, beside what they are about."""
        self.axes.annotate(
            words,
            (x, y),
            (4 if align == "left" else -4, 0),
            textcoords="offset points",
            fontsize=SMALL,
            color=self.ink(name),
            ha=align,
            va="center",
            annotation_clip=False,
        )

    def legend(self, columns: int = 3) -> None:
        """Above the axes, where it hides nothing."""
        self.axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=columns,
            frameon=False,
            fontsize=SMALL,
            labelcolor=self.ink("ink"),
            handlelength=1.4,
            borderaxespad=0.2,
            columnspacing=1.2,
        )

    def svg(self) -> str:
        """The chart as a picture; the same chart always gives the same text."""
        buffer = BytesIO()
        for text in self.figure.findobj(Text):
            text.set_fontfamily(installed_fonts())
        # Outlines of Chinese need a font here; without one, the reader's browser may have it.
        kind = "path" if current() == "en" or has_chinese() else "none"
        with (
            rc_context({"svg.fonttype": kind, "svg.hashsalt": "minivllm", "hatch.linewidth": 0.6}),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue().decode()
