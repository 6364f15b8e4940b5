"""The panels by which a server is watched: the metrics that they show, and the PromQL that asks for them.

One list, two pictures of it. Grafana draws what a running server counts (`grafana.py` writes its dashboard
file); the page of metrics draws the same panels from a trace, so that a reader sees what a query means.

    rate(c[5m])                     how much a counter grows in a second
    rate(h_sum) / rate(h_count)     the mean of a histogram
    histogram_quantile(0.95, …)     the value that 95 % of a histogram's values do not exceed

Source: the dashboard that vLLM ships (`examples/observability/prometheus_grafana/grafana.json`), its titles
and its queries. Read next: `grafana.py`; `views/metrics.py`.
"""

from __future__ import annotations

from typing import NamedTuple

MODEL = '{model_name="$model_name"}'
WINDOW = "[$__rate_interval]"
QUANTILES = (0.99, 0.95, 0.9, 0.5)


class Query(NamedTuple):
    """One line of a panel."""

    expr: str
    """PromQL with Grafana's variables `$model_name` and `$__rate_interval`."""
    legend: str
    """Names of labels in double braces are replaced by their values."""


class Panel(NamedTuple):
    """One panel. `metric` is the first of those that it shows, with its prefix."""

    key: str
    title: str
    words: str
    unit: str
    """Grafana's name of it: "s", "percentunit", "none", …"""
    metric: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    """Or "heatmap"."""


def total(name: str, by: str = "") -> str:
    """A gauge, over all engines of the model."""
    return f"sum{_by(by)}(vllm:{name}{MODEL})"


def rate(name: str, by: str = "") -> str:
    """How much a counter grows in a second."""
    return f"sum{_by(by)}(rate(vllm:{name}{MODEL}{WINDOW}))"


def mean(name: str) -> str:
    """Of the values of a histogram."""
    return f"{rate(f'{name}_sum')} / {rate(f'{name}_count')}"


def quantile(share: float, name: str) -> str:
    """Of the values of a histogram."""
    return f"histogram_quantile({share:g}, {rate(f'{name}_bucket', 'le')})"


def increase(name: str, by: str) -> str:
    """How much a counter has grown in each interval, by label."""
    return f"sum{_by(by)}(increase(vllm:{name}{MODEL}{WINDOW}))"


def _by(label: str) -> str:
    return f" by ({label}) " if label else ""


def _latency(key: str, title: str, words: str, name: str) -> Panel:
    queries = [Query(quantile(share, name), f"P{100 * share:g}") for share in QUANTILES]
    return Panel(key, title, words, "s", f"vllm:{name}", (*queries, Query(mean(name), "Mean")))


def _lengths(key: str, title: str, words: str, name: str) -> Panel:
    query = Query(increase(f"{name}_bucket", "le"), "{{le}}")
    return Panel(key, title, words, "none", f"vllm:{name}", (query,), "heatmap")


def _lines(key: str, title: str, words: str, unit: str, *queries: tuple[str, str]) -> Panel:
    metric = queries[0][0].split("vllm:")[1].split("{")[0] if "vllm:" in queries[0][0] else "http"
    name = f"vllm:{metric}" if metric != "http" else "http_requests_total"
    return Panel(key, title, words, unit, name, tuple(Query(*query) for query in queries))


