"""What a request must pass before anything reads it: a key, a size, a place in the queue.

Plain ASGI, one small class each, outermost first:

    BodyLimit ──► ApiKey ──► Load ──► routes

Source: vLLM's middleware. Read next: `app.py`.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minivllm.server.errors import ApiError
from minivllm.server.responses import JsonResponse

GUARDED = ("/v1",)
"""Paths below which a key is asked for."""


class BodyLimit:
    """Refuse bodies that are too large, before they are in memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            # What is too large ends here; the answer to it is dropped below.
            return message if size <= self.max_bytes else {"type": "http.request"}

        async def unless_too_large(message: Message) -> None:
            if size <= self.max_bytes:
                await send(message)

        await self.app(scope, counted, unless_too_large)
        if size > self.max_bytes:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ApiError(f"The body must have at most {self.max_bytes:,} bytes.", status=413)
        await JsonResponse(error.body(), 413, {"Connection": "close"})(scope, receive, send)


class ApiKey:
    """Let through who has one of the keys. Keys are compared in constant time."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and self._is_guarded(scope):
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            digest = sha256(key.strip()).digest()
            if scheme.lower() != b"bearer" or not any(hmac.compare_digest(digest, d) for d in self.digests):
                await JsonResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_guarded(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path.removeprefix(scope.get("root_path", "")).startswith(GUARDED)
