"""Moments: the steps of two runs, merged on one clock.

Two runs of the same requests take different steps, so a step number of one means nothing in the other. Time
does. A moment is the end of a step of either run, and at every moment each run is in one step:

    first     |── 0 ──|── 1 ──|── 2 ──|
    second    |───── 0 ─────|─ 1 ─|────── 2 ──────|
    moments           0     1 2   3   4           5
    first in          0     1 1   2   2           done
    second in         0     0 1   1   2           2

No step is left out, not even one that takes no time. Read next: `comparison.py`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from minivllm.trace.timeline import Timeline


class Moment(NamedTuple):
    """A point in time at which a step ends."""

    time: float
    """Seconds since each run's header."""
    steps: tuple[int, int]
    """The step that each run is in; its number of steps once it is done."""


def merge(first: Timeline, second: Timeline) -> list[Moment]:
    """All moments of two runs, in order."""
    # A clock that was set back while it ran must not tangle the merge.
    ends = [list(accumulate((record.end for record in run.records), max)) for run in (first, second)]
    moments = []
    at = [0, 0]
    while any(step < len(times) for step, times in zip(at, ends, strict=True)):
        time = min(times[step] for step, times in zip(at, ends, strict=True) if step < len(times))
        moments.append(Moment(time, (at[0], at[1])))
        for run, times in enumerate(ends):
            if at[run] < len(times) and times[at[run]] == time:
                at[run] += 1
    return moments


def steps_of_first(moments: list[Moment], first: Timeline) -> list[int]:
    """Moment → the first run's step, its last one once it is done: the step of all other pages."""
    return [min(moment.steps[0], first.num_steps - 1) for moment in moments]
