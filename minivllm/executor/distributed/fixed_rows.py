"""Batch invariance of a rank: every step in pieces of 16 rows, so that the library always sees one shape.

A rank's products are torch's, which chooses by the number of rows in which order to sum. So a plan is cut:

    plan       A: 20 tokens      B: 1     C: 9
    pieces     A A A … A (16)  │  A A A A B C … C (14, and 2 of padding)          each a step of its own

A sequence that is cut finds in the cache what its first piece has left there, as in chunks. All ranks cut the
same plan in the same places, so they still meet in every sum. Attention keeps one order by itself
(`minivllm/executor/batch_invariance.py`). That a row's place in its piece changes nothing is tried at the
start.

Read next: `rank_executor.py`; `minivllm/executor/runners/row_groups.py` for a decoder that is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from minivllm.executor.phases import cut
from minivllm.model.parallel.sharded_decoder import ShardedDecoder
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

ROWS = 16


def in_pieces(plan: StepPlan) -> Iterator[StepPlan]:
    """The tokens of a plan in their order, `ROWS` at a time, the last piece padded; moves are left out."""
    piece: list[ScheduledSequence] = []
    room = ROWS
    for item in plan.scheduled:
        rest: ScheduledSequence | None = item
        while rest is not None:
            first, rest = cut(rest, room) if rest.num_tokens > room else (rest, None)
            piece.append(first)
            room -= first.num_tokens
            if not room:
                yield StepPlan(plan.step, tuple(piece))
                piece, room = [], ROWS
    if piece:
        yield StepPlan(plan.step, tuple(piece), (), room)


@torch.inference_mode()
def check_rows(decoder: ShardedDecoder) -> None:
    """Try that equal rows come out equal, wherever they are in a piece.

    Raises:
        ValueError: this machine's library computes some of them in another way.
    """
    generator = torch.Generator().manual_seed(0)
    for function, width in _functions(decoder):
        row = torch.randn(1, width, generator=generator).to(decoder.embedding.device, decoder.dtype)
        found = function(row.repeat(ROWS, 1))
        if not torch.equal(found, found[:1].expand_as(found)):
            raise ValueError(
                "batch_invariant must be False with several ranks, or reduction_parts, on this machine: its "
                f"library computes equal rows of {width} numbers in {decoder.dtype} in different orders"
            )


def _functions(decoder: ShardedDecoder) -> Iterator[tuple[Callable[[Tensor], Tensor], int]]:
    """What a rank computes of rows, and how wide they are."""
    size = decoder.share.config.hidden_size
    for layer in decoder.layers:
        yield layer.input_norm, size
        for _, attention, mlp in decoder.parts_of(layer):
            yield attention.qkv, size
            yield attention.output, attention.num_heads * attention.head_dim
            yield mlp, size
    if decoder.share.is_last:  # elsewhere the last norm has no weights
        yield decoder.norm, size
    for head in decoder.heads:
        yield head.product, size
