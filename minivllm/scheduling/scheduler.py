"""The scheduler: before every step it decides who advances, and by how many tokens.

There is no prefill phase and no decode phase. Each request has tokens, and the cache is behind them by
some number; a step is a token budget handed out to let the caches catch up. Whoever finished has left,
whoever waits may join, at every single step: that is continuous batching.

    1. Running requests first, oldest first, so that newcomers never starve a decode.
       No free block? The youngest running request gives up its blocks and goes back to the head of the
       waiting queue (preemption by recompute). A request never preempts an older one: it waits instead,
       so the oldest always advances and everything finishes.
    2. Then, if memory was not short, waiting requests in order of arrival, while budget, places and
       blocks last. Nobody overtakes: a head that does not fit yet holds back those behind it.

A prompt longer than what is left of the budget is cut: the first chunk now, the rest in later steps,
beside the decodes of others (chunked prefill). Limits are enforced here and nowhere else.

Sources: Yu et al., "Orca" (OSDI 2022), section 3.1 (iteration-level scheduling); Kwon et al. (SOSP 2023),
section 4.5 (preemption); Agrawal et al., "Sarathi-Serve" (OSDI 2024) (chunked prefill).
Read next: `minivllm/engine.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.config import SchedulerConfig
from minivllm.memory import KVCacheManager
from minivllm.request import Request, RequestStatus, Sequence
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from minivllm.scheduling.queue import RequestQueue
from minivllm.trace.events import BatchPlanned, Event, RequestPreempted, RequestScheduled


class Scheduler:
    """Owner of the waiting queue and the running batch.

    Args:
        config: the limits.
        cache: the KV-cache manager that says whether a sequence may grow.
        emit: receives every decision as an event, or None.
    """

    def __init__(
        self, config: SchedulerConfig, cache: KVCacheManager, emit: Callable[[Event], None] | None = None
    ) -> None:
        self.config = config
        self.cache = cache
        self.waiting = RequestQueue()
        self.running = RequestQueue()
        self._emit = emit
        self._watermark_blocks = int(config.watermark * config.num_blocks)

    def add(self, request: Request) -> None:
        """Put a new request at the end of the waiting queue."""
        self.waiting.append(request)

    def schedule(self, step: int) -> StepPlan:
        """Hand out one step's token budget. Costs O(sequences scheduled), however many wait."""
        planned: list[ScheduledSequence] = []
        budget = self.config.max_num_batched_tokens
        budget, memory_is_short = self._advance_running(planned, budget)
        if not memory_is_short:
            self._admit_waiting(planned, budget)
        if self._emit:
            items = tuple((item.seq_id, item.start, item.num_tokens) for item in planned)
            self._emit(BatchPlanned(items))
        return StepPlan(step, tuple(planned))

    def complete(self, plan: StepPlan, sequences: dict[int, Sequence]) -> None:
        """The plan was carried out: the caches of its sequences have caught up that far.

        Until this call a plan changes no sequence, so a step that failed half-way can be planned again.
        """
        for item in plan.scheduled:
            sequences[item.seq_id].num_computed_tokens = item.end

    def remove(self, request: Request, status: RequestStatus) -> None:
        """Let a request leave, finished or aborted, from whichever queue it is in; its blocks come back."""
        queue = self.running if request in self.running else self.waiting
        queue.remove(request)
        request.status = status
        for sequence in request.sequences:
            self.cache.free(sequence.seq_id)

    def _advance_running(self, planned: list[ScheduledSequence], budget: int) -> tuple[int, bool]:
        """Step 1. Returns the budget left, and whether anybody had to give up blocks or go without."""
        memory_is_short = False
        for request in tuple(self.running):
            if budget == 0:
                break
            if request not in self.running:
                break  # preempted a moment ago, as was everybody behind it
            sequence = request.sequence
            count = self._chunk(sequence, budget)
            while not self.cache.allocate_slots(sequence.seq_id, sequence.num_computed_tokens + count):
                memory_is_short = True
                youngest = self.running.last()
                if youngest is request:
                    break
                self._preempt(youngest)
            else:
                planned.append(self._plan(sequence, count))
                budget -= count
        return budget, memory_is_short

    def _admit_waiting(self, planned: list[ScheduledSequence], budget: int) -> None:
        """Step 2. Admit from the head of the waiting queue until something runs out."""
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.first()
            sequence = request.sequence
            if not self._has_room_for(sequence):
                break
            count = self._chunk(sequence, budget)
            if count < sequence.num_uncomputed_tokens and not self.config.enable_chunked_prefill:
                break
            granted = self.cache.allocate_slots(sequence.seq_id, sequence.num_computed_tokens + count)
            assert granted, "there was room for the whole sequence, so there is room for its first chunk"
            self.waiting.remove(request)
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            if self._emit:
                self._emit(RequestScheduled(request.request_id))
            planned.append(self._plan(sequence, count))
            budget -= count

    def _has_room_for(self, sequence: Sequence) -> bool:
        """Would all tokens known so far fit, and still leave those who run some blocks to grow into?

        The whole sequence is weighed and not only its first chunk: one that cannot be completed would
        only be computed in order to be preempted.
        """
        spare = self._watermark_blocks if self.running else 0
        return self.cache.blocks_needed(sequence.num_tokens) + spare <= self.cache.num_free_blocks

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of this sequence to compute now, at least one."""
        count = min(sequence.num_uncomputed_tokens, budget)
        if self.config.enable_chunked_prefill and self.config.long_prefill_token_threshold:
            count = min(count, self.config.long_prefill_token_threshold)
        return count

    def _plan(self, sequence: Sequence, count: int) -> ScheduledSequence:
        start = sequence.num_computed_tokens
        end = start + count
        num_logits = 1 if end == sequence.num_tokens else 0
        if sequence.wants_prompt_logits and start < sequence.num_prompt_tokens:
            num_logits = count
        table = self.cache.table(sequence.seq_id).blocks[
            :
        ]  # a copy: the plan must not change under its reader
        return ScheduledSequence(sequence.seq_id, start, sequence.token_ids[start:end], table, num_logits)

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks away. It keeps its tokens and its turn, and starts again from zero."""
        self.running.remove(request)
        for sequence in request.sequences:
            self.cache.free(sequence.seq_id)
            lost = sequence.num_computed_tokens
            sequence.num_computed_tokens = 0
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self.waiting.appendleft(request)
        if self._emit:
            self._emit(RequestPreempted(request.request_id, "recompute", lost))

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless queues, block tables and limits agree with each other."""
        assert len(self.running) <= self.config.max_num_seqs, "more sequences run than max_num_seqs allows"
        holders = {sequence.seq_id for request in self.running for sequence in request.sequences}
        assert set(self.cache.tables) == holders, "exactly the running sequences hold a block table"
        for request in self.waiting:
            assert request not in self.running, f"{request.request_id} both waits and runs"
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        for queue in (self.waiting, self.running):
            for request in queue:
                for sequence in request.sequences:
                    sequence.check_invariants()
                    if queue is self.waiting:
                        assert sequence.num_computed_tokens == 0, (
                            "a waiting sequence has nothing in the cache"
                        )
        self.cache.check_invariants()
