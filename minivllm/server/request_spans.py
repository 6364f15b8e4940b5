"""Traces for OpenTelemetry: a span for each request, with what its time went to (`--otlp-traces-endpoint`).

    engine ── events ──► EngineCounts ── a request is over ──► RequestSpans.note ──► a queue
    client ── traceparent ──► announce ──────────────────────────┘                    │ a thread of its own
                                                                  the collector ◄── OTLP over HTTP

The times are those that the metrics count: one place counts both. The engine's thread only puts a finished
span into a queue; a collector that is slow or away costs spans, which are dropped and logged, and no request.

Source: vLLM's `tracing/utils.py` for the names; W3C "Trace Context" for the parent. Read next:
`minivllm/trace/engine_counts.py`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from minivllm.sampling_params import SamplingParams
from minivllm.trace.request_times import RequestTimes

if TYPE_CHECKING:
    from opentelemetry.context import Context

logger = logging.getLogger(__name__)

SPAN = "llm_request"
SCOPE = "minivllm.llm_engine"
MOST_ANNOUNCED = 10_000
"""Requests of which the caller's side is remembered; a client may leave before its request is queued."""
EXPORT_SECONDS = 5.0
"""That a collector may take for an answer."""
SHUTDOWN_SECONDS = 5.0
PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Announced(NamedTuple):
    """What the events of a request do not tell."""

    params: SamplingParams
    parent: Context


class RequestSpans:
    """Makes spans, and sends them.

    Args:
        endpoint: of a collector, such as `http://localhost:4318/v1/traces`; this path, if it has none.
        model_name: what clients call the model.

    Raises:
        ValueError: the endpoint is no address of HTTP, or the packages are not installed.
    """

    def __init__(self, endpoint: str, model_name: str = "") -> None:
        url = checked_endpoint(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "minivllm")
        resource = Resource.create({"service.name": name})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SCOPE)
        self._propagator = TraceContextTextMapPropagator()
        self._announced: OrderedDict[str, Announced] = OrderedDict()
        self._has_failed = False
        self.model_name = model_name

    def announce(self, names: list[str], params: SamplingParams, headers: Mapping[str, str]) -> None:
        """These requests are about to be queued, for a client who sent these headers."""
        announced = Announced(params, self._propagator.extract(headers))
        for name in names:
            self._announced[name] = announced
        while len(self._announced) > MOST_ANNOUNCED:
            self._announced.popitem(last=False)

    def note(self, name: str, request: RequestTimes) -> None:
        """A request is over: its span begins and ends now. Called in the engine's thread; never raises."""
        try:
            self._note(name, request)
        except Exception:
            if not self._has_failed:
                logger.exception("no span could be made of a request; more such failures are not logged")
            self._has_failed = True

    def shutdown(self) -> None:
        """Send what is in the queue, or give up after `SHUTDOWN_SECONDS`: what is left is lost."""
        ending = threading.Thread(target=self._provider.shutdown, name="sends the last spans", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_SECONDS)

    def _note(self, name: str, request: RequestTimes) -> None:
        from opentelemetry.trace import SpanKind

        announced = self._announced.pop(name, None)
        end = time.time_ns()
        seconds = max(0.0, request.finished - request.arrival)
        span = self._tracer.start_span(
            SPAN,
            context=announced.parent if announced else None,
            kind=SpanKind.SERVER,
            start_time=end - round(seconds * 1e9),
            attributes=attributes(name, self.model_name, request, announced.params if announced else None),
        )
        span.end(end)


def attributes(
    name: str, model_name: str, request: RequestTimes, params: SamplingParams | None
) -> dict[str, str | int | float | tuple[str, ...]]:
    """What a span says, under vLLM's names. Latencies that were not measured are left out."""
    found: dict[str, str | int | float | tuple[str, ...]] = {
        "gen_ai.request.id": name,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.n": request.num_outputs,
        "gen_ai.usage.prompt_tokens": request.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": request.num_generated,
        "gen_ai.response.finish_reasons": (request.reason or "abort",),
        "gen_ai.latency.e2e": max(0.0, request.finished - request.arrival),
    }
    if model_name:
        found["gen_ai.response.model"] = model_name
    if params is not None:
        found |= {"gen_ai.request.top_p": params.top_p, "gen_ai.request.temperature": params.temperature}
    if request.scheduled is not None:
        found["gen_ai.latency.time_in_queue"] = request.scheduled - request.arrival
        if request.first_token is not None:
            found |= {
                "gen_ai.latency.time_to_first_token": request.first_token - request.arrival,
                "gen_ai.latency.time_in_model_prefill": request.first_token - request.scheduled,
                "gen_ai.latency.time_in_model_decode": request.last_token - request.first_token,
                "gen_ai.latency.time_in_model_inference": request.last_token - request.scheduled,
            }
    return found


def checked_endpoint(endpoint: str) -> str:
    """The whole address. Raises `ValueError` as `RequestSpans` does."""
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError(
            "otlp_traces_endpoint must be an address such as http://localhost:4318/v1/traces, got "
            f"{endpoint!r}"
        )
    for package in PACKAGES:
        if not _is_installed(package):
            raise ValueError(f"{package} is not installed: pip install 'minivllm[otel]'")
    return parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else endpoint


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
