"""Where the server is, told to the page: so that it does not look elsewhere first.

Streamlit's page may be served below any path, and finds its server by asking below the path that it was
opened with: for `/kv_pool` it asks `/kv_pool/_stcore/health` and `/_stcore/health`, and the first of them is
an error in the browser's console, on every page. Ours is always at the root, and the page takes our word.

Read next: `gate.py`, the door before it.
"""

from __future__ import annotations

from collections.abc import Iterable

from viz.gate import App, Message, Receive, Send

HEAD = b"<head>"
TOLD = HEAD + b"<script>window.__streamlit = { BACKEND_BASE_URL: location.origin };</script>"


class OwnPlace:
    """An ASGI application before another one: pages are told that the server is at the root."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not asks_for_a_page(scope["headers"]):
            await self.app(scope, receive, send)
            return
        # What is packed cannot be read.
        headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
        await self.app({**scope, "headers": headers}, receive, telling(send))


def asks_for_a_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Is it the browser that asks, for what it shows in a window, and not a script of a page?"""
    return any(name == b"accept" and b"text/html" in value for name, value in headers)


def telling(send: Send) -> Send:
    """Pages are sent with one line more; all else goes through as it is."""
    start: Message | None = None
    body = b""

    async def send_on(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start" and is_page(message.get("headers", ())):
            start = message  # its length is known once all of it is
        elif start is None:
            await send(message)
        else:
            body += message.get("body", b"")
            if not message.get("more_body"):
                told = body.replace(HEAD, TOLD, 1)
                await send({**start, "headers": with_length(start["headers"], len(told) - len(body))})
                await send({"type": "http.response.body", "body": told})

    return send_on


def is_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Is this answer a page?"""
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)


def with_length(headers: Iterable[tuple[bytes, bytes]], more: int) -> list[tuple[bytes, bytes]]:
    """The same headers for a body that is longer by so many bytes."""
    return [
        (name, b"%d" % (int(value) + more) if name.lower() == b"content-length" else value)
        for name, value in headers
    ]
