"""The result of a simulation, in bounded memory: a million requests leave counts behind, not lists.

A latency goes into one of the bins of a histogram whose edges grow by 2 % from one to the next, so every
percentile is right to within 1 %, whatever the scale, and however many there are.

Source: the idea of HdrHistogram (Tene). Read next: `cluster.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, floor, log

GROWTH = log(1.02)
SMALLEST_SECONDS = 1e-7


class LatencyHistogram:
    """Counts of values, by size."""

    __slots__ = ("_bins", "count", "largest", "total", "total_of_squares")

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.total_of_squares = 0.0
        self.largest = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count one value, or the same one several times."""
        self._bins[floor(log(max(seconds, SMALLEST_SECONDS)) / GROWTH)] += times
        self.count += times
        self.total += seconds * times
        self.total_of_squares += seconds * seconds * times
        self.largest = max(self.largest, seconds)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def percentile(self, share: float) -> float | None:
        """The value below which that share of all values lies, within 1 %; None if there are none."""
        if not self.count:
            return None
        wanted = share * (self.count - 1)
        seen = 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen > wanted:
                return min(exp((index + 0.5) * GROWTH), self.largest)
        return self.largest

    @property
    def fairness(self) -> float | None:
        """Jain's index: 1 if all values are equal, 1 / n if one has everything."""
        if not self.total_of_squares:
            return None
        return self.total**2 / (self.count * self.total_of_squares)

    def counts(self) -> list[tuple[float, int]]:
        """`(value in the middle of the bin, count)`, from small to large: for pictures."""
        return [(exp((index + 0.5) * GROWTH), self._bins[index]) for index in sorted(self._bins)]


@dataclass
class Metrics:
    """Sums over all replicas of a simulation. Times are virtual.

    Attributes:
        ttft: from arrival to the first token.
        inter_token: from each token of a request to its next.
        end_to_end: from arrival to the last token (under static batching, until the batch is released).
        normalized: end-to-end latency divided by the number of output tokens, for each request: what the
            papers plot against the request rate.
        queue_time: from arrival to the first step that computes something of it.
        running_seconds: sum over steps of duration · requests in the batch, the parked ones included.
        scheduled_seconds: the same of sequences that compute something.
        waiting_seconds: the same of requests that wait.
        kv_seconds: the same of the share of blocks in use.
    """

    ttft: LatencyHistogram = field(default_factory=LatencyHistogram)
    inter_token: LatencyHistogram = field(default_factory=LatencyHistogram)
    end_to_end: LatencyHistogram = field(default_factory=LatencyHistogram)
    normalized: LatencyHistogram = field(default_factory=LatencyHistogram)
    queue_time: LatencyHistogram = field(default_factory=LatencyHistogram)
    num_arrived: int = 0
    num_refused: int = 0
    first_refusal: str = ""
    num_finished: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    num_swapped_blocks: int = 0
    num_copied_blocks: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    computed_tokens: int = 0
    padding_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    busy_seconds: float = 0.0
    running_seconds: float = 0.0
    scheduled_seconds: float = 0.0
    waiting_seconds: float = 0.0
    kv_seconds: float = 0.0
    first_arrival: float | None = None
    last_finish: float = 0.0

    @property
    def duration_seconds(self) -> float:
        """From the first arrival to the last answer."""
        return max(0.0, self.last_finish - (self.first_arrival or 0.0))

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.duration_seconds if self.duration_seconds else 0.0

    @property
    def requests_per_second(self) -> float:
        return self.num_finished / self.duration_seconds if self.duration_seconds else 0.0

    @property
    def mean_batch_size(self) -> float:
        """Requests in the batch, the parked ones included, on average over the busy time of a replica."""
        return self.running_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def mean_scheduled(self) -> float:
        """Sequences that compute something in a step, on average over the busy time of a replica."""
        return self.scheduled_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def mean_kv_usage(self) -> float:
        """Share of the blocks that are in use, on average over the busy time."""
        return self.kv_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def padding_share(self) -> float:
        """Of all tokens that were computed, those that were thrown away."""
        computed = self.computed_tokens + self.padding_tokens
        return self.padding_tokens / computed if computed else 0.0


def in_milliseconds(values: Iterable[float | None]) -> list[str]:
    """For tables: "–" where nothing was counted."""
    return ["–" if value is None else f"{value * 1e3:,.0f}" for value in values]
