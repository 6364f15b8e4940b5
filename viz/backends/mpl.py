"""matplotlib: one step of a scene as a figure (PNG, PDF, a lesson's picture), or some steps as a film.

Too slow to step through by hand (half a second a picture), and just right for pictures that stay.

Read next: `mp4.py`, the other kind of film; `html.py`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from PIL import Image

from minivllm.files import write_file
from viz.palette import LIGHT, colour
from viz.scene import LEGIBLE, Scene, Shape

# The first that has a character draws it; a trace may be in any language.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei")
UNITS_PER_INCH = 96.0
POINTS = 72.0 / UNITS_PER_INCH
"""Points per unit: matplotlib measures text and lines in points."""
ALIGNMENT = {"start": "left", "middle": "center", "end": "right"}
COMMANDS = {"M": [Outline.MOVETO], "L": [Outline.LINETO], "C": [Outline.CURVE4] * 3, "Z": [Outline.CLOSEPOLY]}


def to_figure(scene: Scene, step: int, theme: int = LIGHT) -> Figure:
    """The picture after `step`; 96 units are an inch, `savefig` does the rest."""
    figure = Figure(figsize=(scene.width / UNITS_PER_INCH, scene.height / UNITS_PER_INCH))
    figure.set_facecolor(colour("page", theme))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.axis("off")
    shapes = scene.at(step)
    for order, shape in enumerate(shapes):
        if shape["kind"] == "text":
            _text(axes, shape, theme, order)
        elif shape["kind"] == "path":
            _path(axes, shape, theme, order)
        else:
            _rect(axes, shape, theme, order)
            _label(axes, shape, theme, len(shapes) + order)
    return figure


def to_png(scene: Scene, step: int, theme: int = LIGHT, dpi: float = 150) -> bytes:
    """The picture after `step` as a PNG."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A character that no font has is drawn as a box, and that says it all.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        to_figure(scene, step, theme).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def pictures(scene: Scene, steps: Iterable[int], theme: int = LIGHT) -> Iterator[Image.Image]:
    """The given steps, one after the other, for a film."""
    for step in steps:
        yield Image.open(BytesIO(to_png(scene, step, theme, dpi=UNITS_PER_INCH))).convert("RGB")


def save_gif(
    scene: Scene, path: str | Path, steps: Iterable[int], *, per_second: float = 4, theme: int = LIGHT
) -> None:
    """The given steps as an animation that repeats. Raises `CannotWrite` if the file cannot be written."""
    frames = [picture.quantize(64) for picture in pictures(scene, steps, theme)]
    if not frames:
        raise ValueError("a GIF needs at least one step")
    drawn = BytesIO()
    frames[0].save(
        drawn,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / per_second),
        loop=0,
        optimize=True,
    )
    write_file(path, drawn.getvalue(), "path")


def _colours(shape: Shape, theme: int) -> dict[str, Any]:
    line = float(shape["stroke_width"]) * POINTS
    look: dict[str, Any] = {
        "facecolor": colour(str(shape["fill"]), theme),
        "edgecolor": colour(str(shape["stroke"]), theme),
        "linewidth": line if shape["stroke"] != "none" else 0.0,
        "alpha": float(shape["opacity"]),
    }
    if shape["dash"]:
        # matplotlib counts dashes in line widths, SVG in units.
        dashes = [float(length) * POINTS / line for length in str(shape["dash"]).split()]
        look["linestyle"] = (0, dashes)
    return look


def _rect(axes: Axes, shape: Shape, theme: int, order: int) -> None:
    if not shape["width"] or (shape["fill"] == "none" and shape["stroke"] == "none"):
        return
    x, y, width, height = (float(shape[name]) for name in ("x", "y", "width", "height"))
    axes.add_patch(Rectangle((x, y), width, height, zorder=order, **_colours(shape, theme)))


def _path(axes: Axes, shape: Shape, theme: int, order: int) -> None:
    if shape["d"]:
        patch = PathPatch(outline(str(shape["d"])), zorder=order, **_colours(shape, theme))
        axes.add_patch(patch)


def outline(d: str) -> Outline:
    """An SVG path of absolute M, L, C and Z commands as matplotlib's."""
    vertices: list[tuple[float, float]] = []
    codes: list[Any] = []
    for command, numbers in re.findall(r"([MLCZ])([^MLCZ]*)", d):
        values = [float(number) for number in re.findall(r"[-+.\de]+", numbers)]
        points = list(zip(values[::2], values[1::2], strict=True)) or [(0.0, 0.0)]
        vertices += points
        codes += COMMANDS[command] if command != "L" else [Outline.LINETO] * len(points)
    return Outline(vertices, codes)


def _text(axes: Axes, shape: Shape, theme: int, order: int) -> None:
    _write(axes, shape, str(shape["text"]), float(shape["x"]), float(shape["y"]), theme, order)


def _label(axes: Axes, shape: Shape, theme: int, order: int) -> None:
    size = float(shape["label_size"])
    if not shape["label"] or size < LEGIBLE:
        return
    x = float(shape["x"]) + float(shape["width"]) / 2
    y = float(shape["y"]) + float(shape["height"]) / 2 + size * 0.36
    ink = "ink" if shape["fill"] == "none" else f"on-{shape['fill']}"
    _write(axes, {"size": size, "anchor": "middle", "fill": ink}, str(shape["label"]), x, y, theme, order)


def _write(axes: Axes, shape: Shape, words: str, x: float, y: float, theme: int, order: int) -> None:
    axes.text(
        x,
        y,
        "".join(char if char.isprintable() else " " for char in words),
        fontsize=float(shape["size"]) * POINTS,
        fontfamily=installed_fonts(),
        color=colour(str(shape["fill"]), theme),
        ha=ALIGNMENT[str(shape["anchor"])],
        weight=str(shape.get("weight", "normal")),
        zorder=order,
        parse_math=False,  # a dollar sign in a prompt is a dollar sign
    )


@cache
def installed_fonts() -> list[str]:
    """Of the fonts above, those of this machine."""
    installed = set(get_font_names())
    return [name for name in FONTS if name in installed]
