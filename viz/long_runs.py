"""Long traces: a survey of the whole run as a curve, and a stretch of it in full on every page.

    the whole run    ▁▂▅▇▇▆▅▇▇▇▇▇▇▆▇▇▇▇▅▃▁        ranges of steps, from one pass over the file
                          └───┘                   the stretch that is shown; ?from=… in the link

A file of more than `MOST_BYTES` is never read into memory as a whole (`minivllm/trace/survey.py`).

Read next: `loading.py`, which asks here; `minivllm/trace/survey.py`.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import Path

import streamlit as st

from minivllm.trace.reader import Trace
from minivllm.trace.survey import Survey, survey
from viz.backends.svg import to_svg_column
from viz.figures.common import WIDE
from viz.language import _
from viz.scene import Scene, bars_path, rounded

MOST_BYTES = 24 * 2**20
"""A larger file is shown in stretches."""
STRETCH_EVENTS = 25_000
"""About so many events are shown at once."""
LEAST_STEPS, MOST_STEPS = 100, 4000
HEIGHT = 60.0
NAME = "from"


def is_long(size: int) -> bool:
    """Is a file of so many bytes shown in stretches?"""
    return size > MOST_BYTES


@st.cache_resource(max_entries=4, show_spinner=False)
def survey_of(path: Path, modified: int, size: int) -> Survey:
    """Read the file once. Raises what `survey` raises."""
    return survey(path)


def stretch(path: Path, modified: int, size: int, first: int) -> Trace:
    """The steps from `first` on, as many as are shown at once."""
    found = survey_of(path, modified, size)
    return found.stretch(min(first, max(found.num_steps - 1, 0)), num_shown(found))


def num_shown(found: Survey) -> int:
    """So many steps are shown at once."""
    return max(LEAST_STEPS, min(MOST_STEPS, STRETCH_EVENTS * found.num_steps // max(found.num_events, 1)))


def chosen_first(size: int) -> int:
    """The step at which the reader wants to begin: from the link, or from before; 0 for a short trace."""
    if not is_long(size):
        return 0
    said = st.query_params.get(NAME) or str(st.session_state.get("first shown", 0))
    first = int(said) if said.isdecimal() and len(said) < 16 else 0
    st.session_state["first shown"] = first
    return first


def chooser(path: Path, modified: int, size: int, first: int) -> None:
    """The whole run as a curve, and a slider for the stretch that is shown; nothing for a short trace."""
    if not is_long(size):
        return
    found = survey_of(path, modified, size)
    shown = num_shown(found)
    if found.num_steps <= shown:
        return
    st.query_params[NAME] = str(first)
    words = _("The whole run: {events} events in {steps} steps. Step 0 below is step {first} of it.").format(
        events=f"{found.num_events:,}", steps=f"{found.num_steps:,}", first=f"{first:,}"
    )
    picture = b64encode(to_svg_column([curve(found, first, shown)], 0).encode()).decode()
    address = f"data:image/svg+xml;base64,{picture}"
    st.html(f'<img style="width:100%" alt="{escape(words, quote=True)}" src="{address}">')
    st.caption(words)
    key = "stretch of the run"
    st.session_state[key] = first

    def move() -> None:
        st.session_state["first shown"] = st.session_state[key]
        st.query_params[NAME] = str(st.session_state[key])

    last = max(1, found.num_steps - shown)
    st.slider(_("Show the steps from"), 0, last, step=max(1, shown // 2), key=key, on_change=move)


def curve(found: Survey, first: int, num_steps: int) -> Scene:
    """Blocks in use over the whole run, the most of each range of steps, with the stretch that is shown."""
    scene = Scene(_("Blocks in use over the whole run"), WIDE, HEIGHT + 4)
    unit = WIDE / max(found.num_steps, 1)
    top = found.header.num_blocks
    bars = []
    for part in found.ranges:
        height = rounded(part.most_used_blocks / top * HEIGHT)
        width = rounded((part.last - part.first + 1) * unit)
        bars.append((rounded(part.first * unit), rounded(HEIGHT + 2 - height), width, height))
    scene.path(bars_path(bars), fill="filled")
    scene.path(f"M0,{HEIGHT + 2:g}L{WIDE:g},{HEIGHT + 2:g}", stroke="outline", stroke_width=1.0)
    width = max(3.0, num_steps * unit)
    scene.rect(rounded(first * unit), 1, rounded(width), HEIGHT + 2, stroke="cursor", stroke_width=2.0)
    scene.begin_step("")
    return scene
