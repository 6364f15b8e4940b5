"""One step in the making: what is left of its budget, and what is in its plan so far.

The scheduler fills it, request by request (`scheduler.py`); policies look at it meanwhile, through the
interface `SchedulerView` (`policy.py`). It lives for one step and is thrown away with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import CacheManager
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.plan import ScheduledSequence
from minivllm.scheduling.policy import Pause, WaitingView
from minivllm.scheduling.request import Request


@dataclass(slots=True)
class StepBuilder:
    """A plan that is being made.

    Attributes:
        number: of the step.
        time: of its beginning, on the clock of `Request.arrival_time`.
        budget: tokens that may still be planned.
        running: the batch as it was when the step began.
        waiting: the waiting requests, by rank, while one may still be admitted.
        order: the policy's order, as far as it has not been read.
        planned: what the plan computes so far.
        touched: ids of the requests that the plan computes or moves.
        preempted: ids of the requests that were preempted in this step; they are not admitted again in it.
        is_closed: no further request is admitted in this step.
    """

    config: SchedulerConfig
    state: BatchState
    cache: CacheManager
    number: int
    time: float
    budget: int
    running: tuple[Request, ...]
    waiting: WaitingView = ()
    order: Iterator[Request | Pause] | None = None
    planned: list[ScheduledSequence] = field(default_factory=list)
    touched: dict[str, None] = field(default_factory=dict)
    preempted: set[str] = field(default_factory=set)
    num_admitted: int = 0
    is_closed: bool = False

    @property
    def num_scheduled(self) -> int:
        return len(self.planned)

    @property
    def max_num_seqs(self) -> int:
        return self.config.max_num_seqs

    @property
    def num_free_blocks(self) -> int:
        return self.cache.num_free_blocks


class OpenQueue:
    """The waiting requests by rank, while one may still be admitted: 100,000 may wait behind a full batch."""

    __slots__ = ("_step",)

    def __init__(self, step: StepBuilder) -> None:
        self._step = step

    def __len__(self) -> int:
        return 0 if self._step.is_closed else len(self._step.state.waiting)

    def __iter__(self) -> Iterator[Request]:
        for request in self._step.state.waiting:
            if self._step.is_closed:
                return
            yield request
