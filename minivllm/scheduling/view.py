"""What a policy sees of the scheduler. The contract is in `policy.py`; this is who keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivllm.request import Request
from minivllm.scheduling.queue import WaitingQueue

if TYPE_CHECKING:
    from minivllm.scheduling.scheduler import Scheduler


class View:
    """The scheduler's state during one step. See `SchedulerView`."""

    __slots__ = ("_scheduler", "running", "time")

    def __init__(self, scheduler: Scheduler, time: float) -> None:
        self._scheduler = scheduler
        self.time = time
        self.running: tuple[Request, ...] = tuple(scheduler.running)

    @property
    def waiting(self) -> WaitingQueue:
        return self._scheduler.waiting

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
