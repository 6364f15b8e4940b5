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

from torch import Tensor

from minivllm.executor.attention.metadata import AttentionMetadata


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


class FirstSupporting(ModelRunner):
    """Several runners as one: a step goes to the first that supports it. The last one supports all steps."""

    def __init__(self, *runners: ModelRunner) -> None:
        self.runners = runners

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        runner = next(runner for runner in self.runners if runner.supports(metadata, num_padding))
        runner.on_kernel = self.on_kernel
        logits = runner.run(metadata, num_padding)
        self.attention_seconds = runner.attention_seconds
        return logits
