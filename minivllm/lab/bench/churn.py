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
from minivllm.memory import KVCacheManager
from minivllm.memory.cache_manager import Admission, Span
from minivllm.scheduling.request import Request, RequestStatus, Sequence
from minivllm.scheduling.scheduler import Scheduler
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
        return self.cache.allocate_slots((Span(seq_id, 0, length),), Admission(seq_id, range(length), length))

    def _grow(self, seq_id: int, length: int) -> bool:
        """A sequence gets one more token."""
        return self.cache.allocate_slots((Span(seq_id, length - 1, length),))

    def _free(self, seq_id: int) -> None:
        self.cache.free(seq_id)
        del self._tokens[seq_id]


class QueueRig:
    """A scheduler with `num_running` decoding requests and `num_waiting` behind them, all places taken.

    The pool has `num_blocks`, by default 256 for each running request.
    """

    def __init__(self, num_running: int, num_waiting: int, seed: int, num_blocks: int | None = None) -> None:
        self._rng = random.Random(seed)
        self._next_id = 0
        self._step = 0
        if num_blocks is None:
            num_blocks = num_running * 256
        config = SchedulerConfig(num_blocks=num_blocks, block_size=BLOCK_SIZE, max_num_seqs=num_running)
        self.scheduler = Scheduler(config, _used_cache(num_blocks, self._rng))
        for _ in range(num_running):
            self.scheduler.add(self._new_request(self._rng.randint(16, 448)))
        while any(sequence.num_uncomputed_tokens for sequence in self.scheduler.sequences.values()):
            self._compute()
        self._let_all_decode()
        self._waiting = [self._new_request(16) for _ in range(num_waiting)]
        for request in self._waiting:
            self.scheduler.add(request)

    def schedule_round(self) -> float:
        """Seconds of one `schedule` in which every running request decodes one token."""
        seconds = self._compute()
        self._let_all_decode()
        return seconds

    def turnover_round(self, num_tokens: int = 16) -> float:
        """Seconds of a step with an arrival and a departure.

        Somebody joins the queue, the eldest of the batch leaves, and in `schedule` the first who waits takes
        the place: what a step costs the queue and the pool beside decoding.
        """
        newcomer = self._new_request(num_tokens)
        eldest = next(iter(self.scheduler.running))
        began = perf_counter()
        self.scheduler.add(newcomer)
        self.scheduler.remove(eldest, RequestStatus.FINISHED_LENGTH_CAPPED)
        seconds = perf_counter() - began
        return seconds + self.schedule_round()

    def abort_round(self) -> float:
        """Seconds of aborting one waiting request, wherever it stands; others take the places."""
        places = self._rng.sample(range(len(self._waiting)), min(BATCH, len(self._waiting)))
        leaving = [self._waiting[place] for place in places]
        seconds = _time(lambda: _for_each(self._abort, leaving))
        for place in places:
            self._waiting[place] = self._new_request(16)
            self.scheduler.add(self._waiting[place])
        return seconds / len(leaving)

    def _compute(self) -> float:
        began = perf_counter()
        plan = self.scheduler.schedule(self._step)
        seconds = perf_counter() - began
        self._step += 1
        self.scheduler.complete(plan)
        return seconds

    def _let_all_decode(self) -> None:
        for request in self.scheduler.running:
            request.sequences[0].append_token(0)

    def _abort(self, request: Request) -> None:
        self.scheduler.remove(request, RequestStatus.FINISHED_ABORTED)

    def _new_request(self, num_tokens: int) -> Request:
        name = f"bench-{self._next_id}"
        sequence = Sequence(self._next_id, [0] * num_tokens, request_id=name)
        self._next_id += 1
        return Request(name, [sequence], max_tokens=1000, arrival_time=0.0)


def _used_cache(num_blocks: int, rng: random.Random) -> KVCacheManager:
    """An empty cache that was full once: its free list goes from sequence to sequence in random order."""
    cache = KVCacheManager(num_blocks, BLOCK_SIZE)
    seq_ids = list(range(num_blocks // MOST_BLOCKS))
    length = MOST_BLOCKS * BLOCK_SIZE
    for seq_id in seq_ids:
        cache.allocate_slots((Span(seq_id, 0, length),), Admission(seq_id, range(length), length))
    rng.shuffle(seq_ids)
    _for_each(cache.free, seq_ids)
    return cache


def _for_each(operation: Callable[[T], None], items: list[T]) -> None:
    for item in items:
        operation(item)


def _time(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began
