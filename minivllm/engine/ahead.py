"""One more plan, while others are in flight.

    asynchronous scheduling   plan 1 has the sequences of plan 0, with a placeholder for each pending token
    a pipeline                plan 1 has others: those of plan 0 are held until their tokens have come

Tokens count as computed once they are planned, so the scheduler plans on as if they were. No request is
preempted ahead. What cannot be decided ahead waits: then there is no plan, and the next one is made alone,
when nothing is in flight. What a plan ahead changes is told when it is its turn (`trace/held_events.py`).

Source: Huang et al., "GPipe" (NeurIPS 2019), for the micro-batches; the asynchronous scheduling of vLLM.
Read next: `minivllm/scheduling/micro_batches.py` for how plans share the work.
"""

from __future__ import annotations

from minivllm.engine.books import Books
from minivllm.engine.core_events import batch_planned
from minivllm.scheduling.micro_batches import tokens_of_micro_batch
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.policy import Pause, PolicyError
from minivllm.trace.events import StepStarted


class AheadPlanner:
    """Plans ahead in the books of a core.

    Attributes:
        policy_error: the policy failed while it planned ahead; `plan_step` raises it.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self.policy_error: PolicyError | None = None

    def share(self, num_plans: int) -> int | None:
        """Most tokens of a plan that shares the work with others; None if it has no limit of its own."""
        books = self._books
        if num_plans == 1 or books.policy.pads or books.policy.releases_together:
            return None
        return tokens_of_micro_batch(books.config, books.state, books.in_flight, num_plans)

    def plan(self, now: float, num_plans: int) -> StepPlan | None:
        """The plan that follows those in flight; None if it must wait for them, or has nothing to do."""
        books, scheduler, held = self._books, self._books.scheduler, self._books.held
        if books.policy.pads or books.policy.releases_together:
            return None
        named = {request_id for plan in books.in_flight for request_id in plan.request_ids}
        requests = [books.requests[request_id] for request_id in named if request_id in books.requests]
        if books.runs_ahead and any(request.is_beam_search for request in requests):
            return None  # it would be in every other plan only, and so would those that are in this one
        scheduler.in_flight, scheduler.runs_ahead = named, books.runs_ahead
        if held:
            held.hold()
        plan = self._fill(now, self.share(num_plans))
        is_kept = bool(plan and (plan.scheduled or plan.request_ids))
        if held:
            if plan and is_kept:
                held(batch_planned(plan, is_ahead=True))
            held.close(is_kept=is_kept)
        scheduler.in_flight = ()
        return plan if is_kept else None

    def _fill(self, now: float, limit: int | None) -> StepPlan | None:
        books, scheduler = self._books, self._books.scheduler
        try:
            step = scheduler.begin(books.num_steps + len(books.in_flight), now, limit)
        except PolicyError:
            return None  # it is asked again, and fails again, when nothing is in flight
        if isinstance(step, Pause):
            return None
        try:
            return scheduler.fill(step)
        except PolicyError as error:
            self.policy_error, scheduler.must_wait = error, True
            return scheduler.plan(step)  # what is planned is planned, and what failed waits

    def begin(self, plan: StepPlan, time: float) -> None:
        """It is the turn of this plan, which was made ahead: tell it, and cache what is known by now."""
        books = self._books
        if books.held:
            books.held.tell_next(StepStarted(books.num_steps, time))
        if books.config.prefix_cache is None or not books.runs_ahead:
            return
        for item in plan.scheduled:  # a block may end with a token that was pending when the plan was made
            sequence = books.state.sequences[item.seq_id]
            if item.end % books.cache.block_size == 0 and sequence.finish is None:
                books.scheduler.cache_full_blocks(item.seq_id, item.end, in_flight=True)
