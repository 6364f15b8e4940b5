"""A thread that does one thing after another, for any caller; an interrupt of the caller does not reach it.

Python delivers Ctrl-C to the main thread only. What must be finished once it was begun, since others wait for
it, is done here.

Read next: `distributed_executor.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")
Work = tuple[Callable[[], Any], "Future[Any]"]


class Lane:
    """It ends with the program, and before that when it is told to."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        threading.Thread(target=_run, args=(self._queue,), name=name, daemon=True).start()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Do this after everything that was submitted before."""
        future: Future[Result] = Future()
        self._queue.put((work, future))
        return future

    def end(self) -> None:
        self._queue.put(None)


def _run(queue: SimpleQueue[Work | None]) -> None:
    while (item := queue.get()) is not None:
        work, future = item
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        del item, work, future  # nothing is kept alive while it waits
