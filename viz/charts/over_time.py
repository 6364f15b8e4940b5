"""A run over time: throughput, queues, memory, batches, and what the time of its steps went to.

x is seconds since the trace's header in all of them, so that what happens at the same place happens at the
same time. Numbers of a step are drawn from its start to its end; throughput is counted in bins, because a
single step says little: it has one token per sequence however long it takes.

Read next: `views/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from minivllm.trace.summary import format_seconds
from minivllm.trace.timeline import Phase, StepRecord, Timeline
from viz.charts.style import SMALL, Chart
from viz.counted import Moment
from viz.figures.time_axis import unit_for
from viz.language import N_, _
from viz.measures import BatchUse, parked_by_step

NUM_BINS = 40
PARTS = {
    "schedule": (N_("decide what to compute"), "swapped"),
    "attention": (N_("attention"), "prefill"),
    "model": (N_("the rest of the model"), "decode"),
    "sample": (N_("choose tokens"), "filled"),
    "update": (N_("note what happened"), "preempted"),
}
"""Part of a step → words and colour, in the order in which a step runs."""


def _chart(timeline: Timeline, theme: int, y: str) -> tuple[Chart, float, float, float]:
    """An empty chart over the run's time, with its start, its end, and the length of its unit in seconds."""
    start = min((sequence.queued_time for sequence in timeline.sequences.values()), default=0.0)
    if timeline.records and (snapshot := timeline.records[0].snapshot):
        start = max(start, snapshot.time)
    end = max((record.end for record in timeline.records), default=0.0)
    unit, length = unit_for(end)
    chart = Chart(theme, _("time ({unit})").format(unit=unit), y)
    chart.axes.set_xlim(start / length, max(end, start + 1e-9) / length)
    return chart, start, max(end, start + 1e-9), length


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


