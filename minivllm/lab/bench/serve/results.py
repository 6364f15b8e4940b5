"""From records to a result: throughput, latencies and goodput, under the names of `vllm bench serve`.

    request_throughput        requests that completed, a second
    output_throughput         their output tokens, a second
    total_token_throughput    their prompt tokens, too
    mean_ttft_ms …            of TTFT, TPOT, ITL and E2E: mean, std, median, p90, p99, in milliseconds

Requests that failed have no latency and are in no percentile; how many there were stands beside them. TPOT
is a mean over one request, ITL a gap between two neighbouring chunks, of all requests: a server that sends
tokens in bunches has a good TPOT and a bad ITL.

Read next: `doubts.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, pstdev
from typing import Any

from minivllm.lab.bench.serve.goodput import is_good
from minivllm.lab.bench.serve.record import Record, Run
from minivllm.lab.bench.timing import percentile

LATENCIES = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per output token (TPOT)",
    "itl": "Inter-token latency (ITL)",
    "e2el": "End to end (E2E)",
}
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Spread:
    """One latency over all requests, in milliseconds; NaN if there is none."""

    mean: float
    std: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        values = [value * 1e3 for value in seconds]
        if not values:
            return cls(*[math.nan] * 5)
        return cls(mean(values), pstdev(values), *(percentile(values, share) for share in PERCENTILES))


@dataclass(frozen=True)
class ClientHealth:
    """What the client was like: whether its numbers can be believed. Milliseconds, cores."""

    late: Spread
    """How much later than due requests were sent."""
    loop_lag_p99_ms: float
    loop_lag_max_ms: float
    cores: float
    """Cores that this process used; the one that reads and notes has only one."""


@dataclass(frozen=True)
class ServeResult:
    """One run, as it is told.

    Attributes:
        mode: "open", "capped", "closed" or "burst".
        request_rate: that was asked for; None without one.
        offered_rate: requests a second that were really sent, while they were sent; None of fewer than two.
        num_short: completed requests with fewer tokens than were asked for.
        tokens_per_chunk: of completed requests: above 1, ITL is between chunks and not between tokens.
        is_counted: the server has counted all tokens itself.
        errors: what went wrong, and how often.
    """

    mode: str
    request_rate: float | None
    max_concurrency: int | None
    duration: float
    completed: int
    failed: int
    num_short: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    latencies: Mapping[str, Spread]
    offered_rate: float | None
    max_concurrent_requests: int
    max_output_tokens_per_s: float
    tokens_per_chunk: float
    is_counted: bool
    client: ClientHealth
    errors: Mapping[str, int]
    goodput: Mapping[str, float] = field(default_factory=dict)
    request_goodput: float | None = None
    doubts: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Under vLLM's names, and then what is ours."""
        told: dict[str, Any] = {
            "request_rate": "inf" if self.request_rate is None else self.request_rate,
            "max_concurrency": self.max_concurrency,
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.request_throughput,
            "request_goodput": self.request_goodput,
            "output_throughput": self.output_throughput,
            "total_token_throughput": self.total_token_throughput,
            "max_output_tokens_per_s": self.max_output_tokens_per_s,
            "max_concurrent_requests": self.max_concurrent_requests,
        }
        for name, spread in self.latencies.items():
            told |= {
                f"mean_{name}_ms": spread.mean,
                f"median_{name}_ms": spread.p50,
                f"std_{name}_ms": spread.std,
                f"p50_{name}_ms": spread.p50,
                f"p90_{name}_ms": spread.p90,
                f"p99_{name}_ms": spread.p99,
            }
        told |= {
            "mode": self.mode,
            "offered_rate": self.offered_rate,
            "goodput_bounds_ms": dict(self.goodput),
            "short_outputs": self.num_short,
            "tokens_per_chunk": self.tokens_per_chunk,
            "tokens_counted_by": "server" if self.is_counted else "chunks",
            "error_counts": dict(self.errors),
            "mean_late_ms": self.client.late.mean,
            "median_late_ms": self.client.late.p50,
            "p99_late_ms": self.client.late.p99,
            "client_loop_lag_p99_ms": self.client.loop_lag_p99_ms,
            "client_loop_lag_max_ms": self.client.loop_lag_max_ms,
            "client_cores": self.client.cores,
            "is_trustworthy": not self.doubts,
            "doubts": list(self.doubts),
        }
        return {name: _plain(value) for name, value in told.items()}


