"""What a preemption costs: its tokens computed again, or its blocks moved to the host and back.

    milliseconds │          ▫         squares: recompute, diamonds: swap; both axes logarithmic
                 │      ▫   ◇
                 │  ◇ ▫ ◇             where the lines cross, the one becomes cheaper than the other
                 │  ▫
                 └───────────── tokens that the preempted request had computed

Source: figure 19 of Kwon et al. (SOSP 2023), on a real run. Read next:
`minivllm/trace/preemption_costs.py`, which counts them.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.preemption_costs import Costs, crossing, preemption_costs
from minivllm.trace.timeline import Phase, Timeline
from viz.figures.common import NARROW, swatches
from viz.figures.log_axis import LogScale, log_grid
from viz.figures.roofline import BOTTOM, HEIGHT, LEFT, TOP, dots_path
from viz.language import N_, _, sentences
from viz.scene import Scene, lines_path, rounded

LOOKS = {
    "recompute": (Phase.PREFILL, "preempted", N_("recompute: computed again (square)"), N_("Recompute")),
    "swap": (Phase.DECODE, "swapped", N_("swap: moved out and back (diamond)"), N_("Swap")),
}
"""Mode → shape, colour, words of the legend, name."""


def preemption_cost(timelines: Sequence[Timeline]) -> list[Scene]:
    """A still picture of one run or more; none if no request was preempted."""
    costs = preemption_costs(timelines)
    if not costs:
        return []
    tokens = [float(count) for those in costs.values() for count in those]
    x = LogScale.around(tokens, LEFT, NARROW - 12)
    y = LogScale.around([1e3 * one for those in costs.values() for one in those.values()], BOTTOM, TOP)
    scene = Scene(_("What a preemption costs, by its tokens"), NARROW, HEIGHT)
    log_grid(scene, x, y, _("tokens that the preempted request had computed"), _("milliseconds"))
    for mode, those in costs.items():
        shape, colour, *_names = LOOKS[mode]
        places = [(rounded(x.place(count)), rounded(y.place(1e3 * cost))) for count, cost in those.items()]
        scene.path(lines_path(places), stroke=colour, stroke_width=1.6)
        scene.path(dots_path(places, shape, 9), fill=colour)
    swatches(scene, 18, [(LOOKS[mode][1], _(LOOKS[mode][2]), 1.0) for mode in costs], 4)
    words = _draw_crossing(scene, costs, x, y)
    scene.begin_step(sentences([words, *_in_words(costs)] if words else _in_words(costs)))
    return [scene]


def _draw_crossing(scene: Scene, costs: dict[str, Costs], x: LogScale, y: LogScale) -> str:
    at = crossing(costs)
    if at is None:
        if len(costs) < 2:
            return ""
        shared = set(costs["recompute"]) & set(costs["swap"])
        cheaper = sum(costs["swap"][count] <= costs["recompute"][count] for count in shared)
        if not shared or 0 < cheaper < len(shared):
            return ""
        words = _("swap is cheaper at every length") if cheaper else _("recompute is cheaper at every length")
    else:
        place = rounded(x.place(at))
        scene.path(f"M{place:g},{y.end:g}L{place:g},{y.start:g}", stroke="ink", dash="4 3", stroke_width=1)
        words = _("swap is cheaper from about {at:,.2g} tokens on").format(at=at) if at < 100 else ""
        words = words or _("swap is cheaper from about {at:,.0f} tokens on").format(at=round(at, -1))
    scene.text(NARROW - 12, 46, words, size=14, anchor="end")
    return _("{sentence}.").format(sentence=words[0].upper() + words[1:])


def _in_words(costs: dict[str, Costs]) -> list[str]:
    told = []
    for mode, those in costs.items():
        parts = [
            _("{count:,} tokens {milliseconds:.3g} ms").format(count=count, milliseconds=1e3 * seconds)
            for count, seconds in those.items()
        ]
        told.append(_("{mode}: {costs}.").format(mode=_(LOOKS[mode][3]), costs=_(", ").join(parts)))
    return told
