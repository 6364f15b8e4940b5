"""`/metrics`: what an engine does and has done, for Prometheus, under vLLM's names.

What has happened is counted from events (`minivllm/trace/engine_counts.py`); what is now (requests in the
batch, blocks in use) is asked of the engine's books when Prometheus asks (`engine_report.py`). Where there
are several engines, the label `engine` tells them apart; one that is being replaced is left out meanwhile.

    vllm:…        the engine                     python_…, process_…     the process
    http_…        the answers (`http_metrics.py`)

Source: vLLM's `loggers.py`. Read next: `minivllm/trace/engine_counts.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from minivllm.server.engine_report import EngineReport, report_of
from minivllm.server.http_metrics import HttpMetrics
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.tallies import BUCKETS

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


class MetricsCollector:
    """The metrics of one engine or several, made when they are asked for, beside the process's and HTTP's.

    Args:
        reports: asks the engines; by their index among the replicas.

    Attributes:
        rejections: requests that were sent away before any engine saw them, by reason; told as engine 0's.
        http: counts answers.
    """

    def __init__(self, reports: Callable[[], Mapping[int, EngineReport]], model_name: str) -> None:
        self.rejections: Counter[str] = Counter({TOO_MANY_WAIT: 0})
        self._reports = reports
        self._model_name = model_name
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (GCCollector, PlatformCollector, ProcessCollector):
            collector(registry=self._registry)
        self.http = HttpMetrics(self._registry)
        self._registry.register(self)

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        found = sorted(self._reports().items())
        engines = [(self._labels(index), report) for index, report in found]
        yield from self._gauges(engines)
        drafting = [(labels, report) for labels, report in engines if report.makes_drafts]
        for name, words in COUNTERS.items():
            counter = CounterMetricFamily(f"vllm:{name}", words, labels=LABELS)
            for labels, report in drafting if _is_about_drafts(name) else engines:
                counter.add_metric(labels, report.counters.get(name, 0))
            if drafting or not _is_about_drafts(name):
                yield counter
        for name, (label, words) in LABELLED_COUNTERS.items():
            counter = CounterMetricFamily(f"vllm:{name}", words, labels=[*LABELS, label])
            for labels, report in drafting if _is_about_drafts(name) else engines:
                for value, count in sorted(report.labelled.get(name, {}).items()):
                    counter.add_metric([*labels, value], count)
            if name == "admission_rejections":
                for value, count in sorted(self.rejections.items()):
                    counter.add_metric([*self._labels(0), value], count)
            if drafting or not _is_about_drafts(name):
                yield counter
        for name, words in TALLIES.items():
            family = HistogramMetricFamily(f"vllm:{name}", words, labels=LABELS)
            for labels, report in engines:
                counts, total = report.tallies[name]
                family.add_metric(labels, _buckets(BUCKETS[name], counts), total)
            yield family

    def _labels(self, index: int) -> list[str]:
        return [self._model_name, str(index)]

    def _gauges(self, engines: Sequence[tuple[list[str], EngineReport]]) -> Iterator[Metric]:
        for name, words in GAUGES.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", words, labels=LABELS)
            for labels, report in engines:
                gauge.add_metric(labels, report.now[name])
            yield gauge
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Here all wait for scheduling capacity.",
            labels=[*LABELS, "reason"],
        )
        for labels, report in engines:
            by_reason.add_metric([*labels, "capacity"], report.now["num_requests_waiting"])
        yield by_reason
        configured = [(labels, report.cache_config) for labels, report in engines if report.cache_config]
        if configured:
            info = GaugeMetricFamily(
                "vllm:cache_config_info",
                "Information of the LLMEngine CacheConfig",
                labels=["engine", *configured[0][1]],
            )
            for labels, config in configured:
                info.add_metric([labels[1], *config.values()], 1)
            yield info


class EngineCollector(MetricsCollector):
    """The metrics of one engine in this process.

    Attributes:
        counts: a sink of the engine's events.
    """

    def __init__(self, counts: EngineCounts, engine: Engine, model_name: str) -> None:
        self.counts = counts
        super().__init__(lambda: {0: report_of(counts, engine)}, model_name)


def _is_about_drafts(name: str) -> bool:
    """Numbers that an engine which makes no drafts leaves out, as in vLLM."""
    return name.startswith("spec_decode_")


def _buckets(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[str, int]]:
    total, buckets = 0, []
    for edge, count in zip([*map(float, edges), float("inf")], counts, strict=True):
        total += count
        buckets.append(("+Inf" if edge == float("inf") else str(edge), total))
    return buckets
