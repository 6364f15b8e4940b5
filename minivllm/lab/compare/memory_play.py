"""One workload, one memory, the real scheduler, and no model: what fits, and what is wasted.

    requests ──► Scheduler ──► plan ──► nothing is computed ──► every sequence gets a token ──► measure
                    │  asks
                 the memory under test

All requests are there from the start, so that there is always somebody who wants to join: what is measured
is a full memory. Measured are the steps in which the head of the queue has to wait for memory, without the
beginning (until a tenth of the requests is done, everybody would be equally young). Steps count alike.

Read next: `memory.py`, which plays the same requests on every memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as counter
from statistics import fmean
from typing import NamedTuple

from minivllm.config import SchedulerConfig
from minivllm.lab.compare.beam_dice import BeamDice
from minivllm.lab.workloads.lengths import Lengths
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.strip_manager import StripManager
from minivllm.memory.waste import MemoryShares, Progress, memory_shares
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import Request, RequestStatus
from minivllm.scheduling.request import Sequence as TokenSequence
from minivllm.scheduling.scheduler import Scheduler

LOOK_EVERY = 2
"""Where blocks are shared, each must be looked at: only every second step."""
UNMEASURED = 0.1
"""Share of the requests that must have finished before measuring begins."""


@dataclass(frozen=True)
class Played:
    """What came of it. Shares and counts are means over the measured steps."""

    num_steps: int
    num_looks: int
    """Steps that were measured."""
    shares: MemoryShares
    requests_at_once: float
    tokens_per_request: float
    """Slots that hold a token, for each running request."""
    saved: float
    """Blocks that sharing saves, of those that all sequences would need alone."""
    prompt_share: float
    """Of those that all sequences would need alone, the whole blocks of their prompts, 0 … 1."""
    num_copies: int
    num_tokens: int
    """Tokens that were generated, of all sequences."""
    num_preemptions: int
    tokens_apart: float
    """Tokens since the last common ancestor of a request's beams; 0 without beams."""


class _Look(NamedTuple):
    """One measurement."""

    shares: MemoryShares
    num_requests: int
    blocks_alone: int
    """What all sequences would need if none shared."""
    blocks_used: int
    prompt_blocks: int
    """Of `blocks_alone`, those that hold nothing but prompt."""


@dataclass
class _Beams:
    """What a beam search remembers: the score of each beam, and who was whose parent in every step."""

    dice: BeamDice
    scores: list[float] = field(default_factory=lambda: [0.0])
    parents: list[list[int]] = field(default_factory=list)

    def tokens_apart(self) -> int:
        """Tokens behind the last one that all beams have in common."""
        ancestors = set(range(len(self.scores)))
        for count, parents in enumerate(reversed(self.parents)):
            if len(ancestors) == 1:
                return count
            ancestors = {parents[beam] for beam in ancestors}
        return len(self.parents)


