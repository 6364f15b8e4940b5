"""Curves: measured numbers that belong to no run of the engine, such as how a recurrent cell forgets.

A walkthrough writes them as one JSON document, and a figure draws them: so a picture in a text shows what was
measured, and not what was remembered.

    {"event": "Curves", "title": "…", "across": "distance", "up": "influence", "x": [1, 2, 4], "curves": [
        {"name": "attention", "values": [0.5, 0.3, 0.2]}, …]}

Read next: `viz/figures/curves.py`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from minivllm.files import write_file
from minivllm.trace.lines import MOST_LINE_BYTES, UNREADABLE, TraceError, open_trace, words

MOST_CURVES = 6


class Curve(msgspec.Struct, frozen=True):
    """One line: a positive number for each x."""

    name: str
    values: tuple[float, ...]


class Curves(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """Lines over the same positive x, in ascending order, with what the axes mean."""

    title: str
    across: str
    up: str
    x: tuple[float, ...]
    curves: tuple[Curve, ...]


def write_curves(path: Path, curves: Curves) -> None:
    """Write them to a file.

    Raises:
        CannotWrite: and a file that was there before is still there.
    """
    write_file(path, msgspec.json.encode(curves) + b"\n", "curves")


def read_curves(path: Path) -> Curves:
    """Open a file that `write_curves` wrote.

    Raises:
        TraceError: it cannot be read, is something else, or holds what cannot be drawn.
    """
    with open_trace(path) as file:
        text = file.read(MOST_LINE_BYTES + 1)
    try:
        found = msgspec.json.decode(text, type=Curves)
    except UNREADABLE as error:
        raise TraceError(f"{words(path)} holds no curves: {words(error)}") from error
    if not found.x or not 1 <= len(found.curves) <= MOST_CURVES:
        raise TraceError(f"{words(path)}: there must be an x, and from 1 to {MOST_CURVES} curves")
    if any(len(curve.values) != len(found.x) for curve in found.curves):
        raise TraceError(f"{words(path)}: every curve must have a value for each x")
    if min(min(found.x), *(min(curve.values) for curve in found.curves)) <= 0:
        raise TraceError(f"{words(path)}: all numbers must be positive, for their logarithms are drawn")
    return found