PANELS = (
    _latency(
        "end_to_end",
        "E2E Request Latency",
        "From a request's arrival until its last token.",
        "e2e_request_latency_seconds",
    ),
    _lines(
        "throughput",
        "Token Throughput",
        "Tokens per second: of prompts, when they are done, and of outputs.",
        "none",
        (rate("prompt_tokens_total"), "Prompt tokens/s"),
        (rate("generation_tokens_total"), "Generation tokens/s"),
    ),
    _latency(
        "inter_token",
        "Inter Token Latency",
        "From one token of a request to its next.",
        "inter_token_latency_seconds",
    ),
    _lines(
        "scheduler",
        "Scheduler State",
        "Requests in the batch, requests that wait, and those of them whose blocks are in the swap space.",
        "none",
        (total("num_requests_running"), "Running"),
        (total("num_requests_waiting"), "Waiting"),
        (total("num_requests_swapped"), "Swapped"),
    ),
    _latency(
        "ttft",
        "Time To First Token Latency",
        "From a request's arrival to its first token: the queue and the prefill.",
        "time_to_first_token_seconds",
    ),
    _lines(
        "cache",
        "Cache Utilization",
        "Blocks in use, of all that there are: of the KV cache, and of the swap space.",
        "percentunit",
        (f"avg(vllm:kv_cache_usage_perc{MODEL})", "KV cache"),
        (f"avg(vllm:cpu_cache_usage_perc{MODEL})", "Swap space"),
    ),
    _lengths(
        "prompt_lengths",
        "Request Prompt Length",
        "Prompts of finished requests by their length in tokens.",
        "request_prompt_tokens",
    ),
    _lengths(
        "generation_lengths",
        "Request Generation Length",
        "Finished requests by the tokens of their outputs together.",
        "request_generation_tokens",
    ),
    _lines(
        "finish_reasons",
        "Finish Reason",
        "Finished requests by the reason why they ended.",
        "none",
        (increase("request_success_total", "finished_reason"), "{{finished_reason}}"),
    ),
    _latency(
        "queue",
        "Queue Time",
        "From a request's arrival to the start of the first step that computes some of its tokens.",
        "request_queue_time_seconds",
    ),
    _lines(
        "phases",
        "Requests Prefill and Decode Time",
        "Mean seconds of a request from its first step to its first token, and from there to its last.",
        "s",
        (mean("request_prefill_time_seconds"), "Prefill"),
        (mean("request_decode_time_seconds"), "Decode"),
    ),
    _latency(
        "tpot",
        "Time Per Output Token",
        "Mean time between the tokens of a request, one value for each request.",
        "request_time_per_output_token_seconds",
    ),
    _lines(
        "preemptions",
        "Preemptions",
        "Requests per second that had to leave the batch for others.",
        "none",
        (rate("num_preemptions_total"), "Preemptions/s"),
    ),
    _lines(
        "prefix_cache",
        "Prefix Cache Hit Rate",
        "Of the tokens that were looked up, those whose keys and values the prefix cache had.",
        "percentunit",
        (f"{rate('prefix_cache_hits_total')} / {rate('prefix_cache_queries_total')}", "Hit rate"),
    ),
    _lines(
        "iterations",
        "Tokens Per Step",
        "Tokens that a step computes on average, and steps per second.",
        "none",
        (mean("iteration_tokens_total"), "Tokens per step"),
        (rate("iteration_tokens_total_count"), "Steps/s"),
    ),
    _lines(
        "prompt_sources",
        "Prompt Tokens by Source",
        "Where the keys and values of prompt tokens came from: computed, or found in the prefix cache.",
        "none",
        (rate("prompt_tokens_by_source_total", "source"), "{{source}}"),
    ),
    _lines(
        "max_generation",
        "Max Generation Tokens",
        "Tokens of a request's longest output, and its max_tokens, on average.",
        "none",
        (mean("request_max_num_generation_tokens"), "Longest output"),
        (mean("request_params_max_tokens"), "max_tokens"),
    ),
    _lines(
        "flops",
        "Estimated FLOP/s and Bytes/s",
        "What the model's arithmetic needs, from shapes alone: operations, and bytes read and written.",
        "none",
        (rate("estimated_flops_per_gpu_total"), "FLOP/s"),
        (rate("estimated_read_bytes_per_gpu_total"), "Bytes read/s"),
        (rate("estimated_write_bytes_per_gpu_total"), "Bytes written/s"),
    ),
    _lines(
        "http",
        "HTTP Answers",
        "Answers per second by route and status.",
        "none",
        (f"sum by (handler, status) (rate(http_requests_total{WINDOW}))", "{{handler}} {{status}}"),
    ),
)
"""In the order in which Grafana shows them, two in a row."""

BY_KEY = {panel.key: panel for panel in PANELS}
