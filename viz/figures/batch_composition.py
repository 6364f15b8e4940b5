"""Batch composition: how many tokens each step computes, of which kind, and how many requests wait.

    budget ─ ─ ─ ─ ─ ─ ─ ─ ─ ─     max_num_batched_tokens
           ░░   ▇                   hatched: padding, computed and thrown away (static batching)
      ▇   ▃▃░   ▇                   dark: prefill tokens
      ▇   ▃▃▂▂▂▂█▂▂▂▂▂▂▂▂           lighter: decode tokens, one for each running sequence

    waiting, running                two lines below; parked requests are counted beside them

Chunked prefill is the shape to look for: a long prompt fills what decodes leave of the budget, over several
steps, instead of stopping every decode. Padding stands on top of the budget, not in it.

Source: Agrawal et al., "Sarathi-Serve" (OSDI 2024). Read next: `overview.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add

from minivllm.trace.timeline import Phase, StepRecord, Timeline
from viz.figures.captions import captions
from viz.figures.common import (
    WASTE,
    WIDE,
    StepCursor,
    folded,
    hatch,
    rows_left,
    step_axis_labels,
    swatches,
)
from viz.language import _
from viz.measures import num_computed_tokens, parked_by_step
from viz.scene import Scene, bars_path, lines_path, rounded

BARS_TOP, BARS_HEIGHT = 44.0, 120.0
QUEUES_TOP, QUEUES_HEIGHT = 228.0, 70.0


def batch_composition(
    timeline: Timeline, width: float = WIDE, screen: str = "", told: Sequence[str] | None = None
) -> Scene:
    """Stacked bars of prefill and decode tokens against the budget; lengths of both queues.

    `told` are the captions, if they are there already.
    """
    scene = Scene(_("Batch composition and queues"), width, QUEUES_TOP + QUEUES_HEIGHT + 28, screen=screen)
    left = rows_left(width)
    step_width = (width - left - 4) / max(timeline.num_steps, 1)
    words = _tokens(scene, timeline, step_width)
    _queues(scene, timeline, step_width)
    bottom = QUEUES_TOP + QUEUES_HEIGHT
    step_axis_labels(scene, timeline.num_steps, left, bottom + 20)
    cursor = StepCursor(scene, timeline.num_steps, left, BARS_TOP, bottom)
    # After the cursor, whose veil would dim them; it does not cross the words between the two charts.
    floor = BARS_TOP + BARS_HEIGHT + 3
    scene.rect(left - 2, floor, width - left + 2, QUEUES_TOP - 4 - floor, fill="page")
    scene.text(left, BARS_TOP + BARS_HEIGHT + 18, words, size=13, fill="muted")
    scene.text(4, QUEUES_TOP - 12, _("requests running (line) and waiting (dashes)"), size=14)
    tokens_now = scene.text(width - 4, 18, "", size=15, anchor="end")
    queues_now = scene.text(width - 4, QUEUES_TOP - 12, "", size=15, anchor="end")
    parked = parked_by_step(timeline)
    for record, sentence in zip(timeline.records, told or captions(timeline), strict=True):
        scene.begin_step(sentence)
        cursor.move(record.step)
        scene.set(tokens_now, text=tokens_in_words(record))
        scene.set(queues_now, text=queues_in_words(record, parked[record.step]))
    return scene


def tokens_in_words(record: StepRecord) -> str:
    """What a step computes: 64 prefill + 3 decode + 20 padding."""
    prefill, decode = record.num_tokens(Phase.PREFILL), record.num_tokens(Phase.DECODE)
    told = _("{prefill:,} prefill + {decode:,} decode").format(prefill=prefill, decode=decode)
    if record.num_padding_tokens:
        told = _("{told} + {count:,} padding").format(told=told, count=record.num_padding_tokens)
    return told


def queues_in_words(record: StepRecord, num_parked: int) -> str:
    """Requests after a step: 5 running (2 of them parked), 1 waiting."""
    told = _("{running:,} running, {waiting:,} waiting")
    if num_parked:
        told = _("{running:,} running ({parked:,} of them parked), {waiting:,} waiting")
    return told.format(running=record.num_running, parked=num_parked, waiting=record.num_waiting)


def _tokens(scene: Scene, timeline: Timeline, step_width: float) -> str:
    """The bars; returns what to say about the budget."""
    left = rows_left(scene.width)
    budget = timeline.trace.header.max_num_batched_tokens
    padding = [record.num_padding_tokens for record in timeline.records]
    # Padding does not count against the budget, and may reach far beyond it.
    totals = [num_computed_tokens(record) for record in timeline.records]
    tallest = max(map(add, totals, padding), default=0)
    # A budget far above what is ever used would press all bars flat.
    in_sight = max(totals, default=0) >= budget / 4
    top = float(max(budget, tallest) if in_sight else tallest * 1.15 or 1)
    bottom = BARS_TOP + BARS_HEIGHT
    gap = 0.12 * step_width if step_width > 4 else 0.0
    parts = list(folded(timeline.records, lambda r: num_computed_tokens(r) + r.num_padding_tokens))
    columns = [
        (rounded(left + first * step_width), rounded(max(0.4, (last - first + 1) * step_width - gap)))
        for first, last, _heaviest in parts
    ]
    stack(scene, [heaviest for _first, _last, heaviest in parts], columns, bottom, BARS_HEIGHT / top)
    legend = [("prefill", _("prefill"), 1.0), ("decode", _("decode"), 1.0)]
    if any(padding):
        legend.append((WASTE, _("padding"), 1.0))
    swatches(scene, 18, legend, 4, hatched=True)
    scene.path(f"M{left:g},{bottom:g}L{scene.width:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    if in_sight:
        y = rounded(bottom - budget / top * BARS_HEIGHT)
        line = f"M{left:g},{y:g}L{scene.width:g},{y:g}"
        scene.path(line, stroke="ink", dash="5 3", stroke_width=1.2)
    scene.text(left - 8, BARS_TOP + 5, f"{round(top):,}", size=13, fill="muted", anchor="end")
    scene.text(left - 8, BARS_TOP + 20, _("tokens"), size=13, fill="muted", anchor="end")
    scene.text(left - 8, bottom + 4, "0", size=13, fill="muted", anchor="end")
    return (
        _("dashed: the budget of {budget:,} tokens per step").format(budget=budget)
        if in_sight
        else _("budget: {budget:,}, far above").format(budget=budget)
    )


def stack(
    scene: Scene,
    records: Sequence[StepRecord],
    columns: Sequence[tuple[float, float]],
    bottom: float,
    units_per_token: float,
) -> None:
    """What each step computes as a bar on top of `bottom`, in its column `(x, width)`."""
    bars: dict[str, list[tuple[float, float, float, float]]] = {"decode": [], "prefill": [], WASTE: []}
    for record, (x, width) in zip(records, columns, strict=True):
        tokens = {
            "decode": record.num_tokens(Phase.DECODE),
            "prefill": record.num_tokens(Phase.PREFILL),
            WASTE: record.num_padding_tokens,
        }
        y = bottom
        for fill, count in tokens.items():
            if height := rounded(count * units_per_token):
                y -= height
                bars[fill].append((x, rounded(y), width, height))
    for fill, boxes in bars.items():
        if boxes:
            stroke = "outline" if fill == WASTE else "none"
            scene.path(bars_path(boxes), fill=fill, stroke=stroke, stroke_width=0.7)
    hatch(scene, bars[WASTE])


def _queues(scene: Scene, timeline: Timeline, step_width: float) -> None:
    left, bottom = rows_left(scene.width), QUEUES_TOP + QUEUES_HEIGHT
    lengths: tuple[Callable[[StepRecord], int], ...] = (lambda r: r.num_waiting, lambda r: r.num_running)
    top = max((length(record) for record in timeline.records for length in lengths), default=0) or 1
    for length, stroke, dash in zip(lengths, ("preempted", "decode"), ("5 3", ""), strict=True):
        points = []
        for first, last, record in folded(timeline.records, length):
            x, end = left + first * step_width, left + (last + 1) * step_width
            y = rounded(bottom - length(record) / top * QUEUES_HEIGHT)
            points += [(rounded(x), y), (rounded(end), y)]
        scene.path(lines_path(points), stroke=stroke, dash=dash, stroke_width=2.2)
    scene.path(f"M{left:g},{bottom:g}L{scene.width:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    scene.text(left - 8, QUEUES_TOP + 5, f"{top:,}", size=13, fill="muted", anchor="end")
    scene.text(left - 8, bottom + 4, "0", size=13, fill="muted", anchor="end")
