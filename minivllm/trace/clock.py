"""The clock of a trace: seconds since its header, on whatever clock the run goes by.

    clock (perf_counter, or a simulator's)   …… 812.40 ─────────── 812.65 ────►
    time in events                                0.0 = header       0.25

Read next: `recorder.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter


class TraceClock:
    """Counts from its creation, or from the latest `restart`."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._epoch = clock()

    def restart(self) -> None:
        """Now is zero."""
        self._epoch = self._clock()

    def now(self) -> float:
        """Seconds since zero, to the microsecond."""
        return round(self._clock() - self._epoch, 6)

    def at(self, time: float) -> float:
        """A moment of the underlying clock in seconds since zero; never before it, never in the future."""
        return min(self.now(), max(0.0, round(time - self._epoch, 6)))
