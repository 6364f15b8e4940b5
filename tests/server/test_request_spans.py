"""Spans of requests: a collector gets them, decodes them, and finds the client's own trace above them."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from minivllm.sampling_params import SamplingParams
from minivllm.server import request_spans
from minivllm.server.request_spans import SPAN, RequestSpans, checked_endpoint
from minivllm.trace.engine_counts import EngineCounts
from tests import patience
from tests.engine.fakes import make_engine
from tests.server.conftest import RunningServer

NUM_LOST = 600
"""More spans than one message has."""
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes OTLP over HTTP, in this process."""

    def __init__(self):
        self.spans, self.resources = [], []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                assert self.headers["Content-Type"] == "application/x-protobuf"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append(values(resource.resource.attributes))
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        patience.join(self.thread)
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch):
    for name in ("EXPORT_SECONDS", "SHUTDOWN_SECONDS"):  # it is there, and may take its time
        monkeypatch.setattr(request_spans, name, patience.SECONDS)
    found = Collector()
    yield found
    found.close()


def values(attributes):
    """Attributes of OTLP as Python has them."""
    found = {}
    for item in attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        found[item.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


def test_a_request_over_http_becomes_a_span_below_the_clients_own(collector):
    spans = RequestSpans(collector.url, "tiny")
    server = RunningServer(spans=spans)
    try:
        body = {"prompt": ["Once upon", "a time"], "max_tokens": 5, "n": 2, "temperature": 0.5, "top_p": 0.9}
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        url = f"{server.url}/v1/completions"
        answer = httpx.post(url, json=body, headers=headers, timeout=patience.SECONDS).json()
        httpx.post(url, json={"prompt": "a", "max_tokens": 1}, timeout=patience.SECONDS)
    finally:
        server.stop()
    metrics = server.model.metrics.counts
    spans.shutdown()
    assert collector.resources[0]["service.name"] == "minivllm"
    assert [span.name for span in collector.spans] == [SPAN] * 3
    *two, alone = sorted(collector.spans, key=lambda span: span.trace_id.hex() != TRACE)
    assert not alone.parent_span_id and alone.trace_id.hex() != TRACE
    told = [values(span.attributes) for span in two]
    assert {span.parent_span_id.hex() for span in two} == {PARENT}
    assert {item["gen_ai.request.id"] for item in told} == {f"{answer['id']}-0", f"{answer['id']}-1"}
    for item in told:
        assert item["gen_ai.request.temperature"] == 0.5 and item["gen_ai.request.top_p"] == 0.9
        assert item["gen_ai.request.max_tokens"] == 5 and item["gen_ai.request.n"] == 2
        assert item["gen_ai.response.model"] == "tiny"
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(item[f"gen_ai.usage.{name}"] for item in told) == answer["usage"][name]
    every = [values(span.attributes) for span in collector.spans]
    for name, metric in (
        ("e2e", "e2e_request_latency_seconds"),
        ("time_in_queue", "request_queue_time_seconds"),
        ("time_to_first_token", "time_to_first_token_seconds"),
        ("time_in_model_prefill", "request_prefill_time_seconds"),
        ("time_in_model_decode", "request_decode_time_seconds"),
        ("time_in_model_inference", "request_inference_time_seconds"),
    ):
        total = sum(item[f"gen_ai.latency.{name}"] for item in every)
        assert total == pytest.approx(metrics.tallies[metric].sum), "what the metrics say"
    for span, item in zip(collector.spans, every, strict=True):
        seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert seconds == pytest.approx(item["gen_ai.latency.e2e"], abs=1e-6)
        assert abs(time.time_ns() - span.end_time_unix_nano) < 1e9 * patience.SECONDS


def test_a_request_that_is_aborted_while_it_waits_has_a_span_without_what_was_not_measured(collector):
    spans = RequestSpans(f"{collector.url}/v1/traces")
    engine = make_engine(sinks=[EngineCounts(spans.note)])
    engine.add_request("x", [1, 2], SamplingParams(max_tokens=3))
    engine.abort("x")
    spans.shutdown()
    (span,) = collector.spans
    told = values(span.attributes)
    assert told["gen_ai.response.finish_reasons"] == ["abort"] and "gen_ai.latency.e2e" in told
    assert "gen_ai.latency.time_to_first_token" not in told and "gen_ai.request.top_p" not in told


def test_a_collector_that_is_away_costs_no_request_and_holds_up_no_shutdown_for_long(monkeypatch):
    monkeypatch.setattr(request_spans, "SHUTDOWN_SECONDS", 0.5)
    spans = RequestSpans("http://127.0.0.1:9")  # nothing listens there
    counts = EngineCounts(spans.note)
    engine = make_engine(sinks=[counts])
    for number in range(NUM_LOST):
        spans.announce([str(number)], SamplingParams(), {})
        engine.add_request(str(number), [1, 2], SamplingParams(max_tokens=1))
        engine.step()
    assert counts.finished["length"] == NUM_LOST
    spans.shutdown()


def test_clients_who_leave_before_they_are_queued_are_forgotten(monkeypatch):
    monkeypatch.setattr(request_spans, "MOST_ANNOUNCED", 50)
    spans = RequestSpans("http://127.0.0.1:9")
    for number in range(60):
        spans.announce([str(number)], SamplingParams(), {"traceparent": "nonsense \xff"})
    assert len(spans._announced) == 50 and "0" not in spans._announced
    spans.shutdown()


def test_a_span_that_cannot_be_made_is_logged_once_and_costs_nothing(caplog):
    spans = RequestSpans("http://127.0.0.1:9")
    spans._tracer = None
    engine = make_engine(sinks=[counts := EngineCounts(spans.note)])
    for name in "ab":
        engine.add_request(name, [1], SamplingParams(max_tokens=1))
        engine.step()
    assert counts.finished["length"] == 2
    # Exporters of other tests may still complain of what is away.
    assert [record.name.split(".")[0] for record in caplog.records].count("minivllm") == 1
    spans.shutdown()


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:4318", "grpc://x:1", "http://", "http://x:99999", "http://[x"]
)
def test_an_endpoint_that_is_no_address_is_refused_by_name(endpoint):
    with pytest.raises(ValueError, match="otlp_traces_endpoint must be an address") as refusal:
        checked_endpoint(endpoint)
    assert repr(endpoint) in str(refusal.value)


def test_the_path_may_be_left_out():
    assert checked_endpoint("http://x:1") == checked_endpoint("http://x:1/") == "http://x:1/v1/traces"
    assert checked_endpoint("https://x/own/path") == "https://x/own/path"


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(ValueError, match=r"pip install 'minivllm\[otel\]'"):
        checked_endpoint("http://x:1")
