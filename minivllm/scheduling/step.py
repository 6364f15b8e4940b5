"""One step in the making: the policy names requests, and each gets what the limits allow.

Three kinds of limits, all enforced here and nowhere else: places in the batch (`max_num_seqs`), the step's
token budget (`max_num_batched_tokens`), and blocks, of which the memory has the last word.

    offered to …          what happens
    one who runs          its next tokens are planned. No free block? Somebody of less rank steps aside
    one who waits         it joins, if there is a place, room for all its tokens, and some budget left. Those
                          of less rank may have to step aside for it. If it cannot join, nobody else does in
                          this step: nobody overtakes
    one who is done,      nothing
    or had its turn

*Rank* is the policy's, of equals the older goes first. Nobody ever steps aside for somebody of less rank, so
there is always one who is never robbed of what it has computed, and everything finishes. A policy whose ranks
jump about could still make two requests rob each other in turns: so whoever has stepped aside
`MOST_PREEMPTIONS` times goes before all who have not, and among themselves the older goes first.

Read next: `groups.py` for requests with several sequences, then `scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minivllm.memory.block_table import blocks_needed
from minivllm.memory.cache_manager import Span
from minivllm.scheduling.groups import advance_group, blocks_for_siblings
from minivllm.scheduling.plan import ScheduledSequence
from minivllm.scheduling.request import Request
from minivllm.trace.events import RequestScheduled

if TYPE_CHECKING:
    from minivllm.scheduling.scheduler import Scheduler

MOST_PREEMPTIONS = 64
"""Preemptions of one request before it is protected. Far more than a sane policy ever causes."""


class Step:
    """What has been handed out of one step's budget so far."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.config = scheduler.config
        self.cache = scheduler.cache
        self.running = scheduler.running
        self.budget = scheduler.config.max_num_batched_tokens
        self.planned: list[ScheduledSequence] = []
        self.touched: set[str] = set()
        """Requests that the plan computes or moves."""
        self.stepped_aside: set[str] = set()
        """Requests that were preempted in this step: they are not offered their place again."""
        self.num_joined = 0
        self.is_closed = False
        """Does nobody join any more?"""

    def offer(self, request: Request) -> None:
        """It is this request's turn: let it advance, or join."""
        if request.request_id in self.touched:
            return
        if request in self.running:
            if not (self.scheduler.num_held and request.status.is_finished):
                self._advance(request)
        elif request.request_id in self.stepped_aside or self.is_closed:
            return
        elif request in self.scheduler.waiting:
            self._admit(request)

    # ── those who run ─────────────────────────────────────────────────────────────────────────────────

    def _advance(self, request: Request) -> None:
        spans = self._next_spans(request)
        while not self.cache.allocate(spans):
            self.is_closed = True  # memory is short: no newcomers
            victim = self._victim(request)
            if victim is None:
                return  # it goes without, in this step
            self.scheduler.preempt(victim, request)
        self._plan(request, spans)

    def _next_spans(self, request: Request) -> list[Span]:
        """What a running request computes in this step: at most the budget, perhaps nothing."""
        if len(request.sequences) > 1:
            return advance_group(request, self.cache, self.budget, self._chunk)
        sequence = request.sequences[0]
        start = sequence.num_computed_tokens
        count = len(sequence.token_ids) - start
        if count != 1:
            count = self._chunk(count, self.budget)
        return [Span(sequence.seq_id, start, start + count)]

    def _chunk(self, count: int, budget: int) -> int:
        """How many of `count` tokens to compute now; 0 if they must go in one step and do not fit."""
        if count > budget:
            count = budget if self.config.enable_chunked_prefill else 0
        if self.config.enable_chunked_prefill and self.config.long_prefill_token_threshold:
            count = min(count, self.config.long_prefill_token_threshold)
        return count

    def _victim(self, request: Request) -> Request | None:
        """Who steps aside for `request`: the last of those of less rank that have not had their turn."""
        victims = self._victims(request)
        return max(victims, key=self.scheduler.key) if victims else None

    def _victims(self, request: Request) -> list[Request]:
        own = self.scheduler.key(request)
        return [
            other
            for other in self.scheduler.running
            if other is not request
            and other.request_id not in self.touched
            and not other.status.is_finished
            and self.scheduler.key(other) > own
        ]

    # ── those who wait ────────────────────────────────────────────────────────────────────────────────

    def _admit(self, request: Request) -> None:
        """Let a waiting request join; if it cannot, nobody does any more in this step."""
        whole = not self.config.enable_chunked_prefill
        if whole and request.sequences[0].num_uncomputed_tokens > self.budget:
            self.is_closed = True
            return
        if self.scheduler.policy.pads and not self._rectangle_fits(request):
            self.is_closed = True
            return
        spans = self._begin(request) if self._has_place(request) else None
        if spans is None:
            spans = self._begin_in_place_of_others(request)
        if spans is None:
            self.is_closed = True
            return
        self.scheduler.join(request)
        self.num_joined += 1
        if self.scheduler.emit:
            self.scheduler.emit(RequestScheduled(request.request_id))
        self._plan(request, spans)

    def _has_place(self, request: Request) -> bool:
        return self.scheduler.num_running_seqs + request.width <= self.config.max_num_seqs

    def _begin_in_place_of_others(self, request: Request) -> list[Span] | None:
        """Let those of less rank step aside until there is room; nobody, if that could never be enough."""
        victims = sorted(self._victims(request), key=self.scheduler.key)
        places = self.config.max_num_seqs - self.scheduler.num_running_seqs
        blocks = self.cache.num_free_blocks
        if len(victims) < len(self.running):
            blocks -= self._spare_blocks(request)
        for victim in victims:
            places += victim.width
            blocks += sum(
                len(self.cache.tables[sequence.seq_id])
                for sequence in victim.sequences
                if sequence.seq_id in self.cache.tables
            )
        tokens = request.sequences[0].num_tokens
        if places < request.width or blocks < blocks_needed(tokens, self.cache.block_size):
            return None
        while victims:
            lack = "blocks" if self._has_place(request) else "batch_slots"
            self.scheduler.preempt(victims.pop(), request, lack)
            if self._has_place(request) and (spans := self._begin(request)) is not None:
                return spans
        return None

    def _begin(self, request: Request) -> list[Span] | None:
        """Let the memory take a request in; None if there is no room.

        There must be room for all tokens known so far, and not only for the first chunk: a request that
        cannot be completed would only be computed in order to be preempted. And those who run are left
        some blocks to grow into (the watermark), as are the forks that this one will have soon.
        """
        spare = self._spare_blocks(request) if self.running else 0
        first = request.sequences[0]
        if self.cache.is_swapped(first.seq_id):
            if not self.cache.swap_in(self._everything(request), spare):
                return None
            for sequence in request.sequences:
                if sequence.seq_id in self.cache.tables:
                    self.cache.remember(sequence.seq_id, sequence.token_ids, sequence.num_computed_tokens)
            spans = self._next_spans(request)
            return spans if self.cache.allocate(spans) else []
        found = self.cache.begin(
            first.seq_id,
            first.token_ids,
            longest=request.longest,
            width=request.width,
            extra_blocks=blocks_for_siblings(
                request, self.cache.block_size, shared=self.scheduler.forks_share
            ),
            spare_blocks=spare,
            salt=request.salt,
            use_cache=not first.wants_prompt_logits,  # a token that is not computed has no logits
        )
        if found is None:
            return None
        first.num_computed_tokens = found
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(found, first.num_prompt_tokens)
        spans = self._next_spans(request)
        granted = self.cache.allocate(spans)
        assert granted, "there was room for the whole request, so there is room for its first chunk"
        return spans

    def _spare_blocks(self, request: Request) -> int:
        """What must stay free when it joins others: room to grow into, and for the forks it will have."""
        return self.scheduler.watermark_blocks + request.width - len(request.sequences)

    def _everything(self, request: Request) -> list[Span]:
        """All that is left to compute of each sequence that is in the swap space."""
        return [
            Span(sequence.seq_id, sequence.num_computed_tokens, sequence.num_tokens)
            for sequence in request.sequences
            if self.cache.is_swapped(sequence.seq_id)
        ]

    # ── both ──────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, request: Request, spans: Sequence[Span]) -> None:
        """Add what has been allocated to the step's plan."""
        self.touched.add(request.request_id)
        sequences = self.scheduler.sequences
        for seq_id, start, end in spans:
            if start == end:
                continue
            sequence = sequences[seq_id]
            num_logits = 1 if end == len(sequence.token_ids) else 0
            if sequence.wants_prompt_logits and start < sequence.num_prompt_tokens:
                num_logits = end - start
            # A copy of the table, because the plan must not change under its reader.
            blocks = self.cache.tables[seq_id].blocks[:]
            self.planned.append(
                ScheduledSequence(seq_id, start, sequence.token_ids[start:end], blocks, num_logits)
            )
            self.cache.remember(seq_id, sequence.token_ids, end)
            self.budget -= end - start

    # ── padding ───────────────────────────────────────────────────────────────────────────────────────

    def num_padding_tokens(self) -> int:
        """What is missing to a rectangle: all rows as long as the longest, those of the finished included."""
        if not self.scheduler.policy.pads or not self.planned:
            return 0
        lengths = [len(item.token_ids) for item in self.planned]
        rows = len(lengths) + self.scheduler.num_held
        return min(max(lengths) * rows - sum(lengths), self.budget)

    def _rectangle_fits(self, request: Request) -> bool:
        """Would the padded batch still be within the budget if this request joined? Alone it always is."""
        if not self.planned:
            return True
        lengths = [len(item.token_ids) for item in self.planned]
        lengths.append(request.sequences[0].num_uncomputed_tokens)
        return max(lengths) * len(lengths) <= self.config.max_num_batched_tokens
