"""What ranks did when, from the executor that has several to the trace.

Ranks tell it some steps late (`executor/distributed/telling.py`), and may be ahead of the step that the trace
tells just now, where plans are in flight. So times are kept until their step is over; of a step that failed
they come with those of the attempt that took its place, before them.

Read next: `minivllm/trace/rank_times.py`.
"""

from __future__ import annotations

from collections import deque

from minivllm.engine.core import EngineCore
from minivllm.executor.executor import RankedExecutor
from minivllm.trace.events import RanksTimed
from minivllm.trace.tee import Emit


class RankTelling:
    """Between an executor and the sinks of one engine."""

    def __init__(self, executor: RankedExecutor, core: EngineCore, emit: Emit) -> None:
        self._executor, self._core, self._emit = executor, core, emit
        self._times: deque[RanksTimed] = deque()  # of steps that are not over yet

    def tell(self) -> None:
        """Tell of the steps that are over, as far as all ranks have told of them."""
        self._times += self._executor.rank_times(self._core.epoch)
        while self._times and self._times[0].step < self._core.num_steps:
            self._emit(self._times.popleft())
