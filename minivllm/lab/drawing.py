"""How the lab's pictures look: thin lines, few colours, the paper's numbers in orange.

Read next: `figures/request_rate.py`, which draws with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from minivllm.files import write_file
from minivllm.text import printable

INK, MUTED, GRID, PAPER = "#1F2328", "#57606A", "#D8DCE1", "#E69F00"
OURS = "#0072B2"
ENDINGS = (".png", ".svg", ".pdf")


def check_ending(path: Path, option: str = "plot", endings: Sequence[str] = ENDINGS) -> None:
    """Raise `ValueError` unless the file's ending is that of a format for pictures."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"{option} must be a file that ends in {', '.join(endings)}, got {str(path)!r}")


def check_picture(path: Path) -> None:
    """Raise `ValueError` unless a picture can be written there: before the work, and not after it."""
    check_ending(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"plot must be in a folder that exists, got {str(path)!r}")


def write_picture(figure: Figure, path: Path, option: str = "plot", dpi: int = 150) -> None:
    """Write the picture; the file's ending says the format.

    Raises:
        CannotWrite: and a picture that was there before is still there.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=dpi)
    write_file(path, drawn.getvalue(), option)


def plain(text: str) -> str:
    """A text of the user's for a picture: matplotlib takes what stands between dollar signs for a formula."""
    return printable(text).replace("$", r"\$")


def panels(
    count: int, *, width: float = 5.2, height: float = 3.6, columns: int | None = None
) -> tuple[Figure, list[Any]]:
    """A figure with `count` panels side by side, or in rows of `columns`."""
    columns = min(count, columns or count)
    num_rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * num_rows), layout="constrained", facecolor="white")
    places = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for unused in places[count:]:
        unused.remove()
    axes = places[:count]
    for one in axes:
        one.grid(color=GRID, linewidth=0.6)
        one.set_axisbelow(True)
        one.tick_params(labelsize=8, colors=MUTED, length=0)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    return figure, list(axes)


def label(axes: Any, title: str, x: str = "", y: str = "") -> None:
    """Words around a panel."""
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)


def logarithmic(axes: Any) -> None:
    """A logarithmic x axis with plain numbers: 0.1, 1, 10."""
    axes.set_xscale("log")
    axis = axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def bars(axes: Any, names: list[str], ours: list[float], papers: list[tuple[float, float] | None]) -> None:
    """Our numbers as bars, the paper's as a mark or a bracket across each."""
    places = list(range(len(names)))
    axes.bar(places, ours, width=0.6, color=OURS, label="simulated here")
    told = False
    for place, paper in zip(places, papers, strict=True):
        if paper is None:
            continue
        low, high = paper
        name = None if told else "the paper"
        told = True
        axes.plot([place - 0.38, place + 0.38], [low, low], color=PAPER, linewidth=2.5, label=name)
        if high != low:
            axes.plot([place - 0.38, place + 0.38], [high, high], color=PAPER, linewidth=2.5)
            axes.plot([place + 0.38] * 2, [low, high], color=PAPER, linewidth=1)
    named = [f"{name}\n{value:.3g}" for name, value in zip(names, ours, strict=True)]
    axes.set_xticks(places, named, fontsize=8)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
    axes.legend(fontsize=8, frameon=False)
