"""Generation without a KV cache: the baseline that shows what the cache is for.

Attention needs the keys and values of every token so far. Without a cache there is nowhere to find them, so
each step computes the whole sequence again from its token ids, only to use the last row of the result:

    with a cache      step t computes 1 token      and reads t keys and values
    without one       step t computes t tokens     T steps compute T · (T + 1) / 2 of them

This executor obeys the same plans as `TorchExecutor` and gives the same logits. In the slots where that one
keeps keys and values, it keeps token ids; from those it writes every plan anew, with all sequences starting
at position 0. So scheduler, block tables and sampler are the same, and only the cost differs.

Run it: `minivllm compare cache`. Read next: `torch_executor.py`.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

if TYPE_CHECKING:
    from torch import Tensor


class RecomputeExecutor:
    """Computes every token of every scheduled sequence in every step."""

    def __init__(self, inner: TorchExecutor) -> None:
        self.inner = inner
        self.num_computed_tokens = 0
        """Tokens that went through the model so far: what the cache would have saved can be counted."""
        self._token_ids = np.zeros((inner.storage.num_blocks, inner.block_size), dtype=np.int32)

    @property
    def last_attention_seconds(self) -> float:
        return self.inner.last_attention_seconds

    def execute(self, plan: StepPlan) -> Tensor:
        """Logits `[sum of num_logits, vocab_size]`, as `TorchExecutor.execute` gives them."""
        for move in plan.moves:
            if move.kind != "copy":
                raise ValueError(f"the plan has a {move.kind}; without a KV cache there is nothing to swap")
            self._token_ids[move.target] = self._token_ids[move.source]
        whole = StepPlan(plan.step, tuple(self._from_the_start(item) for item in plan.scheduled))
        self.num_computed_tokens += whole.total_num_scheduled_tokens
        return self.inner.execute(whole)

    def _from_the_start(self, item: ScheduledSequence) -> ScheduledSequence:
        """The same request for logits, but with nothing computed before."""
        blocks = np.frombuffer(item.block_table, dtype=np.int32)
        positions = np.arange(item.start, item.end)
        offsets = positions % self.inner.block_size
        self._token_ids[blocks[positions // self.inner.block_size], offsets] = item.token_ids
        tokens = array("i", self._token_ids[blocks].ravel()[: item.end].tobytes())
        return msgspec.structs.replace(item, start=0, token_ids=tokens)
