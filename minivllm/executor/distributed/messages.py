"""What rank 0 tells the others: once how to be set up, then plan after plan.

    settings   JSON, kept in the store where the ranks meet
    plans      MessagePack: [step, [sequence, …], [move, …], padding]; token ids and block tables as bytes

A plan is all that an executor is ever told (`minivllm/executor/executor.py`), so nothing else crosses. Why a
plan was made, and whose requests are in it, stays with the engine.

Read next: `groups.py`, which sends them.
"""

from __future__ import annotations

from array import array

import msgspec

from minivllm.memory.block_move import BlockMove
from minivllm.model.parallel.layout import Grid
from minivllm.scheduling.plan import ScheduledSequence, StepPlan


class RankSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every rank needs to know before it can load its share."""

    model: str
    """A folder, or an id on the hub."""
    dtype: str
    device: str
    """"cpu" or "cuda"."""
    tensor_parallel_size: int
    pipeline_parallel_size: int
    num_parts: int
    block_size: int
    attention_backend: str
    num_threads: int
    """Threads of each rank."""

    @property
    def grid(self) -> Grid:
        return Grid(1, self.pipeline_parallel_size, self.tensor_parallel_size)


class CacheSizes(msgspec.Struct, frozen=True):
    """Rank 0 decides, since a block has the same number everywhere."""

    num_blocks: int
    num_host_blocks: int


def encode_plan(plan: StepPlan) -> bytes:
    scheduled = [
        (item.seq_id, item.start, item.token_ids.tobytes(), item.block_table.tobytes(), item.num_logits)
        for item in plan.scheduled
    ]
    moves = [(move.kind, move.source, move.target) for move in plan.moves]
    return msgspec.msgpack.encode((plan.step, scheduled, moves, plan.num_padding_tokens))


def decode_plan(message: bytes) -> StepPlan:
    step, scheduled, moves, num_padding = msgspec.msgpack.decode(message)
    return StepPlan(
        step=step,
        scheduled=tuple(
            ScheduledSequence(seq_id, start, array("i", token_ids), array("i", table), num_logits)
            for seq_id, start, token_ids, table, num_logits in scheduled
        ),
        moves=tuple(BlockMove(*move) for move in moves),
        num_padding_tokens=num_padding,
    )
