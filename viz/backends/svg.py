"""SVG: one step of a scene as a still picture that any browser, editor or slide can show.

Read next: `mpl.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from viz.language import _, current
from viz.palette import BOTH, LIGHT, colour, css_rules
from viz.scene import LEGIBLE, Scene, Shape

LABEL_DROP = 0.36
"""How far below the middle of a rectangle its label's baseline lies, as a share of the label's size."""
MARGIN, GAP = 12.0, 14.0
"""Of a column: around it, and between its scenes."""
CODE = "Source of"
"""So begin the titles of pictures of code: columns are places only where all characters are equally wide."""


def to_svg(scene: Scene, step: int, theme: int = LIGHT) -> str:
    """The picture after `step`, with the caption as its description. `theme`: `palette.LIGHT` or `DARK`."""
    return _document(
        scene.width, scene.height, scene.title, scene.captions[step], _body(scene, step, theme), theme
    )


def to_svg_column(scenes: Sequence[Scene], step: int, theme: int = BOTH) -> str:
    """Scenes with the same steps, one below the other, with a margin: a picture for a text.

    With `palette.BOTH` it is light or dark, as its viewer prefers.
    """
    width = max(scene.width for scene in scenes) + 2 * MARGIN
    y, parts = MARGIN, []
    for scene in scenes:
        font = ' font-family="monospace"' if scene.title.startswith(CODE) else ""
        parts.append(f'<g transform="translate({MARGIN:g} {y:g})"{font}>{_body(scene, step, theme)}</g>')
        y += scene.height + GAP
    title = _("; ").join(dict.fromkeys(scene.title for scene in scenes))
    return _document(width, y - GAP + MARGIN, title, scenes[0].captions[step], "".join(parts), theme)


def _document(width: float, height: float, title: str, caption: str, body: str, theme: int) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    used = sorted({"page", *re.findall(r"var\(--([\w-]+)\)", body)})
    style = f"<style>{css_rules(used)}</style>" if theme == BOTH else ""
    language = "" if current() == "en" else f' lang="{current()}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"{language} font-family="sans-serif">'
        f"<title>{_escaped(title)}</title><desc>{_escaped(caption)}</desc>{style}"
        f'<rect width="100%" height="100%" fill="{colour("page", theme)}"/>{body}</svg>'
    )


def _body(scene: Scene, step: int, theme: int) -> str:
    shapes = [shape | {"tip": scene.tip_of(shape)} for shape in scene.at(step)]
    draw = {"rect": _rect, "text": _text, "path": _path}
    parts = [draw[str(shape["kind"])](shape, theme) for shape in shapes]
    # Labels lie above all rectangles, as in the player: a neighbour must not cut a letter in half.
    return "".join(parts + [_label(shape, theme) for shape in shapes if _has_label(shape)])


def _escaped(value: object) -> str:
    # The scene has none of the characters that XML forbids even when they are escaped.
    return escape(str(value))


def _tip(shape: Shape) -> str:
    return f"<title>{_escaped(shape['tip'])}</title>" if shape["tip"] else ""


def _stroke(shape: Shape, theme: int) -> str:
    if shape["stroke"] == "none":
        return ""
    dash = f' stroke-dasharray="{shape["dash"]}"' if shape["dash"] else ""
    return f' stroke="{colour(str(shape["stroke"]), theme)}" stroke-width="{shape["stroke_width"]}"{dash}'


def _paint(shape: Shape, theme: int) -> str:
    opacity = f' opacity="{shape["opacity"]}"' if shape["opacity"] != 1 else ""
    return f'fill="{colour(str(shape["fill"]), theme)}"{_stroke(shape, theme)}{opacity}'


def _rect(shape: Shape, theme: int) -> str:
    if not shape["width"] or (shape["fill"] == "none" and shape["stroke"] == "none"):
        return ""
    box = " ".join(f'{name}="{shape[name]}"' for name in ("x", "y", "width", "height"))
    radius = f' rx="{shape["radius"]}"' if shape["radius"] else ""
    return f"<rect {box}{radius} {_paint(shape, theme)}>{_tip(shape)}</rect>"


def _path(shape: Shape, theme: int) -> str:
    return f'<path d="{shape["d"]}" {_paint(shape, theme)}>{_tip(shape)}</path>' if shape["d"] else ""


def _text(shape: Shape, theme: int) -> str:
    place = f'x="{shape["x"]}" y="{shape["y"]}" font-size="{shape["size"]}" text-anchor="{shape["anchor"]}"'
    weight = ' font-weight="bold"' if shape["weight"] == "bold" else ""
    fill = colour(str(shape["fill"]), theme)
    # Spaces in front are an indent; without this they would be dropped.
    keep = ' xml:space="preserve"' if "  " in str(shape["text"]) else ""
    return f'<text {place}{weight}{keep} fill="{fill}">{_tip(shape)}{_escaped(shape["text"])}</text>'


def _has_label(shape: Shape) -> bool:
    return bool(shape.get("label")) and float(shape["label_size"]) >= LEGIBLE


def _label(shape: Shape, theme: int) -> str:
    size = float(shape["label_size"])
    x = float(shape["x"]) + float(shape["width"]) / 2
    y = float(shape["y"]) + float(shape["height"]) / 2 + size * LABEL_DROP
    ink = colour("ink" if shape["fill"] == "none" else f"on-{shape['fill']}", theme)
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="middle"'
    return f'<text {place} fill="{ink}">{_escaped(shape["label"])}</text>'
