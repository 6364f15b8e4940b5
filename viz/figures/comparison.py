"""Two runs on one clock: for each, which requests were in the batch, and what each of its steps computed.

    first    A ████▄▄▄▄▄▄▄▄▄▄▄▄          x is time, on the same scale in both pictures
             B ██▄▄▄▄▄░░░░░░░░░          hatched: parked, waits for the slowest
             C ───────────────███▄▄
             tokens ▆▂▂▂▂▂▂▂▂▂▂▅▁▁
    second   A ████▄▄▄▄▄▄▄▄▄▄▄▄
             B ██▄▄▄▄▄     │             the cursor: the same moment in both
             C ───────███▄▄│
             tokens ▆▂▂▂▆▂▂▂

A step of the player is a moment: the end of a step of either run (`moments.py`). Requests are matched by
their ids, so a request has the same row, letter and colour in both.

Read next: `views/compare.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from minivllm.trace.timeline import Phase, Span, Timeline
from viz.figures.batch_composition import queues_in_words, stack, tokens_in_words
from viz.figures.captions import captions
from viz.figures.common import WASTE, WIDE, Name, hatch, names_of_requests, second_series, swatches
from viz.figures.moments import Moment, merge
from viz.figures.scheduler_gantt import SIGNS, draw_span, legend_entries
from viz.figures.time_axis import TimeScale, time_axis_labels
from viz.language import _
from viz.measures import num_computed_tokens, parked_by_step
from viz.scene import Scene, StepAxis, rounded

MOST_ROWS = 60
MOST_SIGNS = 200
LEFT = 56.0
ROWS_HEIGHT, TOKENS_HEIGHT = 260.0, 60.0


class Side(NamedTuple):
    """One of the two runs, and what it is called."""

    label: str
    timeline: Timeline


def comparison(
    first: Side, second: Side, width: float = WIDE, screen: str = "", in_steps: bool = False
) -> list[Scene]:
    """Both runs, the first on top. They have the same steps and captions: those of `merge`.

    `in_steps`: the clock of these runs counts steps, and the axis says so.
    """
    moments = merge(first.timeline, second.timeline)
    names = shared_names(first.timeline, second.timeline)
    scale = replace(_scale(first.timeline, second.timeline, width), in_steps=in_steps)
    sides = (first, second)
    most = max((_tokens(side.timeline) for side in sides), default=1)
    pictures = [_Picture(side, names, scale, most, screen, moments, sides) for side in sides]
    told = moment_captions(moments, first, second)
    for index, moment in enumerate(moments):
        for number, picture in enumerate(pictures):
            picture.scene.begin_step(told[index])
            picture.show(moment.time, moment.steps[number])
    return [picture.scene for picture in pictures]


def shared_names(first: Timeline, second: Timeline) -> dict[str, Name]:
    """One name for each id, whether one run has it or both."""
    return names_of_requests(list(dict.fromkeys([*first.spans, *second.spans])))


def moment_captions(moments: list[Moment], first: Side, second: Side) -> list[str]:
    """For each moment: what both runs are doing, one line for each."""
    names = shared_names(first.timeline, second.timeline)
    told = [captions(side.timeline, names) for side in (first, second)]
    scale = _scale(first.timeline, second.timeline, WIDE)
    sentences = []
    for moment in moments:
        lines = [_("At {time}").format(time=scale.words(moment.time))]
        for side, own, step in zip((first, second), told, moment.steps, strict=True):
            doing = _doing(side.timeline, own, step, moment.time)
            lines.append(_("{name}: {what}").format(name=side.label, what=doing))
        sentences.append("\n".join(lines))
    return sentences


def _doing(timeline: Timeline, own: list[str], step: int, time: float) -> str:
    if step >= timeline.num_steps:
        return _("done, or cut off.")
    if time < timeline.records[step].start:
        return _("between two steps; nothing is computed until step {step}.").format(step=step)
    return own[step]


def _tokens(timeline: Timeline) -> int:
    return max((num_computed_tokens(r) + r.num_padding_tokens for r in timeline.records), default=1) or 1


def _scale(first: Timeline, second: Timeline, width: float) -> TimeScale:
    """From the first arrival in either run to the end of the longer one."""
    runs = (first, second)
    arrivals = [sequence.queued_time for run in runs for sequence in run.sequences.values()]
    starts = [run.records[0].start for run in runs if run.records]
    ends = [record.end for run in runs for record in run.records]
    return TimeScale(min(arrivals + starts), max(ends), LEFT, width - 4)


class _Picture:
    """One of the two runs."""

    def __init__(
        self,
        side: Side,
        names: Mapping[str, Name],
        scale: TimeScale,
        most_tokens: int,
        screen: str,
        moments: list[Moment],
        sides: tuple[Side, Side],
    ) -> None:
        self.timeline, self.scale = side.timeline, scale
        self.parked = parked_by_step(side.timeline)
        self.arrivals: dict[str, list[float]] = {}
        """An id may come again after its first request is done."""
        for sequence in side.timeline.sequences.values():
            self.arrivals.setdefault(sequence.request, []).append(sequence.queued_time)
        requests = list(names)[:MOST_ROWS]
        row = max(5.0, min(22.0, ROWS_HEIGHT / len(requests)))
        narrow = scale.right < 800
        title = _("{label} on the common clock").format(label=side.label)
        scene = self.scene = Scene(title, scale.right + 4, 0.0, screen=screen)
        y = 18.0
        if side is sides[0]:
            entries = legend_entries([run.timeline for run in sides], narrow)
            if any(record.num_padding_tokens for run in sides for record in run.timeline.records):
                words = _("padding") if narrow else _("padding: computed and thrown away")
                entries.append((WASTE, words, 1.0))
            y = swatches(scene, 18, entries, 4, hatched=True) + 34
        scene.text(4, y, side.label, size=16, weight="bold")
        y += 20 if narrow else 0
        x, anchor = (4, "start") if narrow else (scene.width - 4, "end")
        self.now = scene.text(x, y, "", size=14, anchor=anchor)
        top = y + 14
        self._rows(requests, names, top, row)
        bottom = top + row * len(requests)
        floor = bottom + 10 + TOKENS_HEIGHT
        columns = [self._column(step) for step in range(self.timeline.num_steps)]
        stack(scene, self.timeline.records, columns, floor, TOKENS_HEIGHT / most_tokens)
        self._tokens_axis(floor, most_tokens)
        time_axis_labels(scene, scale, floor + 20)
        scene.height = floor + 28
        self._notes(requests, names)
        self.veil = scene.rect(LEFT, top, 0, floor - top, fill="page", opacity=0.62)
        self.column = scene.rect(
            LEFT, top - 3, 0, floor - top + 6, stroke="cursor", dash="4 3", stroke_width=1
        )
        self.cursor = scene.rect(LEFT, top - 5, 0, floor - top + 10, fill="cursor")
        scene.axis = StepAxis(LEFT, 0.0, tuple(rounded(scale.x(moment.time)) for moment in moments))

    def _tokens_axis(self, floor: float, most_tokens: int) -> None:
        scene, top = self.scene, floor - TOKENS_HEIGHT
        scene.path(f"M{LEFT:g},{floor:g}L{scene.width:g},{floor:g}", stroke="outline", stroke_width=1.0)
        for y, words in ((top + 9, f"{most_tokens:,}"), (top + 24, _("tokens")), (floor + 3, "0")):
            scene.text(LEFT - 6, y, words, size=12, fill="muted", anchor="end")

    def _notes(self, requests: list[str], names: Mapping[str, Name]) -> None:
        """At the foot: what a deeper shade means, and how many requests are not drawn."""
        told = [second_series(names[request] for request in requests)]
        if more := len(names) - len(requests):
            words = _("The first {drawn} of {all:,} requests are drawn; {more:,} are not.")
            told.append(words.format(drawn=MOST_ROWS, all=len(names), more=more))
        for words in filter(None, told):
            self.scene.text(LEFT, self.scene.height + 12, words, size=13, fill="muted")
            self.scene.height += 20

    def _rows(self, requests: list[str], names: Mapping[str, Name], top: float, row: float) -> None:
        scene = self.scene
        every = ceil(14 / row)
        parked: list[tuple[float, float, float, float]] = []
        signs: list[tuple[float, float, str]] = []
        for index, request in enumerate(requests):
            y, name = top + index * row, names[request]
            if index % every == 0:
                height = min(18.0, row * every - 2)
                scene.rect(
                    LEFT - 44,
                    rounded(y + (min(row * every, 22) - height) / 2),
                    36,
                    rounded(height),
                    fill=name.colour,
                    label=name.tag,
                    label_size=12,
                    radius=3,
                    tip=_("Request {full}").format(full=name.full),
                )
            if index and row >= 10:
                scene.path(f"M{LEFT:g},{y:g}L{scene.width:g},{y:g}", stroke="rule", stroke_width=0.6)
            spans = self.timeline.spans.get(request)
            if spans is None:
                scene.text(
                    LEFT + 4, rounded(y + row / 2 + 4), _("not in this run"), size=min(12, row), fill="muted"
                )
                continue
            for number, span in enumerate(spans):
                following = spans[number + 1] if number + 1 < len(spans) else None
                box = draw_span(scene, span, name, y, row, self._reach(request, span, following))
                if span.phase is Phase.PARKED:
                    parked.append(box)
                if sign := SIGNS.get(span.phase):
                    signs.append((box[0], y + row / 2, sign))
        hatch(scene, parked)
        for x, y, sign in signs[:MOST_SIGNS]:
            scene.text(x, rounded(y + 5), sign, size=15, weight="bold", anchor="middle")

    def _reach(self, request: str, span: Span, following: Span | None) -> tuple[float, float]:
        """From where to where a span goes. Waiting begins with the arrival, perhaps between two steps."""
        records = self.timeline.records
        begin, end = records[span.first].start, records[span.last].end
        if span.phase is Phase.WAITING:
            begin = max((time for time in self.arrivals[request] if time <= begin), default=begin)
        if following is not None and following.first == span.last + 1:
            end = records[following.first].start
        return self.scale.x(begin), self.scale.x(end)

    def _column(self, step: int) -> tuple[float, float]:
        record = self.timeline.records[step]
        left, right = self.scale.x(record.start), self.scale.x(record.end)
        return rounded(left), rounded(max(0.4, right - left))

    def show(self, time: float, step: int) -> None:
        """Move to a moment at which this run is in `step`."""
        scene, x = self.scene, self.scale.x(time)
        scene.set(self.veil, x=rounded(x), width=rounded(max(0.0, scene.width - x)))
        scene.set(self.cursor, x=rounded(x - 1), width=2.0)
        if step < self.timeline.num_steps and time >= self.timeline.records[step].start:
            left, width = self._column(step)
            record = self.timeline.records[step]
            words = _("step {step}: {tokens}; {queues}").format(
                step=step,
                tokens=tokens_in_words(record),
                queues=queues_in_words(record, self.parked[step]),
            )
            scene.set(self.column, x=left, width=max(width, 1.5), stroke="cursor")
        else:
            words = (
                _("done") if step >= self.timeline.num_steps else _("before step {step}").format(step=step)
            )
            scene.set(self.column, stroke="none")
        scene.set(self.now, text=words)
