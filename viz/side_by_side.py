"""Side by side: the numbers by which two runs are compared, and how the second relates to the first.

Read next: `views/compare.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivllm.trace.summary import RunSummary, format_seconds
from minivllm.trace.timeline import Timeline
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
    return f"{value:,.1f} tokens/s"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


NUMBERS = (
    Number(
        "Throughput",
        lambda summary, _: summary.output_tokens_per_second,
        _rate,
        "output tokens of all requests together, in a second, from the first arrival to the end.",
    ),
    Number(
        "Total time",
        lambda summary, _: summary.duration_seconds,
        format_seconds,
        "from the first arrival to the end of the last step.",
    ),
    Number(
        "TTFT p50",
        lambda summary, _: summary.ttft.p50,
        format_seconds,
        "time to first token, from a request's arrival; half of the requests are faster.",
    ),
    Number(
        "TTFT p99",
        lambda summary, _: summary.ttft.p99,
        format_seconds,
        "one request in a hundred waits longer than this for its first token.",
    ),
    Number(
        "Inter-token latency p50",
        lambda summary, _: summary.inter_token.p50,
        format_seconds,
        "time from one token of a request to its next; half of these gaps are shorter.",
    ),
    Number(
        "Inter-token latency p99",
        lambda summary, _: summary.inter_token.p99,
        format_seconds,
        "one gap in a hundred is longer: what a reader sees as a stutter.",
    ),
    Number(
        "End-to-end latency p50",
        lambda summary, _: summary.end_to_end.p50,
        format_seconds,
        "from a request's arrival until its output is returned; that of a parked one is not returned yet.",
    ),
    Number(
        "End-to-end latency p99",
        lambda summary, _: summary.end_to_end.p99,
        format_seconds,
        "one request in a hundred takes longer.",
    ),
    Number(
        "Batch occupancy",
        lambda _, use: use.mean_sequences,
        lambda value: f"{value:,.1f} sequences",
        "sequences of which a step computes a token, averaged over steps; parked ones do not count.",
    ),
    Number(
        "Parked slots",
        lambda _, use: use.parked_share,
        _share,
        "of all slots in the batch, step by step, those whose request computes nothing.",
    ),
    Number(
        "Padding",
        lambda _, use: use.padding_share,
        _share,
        "of all tokens that went through the model, those computed only to make a batch rectangular.",
    ),
    Number(
        "Preemptions",
        lambda summary, _: summary.num_preemptions,
        _count,
        "times that a request was preempted because blocks or slots in the batch were short.",
    ),
    Number(
        "Finished requests",
        lambda summary, _: summary.num_finished,
        _count,
        "if these differ, the runs did not do the same work, and no other number can be compared.",
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
        rows.append(Row(name, told[0], told[1], ratio, sentence))
    return rows
