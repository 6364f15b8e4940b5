"""Lanes: what every rank does around one step, on one clock.

             ┌──────── 7 ────────┐┌───────── 8 ─────────┐      the steps of this rank; a click leads there
    rank 0   │█████▒▒███──▒▒█████││██████▒▒█████▒▒██████│      █ computes, ▒ exchanges, ─ waits, empty: idle
               ┌──────── 7 ────────┐┌──────── 8 ────────┐
    rank 1     │███████▒▒█████▒▒███││██████▒▒█████▒▒████│
             0         1         2         3         4 ms      from the beginning of this step on

The step's own part is bright, what is before and after it dimmed. In a pipeline stages are busy with
different steps at the same time, and what is empty between two of them is the bubble.

Source: the schedules of GPipe (Huang et al., 2019), figure 2. Read next: `rank_load.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from minivllm.trace.rank_times import Doing, RankStepTimes
from minivllm.trace.timeline import Timeline
from viz import subjects
from viz.figures.common import WIDE, swatches
from viz.figures.ranks import LOOKS, RankRun, duration, entries, more_ranks, rank_captions, rank_run
from viz.figures.time_axis import LABEL_UNITS, round_step, unit_for
from viz.language import _
from viz.scene import Scene, rounded

LANE, STRIP, BAR = 66.0, 16.0, 30.0
AROUND = 0.7
"""So much of the step's length is shown before it, and after."""
MOST_BOXES, MOST_TICKS = 5, 14
MOST_PARTS = 200
"""Of one kind in a lane: with more of them, the shortest are left out, which are too thin to be seen."""
SIGN_UNITS = 9.0


def rank_lanes(timeline: Timeline, width: float = WIDE, screen: str = "") -> Scene:
    """One lane for each rank.

    Raises:
        ValueError: the trace tells of no ranks at work.
    """
    run = rank_run(timeline)
    if run is None:
        raise ValueError("rank_lanes: this run tells of no ranks at work")
    lanes = _Lanes(timeline, run, width, screen)
    for step, sentence in enumerate(rank_captions(timeline, run)):
        lanes.scene.begin_step(sentence)
        lanes.show(step)
    return lanes.scene


class _Lanes:
    def __init__(self, timeline: Timeline, run: RankRun, width: float, screen: str) -> None:
        self.run = run
        self.begin = self.first = 0.0  # of the step that is shown, and of what is shown around it
        self.scale = 1.0
        narrow = width < 800
        self.left = 88.0 if narrow else 150.0
        scene = self.scene = Scene(_("What every rank does, around one step"), width, 0.0, screen=screen)
        self.top = swatches(scene, 18, entries(run, narrow=narrow), 4) + 22
        bottom = self.top + LANE * len(run.ranks)
        self.rules = scene.path("", stroke="rule", stroke_width=1.0)
        self.of_rank: dict[int, list[tuple[int, RankStepTimes]]] = {rank: [] for rank in run.ranks}
        for step, times in run.steps.items():
            for one in times:
                if one.rank in self.of_rank:
                    self.of_rank[one.rank].append((step, one))
        self.lanes = [_Lane(self, rank, self.top + LANE * index) for index, rank in enumerate(run.ranks)]
        self.ticks = [
            scene.text(0, bottom + 18, "", size=13, fill="muted", anchor="middle")
            for _number in range(MOST_TICKS)
        ]
        self.unit = scene.text(self.left - 10, bottom + 18, "", size=13, fill="muted", anchor="end")
        self.nothing = scene.text(self.left, self.top - 6, "", size=14, fill="muted")
        self.bottom = bottom
        scene.height = bottom + 28
        if more := more_ranks(run):
            scene.text(4, scene.height + 12, more, size=13, fill="muted")
            scene.height += 20

    def show(self, step: int) -> None:
        """Show what is around this step."""
        times = self.run.steps.get(step, ())
        words = "" if times else _("What ranks did in this step is not told.")
        self.scene.set(self.nothing, text=words)
        begin = min((one.start for one in times), default=0.0)
        length = max(max((one.end for one in times), default=0.0) - begin, 1e-6)
        self.begin, self.first = begin, begin - AROUND * length
        self.scale = (self.scene.width - 4 - self.left) / ((1 + 2 * AROUND) * length)
        for lane in self.lanes:
            lane.show(step if times else -1, begin + (1 + AROUND) * length)
        self._show_ticks(length if times else 0.0)

    def x(self, time: float) -> float:
        """Where a time lies; never outside the lanes."""
        place = self.left + (time - self.first) * self.scale
        return round(min(self.scene.width - 4, max(self.left, place)), 1)

    def _show_ticks(self, length: float) -> None:
        shown: list[float] = []
        if length:
            tick = round_step((1 + 2 * AROUND) * length * LABEL_UNITS / (self.scene.width - self.left))
            number = int(-AROUND * length / tick)
            shown = [tick * (number + index) for index in range(MOST_TICKS)]
            shown = [time for time in shown if -AROUND * length <= time <= (1 + AROUND) * length]
        unit, second = unit_for(max(length, 1e-6))
        for index, text in enumerate(self.ticks):
            time = shown[index] if index < len(shown) else None
            if time is None or self.x(self.begin + time) > self.scene.width - 20:
                self.scene.set(text, text="")
                continue
            self.scene.set(text, x=self.x(self.begin + time), text=f"{time / second:,.4g}".replace("-", "−"))
        places = [f"{self.x(self.begin + time):g}" for time in shown]
        d = "".join(f"M{x},{self.top - 4:g}L{x},{self.bottom:g}" for x in places)
        self.scene.set(self.rules, d=d)
        self.scene.set(self.unit, text=unit if shown else "")


