"""Where the memory goes: every slot of the KV cache is one of five things.

    effective   holds the keys and values of a token that a sequence still needs; shared ones count once
    reserved    held, and the sequence that holds it will fill it later
    internal    held, and never used: over-reserved, rounded up, or the rest of a last block
    external    free, and of no use to the request at the head of the queue, which must wait
    free        free, and no request waits for it

    ████████████▓▓▓▓▓▓▓▓░░░░░░░░░░░░░░░░░░████████▓▓░░░░░░░░        ········
    effective   reserved  internal          …                          external

Their shares add up to 1. Telling "reserved" from "internal" needs the future, so the caller must know how
long each sequence will become; an engine does not, a replayed workload does.

Source: Kwon et al. (SOSP 2023), section 3.1 and figure 2. The figure has no "free": it was measured with
requests waiting. Read next: `minivllm/lab/compare/memory.py`, which measures it for every allocator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from minivllm.memory.block_table import BlockTable
from minivllm.memory.strip_manager import Promise


class Progress(NamedTuple):
    """How far a sequence is, in tokens whose keys and values are kept."""

    filled: int
    final: int
    """The most it will come to; at least `filled`."""


class MemoryShares(NamedTuple):
    """Shares of the slots of a KV cache, 0 … 1; they add up to 1."""

    effective: float
    reserved: float
    internal: float
    external: float
    free: float


def memory_shares(
    num_slots: int,
    num_free_slots: int,
    tables: Mapping[int, BlockTable],
    lengths: Mapping[int, Progress],
    *,
    head_waits: bool,
    promises: Iterable[Promise] = (),
    are_shared: bool = True,
) -> MemoryShares:
    """Sort all slots of one moment into the five kinds.

    Args:
        num_slots: blocks of memory · block_size.
        num_free_slots: those that no sequence holds.
        tables: the block tables of all sequences.
        lengths: of each sequence in `tables` or `promises`.
        head_waits: is there a request that waits to be admitted for lack of memory?
        promises: blocks held outside of tables.
        are_shared: False promises that no block is in two tables, which saves looking at each block.

    Raises:
        ValueError: what is held and what is free do not add up to `num_slots`.
    """
    effective = planned = held = 0
    size = next((table.block_size for table in tables.values()), 1)
    if are_shared:
        filled_of: dict[int, int] = {}
        final_of: dict[int, int] = {}
        for seq_id, table in tables.items():
            filled, final = lengths[seq_id]
            for index, block in enumerate(table.blocks):
                # Of a shared block counts what the furthest of its sequences has in it.
                filled_of[block] = max(filled_of.get(block, 0), min(size, filled - index * size))
                final_of[block] = max(final_of.get(block, 0), min(size, final - index * size))
        effective, planned = sum(filled_of.values()), sum(final_of.values())
        held = len(filled_of) * size
    else:
        for seq_id, table in tables.items():
            filled, final = lengths[seq_id]
            effective += min(filled, table.capacity_tokens)
            planned += min(final, table.capacity_tokens)
            held += table.capacity_tokens
    for promise in promises:
        room = promise.num_blocks * size
        planned += min(max(0, lengths[promise.seq_id].final - promise.start), room)
        held += room
    if held + num_free_slots != num_slots:
        raise ValueError(
            f"{held} slots are held and {num_free_slots} are free: together that is not {num_slots}"
        )
    free = num_free_slots / num_slots
    return MemoryShares(
        effective=effective / num_slots,
        reserved=(planned - effective) / num_slots,
        internal=(held - planned) / num_slots,
        external=free if head_waits else 0.0,
        free=0.0 if head_waits else free,
    )
