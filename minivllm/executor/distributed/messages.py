"""What rank 0 tells the others: once how to be set up, then plan after plan.

    settings   JSON, kept in the store where the ranks meet
    plans      MessagePack: their fields in order, those of sequences and moves likewise; arrays as bytes

A plan is all that an executor is ever told (`minivllm/executor/executor.py`), so nothing else crosses. Why a
plan was made, and whose requests are in it, stays with the engine.

Read next: `groups.py`, which sends them.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from minivllm.executor.distributed.heartbeat import TIMEOUT_SECONDS
from minivllm.memory.block_move import BlockMove
from minivllm.model.parallel.layout import Grid
from minivllm.scheduling.plan import ScheduledSequence, StepPlan


class RankSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every rank needs to know before it can load its share."""

    model: str
    """A folder, or an id on the hub, of which another machine has a copy of its own."""
    dtype: str
    device: str
    """"cpu" or "cuda"."""
    tensor_parallel_size: int
    pipeline_parallel_size: int
    layers: tuple[int, ...] = ()
    """Of each stage; empty: divided evenly."""
    num_parts: int
    block_size: int
    attention_backend: str
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    batch_invariant: bool = False
    record_spans: bool = False
    timeout_seconds: float = TIMEOUT_SECONDS
    """That no rank may make a move within a step (`heartbeat.py`)."""
    num_threads: int
    """Threads of each rank."""

    @property
    def grid(self) -> Grid:
        return Grid(1, self.pipeline_parallel_size, self.tensor_parallel_size, self.layers)


class CacheSizes(msgspec.Struct, frozen=True):
    """Rank 0 decides, since a block has the same number everywhere."""

    num_blocks: int
    num_host_blocks: int


def encode_plan(plan: StepPlan) -> bytes:
    step, scheduled, moves, *others = astuple(replace(plan, request_ids=()))
    return _encoder.encode((step, [*map(astuple, scheduled)], [*map(astuple, moves)], *others))


def decode_plan(message: bytes) -> StepPlan:
    step, scheduled, moves, *more = msgspec.msgpack.decode(message)
    sequences = tuple(ScheduledSequence(*map(_as_array, item)) for item in scheduled)
    others: list[Any] = [tuple(other) if isinstance(other, list) else other for other in more]
    return StepPlan(step, sequences, tuple(BlockMove(*move) for move in moves), *others)


def _encode(value: object) -> object:
    return value.tobytes() if isinstance(value, array) else value


def _as_array(value: Any) -> Any:
    """The inverse of `_encode`."""
    return array("i", value) if isinstance(value, bytes) else value


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
