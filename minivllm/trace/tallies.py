"""Tallies: histograms as Prometheus keeps them, and what its queries make of them.

    edges    0.001   0.005   0.01   …   +Inf
    counts     3       9       1           0      a value counts below the first edge that is not smaller

Only counts and a sum are kept, however many values there are. The price: a quantile is known only to lie
between two edges, and `histogram_quantile` takes a place on the straight line between them.

Source: the edges are vLLM's (`loggers.py`), with finer ones below: a token of a small model takes less than
10 ms on a CPU, too. The quantile is that of Prometheus (`promql/quantile.go`). Read next: `engine_counts.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_FINE = (0.0002, 0.0005)
_TTFT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_PHASE = (*_FINE, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, *_REQUEST)
_SIZES = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))

BUCKETS: dict[str, tuple[float, ...]] = {
    "time_to_first_token_seconds": (*_FINE, *_TTFT, 80, 160, 640, 2560),
    "inter_token_latency_seconds": (*_FINE, 0.001, 0.002, 0.005, *_TOKEN),
    "request_time_per_output_token_seconds": (*_FINE, 0.001, 0.002, 0.005, *_TOKEN),
    "e2e_request_latency_seconds": _PHASE,
    "request_queue_time_seconds": _PHASE,
    "request_inference_time_seconds": _PHASE,
    "request_prefill_time_seconds": _PHASE,
    "request_decode_time_seconds": _PHASE,
    "iteration_tokens_total": tuple(2**power for power in range(15)),
    "request_prompt_tokens": _SIZES,
    "request_generation_tokens": _SIZES,
    "request_max_num_generation_tokens": _SIZES,
    "request_prefill_kv_computed_tokens": _SIZES,
    "request_params_max_tokens": _SIZES,
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (0, 1, 2, 5, 10, 20),
}
"""Upper edges, by the name of what is measured."""


class Tally:
    """A histogram: how many values were at most each of the edges, and their sum."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.sum += value * times

    @property
    def num_values(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """None if nothing was measured."""
        return self.sum / self.num_values if self.num_values else None

    def quantile(self, share: float) -> float | None:
        """What `histogram_quantile(share, …)` answers, 0 < share < 1; None if nothing was measured."""
        wanted = share * self.num_values
        if not wanted:
            return None
        below = 0
        for index, count in enumerate(self.counts[:-1]):
            if below + count >= wanted and count:
                upper = self.edges[index]
                lower = self.edges[index - 1] if index else min(0.0, upper)
                # Prometheus answers the edge itself if the lowest bucket ends at zero or below.
                return lower + (upper - lower) * (wanted - below) / count if upper > 0 else upper
            below += count
        return float(self.edges[-1])  # it lies beyond the last edge
