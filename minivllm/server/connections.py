"""Connections that do not stay open for nothing, and a server that ends in order.

uvicorn waits for ever for the first request of a connection. A client that opens many and sends a byte now
and then would hold them all; here a connection has `HEADER_SECONDS` until its request line and headers are
complete.

Read next: `serve.py`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from minivllm.server.responses import DIRECT

HEADER_SECONDS = 30.0
IDLE_LOOK_SECONDS = 0.05
"""Time between two looks at whether requests still run, while the server ends."""


class PromptProtocol(H11Protocol):
    """HTTP/1.1 with a limit on the time that a request's head may take."""

    header_seconds = HEADER_SECONDS
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = with_abort(self.app, transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._offer_direct()
        if self._alarm and self.cycle is not None:
            self._alarm.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._offer_direct()  # a request that was waiting behind the last one may have begun
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._alarm:
            self._alarm.cancel()
        super().connection_lost(exc)

    def _offer_direct(self) -> None:
        """Let the answer to this request go the short way (`responses.py`), if it will come in chunks."""
        cycle = self.cycle
        if cycle is None or cycle.scope["http_version"] != "1.1" or cycle.scope["method"] == "HEAD":
            return
        extensions: dict[str, Any] = cycle.scope.setdefault("extensions", {})
        extensions.setdefault(DIRECT, ChunkWriter(cycle))

    def _wait_for_head(self) -> None:
        if self._alarm:
            self._alarm.cancel()
        self._alarm = self.loop.call_later(self.header_seconds, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def with_abort(app: Any, transport: Any) -> Any:
    """The application, which is told how to end a connection whose client does not read any more."""

    async def told(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "abort": transport.abort}, receive, send)

    return told


class ChunkWriter:
    """Writes parts of a body in HTTP/1.1's chunked form, past h11, which keeps no account of such parts.

    To be called after the head of an answer without a length, and before its end (`responses.py`).
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._is_open = False  # the head is out, and the first part

    async def write(self, data: bytes) -> None:
        """Write, once the client has taken enough of what was written before."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        self._write(data)
        self._is_open = True

    def write_now(self, make: Callable[[], bytes]) -> bool:
        """Write what `make` returns and return True; if the client is behind, or gone, do nothing."""
        if not self._is_open or self._cycle.flow.write_paused or self._is_gone():
            return False
        self._write(make())
        return True

    def _write(self, data: bytes) -> None:
        if data and not self._is_gone():  # a part without bytes would be the end
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _is_gone(self) -> bool:
        return self._cycle.disconnected or self._cycle.transport.is_closing()


class OrderlyServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C it lets requests finish, or ends them with an answer, and returns.

    uvicorn would cut their connections, and let the signal kill the process.

    Args:
        end_requests: answers all that still run with an error; called after `patience` seconds, or at a
            second signal. A third one cuts connections.
        end_watching: ends streams that would never end; called as soon as no request runs any more.
        is_idle: does no request run any more?
    """

    def __init__(
        self,
        config: uvicorn.Config,
        end_requests: Callable[[], None],
        patience: float,
        end_watching: Callable[[], None] = lambda: None,
        is_idle: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(config)
        self._end_watching, self._is_idle = end_watching, is_idle
        self._end_requests = end_requests
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_signals = 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self._patience, self._end_requests)
        watching = asyncio.ensure_future(self._until_idle())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            watching.cancel()

    async def _until_idle(self) -> None:
        while not self._is_idle():
            await asyncio.sleep(IDLE_LOOK_SECONDS)
        self._end_watching()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        self.should_exit = True
        if self._num_signals == 2 and self._loop:
            self._loop.call_soon_threadsafe(self._end_requests)
        self.force_exit = self._num_signals > 2

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
