"""Page 3: which requests are in the batch at every step, and what fills the token budget.

Read next: `viz/figures/scheduler_gantt.py`.
"""

from __future__ import annotations

from viz import figures, stage
from viz.about import about
from viz.figures.common import NARROW, WIDE
from viz.language import N_, _, sentences
from viz.loading import Run

TITLE = N_("Scheduler")
URL = "scheduler"
TEASER = N_("Which requests compute in every step, and which ones wait.")

INTRODUCTION = N_(
    "One row per request, one column per step; the future is dimmed. **Continuous batching**: the scheduler "
    "admits a request as soon as there is room, and a finished one leaves the batch at once, whatever the "
    "others do. Below, what each step computes: a long prompt is cut into **chunks** that fill what the "
    "decodes leave of the **token budget**. Click anywhere to go to that step."
)
TRY_STATIC = N_(
    "But the batches of this run are **static**: they begin and end together. Hatched is what that costs: "
    "requests that are **parked** until the slowest is done, and **padding** up to the longest prompt. Jump "
    "to the first wait: how many slots in the batch do nothing meanwhile?"
)
TRY_PREEMPTION = N_(
    "Jump to the first preemption: which request is preempted, and which one gets its blocks?"
)
TRY_WAIT = N_(
    "Jump to the fullest pool: can another request be admitted, and what if all of these go on growing?"
)


def page(run: Run) -> None:
    records = run.timeline.records
    if any(record.num_padding_tokens for record in records):
        to_try = TRY_STATIC
    else:
        to_try = TRY_PREEMPTION if any(record.preempted for record in records) else TRY_WAIT
    about(sentences([_(INTRODUCTION), _(to_try)]))

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        told = figures.captions(timeline)
        return [
            draw(timeline, width, screen, told)
            for width, screen in ((WIDE, "wide"), (NARROW, "narrow"))
            for draw in (figures.scheduler_gantt, figures.batch_composition)
        ]

    stage.show(run, "scheduler", scenes)
