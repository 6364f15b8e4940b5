"""One thread owns the engine; everything that others want of it is a call that is done between two steps.

    callers ── call(work) ──► inbox ──► work(engine), work(engine), …  ──► engine.step() ──┐
                                ▲                                                          │ outputs
                                └──────────────────────────────────────────────────────────┘

So the engine needs no locks: nothing happens to it while it steps. Where no request is left, the thread
sleeps until a call comes, and a policy's pause ends as soon as one does.

A step that fails costs the requests that were in it, and no others: they are aborted, their callers hear why,
and the engine serves on. If steps fail again and again, or a rank is lost, the engine is beyond help; then
all callers hear that.

Source: the split between `AsyncLLM` and `EngineCoreProc` in vLLM. Read next: `async_llm.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

from minivllm.engine.engine import Engine
from minivllm.executor.executor import ExecutorDeadError
from minivllm.outputs import RequestOutput
from minivllm.validation import error_words

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_FAILURES = 8
"""Steps that may fail in a row. One device that is out of memory for a moment is no reason to give up."""


class EngineDeadError(RuntimeError):
    """The engine has ended, or was shut down: it takes no more requests."""


class Listener(Protocol):
    """What hears of all that the engine does. Called in the engine's thread, so it returns at once."""

    def on_outputs(self, outputs: list[RequestOutput]) -> None:
        """A step has ended."""

    def on_failure(self, request_ids: Sequence[str], error: Exception) -> None:
        """A step has failed; these requests were in it, and are aborted."""

    def on_end(self, error: EngineDeadError) -> None:
        """The thread ends: whatever was not answered never will be."""


class Call(NamedTuple):
    work: Callable[[Engine], Any]
    answer: Future[Any]


class EngineThread:
    """The thread, and its inbox.

    Args:
        engine: belongs to the thread from now on.
        listener: hears of outputs, failures and the end.
    """

    def __init__(self, engine: Engine, listener: Listener) -> None:
        self._engine = engine
        self._listener = listener
        self._inbox: SimpleQueue[Call] = SimpleQueue()
        self._early: list[Call] = []  # a call that ended a policy's pause
        self._lock = threading.Lock()  # no call comes in once the thread has looked for the last time
        self._end: EngineDeadError | None = None
        self._is_stopping = False
        engine.sleep_with(self._pause)
        self._thread = threading.Thread(target=self._run, name="minivllm-engine", daemon=True)
        self._thread.start()

    @property
    def end(self) -> EngineDeadError | None:
        """Why it takes no more calls; None while it does."""
        return self._end

    def call(self, work: Callable[[Engine], Result]) -> Future[Result]:
        """Let the thread do this with the engine, between two steps, in the order of the calls.

        Raises:
            EngineDeadError: it takes no more calls.
        """
        answer: Future[Result] = Future()
        with self._lock:
            if self._end:
                raise self._end
            self._inbox.put(Call(work, answer))
        return answer

    def stop(self) -> None:
        """End after this step. Returns when the thread has ended; a second time it does nothing."""
        with suppress(EngineDeadError):
            self.call(lambda _: setattr(self, "_is_stopping", True))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            failures = 0
            while not self._is_stopping:
                self._do_calls(is_idle=not self._engine.has_unfinished_requests())
                if self._is_stopping or not self._engine.has_unfinished_requests():
                    continue
                failures = 0 if self._step() else failures + 1
                if failures > MAX_FAILURES:
                    raise RuntimeError(f"{failures} steps have failed in a row")
        except BaseException as caught:
            logger.exception("the engine has ended")
            error = caught
        self._close(EngineDeadError(_reason(error)))

    def _do_calls(self, is_idle: bool) -> None:
        """Everything that is in the inbox; with nothing else to do, wait until something is."""
        calls, self._early = self._early, []
        if is_idle and not calls:
            calls = [self._inbox.get()]
        while not self._inbox.empty():
            calls.append(self._inbox.get())
        for work, answer in calls:
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(work(self._engine))
            except Exception as error:
                answer.set_exception(error)

    def _step(self) -> bool:
        """One step. Returns whether it went well."""
        try:
            outputs = self._engine.step()
        except Exception as error:
            logger.exception("a step has failed")
            concerned = [name for name in self._engine.last_failed if self._engine.abort(name)]
            self._listener.on_failure(concerned, error)
            if isinstance(error, ExecutorDeadError):
                raise
            return False
        if outputs:
            self._listener.on_outputs(outputs)
        return True

    def _pause(self, seconds: float) -> None:
        with suppress(Empty):
            self._early.append(self._inbox.get(timeout=seconds))

    def _close(self, end: EngineDeadError) -> None:
        with self._lock:
            self._end = end
        while not self._inbox.empty():
            self._early.append(self._inbox.get())
        for _, answer in self._early:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(end)
        self._listener.on_end(end)


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "the engine was shut down"
    return f"the engine has ended: {error_words(error)}"
