"""What makes a run something else than it is called: a sentence each, printed and written with the run.

    failures            percentiles are those of the lucky ones
    late sends          the load was not the one that was asked for
    a cap on a rate     requests waited in the client: no open loop
    a busy client       tokens were seen later than they came
    short answers       less work than was asked for
    bunches             chunks with several tokens: ITL is not between tokens
    no counts           tokens are chunks

Read next: `report.py`.
"""

from __future__ import annotations

from dataclasses import replace

from minivllm.lab.bench.serve.results import ServeResult

MOST_LATE_MS = 25.0
"""Of the 99th percentile, by default; `--max-lag`."""
MOST_CORES = 0.85
"""Of the client, whose event loop has one."""
MOST_TOKENS_PER_CHUNK = 1.02
LEAST_KEPT_UP = 0.9


def with_doubts(result: ServeResult, max_lag_ms: float = MOST_LATE_MS) -> ServeResult:
    """The same result with its doubts.

    Args:
        max_lag_ms: how late sends, and the client's event loop, may be at the 99th percentile.
    """
    found = [*_about_requests(result), *_about_client(result, max_lag_ms)]
    return replace(result, doubts=tuple(found))


def _about_requests(result: ServeResult) -> list[str]:
    told = []
    total = result.completed + result.failed
    if result.failed:
        reason = next(iter(result.errors))
        told.append(f"{result.failed} of {total} requests failed and are in no latency; most often: {reason}")
    if result.num_short:
        told.append(f"{result.num_short} answers have fewer tokens than were asked for")
    if not result.is_counted and result.completed:
        told.append("the server did not count tokens: output tokens are chunks, prompt tokens are unknown")
    if result.tokens_per_chunk > MOST_TOKENS_PER_CHUNK:
        told.append(
            f"a chunk has {result.tokens_per_chunk:.2f} tokens on average: ITL is between chunks, not tokens"
        )
    return told


def _about_client(result: ServeResult, max_lag_ms: float) -> list[str]:
    told, client = [], result.client
    if result.mode == "capped":
        told.append(
            f"not an open loop: at most {result.max_concurrency} requests were out at once, and others "
            f"waited in the client, up to {client.late.p99:,.0f} ms at p99, which is in no latency"
        )
    elif result.mode == "open" and client.late.p99 > max_lag_ms:
        told.append(
            f"requests were sent late, {client.late.p99:,.0f} ms at p99: the client did not keep up, and "
            "this is not the load that was asked for"
        )
    if client.loop_lag_p99_ms > max_lag_ms:
        told.append(
            f"the client's event loop woke up {client.loop_lag_p99_ms:,.0f} ms late at p99: tokens were seen "
            "later than they came"
        )
    if client.cores > MOST_CORES:
        told.append(
            f"the client used {client.cores:.2f} cores: it may be what was measured, and not the server"
        )
    return told


def kept_up(result: ServeResult) -> bool:
    """Did the server answer as fast as requests came? If not, latencies grow with the length of the run."""
    offered = result.offered_rate
    return offered is None or result.mode != "open" or result.request_throughput >= LEAST_KEPT_UP * offered
