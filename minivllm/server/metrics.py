"""`/metrics`: what an engine does and has done, for Prometheus, under vLLM's names.

What has happened is counted from events (`engine_counts.py`); what is now (requests in the batch, blocks in
use) is asked of the engine's books when Prometheus asks.

Source: vLLM's `loggers.py`. Read next: `engine_counts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from minivllm.engine.engine import Engine
from minivllm.server.engine_counts import EngineCounts, Tally

LABELS = ["model_name", "engine"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS = {
    "prompt_tokens": "Number of prefill tokens processed.",
    "generation_tokens": "Number of generation tokens processed.",
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
}
TALLIES = {
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "request_time_per_output_token_seconds": "Histogram of time_per_output_token_seconds per request.",
    "e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "request_queue_time_seconds": "Histogram of time spent in WAITING phase for request.",
    "request_inference_time_seconds": "Histogram of time spent in RUNNING phase for request.",
    "request_prefill_time_seconds": "Histogram of time spent in PREFILL phase for request.",
    "request_decode_time_seconds": "Histogram of time spent in DECODE phase for request.",
    "iteration_tokens_total": "Histogram of number of tokens per engine_step.",
    "request_prompt_tokens": "Number of prefill tokens processed.",
    "request_generation_tokens": "Number of generation tokens processed.",
    "request_params_n": "Histogram of the n request parameter.",
    "request_params_max_tokens": "Histogram of the max_tokens request parameter.",
    "request_num_preemptions": "Histogram of the number of times a request was preempted.",
}


class EngineCollector:
    """One engine's metrics, made when they are asked for.

    Args:
        counts: a sink of the engine's events.
        engine: its index among the replicas.
    """

    def __init__(self, counts: EngineCounts, engine: Engine, model_name: str, index: int = 0) -> None:
        self._counts = counts
        self._engine = engine
        self._labels = [model_name, str(index)]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        for name, words in COUNTERS.items():
            counter = CounterMetricFamily(f"vllm:{name}", words, labels=LABELS)
            counter.add_metric(self._labels, self._counts.counters[name])
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success",
            "Count of processed requests, by reason.",
            labels=[*LABELS, "finished_reason"],
        )
        for reason, count in sorted(self._counts.finished.items()):
            success.add_metric([*self._labels, reason], count)
        yield success
        for name, words in TALLIES.items():
            yield self._histogram(name, words, self._counts.tallies[name])

    def _gauges(self) -> Iterator[Metric]:
        state, ref_counts = self._engine.core.state, self._engine.cache.pool.ref_counts
        now = {
            "num_requests_running": (
                "Number of requests in model execution batches.",
                float(len(state.running)),
            ),
            "num_requests_waiting": ("Number of requests waiting to be processed.", len(state.waiting)),
            "kv_cache_usage_perc": (
                "KV-cache usage. 1 means 100 percent usage.",
                sum(count > 0 for count in ref_counts) / max(1, len(ref_counts)),
            ),
        }
        for name, (words, value) in now.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", words, labels=LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        if header := self._counts.header:
            config = {key: str(value) for key, value in sorted(header.config.items())}
            config |= {"block_size": str(header.block_size), "num_gpu_blocks": str(header.num_blocks)}
            info = GaugeMetricFamily(
                "vllm:cache_config_info",
                "Information of the LLMEngine CacheConfig",
                labels=["engine", *config],
            )
            info.add_metric([self._labels[1], *config.values()], 1)
            yield info

    def _histogram(self, name: str, words: str, tally: Tally) -> Metric:
        total, buckets = 0, []
        for edge, count in zip([*map(float, tally.edges), float("inf")], tuple(tally.counts), strict=True):
            total += count
            buckets.append(("+Inf" if edge == float("inf") else str(edge), total))
        family = HistogramMetricFamily(f"vllm:{name}", words, labels=LABELS)
        family.add_metric(self._labels, buckets, tally.sum)
        return family