def throughput(timeline: Timeline, theme: int) -> Chart:
    """Output tokens per second over time."""
    chart, start, end, length = _chart(timeline, theme, _("output tokens / s"))
    # Bins shorter than a step would be empty every now and then, and say nothing but that.
    count = max(1, min(NUM_BINS, timeline.num_steps // 3))
    rates = binned(timeline.records, start, end, count)
    edges = [(start + (end - start) * index / count) / length for index in range(count + 1)]
    chart.axes.stairs(rates, edges, fill=True, color=chart.ink("decode"), alpha=0.85)
    mean = sum(len(record.sampled) for record in timeline.records) / (end - start)
    chart.axes.axhline(
        mean, color=chart.ink("ink"), linewidth=1, linestyle=(0, (4, 3)), label=_("mean of the run")
    )
    chart.legend()
    chart.from_zero()
    return chart


def _steps(
    chart: Chart,
    timeline: Timeline,
    length: float,
    value: Callable[[StepRecord], float],
    fill: str,
    **look: object,
) -> None:
    """A number of each step as a line with steps."""
    records = timeline.records
    times = [record.start / length for record in records] + [records[-1].end / length]
    values = [value(record) for record in records]
    chart.axes.step(times, [*values, values[-1]], where="post", color=chart.ink(fill), **look)  # type: ignore[arg-type]


def queues(timeline: Timeline, theme: int) -> Chart:
    """Requests running, parked and waiting."""
    chart, _start, _end, length = _chart(timeline, theme, _("requests"))
    parked = parked_by_step(timeline)
    _steps(chart, timeline, length, lambda r: r.num_running, "decode", linewidth=2, label=_("running"))
    dashes = (0, (5, 2))
    _steps(
        chart,
        timeline,
        length,
        lambda r: r.num_waiting,
        "preempted",
        linewidth=2,
        label=_("waiting"),
        linestyle=dashes,
    )
    if any(parked):
        dots = (0, (1, 1.5))
        _steps(
            chart,
            timeline,
            length,
            lambda r: parked[r.step],
            "ink",
            linewidth=1.8,
            label=_("parked"),
            linestyle=dots,
        )
    chart.legend()
    chart.from_zero(whole=True)
    return chart


def pool(timeline: Timeline, theme: int) -> Chart:
    """Blocks in use and cached, as a share of the pool."""
    chart, _start, _end, length = _chart(timeline, theme, _("share of the pool (%)"))
    size = timeline.trace.header.num_blocks / 100
    times = [record.start / length for record in timeline.records] + [timeline.records[-1].end / length]
    used = [record.num_used_blocks / size for record in timeline.records]
    both = [(record.num_used_blocks + record.num_evictable_blocks) / size for record in timeline.records]
    chart.axes.fill_between(
        times, [*used, used[-1]], step="post", color=chart.ink("filled"), linewidth=0, label=_("in use")
    )
    if both != used:
        chart.axes.fill_between(
            times,
            [*used, used[-1]],
            [*both, both[-1]],
            step="post",
            facecolor=chart.ink("cached"),
            edgecolor=chart.ink("outline"),
            linewidth=0.5,
            label=_("cached and evictable"),
        )
    chart.legend()
    chart.axes.set_ylim(0, 100)
    chart.axes.set_yticks([0, 50, 100])
    return chart


def batch(timeline: Timeline, theme: int) -> Chart:
    """Sequences of which each step computes a token, against the most that it may."""
    chart, _start, _end, length = _chart(timeline, theme, _("sequences in a step"))
    most = timeline.trace.header.max_num_seqs
    _steps(chart, timeline, length, lambda r: len(r.batch), "decode", linewidth=2)
    largest = max(len(record.batch) for record in timeline.records)
    if largest >= most / 4:
        label = f"max_num_seqs = {most:,}"
        chart.axes.axhline(most, color=chart.ink("ink"), linewidth=1, linestyle=(0, (4, 3)), label=label)
        chart.legend()
    chart.from_zero(whole=True)
    return chart


def step_time(seconds: dict[str, float], theme: int) -> Chart:
    """Where the time of all steps together went, as bars."""
    chart = Chart(theme, _("share of the steps' time (%)"), "")
    parts = time_by_part(seconds)
    whole = sum(parts.values())
    rows = list(PARTS)[::-1]
    shares = [100 * parts[part] / whole for part in rows]
    chart.axes.barh(range(len(rows)), shares, color=[chart.ink(PARTS[part][1]) for part in rows], height=0.62)
    for index, (part, share) in enumerate(zip(rows, shares, strict=True)):
        chart.note(share, index, f"{share:.0f} %, {format_seconds(parts[part])}")
    chart.axes.set_yticks(
        range(len(rows)), [_(PARTS[part][0]) for part in rows], color=chart.ink("ink"), fontsize=SMALL
    )
    _bare(chart, max(shares))
    return chart


def time_by_part(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds by part, such that they add up: attention is a part of the model's time in the trace."""
    parts = {part: seconds.get(part, 0.0) for part in PARTS}
    parts["model"] = max(0.0, parts["model"] - parts["attention"])
    return parts


def sample(
    timeline: Timeline, moments: Sequence[Moment], names: Mapping[str, str], theme: int, y: str
) -> Chart:
    """Samples of `/metrics` over time, by what the legend calls them."""
    chart, _start, _end, length = _chart(timeline, theme, y)
    for (label, name), fill in zip(names.items(), ("line0", "line1", "line2"), strict=False):
        _steps(
            chart,
            timeline,
            length,
            lambda record, name=name: moments[record.step].values[name],  # type: ignore[misc]
            fill,
            linewidth=2,
            label=label,
        )
    chart.legend()
    chart.from_zero()
    return chart


def hit_rate(timeline: Timeline, moments: Sequence[Moment], theme: int) -> Chart:
    """Prefix hits so far, of all tokens looked up so far."""
    chart, _start, _end, length = _chart(timeline, theme, _("hits of all queries so far (%)"))

    def share(record: StepRecord) -> float:
        values = moments[record.step].values
        return (
            100 * values["vllm:prefix_cache_hits_total"] / max(values["vllm:prefix_cache_queries_total"], 1)
        )

    _steps(chart, timeline, length, share, "filled", linewidth=2)
    chart.from_zero()
    return chart


def phase_means(seconds: Sequence[float], theme: int) -> Chart:
    """Mean seconds of a request in the queue, in prefill and in decode, as bars."""
    unit, length = unit_for(max(seconds))
    chart = Chart(theme, _("mean time of a request ({unit})").format(unit=unit), "", height=1.6)
    rows = [(_("decode"), "decode"), (_("prefill"), "prefill"), (_("queue"), "preempted")]
    lengths = [value / length for value in seconds][::-1]
    chart.axes.barh(range(3), lengths, color=[chart.ink(fill) for _name, fill in rows], height=0.62)
    for index, value in enumerate(reversed(seconds)):
        chart.note(lengths[index], index, format_seconds(value))
    chart.axes.set_yticks(range(3), [name for name, _fill in rows], color=chart.ink("ink"), fontsize=SMALL)
    _bare(chart, max(lengths))
    return chart


def tokens(use: BatchUse, theme: int) -> Chart:
    """Which tokens went through the model."""
    chart = Chart(theme, _("tokens"), "", height=1.6)
    rows = [
        (_("padding"), use.padding_tokens, "wasted"),
        (_("decode"), use.decode_tokens, Phase.DECODE.value),
        (_("prefill"), use.prefill_tokens, Phase.PREFILL.value),
    ]
    if not use.padding_tokens:
        rows = rows[1:]
    counts = [count for _name, count, _fill in rows]
    bars = chart.axes.barh(
        range(len(rows)), counts, color=[chart.ink(fill) for _name, _count, fill in rows], height=0.62
    )
    if use.padding_tokens:
        bars[0].set_hatch("////")
        bars[0].set_edgecolor(chart.ink("outline"))
    whole = max(sum(counts), 1)
    for index, count in enumerate(counts):
        chart.note(count, index, f"{count:,} ({count / whole:.0%})")
    chart.axes.set_yticks(
        range(len(rows)), [name for name, _count, _fill in rows], color=chart.ink("ink"), fontsize=SMALL
    )
    _bare(chart, max(counts))
    return chart


def _bare(chart: Chart, most: float) -> None:
    """Bars that carry their numbers need no axis to read them off, but room for the numbers."""
    chart.axes.set_xlim(0, 1.45 * most or 1)
    chart.axes.grid(False)
    chart.axes.spines["bottom"].set_visible(False)
    chart.axes.set_xticks([])
    chart.axes.tick_params(axis="y", length=0)
