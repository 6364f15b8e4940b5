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

    asynchronous scheduling   plan 1 has the sequences of plan 0, with a placeholder for each pending token
    a pipeline                plan 1 has others: those of plan 0 are held until their tokens have come

What a plan in flight names stays: a sequence that has ended, or was aborted, keeps its blocks until the last
such plan is finished, and what that one samples for it is dropped. No request is preempted ahead. What cannot
be decided ahead waits: then `plan_ahead` gives None, and the next plan is made alone.

**Interrupts.** `requests` is the truth, and everything else can be made again from it: queues, block tables,
the free list, the prefix cache. A request is added by one assignment to that dictionary and removed by one
deletion. So an exception or a Ctrl-C between any two lines of this module, or of anything that it calls,
costs no more than caches: the next call finds the books half-written and rebuilds them (`settle`).

Sources: Yu et al., "Orca" (OSDI 2022), section 3; the `EngineCore` of vLLM; Candea and Fox, "Crash-Only
Software" (HotOS 2003), for recovery that is the same path as starting.
Read next: `minivllm/scheduling/scheduler.py`, then `lifecycle.py`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence, Set

from minivllm.config import SchedulerConfig
from minivllm.engine.lifecycle import Lifecycle, StepChanges
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.make_cache_manager import make_cache_manager
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.choose_policy import make_policy
from minivllm.scheduling.micro_batches import tokens_of_micro_batch
from minivllm.scheduling.plan import BeamStep, Sampled, ScheduledSequence, StepPlan
from minivllm.scheduling.policy import Pause, PolicyError, SchedulingPolicy
from minivllm.scheduling.request import NO_DRAFTS, Finish, Request, RequestStatus
from minivllm.scheduling.request import Sequence as TokenSequence
from minivllm.scheduling.scheduler import Scheduler
from minivllm.trace.events import (
    AllowedTokens,
    BatchPlanned,
    DraftsVerified,
    Event,
    RebuiltRequest,
    RebuiltSequence,
    RequestQueued,
    StateRebuilt,
    StepAbandoned,
    StepStarted,
    TokensAllowed,
    TokensSampled,
    VerifiedDrafts,
)
from minivllm.trace.held_events import HeldEvents


