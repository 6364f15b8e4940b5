"""Page 2: the pool of physical blocks, and the block table of one request.

Read next: `viz/figures/block_pool.py`.
"""

from __future__ import annotations

from functools import partial

import streamlit as st

from minivllm.trace.timeline import Timeline
from viz import figures, stage
from viz.about import about
from viz.figures.common import MARKS, names_of, second_series
from viz.figures.request_cards import lives_at
from viz.figures.selected_tables import most_interesting_request
from viz.language import N_, _, sentences
from viz.loading import Run

TITLE = N_("KV pool")
URL = "kv_pool"
MOST_DIGITS = 9
"""Of a step in a link."""
TEASER = N_("Where the keys and values of every token are kept.")

INTRODUCTION = N_(
    "Each cell is one **physical block** of the KV cache; its colour and letter name its request, and the "
    "pale strip at its foot is the part still empty. To a request its memory looks like one long row of "
    "**logical blocks**; its **block table** says where they really are. Step until the selected request "
    "gets a new block: it may be any free one. Then jump to the fullest pool."
)
ABOUT_SHARING = N_(
    "A block may have **several readers**: its badge counts them (=3), and it is free only when the last of "
    "them has freed it. A sequence that is about to write to a shared block gets a **copy** first "
    "(**copy-on-write**): the arrow leads from the old block to the new one."
)
ABOUT_CACHE = N_(
    "A dashed cell without colour is **cached and evictable**: no block table maps it, but a request with "
    "the same prefix can reuse it, until it is evicted."
)
ABOUT_SWAP = N_(
    "The second grid is the **swap space** in the host's memory, for the blocks of preempted requests."
)


def page(run: Run) -> None:
    about(sentences([_(INTRODUCTION), *_what_else(run)]))
    request = _selected(run)

    legend = [
        *(f"**{MARKS[name].sign}** {MARKS[name].words}" for name in _marks_of(run)),
        _("Red outline: a block of the selected request. Click a block for its history."),
        _("In a block table the large number is the physical block, the small one the logical block."),
        second_series(names_of(run.timeline).values()),
    ]
    scenes = partial(figures.kv_pictures, run.timeline, request)
    stage.show(run, "kv", scenes, selected=request, legend=legend)


def _what_else(run: Run) -> list[str]:
    """The paragraphs that this run has something to show for."""
    records, header = run.timeline.records, run.timeline.trace.header
    parts = []
    if any(record.shared or record.forked for record in records):
        parts.append(_(ABOUT_SHARING))
    if header.prefix_cache:
        parts.append(_(ABOUT_CACHE))
    if header.num_host_blocks:
        parts.append(_(ABOUT_SWAP))
    return parts


def _marks_of(run: Run) -> list[str]:
    """The marks that can occur in this run."""
    records = run.timeline.records
    occurs = {
        "shared": any(record.shared or record.forked or record.merged for record in records),
        "copied": any(record.copied for record in records),
        "evicted": any(record.evicted for record in records),
        "out": any(record.swapped_out for record in records),
        "in": any(record.swapped_in for record in records),
    }
    return [name for name in MARKS if occurs.get(name, True)]


def _selected(run: Run) -> str:
    """The request whose table is drawn."""
    names = names_of(run.timeline)
    requests = list(names)
    chosen = (
        st.session_state.get("request")
        or st.query_params.get("request")
        or _living(run.timeline, st.query_params.get("step", ""))
    )
    index = requests.index(chosen) if chosen in requests else 0
    # Its own key would be forgotten when the page changes; ours is kept.
    request = st.selectbox(
        _("Show the block table of request"),
        requests,
        index,
        format_func=lambda item: names[item].full,
        width=360,
    )
    st.session_state.request = request
    return request


def _living(timeline: Timeline, step: str) -> str:
    """The most interesting request, if it lives at the step that the link names; else the first that does.

    The player would ask for it (`player/touch.js`), and all would be drawn twice.
    """
    at = min(int(step), timeline.num_steps - 1) if step.isdecimal() and len(step) < MOST_DIGITS else 0
    lives = [request for request in timeline.spans if lives_at(timeline, request, at)]
    best = most_interesting_request(timeline)
    return best if best in lives or not lives else lives[0]
