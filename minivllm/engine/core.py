"""The engine core: the one loop body, without text, model or clock.

    plan_step(now)  ──► StepPlan ──► (a driver carries it out, and samples) ──► finish_step(plan, sampled)
                    ──► Pause          the policy would rather wait for more requests
                    ──► None           there is nothing to do

Everything that runs requests drives this: the engine (`engine.py`), the data-centre simulator, comparisons,
benchmarks and the toys of the tests. A driver brings what the core does not know: what tokens are sampled,
when an output ends, and what time it is.

**Several plans in flight.** Tokens count as computed once they are planned. So a driver may ask for another
plan while earlier ones are carried out, and finish them in their order:

    plan_step ─► 0    plan_ahead ─► 1    finish 0    plan_ahead ─► 2    finish 1    …

What a plan in flight names stays (`leaving.py`). What cannot be decided ahead waits (`ahead.py`): then
`plan_ahead` gives None, and the next plan is made alone.

**Interrupts.** An exception or a Ctrl-C between any two lines costs no more than caches (`books.py`).

Sources: Yu et al., "Orca" (OSDI 2022), section 3; the `EngineCore` of vLLM.
Read next: `minivllm/scheduling/scheduler.py`, then `lifecycle.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minivllm.config import SchedulerConfig
from minivllm.engine.ahead import AheadPlanner
from minivllm.engine.books import Books
from minivllm.engine.core_events import batch_planned, request_queued
from minivllm.engine.lifecycle import StepChanges
from minivllm.memory.cache_manager import CacheManager
from minivllm.scheduling.plan import BeamStep, Sampled, ScheduledSequence, StepPlan
from minivllm.scheduling.policy import Pause, PolicyError, SchedulingPolicy
from minivllm.scheduling.request import Finish, Request
from minivllm.trace.events import AllowedTokens, Event, StepStarted, TokensAllowed, TokensSampled


class EngineCore(Books):
    """Owner of all unfinished requests, of the queues and of the KV cache's books.

    Args:
        config: the limits.
        emit: receives every change as an event; None records nothing and costs nothing.
        policy: in which order requests are scheduled; the one that `config` names, if None.
        make_cache: makes an empty memory, at the start and after an interrupt; the one that `config` names,
            if None.

    Attributes:
        requests: all unfinished requests by id, in order of arrival.
        num_steps: steps that were finished.
        in_flight: plans that were made, and neither finished nor abandoned; the oldest first.
        runs_ahead: may a sequence be planned whose next token is pending? The driver then fills it in.
        epoch: the moment, on the driver's clock, from which events count their time.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        emit: Callable[[Event], None] | None = None,
        *,
        policy: SchedulingPolicy | None = None,
        make_cache: Callable[[], CacheManager] | None = None,
    ) -> None:
        super().__init__(config, emit, policy=policy, make_cache=make_cache)
        self._ahead = AheadPlanner(self)
        self._num_arrivals = 0

    # ── requests come and go ──────────────────────────────────────────────────────────────────────────

    def add(
        self,
        request: Request,
        now: float = 0.0,
        *,
        prompt: str | None = None,
        pieces: Sequence[str] = (),
        structure: str = "",
    ) -> None:
        """Let a new request wait. A sequence whose id is negative gets the next one.

        Args:
            prompt, pieces, structure: its text, the text of each prompt token, and what its outputs must be:
                for the trace only.

        Raises:
            ValueError: a request of that id is unfinished; nothing has changed.
            PolicyError: the policy failed to rank it; nothing has changed.
        """
        self.settle(now)
        if request.request_id in self.requests:
            raise ValueError(f"request_id {request.request_id!r} is in use by a request that is not finished")
        request.arrival_index = self._num_arrivals
        request.rank = self.scheduler.ranking.rank(request)
        (sequence,) = request.sequences
        self._is_changing = True
        if sequence.seq_id < 0:
            sequence.seq_id = self._new_seq_id()
        request.first_seq_id = sequence.seq_id
        self._num_arrivals += 1
        self.requests[request.request_id] = request
        self.state.enqueue(request, self.scheduler.ranking.last_key(request))
        if self._emit:
            arrival = min(self.time_of(now), self.time_of(request.arrival_time))
            self._emit(request_queued(request, arrival, prompt=prompt, pieces=pieces, structure=structure))
        self._is_changing = False

    def abort(self, request_id: str, now: float = 0.0) -> bool:
        """Remove a request at any moment; all its blocks come back, those that a plan in flight names when it
        is finished. Returns whether it was here."""
        self.settle(now)
        request = self.requests.get(request_id)
        if request is None or self.is_over(request_id):
            return False
        self._is_changing = True
        if self.in_flight and (named := self.leaving.named & {one.seq_id for one in request.sequences}):
            self.leaving.abort(request, named, self.time_of(now))
            self._is_changing = False
            return True
        del self.requests[request_id]
        for sequence in request.sequences[1:]:
            self.lifecycle.drop(request, sequence, Finish("abort"), self.time_of(now))
        self.lifecycle.remove(request, request.finish or Finish("abort"), self.time_of(now))
        self._is_changing = False
        return True

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks that no table maps. Returns whether no block is cached now."""
        self.settle()
        self._is_changing = True
        is_empty = self.cache.reset_prefix_cache()
        self._is_changing = False
        return is_empty

    # ── the loop body ─────────────────────────────────────────────────────────────────────────────────

    def plan_step(self, now: float = 0.0, num_plans: int = 1) -> StepPlan | Pause | None:
        """Decide what the next step computes, while nothing is in flight: a plan that is gets lost.

        Args:
            num_plans: so many shall share the work, and be in flight together (`micro_batches.py`).

        Raises:
            PolicyError: the policy failed. Nothing was lost: the requests of the step start again.
        """
        if self._is_changing or self.in_flight:
            self._rebuild(now)
        self.scheduler.in_flight, self.scheduler.must_wait = (), False
        if self._ahead.policy_error is not None:
            error, self._ahead.policy_error = self._ahead.policy_error, None
            raise error
        if not self.requests:
            return None
        self._is_changing = True
        try:
            limit = None if num_plans == 1 else self._ahead.share(num_plans)
            step = self.scheduler.begin(self.num_steps, now, limit)
        except PolicyError:
            self._is_changing = False
            raise
        if isinstance(step, Pause):
            self._is_changing = False
            return step
        if self._emit:
            self._emit(StepStarted(self.num_steps, self.time_of(now)))
        try:
            plan = self.scheduler.fill(step)
        except PolicyError as error:
            self.abandon(self.scheduler.plan(step), error, now)
            raise
        if self._emit:
            self._emit(batch_planned(plan))
        self.cache.seal()
        self.in_flight.append(plan)
        self._is_changing = False
        return plan

    def plan_ahead(self, now: float = 0.0, num_plans: int = 1) -> StepPlan | None:
        """Plan one more step while others are in flight; None if it must wait for them, or has nothing to do.

        Args:
            num_plans: as for `plan_step`.
        """
        if self._is_changing or not self.in_flight or self.scheduler.must_wait:
            return None
        assert self.held is not None or self._emit is None, "events of plans ahead must be held"
        self._is_changing = True
        plan = self._ahead.plan(now, num_plans)
        if plan is not None:
            self.cache.seal()
            self.in_flight.append(plan)
        self._is_changing = False
        return plan

    def begin_next(self, now: float = 0.0) -> None:
        """After a step was finished, and that has been told: if another is in flight, it is its turn."""
        if not self.in_flight:
            return
        self._is_changing = True
        self._ahead.begin(self.in_flight[0], self.time_of(now))
        self._is_changing = False

    def finish_step(self, plan: StepPlan, sampled: Sampled, now: float = 0.0) -> StepChanges:
        """The plan was carried out: caches have caught up, and these tokens were sampled.

        Sequences that end leave, their request with the last of them, and their blocks come back.
        """
        self._is_changing = True
        time, lifecycle = self.time_of(now) if self._emit else 0.0, self.lifecycle
        if self.in_flight:
            self.in_flight.popleft()
        if self.held:
            self.held.note_end()
        if self.cache.commit(self.leaving.named if self.in_flight else ()):
            self.scheduler.must_wait = True
        sequences = self.state.sequences
        drafted: list[ScheduledSequence] = []
        for item in plan.scheduled:
            sequence, num_drafts = sequences[item.seq_id], item.num_draft_tokens
            if item.end - num_drafts == len(sequence.token_ids):
                sequence.num_pending_tokens -= num_drafts + 1
            if num_drafts:
                drafted.append(item)
        changes = StepChanges([], [], [], [])
        ended: dict[int, Finish] = {}
        pieces: list[tuple[int, int, str]] = []
        grown, emit = changes.grown, self._emit
        choices: list[AllowedTokens] = []
        for parent_id, token_id, text, is_fork, finish, allowed in sampled.tokens:
            sequence = sequences[parent_id]
            if is_fork:
                sequence = lifecycle.fork(sequence, changes)
            sequence.token_ids.append(token_id)
            grown.append(sequence)
            if emit:
                pieces.append((sequence.seq_id, token_id, text))
                if allowed:
                    choices.append(AllowedTokens(sequence.seq_id, allowed[0], tuple(allowed[1])))
            if finish:
                ended[sequence.seq_id] = finish
        for beam_step in sampled.beams:
            pieces += lifecycle.advance_beams(beam_step, changes, time)
            if beam_step.finish is not None:
                beams = self.requests[beam_step.request_id].sequences
                ended.update((beam.seq_id, beam_step.finish) for beam in beams)
        if sampled.failed:
            ended |= self._ends_of_failed(sampled, changes, time)
        if drafted:
            lifecycle.keep_accepted(drafted, sampled)
        if self._emit and choices:
            self._emit(TokensAllowed(tuple(choices)))
        if self._emit and pieces:
            self._emit(TokensSampled(tuple(pieces)))
        if self.in_flight or self.leaving.ended:
            self.leaving.keep_named(ended, changes, time)
        if ended or self.state.num_parked:
            lifecycle.end(ended, changes, time)
        self.num_steps += 1
        self._is_changing = False
        return changes

    def _ends_of_failed(self, sampled: Sampled, changes: StepChanges, time: float) -> dict[int, Finish]:
        """How the sequences end for which no token can be chosen."""
        ended: dict[int, Finish] = {}
        for request_id, finish in sampled.failed:
            request = self.requests[request_id]
            if request.is_beam_search and request.sequences[0].num_output_tokens:
                self.lifecycle.advance_beams(BeamStep(request_id, ()), changes, time)  # the search is over
            ended.update((sequence.seq_id, finish) for sequence in request.sequences)
        return ended

    @property
    def done_ahead(self) -> Sequence[Event]:
        """What planning ahead has changed since the last step was finished; empty where nothing is told."""
        return self.held.ahead if self.held else ()

    def is_over(self, request_id: str) -> bool:
        """Is it here only because a plan in flight names it? Its id is not free until that is finished."""
        return self.leaving.is_over(request_id)
