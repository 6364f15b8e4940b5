"""What a policy sees of the scheduler. The contract is in `policy.py`; this is who keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minivllm.scheduling.request import Request

if TYPE_CHECKING:
    from minivllm.scheduling.scheduler import Scheduler


class WaitingLine:
    """Those who wait, by rank, while anybody may still join: 100,000 may stand behind a full batch."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __len__(self) -> int:
        return 0 if self._scheduler.step.is_closed else len(self._scheduler.waiting)

    def __iter__(self) -> Iterator[Request]:
        step = self._scheduler.step
        for request in self._scheduler.waiting:
            if step.is_closed:
                return
            yield request


class View:
    """The scheduler's state during one step. See `SchedulerView`."""

    __slots__ = ("_scheduler", "running", "time", "waiting")

    def __init__(self, scheduler: Scheduler, time: float) -> None:
        self._scheduler = scheduler
        self.time = time
        self.running: tuple[Request, ...] = tuple(scheduler.running)
        self.waiting = WaitingLine(scheduler)

    @property
    def num_joined(self) -> int:
        return self._scheduler.step.num_joined

    @property
    def num_scheduled(self) -> int:
        return len(self._scheduler.step.planned)

    @property
    def max_num_seqs(self) -> int:
        return self._scheduler.config.max_num_seqs

    @property
    def num_free_blocks(self) -> int:
        return self._scheduler.cache.num_free_blocks
