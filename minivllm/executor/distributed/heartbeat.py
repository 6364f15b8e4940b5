"""Signs of life: which rank hangs without having ended, and at what.

A rank that ends is noticed by its process and its connections. One that is stopped, or waits for ever, or
whose machine is out of reach, keeps all of them. So each rank tells the store once a second that it lives,
and what it does:

    rank r    pulse/r  =  42 beats · 1,870 moves · "all-gather" in step 17
    rank 0    looks there while a step takes longer
                  beats stand still                           stopped, or out of reach
                  beats come, and no rank makes a move        one of them computes, or waits, for ever

A move is anything that a rank begins: a step, a message to the others. So a long step is no hang.

No two machines' clocks are compared: what counts is for how long the same was seen. Time in which the one who
looks was stopped itself (Ctrl-Z) does not count.

Read next: `distributed_executor.py`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import msgspec
from torch.distributed import Store  # type: ignore[attr-defined]

from minivllm.executor.distributed.meeting import START_SECONDS, Meeting
from minivllm.executor.executor import RankError

BEAT_SECONDS = 1.0
TIMEOUT_SECONDS = 300.0
"""That no rank may make a move within a step, if nothing else is said; as vLLM's default for a step."""
SILENT_SECONDS = 30.0
"""That a rank may give no sign of life: longer than any process that lives waits for a core."""
KEY = "pulse"
IDLE, COMPUTING = "waiting for a plan", "computing"


class Pulse(msgspec.Struct, frozen=True, array_like=True):
    """What a rank tells of itself."""

    beats: int = 0
    moves: int = 0
    what: str = "starting"
    step: int = -1

    def __str__(self) -> str:
        return self.what if self.step < 0 else f"{self.what} in step {self.step}"


class Activity:
    """What a rank does now. Those of its threads that do it write it down, another one tells it."""

    def __init__(self) -> None:
        self.moves = 0
        self.what = Pulse().what
        self.step = -1

    def begin(self, what: str) -> None:
        self.what = what
        self.moves += 1

    def pulse(self, beats: int = 0) -> Pulse:
        return Pulse(beats, self.moves, self.what, self.step)


class OwnSeconds:
    """Seconds that this process was awake, if it asks at least every `MOST`."""

    MOST = 2 * BEAT_SECONDS

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._seconds = 0.0

    def __call__(self) -> float:
        now = self._clock()
        self._seconds += min(now - self._last, self.MOST)
        self._last = now
        return self._seconds


class Heart:
    """Tells what this rank does, from a thread of its own, for as long as the block lasts.

    Args:
        watches_rank_0: end this process once rank 0 is silent. For a rank on another machine, which would
            never hear of it.
    """

    def __init__(self, meeting: Meeting, activity: Activity, *, watches_rank_0: bool = False) -> None:
        self.silent_seconds = START_SECONDS
        self._rank, self._store, self._activity = meeting.rank, meeting.own_store(), activity
        self._stopping = threading.Event()
        self._last_of_rank_0 = Pulse()
        self._unheard = 0  # beats of ours since the last of rank 0
        threads = [self._beat, *([self._watch] if watches_rank_0 else [])]
        self._threads = [threading.Thread(target=each, name="heart", daemon=True) for each in threads]

    def __enter__(self) -> Heart:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(BEAT_SECONDS)  # a store that is out of reach is not waited for

    def _beat(self) -> None:
        beats = 0
        while not self._stopping.is_set():
            beats += 1
            try:
                told = msgspec.json.encode(self._activity.pulse(beats)).decode()
                self._store.set(f"{KEY}/{self._rank}", told)
                if len(self._threads) > 1:
                    self._hear_rank_0()
            except RuntimeError:  # the store is gone; who needs it will say so
                return
            self._stopping.wait(BEAT_SECONDS)

    def _hear_rank_0(self) -> None:
        pulse = read_pulse(self._store, 0)
        if pulse != self._last_of_rank_0:
            self._last_of_rank_0, self._unheard = pulse, 0

    def _watch(self) -> None:
        """In a thread of its own, since the store of a machine out of reach does not answer, either."""
        while not self._stopping.wait(BEAT_SECONDS):
            self._unheard += 1
            if self._unheard * BEAT_SECONDS > self.silent_seconds:
                words = f"rank {self._rank}: {silent_words(0, self.silent_seconds)}"
                print(words, file=sys.stderr, flush=True)
                os._exit(1)


class Watch:
    """Rank 0's eye on all ranks.

    Attributes:
        seconds: that no rank may make a move.
        silent_seconds: that a rank may give no sign of life.
    """

    def __init__(self, meeting: Meeting, own: Activity, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = self.silent_seconds = meeting.seconds
        self._store, self._own = meeting.own_store(), own
        self._now = OwnSeconds(clock)
        self._looked_at = self._moved_at = 0.0
        self._moves = -1
        self._pulses = {rank: Pulse() for rank in range(1, meeting.size)}
        self._heard_at = dict.fromkeys(self._pulses, 0.0)

    def expect(self, seconds: float) -> None:
        """From now on nothing takes longer than so many seconds."""
        self.seconds, self.silent_seconds = seconds, silent_seconds(seconds)

    def look(self) -> None:
        """To be called again and again while others are waited for; it looks once a second.

        Raises:
            RankError: one of the ranks hangs.
        """
        now = self._now()
        if now - self._looked_at < BEAT_SECONDS and self._moves >= 0:
            return
        self._looked_at = now
        for rank, last in self._pulses.items():
            pulse = read_pulse(self._store, rank)
            if pulse.beats != last.beats:
                self._pulses[rank], self._heard_at[rank] = pulse, now
            elif now - self._heard_at[rank] > self.silent_seconds:
                raise RankError(f"{silent_words(rank, self.silent_seconds)}; last it was {last}")
        moves = self._own.moves + sum(pulse.moves for pulse in self._pulses.values())
        if moves != self._moves:
            self._moves, self._moved_at = moves, now
        elif now - self._moved_at > self.seconds:
            raise RankError(f"no rank has got on for {self.seconds:g} seconds: {self._everybody()}")

    def _everybody(self) -> str:
        pulses = {0: self._own.pulse(), **self._pulses}
        return ", ".join(f"rank {rank} {pulse}" for rank, pulse in pulses.items())


def silent_seconds(seconds: float) -> float:
    return min(seconds, SILENT_SECONDS)


def silent_words(rank: int, seconds: float) -> str:
    return f"rank {rank} has given no sign of life for {seconds:g} seconds: it is stopped, or out of reach"


def read_pulse(store: Store, rank: int) -> Pulse:
    key = f"{KEY}/{rank}"
    return msgspec.json.decode(store.get(key), type=Pulse) if store.check([key]) else Pulse()
