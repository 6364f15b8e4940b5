"""The scheduler: before every step it decides who advances, and by how many tokens.

There is no prefill phase and no decode phase. Each request has tokens, and the cache is behind them by
some number; a step is a token budget handed out to let the caches catch up. Whoever finished has left,
whoever waits may join, at every single step: that is continuous batching.

    policy      whose turn is it? (`policy.py`; first come, first served unless told otherwise)
    step        how much can it get? Budget, places, blocks: limits are enforced in `step.py`
    scheduler   the queues and the books: who waits, who runs, which sequences there are

A prompt longer than what is left of the budget is cut: the first chunk now, the rest in later steps,
beside the decodes of others (chunked prefill). A prompt whose beginning the prefix cache knows starts
behind it. A request with several sequences comes, grows and goes as a whole (`groups.py`).

Sources: Yu et al., "Orca" (OSDI 2022), section 3.1 (iteration-level scheduling); Kwon et al. (SOSP 2023),
section 4.5 (preemption); Agrawal et al., "Sarathi-Serve" (OSDI 2024) (chunked prefill).
Read next: `step.py`, then `minivllm/engine/engine.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from math import inf, isnan

from minivllm.config import SchedulerConfig
from minivllm.memory.cache_manager import CacheManager
from minivllm.scheduling.choose_policy import make_policy
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.policy import Pause, PolicyError, SchedulingPolicy
from minivllm.scheduling.queue import Key, RequestQueue, WaitingQueue
from minivllm.scheduling.request import Request, RequestStatus
from minivllm.scheduling.request import Sequence as TokenSequence
from minivllm.scheduling.step import MOST_PREEMPTIONS, Step
from minivllm.scheduling.view import View, WaitingLine
from minivllm.trace.events import BatchPlanned, Event, RequestPreempted, SequenceForked

logger = logging.getLogger(__name__)


class Scheduler:
    """Owner of the waiting queue, the running batch, and all sequences that are not finished.

    Args:
        config: the limits.
        cache: the memory, which says whether a sequence may grow.
        emit: receives every decision as an event, or None.
        policy: who goes first; the one that `config` names, if None.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        emit: Callable[[Event], None] | None = None,
        policy: SchedulingPolicy | None = None,
    ) -> None:
        self.config = config
        self.cache = cache
        self.emit = emit
        self.policy = make_policy(config.scheduling_policy) if policy is None else policy
        self.waiting = WaitingQueue()
        self.running = RequestQueue()
        self.sequences: dict[int, TokenSequence] = {}
        self.num_running_seqs = 0
        """Places in the batch that the running requests may come to fill."""
        self.num_held = 0
        """Running requests that are finished, and wait for their batch (static batching)."""
        self.forks_share = config.allocator == "paged" and not config.copy_on_fork
        self.watermark_blocks = int(config.watermark * config.num_blocks)
        self.step = Step(self)
        """The step that is being made, or the last one."""
        self._turns: Iterator[Request | Pause] | None = None
        self._pause: Pause | None = None
        self._next_seq_id = 0
        self._num_requests = 0

    def new_seq_id(self) -> int:
        """The number of the next sequence."""
        self._next_seq_id += 1
        return self._next_seq_id - 1

    def add(self, request: Request) -> None:
        """Put a new request into the waiting queue.

        Raises:
            PolicyError: the policy failed to rank it; nothing has changed.
        """
        request.number = self._num_requests
        self.waiting.append(request, self.key(request))
        self._num_requests += 1
        for sequence in request.sequences:
            self.sequences[sequence.seq_id] = sequence

    def key(self, request: Request) -> Key:
        """What requests are ordered by: the policy's rank, of equals the older first."""
        try:
            rank = float(self.policy.rank(request))
            if isnan(rank):
                raise ValueError("a rank must be a number, got nan")
        except Exception as error:
            raise self._policy_error("rank", error) from error
        request.rank = rank
        return self._key_of_rank(request)

    def _key_of_rank(self, request: Request) -> Key:
        if request.num_preemptions >= MOST_PREEMPTIONS:
            return False, 0.0, request.number
        return True, request.rank, request.number

    # ── the plan of a step, and what became of it ─────────────────────────────────────────────────────

    def consult(self, time: float = 0.0) -> Pause | None:
        """Ask the policy whose turn it is; some would rather wait until more requests have come.

        Raises:
            PolicyError: the policy failed; nothing has changed.
        """
        self.waiting.settle()
        self.step = Step(self)
        try:
            turns = iter(self.policy.turns(View(self, time)))
        except Exception as error:
            raise self._policy_error("turns", error) from error
        first = self._next(turns)
        if isinstance(first, Pause):
            # One pause before a step, not one after another.
            self._pause = self._pause or first
            if time < self._pause.until < inf and self.waiting and not self.running:
                return self._pause
        self._turns = chain((first,), turns) if isinstance(first, Request) else turns
        return None

    def schedule(self, step: int, time: float = 0.0) -> StepPlan:
        """Hand out one step's token budget. Costs O(sequences scheduled), however many wait.

        Args:
            step: its number.
            time: seconds on the clock of `Request.arrival_time`; not needed after `consult`.

        Raises:
            PolicyError: the policy failed. The step has been abandoned: nobody and nothing is lost.
        """
        if self._turns is None and self.consult(time) is not None:
            return StepPlan(step, (), ())
        turns, self._turns, self._pause = self._turns, None, None
        assert turns is not None
        making = self.step
        try:
            self._hand_out(turns)
            if not making.planned:
                self._make_progress()
        except PolicyError:
            self.abandon(StepPlan(step, tuple(making.planned), self.cache.take_moves()))
            raise
        padding = making.num_padding_tokens()
        if self.emit:
            items = tuple((item.seq_id, item.start, len(item.token_ids)) for item in making.planned)
            self.emit(BatchPlanned(items, padding))
        return StepPlan(step, tuple(making.planned), self.cache.take_moves(), padding)

    def _make_progress(self) -> None:
        """Nobody advances: the policy named nobody, or those who are held have all the memory."""
        if self.num_held:
            for request in tuple(self.running):
                if not request.status.is_finished:  # it goes on in the next batch, and this one is done
                    self.preempt(request)
        else:
            self.step.is_closed = False
            self._hand_out(chain(tuple(self.running), WaitingLine(self)))

    def _hand_out(self, turns: Iterator[Request | Pause]) -> None:
        """Offer the budget to one after another."""
        making = self.step
        # A policy may name somebody twice, but not for ever.
        patience = 2 * (len(self.running) + len(self.waiting)) + 2
        while making.budget > 0 and patience > 0:
            turn = self._next(turns)
            if turn is None:
                break
            if isinstance(turn, Request):
                making.offer(turn)
            patience -= 1

    def _next(self, turns: Iterator[Request | Pause]) -> Request | Pause | None:
        """The policy's next word, None at the end; with every mistake of its own under its own name."""
        try:
            turn = next(turns)
            if not isinstance(turn, Request | Pause):
                raise TypeError(f"turns must be requests, got {turn!r}")
        except StopIteration:
            return None
        except Exception as error:
            raise self._policy_error("turns", error) from error
        return turn

    def _policy_error(self, method: str, error: Exception) -> PolicyError:
        name = type(self.policy).__name__
        return PolicyError(
            f"the scheduling policy {name} failed in `{method}`: {type(error).__name__}: {error}"
        )

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
            if request.request_id in self.step.touched:
                self._step_aside(request, "recompute", "the step failed")
        if any(move.kind == "swap_out" for move in plan.moves):
            for request in self.waiting.in_order_of_arrival():
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
        if self.emit:
            self.emit(SequenceForked(request.request_id, parent.seq_id, child.seq_id))
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
            self.num_held -= request.status.is_finished
        else:
            self.waiting.remove(request)
        request.status = status
        for sequence in tuple(request.sequences):
            self.drop(request, sequence)

    # ── in and out of the batch ───────────────────────────────────────────────────────────────────────

    def join(self, request: Request) -> None:
        """From the waiting queue into the batch."""
        self.waiting.remove(request)
        self.running.append(request)
        self.num_running_seqs += request.width
        request.status = RequestStatus.RUNNING

    def hold(self, request: Request, status: RequestStatus) -> bool:
        """Does a running request that has finished have to stay until its batch is done? Then it does."""
        if not self.policy.releases_together or request not in self.running:
            return False
        request.status = status
        self.num_held += 1
        return True

    def released(self) -> list[Request]:
        """Those who were held, once all of their batch are done; they are still to be removed."""
        return list(self.running) if self.num_held and self.num_held == len(self.running) else []

    def preempt(self, request: Request, in_favour_of: Request | None = None, lack: str = "blocks") -> None:
        """Let a running request step aside. It keeps its tokens and its turn."""
        self.key(request)  # a policy that fails must fail before anything has changed
        name = in_favour_of.request_id if in_favour_of else ""
        self._step_aside(request, self.config.preemption_mode, in_favour_of=name, lack=lack)

    def _step_aside(
        self, request: Request, mode: str, reason: str = "", in_favour_of: str = "", lack: str = "blocks"
    ) -> None:
        self.running.remove(request)
        self.num_running_seqs -= request.width
        self.step.stepped_aside.add(request.request_id)
        if mode == "swap":
            reason = self.cache.swap_out([sequence.seq_id for sequence in request.sequences])
            if reason:
                mode = "recompute"
                logger.warning("request %s is recomputed instead of swapped: %s", request.request_id, reason)
        lost = self._start_again(request) if mode == "recompute" else 0
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self.waiting.append(request, self._key_of_rank(request))
        if self.emit:
            self.emit(RequestPreempted(request.request_id, mode, lost, reason, in_favour_of, lack))

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
        waiting = self.waiting.in_order_of_arrival()
        known = {s.seq_id for requests in (waiting, self.running) for r in requests for s in r.sequences}
        assert known == set(self.sequences), "the books and the queues name different sequences"
        for request in waiting:
            assert request not in self.running, f"{request.request_id} both waits and runs"
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            for sequence in request.sequences:
                assert sequence.seq_id not in self.cache.tables, "a waiting sequence holds no blocks"
                assert sequence.num_computed_tokens == 0 or self.cache.is_swapped(sequence.seq_id), (
                    "a waiting sequence has nothing in the cache, unless it is in the swap space"
                )
        assert self.num_held == sum(request.status.is_finished for request in self.running)
        for request in self.running:
            assert 1 <= len(request.sequences) <= request.width, f"{request.request_id} has outgrown itself"
            assert request.sequences[0].seq_id in self.cache.tables, "a running request holds blocks"
        for sequence in self.sequences.values():
            sequence.check_invariants()
        assert set(self.cache.tables) <= known, "a sequence that is gone holds a block table"
        self.waiting.check_invariants()
        self.cache.check_invariants()
