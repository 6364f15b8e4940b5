"""What a comparison of served and offline says: medians over its rounds, as tables and as JSON.

Read next: `against_offline.py`, which measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from minivllm.lab.bench.report import Header, Section
from minivllm.lab.bench.timing import percentile
from minivllm.lab.subjects.workload import BenchRequest


@dataclass(frozen=True)
class Side:
    """One pass of one side. Seconds; `ttfts` and `tpots` one for each request."""

    seconds: float
    cpu_seconds: float
    ttfts: list[float]
    tpots: list[float]
    client_cpu_seconds: float = 0.0
    tokens_per_chunk: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """One number of streams: medians over the rounds."""

    streams: int
    num_output_tokens: int
    identical: int
    """Requests whose token ids are those of the engine alone, in the pass that looked."""
    offline_tokens_per_second: float
    served_tokens_per_second: float
    ratio: float
    """Served over offline, the median of the rounds' own ratios."""
    offline_cpu_us: float
    served_cpu_us: float
    serving_cpu_us: float
    """CPU microseconds per output token: the engine alone, the server's process, and their difference."""
    client_cpu_us: float
    offline_ttft_ms: float
    served_ttft_ms: float
    offline_tpot_ms: float
    served_tpot_ms: float
    tokens_per_chunk: float
    server_mib: float
    """RAM of the server's process after its rounds."""


@dataclass(frozen=True)
class AgainstOffline:
    """The result."""

    header: Header
    comparisons: tuple[Comparison, ...]

    def sections(self) -> list[Section]:
        first = self.comparisons[0]
        rows, costs = [], []
        for one in self.comparisons:
            rows.append(
                (
                    f"{one.streams:,}",
                    f"{one.offline_tokens_per_second:,.0f}",
                    f"{one.served_tokens_per_second:,.0f}",
                    f"{one.ratio:.3f}",
                    f"{one.served_ttft_ms - one.offline_ttft_ms:+,.2f} ms",
                    f"{one.served_tpot_ms - one.offline_tpot_ms:+,.3f} ms",
                    f"{one.identical} of {one.streams}",
                )
            )
            costs.append(
                (
                    f"{one.streams:,}",
                    f"{one.offline_cpu_us:,.0f} µs",
                    f"{one.served_cpu_us:,.0f} µs",
                    f"{one.serving_cpu_us:,.1f} µs",
                    f"{one.serving_cpu_us / first.serving_cpu_us:.2f}" if first.serving_cpu_us > 0 else "–",
                    f"{one.client_cpu_us:,.1f} µs",
                    f"{one.tokens_per_chunk:.2f}",
                    f"{one.server_mib:,.0f} MiB",
                )
            )
        return [
            Section(
                "Served against the engine alone",
                ("streams", "offline tok/s", "served tok/s", "ratio", "TTFT", "TPOT", "same tokens"),
                rows,
                "TTFT and TPOT: what serving adds to the median. Warm-up is not in it.",
            ),
            Section(
                "CPU time per output token",
                ("streams", "engine alone", "server", "serving", "× first", "client", "tok/chunk", "RAM"),
                costs,
                "serving: the server's process less the engine alone.",
            ),
        ]


def summary(
    work: Sequence[BenchRequest], offline: list[Side], served: list[Side], identical: int, memory: int
) -> Comparison:
    tokens = sum(request.num_output_tokens for request in work)

    def middle(sides: list[Side], what: Callable[[Side], float]) -> float:
        return median(what(side) for side in sides)

    def cpu(side: Side) -> float:
        return side.cpu_seconds / tokens * 1e6

    def ttft(side: Side) -> float:
        return percentile(side.ttfts, 50) * 1e3

    def tpot(side: Side) -> float:
        return percentile(side.tpots, 50) * 1e3

    pairs = list(zip(offline, served, strict=True))
    return Comparison(
        streams=len(work),
        num_output_tokens=tokens,
        identical=identical,
        offline_tokens_per_second=middle(offline, lambda side: tokens / side.seconds),
        served_tokens_per_second=middle(served, lambda side: tokens / side.seconds),
        ratio=median(alone.seconds / side.seconds for alone, side in pairs),
        offline_cpu_us=middle(offline, cpu),
        served_cpu_us=middle(served, cpu),
        serving_cpu_us=median(cpu(side) - cpu(alone) for alone, side in pairs),
        client_cpu_us=middle(served, lambda side: side.client_cpu_seconds / tokens * 1e6),
        offline_ttft_ms=middle(offline, ttft),
        served_ttft_ms=middle(served, ttft),
        offline_tpot_ms=middle(offline, tpot),
        served_tpot_ms=middle(served, tpot),
        tokens_per_chunk=middle(served, lambda side: side.tokens_per_chunk),
        server_mib=memory / 2**20,
    )
