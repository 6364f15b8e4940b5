"""Page 4: one beam search as a tree, and the blocks that its beams share.

Read next: `viz/figures/beam_tree.py`.
"""

from __future__ import annotations

from viz import empty, figures, links, stage
from viz.about import about
from viz.figures.common import PHONE, WIDE, names_of
from viz.language import N_, _
from viz.loading import Run
from viz.player import Jump

TITLE = N_("Beam tree")
URL = "beam_tree"
TEASER = N_("How a search branches, and how little memory its branches need.")

INTRODUCTION = N_(
    "A **beam search** follows several outputs at once. In every step each beam proposes its best next "
    "tokens, and of all proposals together the best are **kept**. A beam with two good continuations "
    "**forks**; one that others have outdone is **pruned** (thin and dashed); one that reaches its end is a "
    "**finished hypothesis** (✓). Step, and watch the past grow together: all beams soon have most of it in "
    "common, so they share the blocks that hold it."
)
LEGEND = N_(
    "Thick: kept beams and their past; dark outline: what led to a finished hypothesis; thin and dashed: "
    "pruned. Scores are sums of log-probabilities; that of a finished hypothesis is divided by its length "
    "(to the power of the length penalty). Small grey lines are **rejected** candidates: the rank of the "
    "beam they would have continued, token, score. A click on the map goes to that step."
)
WITHOUT = N_("No request of this run searched with beams. Make a run that has one:")
HOW = """# in the shell:
minivllm demo sharing

# or in Python, then: minivllm dashboard beams.jsonl
with LLM("path/to/model", trace="beams.jsonl") as llm:
    llm.beam_search(["Once upon a time,"], BeamSearchParams(beam_width=4, max_tokens=24))"""


def page(run: Run) -> None:
    about(_(INTRODUCTION))
    requests = figures.searched_requests(run.timeline)
    if not requests:
        empty.tell(URL, _(WITHOUT), HOW, "python")
        return
    request = _selected(run, requests)

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        trees = [
            figures.beam_tree(timeline, request, width, screen)
            for width, screen in ((WIDE, "wide"), (PHONE, "narrow"))
        ]
        return [*trees, figures.block_pool(timeline, request, spotlight=True)]

    places = _jumps(run, request)
    start = where_it_forks(places)
    stage.show(run, f"beams-{request}", scenes, places, start=start, legend=[_(LEGEND)])


def where_it_forks(places: list[Jump]) -> int:
    """The second fork, where there is a tree to look at; else the start of the search."""
    return next((jump.step for jump in (places[1], places[0]) if jump.step is not None), 0)


def _jumps(run: Run, request: str) -> list[Jump]:
    """The places worth seeing in one search."""
    steps = [
        (record.step, event)
        for record in run.timeline.records
        for event in record.beams
        if event.request == request
    ]
    forks = [
        record.step
        for record in run.timeline.records
        if any(event.request == request for event in record.forked)
    ]
    pruned = [
        record.step
        for record in run.timeline.records
        if any(s.request == request and s.finish_reason == "pruned" for s in record.finished)
    ]
    copied = [
        record.step
        for record in run.timeline.records
        if any(run.timeline.sequences[event.seq].request == request for event in record.copied)
    ]
    return [
        Jump(_("start of the search"), steps[0][0]),
        Jump(_("second fork"), forks[1] if len(forks) > 1 else None),
        Jump(_("first pruned beam"), min(pruned, default=None)),
        Jump(_("first copy-on-write"), min(copied, default=None)),
        Jump(_("first hypothesis"), next((step for step, event in steps if event.finished), None)),
        Jump(_("end of the search"), steps[-1][0]),
    ]


def _selected(run: Run, requests: list[str]) -> str:
    """The request whose search is drawn: there is a choice only if several searched."""
    names = names_of(run.timeline)
    words = {request: names[request].full for request in requests}
    return links.select("search", words, _("Show the search of request"))
