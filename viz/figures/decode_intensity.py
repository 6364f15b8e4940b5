"""Decode and the batch: every sequence more makes the reading of the weights worth more.

    FLOP per byte │            ╱  ╱ ◇      dashed: if nothing but the weights had to be read
                  │        ╱ ◇◇◇           below it: every sequence also brings its own keys and values,
                  │    ╱◇◇                 which no other one shares
                  │ ◇
                  └────────────────── sequences that decode in the same step

A weight takes part in one multiplication and one addition per token, so a batch of n tokens does 2 n FLOP
for each weight it reads. Read next: `roofline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.events import ModelShape
from minivllm.trace.timeline import Phase, Timeline
from minivllm.trace.work import batch_shape, work_of
from viz.figures.common import NARROW
from viz.figures.log_axis import LogScale, log_grid
from viz.figures.roofline import BOTTOM, HEIGHT, LEFT, TOP, dots_path
from viz.figures.step_work import PhaseWork
from viz.language import _
from viz.scene import Point, Scene, rounded


def decode_intensity(timeline: Timeline, work: Sequence[PhaseWork], told: Sequence[str]) -> Scene:
    """Arithmetic intensity of every step's decode part against the number of its sequences.

    Args:
        told: the captions of the page.
    """
    parts = {part.step: part for part in work if part.phase is Phase.DECODE}
    scene = Scene(_("Arithmetic intensity of decoding, by batch"), NARROW, HEIGHT)
    most = max((part.num_sequences for part in parts.values()), default=1)
    model = timeline.trace.header.model
    per_sequence = _weights_only(model) if model else 1.0
    intensities = [part.intensity for part in parts.values()] + [per_sequence, per_sequence * most]
    x = LogScale.around([1.0, float(most)], LEFT, NARROW - 12)
    y = LogScale.around(intensities, BOTTOM, TOP)
    log_grid(scene, x, y, _("sequences that decode in the same step"), _("FLOP per byte"))
    ideal = [(x.place(count), y.place(per_sequence * count)) for count in (1.0, float(most))]
    line = f"M{ideal[0][0]:.2f},{ideal[0][1]:.2f}L{ideal[1][0]:.2f},{ideal[1][1]:.2f}"
    scene.path(line, stroke="ink", dash="5 3", stroke_width=1.4)
    dots = [(x.place(part.num_sequences), y.place(part.intensity)) for part in parts.values()]
    scene.path(dots_path(dots, Phase.DECODE), fill="decode", opacity=0.55)
    scene.points = [
        Point(rounded(dot[0]), rounded(dot[1]), step) for dot, step in zip(dots, parts, strict=True)
    ]
    scene.text(4, 18, _("dashed: if nothing but the weights had to be read"), size=14)
    mark = scene.path("", fill="decode", stroke="cursor", stroke_width=2)
    now = scene.text(NARROW - 12, 46, "", size=14, anchor="end")
    for step, sentence in enumerate(told):
        scene.begin_step(sentence)
        if part := parts.get(step):
            place = x.place(part.num_sequences), y.place(part.intensity)
            scene.set(mark, d=dots_path([place], Phase.DECODE, 13))
            words = _("{sequences:,} decode: {intensity:,.3g} FLOP per byte").format(
                sequences=part.num_sequences, intensity=part.intensity
            )
        else:
            scene.set(mark, d="")
            words = _("no decode")
        scene.set(now, text=_("step {step}: {words}").format(step=step, words=words))
    return scene


def _weights_only(model: ModelShape) -> float:
    """FLOP per byte of one sequence that decodes, if nothing but the weights had to be read."""
    work = work_of(model, batch_shape([(0, 1)], num_generated_tokens=1, num_generated_rows=1))
    return work.linear_flops / work.weight_bytes if work.weight_bytes > 0 and work.linear_flops > 0 else 1.0
