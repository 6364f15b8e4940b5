"""One workload, one memory, the real engine core, and no model: what fits, and what is wasted.

    requests ──► EngineCore ──► plan ──► nothing is computed ──► every sequence gets a token ──► measure
                    │  asks
                 the memory under test

All requests are there from the start, so that there is always one to be admitted: what is measured is a full
memory. Measured are the steps in which the head of the queue has to wait for memory, without the beginning
(until a tenth of the requests is done, all would be equally young). Steps count alike.

Read next: `memory.py`, which plays the same requests on every memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as counter
from statistics import fmean
from typing import NamedTuple

from minivllm.config import SchedulerConfig
from minivllm.engine.core import EngineCore
from minivllm.lab.compare.beam_dice import BeamDice
from minivllm.lab.workloads.lengths import Lengths
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.strip_manager import StripManager
from minivllm.memory.waste import MemoryShares, Progress, memory_shares
from minivllm.scheduling.plan import BeamStep, NextToken, Sampled, StepPlan
from minivllm.scheduling.request import Finish, Request
from minivllm.scheduling.request import Sequence as TokenSequence

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
    """What a beam search remembers: the score of each beam, and its parent in every step."""

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
        wait_for_full_memory: measure only while a request waits for memory, and not at the beginning.

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
        self.core = EngineCore(config, make_cache=lambda: memory)
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
        sequence = TokenSequence(-1, tokens, request_id=name)
        self.core.add(
            Request(
                name,
                [sequence],
                max_tokens=output,
                arrival_time=0.0,
                max_num_sequences=self.width,
                is_beam_search=dice is not None,
            )
        )
        if dice is not None:
            self._beams[name] = _Beams(dice)
        self._final[name] = len(tokens) + output - 1  # the last token is never computed

    def run(self) -> Played:
        """Play to the end."""
        step = 0
        while isinstance(plan := self.core.plan_step(), StepPlan):
            self._num_copies += len(plan.moves)
            self._execute(plan)
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

    # ── every sequence that was computed to its end gets a token ──────────────────────────────────────

    def _advance(self, plan: StepPlan) -> None:
        """What the engine does after a step, without a sampler: any token will do, but no two the same."""
        ready_of: dict[str, list[TokenSequence]] = {}
        for item in plan.scheduled:
            sequence = self.core.state.sequences[item.seq_id]
            if item.end == sequence.num_tokens:
                ready_of.setdefault(sequence.request_id, []).append(sequence)
        tokens: list[NextToken] = []
        beams: list[BeamStep] = []
        for request in self.core.state.running.values():
            ready = ready_of.get(request.request_id)
            if ready and request.is_beam_search:
                beams.append(self._advance_beams(request))
            elif ready:
                tokens += self._next_tokens(request, ready)
        self._num_tokens += len(tokens) + sum(len(step.kept) for step in beams)
        changes = self.core.finish_step(plan, Sampled(tokens, beams))
        self._num_finished += len(changes.released)
        self._num_preemptions += sum(request.num_preemptions for request in changes.released)

    def _advance_beams(self, request: Request) -> BeamStep:
        """All beams of a request were computed, in the order of their scores: the survivors go on."""
        name, before = request.request_id, request.sequences
        beams = self._beams[name]
        children = self._survivors(request, beams.scores)
        beams.scores = [score for _, _, score in children]
        beams.parents.append([parent for parent, _, _ in children])
        kept = [(before[parent].seq_id, token, score, "") for parent, token, score in children]
        return BeamStep(name, kept, finish=self._finish(request, before[0]))

    def _next_tokens(self, request: Request, ready: list[TokenSequence]) -> list[NextToken]:
        is_fork = request.request_id not in self._forked  # the prompt has just been computed
        self._forked.add(request.request_id)
        num_forks = self.width - 1 if is_fork else 0
        targets = [*((ready[0], True) for _ in range(num_forks)), *((sequence, False) for sequence in ready)]
        return [
            NextToken(sequence.seq_id, next(self.tokens), "", is_fork, self._finish(request, sequence))
            for sequence, is_fork in targets
        ]

    def _finish(self, request: Request, sequence: TokenSequence) -> Finish | None:
        """Is the next token of this sequence its last?"""
        return Finish("length") if sequence.num_tokens == self._final[request.request_id] else None

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────

    def _look(self, plan: StepPlan, step: int) -> None:
        """Note how the memory is used by a step, before any request leaves."""
        state, memory = self.core.state, self.memory
        may_share = self.width > 1
        waits = self._head_waits_for_memory(plan)
        warming_up = self._num_finished < UNMEASURED * self._num_requests
        if self.wait_for_full_memory and (warming_up or not waits):
            return
        if (may_share and step % LOOK_EVERY) or not memory.tables:
            return
        size = self.config.block_size
        computed = {item.seq_id: item.end for item in plan.scheduled}  # once the step is done
        progress = {}
        for seq_id in memory.tables:
            sequence = state.sequences[seq_id]
            final = self._final[sequence.request_id]
            progress[seq_id] = Progress(min(computed.get(seq_id, sequence.num_computed_tokens), final), final)
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
            prompts = sum(state.sequences[seq_id].num_prompt_tokens // size for seq_id in memory.tables)
            self._apart += [
                self._beams[request.request_id].tokens_apart()
                for request in state.running.values()
                if request.request_id in self._beams and len(request.sequences) > 1
            ]
        self._looks.append(_Look(shares, len(state.running), alone, used, prompts))

    def _head_waits_for_memory(self, plan: StepPlan) -> bool:
        """Does a request wait, and neither for a slot in the batch nor for the next step's tokens?"""
        slots_left = self.config.max_num_seqs - self.core.state.num_running_seqs
        tokens_left = self.config.max_num_batched_tokens - plan.total_num_scheduled_tokens
        return bool(self.core.state.waiting) and slots_left >= self.width and tokens_left > 0

    def _result(self, num_steps: int) -> Played:
        looks = self._looks
        if not looks:
            raise ValueError(
                f"{self._num_requests} requests are too few: none ever had to wait for memory, so there "
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
            f"of {config.num_blocks} blocks, and {width} of {config.max_num_seqs} slots"
        )
