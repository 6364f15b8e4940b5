"""`/engine/events`: the live events on their way to one watcher, as server-sent events.

    200  data: {"event":"TraceHeader",…}        the first message: a trace that begins here
         data: {"event":"SnapshotTaken",…}

         data: {"event":"StepStarted",…}        one message a step, one line an event
         data: …

         : still here                           where nothing happens for a while

What has come goes out ten times a second, however fast the steps are: straight to the connection, if that has
taken all that was sent before, and else when it has.

The events hold the texts of all users. So where the server asks for a key, this path asks for it, too; and
where it does not, the path answers only to an address or to localhost. A page of another site whose name was
made to point here (DNS rebinding) could read it otherwise.

Read next: `live.py`, where they come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from ipaddress import ip_address

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minivllm.server.errors import ApiError
from minivllm.server.live import Hop, LiveError, LiveEvents
from minivllm.server.responses import ClientGone, chunk_writer, unless_gone, write_now
from minivllm.server.watcher import Watcher, comment

KEEP_ALIVE_SECONDS = 15.0
"""After so long without an event a comment is sent, so that both sides notice a connection that is gone."""
PAUSE_SECONDS = 0.1
"""In which what happens is gathered, and then goes out together. Steps of a small model are far shorter, and
nobody sees more than ten a second; but each sending to each watcher takes its time from the event loop."""
GOODBYE_SECONDS = 1.0
"""In which a watcher that is cut off may still read why."""


class LiveStream(Response):
    """The answer to one watcher. It ends with the server, with the engine, or when its watcher leaves.

    Raises:
        LiveError: there is nothing to watch any more.
    """

    media_type = "text/event-stream"

    def __init__(self, live: LiveEvents, is_running: Callable[[], bool]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._live = live
        self._watcher = live.join()
        self._is_running = is_running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(unless_gone(self._send_all(scope, send), receive))
        cut = asyncio.ensure_future(self._watcher.is_cut.wait())
        try:
            await asyncio.wait({sending, cut}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                await asyncio.wait({sending}, timeout=GOODBYE_SECONDS)
            if not sending.done() and (abort := scope.get("abort")):
                abort()  # it does not even read the goodbye: nothing that waits for it may stay
        finally:
            self._live.leave(self._watcher)
            cut.cancel()
            sending.cancel()
            with suppress(asyncio.CancelledError, ClientGone, OSError):
                await sending

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        write, self._watcher.write_now = chunk_writer(scope, send), write_now(scope)
        async with aclosing(_chunks(self._watcher, self._is_running)) as chunks:
            async for chunk in chunks:
                await write(chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chunks(watcher: Watcher, is_running: Callable[[], bool]) -> AsyncGenerator[bytes]:
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                chunk = await watcher.next()
        except TimeoutError:
            if watcher.has_written():
                continue
            if not is_running():
                yield comment("the engine has ended")
                return
            chunk = comment("still here")
        if not chunk:
            return
        yield chunk


def paced(hop: Callable[..., None]) -> Hop:
    """The way from the engine's thread to the event loop, where work waits so long that more has come."""
    return lambda work: hop(_do_later, work)


def _do_later(work: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(PAUSE_SECONDS, work)


async def open_stream(
    live: LiveEvents, is_running: Callable[[], bool], host: str, *, has_keys: bool
) -> LiveStream:
    """Answer someone who wants to watch.

    Args:
        host: the header that says which server was meant.
        has_keys: the server asks for a key, and has got one.

    Raises:
        ApiError: 403, if a name was asked that may be anyone's; 503, if there is nothing to watch.
    """
    if not has_keys and not _is_address(host):
        raise ApiError(
            "Without --api-key, /engine/events answers to an IP address or to localhost only: it tells the "
            "texts of all users, and any site can have a name that points here.",
            status=403,
            kind="PermissionDeniedError",
        )
    await live.prepare()
    try:
        return LiveStream(live, is_running)
    except LiveError as error:
        raise ApiError(
            f"Nothing can be watched: {error}.", status=503, kind="ServiceUnavailableError"
        ) from None


def _is_address(host: str) -> bool:
    """Is this header `Host` an address, or localhost? Each may have a port."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False
