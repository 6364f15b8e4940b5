"""What an engine says of itself when Prometheus asks: what it has counted, and what is now.

It is plain data, so an engine in another process can send it. Read next: `metrics.py`, which shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from minivllm.engine.engine import Engine
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.events import (
    BlockCopied,
    BlocksAllocated,
    BlocksShared,
    BlocksSwappedIn,
    RequestScheduled,
)


class EngineReport(msgspec.Struct, frozen=True):
    """One engine at one moment."""

    counters: dict[str, float]
    labelled: dict[str, dict[str, int]]
    """Counters with one more label, by its values."""
    tallies: dict[str, tuple[tuple[int, ...], float]]
    """Of each histogram the counts between its edges, and the sum."""
    now: dict[str, float]
    """By the names of `GAUGES` in `metrics.py`."""
    cache_config: dict[str, str]
    """How the KV cache is set up; nothing before the engine's run begins."""
    makes_drafts: bool


def report_of(counts: EngineCounts, engine: Engine) -> EngineReport:
    """Asked in another thread than the engine's, so what may change meanwhile is copied first."""
    return EngineReport(
        counters=dict(counts.counters),
        labelled={name: dict(values) for name, values in counts.labelled.items()},
        tallies={name: (tuple(tally.counts), tally.sum) for name, tally in counts.tallies.items()},
        now=engine_now(engine),
        cache_config=_cache_config(counts),
        makes_drafts=engine.speculation is not None,
    )


def engine_now(engine: Engine) -> dict[str, float]:
    """Requests in the batch, blocks in use: what is now, which is after the step that was finished last.

    The engine's books may be ahead of that: a step that is planned while another is computed has taken its
    blocks. So what was done for it is undone, in copies of what it has changed.
    """
    state, cache = engine.core.state, engine.cache
    swap_space = getattr(cache, "swap_space", None)
    ahead = engine.core.done_ahead
    counts, host_counts = [*cache.pool.ref_counts], [*swap_space.pool.ref_counts] if swap_space else []
    swapped = {*swap_space.tables} if swap_space else set()
    for event in ahead:
        match event:
            case BlocksAllocated() | BlocksShared():
                _add(counts, event.blocks, -1)
            case BlockCopied():
                _add(counts, (event.source,), 1)
                _add(counts, (event.target,), -1)
            case BlocksSwappedIn():
                _add(counts, event.blocks, -1)
                _add(host_counts, event.host_blocks, 1)
                swapped.add(event.seq)
    num_admitted = sum(isinstance(event, RequestScheduled) for event in ahead)
    sequences = (state.sequences.get(seq_id) for seq_id in swapped)
    return {
        "num_requests_running": len(state.running) - num_admitted,
        "num_requests_waiting": len(state.waiting) + num_admitted,
        "num_requests_swapped": len({sequence.request_id for sequence in sequences if sequence}),
        "kv_cache_usage_perc": _share_in_use(counts),
        "cpu_cache_usage_perc": _share_in_use(host_counts),
    }


def _add(counts: list[int], blocks: Iterable[int], number: int) -> None:
    for block in blocks:
        counts[block] += number


def _share_in_use(counts: Sequence[int]) -> float:
    return sum(count > 0 for count in counts) / max(1, len(counts))


def _cache_config(counts: EngineCounts) -> dict[str, str]:
    header = counts.header
    if header is None:
        return {}
    config = {key: str(value) for key, value in sorted(header.config.items())}
    return config | {
        "block_size": str(header.block_size),
        "num_gpu_blocks": str(header.num_blocks),
        "num_cpu_blocks": str(header.num_host_blocks),
        "enable_prefix_caching": str(header.prefix_cache is not None),
    }
