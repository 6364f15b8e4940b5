"""The stage: where pages put their scenes, for the player to play.

    page ── scenes ──► player (browser) ── step ──► link ?trace=…&step=…

The scenes travel once, and nothing comes back: the player itself writes its step into the link. (A step that
was reported to Python while the reader opened another page could leave that page empty.)

Read next: `views/kv_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from minivllm.trace.reader import Trace
from minivllm.trace.timeline import Timeline
from minivllm.uncollected import without_collections
from viz import figures, player, presenting, take_away
from viz.language import _, current
from viz.loading import Run
from viz.player import Jump
from viz.scene import Scene

# The player's neutrals are those of Streamlit's theme here, and its head stops below Streamlit's own header.
THEME = (
    ".player{--page:var(--st-background-color);--free:var(--st-background-color);"
    "--wasted:var(--st-background-color);"
    "--panel:var(--st-secondary-background-color);--player-top:3.75rem}"
)

PLAYER = st.components.v2.component(
    "minivllm_player",
    html=player.html(),
    css=player.css() + THEME,
    js=player.javascript(),
)


def show(
    run: Run,
    name: str,
    make_scenes: Callable[[], Sequence[Scene]],
    own_jumps: Sequence[Jump] | None = None,
    steps: Sequence[int] | None = None,
    selected: str = "",
    start: int = 0,
    legend: Sequence[str] = (),
) -> None:
    """Play the scenes of a page.

    Args:
        name: tells these pictures from others of the same trace.
        make_scenes: called only if this session's server has not made them before.
        own_jumps: places to jump to, if others than those of the whole run matter here.
        steps: the run's step at each step of the scenes, if those are not the run's own.
        selected: the request for which the scenes are drawn; if the reader selects another one, the page runs
            again, with that one in `st.session_state.request`.
        start: where it begins for a reader who has not moved yet, and whom no link sends elsewhere.
        legend: what the signs of the pictures mean, line by line, with `code` and **bold**.
    """
    places = jumps(run.timeline) if own_jumps is None else own_jumps
    timeline = run.timeline

    def make_cards() -> list[dict[str, Any]]:
        return figures.request_cards(timeline)

    show_scenes(
        run.fingerprint,
        name,
        make_scenes,
        places,
        steps,
        start=start,
        make_cards=make_cards,
        selected=selected,
        trace=timeline.trace,
        legend=legend,
    )


def show_scenes(
    fingerprint: str,
    name: str,
    make_scenes: Callable[[], Sequence[Scene]],
    places: Sequence[Jump],
    steps: Sequence[int] | None = None,
    first: int = 0,
    start: int = 0,
    component: Callable[..., object] = PLAYER,
    make_cards: Callable[[], Sequence[Mapping[str, Any]]] = list,
    selected: str = "",
    trace: Trace | None = None,
    legend: Sequence[str] = (),
) -> None:
    """The same for any trace.

    Args:
        first: what the first step is called.
        start: where the player begins, if no link says otherwise.
        component: the player, if it looks otherwise.
        make_cards: the cards of all requests, if these can be selected.
        selected: as for `show`.
        trace: what the pictures are of, if it is a run of the engine: it can be taken along.
        legend: as for `show`.
    """
    key = f"player-{name}"

    def ask() -> None:
        """The reader has selected a request for which other pictures are needed."""
        if wanted := st.session_state[key].get("request"):
            st.session_state.request = str(wanted)

    with st.spinner(_("Drawing …")):
        number = int(st.session_state.get(presenting.NOW, 0))
        count, data = _payload(
            current(),
            fingerprint,
            name,
            make_scenes,
            places,
            steps,
            first,
            start,
            make_cards,
            selected,
            number,
            tuple(filter(None, legend)),
        )
    st.session_state[presenting.COUNT] = count
    if selected:
        component(data=data, key=key, on_request_change=ask)
    else:
        component(data=data, key=key)
    take_away.offer(name, data, make_scenes, trace)


@st.cache_resource(max_entries=16, show_spinner=False)
def _payload(
    language: str,
    fingerprint: str,
    name: str,
    _make_scenes: Callable[[], Sequence[Scene]],
    _jumps: Sequence[Jump],
    _steps: Sequence[int] | None,
    first: int,
    start: int,
    _make_cards: Callable[[], Sequence[Mapping[str, Any]]],
    selected: str,
    number: int,
    legend: tuple[str, ...],
) -> tuple[int, bytes]:
    """How many pictures there are on a wide screen, and all that the player gets."""
    player_id = f"{fingerprint}-{name}-{selected}-{language}" + (f"-{number}" if number else "")
    with without_collections():
        cards, scenes = _make_cards(), _make_scenes()
        data = player.player_data(
            player_id,
            fingerprint,
            presenting.shown(scenes, number),
            _jumps,
            _steps,
            first,
            start,
            linked=True,
            requests=cards,
            selected=next((number for number, card in enumerate(cards) if card["id"] == selected), -1),
            legend=legend,
        )
        packed = player.packed(data)
    return len(presenting.places(scenes)), packed


def jumps(timeline: Timeline) -> list[Jump]:
    """The places worth seeing in any run, and those of sharing in the runs that have them."""
    records = timeline.records

    def first(happens: Callable[[int], object]) -> int | None:
        return next((step for step in range(len(records)) if happens(step)), None)

    sharing = [
        Jump(
            _("first prefix hit"), first(lambda step: any(e.source == "cache" for e in records[step].shared))
        ),
        Jump(_("first fork"), first(lambda step: records[step].forked)),
        Jump(_("first copy-on-write"), first(lambda step: records[step].copied)),
        Jump(
            _("first eviction"),
            first(lambda step: any(e.reason == "capacity" for e in records[step].evicted)),
        ),
        Jump(_("first swap"), first(lambda step: records[step].swapped_out)),
        Jump(_("first failed step"), first(lambda step: records[step].abandoned)),
    ]
    return [
        Jump(_("first wait"), first(lambda step: records[step].num_waiting)),
        Jump(_("first preemption"), first(lambda step: records[step].preempted)),
        Jump(_("first finish"), first(lambda step: records[step].ended)),
        Jump(_("fullest pool"), max(range(len(records)), key=lambda step: records[step].num_used_blocks)),
        *(jump for jump in sharing if jump.step is not None),
    ]
