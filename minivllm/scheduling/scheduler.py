"""The scheduler: before every step it decides who advances, and by how many tokens.

There is no prefill phase and no decode phase. Each request has tokens, and the cache is behind them by
some number; a step is a token budget handed out to let the caches catch up. Whoever finished has left,
whoever waits may join, at every single step: that is continuous batching.

    1. Running requests first, oldest first, so that newcomers never starve a decode.
       No free block? The youngest running request steps aside and goes back to the head of the waiting
       queue (preemption). A request never preempts an older one: it waits instead, so the oldest always
       advances and everything finishes.
    2. Then, if memory was not short, waiting requests in order of arrival, while budget, places and
       blocks last. Nobody overtakes: a head that does not fit yet holds back those behind it.

A prompt longer than what is left of the budget is cut: the first chunk now, the rest in later steps,
beside the decodes of others (chunked prefill). A prompt whose beginning the prefix cache knows starts
behind it. A request with several sequences comes, grows and goes as a whole (`groups.py`). Limits are
enforced here and nowhere else.

Sources: Yu et al., "Orca" (OSDI 2022), section 3.1 (iteration-level scheduling); Kwon et al. (SOSP 2023),
section 4.5 (preemption); Agrawal et al., "Sarathi-Serve" (OSDI 2024) (chunked prefill).
Read next: `groups.py`, then `minivllm/engine.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import CacheManager, Span
from minivllm.request import Request, RequestStatus
from minivllm.request import Sequence as TokenSequence
from minivllm.scheduling.groups import advance_group, blocks_for_siblings
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from minivllm.scheduling.queue import RequestQueue
from minivllm.trace.events import (
    BatchPlanned,
    Event,
    RequestPreempted,
    RequestScheduled,
    SequenceForked,
)

logger = logging.getLogger(__name__)


class Scheduler:
    """Owner of the waiting queue, the running batch, and all sequences that are not finished.

    Args:
        config: the limits.
        cache: the memory, which says whether a sequence may grow.
        emit: receives every decision as an event, or None.
    """

    def __init__(
        self, config: SchedulerConfig, cache: CacheManager, emit: Callable[[Event], None] | None = None
    ) -> None:
        self.config = config
        self.cache = cache
        self.waiting = RequestQueue()
        self.running = RequestQueue()
        self.sequences: dict[int, TokenSequence] = {}
        self.num_running_seqs = 0
        """Places in the batch that the running requests may come to fill."""
        self._in_step: set[str] = set()  # requests that the current plan computes or moves
        self._forks_share = config.allocator == "paged" and not config.copy_on_fork
        self._emit = emit
        self._next_seq_id = 0
        self._watermark_blocks = int(config.watermark * config.num_blocks)

    def new_seq_id(self) -> int:
        """The number of the next sequence."""
        self._next_seq_id += 1
        return self._next_seq_id - 1

    def add(self, request: Request) -> None:
        """Put a new request at the end of the waiting queue."""
        for sequence in request.sequences:
            self.sequences[sequence.seq_id] = sequence
        self.waiting.append(request)

    # ── the plan of a step, and what became of it ─────────────────────────────────────────────────────

    def schedule(self, step: int) -> StepPlan:
        """Hand out one step's token budget. Costs O(sequences scheduled), however many wait."""
        planned: list[ScheduledSequence] = []
        budget = self.config.max_num_batched_tokens
        self._in_step.clear()
        budget, memory_is_short = self._advance_running(planned, budget)
        if not memory_is_short:
            self._admit_waiting(planned, budget)
        if self._emit:
            items = tuple((item.seq_id, item.start, item.num_tokens) for item in planned)
            self._emit(BatchPlanned(items))
        return StepPlan(step, tuple(planned), self.cache.take_moves())

    def complete(self, plan: StepPlan) -> None:
        """The plan was carried out: the caches of its sequences have caught up that far."""
        self.cache.commit()
        for item in plan.scheduled:
            self.sequences[item.seq_id].num_computed_tokens = item.end

    def abandon(self, plan: StepPlan) -> None:
        """The plan failed, and nobody knows how much of it was done.

        So everybody who was in it, or was moved by it, starts again from zero. They keep their tokens
        and their turn; what they say in the end is the same.
        """
        for request in reversed(tuple(self.running)):
            if request.request_id in self._in_step:
                self._preempt(request, "recompute", "the step failed")
        if any(move.kind == "swap_out" for move in plan.moves):
            for request in self.waiting:
                self._start_again(request)
        self.cache.abandon()

    def grow(
        self, request: Request, children: Sequence[tuple[TokenSequence, int]]
    ) -> tuple[list[TokenSequence], list[TokenSequence]]:
        """Give beams their next tokens: one, several (a fork for each but the first), or none.

        Args:
            children: `(parent, token)` of each beam that goes on, best first.

        Returns:
            The sequence that each child became; and the beams without a child, which are gone.
        """
        beams = tuple(request.sequences)
        grown: list[TokenSequence] = []
        parents: set[int] = set()
        for parent, _ in children:
            grown.append(self.fork(request, parent) if parent.seq_id in parents else parent)
            parents.add(parent.seq_id)
        # Only now, when all have forked, may anybody grow: a fork is its parent as it was.
        for sequence, (_, token) in zip(grown, children, strict=True):
            sequence.append_token(token)
        pruned = [beam for beam in beams if beam.seq_id not in parents]
        for beam in pruned:
            self.drop(request, beam)
        request.sequences[:] = grown
        return grown, pruned

    def fork(self, request: Request, parent: TokenSequence) -> TokenSequence:
        """One more sequence for the request, which shares everything with `parent`."""
        child = parent.fork(self.new_seq_id())
        self.sequences[child.seq_id] = child
        request.sequences.append(child)
        self.cache.fork(parent.seq_id, child.seq_id)
        if self._emit:
            self._emit(SequenceForked(request.request_id, parent.seq_id, child.seq_id))
        return child

    def drop(self, request: Request, sequence: TokenSequence) -> None:
        """A sequence ends, others of its request may go on; its blocks come back."""
        request.sequences.remove(sequence)
        del self.sequences[sequence.seq_id]
        self.cache.free(sequence.seq_id)

    def remove(self, request: Request, status: RequestStatus) -> None:
        """Let a request leave, finished or aborted, from whichever queue it is in."""
        if request in self.running:
            self.running.remove(request)
            self.num_running_seqs -= request.width
        else:
            self.waiting.remove(request)
        request.status = status
        for sequence in tuple(request.sequences):
            self.drop(request, sequence)

    # ── 1. those who run ──────────────────────────────────────────────────────────────────────────────

    def _advance_running(self, planned: list[ScheduledSequence], budget: int) -> tuple[int, bool]:
        """Returns the budget left, and whether anybody had to step aside or go without."""
        memory_is_short = False
        for request in tuple(self.running):
            if budget == 0:
                break
            if request not in self.running:
                break  # preempted a moment ago, as was everybody behind it
            spans = self._next_spans(request, budget)
            while not self.cache.allocate(spans):
                memory_is_short = True
                youngest = self.running.last()
                if youngest is request:
                    break
                self._preempt(youngest, self.config.preemption_mode)
            else:
                budget -= self._plan(request, spans, planned)
        return budget, memory_is_short

    def _next_spans(self, request: Request, budget: int) -> list[Span]:
        """What a running request computes in this step: at most `budget` tokens, perhaps none."""
        if len(request.sequences) > 1:
            return advance_group(request, self.cache, budget, self._chunk)
        sequence = request.sequences[0]
        start = sequence.num_computed_tokens
        return [Span(sequence.seq_id, start, start + self._chunk(sequence.num_uncomputed_tokens, budget))]

    def _chunk(self, count: int, budget: int) -> int:
        """How many of `count` tokens to compute now; 0 if they must go in one step and do not fit."""
        if count > budget:
            count = budget if self.config.enable_chunked_prefill else 0
        if self.config.enable_chunked_prefill and self.config.long_prefill_token_threshold:
            count = min(count, self.config.long_prefill_token_threshold)
        return count

    # ── 2. those who wait ─────────────────────────────────────────────────────────────────────────────

    def _admit_waiting(self, planned: list[ScheduledSequence], budget: int) -> None:
        """Admit from the head of the waiting queue until something runs out."""
        while self.waiting and budget > 0:
            request = self.waiting.first()
            if self.num_running_seqs + request.width > self.config.max_num_seqs:
                break
            if not self.config.enable_chunked_prefill and request.sequences[0].num_uncomputed_tokens > budget:
                break
            spans = self._begin(request, budget)
            if spans is None:
                break
            self.waiting.remove(request)
            self.running.append(request)
            self.num_running_seqs += request.width
            request.status = RequestStatus.RUNNING
            if self._emit:
                self._emit(RequestScheduled(request.request_id))
            budget -= self._plan(request, spans, planned)

    def _begin(self, request: Request, budget: int) -> list[Span] | None:
        """Let the memory take a request in; None if there is no room.

        There must be room for all tokens known so far, and not only for the first chunk: a request that
        cannot be completed would only be computed in order to be preempted. And those who run are left
        some blocks to grow into (the watermark), as are the forks that this one will have soon.
        """
        forks_to_come = request.width - len(request.sequences)
        spare = self._watermark_blocks + forks_to_come if self.running else 0
        first = request.sequences[0]
        if self.cache.is_swapped(first.seq_id):
            if not self.cache.swap_in(self._everything(request), spare):
                return None
            for sequence in request.sequences:
                if sequence.seq_id in self.cache.tables:
                    self.cache.remember(sequence.seq_id, sequence.token_ids, sequence.num_computed_tokens)
            spans = self._next_spans(request, budget)
            return spans if self.cache.allocate(spans) else []
        found = self.cache.begin(
            first.seq_id,
            first.token_ids,
            longest=request.longest,
            width=request.width,
            extra_blocks=blocks_for_siblings(request, self.cache.block_size, shared=self._forks_share),
            spare_blocks=spare,
            salt=request.salt,
            use_cache=not first.wants_prompt_logits,  # a token that is not computed has no logits
        )
        if found is None:
            return None
        first.num_computed_tokens = found
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(found, first.num_prompt_tokens)
        spans = self._next_spans(request, budget)
        granted = self.cache.allocate(spans)
        assert granted, "there was room for the whole request, so there is room for its first chunk"
        return spans

    def _everything(self, request: Request) -> list[Span]:
        """All that is left to compute of each sequence that is in the swap space."""
        return [
            Span(sequence.seq_id, sequence.num_computed_tokens, sequence.num_tokens)
            for sequence in request.sequences
            if self.cache.is_swapped(sequence.seq_id)
        ]

    # ── both ──────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, request: Request, spans: Sequence[Span], planned: list[ScheduledSequence]) -> int:
        """Add what has been allocated to the step's plan; returns the number of tokens."""
        self._in_step.add(request.request_id)
        num_tokens = 0
        for seq_id, start, end in spans:
            sequence = self.sequences[seq_id]
            num_logits = 1 if end == sequence.num_tokens else 0
            if sequence.wants_prompt_logits and start < sequence.num_prompt_tokens:
                num_logits = end - start
            # A copy of the table, because the plan must not change under its reader.
            blocks = self.cache.tables[seq_id].blocks[:]
            planned.append(
                ScheduledSequence(seq_id, start, sequence.token_ids[start:end], blocks, num_logits)
            )
            self.cache.remember(seq_id, sequence.token_ids, end)
            num_tokens += end - start
        return num_tokens

    def _preempt(self, request: Request, mode: str, reason: str = "") -> None:
        """Let a running request step aside. It keeps its tokens and its turn."""
        self.running.remove(request)
        self.num_running_seqs -= request.width
        if mode == "swap":
            reason = self.cache.swap_out([sequence.seq_id for sequence in request.sequences])
            if reason:
                mode = "recompute"
                logger.warning("request %s is recomputed instead of swapped: %s", request.request_id, reason)
        lost = self._start_again(request) if mode == "recompute" else 0
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self.waiting.appendleft(request)
        if self._emit:
            self._emit(RequestPreempted(request.request_id, mode, lost, reason))

    def _start_again(self, request: Request) -> int:
        """Take all memory away from a request; returns the number of tokens to be computed again."""
        lost = sum(sequence.num_computed_tokens for sequence in request.sequences)
        for sequence in request.sequences:
            self.cache.free(sequence.seq_id)
            sequence.num_computed_tokens = 0
        return lost

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless queues, block tables and limits agree with each other."""
        assert self.num_running_seqs == sum(request.width for request in self.running)
        assert self.num_running_seqs <= self.config.max_num_seqs, (
            "more sequences run than max_num_seqs allows"
        )
        known = {s.seq_id for q in (self.waiting, self.running) for r in q for s in r.sequences}
        assert known == set(self.sequences), "the books and the queues name different sequences"
        for request in self.waiting:
            assert request not in self.running, f"{request.request_id} both waits and runs"
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            for sequence in request.sequences:
                assert sequence.seq_id not in self.cache.tables, "a waiting sequence holds no blocks"
                assert sequence.num_computed_tokens == 0 or self.cache.is_swapped(sequence.seq_id), (
                    "a waiting sequence has nothing in the cache, unless it is in the swap space"
                )
        for request in self.running:
            assert 1 <= len(request.sequences) <= request.width, f"{request.request_id} has outgrown itself"
            assert request.sequences[0].seq_id in self.cache.tables, "a running request holds blocks"
        for sequence in self.sequences.values():
            sequence.check_invariants()
        assert set(self.cache.tables) <= known, "a sequence that is gone holds a block table"
        self.cache.check_invariants()
