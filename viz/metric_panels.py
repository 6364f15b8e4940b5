"""The panels of the page of metrics: for each a chart of the run, and what a server would have said of it.

    chart                     drawn from the trace, which knows every value
    numbers                   of the whole run
    vllm:… samples            what `/metrics` would have said at the end: sums and counts, and no single value
    PromQL                    how Grafana asks for the same panel while a server runs

Read next: `views/metrics.py`, which shows them; `panels.py` for the PromQL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from minivllm.trace.summary import format_seconds, percentiles
from viz.charts import buckets, latencies, over_time
from viz.charts.style import Chart
from viz.counted import Counted
from viz.language import N_, _, sentences
from viz.loading import Run
from viz.measures import Latencies, batch_use
from viz.measures import latencies as measure
from viz.panels import BY_KEY

NOTHING = N_("Nothing of this kind was measured in this run.")


class Panel(NamedTuple):
    """One chart, its title, what it says, and its numbers."""

    title: str
    sentence: str
    numbers: str
    draw: Callable[[int], Chart] | None
    """None if there is nothing to draw."""
    key: str = ""
    """Of Grafana's panel of the same (`panels.py`); empty if no metric of vLLM says it."""
    samples: tuple[str, ...] = ()
    """Names of what `/metrics` says of it."""


def _histogram(*names: str) -> tuple[str, ...]:
    return tuple(f"vllm:{name}_{end}" for name in names for end in ("sum", "count"))


def user_panels(run: Run, counted: Counted) -> list[Panel]:
    """Latencies: what users feel."""
    found = measure(run.timeline)
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
    return [_latency(found, counted, *kind) for kind in kinds]


def _latency(found: Latencies, counted: Counted, key: str, title: str, sentence: str, fill: str) -> Panel:
    values = getattr(found, {"queue": "queue_time"}.get(key, key))
    name = BY_KEY[key].metric.removeprefix("vllm:")
    tally = counted.counts.tallies[name]
    numbers = latencies.in_words(percentiles(values))
    if median := tally.quantile(0.5):
        high = tally.quantile(0.99)
        told = _("From its buckets alone, `histogram_quantile` makes p50 {median} and p99 {high}.")
        told = told.format(median=format_seconds(median), high=format_seconds(high))
        numbers = sentences([numbers, told])
    draw = partial(latencies.distribution, values, fill=fill) if values else None
    return Panel(title, sentence, numbers, draw, key, _histogram(name))


def owner_panels(run: Run, counted: Counted) -> list[Panel]:
    """Throughput, queues, memory and batches over time: what the owner counts."""
    return [
        *_of_speed(run),
        *_of_room(run),
        _preemptions(run, counted),
        _prefix_cache(run, counted),
        *_only_ours(run),
    ]


def _of_speed(run: Run) -> list[Panel]:
    timeline, summary, records = run.timeline, run.summary, run.timeline.records
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
            partial(over_time.throughput, timeline) if speed else None,
            "throughput",
            ("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
        ),
        Panel(
            _("Requests running and waiting"),
            _("Running requests use blocks; waiting ones use none, and keep their position in the queue."),
            _("At most {running:,} running and {waiting:,} waiting.").format(
                running=max(r.num_running for r in records), waiting=max(r.num_waiting for r in records)
            ),
            partial(over_time.queues, timeline),
            "scheduler",
            ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_swapped"),
        ),
    ]


def _of_room(run: Run) -> list[Panel]:
    timeline, summary = run.timeline, run.summary
    header, use = timeline.trace.header, batch_use(timeline)
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
            partial(over_time.pool, timeline),
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
            partial(over_time.batch, timeline),
            "iterations",
            _histogram("iteration_tokens_total"),
        ),
    ]


def _preemptions(run: Run, counted: Counted) -> Panel:
    number, name = run.summary.num_preemptions, "vllm:num_preemptions_total"
    names = {_("preemptions so far"): name}
    draw = partial(over_time.sample, run.timeline, counted.moments, names, y=_("preemptions"))
    return Panel(
        _("Preemptions"),
        _("Requests that had to leave the batch for others, counted from the beginning."),
        _("{number:,} in this run.").format(number=number)
        if number
        else _("No request was preempted in this run."),
        draw if number else None,
        "preemptions",
        (name,),
    )


