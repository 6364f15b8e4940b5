"""Plans in flight: how they are handed to an executor, and how their logits come back.

    launch(plan), launch(plan), …          in the order in which they were made
    wait() ──► logits of the oldest

`Background` carries them out in a thread, while the engine plans and tells what came out; a pipeline does so
by itself. (Without either, the engine carries out a plan when it wants its logits: nothing overlaps.)

In a thread, because kernels and torch let other threads run Python. A plan is carried out as a whole,
whatever interrupts the engine; `forget` waits until that is done, so that memory may be given away again.

Python lets one thread at a time run, and takes turns only every few milliseconds, which is longer than a
small model's step. So `launch` waits until the step is where Python is not needed (`on_kernel`), or for
`HEAD_START_SECONDS`: otherwise the engine would keep the step from starting, and nothing would overlap.

Read next: `minivllm/engine/step_loop.py`, the loop that uses this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from threading import Event
from typing import Any, Protocol, TypeAlias, runtime_checkable
from weakref import finalize

from minivllm.executor.executor import Executor
from minivllm.executor.lane import Lane
from minivllm.scheduling.plan import StepPlan

Execute: TypeAlias = Callable[[StepPlan], Any]
HEAD_START_SECONDS = 0.002
"""Longest that `launch` waits for a step to get to its kernels."""


class PlansInFlight(Protocol):
    """Plans that were launched, and whose logits were not taken yet."""

    def launch(self, plan: StepPlan) -> None:
        """Carry out this plan after those launched before."""
        ...

    def wait(self) -> Any:
        """The logits of the oldest plan, as `Executor.execute` gives them; or what went wrong is raised."""
        ...

    def forget(self) -> None:
        """Drop the logits of every plan. When this returns, nothing is carried out any more."""
        ...


@runtime_checkable
class TellsOfKernels(Protocol):
    """An executor with long stretches that need no Python."""

    def on_kernel(self, note: Callable[[], None]) -> None:
        """From now on call `note` within each step, at the beginning of such a stretch."""
        ...


class Background:
    """Plans are carried out in a thread, which ends with the program or with `close`."""

    def __init__(self, execute: Execute, executor: Executor) -> None:
        """`executor` is what `execute` asks."""
        self._execute = execute
        self._lane = Lane("minivllm-steps")
        finalize(self, self._lane.end)  # a thread less, if the engine is never closed
        self._pending: deque[Future[Any]] = deque()
        self._kernel = Event()
        if isinstance(executor, TellsOfKernels):
            executor.on_kernel(self._kernel.set)

    def launch(self, plan: StepPlan) -> None:
        self._kernel.clear()
        self._pending.append(self._lane.submit(partial(self._carry_out, plan)))
        self._kernel.wait(HEAD_START_SECONDS)

    def _carry_out(self, plan: StepPlan) -> Any:
        try:
            return self._execute(plan)
        finally:
            self._kernel.set()

    def wait(self) -> Any:
        logits = self._pending[0].result()  # it stays, if an interrupt comes: `forget` waits for it
        self._pending.popleft()
        return logits

    def forget(self) -> None:
        wait(self._pending)
        self._pending.clear()

    def close(self) -> None:
        with suppress(Exception):
            self.forget()
        self._lane.end()
