"""`/metrics`: what an engine does and has done, for Prometheus, under vLLM's names.

What has happened is counted from events (`minivllm/trace/engine_counts.py`); what is now (requests in the
batch, blocks in use) is asked of the engine's books when Prometheus asks.

    vllm:…        the engine                     python_…, process_…     the process
    http_…        the answers (`http_metrics.py`)

Source: vLLM's `loggers.py`. Read next: `minivllm/trace/engine_counts.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from minivllm.engine.engine import Engine
from minivllm.server.http_metrics import HttpMetrics
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.tallies import Tally

LABELS = ["model_name", "engine"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TOO_MANY_WAIT = "max_num_queued_reqs"
"""Why a request was sent away, in vLLM's word."""

GAUGES = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "num_requests_swapped": "Number of requests swapped to CPU.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    "cpu_cache_usage_perc": "CPU KV-cache usage. 1 means 100 percent usage.",
}
COUNTERS = {
    "prompt_tokens": "Number of prefill tokens processed.",
    "prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "generation_tokens": "Number of generation tokens processed.",
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "spec_decode_num_drafts": "Number of spec decoding drafts.",
    "spec_decode_num_draft_tokens": "Number of draft tokens.",
    "spec_decode_num_accepted_tokens": "Number of accepted tokens.",
    "estimated_flops_per_gpu": "Estimated number of floating point operations per GPU (for Model Flops "
    "Utilization calculations).",
    "estimated_read_bytes_per_gpu": "Estimated number of bytes read from memory per GPU (for Model Flops "
    "Utilization calculations).",
    "estimated_write_bytes_per_gpu": "Estimated number of bytes written to memory per GPU (for Model Flops "
    "Utilization calculations).",
}
LABELLED_COUNTERS = {
    "request_success": ("finished_reason", "Count of processed requests, by reason."),
    "prompt_tokens_by_source": ("source", "Number of prompt tokens by source."),
    "prompt_tokens_cached_by_source": (
        "source",
        "Prefix-cache hit tokens by the cache tier that supplied them.",
    ),
    "spec_decode_num_accepted_tokens_per_pos": ("position", "Accepted tokens per draft position."),
    "admission_rejections": (
        "reason",
        "Number of admission attempts rejected by a queue limit, by reason.",
    ),
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
    "request_max_num_generation_tokens": "Histogram of maximum number of requested generation tokens.",
    "request_prefill_kv_computed_tokens": "Histogram of new KV tokens computed during prefill (excluding "
    "cached tokens).",
    "request_params_n": "Histogram of the n request parameter.",
    "request_params_max_tokens": "Histogram of the max_tokens request parameter.",
    "request_num_preemptions": "Histogram of the number of times a request was preempted.",
}


class EngineCollector:
    """One engine's metrics, made when they are asked for, beside those of the process and of HTTP.

    Args:
        counts: a sink of the engine's events.
        engine: its index among the replicas.

    Attributes:
        rejections: requests that were sent away before the engine saw them, by reason.
        http: counts answers.
    """

    def __init__(self, counts: EngineCounts, engine: Engine, model_name: str, index: int = 0) -> None:
        self.rejections: Counter[str] = Counter({TOO_MANY_WAIT: 0})
        self._counts = counts
        self._engine = engine
        self._labels = [model_name, str(index)]
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (GCCollector, PlatformCollector, ProcessCollector):
            collector(registry=self._registry)
        self.http = HttpMetrics(self._registry)
        self._registry.register(self)

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        for name, words in COUNTERS.items():
            if self._is_left_out(name):
                continue
            counter = CounterMetricFamily(f"vllm:{name}", words, labels=LABELS)
            counter.add_metric(self._labels, self._counts.counters[name])
            yield counter
        labelled = self._counts.labelled | {"admission_rejections": self.rejections}
        for name, (label, words) in LABELLED_COUNTERS.items():
            if self._is_left_out(name):
                continue
            counter = CounterMetricFamily(f"vllm:{name}", words, labels=[*LABELS, label])
            for value, count in sorted(dict(labelled[name]).items()):
                counter.add_metric([*self._labels, value], count)
            yield counter
        for name, words in TALLIES.items():
            yield self._histogram(name, words, self._counts.tallies[name])

    def _is_left_out(self, name: str) -> bool:
        """Numbers about drafts of an engine that makes none, as in vLLM."""
        return name.startswith("spec_decode_") and self._engine.speculation is None

    def _gauges(self) -> Iterator[Metric]:
        now = engine_now(self._engine)
        for name, words in GAUGES.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", words, labels=LABELS)
            gauge.add_metric(self._labels, now[name])
            yield gauge
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Here all wait for scheduling capacity.",
            labels=[*LABELS, "reason"],
        )
        by_reason.add_metric([*self._labels, "capacity"], now["num_requests_waiting"])
        yield by_reason
        if header := self._counts.header:
            config = {key: str(value) for key, value in sorted(header.config.items())}
            config |= {"block_size": str(header.block_size), "num_gpu_blocks": str(header.num_blocks)}
            config |= {
                "num_cpu_blocks": str(header.num_host_blocks),
                "enable_prefix_caching": str(header.prefix_cache is not None),
            }
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


def engine_now(engine: Engine) -> Mapping[str, float]:
    """What is now, by the names of `GAUGES`.

    It is asked in another thread than the engine's, so what may change meanwhile is copied first.
    """
    state, cache = engine.core.state, engine.cache
    swap_space = getattr(cache, "swap_space", None)
    swapped = tuple(swap_space.tables) if swap_space else ()
    sequences = (state.sequences.get(seq_id) for seq_id in swapped)
    return {
        "num_requests_running": len(state.running),
        "num_requests_waiting": len(state.waiting),
        "num_requests_swapped": len({sequence.request_id for sequence in sequences if sequence}),
        "kv_cache_usage_perc": _share_in_use(cache.pool.ref_counts),
        "cpu_cache_usage_perc": _share_in_use(swap_space.pool.ref_counts) if swap_space else 0.0,
    }


def _share_in_use(ref_counts: Iterable[int]) -> float:
    counts = tuple(ref_counts)
    return sum(count > 0 for count in counts) / max(1, len(counts))
