"""Percentiles of latencies, and seconds in words.

Read next: `run_summary.py`, which prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor


@dataclass(frozen=True)
class Percentiles:
    """Of one kind of latency, in seconds; all None if nothing was measured."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    count: int = 0


def percentiles(values: Iterable[float]) -> Percentiles:
    """With linear interpolation between neighbours, as numpy does by default."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles()
    p50, p90, p95, p99 = (_percentile(ordered, share) for share in (0.50, 0.90, 0.95, 0.99))
    return Percentiles(p50=p50, p90=p90, p95=p95, p99=p99, count=len(ordered))


def _percentile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def format_seconds(seconds: float | None) -> str:
    """Three digits and a unit that fits: 1.23 s, 45.6 ms, 789 µs."""
    if seconds is None:
        return "–"
    if seconds >= 1 or seconds == 0:
        return f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def percentiles_in_words(latency: Percentiles) -> str:
    if not latency.count:
        return "–"
    p50, p90, p99 = (format_seconds(value) for value in (latency.p50, latency.p90, latency.p99))
    return f"p50 {p50}, p90 {p90}, p99 {p99}"
