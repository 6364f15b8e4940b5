"""What a KV cache saves: the same requests with a cache and without one, step by step.

    tokens  │        ▒▒▒▒▒▒▒▒         hatched: tokens that are computed again, only for want of a cache
            │  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒         solid: tokens that are new in this step
            │▇▇______________
    ms      │        ─ ─ ─ ─ ─        dashed: measured without a cache
            │ ─ ─ ───────────         line: measured with it

The two runs carry out the same plans, so what is computed again follows from either of them.

Read next: `minivllm/executor/recompute_executor.py`, the engine without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from minivllm.trace.summary import format_seconds
from minivllm.trace.timeline import StepRecord, Timeline
from viz.figures.common import NARROW, WASTE, StepCursor, hatch, step_axis_labels, swatches
from viz.language import _
from viz.scene import Scene, bars_path, lines_path, rounded

LEFT = 64.0
BARS_TOP, BARS_HEIGHT = 60.0, 150.0
TIME_TOP, TIME_HEIGHT = 258.0, 110.0
NEIGHBOURS = 3
"""Steps on either side of one whose median is drawn: on a busy machine a single step may take any time."""


def cache_work(cached: Timeline, recomputed: Timeline) -> Scene:
    """Tokens through the model, and its time, of each step of two runs of the same requests."""
    bottom = TIME_TOP + TIME_HEIGHT
    scene = Scene(_("Work with a KV cache and without"), NARROW, bottom + 28)
    count = cached.num_steps
    new = [_new(record) for record in cached.records]
    whole = [_whole(record) for record in cached.records]
    seconds = [smoothed(timeline.records[:count]) for timeline in (cached, recomputed)]
    swatches(
        scene, 18, [("decode", _("new tokens"), 1.0), (WASTE, _("computed again"), 1.0)], 4, hatched=True
    )
    width = (NARROW - LEFT - 4) / max(count, 1)
    tallest = _bars(scene, new, whole, width)
    slowest = _times(scene, seconds, width)
    step_axis_labels(scene, count, LEFT, bottom + 20)
    cursor = StepCursor(scene, count, LEFT, BARS_TOP, bottom)
    # After the cursor, whose veil would dim them.
    for y, words in ((BARS_TOP, f"{tallest:,}"), (BARS_TOP + 15, _("tokens")), (BARS_TOP + BARS_HEIGHT, "0")):
        scene.text(LEFT - 8, y + 5, words, size=13, fill="muted", anchor="end")
    for y, words in ((TIME_TOP, format_seconds(slowest)), (bottom, "0")):
        scene.text(LEFT - 8, y + 5, words, size=13, fill="muted", anchor="end")
    tokens_now = scene.text(4, 42, "", size=14)
    times_now = scene.text(4, TIME_TOP - 14, "", size=14)
    for step in range(count):
        before = _("so far {cached:,} with the cache, {recomputed:,} without").format(
            cached=sum(new[: step + 1]), recomputed=sum(whole[: step + 1])
        )
        scene.begin_step(
            _("Step {step} computes {new:,} of {all:,} tokens; {before}.").format(
                step=step, new=new[step], all=whole[step], before=before
            )
        )
        cursor.move(step)
        scene.set(
            tokens_now,
            text=_("step {step}: {new:,} of {all:,} tokens; {before}").format(
                step=step, new=new[step], all=whole[step], before=before
            ),
        )
        told = [format_seconds(times[step]) if step < len(times) else "–" for times in seconds]
        words = _("time of the model: {cached} with the cache (line), {recomputed} without (dashes)").format(
            cached=told[0], recomputed=told[1]
        )
        scene.set(times_now, text=words)
    return scene


def _bars(scene: Scene, new: Sequence[int], whole: Sequence[int], width: float) -> int:
    """What each step computes, and what it would compute without a cache; returns the tallest bar."""
    tallest = max(whole, default=1) or 1
    bottom, unit = BARS_TOP + BARS_HEIGHT, BARS_HEIGHT / tallest
    again, fresh = [], []
    for step, (some, all_) in enumerate(zip(new, whole, strict=True)):
        x = rounded(LEFT + step * width)
        fresh.append((x, rounded(bottom - some * unit), rounded(width), rounded(some * unit)))
        again.append((x, rounded(bottom - all_ * unit), rounded(width), rounded((all_ - some) * unit)))
    scene.path(bars_path(again), fill=WASTE)
    hatch(scene, [box for box in again if box[3] > 0])
    scene.path(bars_path(fresh), fill="decode", stroke="decode", stroke_width=0.8)
    scene.path(lines_path([(LEFT, bottom), (NARROW, bottom)]), stroke="outline", stroke_width=1.0)
    return tallest


def _times(scene: Scene, seconds: Sequence[Sequence[float]], width: float) -> float:
    """Both runs as lines; returns the longest time."""
    slowest = max((time for times in seconds for time in times), default=0.0) or 1.0
    bottom = TIME_TOP + TIME_HEIGHT
    for times, stroke, dash in zip(seconds, ("decode", "preempted"), ("", "6 3"), strict=True):
        points = [
            (rounded(LEFT + (step + 0.5) * width), rounded(bottom - time / slowest * TIME_HEIGHT))
            for step, time in enumerate(times)
        ]
        scene.path(lines_path(points), stroke=stroke, dash=dash, stroke_width=2.2)
    scene.path(lines_path([(LEFT, bottom), (NARROW, bottom)]), stroke="outline", stroke_width=1.0)
    return slowest


def _new(record: StepRecord) -> int:
    return sum(item.num_tokens for item in record.batch)


def _whole(record: StepRecord) -> int:
    """Tokens that the step would have to compute without a cache."""
    return sum(item.start + item.num_tokens for item in record.batch)


def smoothed(records: Sequence[StepRecord]) -> list[float]:
    """Seconds of the model, each as the median of its neighbourhood."""
    times = [record.seconds.get("model", 0.0) for record in records]
    return [median(times[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1]) for i in range(len(times))]
