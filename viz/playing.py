"""Playing without a dashboard: the pictures of a page, by its name, as one page that plays by itself.

    html_of(scenes_of("kv_pool", [path]))                           what the page "KV pool" shows
    html_of(scenes_of("block_table", [path], {"request": "3"}))     one figure (`pictures.py` lists them)

Read next: `notebook.py` and `book/`, which put such pages into cells and into a book.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from minivllm.trace.reader import read_trace
from minivllm.trace.timeline import make_timeline
from viz import figures, player
from viz.backends.html import page_of
from viz.language import current
from viz.pictures import FIGURES, Options, find_figure
from viz.scene import Scene

PAGES = {
    "overview": ("overview",),
    "kv_pool": ("kv_pictures",),
    "scheduler": ("scheduler_gantt", "batch_composition"),
    "beam_tree": ("beam_tree", "block_pool"),
    "prefix_tree": ("prefix_tree",),
    "structured_output": ("allowed_tokens",),
    "speculation": ("speculation",),
    "ranks": ("rank_lanes", "rank_load", "rank_ownership"),
    "roofline": ("roofline", "decode_intensity"),
    "metrics": ("metrics_board", "metric_charts"),
    "compare": ("comparison",),
    "microscope": ("kernel_source", "kernel_lanes", "kernel_blocks", "kernel_totals"),
    "flash_attention": (
        "kernel_matrix",
        "kernel_scores",
        "kernel_softmax",
        "kernel_shared",
        "kernel_traffic",
    ),
}
"""Page of the dashboard, by its link's name → its figures."""
WITH_CARDS = ("overview", "kv_pool", "scheduler")
"""Pages on which requests and blocks can be clicked, and tell about themselves."""
MOST_BYTES = 40_000_000
"""Of a page: what a browser opens without complaint."""


def scenes_of(
    name: str, traces: Sequence[Path], options: Options | None = None, step: int = 0
) -> list[Scene]:
    """The pictures of a page or of one figure.

    Args:
        options: of its figures; each takes those that it knows.
        step: the one that is shown first, which chooses what some pictures of kernels show.

    Raises:
        ValueError: there is no such page, figure, option, request or kernel; too few traces.
        TraceError: a trace cannot be read.
    """
    names, given = _figures(name), options or {}
    known = {option for figure in names for option in FIGURES[figure].options}
    if unknown := sorted(set(given) - known):
        told = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has: {told}")
    scenes: list[Scene] = []
    for number, figure_name in enumerate(names):
        own = {key: value for key, value in given.items() if key in FIGURES[figure_name].options}
        figure = find_figure(figure_name, own)
        if len(traces) < figure.num_traces:
            raise ValueError(f"{name} needs {figure.num_traces} traces, got {len(traces)}")
        try:
            scenes += figure.make(traces[: figure.num_traces], own, step)
        except ValueError:
            if not number:  # without its first picture a page is nothing; the others show what there is
                raise
    if not scenes:
        raise ValueError(f"{name}: {traces[0].name} holds nothing that this page could show")
    return [scene for scene in scenes if scene.num_steps == scenes[0].num_steps]


def cards_of(name: str, traces: Sequence[Path]) -> list[dict[str, Any]]:
    """The cards of all requests, if a page has any to show."""
    if name not in WITH_CARDS:
        return []
    return figures.request_cards(make_timeline(read_trace(traces[0])))


def num_traces(name: str) -> int:
    """How many traces a page or a figure takes. Raises `ValueError` if there is none of this name."""
    return max(FIGURES[figure].num_traces for figure in _figures(name))


def _figures(name: str) -> tuple[str, ...]:
    if name not in PAGES and name not in FIGURES:
        raise ValueError(
            f"page must be one of {', '.join(PAGES)}, or a figure: {', '.join(sorted(FIGURES))}; got {name!r}"
        )
    return PAGES.get(name) or (name,)


def html_of(
    scenes: Sequence[Scene], step: int = 0, cards: Sequence[dict[str, Any]] = (), *, beside: bool = False
) -> str:
    """The page, in the current language, for a frame of another page.

    Args:
        step: where the player begins; a negative one counts from the end.
        cards: of all requests (`cards_of`).
        beside: the player is a file beside it (`backends/html.py`).

    Raises:
        ValueError: there is no such step, or the page would be larger than `MOST_BYTES`.
    """
    count = scenes[0].num_steps
    if not -count <= step < count:
        raise ValueError(f"step must lie in {-count} … {count - 1}, got {step}")
    identity = repr((step, current(), [scene.title for scene in scenes], scenes[0].captions))
    own = sha256(identity.encode()).hexdigest()[:16]
    data = msgspec.json.encode(player.player_data(own, own, scenes, start=step % count, requests=cards))
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"this page would have {len(data) / 1e6:.0f} MB, and the most is {MOST_BYTES / 1e6:.0f}: "
            "open the trace in the dashboard, which sends large pictures differently"
        )
    return page_of(scenes[0].title, data, framed=True, beside=beside)
