"""The engine core: the one loop body, without text, model or clock.

    plan_step(now)  ──► StepPlan ──► (a driver carries it out, and samples) ──► finish_step(plan, sampled)
                    ──► Pause          the policy would rather wait for more requests
                    ──► None           there is nothing to do

Everything that runs requests drives this: the engine (`engine.py`), the data-centre simulator, comparisons,
benchmarks and the toys of the tests. A driver brings what the core does not know: what tokens are sampled,
when an output ends, and what time it is.

**Interrupts.** `requests` is the truth, and everything else can be made again from it: queues, block tables,
the free list, the prefix cache. A request is added by one assignment to that dictionary and removed by one
deletion. So an exception or a Ctrl-C between any two lines of this module, or of anything that it calls,
costs no more than caches: the next call finds the books half-written and rebuilds them (`settle`).

Sources: Yu et al., "Orca" (OSDI 2022), section 3; the `EngineCore` of vLLM; Candea and Fox, "Crash-Only
Software" (HotOS 2003), for recovery that is the same path as starting.
Read next: `minivllm/scheduling/scheduler.py`, then `lifecycle.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from minivllm.config import SchedulerConfig
from minivllm.engine.lifecycle import Lifecycle, StepChanges
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.make_cache_manager import make_cache_manager
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.choose_policy import make_policy
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
        self._in_flight: StepPlan | None = None
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
        """Remove a request at any moment; all its blocks come back. Returns whether it was here."""
        self.settle(now)
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._is_changing = True
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

    def plan_step(self, now: float = 0.0) -> StepPlan | Pause | None:
        """Decide what the next step computes. The plan must be finished or abandoned before the next one.

        Raises:
            PolicyError: the policy failed. Nothing was lost: the requests of the step start again.
        """
        if self._is_changing or self._in_flight:
            self._rebuild(now)
        if not self.requests:
            return None
        self._is_changing = True
        try:
            step = self.scheduler.begin(self.num_steps, now)
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
            items = tuple((item.seq_id, item.start, len(item.token_ids)) for item in plan.scheduled)
            drafts = tuple(
                (item.seq_id, item.num_draft_tokens) for item in plan.scheduled if item.num_draft_tokens
            )
            self._emit(BatchPlanned(items, plan.num_padding_tokens, drafts))
        self._in_flight = plan
        self._is_changing = False
        return plan

    def finish_step(self, plan: StepPlan, sampled: Sampled, now: float = 0.0) -> StepChanges:
        """The plan was carried out: caches have caught up, and these tokens were sampled.

        Sequences that end leave, their request with the last of them, and their blocks come back.
        """
        self._is_changing = True
        time, lifecycle = self.time_of(now) if self._emit else 0.0, self.lifecycle
        self.cache.commit()
        sequences = self.state.sequences
        drafted: list[ScheduledSequence] = []
        for item in plan.scheduled:
            sequences[item.seq_id].num_computed_tokens = item.start + len(item.token_ids)
            if item.num_draft_tokens:
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
        if ended or self.state.num_parked:
            lifecycle.end(ended, changes, time)
        self.num_steps += 1
        self._in_flight = None
        self._is_changing = False
        return changes

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
        """The plan failed, and how much of it was done is not known.

        So every request in it, and every request that it moved, starts again with nothing computed. They keep
        their tokens and their order; what they say in the end is the same.
        """
        self._is_changing = True
        preemption = self.scheduler.preemption
        for request in reversed(tuple(self.state.running.values())):
            if request.request_id in plan.request_ids:
                preemption.restart(request, "the step failed")
        if any(move.kind == "swap_out" for move in plan.moves):
            for request in self.state.waiting.in_order_of_arrival():
                preemption.drop_cache(request)
        self.cache.abandon()
        if self._emit:
            self._emit(StepAbandoned(plan.step, self.time_of(now), f"{type(error).__name__}: {error}"))
        self._in_flight = None
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
        for request in [request for request in self.requests.values() if request.finish is not None]:
            del self.requests[request.request_id]  # it was parked, or about to leave
        self._open_books()
        for request in self.requests.values():
            first = request.sequences[0]
            if request.max_num_sequences > 1 or request.is_beam_search:
                del request.sequences[1:], first.token_ids[first.num_prompt_tokens :]
            first.num_computed_tokens = 0
            for sequence in request.sequences:
                sequence.draft_token_ids = NO_DRAFTS
            request.status = RequestStatus.WAITING
            self.state.enqueue(request, self.scheduler.ranking.last_key(request))
        self._emit_rebuilt(now)
        self._in_flight = None
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
