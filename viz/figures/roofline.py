"""The roofline: how fast each step could be at most, and how fast it was.

    FLOP/s │        ________________ peak: more cannot be computed
           │      ╱│     ▫ ▫ ▫         prefill: many tokens for each byte of the weights
           │    ╱  │
           │  ╱◇   │                   decode: all weights are read for a token per sequence
           │╱ ◇    ridge point
           └──────────────────── FLOP per byte (arithmetic intensity), both axes logarithmic

Left of the ridge point memory is the limit, and a larger batch is nearly free: its tokens share the reading
of the weights. Right of it the arithmetic is. A step has one measured time for its prefill and its decode
part together, so where both are in it, each looks slower than it would be alone.

Source: Williams, Waterman & Patterson, "Roofline" (CACM 2009). Read next: `minivllm/trace/work.py`, the
arithmetic, and `decode_intensity.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.trace.events import HardwareShape
from minivllm.trace.timeline import Phase, Timeline
from minivllm.trace.work import attainable, ridge
from viz.figures.common import NARROW, plural, swatches
from viz.figures.log_axis import LogScale, engineering, log_grid
from viz.figures.step_work import PhaseWork
from viz.language import _, sentences
from viz.scene import Point, Scene, bars_path, lines_path, rounded

LEFT, TOP, BOTTOM = 76.0, 70.0, 380.0
HEIGHT = BOTTOM + 52
DOT = 5.0


@dataclass(frozen=True)
class Roof:
    """What a device can do at most: the smaller of what its arithmetic and its memory allow."""

    hardware: HardwareShape

    @property
    def peak(self) -> float:
        """FLOP/s of all devices together."""
        return self.hardware.peak_flops * self.hardware.num_devices

    @property
    def bandwidth(self) -> float:
        """Bytes/s of all devices together."""
        return self.hardware.memory_bandwidth * self.hardware.num_devices

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on arithmetic is the limit."""
        return ridge(self.peak, self.bandwidth)

    def attainable(self, intensity: float) -> float:
        """Most FLOP/s at an intensity."""
        return attainable(intensity, self.peak, self.bandwidth)


def roofline(timeline: Timeline, work: Sequence[PhaseWork], hardware: HardwareShape | None) -> Scene:
    """Every step's prefill part and decode part; the roof too, if the hardware is known."""
    roof = Roof(hardware) if hardware else None
    x, y = _scales(work, roof)
    scene = Scene(_("Roofline: achieved and attainable FLOP/s"), NARROW, HEIGHT)
    log_grid(scene, x, y, _("FLOP per byte (arithmetic intensity)"), "FLOP/s")
    if roof:
        _draw_roof(scene, roof, x, y)
    for phase in (Phase.PREFILL, Phase.DECODE):
        dots = [(x.place(p.intensity), y.place(p.achieved)) for p in work if p.phase is phase]
        scene.path(dots_path(dots, phase), fill=phase.value, opacity=0.55)
    scene.points = [Point(rounded(x.place(p.intensity)), rounded(y.place(p.achieved)), p.step) for p in work]
    entries = [
        ("prefill", _("prefill part of a step (square)"), 1.0),
        ("decode", _("decode part (diamond)"), 1.0),
    ]
    swatches(scene, 18, entries, 4)
    marks = {phase: _Mark(scene, phase, x, y, roof) for phase in (Phase.PREFILL, Phase.DECODE)}
    now = scene.text(NARROW - 12, 46, "", size=14, anchor="end")
    told = roofline_captions(timeline, work, hardware)
    by_step: dict[int, dict[Phase, PhaseWork]] = {}
    for part in work:
        by_step.setdefault(part.step, {})[part.phase] = part
    for step, sentence in enumerate(told):
        scene.begin_step(sentence)
        parts = by_step.get(step, {})
        for phase, mark in marks.items():
            mark.show(parts.get(phase))
        words = [f"{_(part.phase.value)} {engineering(part.achieved)}FLOP/s" for part in parts.values()]
        scene.set(
            now,
            text=_("step {step}: {words}").format(
                step=step, words=_(", ").join(words) or _("nothing was computed and timed")
            ),
        )
    return scene


def roofline_captions(
    timeline: Timeline, work: Sequence[PhaseWork], hardware: HardwareShape | None
) -> list[str]:
    """For each step: the work of its parts, how fast it was done, and what limits it."""
    roof = Roof(hardware) if hardware else None
    told: dict[int, list[str]] = {}
    for part in work:
        told.setdefault(part.step, []).append(_in_words(part, roof))
    nothing = [_("Nothing was computed, or its time is not known.")]
    return [
        sentences([_("Step {step}.").format(step=step), *told.get(step, nothing)])
        for step in range(timeline.num_steps)
    ]


