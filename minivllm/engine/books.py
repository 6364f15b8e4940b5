"""The core's books: all unfinished requests, and what is made from them: queues, block tables, free blocks.

    requests ──► BatchState, KV cache, Scheduler, Lifecycle, Leaving        made again by `settle`, if need be

**Interrupts.** `requests` is the truth, and everything else can be made again from it: queues, block tables,
the free list, the prefix cache. A request is added by one assignment to that dictionary and removed by one
deletion. So an exception or a Ctrl-C between any two lines of the core, or of anything that it calls, costs
no more than caches: the next call finds the books half-written and rebuilds them (`settle`).

A step that failed needs less: the books are whole, and only its requests start again (`abandon`).

Source: Candea and Fox, "Crash-Only Software" (HotOS 2003), for recovery that is the same path as starting.
Read next: `core.py`, the loop that writes these books.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from minivllm.config import SchedulerConfig
from minivllm.engine.core_events import state_rebuilt
from minivllm.engine.leaving import Leaving
from minivllm.engine.lifecycle import Lifecycle
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.make_cache_manager import make_cache_manager
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.choose_policy import make_policy
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.scheduling.request import NO_DRAFTS, Request, RequestStatus
from minivllm.scheduling.scheduler import Scheduler
from minivllm.trace.events import Event, StepAbandoned
from minivllm.trace.held_events import HeldEvents
from minivllm.validation import error_words


class Books:
    """What `EngineCore` knows; its arguments and attributes are said there."""

    def __init__(
        self,
        config: SchedulerConfig,
        emit: Callable[[Event], None] | None = None,
        *,
        policy: SchedulingPolicy | None = None,
        make_cache: Callable[[], CacheManager] | None = None,
    ) -> None:
        self.config = config
        self.policy = make_policy(config.scheduling_policy) if policy is None else policy
        self.requests: dict[str, Request] = {}
        self.num_steps = 0
        self.epoch = 0.0
        self.in_flight: deque[StepPlan] = deque()
        self.runs_ahead = False
        self.held = emit if isinstance(emit, HeldEvents) else None
        self._emit = emit
        self._make_cache = make_cache or (lambda: make_cache_manager(config, emit))
        self._next_seq_id = 0
        self._is_changing = False  # left True by an interrupt: the books may be half-written
        self._open_books()

    def _open_books(self) -> None:
        self.cache = self._make_cache()
        self.state = BatchState()
        self.scheduler = Scheduler(self.config, self.state, self.cache, self.policy, self._emit)
        self.lifecycle = Lifecycle(
            self.requests, self.state, self.cache, self.policy, self._new_seq_id, self._emit
        )
        self.leaving = Leaving(self.requests, self.state, self.lifecycle, self.in_flight)

    def _new_seq_id(self) -> int:
        self._next_seq_id += 1
        return self._next_seq_id - 1

    def time_of(self, moment: float) -> float:
        """A moment of the driver's clock in seconds since the trace began."""
        return max(0.0, round(moment - self.epoch, 6))

    # ── after an interrupt, and after a failure ───────────────────────────────────────────────────────

    def settle(self, now: float = 0.0, *, is_suspect: bool = False) -> None:
        """Make the books again if an interrupt has left them half-written, or the caller's are suspect."""
        if self._is_changing or is_suspect:
            self._rebuild(now)

    def _rebuild(self, now: float) -> None:
        """New books from `requests`: every one waits, with nothing computed; its tokens are kept.

        A request with several sequences may have been interrupted between two forks, so it begins again from
        its prompt. Random numbers depend on the position, so it will say the same.
        """
        self._is_changing = True
        self.in_flight.clear()
        if self.held:
            self.held.drop()
        for request in [request for request in self.requests.values() if request.finish is not None]:
            del self.requests[request.request_id]  # it was parked, or about to leave
        self._open_books()
        for request in self.requests.values():
            first = request.sequences[0]
            if request.max_num_sequences > 1 or request.is_beam_search:
                del request.sequences[1:], first.token_ids[first.num_prompt_tokens :]
            for sequence in request.sequences:
                sequence.num_computed_tokens = sequence.num_pending_tokens = 0
                sequence.finish = None
                sequence.draft_token_ids = NO_DRAFTS
            request.status = RequestStatus.WAITING
            self.state.enqueue(request, self.scheduler.ranking.last_key(request))
        if self._emit:
            time = self.time_of(now)
            arrivals = [min(time, self.time_of(request.arrival_time)) for request in self.requests.values()]
            self._emit(state_rebuilt(self.requests.values(), arrivals, time, self.num_steps))
        self._is_changing = False

    def abandon(self, plan: StepPlan, error: BaseException, now: float = 0.0) -> None:
        """The plan failed, and how much of it was done is not known; nor is what later ones in flight did.

        So every request in them, and every request that they moved, starts again with nothing computed. They
        keep their tokens and their order; what they say in the end is the same.
        """
        self._is_changing = True
        preemption, plans = self.scheduler.preemption, (*self.in_flight, plan)
        if self.held:
            self.held.spill()
        for failed in reversed(plans):
            for item in failed.scheduled:
                self.state.sequences[item.seq_id].num_computed_tokens = item.start
        self.leaving.let_all_leave()
        named = {request_id for failed in plans for request_id in failed.request_ids}
        for request in reversed(tuple(self.state.running.values())):
            if request.request_id in named:
                preemption.restart(request, "the step failed")
        if any(move.kind == "swap_out" for failed in plans for move in failed.moves):
            for request in self.state.waiting.in_order_of_arrival():
                preemption.drop_cache(request)
        self.cache.abandon()
        if self._emit:
            self._emit(StepAbandoned(self.num_steps, self.time_of(now), error_words(error)))
        self.in_flight.clear()
        self.scheduler.in_flight = ()
        self._is_changing = False

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless requests, queues, block tables and limits agree with each other."""
        self.state.check_invariants()
        self.cache.check_invariants()
        for plan in self.in_flight:
            for item in plan.scheduled:
                assert item.seq_id in self.cache.tables, (
                    f"a plan names sequence {item.seq_id}, which has no blocks"
                )
        assert self.state.num_running_seqs <= self.config.max_num_seqs, "more sequences than slots"
        running, waiting = self.state.running, self.state.waiting.entries
        assert set(running) | set(waiting) == set(self.requests), (
            "the queues and the core name different requests"
        )
        for request in running.values():
            assert request.sequences[0].seq_id in self.cache.tables, "a running request holds blocks"
        for _, _, request in waiting.values():
            for sequence in request.sequences:
                assert sequence.seq_id not in self.cache.tables, "a waiting sequence holds no blocks"
                assert sequence.num_computed_tokens == 0 or self.cache.is_swapped(sequence.seq_id), (
                    "a waiting sequence has nothing in the cache, unless it is in the swap space"
                )
        assert set(self.cache.tables) <= set(self.state.sequences), "a block table belongs to no sequence"
