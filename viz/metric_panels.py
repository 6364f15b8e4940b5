"""The panels of the page of metrics: for each a chart of the run, and what a server would have said of it.

    chart                     drawn from the trace, which knows every value
    numbers                   of the whole run
    vllm:… samples            what `/metrics` would have said at the end: sums and counts, and no single value
    PromQL                    how Grafana asks for the same panel while a server runs

Read next: `metric_charts.py`, which draws them; `panels.py` for the PromQL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from minivllm.trace.summary import RunSummary, format_seconds, percentiles
from minivllm.trace.timeline import Timeline
from viz.charts import buckets, latencies, over_time
from viz.charts.bars import nothing
from viz.charts.over_time import OverTime
from viz.counted import Counted
from viz.language import N_, _, sentences
from viz.measures import Latencies, batch_use
from viz.measures import latencies as measure
from viz.panels import BY_KEY
from viz.scene import Scene

Captions = Sequence[str]
"""Of the steps, which all pictures of the page share."""
NOTHING = N_("Nothing of this kind was measured in this run.")


class Panel(NamedTuple):
    """One chart, its title, what it says, and its numbers."""

    title: str
    sentence: str
    numbers: str
    draw: Callable[[], Scene] | None
    """None if there is nothing to draw."""
    key: str = ""
    """Of Grafana's panel of the same (`panels.py`); empty if no metric of vLLM says it."""
    samples: tuple[str, ...] = ()
    """Names of what `/metrics` says of it."""

    def scene(self, told: Captions) -> Scene:
        """The chart, or that there is none."""
        return self.draw() if self.draw else nothing(self.title, self.numbers, told)


def _histogram(*names: str) -> tuple[str, ...]:
    return tuple(f"vllm:{name}_{end}" for name in names for end in ("sum", "count"))


def user_panels(timeline: Timeline, counted: Counted, told: Captions) -> list[Panel]:
    """Latencies: what users feel."""
    found = measure(timeline)
    kinds: list[tuple[str, str, str, str]] = [
        (
            "ttft",
            _("Time to first token (TTFT)"),
            _(
                "From a request's arrival to the end of the step that sampled its first token: the queue and "
                "the prefill."
            ),
            "prefill",
        ),
        (
            "inter_token",
            _("Inter-token latency"),
            _(
                "From one token of a request to its next. A long prefill, or a preemption, of others "
                "shows here."
            ),
            "decode",
        ),
        (
            "end_to_end",
            _("End-to-end latency"),
            _("From a request's arrival until its last token. Aborted and unfinished requests are left out."),
            "filled",
        ),
        (
            "queue",
            _("Queue time"),
            _(
                "From a request's arrival to the start of the first step that computes some of its tokens. "
                "(The metric counts it when the request has finished.)"
            ),
            "preempted",
        ),
    ]
    return [_latency(found, counted, told, *kind) for kind in kinds]


def _latency(
    found: Latencies, counted: Counted, captions: Captions, key: str, title: str, sentence: str, fill: str
) -> Panel:
    field = {"queue": "queue_time"}.get(key, key)
    values, steps = getattr(found, field), found.steps[field]
    name = BY_KEY[key].metric.removeprefix("vllm:")
    tally = counted.counts.tallies[name]
    numbers = latencies.in_words(percentiles(values))
    if median := tally.quantile(0.5):
        high = tally.quantile(0.99)
        told = _("From its buckets alone, `histogram_quantile` makes p50 {median} and p99 {high}.")
        told = told.format(median=format_seconds(median), high=format_seconds(high))
        numbers = sentences([numbers, told])
    draw = partial(latencies.distribution, values, steps, title, fill, captions) if values else None
    return Panel(title, sentence, numbers, draw, key, _histogram(name))


