"""What a request must pass before anything reads it: a size, a time, a form, a key.

Plain ASGI, one small class each, outermost first:

    BodyLimit ──► ApiKey ──► routes

Source: vLLM's middleware. Read next: `app.py`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minivllm.server.errors import ApiError
from minivllm.server.responses import JsonResponse

MOST_DRAINED = 64 * 1024 * 1024
"""Bytes of a body that is refused, read and dropped."""
DRAIN_SECONDS = 10.0
"""In which that is read."""
BODY_SECONDS = 60.0
"""In which a body must be complete."""
GUARDED = ("/v1", "/engine")
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
        headers = dict(scope["headers"])
        if refusal := _unreadable(headers):
            await _refuse(refusal, scope, receive, send)
            return
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_bytes:
            await _refuse(self._too_large(), scope, receive, send)
            return
        size, refusal, is_complete = 0, None, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal size, refusal, is_complete
            if is_complete:  # what comes now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = ApiError(f"The body must come within {BODY_SECONDS:g} seconds.", status=408)
                return {"type": "http.disconnect"}
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if size > self.max_bytes:
                refusal = self._too_large()
                return {"type": "http.request"}
            return message

        async def unless_refused(message: Message) -> None:
            if refusal is None:
                await send(message)

        await self.app(scope, counted, unless_refused)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)

    def _too_large(self) -> ApiError:
        return ApiError(f"The body must have at most {self.max_bytes:,} bytes.", status=413)


def _unreadable(headers: dict[bytes, bytes]) -> ApiError | None:
    """A body of another kind than the routes read."""
    packed = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if packed.lower() not in ("", "identity"):
        return ApiError(f"Bodies must not be compressed, got Content-Encoding {packed[:100]!r}.")
    if b"content-length" not in headers and b"transfer-encoding" not in headers:
        return None  # there is no body
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind == "application/json" or headers.get(b"content-length") == b"0":
        return None
    return ApiError(f"Unsupported Media Type: Only 'application/json' is allowed, got {kind[:100]!r}.")


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and then read what the client still sends: many read no answer before they have sent all, and
    a connection that is closed before takes the answer with it."""
    answer = JsonResponse(error.body(), error.status, {"Connection": "close"})
    await send({"type": "http.response.start", "status": error.status, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    size, more = 0, error.status != 408
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and size < MOST_DRAINED:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class ApiKey:
    """Let a request through that has one of the keys. Keys are compared in constant time."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and self._is_guarded(scope):
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            digest = sha256(key).digest()
            if scheme.lower() != b"bearer" or not any(hmac.compare_digest(digest, d) for d in self.digests):
                await JsonResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_guarded(self, scope: Scope) -> bool:
        return _route_path(scope).startswith(GUARDED)


def _route_path(scope: Scope) -> str:
    """The path below the root path, by the router's own rule: what it finds must be what was guarded."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    is_below = root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")
    return path[len(root) :] if is_below else path
