"""Page 3: who is in the batch at every step, and what fills the token budget."""

from __future__ import annotations

import streamlit as st

from viz import figures, stage
from viz.figures.common import NARROW, WIDE
from viz.loading import Run

TITLE = "Scheduler"
URL = "scheduler"
TEASER = "Who may advance at every step, and who waits."

INTRODUCTION = (
    "One row per request, one column per step; the future is dimmed. **Continuous batching**: a request "
    "joins as soon as there is room and leaves when it is done, whatever the others do. Below, what each "
    "step computes: a long prompt is cut into **chunks** that fill what the decodes leave of the **token "
    "budget**. Click anywhere to go to that step."
)
TRY_PREEMPTION = "Jump to the first preemption: who had to go, and who took the blocks?"
TRY_WAIT = "Jump to the fullest pool: who can still join, and what would happen if all went on growing?"


def page(run: Run) -> None:
    preempted = any(record.preempted for record in run.timeline.records)
    st.markdown(f"{INTRODUCTION} {TRY_PREEMPTION if preempted else TRY_WAIT}")

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        return [
            draw(timeline, width, screen)
            for width, screen in ((WIDE, "wide"), (NARROW, "narrow"))
            for draw in (figures.scheduler_gantt, figures.batch_composition)
        ]

    stage.show(run, "scheduler", scenes)
