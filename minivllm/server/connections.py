"""Connections that do not stay open for nothing, and a server that ends in order.

uvicorn waits for ever for the first request of a connection. Whoever opens many and sends a byte now and then
would hold them all; here a connection has `HEADER_SECONDS` until its request line and headers are complete.

Read next: `serve.py`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 30.0


class PromptProtocol(H11Protocol):
    """HTTP/1.1 with a limit on the time that a request's head may take."""

    header_seconds = HEADER_SECONDS
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._alarm and self.cycle is not None:
            self._alarm.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._alarm:
            self._alarm.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._alarm:
            self._alarm.cancel()
        self._alarm = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class OrderlyServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C it finishes and returns; uvicorn would let the signal kill the process then."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
