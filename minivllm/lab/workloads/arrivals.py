"""When requests arrive: a process gives times in seconds, in order and without end.

    Poisson(rate)               |  ||    | |      ||  |     |       independent users
    Bursty(rate, 3)             ||||          |     |||| |          the same mean rate, in clumps
    EvenlySpaced(rate)          |   |   |   |   |   |   |   |       a machine
    AllAtOnce()                 ||||||||                            a batch job

The gaps of a Poisson process are exponential: their standard deviation is as large as their mean. `Bursty`
takes gaps from a gamma distribution with the same mean and a standard deviation that is `burstiness` times as
large (their coefficient of variation): 1 is Poisson again, 0 would be even. vLLM's benchmark names the same
family by its shape, 1 / burstiness², so that there a smaller number means more bursts.

A process knows no rate but its own: half the rate gives the same arrivals stretched to twice the time.

Source: section 6.1 of Kwon et al. (SOSP 2023) for Poisson arrivals. Read next: `lengths.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import Protocol

from minivllm.validation import check_number

LEAST_BURSTINESS, MOST_BURSTINESS = 0.01, 100


class ArrivalProcess(Protocol):
    """A sequence of times that never ends."""

    def times(self, seed: int) -> Iterator[float]:
        """Seconds since the beginning, none before the last; the same for the same seed."""
        ...


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals, `rate` a second on average."""

    rate: float

    def __post_init__(self) -> None:
        check_number("rate", self.rate, more_than=0)

    def times(self, seed: int) -> Iterator[float]:
        gap, now = random.Random(f"{seed} arrivals").expovariate, 0.0
        while True:
            now += gap(1.0) / self.rate
            yield now


@dataclass(frozen=True)
class Bursty:
    """Gaps whose standard deviation is `burstiness` times their mean; `rate` a second on average."""

    rate: float
    burstiness: float

    def __post_init__(self) -> None:
        check_number("rate", self.rate, more_than=0)
        check_number("burstiness", self.burstiness, at_least=LEAST_BURSTINESS, at_most=MOST_BURSTINESS)

    def times(self, seed: int) -> Iterator[float]:
        gap, now = random.Random(f"{seed} arrivals").gammavariate, 0.0
        shape = self.burstiness**-2
        while True:
            now += gap(shape, 1.0) / (shape * self.rate)  # the mean of a gamma distribution is its shape
            yield now


@dataclass(frozen=True)
class EvenlySpaced:
    """One every 1 / `rate` seconds, the first at once."""

    rate: float

    def __post_init__(self) -> None:
        check_number("rate", self.rate, more_than=0)

    def times(self, seed: int) -> Iterator[float]:
        return (index / self.rate for index in count())


@dataclass(frozen=True)
class AllAtOnce:
    """All requests are there from the start."""

    def times(self, seed: int) -> Iterator[float]:
        return repeat(0.0)
