"""Rigs for the control plane: pools and queues of any size, kept busy in a steady state.

A fresh pool flatters itself: its blocks are handed out in order and lie side by side in memory. So each rig
first fills up completely, then lets sequences go in random order until as many are left as one batch has, and
from then on takes and gives back equal amounts: what is timed is the thousandth hour of a server and not its
first second. The number of live sequences is the same at every size, so that only the pool differs.

Work is prepared outside the clock, and done in batches inside it, since one operation takes about as long
as looking at the clock does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from minivllm.config import SchedulerConfig
from minivllm.engine.core import EngineCore
from minivllm.memory import KVCacheManager
from minivllm.memory.cache_manager import Admission, Span
from minivllm.scheduling.plan import NextToken, Sampled, StepPlan
from minivllm.scheduling.request import Request, Sequence
from minivllm.validation import check_integer

T = TypeVar("T")

BLOCK_SIZE = 16
MOST_BLOCKS = 16
"""A sequence takes 1 … 16 blocks when it comes."""
BATCH = 16
NUM_LIVE = 48
SMALLEST_POOL = 1_000
"""It must always have room for a batch of the longest sequences more."""
LOOK_UP = "only look up"
"""Finding a random sequence's table and doing nothing with it: what memory itself costs at this size."""


class PoolRig:
    """A KV-cache manager with `NUM_LIVE` random sequences, its free list in random order."""

    def __init__(self, num_blocks: int, seed: int) -> None:
        check_integer("num_blocks", num_blocks, at_least=SMALLEST_POOL)
        self.cache = KVCacheManager(num_blocks, BLOCK_SIZE)
        self._rng = random.Random(seed)
        self._tokens: dict[int, int] = {}
        self._next_seq_id = 0
        while self._admit(self._new_length()):
            pass
        live = list(self._tokens)
        self._rng.shuffle(live)
        for seq_id in live[NUM_LIVE:]:
            self._free(seq_id)

    def round(self) -> dict[str, float]:
        """One batch of each operation; operation → seconds for each call."""
        rng = self._rng
        coming = [(self._next_seq_id + index, self._new_length()) for index in range(BATCH)]
        self._next_seq_id += BATCH
        allocate = _time(lambda: [self._take(seq_id, length) for seq_id, length in coming])
        self._tokens.update(coming)
        growing = [(seq_id, self._tokens[seq_id] + 1) for seq_id in rng.sample(list(self._tokens), BATCH)]
        append = _time(lambda: [self._grow(seq_id, length) for seq_id, length in growing])
        self._tokens.update(growing)
        touched = rng.sample(list(self._tokens), BATCH)
        look_up = _time(lambda: [len(self.cache.table(seq_id)) for seq_id in touched])
        leaving = rng.sample(list(self._tokens), BATCH)
        free = _time(lambda: _for_each(self.cache.free, leaving))
        for seq_id in leaving:
            del self._tokens[seq_id]
        seconds = {"allocate": allocate, "append": append, "free": free, LOOK_UP: look_up}
        return {name: value / BATCH for name, value in seconds.items()}

    def _new_length(self) -> int:
        return self._rng.randint(1, MOST_BLOCKS * BLOCK_SIZE)

    def _admit(self, length: int) -> bool:
        if not self._take(self._next_seq_id, length):
            return False
        self._tokens[self._next_seq_id] = length
        self._next_seq_id += 1
        return True

    def _take(self, seq_id: int, length: int) -> bool:
        """A newcomer gets blocks for all its tokens, if there is room."""
        admission = Admission(seq_id, range(length), max_total_tokens=length)
        return self.cache.allocate_slots((Span(seq_id, 0, length),), admission)

    def _grow(self, seq_id: int, length: int) -> bool:
        """A sequence gets one more token."""
        return self.cache.allocate_slots((Span(seq_id, length - 1, length),))

    def _free(self, seq_id: int) -> None:
        self.cache.free(seq_id)
        del self._tokens[seq_id]


class QueueRig:
    """An engine core with `num_running` decoding requests and `num_waiting` behind them, all slots taken.

    The pool has `num_blocks`, by default 256 for each running request.
    """

    def __init__(self, num_running: int, num_waiting: int, seed: int, num_blocks: int | None = None) -> None:
        self._rng = random.Random(seed)
        self._next_id = 0
        if num_blocks is None:
            num_blocks = num_running * 256
        config = SchedulerConfig(num_blocks=num_blocks, block_size=BLOCK_SIZE, max_num_seqs=num_running)
        cache = _used_cache(num_blocks, self._rng)
        self.core = EngineCore(config, make_cache=lambda: cache)
        for _ in range(num_running):
            self.core.add(self._new_request(self._rng.randint(16, 448)))
        while not all(sequence.num_output_tokens for sequence in self.core.state.sequences.values()):
            self.schedule_round()
        self._waiting = [self._new_request(16) for _ in range(num_waiting)]
        for request in self._waiting:
            self.core.add(request)

    def schedule_round(self) -> float:
        """Seconds of one `plan_step` in which every running request decodes one token."""
        began = perf_counter()
        plan = self.core.plan_step()
        seconds = perf_counter() - began
        assert isinstance(plan, StepPlan), "there is always work"
        tokens = [NextToken(item.seq_id, 0) for item in plan.scheduled if item.num_logits]
        self.core.finish_step(plan, Sampled(tokens))
        return seconds

    def turnover_round(self, num_tokens: int = 16) -> float:
        """Seconds of a step with an arrival and a departure.

        A request arrives, the eldest of the batch leaves, and in `plan_step` the first that waits takes its
        slot: what a step costs the queue and the pool beside decoding.
        """
        newcomer = self._new_request(num_tokens)
        eldest = next(iter(self.core.state.running))
        began = perf_counter()
        self.core.add(newcomer)
        self.core.abort(eldest)
        seconds = perf_counter() - began
        return seconds + self.schedule_round()

    def abort_round(self) -> float:
        """Seconds of aborting one waiting request, wherever it stands; others take their places."""
        places = self._rng.sample(range(len(self._waiting)), min(BATCH, len(self._waiting)))
        leaving = [self._waiting[place].request_id for place in places]
        seconds = _time(lambda: _for_each(self.core.abort, leaving))
        for place in places:
            self._waiting[place] = self._new_request(16)
            self.core.add(self._waiting[place])
        return seconds / len(leaving)

    def _new_request(self, num_tokens: int) -> Request:
        name = f"bench-{self._next_id}"
        self._next_id += 1
        sequence = Sequence(-1, [0] * num_tokens, request_id=name)
        return Request(name, [sequence], max_tokens=1000, arrival_time=0.0)


def _used_cache(num_blocks: int, rng: random.Random) -> KVCacheManager:
    """An empty cache that was full once: its free list goes from sequence to sequence in random order."""
    cache = KVCacheManager(num_blocks, BLOCK_SIZE)
    seq_ids = list(range(num_blocks // MOST_BLOCKS))
    length = MOST_BLOCKS * BLOCK_SIZE
    for seq_id in seq_ids:
        admission = Admission(seq_id, range(length), max_total_tokens=length)
        cache.allocate_slots((Span(seq_id, 0, length),), admission)
    rng.shuffle(seq_ids)
    _for_each(cache.free, seq_ids)
    return cache


def _for_each(operation: Callable[[T], object], items: list[T]) -> None:
    for item in items:
        operation(item)


def _time(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began
