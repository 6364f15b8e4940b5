"""What a server's `/metrics` would have said of this run, after each of its steps.

    trace ── events ──► EngineCounts ──┐
      └──── replay ──► queues, pool ───┴──► moments[step].values["vllm:num_requests_running"], …

It is the server's own code that counts (`minivllm/trace/engine_counts.py`), so the numbers are the server's;
what is now (requests in the batch, blocks in use) is read off the replayed state, as the server reads it off
the engine's books. Names are those of the samples that Prometheus stores.

Read next: `figures/metrics_board.py`, which plays them; `panels.py`, which asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.events import TraceHeader
from minivllm.trace.reader import Trace
from minivllm.trace.timeline import StepRecord, walk

PREFIX = "vllm:"
COUNTERS = (
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "estimated_flops_per_gpu",
    "estimated_read_bytes_per_gpu",
    "estimated_write_bytes_per_gpu",
)


class Moment(NamedTuple):
    """What one scrape would have found."""

    start: float
    """Of the step after which it is, in seconds."""
    end: float
    values: dict[str, float]
    """Gauges and counters, by the names of samples; of those with more labels, the sums."""


class Counted(NamedTuple):
    """A whole run."""

    moments: list[Moment]
    counts: EngineCounts
    """After the last event."""

    @property
    def last(self) -> dict[str, float]:
        """What a scrape at the end would have found, `_sum` and `_count` of histograms included."""
        found = dict(self.moments[-1].values) if self.moments else {}
        for name, tally in self.counts.tallies.items():
            found[f"{PREFIX}{name}_sum"] = tally.sum
            found[f"{PREFIX}{name}_count"] = tally.num_values
        return found


def count(trace: Trace, records: Sequence[StepRecord] | None = None) -> Counted:
    """Count a trace. Raises what `walk` raises.

    Args:
        records: its steps, if a timeline has them: without a swap space, nothing needs to be replayed then.
    """
    counts, header = EngineCounts(), trace.header
    counts.emit(header)
    moments = []
    for record, swapped in _steps(trace, records):
        for event in trace.step_events(record.step):
            counts.emit(event)
        values = _now(record, swapped, header) | _counted(counts)
        moments.append(Moment(record.start, record.end, values))
    return Counted(moments, counts)


def _steps(trace: Trace, records: Sequence[StepRecord] | None) -> Iterator[tuple[StepRecord, int]]:
    """Each step, and how many requests have blocks in the swap space after it."""
    if records is not None and not trace.header.num_host_blocks:
        yield from ((record, 0) for record in records)
        return
    for record, state in walk(trace):
        yield record, len({state.sequences[seq].request for seq in state.blocks.host_tables})


def _now(record: StepRecord, swapped: int, header: TraceHeader) -> dict[str, float]:
    host = header.num_host_blocks
    return {
        f"{PREFIX}num_requests_running": record.num_running,
        f"{PREFIX}num_requests_waiting": record.num_waiting,
        f"{PREFIX}num_requests_swapped": swapped,
        f"{PREFIX}kv_cache_usage_perc": record.num_used_blocks / header.num_blocks,
        f"{PREFIX}cpu_cache_usage_perc": record.num_host_blocks / host if host else 0.0,
    }


def _counted(counts: EngineCounts) -> dict[str, float]:
    found: dict[str, float] = {f"{PREFIX}{name}_total": counts.counters[name] for name in COUNTERS}
    for name, by_label in counts.labelled.items():
        if not by_label:  # as on a server: positions of drafts, where none is ever made
            continue
        found[f"{PREFIX}{name}_total"] = by_label.total()
    return found
