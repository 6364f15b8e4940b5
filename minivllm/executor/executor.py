"""What the engine needs from the object that carries out its plans.

The control plane decides, the data plane obeys: `execute` is the whole of the traffic between them, a
`StepPlan` one way and logits the other. A torch model, a cost model on a virtual clock, and a fake that
makes tokens up in a test are all executors, and the scheduler cannot tell them apart.

Executors are told everything they need in every plan. They may keep keys and values where a plan's block
tables say, and must not keep anything else about a sequence: so nothing has to be told when one ends.
If `execute` raises, the caller may assume neither that any of the plan was done, nor that none of it was.

Read next: `minivllm/scheduling/plan.py` for what comes in, `torch_executor.py` for the real one.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from minivllm.scheduling.plan import StepPlan
from minivllm.trace.events import RankShape, RanksTimed


class ExecutorDeadError(RuntimeError):
    """The executor will carry out no plan any more: it has lost what it needs, or was closed."""


class RankError(ExecutorDeadError):
    """One of several ranks has not come, has failed, or has ended; the message names it."""


class Executor(Protocol):
    """Carries out one plan at a time."""

    last_attention_seconds: float
    """Time the latest `execute` spent in the attention backend, cache writes included."""

    def execute(self, plan: StepPlan) -> Any:
        """Carry out the plan's moves, then compute its tokens and store their keys and values.

        The keys and values of all tokens of the plan are stored before any of them is attended to (layer
        by layer), so that a sequence may read blocks that another one fills in the same step.

        Returns logits `[sum of num_logits, vocab_size]`: for each scheduled sequence in plan order, one
        row after each of its last `num_logits` tokens. A torch executor returns a float32 tensor (float64
        for a float64 model), a simulator whatever its sampler understands.
        """
        ...


@runtime_checkable
class PipelinedExecutor(Protocol):
    """An executor of several stages, which may be busy with one plan each (`in_flight.py`)."""

    num_stages: int

    def launch(self, plan: StepPlan) -> None: ...

    def wait(self) -> Any: ...

    def forget(self) -> None: ...


@runtime_checkable
class RankedExecutor(Protocol):
    """An executor of several ranks, which tells who owns what, and when each did what."""

    rank_shapes: tuple[RankShape, ...]

    def rank_times(self, epoch: float) -> list[RanksTimed]: ...


@runtime_checkable
class ClosableExecutor(Protocol):
    """An executor that has started something, which must be ended."""

    def close(self) -> None:
        """End it, and carry out no plan any more."""
        ...
