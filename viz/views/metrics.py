"""Page 7: how fast the run was for its users, and how well it used its memory and its batches.

Each panel has the name of the metric that says the same of a running server, and the PromQL by which Grafana
asks for it: what is learned here can be used there.

Read next: `viz/metric_panels.py`; `viz/measures.py`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from html import escape

import streamlit as st

from viz import figures, stage
from viz.about import about
from viz.charts.style import Chart
from viz.counted import Counted, count
from viz.figures.common import PHONE, WIDE
from viz.figures.metrics_board import in_words
from viz.language import N_, _, current, sentences
from viz.loading import Run
from viz.metric_panels import Panel, owner_panels, queries_in_words, request_panels, user_panels
from viz.palette import DARK, LIGHT

TITLE = N_("Metrics")
URL = "metrics"
TEASER = N_("The numbers by which a serving engine is judged, each with its distribution.")

INTRODUCTION = N_(
    "A serving engine is judged twice. **Its users** feel latencies: how long until the first token "
    "(**TTFT**), how long between two (**inter-token latency**), how long for everything (**end to end**). "
    "**Its owner** counts tokens per second, and how much of the memory and of each batch is used. Look "
    "for where the two disagree: a fuller batch gives more tokens per second, and each of them a little "
    "later."
)
STEP_BY_STEP = N_(
    "A running server says at `/metrics` what it does (**gauges**, which go up and down) and what it has "
    "done (**counters**, which only grow), under vLLM's names. Prometheus fetches that every few seconds. "
    "Here is what it would have fetched after each step: the slope of a counter is what `rate()` makes of it."
)
BESIDE = N_(
    "Beside each chart: what `/metrics` would have said at the end of the run, and the **PromQL** by which "
    "Grafana asks Prometheus for the same panel of a running server."
)
TRY = N_(
    "Try this: find the time at which the most requests wait, and read off the other charts what was short "
    "at that moment: blocks in the pool, or slots in the batch?"
)
VIRTUAL = N_("Times are those of a **simulated** clock: no second of it has passed anywhere.")
NO_METRIC = N_("Only a trace knows this: no metric of vLLM says it.")


def page(run: Run) -> None:
    about(f"{_(INTRODUCTION)}\n\n{_(STEP_BY_STEP)}")
    if run.timeline.trace.header.clock != "wall":
        st.markdown(_(VIRTUAL))
    with st.spinner(_("Counting …")):
        counted = _counted(run.fingerprint, run)
    st.header(_("Step by step"))
    _board(run, counted)
    st.header(_("What users feel"))
    st.markdown(_(BESIDE))
    _show(run, counted, "latencies", user_panels(run, counted))
    st.header(_("What the owner counts"))
    st.markdown(_(TRY))
    _show(run, counted, "over time", owner_panels(run, counted))
    st.header(_("Finished requests"))
    _show(run, counted, "requests", request_panels(counted))


def _board(run: Run, counted: Counted) -> None:
    def scenes() -> list[figures.Scene]:
        return [
            figures.metrics_board(run.timeline, width, screen, counted)
            for width, screen in ((WIDE, "wide"), (PHONE, "narrow"))
        ]

    stage.show(run, "metrics", scenes)


def _show(run: Run, counted: Counted, name: str, panels: list[Panel]) -> None:
    """Two charts side by side where there is room, below each other where there is not."""
    theme = DARK if st.context.theme.type == "dark" else LIGHT
    with st.spinner(_("Drawing …")):
        pictures = _pictures(current(), run.fingerprint, name, theme, [panel.draw for panel in panels])
    for row in range(0, len(panels), 2):
        for column, panel, picture in zip(
            st.columns(2, gap="large"), panels[row : row + 2], pictures[row : row + 2], strict=False
        ):
            with column:
                _one(panel, picture, counted)


def _one(panel: Panel, picture: str | None, counted: Counted) -> None:
    st.markdown(f"**{panel.title}**")
    if picture:
        words = escape(f"{panel.title}: {panel.numbers}", quote=True)
        st.html(f'<img style="width:100%;max-width:44rem" alt="{words}" src="{picture}">')
    st.caption(sentences([panel.numbers, panel.sentence]))
    if not panel.key:
        st.caption(_(NO_METRIC))
        return
    last = counted.last
    said = [f"`{name}` {in_words(name, last[name])}" for name in panel.samples if name in last]
    st.markdown(_("At the end: {said}.").format(said=_(", ").join(said)))
    st.code(queries_in_words(panel.key), language=None, wrap_lines=True)


@st.cache_resource(max_entries=4, show_spinner=False)
def _counted(fingerprint: str, _run: Run) -> Counted:
    return count(_run.timeline.trace)


@st.cache_resource(max_entries=16, show_spinner=False)
def _pictures(
    language: str, fingerprint: str, name: str, theme: int, _draws: list[Callable[[int], Chart] | None]
) -> list[str | None]:
    """The charts as addresses that hold the whole picture."""
    return [
        f"data:image/svg+xml;base64,{b64encode(draw(theme).svg().encode()).decode()}" if draw else None
        for draw in _draws
    ]
