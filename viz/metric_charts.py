"""All charts of the page of metrics, each with what there is to say of it.

    title, chart
    numbers of the run, and what they mean
    vllm:… samples            what `/metrics` would have said at the end: sums and counts, and no single value
    PromQL                    how Grafana asks for the same panel while a server runs

Read next: `metric_panels.py`, the list; `charts/style.py`, the look.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.summary import RunSummary, summarize
from minivllm.trace.timeline import Timeline
from viz.counted import Counted, count
from viz.figures.captions import captions
from viz.figures.metrics_board import in_words
from viz.language import N_, _, sentences
from viz.metric_panels import Panel, owner_panels, queries_in_words, request_panels, user_panels
from viz.scene import Scene

NO_METRIC = N_("Only a trace knows this: no metric of vLLM says it.")


def metric_charts(
    timeline: Timeline,
    summary: RunSummary | None = None,
    counted: Counted | None = None,
    told: Sequence[str] | None = None,
) -> list[Scene]:
    """One scene for each panel; what was summed up, counted or told before is not done again."""
    summary = summary or summarize(timeline.trace)
    counted, told = counted or count(timeline.trace, timeline.records), told or captions(timeline)
    shown: list[Scene] = []
    for section, panels in (
        (_("What users feel"), user_panels(timeline, counted, told)),
        (_("What the owner counts"), owner_panels(timeline, summary, counted, told)),
        (_("Finished requests"), request_panels(counted, told)),
    ):
        charts = [_chart(panel, counted, told) for panel in panels]
        charts[0].section = section
        shown += charts
    return shown


def _chart(panel: Panel, counted: Counted, told: Sequence[str]) -> Scene:
    """A chart, and below it its numbers, what `/metrics` says of it, and how Grafana asks for it."""
    scene = panel.scene(told)
    scene.notes.append(("words", sentences([panel.numbers, panel.sentence])))
    if not panel.key:
        scene.notes.append(("words", _(NO_METRIC)))
        return scene
    last = counted.last
    said = [f"`{name}` {in_words(name, last[name])}" for name in panel.samples if name in last]
    scene.notes.append(("words", _("At the end: {said}.").format(said=_(", ").join(said))))
    scene.notes.append(("code", queries_in_words(panel.key)))
    return scene