def owner_panels(timeline: Timeline, summary: RunSummary, counted: Counted, told: Captions) -> list[Panel]:
    """Throughput, queues, memory and batches over time: what the owner counts."""
    charts = OverTime(timeline, told)
    return [
        *_of_speed(summary, charts),
        *_of_room(summary, charts),
        _preemptions(summary, counted, charts),
        _prefix_cache(counted, charts),
        *_only_ours(timeline, summary, told),
    ]


def _of_speed(summary: RunSummary, charts: OverTime) -> list[Panel]:
    records = charts.records
    speed = summary.output_tokens_per_second
    return [
        Panel(
            _("Throughput"),
            _("Output tokens of all requests together, in a second, counted when the caller gets them."),
            _("Mean {speed:,.1f} tokens/s in {duration}.").format(
                speed=speed, duration=format_seconds(summary.duration_seconds)
            )
            if speed
            else _(NOTHING),
            partial(charts.throughput, _("Throughput")) if speed else None,
            "throughput",
            ("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        ),
        Panel(
            _("Requests running and waiting"),
            _("Running requests use blocks; waiting ones use none, and keep their position in the queue."),
            _("At most {running:,} running and {waiting:,} waiting.").format(
                running=max(r.num_running for r in records), waiting=max(r.num_waiting for r in records)
            ),
            partial(charts.queues, _("Requests running and waiting")),
            "scheduler",
            ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_swapped"),
        ),
    ]


def _of_room(summary: RunSummary, charts: OverTime) -> list[Panel]:
    header, use = charts.timeline.trace.header, batch_use(charts.timeline)
    return [
        Panel(
            _("Use of the pool"),
            _(
                "Physical blocks that some request uses, of all that there are. When the pool is full, "
                "requests are preempted or wait."
            ),
            _("Peak {peak:,} of {all:,} blocks ({share:.0%}), mean {mean:,.1f} blocks.").format(
                peak=summary.peak_used_blocks,
                all=header.num_blocks,
                share=summary.peak_used_blocks / header.num_blocks,
                mean=summary.mean_used_blocks,
            ),
            partial(charts.pool, _("Use of the pool")),
            "cache",
            ("vllm:kv_cache_usage_perc", "vllm:cpu_cache_usage_perc"),
        ),
        Panel(
            _("Batch occupancy"),
            _(
                "Sequences of which a step computes at least one token; the weights are read once for all of "
                "them. (The metric counts their tokens.)"
            ),
            _("Mean {mean:,.1f} of at most {most:,} sequences, averaged over steps.").format(
                mean=use.mean_sequences, most=header.max_num_seqs
            ),
            partial(charts.batch, _("Batch occupancy")),
            "iterations",
            _histogram("iteration_tokens_total"),
        ),
    ]


def _preemptions(summary: RunSummary, counted: Counted, charts: OverTime) -> Panel:
    number, name = summary.num_preemptions, "vllm:num_preemptions_total"
    names = {_("preemptions so far"): name}
    title = _("Preemptions")
    return Panel(
        title,
        _("Requests that had to leave the batch for others, counted from the beginning."),
        _("{number:,} in this run.").format(number=number)
        if number
        else _("No request was preempted in this run."),
        partial(charts.sample, title, _("preemptions"), counted.moments, names) if number else None,
        "preemptions",
        (name,),
    )


def _prefix_cache(counted: Counted, charts: OverTime) -> Panel:
    hits, queries = (counted.last.get(f"vllm:prefix_cache_{name}_total", 0.0) for name in ("hits", "queries"))
    title = _("Prefix cache hit rate")
    return Panel(
        title,
        _("Of the tokens that admitted requests looked up, those whose keys and values were there already."),
        _("{hits:,.0f} of {queries:,.0f} tokens ({rate:.1%}).").format(
            hits=hits, queries=queries, rate=hits / queries
        )
        if queries
        else _("This run had no prefix cache."),
        partial(charts.hit_rate, title, counted.moments) if queries else None,
        "prefix_cache",
        ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
    )


def _only_ours(timeline: Timeline, summary: RunSummary, captions: Captions) -> list[Panel]:
    """What only the trace knows."""
    use = batch_use(timeline)
    whole = sum(over_time.time_by_part(summary.step_seconds).values())
    computed = use.prefill_tokens + use.decode_tokens + use.padding_tokens
    told = _("{computed:,} tokens, padding {share:.1%}.") if use.padding_tokens else _("{computed:,} tokens.")
    parts, through = _("Where the time of a step goes"), _("Tokens that went through the model")
    return [
        Panel(
            parts,
            _("Seconds of all steps together. The time between two steps is not counted."),
            _("All steps together took {whole}.").format(whole=format_seconds(whole))
            if whole > 0
            else _(NOTHING),
            partial(over_time.step_time, summary.step_seconds, parts, captions) if whole > 0 else None,
        ),
        Panel(
            through,
            _(
                "Prefill: prompts, and what is computed again. Decode: one token for each sequence and step. "
                "Padding: computed only to make a static batch rectangular."
            ),
            told.format(computed=computed, share=use.padding_share) if computed else _(NOTHING),
            partial(over_time.tokens, use, through, captions) if computed else None,
        ),
    ]


def request_panels(counted: Counted, told: Captions) -> list[Panel]:
    """Finished requests: how long they were, how they ended, and what their time went to."""
    counts = counted.counts
    ended = {reason: number for reason, number in counts.finished.items() if number}
    numbers = _(", ").join(
        _("{name}: {count:,}").format(name=reason, count=number) for reason, number in ended.items()
    )
    reasons = _("Finish reasons")
    return [
        _lengths(
            counted,
            told,
            "prompt_lengths",
            _("Prompt lengths"),
            _("Tokens of the prompts of finished requests."),
            "prefill",
        ),
        _lengths(
            counted,
            told,
            "generation_lengths",
            _("Generation lengths"),
            _("Tokens of all outputs of a finished request together."),
            "decode",
        ),
        Panel(
            reasons,
            _("Why requests ended: a stop token or string, the limit on their length, an abort, an error."),
            _("{sentence}.").format(sentence=numbers) if ended else _(NOTHING),
            partial(buckets.counts, ended, reasons, _("finish reason"), "filled", told) if ended else None,
            "finish_reasons",
            ("vllm:request_success_total",),
        ),
        _phases(counted, told),
    ]


def _lengths(counted: Counted, told: Captions, key: str, title: str, sentence: str, fill: str) -> Panel:
    name = BY_KEY[key].metric.removeprefix("vllm:")
    tally = counted.counts.tallies[name]
    mean = tally.mean
    across = _("tokens (upper edge of the bucket)")
    draw = partial(buckets.buckets, tally, title, across, fill, told)
    numbers = (
        _("Mean {mean:,.1f} tokens of {count:,} requests.").format(mean=mean, count=tally.num_values)
        if mean is not None
        else _(NOTHING)
    )
    return Panel(title, sentence, numbers, draw if mean is not None else None, key, _histogram(name))


def _phases(counted: Counted, told: Captions) -> Panel:
    names = ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds")
    means = [counted.counts.tallies[name].mean for name in names]
    words = [
        f"{label} {format_seconds(mean)}"
        for label, mean in zip((_("queue"), _("prefill"), _("decode")), means, strict=True)
        if mean is not None
    ]
    title = _("Queue, prefill and decode time")
    return Panel(
        title,
        _("What the time of a finished request went to, on average."),
        _("Mean {words}.").format(words=_(", ").join(words)) if words else _(NOTHING),
        partial(over_time.phase_means, [mean or 0.0 for mean in means], title, told) if any(means) else None,
        "phases",
        _histogram(*names),
    )


def queries_in_words(key: str) -> str:
    """The PromQL of a panel: all of its queries, but of a latency one quantile and the mean."""
    queries = BY_KEY[key].queries
    chosen: Sequence[str] = [query.expr for query in queries]
    return "\n\n".join(chosen if len(chosen) < 4 else (chosen[0], chosen[-1]))
