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
from viz.figures.common import NARROW, StepCursor, hatch, step_axis_labels, swatches
from viz.language import _
from viz.scene import Scene, bars_path, rounded

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
    filled, empty, evictable = [], [], []
    for record in timeline.records:
        x = rounded(LEFT + record.step * step_width)
        width = rounded(max(step_width, 0.3))
        low = rounded(record.num_filled_slots / slots * HEIGHT)
        high = rounded(record.num_used_blocks * header.block_size / slots * HEIGHT)
        filled.append((x, bottom - low, width, low))
        empty.append((x, bottom - high, width, high - low))
        rest = rounded(record.num_evictable_blocks * header.block_size / slots * HEIGHT)
        evictable.append((x, rounded(bottom - high - rest), width, rest))
    scene.path(bars_path(filled), fill="filled")
    scene.path(bars_path(empty), fill="wasted")
    if len(empty) <= MOST_HATCHED:
        hatch(scene, [box for box in empty if box[3]])
    scene.path(bars_path(evictable), fill="cached")
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
