"""A picture in a notebook: `show(trace, "kv_pool")` plays in a cell of Jupyter, VS Code or Colab.

    from viz import show
    show("run.jsonl", "kv_pool")
    show("run.jsonl", "block_table", request="3", step=12)
    show(["static.jsonl", "fcfs.jsonl"], "compare")

The cell holds a whole page in a frame of its own: nothing is fetched, and it still plays when the notebook is
opened elsewhere (in JupyterLab once it is trusted: of a stranger's notebook it shows no frame). Click into
it, then ← and → step.

Read next: `playing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from viz.language import current, speaking
from viz.playing import cards_of, html_of, scenes_of
from viz.scene import Scene

CELL_WIDTH = 960
"""Of a usual notebook, in pixels."""
CONTROLS = 190
"""The player's own height."""
MOST_HEIGHT = 900


class Shown:
    """What `show` returns: a notebook draws it, `save` writes it to a file."""

    def __init__(self, html: str, title: str, height: int) -> None:
        self.html, self.title, self.height = html, title, height

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:0;resize:vertical;overflow:auto"
        page, title = escape(self.html), escape(self.title)
        return f'<iframe srcdoc="{page}" title="{title}" style="{style}"></iframe>'

    def save(self, path: str | Path) -> None:
        """Write the page to a file. Raises `CannotWrite` if that cannot be."""
        from minivllm.files import write_file

        write_file(path, self.html, "path")


def show(
    trace: str | Path | Sequence[str | Path],
    page: str = "kv_pool",
    *,
    step: int = 0,
    height: int | None = None,
    language: str | None = None,
    **options: Any,
) -> Shown:
    """A page or a figure of a trace, playing in the cell of a notebook.

    Args:
        trace: the file that `LLM(trace=…)` or a command has written; two of them for "compare".
        page: a page of the dashboard by its link's name, or one figure; a wrong one is answered with all.
        step: where it begins; a negative one counts from the end.
        height: of the frame, in pixels; chosen by the pictures if left out.
        language: "en" or "zh"; the current one if left out.
        options: of the figures: `request`, `kernel`, `block`, `warp`, `screen`.

    Raises:
        ValueError: there is no such page, figure, option or step.
        TraceError: the file cannot be read.
    """
    paths = [Path(trace)] if isinstance(trace, str | Path) else [Path(item) for item in trace]
    if not paths:
        raise ValueError("trace must be at least one file, got none")
    if height is not None and height < 1:
        raise ValueError(f"height must be at least 1 pixel, got {height}")
    with speaking(language or current()):
        scenes = scenes_of(page, paths, options, step)
        title = scenes[0].title
        return Shown(html_of(scenes, step, cards_of(page, paths)), title, height or _height(scenes))


def _height(scenes: Sequence[Scene]) -> int:
    """In two columns, as the player lays them, if there are several."""
    columns = 2 if len(scenes) > 1 else 1
    heights = [scene.height * min(CELL_WIDTH / columns / scene.width, 1.25) + 20 for scene in scenes]
    return round(min(max(sum(heights) / columns, max(heights)) + CONTROLS, MOST_HEIGHT))
