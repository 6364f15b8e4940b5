"""Page 2: the pool of physical blocks, and the block table of one request."""

from __future__ import annotations

import streamlit as st

from viz import figures, stage
from viz.figures.common import MARKS, names_of
from viz.loading import Run

TITLE = "KV pool"
URL = "kv_pool"
TEASER = "Where the keys and values of every token are kept."

INTRODUCTION = (
    "Each cell is one **physical block** of the KV cache; its colour and letter say whose it is, and the "
    "pale strip at its foot is the part still empty. To a request its memory looks like one long row of "
    "**logical blocks**; the red arrows, its **block table**, say where they really are. Step until the "
    "selected request takes a new block: it may be any free one. Then jump to the fullest pool."
)


def page(run: Run) -> None:
    st.markdown(INTRODUCTION)
    request = _selected(run)

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        pool = figures.block_pool(timeline, request)
        return [pool, figures.memory_over_time(timeline), figures.block_table(timeline, request)]

    stage.show(run, f"kv-{request}", scenes)
    signs = ", ".join(f"**{mark.sign}** {mark.words}" for mark in MARKS.values())
    st.caption(f"{signs}; red outline: a block of the selected request. Point at a block to read about it.")


def _selected(run: Run) -> str:
    """The request whose table is drawn."""
    names = names_of(run.timeline)
    requests = list(names)
    chosen = st.session_state.get("request") or _most_interesting(run)
    index = requests.index(chosen) if chosen in requests else 0
    # Its own key would be forgotten when the page changes; ours is kept.
    request = st.selectbox(
        "Show the block table of request",
        requests,
        index,
        format_func=lambda item: names[item].full,
        width=360,
    )
    st.session_state.request = request
    return request


def _most_interesting(run: Run) -> str:
    """The longest request, of the preempted ones if there are any: most happens to its blocks."""
    lengths = {seq.request: len(seq.token_ids) for seq in run.timeline.sequences.values()}
    preempted = {name for record in run.timeline.records for name, _ in record.preempted}
    return max(lengths, key=lambda request: (request in preempted, lengths[request]))
