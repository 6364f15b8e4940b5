"""A run over time: throughput, queues, memory, batches, and what the time of its steps went to.

x is seconds since the trace's header in all of them, so that what happens at the same place happens at the
same time. Numbers of a step are drawn from its start to the next one's; throughput is counted in bins,
because a single step says little: it has one token per sequence however long it takes.

Read next: `views/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minivllm.trace.summary import format_seconds
from minivllm.trace.timeline import Phase, StepRecord, Timeline
from viz.charts.bars import Bar, lying
from viz.charts.style import Chart, Steps, after, spread, stairs
from viz.counted import Moment
from viz.figures.time_axis import unit_for
from viz.language import N_, _
from viz.measures import BatchUse, parked_by_step
from viz.scene import Scene

NUM_BINS = 40
PARTS = {
    "schedule": (N_("decide what to compute"), "swapped"),
    "attention": (N_("attention"), "prefill"),
    "model": (N_("the rest of the model"), "decode"),
    "sample": (N_("choose tokens"), "filled"),
    "update": (N_("note what happened"), "preempted"),
}
"""Part of a step → words and colour, in the order in which a step runs."""

Number = Callable[[StepRecord], float]


class OverTime:
    """Charts of a run, whose x is its time.

    Args:
        captions: what the player says at each step.
    """

    def __init__(self, timeline: Timeline, captions: Sequence[str]) -> None:
        self.timeline, self.captions = timeline, captions
        self.records = timeline.records
        start = min((sequence.queued_time for sequence in timeline.sequences.values()), default=0.0)
        if self.records and (snapshot := self.records[0].snapshot):
            start = max(start, snapshot.time)
        self.start = start
        self.end = after(start, max((record.end for record in self.records), default=0.0))
        self.unit, self.length = unit_for(self.end)
        starts = [record.start / self.length for record in self.records]
        self.steps = Steps(starts, [record.end / self.length for record in self.records])

    # ── charts ────────────────────────────────────────────────────────────────────────────────────────

    def throughput(self, title: str) -> Scene:
        """Output tokens per second."""
        chart = self._chart(title, _("output tokens / s"))
        # Bins shorter than a step would be empty every now and then, and say nothing but that.
        count = max(1, min(NUM_BINS, len(self.records) // 3))
        rates = binned(self.records, self.start, self.end, count)
        width = (self.end - self.start) / count
        edges = [(self.start + width * index) / self.length for index in range(count + 1)]
        corners = [
            (edge, rate) for index, rate in enumerate(rates) for edge in (edges[index], edges[index + 1])
        ]
        chart.area(corners, "decode", opacity=0.85)
        mean = sum(len(record.sampled) for record in self.records) / (self.end - self.start)
        chart.line([(edges[0], mean), (edges[-1], mean)], "ink", "5 4", 1.3, _("mean of the run"))

        def rate(record: StepRecord) -> float:
            return rates[min(max(int((record.end - self.start) / width), 0), count - 1)]

        self._point_out(chart, {_("output tokens / s"): rate}, rate)
        return chart.scene(self.captions)

    def queues(self, title: str) -> Scene:
        """Requests running, parked and waiting."""
        parked = parked_by_step(self.timeline)
        numbers: dict[str, tuple[Number, str, str]] = {
            _("running"): (lambda record: record.num_running, "decode", ""),
            _("waiting"): (lambda record: record.num_waiting, "preempted", "6 3"),
        }
        if any(parked):
            numbers[_("parked")] = (lambda record: parked[record.step], "ink", "2 3")
        return self._lines(title, _("requests"), numbers, whole=True)

    def pool(self, title: str) -> Scene:
        """Blocks in use and cached, as a share of the pool."""
        chart = self._chart(title, _("share of the pool (%)"))
        size = self.timeline.trace.header.num_blocks / 100
        used = [record.num_used_blocks / size for record in self.records]
        both = [(record.num_used_blocks + record.num_evictable_blocks) / size for record in self.records]
        numbers: dict[str, Number] = {_("in use"): lambda record: used[record.step]}
        if both != used:
            words = _("cached and evictable")
            chart.area(stairs(self.steps, both), "cached", words, stroke="outline")
            numbers[words] = lambda record: both[record.step] - used[record.step]
        chart.area(stairs(self.steps, used), "filled", _("in use"))
        chart.top, chart.tick = 100.0, 50.0
        self._point_out(chart, numbers, lambda record: both[record.step])
        return chart.scene(self.captions)

    def batch(self, title: str) -> Scene:
        """Sequences of which each step computes a token, against the most that it may."""
        chart = self._chart(title, _("sequences in a step"))
        chart.whole = True
        most = self.timeline.trace.header.max_num_seqs
        values = [float(len(record.batch)) for record in self.records]
        chart.line(stairs(self.steps, values), "decode")
        if max(values) >= most / 4:
            ends = [(chart.first, float(most)), (chart.last, float(most))]
            chart.line(ends, "ink", "5 4", 1.3, f"max_num_seqs = {most:,}")
        words = _("sequences")
        self._point_out(chart, {words: lambda r: values[r.step]}, lambda record: values[record.step])
        return chart.scene(self.captions)

    def sample(self, title: str, up: str, moments: Sequence[Moment], names: Mapping[str, str]) -> Scene:
        """Samples of `/metrics`, by what the legend calls them."""

        def value(name: str) -> Number:
            return lambda record: moments[record.step].values[name]

        looks = (("line0", ""), ("line1", "9 4"), ("line2", "3 3"))
        numbers = {
            words: (value(name), *look) for (words, name), look in zip(names.items(), looks, strict=False)
        }
        return self._lines(title, up, numbers)

    def hit_rate(self, title: str, moments: Sequence[Moment]) -> Scene:
        """Prefix hits so far, of all tokens looked up so far."""

        def share(record: StepRecord) -> float:
            values = moments[record.step].values
            queries = values["vllm:prefix_cache_queries_total"]
            return 100 * values["vllm:prefix_cache_hits_total"] / max(queries, 1)

        up = _("hits of all queries so far (%)")
        return self._lines(title, up, {up: (share, "filled", "")}, is_explained=False)

    # ── what they have in common ──────────────────────────────────────────────────────────────────────

    def _chart(self, title: str, up: str) -> Chart:
        across = _("time ({unit})").format(unit=self.unit)
        return Chart(title, across, up, self.start / self.length, self.end / self.length, self.steps)

    def _lines(
        self,
        title: str,
        up: str,
        numbers: Mapping[str, tuple[Number, str, str]],
        *,
        whole: bool = False,
        is_explained: bool = True,
    ) -> Scene:
        """A line with steps for each number: `(value, colour, dash)` by its words."""
        chart = self._chart(title, up)
        chart.whole = whole
        for words, (value, stroke, dash) in numbers.items():
            values = [value(record) for record in self.records]
            chart.line(stairs(self.steps, values), stroke, dash, words=words if is_explained else "")
        told = {words: value for words, (value, _stroke, _dash) in numbers.items()}
        self._point_out(chart, told, next(iter(told.values())))
        return chart.scene(self.captions)

    def _point_out(self, chart: Chart, numbers: Mapping[str, Number], height: Number) -> None:
        """What a pointer reads at a step; of very many steps, at those that lie evenly."""
        for index in spread(len(self.records)):
            record = self.records[index]
            told = _(", ").join(
                _("{name}: {value:,.4g}").format(name=words, value=value(record))
                for words, value in numbers.items()
            )
            told = _("step {step}, {time}: {words}").format(
                step=record.step, time=format_seconds(record.end), words=told
            )
            chart.point(record.end / self.length, height(record), index, told)


def binned(records: Sequence[StepRecord], start: float, end: float, count: int = NUM_BINS) -> list[float]:
    """Output tokens per second in `count` equal parts of the time from `start` to `end`.

    A token counts at the end of its step, when the caller gets it.
    """
    width = (end - start) / count
    tokens = [0] * count
    for record in records:
        place = int((record.end - start) / width)
        tokens[min(max(place, 0), count - 1)] += len(record.sampled)
    return [number / width for number in tokens]


# ── bars: sums over the whole run ─────────────────────────────────────────────────────────────────────


def step_time(seconds: Mapping[str, float], title: str, captions: Sequence[str]) -> Scene:
    """Where the time of all steps together went."""
    parts = time_by_part(seconds)
    whole = sum(parts.values())
    bars = [
        Bar(_(words), parts[part], fill, f"{parts[part] / whole:.0%}, {format_seconds(parts[part])}")
        for part, (words, fill) in PARTS.items()
    ]
    return lying(title, _("share of the steps' time (%)"), bars, captions)


def time_by_part(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part, such that they add up: attention is a part of the model's time in the trace."""
    parts = {part: seconds.get(part, 0.0) for part in PARTS}
    parts["model"] = max(0.0, parts["model"] - parts["attention"])
    return parts


def phase_means(seconds: Sequence[float], title: str, captions: Sequence[str]) -> Scene:
    """Mean seconds of a request in the queue, in prefill and in decode."""
    unit, _length = unit_for(max(seconds))
    rows = [(_("queue"), "preempted"), (_("prefill"), "prefill"), (_("decode"), "decode")]
    bars = [
        Bar(name, value, fill, format_seconds(value))
        for (name, fill), value in zip(rows, seconds, strict=True)
    ]
    return lying(title, _("mean time of a request ({unit})").format(unit=unit), bars, captions)


def tokens(use: BatchUse, title: str, captions: Sequence[str]) -> Scene:
    """Which tokens went through the model."""
    rows = [
        (_("prefill"), use.prefill_tokens, Phase.PREFILL.value),
        (_("decode"), use.decode_tokens, Phase.DECODE.value),
        (_("padding"), use.padding_tokens, "wasted"),
    ]
    whole = max(sum(count for _name, count, _fill in rows), 1)
    bars = [
        Bar(name, count, fill, f"{count:,} ({count / whole:.0%})")
        for name, count, fill in rows
        if count or fill != "wasted"
    ]
    return lying(title, _("tokens"), bars, captions)
