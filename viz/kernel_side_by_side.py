"""Kernels side by side: the bytes by which two ways to compute attention are compared.

Read next: `views/flash_attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelTrace, WarpAccess
from viz.figures.kernel_softmax import rescaled
from viz.figures.kernel_tiles import matrix_bytes, pieces, score_array
from viz.figures.kernel_totals import sum_up
from viz.figures.kernel_traffic import Traffic, traffic_of
from viz.language import N_, _


class Column(NamedTuple):
    """One kernel, or all kernels of a computation together."""

    label: str
    numbers: dict[str, int]


SENTENCES = {
    N_("Kernels"): N_(
        "launches, one after the other; what one leaves for the next goes through global memory."
    ),
    N_("Read from global memory"): N_("bytes that lanes asked for."),
    N_("Written to global memory"): N_("bytes that lanes wrote."),
    N_("Moved in sectors"): N_("the same in whole sectors of 32 bytes, as if nothing were cached."),
    N_("Of these, scores"): N_(
        "bytes to and from an array of all scores: zero if the scores never leave the block."
    ),
    N_("Scores of all heads"): N_("what the N × N scores take: four bytes each."),
    N_("Read from shared memory"): N_("bytes that lanes read from there instead of from global memory."),
    N_("Written to shared memory"): N_("bytes of tiles that were copied there."),
    N_("Rescales"): N_(
        "rows that found a larger maximum and corrected their sum and output, as the kernel noted."
    ),
}


def column(label: str, traces: Sequence[KernelTrace]) -> Column:
    """All numbers of these kernels together."""
    parts = [_traffic(trace) for trace in traces]
    found = [pieces(trace) for trace in traces]
    values = (
        len(traces),
        sum(part.global_read for part in parts),
        sum(part.global_written for part in parts),
        sum(part.moved for part in parts),
        sum(part.scores for part in parts),
        max((matrix_bytes(t.header, own) for t, own in zip(traces, found, strict=True)), default=0),
        sum(part.shared_read for part in parts),
        sum(part.shared_written for part in parts),
        sum(sum(marks) for own in found for marks in rescaled(own)),
    )
    return Column(label, dict(zip(SENTENCES, values, strict=True)))


def table(columns: Sequence[Column], *, with_ratio: bool) -> dict[str, list[str]]:
    """Headings and what stands under them; `with_ratio` compares the last column with the first."""
    told = {_("Number"): [_(name) for name in SENTENCES]}
    for one in columns:
        told[one.label] = [f"{value:,}" for value in one.numbers.values()]
    if with_ratio:
        pairs = zip(columns[0].numbers.values(), columns[-1].numbers.values(), strict=True)
        told[_("second : first")] = [f"{other / own:.2f} ×" if own and other else "–" for own, other in pairs]
    return told


def same_sizes(first: Sequence[KernelTrace], second: Sequence[KernelTrace]) -> bool:
    """Do both compute the same attention? Else their bytes cannot be compared."""
    return _sizes(first) == _sizes(second)


def _sizes(traces: Sequence[KernelTrace]) -> set[tuple[str, tuple[int, ...]]]:
    wanted = ("query", "key", "value", "out")
    return {
        (array.name, (*array.shape[:-1], array.shape[-1] * array.itemsize))
        for trace in traces
        for array in trace.header.arrays
        if array.name in wanted
    }


def _traffic(trace: KernelTrace) -> Traffic:
    accesses = [event for event in trace.events if isinstance(event, WarpAccess)]
    return traffic_of(trace.header.arrays, sum_up(trace.header, accesses), score_array(trace.header))
