"""The page of ranks: what each of them does when, how they divide the time of a step, and who owns what.

Read next: `viz/figures/rank_lanes.py`.
"""

from __future__ import annotations

from viz import empty, figures, stage
from viz.about import about
from viz.figures.common import PHONE, WIDE
from viz.figures.ranks import RankRun, rank_run
from viz.language import N_, _, sentences
from viz.loading import Run
from viz.player import Jump

TITLE = N_("Ranks")
URL = "ranks"
TEASER = N_("One model on several processes: who computes, who waits, and who owns what.")

INTRODUCTION = N_(
    "A **rank** is one process with one device. Ranks of a **tensor-parallel** group share every layer: each "
    "computes its own heads and rows, and after each attention and each MLP all exchange their parts "
    "(**all-gather**). The **stages** of a **pipeline** share the layers: each hands hidden states to the "
    "next. Below, one lane a rank, all on one clock, around the step at which you are; a click on a number "
    "leads to that step."
)
TRY_TENSOR = N_("Which rank waits for which? The last to come to an all-gather waits for none.")
TRY_PIPELINE = N_(
    "Look at the same moment in both lanes: while one stage computes step {step}, which one does the other "
    "compute? What is empty is the **bubble**."
)
WITHOUT = N_("This run was computed by one rank, or tells of none. Make a run of two:")
HOW = """# in the shell: two processes that share every layer
minivllm generate "Once upon a time" --tensor-parallel-size 2 --trace ranks.jsonl
# two stages, each busy with requests of its own
minivllm generate "Once upon a time" "Paging is" --pipeline-parallel-size 2 --trace stages.jsonl
minivllm dashboard ranks.jsonl"""


def page(run: Run) -> None:
    found = rank_run(run.timeline)
    if found is None:
        about(_(INTRODUCTION))
        empty.tell(URL, _(WITHOUT), HOW)
        return
    middle = sorted(found.steps)[len(found.steps) // 2]
    to_try = _(TRY_PIPELINE).format(step=middle) if found.num_stages > 1 else _(TRY_TENSOR)
    about(sentences([_(INTRODUCTION), to_try]))

    def scenes() -> list[figures.Scene]:
        pictures = [figures.rank_lanes, figures.rank_load]
        if found.shapes:
            pictures.append(figures.rank_ownership)
        return [
            draw(run.timeline, width, screen)
            for width, screen in ((WIDE, "wide"), (PHONE, "narrow"))
            for draw in pictures
        ]

    stage.show(run, "ranks", scenes, _jumps(run, found), start=middle)


def _jumps(run: Run, found: RankRun) -> list[Jump]:
    """The places worth seeing where ranks are compared."""
    lengths = {
        step: max(one.end for one in times) - min(one.start for one in times)
        for step, times in found.steps.items()
    }
    decodes = [
        step
        for step in found.steps
        if run.timeline.records[step].batch
        and all(item.phase == "decode" for item in run.timeline.records[step].batch)
    ]
    return [
        Jump(_("first step of ranks"), min(found.steps)),
        Jump(_("first step that only decodes"), min(decodes, default=None)),
        Jump(_("longest step"), max(lengths, key=lambda step: lengths[step])),
        Jump(_("last step of ranks"), max(found.steps)),
    ]
