"""Answers on their way to a client, who may leave before they are complete.

Starlette tells a handler too late, or behind middleware not at all, that its client has gone. Here the
connection is watched while the work goes on; what is done first ends the other. Work that is cancelled
leaves its loops over `AsyncLLM.generate`, which aborts the requests.

Read next: `app.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minivllm.server.answers import DONE, WriteNow, event
from minivllm.server.errors import as_api_error

Write = Callable[[bytes], Awaitable[None]]
DIRECT = "minivllm.direct"
"""The extension of ASGI under which our connections offer a short way for parts of a body."""


class DirectWriter(Protocol):
    """That short way: to be used after the head of an answer without a length, and before its end."""

    async def write(self, data: bytes) -> None:
        """Write, once the client has taken enough of what was written before."""

    def write_now(self, make: Callable[[], bytes]) -> bool:
        """Write what `make` returns and return True; if the client is behind, or gone, do nothing."""
        ...


class ClientGone(Exception):
    """There is no client to answer any more."""


class JsonResponse(Response):
    """JSON, quickly."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def chunk_writer(scope: Scope, send: Send) -> Write:
    """What writes a part of a body: straight to the connection where it is one of ours, else by ASGI.

    By ASGI a part goes through the `send` of each middleware, and is made an event of h11 that is made bytes:
    half of what the event loop did for a token.
    """
    direct: DirectWriter | None = scope.get("extensions", {}).get(DIRECT)
    if direct is not None:
        return direct.write

    async def write(data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    return write


def write_now(scope: Scope) -> WriteNow | None:
    """The short way for what needs not wait; None where the connection is none of ours."""
    direct: DirectWriter | None = scope.get("extensions", {}).get(DIRECT)
    return None if direct is None else direct.write_now


class EventStream(Response):
    """Server-sent events, each sent as it comes. An error ends the stream with an event of its own."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(self._send_all(chunk_writer(scope, send), send), receive)
        except (ClientGone, OSError):
            return

    async def _send_all(self, write: Write, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(_with_errors(self._events)) as events:
            await write(self._first)
            async for data in events:
                await write(data)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of the work.

    Raises:
        ClientGone: the client left before; the work is cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _with_errors(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(events) as safe:
            async for data in safe:
                yield data
    except Exception as error:
        yield event(as_api_error(error).body())
        yield DONE


async def answered(request: Request, work: Awaitable[dict[str, Any]]) -> Response:
    """The work's result as JSON, unless the client leaves."""
    return JsonResponse(await unless_gone(work, request.receive))
