"""The scheduler's timeline (a Gantt chart): one row per request, one column per step.

    Once upon a…  A  ███▄▄▄▄▄▄▄▄▄▄▄▄▄            full height: prefill; lower: decode
    What is a KV  B  ──██▄▄▄▄▄▄▄×───██▄▄▄▄       thin: waits; × and thin: preempted, waits again (↑: swapped)
    Tell me of …  C       ─────██▄▄▄▄▄░░░░░      hatched: parked, keeps its slot and computes nothing

Continuous batching is what makes the rows end and begin at different steps: no request waits for the batch.
A row has the colour of its request, as its blocks have in the pool; the height of a span says its phase. On
wide screens the first words of the prompt stand beside it. Read next: `batch_composition.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import ceil

from minivllm.trace.timeline import Phase, Span, Timeline
from viz import subjects
from viz.figures.captions import captions
from viz.figures.common import (
    PROMPT_CELLS,
    WASTE,
    WIDE,
    Name,
    StepCursor,
    clip,
    hatch,
    names_of,
    rows_left,
    second_series,
    step_axis_labels,
    swatches,
)
from viz.language import N_, _
from viz.scene import Scene, rounded

MOST_ROWS = 200
MOST_SIGNS = 300
ROWS_HEIGHT = 430.0

COMPUTING = (Phase.PREFILL, Phase.DECODE)
"""In these phases a span has the colour of its request."""
# phase → (colour in the legend, height as a share of the row, words)
LOOKS: dict[Phase, tuple[str, float, str]] = {
    Phase.WAITING: ("waiting", 0.25, N_("waits")),
    Phase.PREFILL: ("prefill", 1.0, N_("prefill")),
    Phase.DECODE: ("decode", 0.6, N_("decode")),
    Phase.PARKED: (WASTE, 0.6, N_("parked: keeps its slot and its blocks, computes nothing")),
    Phase.PREEMPTED: ("preempted", 0.25, N_("× preempted, waits again")),
    Phase.SWAPPED: ("swapped", 0.4, N_("↑ swapped out, waits again")),
}


SIGNS = {Phase.PREEMPTED: "×", Phase.SWAPPED: "↑"}


def scheduler_gantt(
    timeline: Timeline, width: float = WIDE, screen: str = "", told: Sequence[str] | None = None
) -> Scene:
    """One row per request, at most `MOST_ROWS`, in order of arrival.

    `told` are the captions, if they are there already.
    """
    requests = list(timeline.spans)
    shown = requests[:MOST_ROWS]
    row = max(4.0, min(24.0, ROWS_HEIGHT / max(len(shown), 1)))
    more = len(requests) - len(shown)
    names = names_of(timeline)
    left, deeper = rows_left(width), second_series(names[request] for request in shown)
    notes = [deeper] if deeper else []
    if more:
        words = _("The first {drawn} of {all:,} requests are drawn.")
        notes.append(words.format(drawn=MOST_ROWS, all=len(requests)))
    scene = Scene(_("Scheduler timeline"), width, 0.0, screen=screen)
    top = 22 + _legend(scene, timeline, narrow=width < 800)
    bottom = top + row * len(shown)
    scene.height = bottom + 28 + 18 * len(notes)
    step_width = (width - left - 4) / max(timeline.num_steps, 1)
    prompts = prompts_of(timeline)
    every = ceil(13 / row)
    signs: list[tuple[float, float, str]] = []
    parked: list[tuple[float, float, float, float]] = []
    for index, request in enumerate(shown):
        y = top + index * row
        _name(scene, names[request], prompts.get(request, ""), index % every == 0, every, y, row)
        if index and row >= 10:
            scene.path(f"M{left:g},{y:g}L{width:g},{y:g}", stroke="rule", stroke_width=0.6)
        for span in timeline.spans[request]:
            reach = (left + span.first * step_width, left + (span.last + 1) * step_width)
            box = draw_span(scene, span, names[request], y, row, reach)
            if span.phase is Phase.PARKED:
                parked.append(box)
            if sign := SIGNS.get(span.phase):
                signs.append((left + span.first * step_width, y + row / 2, sign))
    hatch(scene, parked)
    for x, y, sign in signs[:MOST_SIGNS]:
        scene.text(rounded(x), rounded(y + 5), sign, size=16, weight="bold", fill="ink", anchor="middle")
    step_axis_labels(scene, timeline.num_steps, left, bottom + 20)
    for number, note in enumerate(notes):
        scene.text(left, bottom + 40 + 18 * number, note, size=13, fill="muted")
    cursor = StepCursor(scene, timeline.num_steps, left, top, bottom)
    for step, sentence in enumerate(told or captions(timeline)):
        scene.begin_step(sentence)
        cursor.move(step)
    return scene


def _name(scene: Scene, name: Name, prompt: str, is_large: bool, every: int, y: float, row: float) -> None:
    """The name of a row that begins at `y`, and how its prompt begins: large at every so many rows."""
    left, about = rows_left(scene.width), subjects.request(name.number)
    if every > 1:  # all of them can be read once the reader has zoomed in
        size = rounded(row * 0.9)
        x, line = left - 10 - 9 * len(name.tag), rounded(y + row / 2 + size * 0.36)
        scene.text(x, line, name.tag, size=size, anchor="end", fill="muted", subject=about)
    if not is_large:
        return
    size = min(14.0, row * every)
    line = y + row / 2 + size * 0.36
    scene.text(left - 8, line, name.tag, size=size, anchor="end", subject=about)
    if left > 200:
        tip = clip(prompt, 300)
        scene.text(4, rounded(line), clip(prompt, PROMPT_CELLS), size=min(12.0, size), fill="muted", tip=tip)


def prompts_of(timeline: Timeline) -> dict[str, str]:
    """Request → its prompt, where the trace has it as text."""
    sequences = timeline.sequences.values()
    return {sequence.request: sequence.prompt for sequence in sequences if sequence.prompt}


def draw_span(
    scene: Scene, span: Span, name: Name, y: float, row: float, reach: tuple[float, float]
) -> tuple[float, float, float, float]:
    """One span of a row that begins at `y`, from one x to another; returns its rectangle."""
    fill, share, words = LOOKS[span.phase]
    height = max(1.5, (row - min(3.0, row * 0.25)) * share)
    steps = _("step {step}") if span.first == span.last else _("steps {step}–{last}")
    steps = steps.format(step=span.first, last=span.last)
    box = (
        rounded(reach[0]),
        rounded(y + (row - height) / 2),
        rounded(max(0.5, reach[1] - reach[0])),
        rounded(height),
    )
    tip = _("{request}: {phase}, {steps}")
    tip = tip.format(request=name.full, phase=_(words).lstrip("×↑ "), steps=steps)
    fill = name.colour if span.phase in COMPUTING else fill
    stroke = "outline" if span.phase is Phase.PARKED else "none"
    about = subjects.request(name.number)
    scene.rect(*box, fill=fill, stroke=stroke, stroke_width=0.8, subject=about, tip=tip)
    return box


def _legend(scene: Scene, timeline: Timeline, narrow: bool) -> float:
    """Only what occurs in this run; returns the y of its last line."""
    return swatches(scene, 18, legend_entries([timeline], narrow), 4, hatched=True)


def legend_entries(timelines: Iterable[Timeline], narrow: bool) -> list[tuple[str, str, float]]:
    """For `swatches`: the phases that occur, in full or in a word each."""
    present = {span.phase for run in timelines for spans in run.spans.values() for span in spans}
    return [
        (fill, re.split("[:,：，]", _(words))[0] if narrow else _(words), share)
        for phase, (fill, share, words) in LOOKS.items()
        if phase in present
    ]
