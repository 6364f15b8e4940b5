"""Plans on their way: each from when it is made to when its tokens are told, and how many there may be.

    one at a time                 a plan is carried out when its logits are wanted
    asynchronous scheduling       two: one is computed, in a thread, and one is ready
    a pipeline                    one for each stage, launched at once: each has other sequences

Read next: `step_loop.py`, which launches and finishes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minivllm.executor.executor import PipelinedExecutor
from minivllm.executor.in_flight import Background, Execute, PlansInFlight
from minivllm.scheduling.plan import StepPlan

if TYPE_CHECKING:
    from minivllm.executor.executor import Executor


@dataclass(slots=True)
class Flight:
    """A plan in flight; times are the engine clock's.

    Attributes:
        began, planned: when it was begun to be made, and when it was made.
        drafting: when its drafts were begun to be made.
        launched: when the executor got it.
        laws: what its drafts were drawn from (`speculation.py`).
    """

    plan: StepPlan
    began: float
    planned: float
    drafting: float = 0.0
    launched: float = 0.0
    laws: Mapping[int, Sequence[Any]] = field(default_factory=dict)

    def seconds(
        self, *, executed: float, attention: float, sampled: float, updated: float
    ) -> dict[str, float]:
        """How long each part of its step took. `attention` is a duration, the others are moments."""
        seconds = {
            "schedule": self.planned - self.began,
            "model": executed - self.launched,
            "attention": attention,
            "sample": sampled - executed,
            "update": updated - sampled,
        }
        return {name: round(value, 7) for name, value in seconds.items()}


@dataclass(slots=True)
class Flights:
    """The plans in flight of one engine.

    Attributes:
        queue: the plans, the oldest first.
        runs: carries them out; None if that is done when their logits are wanted.
        max_in_flight: most plans at a time.
        num_plans: so many share the work.
    """

    runs: PlansInFlight | None = None
    max_in_flight: int = 1
    num_plans: int = 1
    queue: deque[Flight] = field(default_factory=deque)

    def forget(self) -> None:
        """None of them will be finished. When this returns, nothing is carried out any more."""
        if self.runs is not None:
            self.runs.forget()
        self.queue.clear()

    def close(self) -> None:
        """End the thread, if there is one: a plan is carried out by the caller from now on."""
        if isinstance(self.runs, Background):
            self.runs.close()
            self.runs = None


def choose_flights(
    executor: Executor, execute: Execute, *, is_async: bool, overlap_stages: bool, has_threads: bool
) -> Flights:
    """How many plans may be in flight, and what carries them out.

    Args:
        execute: carries out a plan by the executor that the engine has then.
        is_async: plan each step while the one before it is computed.
        overlap_stages: where the executor has several stages, let each be busy with a plan of its own.
        has_threads: may a step be computed beside the engine? On a virtual clock nothing can overlap.
    """
    if isinstance(executor, PipelinedExecutor) and executor.num_stages > 1 and overlap_stages:
        return Flights(executor, max_in_flight=executor.num_stages, num_plans=executor.num_stages)
    if is_async:
        return Flights(Background(execute, executor) if has_threads else None, max_in_flight=2)
    return Flights()
