"""The contract between the executor and the ways to run a decoder's steps.

    metadata, padding ──► supports? ──► run ──► logits [sum of num_logits, vocab_size]

A decoder's step can be computed op by op (`eager.py`), in one compiled call (`compiled.py`, on a CPU), in
fewer passes over memory (`fused.py`, on a CPU), or by replaying a recording (`graphs.py`, on a GPU). All give
the same logits; they differ in speed, and some know only some steps. The executor has one runner and asks no
more of it than this. Where one runner is not enough, `FirstSupporting` is several as one.

Read next: `choose.py` for which runner an engine gets, `eager.py` for the plain one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from torch import Tensor

from minivllm.executor.attention.metadata import AttentionMetadata, IntArray, one_token_each


class ModelRunner(ABC):
    """Computes steps of one decoder over one KV cache."""

    attention_seconds: float = 0.0
    """Time that the latest run spent in attention, cache writes included; 0 where it cannot be told apart."""

    on_kernel: Callable[[], None] | None = None
    """To be called when the run has come to where it needs no Python for long, if there is such a place."""

    def supports(self, metadata: AttentionMetadata, num_padding: int) -> bool:
        """Can this step be computed here? All steps can, unless a runner says otherwise."""
        return True

    @abstractmethod
    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        """Compute a supported step of at least one token, and store its keys and values.

        Returns logits [len(metadata.logit_rows), vocab_size], float32 (float64 for a float64 model).
        `num_padding` rows more go through the linear layers, and are thrown away (`padding.py`).
        """

    def continue_greedily(self, metadata: AttentionMetadata, count: int, block_size: int) -> IntArray:
        """Compute `count` supported steps, each of one token of every sequence: the likeliest after the last.

        Args:
            metadata: of the first step; the block tables have room for all of them.

        Returns:
            [count, sequences]: the tokens, of which the last is not computed.
        """
        found = np.empty((count, metadata.num_sequences), np.int64)
        for step in range(count):
            found[step] = self.run(metadata, 0).argmax(dim=-1).numpy(force=True)
            after, tables = metadata.positions + 1, metadata.block_tables
            if step + 1 < count:
                metadata = one_token_each(found[step], after, tables, block_size)
        return found


class FirstSupporting(ModelRunner):
    """Several runners as one: a step goes to the first that supports it. The last one supports all steps."""

    def __init__(self, *runners: ModelRunner) -> None:
        self.runners = runners

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        runner = self._supporting(metadata, num_padding)
        runner.on_kernel = self.on_kernel
        logits = runner.run(metadata, num_padding)
        self.attention_seconds = runner.attention_seconds
        return logits

    def continue_greedily(self, metadata: AttentionMetadata, count: int, block_size: int) -> IntArray:
        return self._supporting(metadata, 0).continue_greedily(metadata, count, block_size)

    def _supporting(self, metadata: AttentionMetadata, num_padding: int) -> ModelRunner:
        return next(runner for runner in self.runners if runner.supports(metadata, num_padding))