class _Lane:
    """One rank."""

    def __init__(self, lanes: _Lanes, rank: int, y: float) -> None:
        self.lanes, self.rank, scene = lanes, rank, lanes.scene
        self.times = lanes.of_rank[rank]
        self.starts = [one.start for _, one in self.times]
        self.bar = y + STRIP + 4
        left, right = lanes.left, scene.width - 4
        scene.text(4, y + 14, lanes.run.name(rank), size=15, weight="bold")
        place = lanes.run.place(rank)
        if left > 100:
            scene.text(4, y + 32, place, size=12, fill="muted")
        self.computes = scene.text(4, y + 48, "", size=12, fill="muted")
        scene.rect(
            left, self.bar, right - left, BAR, fill="free", stroke="outline", stroke_width=0.8, tip=place
        )
        self.parts = {
            doing: scene.path("", stroke=look.fill, stroke_width=BAR * look.height)
            for doing, look in LOOKS.items()
        }
        self.veils = [
            scene.rect(left, y, 0, LANE - 12, fill="page", opacity=0.55),
            scene.rect(left, y, 0, LANE - 12, fill="page", opacity=0.55),
        ]
        self.boxes = [
            scene.rect(left, y, 0, STRIP, fill="none", stroke="none", label_size=12, radius=2)
            for _number in range(MOST_BOXES)
        ]
        self.frame = scene.rect(left, self.bar, 0, BAR, stroke="none", stroke_width=1.6)

    def show(self, step: int, end: float) -> None:
        scene, x = self.lanes.scene, self.lanes.x
        own = self._own(step)
        shown = [] if step < 0 else list(self._shown(end))
        for doing, path in self.parts.items():
            tip = self._tip(doing, step, own)
            scene.set(path, d=self._path(doing, [one for _, one in shown]), tip=tip)
        self._show_boxes(step, shown)
        left, right = (x(own.start), x(own.end)) if own else (self.lanes.left,) * 2
        is_there = own is not None
        scene.set(self.frame, x=left, width=rounded(right - left), stroke="cursor" if is_there else "none")
        scene.set(self.veils[0], width=rounded(left - self.lanes.left))
        scene.set(self.veils[1], x=right, width=rounded(scene.width - 4 - right) if is_there else 0.0)
        share = own.seconds(Doing.COMPUTE) / max(own.end - own.start, 1e-9) if own else 0.0
        scene.set(self.computes, text=_("computes {share:.0%}").format(share=share) if own else "")

    def _own(self, step: int) -> RankStepTimes | None:
        times = self.lanes.run.steps.get(step, ())
        return next((one for one in times if one.rank == self.rank), None)

    def _shown(self, end: float) -> Iterator[tuple[int, RankStepTimes]]:
        """Its steps within the window: the one before the first that begins there may reach into it."""
        first = max(0, bisect_left(self.starts, self.lanes.first) - 1)
        for number in range(first, min(first + 4 * MOST_BOXES, len(self.times))):
            step, one = self.times[number]
            if one.start < end and one.end > self.lanes.first:
                yield step, one

    def _path(self, doing: Doing, shown: Sequence[RankStepTimes]) -> str:
        """A thick line for each stretch: a third of the letters that its outline would take."""
        look, x = LOOKS[doing], self.lanes.x
        y = rounded(self.bar + BAR * (look.top + look.height / 2))
        found = [
            (x(part.start), x(part.end)) for one in shown for part in one.stretches if part.doing is doing
        ]
        found = [(left, right) for left, right in found if right > left]
        if len(found) > MOST_PARTS:
            least = sorted((right - left for left, right in found), reverse=True)[MOST_PARTS]
            found = [(left, right) for left, right in found if right - left > least]
        return "".join(f"M{left:g},{y:g}L{right:g},{y:g}" for left, right in found)

    def _show_boxes(self, step: int, shown: Sequence[tuple[int, RankStepTimes]]) -> None:
        """The nearest steps, each with its number."""
        scene, x = self.lanes.scene, self.lanes.x
        near = sorted(shown, key=lambda item: abs(item[0] - step))[:MOST_BOXES]
        near.sort(key=lambda item: item[0])
        for index, box in enumerate(self.boxes):
            if index >= len(near):
                scene.set(box, width=0.0, stroke="none", label="", tip="", subject="")
                continue
            number, one = near[index]
            left, right = x(one.start), x(one.end)
            fits = right - left > SIGN_UNITS * len(str(number)) + 4
            scene.set(
                box,
                x=left,
                width=rounded(max(1.0, right - left)),
                fill="panel",
                stroke="cursor" if number == step else "outline",
                label=str(number) if fits else "",
                tip=_("step {step} of {rank}: {time}").format(
                    step=number, rank=self.lanes.run.name(self.rank), time=duration(one.end - one.start)
                ),
                subject=subjects.step(number),
            )

    def _tip(self, doing: Doing, step: int, own: RankStepTimes | None) -> str:
        if own is None:
            return ""
        seconds, whole = own.seconds(doing), max(own.end - own.start, 1e-9)
        return _("{rank}, step {step}: {what}, {time} ({share:.0%} of the step)").format(
            rank=self.lanes.run.name(self.rank),
            step=step,
            what=_(LOOKS[doing].words).split(":")[0].split("：")[0],
            time=duration(seconds),
            share=seconds / whole,
        )
