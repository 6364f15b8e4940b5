"""Page 7: how fast the run was for its users, and how well it used its memory and its batches.

Each panel has the name of the metric that says the same of a running server, and the PromQL by which Grafana
asks for it: what is learned here can be used there.

Read next: `viz/metric_charts.py`; `viz/measures.py`.
"""

from __future__ import annotations

import streamlit as st

from viz import figures, stage
from viz.about import about
from viz.counted import count
from viz.figures.captions import captions
from viz.figures.common import PHONE, WIDE
from viz.language import N_, _
from viz.loading import Run
from viz.metric_charts import metric_charts

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
BELOW = N_(
    "Below each chart: what `/metrics` would have said at the end of the run, and the **PromQL** by which "
    "Grafana asks Prometheus for the same panel of a running server."
)
TRY = N_(
    "Try this: find the time at which the most requests wait, and read off the other charts what was short "
    "at that moment: blocks in the pool, or slots in the batch?"
)
VIRTUAL = N_("Times are those of a **simulated** clock: no second of it has passed anywhere.")


def page(run: Run) -> None:
    about(f"{_(INTRODUCTION)}\n\n{_(STEP_BY_STEP)} {_(BELOW)}\n\n{_(TRY)}")
    if run.timeline.trace.header.clock != "wall":
        st.markdown(_(VIRTUAL))

    def scenes() -> list[figures.Scene]:
        timeline, told = run.timeline, captions(run.timeline)
        counted = count(timeline.trace, timeline.records)
        board = [
            figures.metrics_board(timeline, width, screen, counted, told)
            for width, screen in ((WIDE, "wide"), (PHONE, "narrow"))
        ]
        return [*board, *metric_charts(timeline, run.summary, counted, told)]

    stage.show(run, "metrics", scenes)