class MemoryPlay:
    """Plays requests on a memory.

    Args:
        memory: the memory under test, empty.
        config: limits of the scheduler.
        lengths: the requests.
        width: sequences of each request.
        beams: are they beams, or parallel samples?
        seed: of the beams' dice.
        prompts: the prompts' tokens, if it matters what they are.
        wait_for_full_memory: measure only while somebody waits for memory, and not at the beginning.

    Raises:
        ValueError: a request would never fit.
    """

    def __init__(
        self,
        memory: CacheManager,
        config: SchedulerConfig,
        lengths: Sequence[Lengths],
        *,
        width: int = 1,
        beams: bool = False,
        seed: int = 0,
        prompts: Sequence[Sequence[int]] | None = None,
        wait_for_full_memory: bool = True,
    ) -> None:
        self.wait_for_full_memory = wait_for_full_memory
        self.memory = memory
        self.config = config
        self.width = width
        self.scheduler = Scheduler(config, memory)
        self._beams: dict[str, _Beams] = {}
        self._final: dict[str, int] = {}
        self._forked: set[str] = set()
        self.tokens: Iterator[int] = counter()
        self._looks: list[_Look] = []
        self._apart: list[int] = []
        self._num_requests = len(lengths)
        self._num_finished = self._num_copies = self._num_tokens = self._num_preemptions = 0
        for index, (prompt, output) in enumerate(lengths):
            check_it_fits(memory, config, prompt, output, width)
            tokens = prompts[index] if prompts else [next(self.tokens) for _ in range(prompt)]
            self._add(str(index), tokens, output, BeamDice(width, seed * 10_007 + index) if beams else None)

    def _add(self, name: str, tokens: Sequence[int], output: int, dice: BeamDice | None) -> None:
        sequence = TokenSequence(self.scheduler.new_seq_id(), tokens, request_id=name)
        self.scheduler.add(
            Request(
                name,
                [sequence],
                max_tokens=output,
                arrival_time=0.0,
                width=self.width,
                in_lockstep=dice is not None,
            )
        )
        if dice is not None:
            self._beams[name] = _Beams(dice)
        self._final[name] = len(tokens) + output - 1  # the last token is never computed

    def run(self) -> Played:
        """Play to the end."""
        scheduler, step = self.scheduler, 0
        while scheduler.waiting or scheduler.running:
            plan = scheduler.schedule(step)
            self._num_copies += len(plan.moves)
            self._execute(plan)
            scheduler.complete(plan)
            self._look(plan, step)
            self._advance(plan)
            step += 1
        return self._result(step)

    def _execute(self, plan: StepPlan) -> None:
        """Nothing is computed."""

    def _survivors(self, request: Request, scores: list[float]) -> list[tuple[int, int, float]]:
        """(beam, token, score) of the continuations that go on, best first."""
        dice = self._beams[request.request_id].dice
        return [(beam, next(self.tokens), score) for beam, score in dice.survivors(scores)]

    # ── everybody who is ready gets a token ───────────────────────────────────────────────────────────

    def _advance(self, plan: StepPlan) -> None:
        """What the engine does after a step, without a sampler: any token will do, but no two the same."""
        ready_of: dict[str, list[TokenSequence]] = {}
        for item in plan.scheduled:
            sequence = self.scheduler.sequences[item.seq_id]
            if item.end == sequence.num_tokens:
                ready_of.setdefault(sequence.request_id, []).append(sequence)
        for request in tuple(self.scheduler.running):
            ready = ready_of.get(request.request_id)
            if not ready:
                continue
            self._num_tokens += len(self._grow(request, ready))
            if all(sequence.num_tokens > self._final[request.request_id] for sequence in request.sequences):
                self._num_preemptions += request.num_preemptions
                self._num_finished += 1
                self.scheduler.remove(request, RequestStatus.FINISHED_LENGTH_CAPPED)

    def _grow(self, request: Request, ready: list[TokenSequence]) -> list[TokenSequence]:
        beams = self._beams.get(request.request_id)
        if beams is not None:
            before = tuple(request.sequences)  # in lockstep, and in the order of their scores
            children = self._survivors(request, beams.scores)
            grown, _ = self.scheduler.grow(
                request, [(before[parent], token) for parent, token, _ in children]
            )
            beams.scores = [score for _, _, score in children]
            beams.parents.append([parent for parent, _, _ in children])
            return grown
        if request.request_id not in self._forked:  # the prompt is computed
            self._forked.add(request.request_id)
            ready = [*ready, *(self.scheduler.fork(request, ready[0]) for _ in range(1, self.width))]
        grown = []
        for sequence in ready:
            if sequence.num_tokens > self._final[request.request_id]:
                self.scheduler.drop(request, sequence)
            else:
                sequence.append_token(next(self.tokens))
                grown.append(sequence)
        return grown

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────

    def _look(self, plan: StepPlan, step: int) -> None:
        """Note how the memory is used after a step, before anybody leaves."""
        scheduler, memory = self.scheduler, self.memory
        may_share = self.width > 1
        waits = self._head_waits_for_memory(plan)
        warming_up = self._num_finished < UNMEASURED * self._num_requests
        if self.wait_for_full_memory and (warming_up or not waits):
            return
        if (may_share and step % LOOK_EVERY) or not memory.tables:
            return
        size = self.config.block_size
        progress = {}
        for seq_id in memory.tables:
            sequence = scheduler.sequences[seq_id]
            final = self._final[sequence.request_id]
            progress[seq_id] = Progress(min(sequence.num_computed_tokens, final), final)
        shares = memory_shares(
            self.config.num_blocks * size,
            memory.num_free_blocks * size,
            memory.tables,
            progress,
            head_waits=waits,
            promises=memory.promises() if isinstance(memory, StripManager) else (),
            are_shared=may_share,
        )
        alone = sum(len(table) for table in memory.tables.values())
        used, prompts = alone, 0
        if may_share:
            used = len({block for table in memory.tables.values() for block in table.blocks})
            prompts = sum(scheduler.sequences[seq_id].num_prompt_tokens // size for seq_id in memory.tables)
            self._apart += [
                self._beams[request.request_id].tokens_apart()
                for request in scheduler.running
                if request.request_id in self._beams and len(request.sequences) > 1
            ]
        self._looks.append(_Look(shares, len(scheduler.running), alone, used, prompts))

    def _head_waits_for_memory(self, plan: StepPlan) -> bool:
        """Does somebody wait, and neither for a place in the batch nor for the next step's tokens?"""
        places_left = self.config.max_num_seqs - self.scheduler.num_running_seqs
        tokens_left = self.config.max_num_batched_tokens - plan.total_num_scheduled_tokens
        return bool(self.scheduler.waiting) and places_left >= self.width and tokens_left > 0

    def _result(self, num_steps: int) -> Played:
        looks = self._looks
        if not looks:
            raise ValueError(
                f"{self._num_requests} requests are too few: nobody ever had to wait for memory, so there "
                "is nothing to compare; raise requests (--requests), or lower slots (--slots)"
            )
        alone = sum(look.blocks_alone for look in looks)
        at_once = fmean(look.num_requests for look in looks)
        shares = MemoryShares(*(fmean(kind) for kind in zip(*(look.shares for look in looks), strict=True)))
        return Played(
            num_steps=num_steps,
            num_looks=len(looks),
            shares=shares,
            requests_at_once=at_once,
            tokens_per_request=shares.effective * self.config.num_blocks * self.config.block_size / at_once,
            saved=1 - sum(look.blocks_used for look in looks) / alone,
            prompt_share=sum(look.prompt_blocks for look in looks) / alone,
            num_copies=self._num_copies,
            num_tokens=self._num_tokens,
            num_preemptions=self._num_preemptions,
            tokens_apart=fmean(self._apart) if self._apart else 0.0,
        )


def check_it_fits(
    memory: CacheManager, config: SchedulerConfig, prompt: int, output: int, width: int
) -> None:
    """Raise `ValueError` if a request would wait for ever."""
    needed = memory.max_blocks(prompt, prompt + output - 1, width)
    if needed > config.num_blocks or width > config.max_num_seqs:
        raise ValueError(
            f"a request of {prompt} + {output} tokens and {width} sequences can never fit: it needs {needed} "
            f"of {config.num_blocks} blocks, and {width} of {config.max_num_seqs} places"
        )
