"""The palette: every colour has a name here, and a figure only ever says the name.

One colour, one meaning. **Hues are requests**: the seven hues of Okabe and Ito, which people with any kind
of colour vision can tell apart, the same in both themes. The eighth request begins a second series, the same
hues deeper; its letter tells it apart in any case. **States are neutrals**, told by how dark they are, by
hatching and by outlines: prefill, decode, waiting, filled, wasted, cached, free. So no state ever looks like
a request's memory. Pictures in which no request of the engine occurs (a kernel's lanes, curves of several
systems) may use hues too, under names of their own.

A name stands for two colours, one on a light page and one on a dark one. Text on a fill is black or white,
whichever is easier to read.

Source: Okabe & Ito, "Color Universal Design" (2008); WCAG 2 for contrast. Read next: `scene.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
"""Of the first requests to arrive. There is no grey among them: it would look switched off."""
DEEPER = 0.42
"""Of black in the hues of the second series."""


def _mixed(first: str, second: str, share: float) -> str:
    """Some of the second colour in the first."""
    pairs = ((int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(low + share * (high - low)):02X}" for low, high in pairs)


FAMILIES = (*HUES, *(_mixed(hue, "#000000", DEEPER) for hue in HUES))

# name → (on a light page, on a dark page)
PALETTE: dict[str, tuple[str, str]] = {
    **{f"family{index}": (colour, colour) for index, colour in enumerate(FAMILIES)},
    "page": ("#FFFFFF", "#0E1117"),
    "ink": ("#1F2328", "#F0F2F6"),
    "muted": ("#57606A", "#A9AFBA"),
    "outline": ("#767B84", "#7D838F"),
    "rule": ("#D6D9DE", "#32363F"),
    "panel": ("#F1F3F6", "#1B1F29"),
    "cursor": ("#B00020", "#FF7B7B"),
    # States: neutrals, from what counts most to what counts least.
    "prefill": ("#39424E", "#DDE2E9"),
    "decode": ("#838D9B", "#7C8794"),
    "preempted": ("#57606A", "#A9AFBA"),
    "swapped": ("#A5ADB8", "#5C6572"),
    "waiting": ("#D4D7DC", "#454A55"),
    "filled": ("#59636F", "#B4BCC7"),
    "wasted": ("#FFFFFF", "#0E1117"),
    "cached": ("#E3E6EB", "#30353F"),
    "free": ("#FFFFFF", "#0E1117"),
    # What lanes of a warp do, and lines that are compared: no request occurs where they do.
    "read": ("#0072B2", "#0072B2"),
    "write": ("#D55E00", "#D55E00"),
    "atomic": ("#CC79A7", "#CC79A7"),
    "late": ("#9A3D00", "#FFA45C"),
    "line0": ("#0072B2", "#56B4E9"),
    "line1": ("#B87F00", "#E69F00"),
    "line2": ("#009E73", "#009E73"),
    "line3": ("#D55E00", "#D55E00"),
    "line4": ("#A9558A", "#CC79A7"),
}


RAMP_STEPS = 6
_ENDS = {"below": ("#004B7A", "#56B4E9"), "above": ("#9A3D00", "#FFA45C"), "heat": ("#6B2400", "#FFC08A")}
for _name, _ends in _ENDS.items():
    # "above1" … "above6": how far from nothing, which is the panel's colour.
    for _step in range(1, RAMP_STEPS + 1):
        PALETTE[f"{_name}{_step}"] = (
            _mixed(PALETTE["panel"][0], _ends[0], _step / RAMP_STEPS),
            _mixed(PALETTE["panel"][1], _ends[1], _step / RAMP_STEPS),
        )

LIGHT, DARK, BOTH = 0, 1, 2


def ramp(name: str, share: float) -> str:
    """The colour name for a share, 0 … 1, on "heat", "above" or "below"; the panel's for nothing."""
    step = min(RAMP_STEPS, ceil(share * RAMP_STEPS - 1e-9))
    return f"{name}{step}" if step > 0 else "panel"


def family(index: int) -> str:
    """The colour name of the request that arrived as number `index`; after two series they begin again."""
    return f"family{index % len(FAMILIES)}"


def colour(name: str, theme: int = LIGHT) -> str:
    """A name's colour as `#RRGGBB`; "none" stays "none" and "on-x" is the text colour on `x`.

    For `BOTH` it is a CSS variable (`css_rules`).
    """
    if name == "none":
        return "none"
    if theme == BOTH:
        return f"var(--{name})"
    if name.startswith("on-"):
        return ink_on(colour(name[3:], theme))
    return PALETTE[name][theme]


def luminance(hex_colour: str) -> float:
    """Relative luminance, 0 (black) … 1 (white)."""
    channels = [int(hex_colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 … 21; text needs 4.5."""
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def ink_on(fill: str) -> str:
    """Black or white, whichever can be read better on `fill`."""
    return max("#000000", "#FFFFFF", key=lambda ink: contrast(fill, ink))


def css_variables() -> str:
    """The palette as CSS custom properties; `light-dark()` follows the page's `color-scheme`."""
    inks = {f"on-{name}": (ink_on(light), ink_on(dark)) for name, (light, dark) in PALETTE.items()}
    rules = "".join(
        f"--{name}:light-dark({light},{dark});" for name, (light, dark) in (PALETTE | inks).items()
    )
    return f".player{{{rules}}}"


def css_rules(names: Iterable[str]) -> str:
    """Some of them for a picture by itself, which follows what its viewer prefers."""
    light, dark = ("".join(f"--{name}:{colour(name, theme)};" for name in names) for theme in (LIGHT, DARK))
    return f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
