"""What a rank asks of the others, as seen from the decoder.

Four things cross between ranks, and no other:

    sums        after `o_proj` and `down_proj`: every rank gets all parts, and adds them in their order
    lookups     a token's embedding is with the rank that owns its row
    logits      each rank's share of the vocabulary, to rank 0, which samples
    hidden      states between the stages of a pipeline

Megatron's f and g (arXiv 1909.08053, figure 3) are here `sum_parts` alone: nothing flows back, since nothing
is trained, and an all-reduce would add in an order of its own (`layout.py` says why that matters).

Read next: `sharded_decoder.py`; `minivllm/executor/distributed/groups.py`, which really sends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Peers(ABC):
    """The other ranks of one rank."""

    @abstractmethod
    def all_parts(self, own: Tensor) -> Tensor:
        """`own` [k, …] of each rank that shares the layers, one after another: [ranks · k, …] on all."""

    @abstractmethod
    def parts_at_rank_0(self, own: Tensor) -> Tensor | None:
        """As `all_parts`, of the ranks of the last stage, but for rank 0 only; None elsewhere.

        Ranks of other stages give a tensor of the same shape whose numbers do not matter.
        """

    @abstractmethod
    def send_on(self, hidden: Tensor) -> None:
        """To the next stage."""

    @abstractmethod
    def receive(self, hidden: Tensor) -> Tensor:
        """From the stage before, into `hidden`."""

    def sum_parts(self, own: Sequence[Tensor]) -> Tensor:
        """The sum of all parts [T, n], added one after the other, rounded once to their type."""
        parts = self.all_parts(torch.stack(tuple(own)))
        total = parts[0].float() if parts.element_size() < 4 else parts[0].clone()
        for part in parts[1:]:
            total += part
        return total.to(parts.dtype)


class Alone(Peers):
    """One rank that owns all parts of all layers."""

    def all_parts(self, own: Tensor) -> Tensor:
        return own

    def parts_at_rank_0(self, own: Tensor) -> Tensor | None:
        return own

    def send_on(self, hidden: Tensor) -> None:
        raise AssertionError("there is one stage")

    def receive(self, hidden: Tensor) -> Tensor:
        raise AssertionError("there is one stage")
