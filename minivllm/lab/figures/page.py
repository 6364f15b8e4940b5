"""All figures on one page: `figures.md` beside its pictures, and everything as data.

Every page says when it was made, from which seed, by which command: a figure that cannot be made again is a
picture. Read next: `commands.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from minivllm.files import write_file
from minivllm.lab.drawing import write_picture
from minivllm.lab.figures.result import FigureResult
from minivllm.trace.recorder import timestamp

INTRODUCTION = (
    "The papers' figures, redrawn by minivllm's simulator: the real scheduler and memory, and a roofline "
    "instead of a GPU. Orange is what the papers measured; everything else is ours. No number here was "
    "fitted to theirs: what is assumed is listed under each figure, with the reason."
)


def write_page(folder: Path, results: Sequence[FigureResult], *, seed: int, command: str) -> Path:
    """Write pictures, page and data into a folder that exists; returns the page.

    Raises:
        CannotWrite: one of them cannot be written.
    """
    made = timestamp()
    for result in results:
        write_picture(result.picture, folder / f"{result.name}.png", "out", dpi=110)
    page = folder / "figures.md"
    write_file(page, _page(results, made, seed, command), "out")
    data = {"made": made, "seed": seed, "figures": [result.as_data() for result in results]}
    write_file(folder / "figures.json", json.dumps(data, indent=1) + "\n", "out")
    return page


def _page(results: Sequence[FigureResult], made: str, seed: int, command: str) -> str:
    parts = ["# The papers' figures", INTRODUCTION, f"Made {made} by `{command}`, seed {seed}."]
    for result in results:
        parts += [f"## {result.title}", f"Source: {result.source}.", f"![{result.title}]({result.name}.png)"]
        parts.append(_table(("", "here", "paper", "here / paper"), [row.in_words() for row in result.rows]))
        if result.differences:
            parts.append("**Where it differs by more than a quarter**")
            parts.append("\n".join(f"- {sentence}" for sentence in result.differences))
        parts.append("<details><summary>Assumptions</summary>")
        parts.append(_table(("name", "value", "reason"), result.assumptions))
        parts.append("</details>")
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)
