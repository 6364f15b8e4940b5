"""What is predicted of the curves of `scaling.py`, and how the exponent of a measured one is found.

    cost = factor · size^exponent        log cost = log factor + exponent · log size

A prediction is what the algorithm is, not what was measured once: it stands here before any measurement, with
its reason, and no number is fitted to make it come true.

Read next: `scaling_curves.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from statistics import linear_regression
from typing import NamedTuple

from minivllm.lab.bench.scaling_curves import POOL_RUNNING, QUEUE_RUNNING


class Expected(NamedTuple):
    """What a curve should look like, and what it is called in tables and pictures."""

    title: str
    work: str
    """What the size counts."""
    cost: str
    """What is measured at each size."""
    unit: str
    """Of what the last column of the table is the cost."""
    units: Callable[[int], float]
    """How many of those there are at a size."""
    exponent: float
    why: str
    is_rate: bool = False
    """Shown as units a second instead of seconds."""


CURVES = {
    "batch": Expected(
        "Decoding, by batch",
        "sequences",
        "output tokens/s",
        "token",
        float,
        1.0,
        "every sequence brings its own arithmetic: linear from where that outweighs reading the weights, "
        "which all share",
        is_rate=True,
    ),
    "context": Expected(
        "Decoding, by context",
        "tokens of context",
        "decode step",
        "1,000 tokens of context",
        lambda tokens: tokens / 1000,
        1.0,
        "attention reads the whole context: linear from where reading keys and values outweighs the weights",
    ),
    "pool": Expected(
        "Scheduling, by pool",
        "blocks in the pool",
        "scheduler step",
        "running request",
        lambda _: POOL_RUNNING,
        0.0,
        "blocks are allocated from the head of the free list and freed to its tail, however long it is",
    ),
    "waiting": Expected(
        "Scheduling, by queue",
        "requests waiting",
        "scheduler step",
        "running request",
        lambda _: QUEUE_RUNNING,
        0.0,
        "a step looks at the requests that it admits; entering and leaving the queue's heap is logarithmic, "
        "which is next to nothing",
    ),
    "requests": Expected(
        "Whole runs, by requests",
        "requests",
        "run",
        "request",
        float,
        1.0,
        "a request pays for its own tokens, and for no other request that waits or has finished",
    ),
}
"""Name of a curve → what is predicted of it."""


class Fit(NamedTuple):
    """cost = factor · size^exponent."""

    exponent: float
    factor: float

    def at(self, size: float) -> float:
        return float(self.factor * size**self.exponent)


def upper_half(sizes: Sequence[int]) -> list[int]:
    """The larger half of the sizes, at least two; nothing has no logarithm and is left out."""
    ordered = sorted({size for size in sizes if size > 0})
    if len(ordered) < 2:
        raise ValueError(f"a fit needs at least two sizes above 0, got {list(sizes)}")
    return ordered[-max(2, (len(ordered) + 1) // 2) :]


def fit_power_law(costs: Mapping[int, float]) -> Fit:
    """The straight line through the logarithms, by least squares, over the upper half of the sizes."""
    sizes = upper_half(list(costs))
    slope, intercept = linear_regression([log(size) for size in sizes], [log(costs[size]) for size in sizes])
    return Fit(slope, exp(intercept))


def in_words(exponent: float) -> str:
    """Two digits, and nothing below zero that is none."""
    return f"{round(exponent, 2) + 0.0:.2f}"
