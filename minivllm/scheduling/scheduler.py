"""The scheduler: before every step it decides which requests advance, and by how many tokens.

There is no prefill phase and no decode phase. Each sequence has tokens, and its cache is behind them by some
number; a step is a token budget that lets caches catch up. Finished requests have left and waiting ones may
be admitted at every single step: that is continuous batching.

    policy       in which order?      first come, first served, unless configured (`policy.py`)
    scheduler    how much for each?   slots, budget, blocks: the limits are kept here and nowhere else
    plan         what the executor has to do (`plan.py`)

    a running request   gets its next tokens. No free block? The request that ranks last is preempted
    a waiting request   is admitted if there is a slot, room for all its tokens, and budget; perhaps by
                        preempting requests that rank behind it. If it cannot be, no other is in this step:
                        requests do not overtake

A prompt longer than what is left of the budget is cut: a chunk now, the rest in later steps, beside the
decodes of others. A prompt whose beginning the prefix cache knows starts behind it. Drafts are tokens to be
computed like others, as far as there is budget and room for them without preempting a request.

A step may be planned while others are in flight. Then tokens are *pending*: a sequence that waits for one is
held, or runs ahead of it, and its plan has a placeholder. Nothing is preempted meanwhile, since a plan in
flight may name the victim: where that would be needed, the next plan waits until nothing is in flight.

Sources: Yu et al., "Orca" (OSDI 2022), section 3.1 (iteration-level scheduling); Kwon et al. (SOSP 2023),
section 4.5 (preemption); Agrawal et al., "Sarathi-Serve" (OSDI 2024) (chunked prefill).
Read next: `preemption.py`, then `groups.py` for requests with several sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from math import inf

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import Admission, CacheManager, Span
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.groups import advance_group, blocks_for_siblings
from minivllm.scheduling.plan import PENDING, ScheduledSequence, StepPlan
from minivllm.scheduling.policy import Pause, PolicyError, SchedulingPolicy
from minivllm.scheduling.preemption import Preemption
from minivllm.scheduling.ranking import Ranking
from minivllm.scheduling.request import NO_DRAFTS, Request
from minivllm.scheduling.static_batching import padding_tokens, rectangle_fits
from minivllm.scheduling.step_builder import OpenQueue, StepBuilder
from minivllm.trace.events import Event, RequestScheduled


class Scheduler:
    """Plans steps.

    Args:
        config: the limits.
        state: which requests wait and run.
        cache: the memory, which says whether a sequence may grow.
        policy: in which order requests are scheduled.
        emit: receives every decision as an event, or None.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        state: BatchState,
        cache: CacheManager,
        policy: SchedulingPolicy,
        emit: Callable[[Event], None] | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self.cache = cache
        self.policy = policy
        self.ranking = Ranking(policy)
        self.preemption = Preemption(config, state, cache, self.ranking, emit)
        self.in_flight: Collection[str] = ()
        """The requests that plans in flight name; empty for a step that is planned alone."""
        self.runs_ahead = False
        """May a sequence be planned whose next token is pending?"""
        self.must_wait = False
        """Something must be decided that only a step planned alone can decide."""
        self._emit = emit
        self._watermark_blocks = int(config.watermark * config.num_blocks)
        self._forks_share = config.allocator == "paged" and not config.copy_on_fork
        self._pause: Pause | None = None

    # ── the main path ─────────────────────────────────────────────────────────────────────────────────

    def begin(self, number: int, now: float, limit: int | None = None) -> StepBuilder | Pause:
        """Begin step `number`: ask the policy for the order, or learn that it would rather pause.

        Args:
            limit: most tokens of the step, if that is not what the configuration says.

        Raises:
            PolicyError: the policy failed; nothing has changed.
        """
        state, running = self.state, tuple(self.state.running.values())
        budget = self.config.max_num_batched_tokens if limit is None else limit
        step = StepBuilder(self.config, state, self.cache, number, now, budget, running)
        if state.waiting.entries:
            state.waiting.settle()
            step.waiting = OpenQueue(step)
        try:
            step.order = order = iter(self.policy.schedule_order(step))
        except Exception as error:
            raise PolicyError.in_method(self.policy, "schedule_order", error) from error
        first = self._next(order)
        if isinstance(first, Pause):
            self._pause = self._pause or first  # one pause before a step, not one after another
            if now < self._pause.until < inf and state.waiting.entries and not running:
                return self._pause
        elif first is not None:
            step.order = chain((first,), order)
        return step

    def fill(self, step: StepBuilder) -> StepPlan:
        """Let one request after another have what it can use of the step's budget.

        Costs O(sequences scheduled), however many requests wait.

        Raises:
            PolicyError: the policy failed half-way; `plan` says what has been planned until then.
        """
        self._pause = None
        assert step.order is not None, "the step has begun"
        self._schedule_in(step.order, step)
        if not step.planned and not self.in_flight:
            self._make_progress(step)
        return self.plan(step)

    def _schedule_in(self, order: Iterator[Request | Pause], step: StepBuilder) -> None:
        patience = 2 * len(self.state.sequences) + 2  # a policy may name a request twice, but not for ever
        while step.budget > 0 and patience > 0:
            request = self._next(order)
            if request is None:
                return
            if isinstance(request, Request):
                self._try_schedule(request, step)
            patience -= 1

    def _try_schedule(self, request: Request, step: StepBuilder) -> None:
        """Let a running request advance, or admit a waiting one, as far as the limits allow."""
        request_id = request.request_id
        if request_id in step.touched:
            return
        if request_id in self.state.running:
            if request_id in self.in_flight and self._is_held(request):
                return
            if not (self.state.num_parked and request.status.is_finished):
                self._schedule_running(request, step)
        elif step.is_closed or request_id in step.preempted:
            return
        elif request_id in self.state.waiting.entries:
            self._schedule_waiting(request, step)

    def _schedule_running(self, request: Request, step: StepBuilder) -> None:
        if self.in_flight and self._is_to_share(request):
            self.must_wait = True
            return
        spans = self._next_spans(request, step.budget)
        if self.in_flight and not spans:
            return  # and no plan names it
        while not self.cache.allocate_slots(spans):
            if _drop_drafts(request):  # a guess costs no other request its place
                spans = self._next_spans(request, step.budget)
                continue
            step.is_closed = True  # blocks are short: no request is admitted in this step
            if self.in_flight:
                self.must_wait = True
                return
            candidates = self.preemption.candidates(request, step.touched)
            if not candidates:
                return  # it has to sit this step out
            self._preempt(candidates[-1], request, "blocks", step)
        self._add_to_plan(request, spans, step)

    def _is_to_share(self, request: Request) -> bool:
        """Are siblings about to map the blocks of the first sequence, after a preemption? While a plan is in
        flight, these may still be merged with their twins."""
        first, *siblings = request.sequences
        is_there = first.num_uncomputed_tokens <= 1
        return is_there and any(sibling.seq_id not in self.cache.tables for sibling in siblings)

    def _is_held(self, request: Request) -> bool:
        """Must a request wait for what plans in flight will sample?"""
        if not any(map(request.goes_on, request.sequences)):
            return True
        if not any(sequence.num_pending_tokens for sequence in request.sequences):
            return False  # a chunk of it is in flight, and the next one may follow
        is_to_fork = request.max_num_sequences > 1 and not request.sequences[0].num_output_tokens
        return not self.runs_ahead or request.is_beam_search or is_to_fork

    def _schedule_waiting(self, request: Request, step: StepBuilder) -> None:
        spans = None
        if self._fits_budget(request, step):
            spans = self._allocate(request, step) if self._has_slots(request) else None
            if spans is None:
                spans = self._allocate_by_preempting(request, step)
        if spans is None:
            step.is_closed = True  # requests do not overtake
            return
        self.state.admit(request)
        step.num_admitted += 1
        if self._emit:
            self._emit(RequestScheduled(request.request_id))
        self._add_to_plan(request, spans, step)

    def _add_to_plan(self, request: Request, spans: Sequence[Span], step: StepBuilder) -> None:
        """Plan what has been allocated."""
        step.touched[request.request_id] = None
        sequences, caches_prefixes = self.state.sequences, self.config.prefix_cache is not None
        for seq_id, start, end in spans:
            if start == end:
                continue
            sequence = sequences[seq_id]
            num_known, num_pending = len(sequence.token_ids), sequence.num_pending_tokens
            num_drafts = end - num_known - num_pending  # negative for a chunk that does not reach the end
            num_logits = num_drafts + 1 if num_drafts >= 0 else 0
            if sequence.wants_prompt_logits and start < sequence.num_prompt_tokens:
                num_logits = end - start
            # A copy of the table, because the plan must not change under its reader.
            blocks = self.cache.tables[seq_id].blocks[:]
            tokens = sequence.token_ids[start:end]
            if num_pending and end > num_known:
                tokens.extend([PENDING] * (end - max(start, num_known)))
            if num_drafts > 0:
                tokens += sequence.draft_token_ids[:num_drafts]
                sequence.draft_token_ids = NO_DRAFTS
            prompt_end = sequence.num_prompt_tokens
            step.planned.append(
                ScheduledSequence(seq_id, start, tokens, blocks, num_logits, max(0, num_drafts), prompt_end)
            )
            if caches_prefixes:
                self.cache_full_blocks(seq_id, end)
            step.budget -= end - start

    def cache_full_blocks(self, seq_id: int, end: int, *, in_flight: bool = False) -> None:
        """Let other requests find the full blocks among a sequence's first `end` tokens."""
        sequence = self.state.sequences[seq_id]
        end = min(end, len(sequence.token_ids))  # nothing is remembered of drafts and pending tokens
        if self.config.cache_prompts_only:
            end = min(end, sequence.num_prompt_tokens)
        self.cache.cache_full_blocks(seq_id, sequence.token_ids, end, in_flight=in_flight)

    def plan(self, step: StepBuilder) -> StepPlan:
        """What has been planned, as the data that the executor obeys. Its tokens count as computed now."""
        for item in step.planned:
            sequence = self.state.sequences[item.seq_id]
            sequence.num_computed_tokens = end = item.end
            if end >= len(sequence.token_ids) + sequence.num_pending_tokens:  # else a chunk, without a token
                sequence.num_pending_tokens += item.num_draft_tokens + 1
        padding = padding_tokens(step) if self.policy.pads else 0
        moves, touched = self.cache.take_moves(), tuple(step.touched)
        return StepPlan(step.number, tuple(step.planned), moves, padding, touched)

    # ── how many tokens, and the blocks for them ──────────────────────────────────────────────────────

    def _next_spans(self, request: Request, budget: int) -> list[Span]:
        """What a request computes next: at most `budget` tokens, perhaps none."""
        if len(request.sequences) > 1:
            return advance_group(request, self.cache, budget, self._chunk)
        sequence = request.sequences[0]
        start = sequence.num_computed_tokens
        count = len(sequence.token_ids) + sequence.num_pending_tokens - start
        if count != 1:
            count = self._chunk(count, budget)
        elif sequence.draft_token_ids:
            count += request.num_drafts(sequence, budget - 1)
        return [Span(sequence.seq_id, start, start + count)]

    def _chunk(self, count: int, budget: int) -> int:
        """How many of `count` tokens to compute now; 0 if they must go in one step and do not fit."""
        if count > budget:
            count = budget if self.config.enable_chunked_prefill else 0
        if self.config.enable_chunked_prefill and self.config.long_prefill_token_threshold:
            count = min(count, self.config.long_prefill_token_threshold)
        return count

    def _fits_budget(self, request: Request, step: StepBuilder) -> bool:
        """Could a waiting request be computed in this step, if there were slots and blocks for it?"""
        in_one_step, pads = not self.config.enable_chunked_prefill, self.policy.pads
        if not in_one_step and not pads:
            return True
        first = request.sequences[0]
        uncomputed = first.num_uncomputed_tokens
        if not self.cache.is_swapped(first.seq_id):
            computed = self.cache.get_computed_blocks(self._admission(request))
            uncomputed -= len(computed) * self.cache.block_size
        if in_one_step and uncomputed > step.budget:
            return False
        return not pads or rectangle_fits(step, uncomputed)

    def _has_slots(self, request: Request) -> bool:
        return self.state.num_running_seqs + request.max_num_sequences <= self.config.max_num_seqs

    def _admission(self, request: Request, num_gone: int = 0) -> Admission:
        first = request.sequences[0]
        return Admission(
            first.seq_id,
            first.token_ids,
            request.max_total_tokens,
            request.max_num_sequences,
            blocks_for_siblings(request, self.cache.block_size, shared=self._forks_share),
            self._reserved_blocks(request, num_gone),
            request.salt,
            use_cache=not first.wants_prompt_logits,  # a token that is not computed has no logits
        )

    def _allocate(self, request: Request, step: StepBuilder) -> list[Span] | None:
        """Allocate blocks for a waiting request; None if there is no room, and then nothing has changed.

        There must be room for all tokens known so far, and not only for the first chunk: a request that
        cannot be completed would only be computed in order to be preempted.
        """
        first = request.sequences[0]
        if self.cache.is_swapped(first.seq_id):
            return self._swap_in(request, step)
        admission = self._admission(request)
        computed = self.cache.get_computed_blocks(admission)
        start = len(computed) * self.cache.block_size
        if not self.cache.allocate_slots([Span(first.seq_id, start, start)], admission, computed):
            return None
        first.num_computed_tokens = start
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(start, first.num_prompt_tokens)
        spans = self._next_spans(request, step.budget)
        granted = self.cache.allocate_slots(spans)
        assert granted, "there was room for the whole request, so there is room for its first chunk"
        return spans

    def _reserved_blocks(self, request: Request, num_gone: int = 0) -> int:
        """Blocks that must stay free when it is admitted beside others: room for those that run to grow
        into (the watermark), and for the forks that it will have itself; `num_gone` of them run no more."""
        if len(self.state.running) == num_gone:
            return 0
        return self._watermark_blocks + request.max_num_sequences - len(request.sequences)

    # ── edges ─────────────────────────────────────────────────────────────────────────────────────────

    def _swap_in(self, request: Request, step: StepBuilder) -> list[Span] | None:
        """Bring the blocks of a request back from the swap space, if there is room for all that is left."""
        if not self.cache.swap_in(self._swapped_spans(request), self._reserved_blocks(request)):
            return None
        for sequence in request.sequences:
            if sequence.seq_id in self.cache.tables:
                self.cache_full_blocks(sequence.seq_id, sequence.num_computed_tokens)
        spans = self._next_spans(request, step.budget)
        return spans if self.cache.allocate_slots(spans) else []

    def _swapped_spans(self, request: Request) -> list[Span]:
        """What is left to compute of its sequences that are in the swap space."""
        return [
            Span(sequence.seq_id, sequence.num_computed_tokens, sequence.num_tokens)
            for sequence in request.sequences
            if self.cache.is_swapped(sequence.seq_id)
        ]

    def _could_admit(self, request: Request, candidates: Sequence[Request]) -> bool:
        """Would there be a slot and blocks for a waiting request, if all candidates were preempted?"""
        slots = self.config.max_num_seqs - self.state.num_running_seqs
        if slots + sum(other.max_num_sequences for other in candidates) < request.max_num_sequences:
            return False
        without = [sequence.seq_id for other in candidates for sequence in other.sequences]
        if self.cache.is_swapped(request.sequences[0].seq_id):
            reserved = self._reserved_blocks(request, len(candidates))
            return self.cache.could_swap_in(self._swapped_spans(request), reserved, without)
        admission = self._admission(request, len(candidates))
        return self.cache.could_admit(admission, self.cache.get_computed_blocks(admission), without)

    def _allocate_by_preempting(self, request: Request, step: StepBuilder) -> list[Span] | None:
        """Preempt requests that rank behind this one until it can be admitted; none if that is not enough."""
        candidates = self.preemption.candidates(request, step.touched)
        if not candidates or not self._could_admit(request, candidates):
            return None
        if self.in_flight:
            self.must_wait = True
            return None
        while candidates:
            shortage = "blocks" if self._has_slots(request) else "batch_slots"
            self._preempt(candidates.pop(), request, shortage, step)
            if self._has_slots(request) and (spans := self._allocate(request, step)) is not None:
                return spans
        return None

    def _preempt(self, victim: Request, request: Request, shortage: str, step: StepBuilder) -> None:
        self.preemption.preempt(victim, request, shortage)
        step.preempted.add(victim.request_id)

    def _make_progress(self, step: StepBuilder) -> None:
        """No request advances: the policy named none, or parked requests hold all the memory."""
        if self.state.num_parked:
            for request in step.running:
                if request.request_id in step.preempted:
                    continue
                if not request.status.is_finished:  # it goes on in the next batch, and this one is done
                    self.preemption.preempt(request)
                    step.preempted.add(request.request_id)
        else:
            step.is_closed = False
            self._schedule_in(chain(tuple(self.state.running.values()), step.waiting), step)

    def _next(self, order: Iterator[Request | Pause]) -> Request | Pause | None:
        """The policy's next word, None at the end; a mistake of the policy is raised under its own name."""
        try:
            word = next(order)
            if not isinstance(word, Request) and not isinstance(word, Pause):
                raise TypeError(f"schedule_order must give requests, got {word!r}")
        except StopIteration:
            return None
        except Exception as error:
            raise PolicyError.in_method(self.policy, "schedule_order", error) from error
        return word


def _drop_drafts(request: Request) -> bool:
    """Forget the drafts of a request. Returns whether there were any."""
    had_drafts = False
    for sequence in request.sequences:
        had_drafts = had_drafts or bool(sequence.draft_token_ids)
        sequence.draft_token_ids = NO_DRAFTS
    return had_drafts
