"""`--metrics-port`: the metrics at an address of their own, beside the one that clients ask.

    clients ────► port 8000, in the main thread      a proxy may show it to the world
    Prometheus ─► port 9100, in a thread of its own  kept inside, and answered however busy the other is

Read next: `metrics.py`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from minivllm.server.connections import PromptProtocol
from minivllm.server.metrics import CONTENT_TYPE, MetricsCollector
from minivllm.server.served_model import ServedModel


@contextmanager
def metrics_served(model: ServedModel, listener: socket.socket | None) -> Iterator[None]:
    """Answer `/metrics` and `/health` on this socket as long as the block runs; None: nowhere."""
    if listener is None or model.metrics is None:
        yield
        return
    app = _make_app(model, model.metrics)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # Prometheus asks every few seconds
        server_header=False,
        http=PromptProtocol,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="minivllm-metrics", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def _make_app(model: ServedModel, collector: MetricsCollector) -> Starlette:
    def metrics(request: Request) -> Response:
        return Response(collector.text(), media_type=CONTENT_TYPE)

    def health(request: Request) -> Response:
        return Response(status_code=200 if model.llm.is_running else 503)

    return Starlette(routes=[Route("/metrics", metrics), Route("/health", health)])
