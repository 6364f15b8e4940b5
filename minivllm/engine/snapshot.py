"""What a trace is held against: the engine's whole control state, and the header that begins a trace.

Read next: `trace/replay.py`, which makes the same snapshot from the events alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from minivllm.config import SchedulerConfig
from minivllm.memory import KVCacheManager
from minivllm.trace.events import VERSION, HardwareShape, ModelShape, TraceHeader
from minivllm.trace.recorder import timestamp
from minivllm.trace.replay import EngineSnapshot

if TYPE_CHECKING:
    from minivllm.engine.core import EngineCore

LIMITS = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
SHOWN = ("num_host_blocks", "prefix_cache")


def make_header(
    config: SchedulerConfig,
    num_blocks: int,
    model_shape: ModelShape | None,
    settings: Mapping[str, Any],
    *,
    clock: str,
    hardware: HardwareShape | None = None,
) -> TraceHeader:
    """The first line of a trace: limits, model, and all other settings for display."""
    fields = asdict(config) | {"num_blocks": num_blocks}
    named = {name: fields.pop(name) for name in (*LIMITS, *SHOWN)}
    return TraceHeader(
        version=VERSION,
        created=timestamp(),
        clock=clock,
        model=model_shape,
        hardware=hardware,
        config=fields | dict(settings),
        **named,
    )


def take_snapshot(core: EngineCore, beam_scores: dict[int, float]) -> EngineSnapshot:
    """The control plane's state, in the form in which a replay of the trace gives it."""
    state, cache = core.state, core.cache
    swap_space = cache.swap_space if isinstance(cache, KVCacheManager) else None
    prefixes = cache.prefix_caching if isinstance(cache, KVCacheManager) else None
    computed = {seq: item.num_computed_tokens for seq, item in state.sequences.items()}
    for plan in reversed(core.in_flight):  # what is planned is not computed yet
        computed |= {item.seq_id: item.start for item in plan.scheduled}
    return EngineSnapshot(
        num_steps=core.num_steps,
        free_list=cache.pool.free_list(),
        ref_counts=tuple(cache.pool.ref_counts),
        tables={seq: tuple(table.blocks) for seq, table in cache.tables.items() if table.blocks},
        waiting=tuple(request.request_id for request in state.waiting.in_order_of_arrival()),
        running=tuple(state.running),
        token_ids={seq: tuple(sequence.token_ids) for seq, sequence in state.sequences.items()},
        num_computed_tokens=computed,
        host_free_list=swap_space.pool.free_list() if swap_space else (),
        host_ref_counts=tuple(swap_space.pool.ref_counts) if swap_space else (),
        host_tables={seq: tuple(t.blocks) for seq, t in swap_space.tables.items()} if swap_space else {},
        cached={block: prefixes.cache.parent_of(block) for block in prefixes.cached_blocks()}
        if prefixes
        else {},
        beam_scores=beam_scores,
    )
