"""Answers, counted for Prometheus: how many of each path, method and kind of status, and how long they took.

    POST /v1/completions ──► CountAnswers ──► the app ──► a whole answer, or the last chunk of a stream
                                  └────────── http_requests_total, http_request_duration_seconds

The names are those of `prometheus-fastapi-instrumentator`, which vLLM uses; so are its words: a status is
"2xx", a path that no route knows is "none". Clients choose paths and methods, and so must not choose labels:
there are as many series as there are routes. What only looks at the server (`/metrics`, `/health`) is left
out.

Read next: `metrics.py`.
"""

from __future__ import annotations

from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEFT_OUT = ("/metrics", "/health", "/load", "/ping", "/version")
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LEFT = 499
"""The status of an answer that never began: its client has left."""


class HttpMetrics:
    """The counters, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ["method", "status", "handler"],
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Latency by handler, to the end of the answer.",
            ["method", "handler"],
            registry=registry,
            buckets=SECONDS,
        )

    def note(self, method: str, handler: str, status: int, seconds: float) -> None:
        """One answer is over."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, f"{status // 100}xx", handler).inc()
        self._seconds.labels(method, handler).observe(seconds)


class CountAnswers:
    """The middleware around the whole app."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = LEFT, perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            handler = getattr(scope.get("route"), "path", "none")  # the router has left it here
            if handler not in LEFT_OUT:
                self.metrics.note(scope["method"], handler, status, perf_counter() - start)
