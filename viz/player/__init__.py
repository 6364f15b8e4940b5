"""The player, seen from Python: scenes go in, the step the reader stands at comes out.

`player.html`, `player.css` and the parts of `player.js` make a small program that runs in the browser: it
plays scenes without asking the server. A round trip through Streamlit takes 80 ms before anything is drawn,
the player a few milliseconds (`python -m viz.bench_player`), which is why it exists.

Read next: `player.js`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from minivllm.text import printable
from viz.language import _
from viz.palette import css_variables
from viz.scene import Scene
from viz.texts import texts_of_player

HERE = Path(__file__).parent
COMMON = ("words.js", "changes.js", "picture.js", "hands.js")
"""What every player needs."""
TOUCH = (
    "view.js", "cards.js", "panel.js", "notes.js", "focus.js", "find.js", "range.js", "touch.js", "take.js",
)  # fmt: skip
"""What a player needs whose pictures can be touched."""


class Jump(NamedTuple):
    """A button that goes to a step, or is greyed out if there is no such step in this run."""

    label: str
    step: int | None


def html() -> str:
    return (HERE / "player.html").read_text(encoding="utf-8")


def css() -> str:
    return css_variables() + (HERE / "player.css").read_text(encoding="utf-8")


def javascript() -> str:
    """Its files as one ES module whose default export is `mount`."""
    return _module("player.js")


def framed() -> str:
    """What a page of a player does besides, in a frame of another page."""
    return (HERE / "framed.js").read_text(encoding="utf-8")


def live_html() -> str:
    return (HERE / "live.html").read_text(encoding="utf-8")


def live_css() -> str:
    return css() + (HERE / "live.css").read_text(encoding="utf-8")


def live_javascript() -> str:
    """The player of a run that goes on, as `javascript`."""
    return _module("live.js")


def _module(last: str) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in _parts(last))


def _parts(last: str) -> tuple[str, ...]:
    return (*COMMON, *TOUCH, last) if last == "player.js" else (*COMMON, last)


def words(last: str = "player") -> dict[str, str]:
    """What the player of this name says, in the current language: its English words → those of the reader."""
    return {text: _(text) for text in _texts(last)}


@cache
def _texts(last: str) -> list[str]:
    files = (*_parts(f"{last}.js"), f"{last}.html")
    return [text for name in files for text in texts_of_player(HERE / name)]


def player_data(
    player_id: str,
    trace_id: str,
    scenes: Sequence[Scene],
    jumps: Sequence[Jump] = (),
    steps: Sequence[int] | None = None,
    first: int = 0,
    start: int = 0,
    linked: bool = False,
    requests: Sequence[Mapping[str, Any]] = (),
    selected: int = -1,
    legend: Sequence[str] = (),
) -> dict[str, Any]:
    """What the player gets.

    Args:
        player_id: changes whenever the pictures do.
        trace_id: pages with the same trace share their step.
        scenes: at least one; all with the same number of steps.
        steps: the trace's step at each of the scenes' steps, never decreasing; None if they are the same.
        first: what the reader is told that the first step is called.
        start: the step to begin with.
        linked: the page's link follows the step and the selected request.
        requests: the cards of all requests (`figures/request_cards.py`), if these can be selected.
        selected: the number of the request for which the pictures were drawn; −1 if they suit any.
        legend: what their signs mean, in lines with `code` and **bold** in them.
    """
    captions = scenes[0].captions
    assert all(scene.num_steps == len(captions) for scene in scenes), "one step for all pictures of a page"
    assert steps is None or len(steps) == len(captions), "one step of the trace for each of the pictures"
    return {
        "id": player_id,
        "trace": trace_id,
        "captions": captions,
        "steps": steps,
        "first": first,
        "start": start,
        "linked": linked,
        "words": words(),
        "requests": requests,
        "selected": selected,
        "legend": legend,
        "jumps": [{"label": printable(jump.label), "step": jump.step} for jump in jumps],
        "blocks": next((scene.histories for scene in scenes if scene.histories), None),
        "scenes": [scene.to_data() for scene in scenes],
    }


def packed(data: dict[str, Any]) -> bytes:
    """The same as bytes, the id in front: after a rerun the player need not parse what it has."""
    return f"{data['id']}\n".encode() + msgspec.json.encode(data)