def measure(
    run: Run,
    mode: str,
    *,
    request_rate: float | None = None,
    max_concurrency: int | None = None,
    goodput: Mapping[str, float] | None = None,
) -> ServeResult:
    """The numbers of a run, without doubts (`doubts.py` adds them)."""
    completed, bounds = run.completed, goodput or {}
    seconds = max(run.seconds, 1e-9)
    prompt_tokens = sum(record.prompt_tokens for record in completed)
    output_tokens = sum(record.output_tokens for record in completed)
    latencies = {
        "ttft": Spread.of([record.ttft for record in completed]),
        "tpot": Spread.of([tpot for record in completed if (tpot := record.tpot) is not None]),
        "itl": Spread.of([gap for record in completed for gap in record.gaps()]),
        "e2el": Spread.of([record.e2el for record in completed]),
    }
    lags = [lag * 1e3 for lag in run.loop_lags]
    return ServeResult(
        mode=mode,
        request_rate=request_rate,
        max_concurrency=max_concurrency,
        duration=run.seconds,
        completed=len(completed),
        failed=len(run.failed),
        num_short=sum(record.output_tokens < record.wanted_tokens for record in completed),
        total_input_tokens=prompt_tokens,
        total_output_tokens=output_tokens,
        request_throughput=len(completed) / seconds,
        output_throughput=output_tokens / seconds,
        total_token_throughput=(prompt_tokens + output_tokens) / seconds,
        latencies=latencies,
        offered_rate=_rate([record.sent for record in run.records]),
        max_concurrent_requests=most_at_once(run.records),
        max_output_tokens_per_s=_best_second(completed),
        tokens_per_chunk=output_tokens / max(1, sum(len(record.chunk_times) for record in completed)),
        is_counted=all(record.is_counted for record in completed),
        client=ClientHealth(
            Spread.of([record.late for record in run.records]),
            percentile(lags, 99),
            max(lags, default=0.0),
            run.client_cpu_seconds / seconds,
        ),
        errors=dict(Counter(record.error for record in run.failed).most_common()),
        goodput=bounds,
        request_goodput=sum(is_good(record, bounds) for record in completed) / seconds if bounds else None,
    )


def details(run: Run) -> dict[str, list[Any]]:
    """Request by request, as vLLM's `--save-detailed` has it: seconds, in the order of sending."""
    records = run.records
    return {
        "input_lens": [record.prompt_tokens for record in records],
        "output_lens": [record.output_tokens for record in records],
        "ttfts": [record.ttft if record.chunk_times else 0.0 for record in records],
        "itls": [record.gaps() for record in records],
        "start_times": [record.sent for record in records],
        "due_times": [record.due for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def most_at_once(records: Sequence[Record]) -> int:
    """Most requests that were being answered at any moment."""
    moments = sorted([(record.sent, 1) for record in records] + [(record.last, -1) for record in records])
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def _rate(times: Sequence[float]) -> float | None:
    """Arrivals a second between the first and the last of them."""
    span = max(times, default=0.0) - min(times, default=0.0)
    return (len(times) - 1) / span if span > 0 else None


def _best_second(records: Sequence[Record]) -> float:
    """Output tokens in the best whole second; each chunk has its share of its request's tokens."""
    seconds: Counter[int] = Counter()
    for record in records:
        share = record.output_tokens / max(1, len(record.chunk_times))
        for moment in record.chunk_times:
            seconds[int(moment)] += share  # type: ignore[assignment]
    return float(max(seconds.values(), default=0.0))


def _plain(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
