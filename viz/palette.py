"""The palette: every colour has a name here, and a figure only ever says the name.

A name stands for two colours, one on a light page and one on a dark one. The data colours are those of
Okabe and Ito, which people with any kind of colour vision can tell apart; they stay the same in both themes
and only the neutrals flip. Text on a fill is black or white, whichever is easier to read.

Source: Okabe & Ito, "Color Universal Design" (2008); WCAG 2 for contrast. Read next: `scene.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

# Eight request families; the ninth request has the first one's colour again, but never its letter.
FAMILIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#999999")

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
    "waiting": ("#D4D7DC", "#454A55"),
    "prefill": ("#E69F00", "#E69F00"),
    "decode": ("#0072B2", "#56B4E9"),
    "preempted": ("#D55E00", "#D55E00"),
    "filled": ("#009E73", "#009E73"),
    "wasted": ("#F0E442", "#F0E442"),
    "free": ("#FFFFFF", "#0E1117"),
    "cached": ("#E3E6EB", "#30353F"),
    "swapped": ("#CC79A7", "#CC79A7"),
}


def _mixed(first: str, second: str, share: float) -> str:
    """Some of the second colour in the first."""
    pairs = ((int(first[at : at + 2], 16), int(second[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(low + share * (high - low)):02X}" for low, high in pairs)


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
    """The colour name of the request that arrived as number `index`."""
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
