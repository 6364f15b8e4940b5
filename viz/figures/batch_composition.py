"""Batch composition: how many tokens each step computes, of which kind, and who waits meanwhile.

    budget ─ ─ ─ ─ ─ ─ ─ ─ ─ ─     max_num_batched_tokens
                ▇                   orange: prefill tokens
      ▇   ▃  ▂▂▂█▂▂▂▂▂▂▂▂          blue: decode tokens, one for each running sequence

    waiting, running                two lines below

Chunked prefill is the shape to look for: a long prompt fills what decodes leave of the budget, over several
steps, instead of stopping everybody. Source: Agrawal et al., "Sarathi-Serve" (OSDI 2024).
Read next: `overview.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.trace.timeline import Phase, StepRecord, Timeline
from viz.figures.captions import captions
from viz.figures.common import WIDE, StepCursor, step_axis_labels, swatches
from viz.scene import Scene, bars_path, lines_path, rounded

LEFT = 64.0
BARS_TOP, BARS_HEIGHT = 44.0, 120.0
QUEUES_TOP, QUEUES_HEIGHT = 228.0, 70.0


def batch_composition(timeline: Timeline, width: float = WIDE, screen: str = "") -> Scene:
    """Stacked bars of prefill and decode tokens against the budget; lengths of both queues."""
    scene = Scene("Batch composition and queues", width, QUEUES_TOP + QUEUES_HEIGHT + 28, screen=screen)
    step_width = (width - LEFT - 4) / max(timeline.num_steps, 1)
    words = _tokens(scene, timeline, step_width)
    _queues(scene, timeline, step_width)
    bottom = QUEUES_TOP + QUEUES_HEIGHT
    step_axis_labels(scene, timeline.num_steps, LEFT, bottom + 20)
    cursor = StepCursor(scene, timeline.num_steps, LEFT, BARS_TOP, bottom)
    # After the cursor, whose veil would dim them.
    scene.text(LEFT, BARS_TOP + BARS_HEIGHT + 18, words, size=13, fill="muted")
    scene.text(4, QUEUES_TOP - 12, "requests running (line) and waiting (dashes)", size=14)
    tokens_now = scene.text(width - 4, 18, "", size=15, anchor="end")
    queues_now = scene.text(width - 4, QUEUES_TOP - 12, "", size=15, anchor="end")
    for record, sentence in zip(timeline.records, captions(timeline), strict=True):
        scene.begin_step(sentence)
        cursor.move(record.step)
        prefill, decode = record.num_tokens(Phase.PREFILL), record.num_tokens(Phase.DECODE)
        scene.set(tokens_now, text=f"{prefill:,} prefill + {decode:,} decode")
        scene.set(queues_now, text=f"{record.num_running:,} running, {record.num_waiting:,} waiting")
    return scene


def _tokens(scene: Scene, timeline: Timeline, step_width: float) -> str:
    """The bars; returns what to say about the budget."""
    budget = timeline.trace.header.max_num_batched_tokens
    totals = [sum(item.num_tokens for item in record.batch) for record in timeline.records]
    # A budget far above what is ever used would press all bars flat.
    in_sight = max(totals, default=0) >= budget / 4
    top = float(budget if in_sight else max(totals, default=0) * 1.15 or 1)
    bottom = BARS_TOP + BARS_HEIGHT
    bars: dict[Phase, list[tuple[float, float, float, float]]] = {Phase.PREFILL: [], Phase.DECODE: []}
    for record in timeline.records:
        y = bottom
        for phase in (Phase.DECODE, Phase.PREFILL):
            height = rounded(record.num_tokens(phase) / top * BARS_HEIGHT)
            y -= height
            x = LEFT + record.step * step_width
            gap = 0.12 * step_width if step_width > 4 else 0.0
            bars[phase].append((rounded(x), rounded(y), rounded(max(0.4, step_width - gap)), height))
    for phase, boxes in bars.items():
        scene.path(bars_path(boxes), fill=phase.value)
    swatches(scene, 18, [("prefill", "prefill tokens", 1), ("decode", "decode tokens", 1)], 4)
    scene.path(f"M{LEFT:g},{bottom:g}L{scene.width:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    if in_sight:
        line = f"M{LEFT:g},{BARS_TOP:g}L{scene.width:g},{BARS_TOP:g}"
        scene.path(line, stroke="ink", dash="5 3", stroke_width=1.2)
    scene.text(LEFT - 8, BARS_TOP + 5, f"{round(top):,}", size=13, fill="muted", anchor="end")
    scene.text(LEFT - 8, bottom + 4, "0", size=13, fill="muted", anchor="end")
    return (
        f"dashed: the budget of {budget:,} tokens per step" if in_sight else f"budget: {budget:,}, far above"
    )


def _queues(scene: Scene, timeline: Timeline, step_width: float) -> None:
    bottom = QUEUES_TOP + QUEUES_HEIGHT
    lengths: tuple[Callable[[StepRecord], int], ...] = (lambda r: r.num_waiting, lambda r: r.num_running)
    top = max((length(record) for record in timeline.records for length in lengths), default=0) or 1
    for length, stroke, dash in zip(lengths, ("preempted", "decode"), ("5 3", ""), strict=True):
        points = []
        for record in timeline.records:
            x = LEFT + record.step * step_width
            y = rounded(bottom - length(record) / top * QUEUES_HEIGHT)
            points += [(rounded(x), y), (rounded(x + step_width), y)]
        scene.path(lines_path(points), stroke=stroke, dash=dash, stroke_width=2.2)
    scene.path(f"M{LEFT:g},{bottom:g}L{scene.width:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    scene.text(LEFT - 8, QUEUES_TOP + 5, f"{top:,}", size=13, fill="muted", anchor="end")
    scene.text(LEFT - 8, bottom + 4, "0", size=13, fill="muted", anchor="end")