def _in_words(part: PhaseWork, roof: Roof | None) -> str:
    told = _(
        "The {phase} part: {tokens} of {sequences}, {flop}FLOP and {bytes}B, so {intensity:,.3g} FLOP per "
        "byte; {speed}FLOP/s"
    ).format(
        phase=_(part.phase.value),
        tokens=plural(part.num_tokens, "token"),
        sequences=plural(part.num_sequences, "sequence"),
        flop=engineering(part.flops),
        bytes=engineering(part.num_bytes),
        intensity=part.intensity,
        speed=engineering(part.achieved),
    )
    if roof is None:
        return _("{sentence}.").format(sentence=told)
    attainable = roof.attainable(part.intensity)
    share = part.achieved / attainable
    words = _("{told}, {share:.0%} of the {speed}FLOP/s that arithmetic allows")
    if part.intensity < roof.ridge:
        words = _("{told}, {share:.0%} of the {speed}FLOP/s that memory allows")
    words = words.format(told=told, share=share, speed=engineering(attainable))
    if share > 1.05:
        words = _(
            "{words}, above the roof: what it read lay in a cache, or this is not the device of this run"
        ).format(words=words)
    return _("{sentence}.").format(sentence=words)


def dots_path(places: list[tuple[float, float]], phase: Phase, size: float = DOT) -> str:
    """Small squares for prefill, diamonds for decode: told apart without colour."""
    half = size / 2
    if phase is Phase.PREFILL:
        return bars_path([(rounded(x - half), rounded(y - half), size, size) for x, y in places])
    tip = half * 1.35
    return "".join(
        f"M{x:.2f},{y - tip:.2f}L{x + tip:.2f},{y:.2f}L{x:.2f},{y + tip:.2f}L{x - tip:.2f},{y:.2f}Z"
        for x, y in places
    )


def _scales(work: Sequence[PhaseWork], roof: Roof | None) -> tuple[LogScale, LogScale]:
    """Room for all points, and for the ridge point with a piece of roof on either side."""
    across = [part.intensity for part in work]
    up = [part.achieved for part in work]
    if roof:
        across += [roof.ridge / 4, roof.ridge * 4]
        up += [roof.peak * 1.6]
    x = LogScale.around(across or [1.0], LEFT, NARROW - 12)
    return x, LogScale.around(up or [1.0], BOTTOM, TOP)


def _draw_roof(scene: Scene, roof: Roof, x: LogScale, y: LogScale) -> None:
    """The slope of the memory, the flat of the arithmetic, and where they meet."""
    # The slope begins at the left edge, or where it comes out of the floor.
    begin = max(x.low, y.low / roof.bandwidth)
    corner, top = x.place(roof.ridge), y.place(roof.peak)
    foot = x.place(begin), y.place(roof.attainable(begin))
    points = [foot, (corner, top), (x.end, top)]
    scene.path(lines_path([(rounded(x), rounded(y)) for x, y in points]), stroke="ink", stroke_width=2.2)
    scene.path(f"M{corner:.2f},{top:.2f}L{corner:.2f},{y.start:g}", stroke="ink", dash="4 3", stroke_width=1)
    left = corner > (x.start + x.end) / 2
    scene.text(
        x.end,
        top - 8,
        _("peak {speed}FLOP/s").format(speed=engineering(roof.peak)),
        size=13,
        anchor="end",
    )
    words = _("ridge point: {ridge:,.3g} FLOP per byte").format(ridge=roof.ridge)
    place = corner - 6 if left else corner + 6
    scene.text(rounded(place), y.start - 8, words, size=13, anchor="end" if left else "start")
    middle = (begin * roof.ridge) ** 0.5
    at = rounded(x.place(middle)), rounded(y.place(roof.attainable(middle)))
    slope = _("memory {speed}B/s").format(speed=engineering(roof.bandwidth))
    # Above the slope if the words fit between it and the axis: no point can be there. Else below it.
    room = 8 * len(slope)
    if at[0] - LEFT > room:
        scene.text(at[0] - 10, at[1] - 8, slope, size=13, anchor="end")
    elif corner - foot[0] > room:
        above = foot[1] + (top - foot[1]) * room / (corner - foot[0])
        scene.text(rounded(foot[0] + 4), rounded(above - 8), slope, size=13)
    else:
        scene.text(at[0] + 12, at[1] + 18, slope, size=13)


class _Mark:
    """The current step's part of one phase: a larger dot, and a line up to the roof."""

    def __init__(self, scene: Scene, phase: Phase, x: LogScale, y: LogScale, roof: Roof | None) -> None:
        self.scene, self.phase, self.x, self.y, self.roof = scene, phase, x, y, roof
        self.line = scene.path("", stroke="cursor", dash="3 3", stroke_width=1.2)
        self.dot = scene.path("", fill=phase.value, stroke="cursor", stroke_width=2)

    def show(self, part: PhaseWork | None) -> None:
        if part is None:
            self.scene.set(self.dot, d="")
            self.scene.set(self.line, d="")
            return
        x, y = self.x.place(part.intensity), self.y.place(part.achieved)
        self.scene.set(self.dot, d=dots_path([(x, y)], self.phase, 13))
        if self.roof:
            top = self.y.place(self.roof.attainable(part.intensity))
            self.scene.set(self.line, d=f"M{x:.2f},{y:.2f}L{x:.2f},{top:.2f}")
