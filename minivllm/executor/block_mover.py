"""Block moves, carried out: copies within the cache, and swaps between it and the host's memory.

A plan's moves come in an order that matters: a block may be copied and then, in the same step, become the
target of another sequence's swap-in. Moves of one kind that do not depend on each other go together, as
one gather and one scatter over all layers; a new batch begins where the next move depends on one before.

    copy 5→8, copy 5→9, copy 2→7 │ swap_out 3→0, swap_out 4→1 │ copy 7→3
    ──────── one batch ───────── │ ─────── one batch ──────── │ (reads 7, which was written before)

Read next: `minivllm/memory/block_move.py` for why the memory orders them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from minivllm.executor.kv_storage import KVStorage
from minivllm.memory.block_move import BlockMove


class BlockMover:
    """Carries out moves on a cache and, if there is one, its swap space."""

    def __init__(self, storage: KVStorage, host_storage: KVStorage | None = None) -> None:
        self._device = storage.by_block
        self._host = host_storage.by_block if host_storage is not None else None

    def carry_out(self, moves: Sequence[BlockMove]) -> None:
        """All moves, each seeing what those before it have done.

        Raises:
            ValueError: a swap, and there is no swap space.
        """
        for batch in independent_batches(moves):
            kind = batch[0].kind
            if kind != "copy" and self._host is None:
                raise ValueError(f"the plan has a {kind}, but this executor has no swap space")
            source = self._host if kind == "swap_in" else self._device
            target = self._host if kind == "swap_out" else self._device
            assert source is not None and target is not None
            where_from = torch.tensor([move.source for move in batch], device=source[0].device)
            where_to = torch.tensor([move.target for move in batch], device=target[0].device)
            # Numbers, and their scales if they have any, of all layers, keys and values at once:
            # [layers, 2, len(batch), kv_heads, block_size, …].
            for taken, given in zip(source, target, strict=True):
                data = taken.index_select(2, where_from).to(given.device)
                given.index_copy_(2, where_to, data)


def independent_batches(moves: Sequence[BlockMove]) -> Iterator[list[BlockMove]]:
    """Runs of moves of one kind in which no move reads or overwrites what another one has written."""
    batch: list[BlockMove] = []
    written: set[int] = set()
    for move in moves:
        reads_within = move.kind == "copy" and move.source in written
        if batch and (move.kind != batch[0].kind or move.target in written or reads_within):
            yield batch
            batch, written = [], set()
        batch.append(move)
        written.add(move.target)
    if batch:
        yield batch
