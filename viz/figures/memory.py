"""Memory over time: how many blocks are in use after each step, and how many of their slots are empty.

    capacity ────────────────────────────
                      ▁▂▃▄▅▆▇▇▇▆▅▄          hatched: allocated but empty (waste)
             ▁▂▃▄▅▆▇██████████████▇▆▅▄▃     dark:   filled with keys and values

A prefix cache adds a third layer: blocks that no table maps, and that a prefix hit can bring back into use.

With one contiguous strip per request, the hatched part would be most of the picture; with blocks of 16 tokens
it is about eight slots per sequence. Read next: `scheduler_gantt.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.timeline import Timeline
from viz.figures.captions import captions
from viz.figures.common import NARROW, StepCursor, folded, hatch, step_axis_labels, swatches
from viz.language import _
from viz.scene import Scene, rounded, skyline_path

LEFT, TOP, HEIGHT = 58.0, 40.0, 130.0
MOST_HATCHED = 800
"""Of more steps the waste stays white: lines in columns this narrow would be dots."""


def memory_over_time(timeline: Timeline, told: Sequence[str] | None = None) -> Scene:
    """Filled and empty slots of all blocks in use, step by step, against the size of the pool.

    `told` are the captions, if they are there already.
    """
    header = timeline.trace.header
    scene = Scene(_("Blocks in use over the run"), NARROW, TOP + HEIGHT + 26)
    legend = [("filled", _("slots filled"), 1.0), ("wasted", _("allocated but empty"), 1.0)]
    if header.prefix_cache:
        legend.append(("cached", _("cached and evictable"), 1.0))
    swatches(scene, 18, legend, LEFT, hatched=True)
    slots = header.num_blocks * header.block_size
    bottom = TOP + HEIGHT
    step_width = (NARROW - LEFT - 4) / max(timeline.num_steps, 1)
    # One outline in front of the other: a browser paints them at every step.
    tops: dict[str, list[tuple[float, float, float]]] = {"cached": [], "wasted": [], "filled": []}
    for first, last, record in folded(timeline.records, lambda record: record.num_used_blocks):
        x, width = rounded(LEFT + first * step_width), rounded((last - first + 1) * step_width)
        used = record.num_used_blocks * header.block_size
        evictable = record.num_evictable_blocks * header.block_size
        heights = {"cached": used + evictable, "wasted": used, "filled": record.num_filled_slots}
        for name, high in heights.items():
            tops[name].append((x, width, rounded(bottom - high / slots * HEIGHT)))
    for name in tops if header.prefix_cache else ("wasted", "filled"):
        scene.path(skyline_path(tops[name], bottom), fill=name)
    pairs = zip(tops["wasted"], tops["filled"], strict=True)
    empty = [(x, used, width, filled - used) for (x, width, used), (_x, _w, filled) in pairs if filled > used]
    if len(empty) <= MOST_HATCHED:
        hatch(scene, empty)
    scene.path(f"M{LEFT},{TOP}L{NARROW},{TOP}", stroke="ink", dash="5 3", stroke_width=1.2)
    scene.path(f"M{LEFT},{bottom}L{NARROW},{bottom}", stroke="outline", stroke_width=1.0)
    scene.text(LEFT - 6, TOP + 5, f"{header.num_blocks:,}", size=13, fill="muted", anchor="end")
    scene.text(LEFT - 6, TOP + 20, _("blocks"), size=13, fill="muted", anchor="end")
    scene.text(LEFT - 6, bottom + 4, "0", size=13, fill="muted", anchor="end")
    step_axis_labels(scene, timeline.num_steps, LEFT, bottom + 20)
    cursor = StepCursor(scene, timeline.num_steps, LEFT, TOP, bottom)
    for step, sentence in enumerate(told or captions(timeline)):
        scene.begin_step(sentence)
        cursor.move(step)
    return scene
