"""Side by side: the numbers by which two runs are compared, and how the second relates to the first.

Read next: `views/compare.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivllm.trace.summary import RunSummary, format_seconds
from minivllm.trace.timeline import Timeline
from viz.language import N_, _
from viz.measures import BatchUse, batch_use


class Row(NamedTuple):
    """One number of two runs."""

    name: str
    first: str
    second: str
    ratio: str
    """The second run's number as a multiple of the first's; a dash if that says nothing."""
    sentence: str


class Number(NamedTuple):
    """One number of one run, and the words for it."""

    name: str
    value: Callable[[RunSummary, BatchUse], float | None]
    words: Callable[[float], str]
    sentence: str


def _rate(value: float) -> str:
    return _("{value:,.1f} tokens/s").format(value=value)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


NUMBERS = (
    Number(
        N_("Throughput"),
        lambda summary, _use: summary.output_tokens_per_second,
        _rate,
        N_("output tokens of all requests together, in a second, from the first arrival to the end."),
    ),
    Number(
        N_("Total time"),
        lambda summary, _use: summary.duration_seconds,
        format_seconds,
        N_("from the first arrival to the end of the last step."),
    ),
    Number(
        N_("TTFT p50"),
        lambda summary, _use: summary.ttft.p50,
        format_seconds,
        N_("time to first token, from a request's arrival; half of the requests are faster."),
    ),
    Number(
        N_("TTFT p99"),
        lambda summary, _use: summary.ttft.p99,
        format_seconds,
        N_("one request in a hundred waits longer than this for its first token."),
    ),
    Number(
        N_("Inter-token latency p50"),
        lambda summary, _use: summary.inter_token.p50,
        format_seconds,
        N_("time from one token of a request to its next; half of these gaps are shorter."),
    ),
    Number(
        N_("Inter-token latency p99"),
        lambda summary, _use: summary.inter_token.p99,
        format_seconds,
        N_("one gap in a hundred is longer: what a reader sees as a stutter."),
    ),
    Number(
        N_("End-to-end latency p50"),
        lambda summary, _use: summary.end_to_end.p50,
        format_seconds,
        N_(
            "from a request's arrival until its output is returned; that of a parked one is not returned yet."
        ),
    ),
    Number(
        N_("End-to-end latency p99"),
        lambda summary, _use: summary.end_to_end.p99,
        format_seconds,
        N_("one request in a hundred takes longer."),
    ),
    Number(
        N_("Batch occupancy"),
        lambda _summary, use: use.mean_sequences,
        lambda value: _("{value:,.1f} sequences").format(value=value),
        N_("sequences of which a step computes a token, averaged over steps; parked ones do not count."),
    ),
    Number(
        N_("Parked slots"),
        lambda _summary, use: use.parked_share,
        _share,
        N_("of all slots in the batch, step by step, those whose request computes nothing."),
    ),
    Number(
        N_("Padding"),
        lambda _summary, use: use.padding_share,
        _share,
        N_("of all tokens that went through the model, those computed only to make a batch rectangular."),
    ),
    Number(
        N_("Preemptions"),
        lambda summary, _use: summary.num_preemptions,
        _count,
        N_("times that a request was preempted because blocks or slots in the batch were short."),
    ),
    Number(
        N_("Finished requests"),
        lambda summary, _use: summary.num_finished,
        _count,
        N_("if these differ, the runs did not do the same work, and no other number can be compared."),
    ),
)


def side_by_side(
    first: Timeline, first_summary: RunSummary, second: Timeline, second_summary: RunSummary
) -> list[Row]:
    """All numbers of both runs."""
    uses = batch_use(first), batch_use(second)
    rows = []
    for name, value, words, sentence in NUMBERS:
        one, other = value(first_summary, uses[0]), value(second_summary, uses[1])
        told = [words(number) if number is not None else "–" for number in (one, other)]
        ratio = f"{other / one:.2f} ×" if one and other else "–"
        rows.append(Row(_(name), told[0], told[1], ratio, _(sentence)))
    return rows
