"""The engine's books: its requests, what their callers were told, and order after an interrupt.

    core.requests     the truth of what was computed: sequences of tokens
    requests          beside each, its outputs: texts, reasons to finish, times
    outbox            what the last step gave to its caller, until that comes back: it may never have got it
    late              what the next step has to tell as well

A step changes the core first and the outputs with it, and is *busy* until its outputs are sent. If Ctrl-C
comes in between, the next call finds it busy and *settles*: the core makes its books again (`books.py`), and
each request makes its outputs again from its tokens. So no token, and no output, is lost or told twice.

One thread at a time drives an engine. A caller that waits for some requests only, as `LLM.generate` does,
begins a *call* and names it in each `step`; the outputs of all other requests are kept for a plain `step`.

Read next: `step_loop.py`, which writes these books.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from minivllm.config import SchedulerConfig
from minivllm.engine.core import EngineCore
from minivllm.engine.flight import choose_flights
from minivllm.engine.request_state import RequestState
from minivllm.engine.snapshot import take_snapshot
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.make_cache_manager import Pages, make_cache_manager
from minivllm.outputs import RequestOutput
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.trace.events import RequestRefused
from minivllm.trace.held_events import HeldEvents
from minivllm.trace.replay import EngineSnapshot
from minivllm.trace.tee import Sink, make_emit
from minivllm.validation import shown

if TYPE_CHECKING:
    from minivllm.executor.executor import Executor


class Outbox(NamedTuple):
    """What a step tells the callers."""

    outputs: list[RequestOutput]
    states: list[RequestState]
    """Those of its requests that go on: what was told of them must be noted (`mark_sent`)."""
    left: list[str]
    """Those that do not: they are forgotten once their outputs cannot be lost any more."""


NOTHING = Outbox([], [], [])

Call: TypeAlias = frozenset[str]
"""The ids of the requests that one caller waits for."""


class EngineBooks:
    """What an engine knows of its requests; arguments and attributes are said in `engine.py`."""

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor,
        sinks: Sequence[Sink],
        clock: Callable[[], float],
        policy: SchedulingPolicy | None,
        pages: Pages | None,
        *,
        is_async: bool,
        overlap_stages: bool,
    ) -> None:
        self.config = config
        self.executor = executor
        self._flights = flights = choose_flights(
            executor,
            lambda plan: self.executor.execute(plan),
            is_async=is_async,
            overlap_stages=overlap_stages,
            has_threads=clock is perf_counter,
        )
        emit = make_emit(sinks)
        self._emit = emit = HeldEvents(emit) if emit and flights.max_in_flight > 1 else emit
        with_texts = [sink for sink in sinks if getattr(sink, "wants_texts", True)]
        self._tells_texts = bool(with_texts)
        self._tells_prompt_texts = any(getattr(sink, "wants_prompt_texts", True) for sink in with_texts)
        self.core = EngineCore(
            config, emit, policy=policy, make_cache=lambda: make_cache_manager(config, emit, pages)
        )
        self.core.runs_ahead = flights.max_in_flight > flights.num_plans
        self.requests: dict[str, RequestState] = {}
        self.last_failed: frozenset[str] = frozenset()
        self._clock = clock
        self._is_busy = False  # left True by an interrupt: something may be half-done
        self._outbox = NOTHING
        self._late: list[RequestOutput] = []  # for the next step to tell
        self._call: Call | None = None

    def is_in_use(self, request_id: str) -> bool:
        """Is there a request of this id that is unfinished, or whose last output was not told yet?"""
        return request_id in self.requests or any(late.request_id == request_id for late in self._late)

    def has_unfinished_requests(self) -> bool:
        self._settle()
        return bool(self.requests or self._late)

    @property
    def num_unfinished_requests(self) -> int:
        return len(self.requests)

    @property
    def num_steps(self) -> int:
        """Steps that were finished."""
        return self.core.num_steps

    @property
    def cache(self) -> CacheManager:
        """The memory's books."""
        return self.core.cache

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes that no request uses. Returns whether nothing is left in the cache."""
        self._settle()
        self._is_busy = True
        is_empty = self.core.reset_prefix_cache()
        self._is_busy = False
        return is_empty

    def note_refusal(self, request_id: str, error: ValueError) -> None:
        """Record in the trace that a request could not be made."""
        if self._emit:
            now = self.core.time_of(self._clock())
            name = request_id if isinstance(request_id, str) else shown(request_id)
            self._emit(RequestRefused(name.encode(errors="replace").decode(), now, str(error)))

    def _add(self, state: RequestState, seed: int, pieces: Sequence[str], structure: str) -> None:
        """Let a request wait: in the core first, which may refuse it."""
        self._is_busy = True
        try:
            self.core.add(
                state.request, self._clock(), prompt=state.prompt, pieces=pieces, structure=structure
            )
        except ValueError:
            self._is_busy = False
            raise
        if state.sampling:
            # A seed of its own, so that no outcome depends on the other requests of the batch.
            state.sampling.set_fallback_seed((seed << 32) ^ state.request.sequences[0].seq_id)
        self.requests[state.request.request_id] = state
        self._is_busy = False

    def _remove(self, request_id: str) -> RequestOutput | None:
        """Abort a request. Its output so far; None if it is not here."""
        self._settle()
        self._late = [output for output in self._late if output.request_id != request_id]
        state = self.requests.get(request_id)
        if state is None:
            return None
        self._is_busy = True
        state.outputs.abort()
        state.metrics.finished_time = now = self._clock()
        output = state.output()
        self.core.abort(request_id, now)
        del self.requests[request_id]
        self._is_busy = False
        return output

    # ── after an interrupt ────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Put things in order that an interrupt has left half-done: the core's books, then the outputs.

        A request that the core no longer has was finished or aborted; one that only the core has was about
        to be added. The outputs of all others are made again from their tokens.
        """
        if not self._is_busy:
            self._outbox = NOTHING  # the caller has come back, so it has got what was in it
            return
        self._flights.forget()
        now, core = self._clock(), self.core
        core.settle(now, is_suspect=True)
        for state in self._outbox.states:
            state.outputs.mark_sent()
        for request_id in self._outbox.left:
            self.requests.pop(request_id, None)
        vars(self).update(_late=self._outbox.outputs or self._late, _outbox=NOTHING)
        for request_id, state in tuple(self.requests.items()):
            if request_id in core.requests:
                state.rewind()
                if not state.outputs.is_finished:
                    continue
                core.abort(request_id, now)
            self._leave_late(request_id, state, now)
        for request_id in tuple(core.requests):
            if request_id not in self.requests:
                core.abort(request_id, now)
        self._is_busy = False

    def _leave_late(self, request_id: str, state: RequestState, now: float) -> None:
        """A request had finished when the interrupt came: the next step tells its caller, if it has one."""
        if state.outputs.is_finished and not state.outputs.was_aborted:
            state.metrics.finished_time = now
            self._late = [*self._late, state.output()]
        del self.requests[request_id]

    # ── for traces and tests ──────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> EngineSnapshot:
        """The control plane's state, in the form in which a replay of the trace gives it."""
        self._settle()
        return take_snapshot(self.core, self._beam_scores())

    def _beam_scores(self) -> dict[int, float]:
        """Score of each running beam, once its search has begun."""
        scores: dict[int, float] = {}
        for state in self.requests.values():
            request = state.request
            if state.search and request.finish is None and request.sequences[0].num_output_tokens:
                rounded = [round(score, 6) for score in state.search.search.scores]
                scores |= zip((beam.seq_id for beam in request.sequences), rounded, strict=True)
        return scores

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every request is in exactly one queue and the memory adds up."""
        self._settle()
        self.core.check_invariants()
        names = {name for name in self.core.requests if not self.core.is_over(name)}
        assert names == set(self.requests), "engine and core name different requests"
        for state in self.requests.values():
            if state.request.finish is None:
                state.check_invariants()