class EngineCore:
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
        self.config = config
        self.policy = make_policy(config.scheduling_policy) if policy is None else policy
        self.requests: dict[str, Request] = {}
        self.num_steps = 0
        self.epoch = 0.0
        self._emit = emit
        self._make_cache = make_cache or (lambda: make_cache_manager(config, emit))
        self._next_seq_id = 0
        self._num_arrivals = 0
        self._is_changing = False  # left True by an interrupt: the books may be half-written
        self.in_flight: deque[StepPlan] = deque()
        self.runs_ahead = False
        """May a sequence be planned whose next token is pending? Its driver then fills it in."""
        self._leaving: dict[int, tuple[Finish, float]] = {}  # ended, and named by a plan in flight; and when
        self._held = emit if isinstance(emit, HeldEvents) else None
        self._policy_error: PolicyError | None = None
        self._open_books()

    def _open_books(self) -> None:
        self.cache = self._make_cache()
        self.state = BatchState()
        self.scheduler = Scheduler(self.config, self.state, self.cache, self.policy, self._emit)
        self.lifecycle = Lifecycle(
            self.requests, self.state, self.cache, self.policy, self._new_seq_id, self._emit
        )

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
            self._emit_queued(request, sequence, now, prompt, pieces, structure)
        self._is_changing = False

    def abort(self, request_id: str, now: float = 0.0) -> bool:
        """Remove a request at any moment; all its blocks come back, those that a plan in flight names when it
        is finished. Returns whether it was here."""
        self.settle(now)
        request = self.requests.get(request_id)
        if request is None or self.is_over(request_id):
            return False
        self._is_changing = True
        if self.in_flight and (named := self._named & {one.seq_id for one in request.sequences}):
            self._abort_later(request, named, self.time_of(now))
            self._is_changing = False
            return True
        del self.requests[request_id]
        for sequence in request.sequences[1:]:
            self.lifecycle.drop(request, sequence, Finish("abort"), self.time_of(now))
        self.lifecycle.remove(request, request.finish or Finish("abort"), self.time_of(now))
        self._is_changing = False
        return True

    def _abort_later(self, request: Request, named: Set[int], time: float) -> None:
        """Remove all of a request but the sequences that a plan in flight names: those end with it."""
        for sequence in tuple(request.sequences):
            if sequence.seq_id not in named:
                self.lifecycle.drop(request, sequence, Finish("abort"), time)
            elif sequence.finish is None:
                sequence.finish = Finish("abort")
                self._leaving[sequence.seq_id] = sequence.finish, time
        request.finish = Finish("abort")

    @property
    def done_ahead(self) -> Sequence[Event]:
        """What planning ahead has changed since the last step was finished; empty where nothing is told."""
        return self._held.ahead if self._held else ()

    @property
    def _named(self) -> set[int]:
        """The sequences that plans in flight compute, and others of their requests: they may be moved."""
        requests = [self.requests.get(name) for plan in self.in_flight for name in plan.request_ids]
        named = {sequence.seq_id for request in requests if request for sequence in request.sequences}
        return named | {item.seq_id for plan in self.in_flight for item in plan.scheduled}

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
        if self._policy_error is not None:
            error, self._policy_error = self._policy_error, None
            raise error
        if not self.requests:
            return None
        self._is_changing = True
        try:
            limit = None if num_plans == 1 else self._share(num_plans)
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
            self._emit(_batch_planned(plan))
        self.cache.seal()
        self.in_flight.append(plan)
        self._is_changing = False
        return plan

    def _share(self, num_plans: int) -> int | None:
        """Most tokens of a plan that shares the work with others."""
        if self.policy.pads or self.policy.releases_together:
            return None
        return tokens_of_micro_batch(self.config, self.state, self.in_flight, num_plans)

    def plan_ahead(self, now: float = 0.0, num_plans: int = 1) -> StepPlan | None:
        """Plan one more step while others are in flight; None if it must wait for them, or has nothing to do.

        Args:
            num_plans: as for `plan_step`.
        """
        scheduler, policy = self.scheduler, self.policy
        if self._is_changing or not self.in_flight or scheduler.must_wait:
            return None
        if policy.pads or policy.releases_together:
            return None
        named = {request_id for plan in self.in_flight for request_id in plan.request_ids}
        requests = [self.requests[request_id] for request_id in named if request_id in self.requests]
        if self.runs_ahead and any(request.is_beam_search for request in requests):
            return None  # it would be in every other plan only, and so would those that are in this one
        assert self._held is not None or self._emit is None, "events of plans ahead must be held"
        self._is_changing = True
        scheduler.in_flight, scheduler.runs_ahead = named, self.runs_ahead
        if self._held:
            self._held.hold()
        plan = self._plan_ahead(now, None if num_plans == 1 else self._share(num_plans))
        is_kept = bool(plan and (plan.scheduled or plan.request_ids))
        if self._held:
            if plan and is_kept:
                self._held(_batch_planned(plan, is_ahead=True))
            self._held.close(is_kept=is_kept)
        if plan and is_kept:
            self.cache.seal()
            self.in_flight.append(plan)
        scheduler.in_flight = ()
        self._is_changing = False
        return plan if is_kept else None

    def _plan_ahead(self, now: float, limit: int | None) -> StepPlan | None:
        try:
            step = self.scheduler.begin(self.num_steps + len(self.in_flight), now, limit)
        except PolicyError:
            return None  # it is asked again, and fails again, when nothing is in flight
        if isinstance(step, Pause):
            return None
        try:
            return self.scheduler.fill(step)
        except PolicyError as error:
            self._policy_error, self.scheduler.must_wait = error, True
            return self.scheduler.plan(step)  # what is planned is planned, and what failed waits

    def begin_next(self, now: float = 0.0) -> None:
        """After a step was finished, and that has been told: if another is in flight, it is its turn."""
        if not self.in_flight:
            return
        self._is_changing = True
        if self._held:
            self._held.tell_next(StepStarted(self.num_steps, self.time_of(now)))
        if self.config.prefix_cache is not None and self.runs_ahead:
            self._cache_known_blocks(self.in_flight[0])
        self._is_changing = False

    def _cache_known_blocks(self, plan: StepPlan) -> None:
        """Blocks that the plan fills with a token that was pending when it was made, and is known now."""
        for item in plan.scheduled:
            sequence = self.state.sequences[item.seq_id]
            if item.end % self.cache.block_size == 0 and sequence.finish is None:
                self.scheduler.cache_full_blocks(item.seq_id, item.end, in_flight=True)

    def finish_step(self, plan: StepPlan, sampled: Sampled, now: float = 0.0) -> StepChanges:
        """The plan was carried out: caches have caught up, and these tokens were sampled.

        Sequences that end leave, their request with the last of them, and their blocks come back.
        """
        self._is_changing = True
        time, lifecycle = self.time_of(now) if self._emit else 0.0, self.lifecycle
        if self.in_flight:
            self.in_flight.popleft()
        if self._held:
            self._held.note_end()
        if self.cache.commit(self._named if self.in_flight else ()):
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
        for request_id, finish in sampled.failed:
            request = self.requests[request_id]
            if request.is_beam_search and request.sequences[0].num_output_tokens:
                lifecycle.advance_beams(BeamStep(request_id, ()), changes, time)  # the search is over
            ended.update((sequence.seq_id, finish) for sequence in request.sequences)
        if drafted:
            self._keep_accepted(drafted, sampled)
        if self._emit and choices:
            self._emit(TokensAllowed(tuple(choices)))
        if self._emit and pieces:
            self._emit(TokensSampled(tuple(pieces)))
        if self.in_flight or self._leaving:
            self._keep_named(ended, changes, time)
        if ended or self.state.num_parked:
            lifecycle.end(ended, changes, time)
        self.num_steps += 1
        self._is_changing = False
        return changes

    def _keep_named(self, ended: dict[int, Finish], changes: StepChanges, time: float) -> None:
        """Of those that have ended, the ones that a plan in flight names stay until it is finished.

        Their requests are over, all the same. Those of earlier steps that none names any more leave now.
        """
        named = self._named
        for seq_id in [seq_id for seq_id in self._leaving if seq_id not in named]:
            self._let_leave(seq_id)
        staying = [seq_id for seq_id in ended if seq_id in named]
        for seq_id in staying:
            sequence = self.state.sequences[seq_id]
            sequence.finish = finish = ended.pop(seq_id)
            self._leaving[seq_id] = finish, time
        for request_id in dict.fromkeys(self.state.sequences[seq_id].request_id for seq_id in staying):
            request = self.requests[request_id]
            if all(one.finish is not None or one.seq_id in ended for one in request.sequences):
                request.finish = self.state.sequences[staying[-1]].finish
                changes.finished.append(request)
                changes.released.append(request)

    def _let_leave(self, seq_id: int) -> None:
        finish, time = self._leaving.pop(seq_id)
        self.lifecycle.end({seq_id: finish}, StepChanges([], [], [], []), time)

    def is_over(self, request_id: str) -> bool:
        """Is it here only because a plan in flight names it? Its id is not free until that is finished."""
        request = self.requests.get(request_id)
        return request is not None and all(one.seq_id in self._leaving for one in request.sequences)

    def _keep_accepted(self, drafted: Sequence[ScheduledSequence], sampled: Sampled) -> None:
        """A sequence that got m tokens keeps m − 1 drafts: computed tokens and blocks behind them go.

        Blocks that are full of verified tokens enter the prefix cache with the sequence's next step.
        """
        num_sampled = Counter(token.seq_id for token in sampled.tokens)
        verified: list[VerifiedDrafts] = []
        for item in drafted:
            seq_id, sequence = item.seq_id, self.state.sequences[item.seq_id]
            num_accepted = max(0, num_sampled[seq_id] - 1)
            sequence.num_computed_tokens = computed = item.end - item.num_draft_tokens + num_accepted
            self.cache.truncate(seq_id, computed)
            if self._emit:
                drafts = tuple(item.token_ids[-item.num_draft_tokens :])
                texts = sampled.draft_texts.get(seq_id, ())
                verified.append(VerifiedDrafts(seq_id, drafts, num_accepted, texts))
        if self._emit:
            self._emit(DraftsVerified(tuple(verified)))

    def abandon(self, plan: StepPlan, error: BaseException, now: float = 0.0) -> None:
        """The plan failed, and how much of it was done is not known; nor is what later ones in flight did.

        So every request in them, and every request that they moved, starts again with nothing computed. They
        keep their tokens and their order; what they say in the end is the same.
        """
        self._is_changing = True
        preemption, plans = self.scheduler.preemption, (*self.in_flight, plan)
        if self._held:
            self._held.spill()
        for failed in reversed(plans):
            for item in failed.scheduled:
                self.state.sequences[item.seq_id].num_computed_tokens = item.start
        for seq_id in tuple(self._leaving):
            self._let_leave(seq_id)
        named = {request_id for failed in plans for request_id in failed.request_ids}
        for request in reversed(tuple(self.state.running.values())):
            if request.request_id in named:
                preemption.restart(request, "the step failed")
        if any(move.kind == "swap_out" for failed in plans for move in failed.moves):
            for request in self.state.waiting.in_order_of_arrival():
                preemption.drop_cache(request)
        self.cache.abandon()
        if self._emit:
            self._emit(StepAbandoned(self.num_steps, self.time_of(now), f"{type(error).__name__}: {error}"))
        self.in_flight.clear()
        self.scheduler.in_flight = ()
        self._is_changing = False

    def _new_seq_id(self) -> int:
        self._next_seq_id += 1
        return self._next_seq_id - 1

    # ── after an interrupt ────────────────────────────────────────────────────────────────────────────

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
        self._leaving.clear()
        if self._held:
            self._held.drop()
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
        self._emit_rebuilt(now)
        self._is_changing = False

    # ── events ────────────────────────────────────────────────────────────────────────────────────────

    def time_of(self, moment: float) -> float:
        """A moment of the driver's clock in seconds since the trace began."""
        return max(0.0, round(moment - self.epoch, 6))

    def _arrival_of(self, request: Request, now: float) -> float:
        return min(self.time_of(now), self.time_of(request.arrival_time))

    def _emit_queued(
        self,
        request: Request,
        sequence: TokenSequence,
        now: float,
        prompt: str | None,
        pieces: Sequence[str],
        structure: str,
    ) -> None:
        assert self._emit is not None
        self._emit(
            RequestQueued(
                request.request_id,
                sequence.seq_id,
                self._arrival_of(request, now),
                tuple(sequence.token_ids),
                request.max_tokens,
                prompt,
                tuple(pieces),
                request.priority,
                num_outputs=request.max_num_sequences,
                is_beam_search=request.is_beam_search,
                salt=request.salt,
                structure=structure,
            )
        )

    def _emit_rebuilt(self, now: float) -> None:
        if self._emit:
            requests = tuple(
                RebuiltRequest(
                    request.request_id,
                    self._arrival_of(request, now),
                    request.first_seq_id,
                    request.sequences[0].num_prompt_tokens,
                    request.max_tokens,
                    tuple(RebuiltSequence(own.seq_id, tuple(own.token_ids)) for own in request.sequences),
                )
                for request in self.requests.values()
            )
            self._emit(StateRebuilt(self.time_of(now), self.num_steps, requests))

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


def _batch_planned(plan: StepPlan, *, is_ahead: bool = False) -> BatchPlanned:
    items = tuple((item.seq_id, item.start, len(item.token_ids)) for item in plan.scheduled)
    drafts = tuple((item.seq_id, item.num_draft_tokens) for item in plan.scheduled if item.num_draft_tokens)
    return BatchPlanned(items, plan.num_padding_tokens, drafts, is_ahead)