def _prefix_cache(run: Run, counted: Counted) -> Panel:
    hits, queries = (counted.last.get(f"vllm:prefix_cache_{name}_total", 0.0) for name in ("hits", "queries"))
    return Panel(
        _("Prefix cache hit rate"),
        _("Of the tokens that admitted requests looked up, those whose keys and values were there already."),
        _("{hits:,.0f} of {queries:,.0f} tokens ({rate:.1%}).").format(
            hits=hits, queries=queries, rate=hits / queries
        )
        if queries
        else _("This run had no prefix cache."),
        partial(over_time.hit_rate, run.timeline, counted.moments) if queries else None,
        "prefix_cache",
        ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
    )


def _only_ours(run: Run) -> list[Panel]:
    """What only the trace knows."""
    summary, use = run.summary, batch_use(run.timeline)
    whole = sum(over_time.time_by_part(summary.step_seconds).values())
    computed = use.prefill_tokens + use.decode_tokens + use.padding_tokens
    told = _("{computed:,} tokens, padding {share:.1%}.") if use.padding_tokens else _("{computed:,} tokens.")
    return [
        Panel(
            _("Where the time of a step goes"),
            _("Seconds of all steps together. The time between two steps is not counted."),
            _("All steps together took {whole}.").format(whole=format_seconds(whole))
            if whole > 0
            else _(NOTHING),
            partial(over_time.step_time, summary.step_seconds) if whole > 0 else None,
        ),
        Panel(
            _("Tokens that went through the model"),
            _(
                "Prefill: prompts, and what is computed again. Decode: one token for each sequence and step. "
                "Padding: computed only to make a static batch rectangular."
            ),
            told.format(computed=computed, share=use.padding_share) if computed else _(NOTHING),
            partial(over_time.tokens, use) if computed else None,
        ),
    ]


def request_panels(counted: Counted) -> list[Panel]:
    """Finished requests: how long they were, how they ended, and what their time went to."""
    counts = counted.counts
    ended = {reason: number for reason, number in counts.finished.items() if number}
    numbers = _(", ").join(f"{reason}: {number:,}" for reason, number in ended.items())
    return [
        _lengths(
            counted,
            "prompt_lengths",
            _("Prompt lengths"),
            _("Tokens of the prompts of finished requests."),
            "prefill",
        ),
        _lengths(
            counted,
            "generation_lengths",
            _("Generation lengths"),
            _("Tokens of all outputs of a finished request together."),
            "decode",
        ),
        Panel(
            _("Finish reasons"),
            _("Why requests ended: a stop token or string, the limit on their length, an abort, an error."),
            _("{sentence}.").format(sentence=numbers) if ended else _(NOTHING),
            partial(buckets.bars, ended, x=_("finish reason")) if ended else None,
            "finish_reasons",
            ("vllm:request_success_total",),
        ),
        _phases(counted),
    ]


def _lengths(counted: Counted, key: str, title: str, sentence: str, fill: str) -> Panel:
    name = BY_KEY[key].metric.removeprefix("vllm:")
    tally = counted.counts.tallies[name]
    mean = tally.mean
    draw = partial(buckets.buckets, tally, x=_("tokens (upper edge of the bucket)"), fill=fill)
    numbers = (
        _("Mean {mean:,.1f} tokens of {count:,} requests.").format(mean=mean, count=tally.num_values)
        if mean is not None
        else _(NOTHING)
    )
    return Panel(title, sentence, numbers, draw if mean is not None else None, key, _histogram(name))


def _phases(counted: Counted) -> Panel:
    names = ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds")
    means = [counted.counts.tallies[name].mean for name in names]
    words = [
        f"{label} {format_seconds(mean)}"
        for label, mean in zip((_("queue"), _("prefill"), _("decode")), means, strict=True)
        if mean is not None
    ]
    return Panel(
        _("Queue, prefill and decode time"),
        _("What the time of a finished request went to, on average."),
        _("Mean {words}.").format(words=_(", ").join(words)) if words else _(NOTHING),
        partial(over_time.phase_means, [mean or 0.0 for mean in means]) if any(means) else None,
        "phases",
        _histogram(*names),
    )


def queries_in_words(key: str) -> str:
    """The PromQL of a panel: all of its queries, but of a latency one quantile and the mean."""
    queries = BY_KEY[key].queries
    chosen: Sequence[str] = [query.expr for query in queries]
    return "\n\n".join(chosen if len(chosen) < 4 else (chosen[0], chosen[-1]))
