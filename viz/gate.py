"""The door of the dashboard: only its own pages, opened on this machine, come in.

The server listens on this machine alone. That does not keep other *pages* out, because they run in a browser
on this machine, too:

    Host: evil.example     the page of a site whose name was made to point here (DNS rebinding)
    Origin: http://evil    a page of another site, or of another server on this machine, that calls this one
    <iframe src=here>      a page of another site that lets its visitor click in ours without knowing it

The first two are refused before Streamlit sees them, for HTTP and WebSockets alike; the third is refused by
the browser, because every answer says so.

Read next: `folders.py`, for what a page may open; SECURITY.md, for what a visitor may do.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

OUR_NAMES = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""Of this machine, from itself; the port may be another one, as through a tunnel."""
NO_FRAMES = [(b"x-frame-options", b"SAMEORIGIN"), (b"content-security-policy", b"frame-ancestors 'self'")]
FORBIDDEN = 403
POLICY_VIOLATION = 1008


class Gate:
    """An ASGI application before another one."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # a server that starts or stops
            await self.app(scope, receive, send)
        elif reason := refusal(scope["headers"]):
            await refuse(scope["type"], reason, send)
        else:
            await self.app(scope, receive, without_frames(send))


def refusal(headers: Headers) -> str:
    """Why a request does not come from a page of ours; "" if it does."""
    headers = list(headers)  # of lower-case names, as ASGI has them
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not OUR_NAMES.fullmatch(hosts[0]):
        return "this dashboard answers to localhost only"
    ours = b"http://" + hosts[0]
    if any(value.lower() != ours.lower() for name, value in headers if name == b"origin"):
        return "this dashboard answers to its own pages only"
    return ""


async def refuse(kind: str, reason: str, send: Send) -> None:
    """Answer no; a WebSocket is closed before it was accepted, which the browser sees as 403."""
    if kind == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
        return
    plain = [(b"content-type", b"text/plain; charset=utf-8"), *NO_FRAMES]
    await send({"type": "http.response.start", "status": FORBIDDEN, "headers": plain})
    await send({"type": "http.response.body", "body": reason.encode() + b"\n"})


def without_frames(send: Send) -> Send:
    """Every answer forbids other sites to put it into a frame."""

    async def forbidding(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *NO_FRAMES]}
        await send(message)

    return forbidding
