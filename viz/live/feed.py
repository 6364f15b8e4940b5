"""The feed: what the page asks for while it watches, answered beside Streamlit and not by it.

    GET /live-feed/TOKEN?at=now&have=…&after=…&narrow=0&lang=en    a frame: status, what changed, numbers
    GET /live-feed/TOKEN/trace.jsonl                               what was seen, as a trace
    GET /live-feed/TOKEN/trace.jsonl?part=before                   what was seen before the connection broke

A rerun of Streamlit takes 80 ms, and would put the page together anew for each step. So the browser asks
here, several times a second, and gets only what changed since the frame that it has. A token stands for a
connection that was made on the page, in this session: a question holds no address, so this is no proxy.

Read next: `viz/player/live.js`, which asks.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from typing import Any
from urllib.parse import parse_qs

import msgspec

from minivllm.text import printable
from viz.figures.captions import caption
from viz.figures.common import Name
from viz.gate import App, Message, Receive, Send
from viz.language import LANGUAGES, _, current, speaking
from viz.live.connection import Connection
from viz.live.picture import LivePicture
from viz.live.window import LiveWindow, Moment

PREFIX = "/live-feed/"
MOST_WATCHED = 8
"""Connections of all sessions together; the one that was asked for longest ago makes room."""


class Watched:
    """A connection, and the frame that its page has."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._window: LiveWindow | None = None
        self._picture: LivePicture | None = None
        self._drawn_for = ("", False)  # language, narrow screen
        self._frame = ""
        self._num_frames = 0
        self._lock = threading.Lock()

    def frame(
        self, at: int | None, have: str = "", after: int = -1, *, is_narrow: bool = False
    ) -> dict[str, Any]:
        """What the page needs to show a step.

        Args:
            at: the step; None: the latest.
            have: the frame that the page shows; of another one it gets all.
            after: the last step of which it has the numbers.
            is_narrow: the screen is that of a phone.
        """
        connection = self.connection
        connection.touch()
        told: dict[str, Any] = {"status": connection.status.kind, "words": connection.status.words}
        with self._lock, connection.lock:
            window = connection.shown
            told["hasBefore"] = connection.before not in (None, window)
            if window is None:
                return told
            drawn_for = (current(), is_narrow)
            if window is not self._window or self._picture is None or drawn_for != self._drawn_for:
                self._drawn_for = drawn_for
                self._window, self._frame = window, ""
                self._picture = LivePicture(window, is_narrow=is_narrow)
            is_new = not self._frame or have != self._frame
            moment = window.latest() if at is None else window.at(at)
            patches = self._picture.draw(moment)
            self._num_frames += 1
            self._frame = f"{window.number}-{self._num_frames}"
            start, numbers = window.numbers_after(-1 if is_new else after)
            told |= {
                "frame": self._frame,
                "run": window.number,
                "first": window.first,
                "last": window.last,
                "step": moment.record.step,
                "time": moment.record.end,
                "now": window.state.time,
                "caption": printable(_caption(window, moment)),
                "blocks": window.header.num_blocks,
                "start": start,
                "numbers": numbers,
            }
            if is_new:
                scenes = zip(self._picture.scenes, self._picture.shapes(), strict=True)
                told["scenes"] = [
                    scene.to_data() | {"shapes": shapes, "changes": None} for scene, shapes in scenes
                ]
            else:
                told["patches"] = [list(patch.items()) for patch in patches]
        return told

    def trace(self, *, before: bool = False) -> bytes:
        """What was seen, as the content of a trace file; nothing if there is none."""
        window = self.connection.before if before else self.connection.shown
        if window is None:
            return b""
        with self.connection.lock:
            return b"".join(line + b"\n" for line in window.lines())


class _Names(dict[str, Name]):
    """Names of requests, given when they are asked for."""

    def __init__(self, window: LiveWindow) -> None:
        super().__init__()
        self._window = window

    def __missing__(self, request: str) -> Name:
        return self._window.name_of(request)


def _caption(window: LiveWindow, moment: Moment) -> str:
    if moment.record.step < window.first or window.last < window.first:
        return _("The engine has taken no step since this page connected: send the server a request.")
    return caption(moment.record, _Names(window), _requests(moment), window.header) + moment.since


def _requests(moment: Moment) -> dict[int, str]:
    """The request of each sequence that the step may have to do with."""
    state = moment.state
    groups = (
        state.former.values(),
        state.finished.values(),
        moment.record.finished,
        state.sequences.values(),
    )
    return {sequence.seq: sequence.request for group in groups for sequence in group}


_watched: dict[str, Watched] = {}
_lock = threading.Lock()


def watch(url: str, key: str = "") -> str:
    """Connect to a server, and return the token under which the page may ask.

    Raises:
        ValueError: the address or the key cannot be one.
    """
    watched = Watched(Connection(url, key))
    token = secrets.token_hex(24)  # letters alone: Streamlit refuses `__` in the name of a component
    with _lock:
        for name in [name for name, one in _watched.items() if one.connection.is_closed]:
            del _watched[name]
        while len(_watched) >= MOST_WATCHED:
            _watched.pop(next(iter(_watched))).connection.close()
        _watched[token] = watched
    return token


def find(token: str) -> Watched | None:
    """What a token stands for, if its page was not left."""
    with _lock:
        if (found := _watched.pop(token, None)) is not None:
            _watched[token] = found  # asked for last
        return found


def forget(token: str) -> None:
    """End a connection."""
    with _lock:
        found = _watched.pop(token, None)
    if found:
        found.connection.close()


class LiveFeed:
    """An ASGI application before Streamlit's."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        token, _, rest = scope["path"].removeprefix(PREFIX).partition("/")
        watched = find(token)
        asked = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()}
        if watched is None or rest not in ("", "trace.jsonl"):
            await _answer(send, 404, "application/json", b"{}")
        elif rest:
            content = await asyncio.to_thread(watched.trace, before=asked.get("part") == "before")
            await _answer(send, 200, "application/jsonl", content, "live.jsonl")
        else:
            at = _integer(asked.get("at", "now"))
            after = _integer(asked.get("after", "-1"))
            language = asked.get("lang", "")
            with speaking(language if language in LANGUAGES else "en"):
                frame = await asyncio.to_thread(  # which takes the language along
                    watched.frame,
                    at,
                    asked.get("have", ""),
                    -1 if after is None else after,
                    is_narrow=asked.get("narrow") == "1",
                )
            await _answer(send, 200, "application/json", msgspec.json.encode(frame))


def _integer(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 16 else None


async def _answer(send: Send, status: int, kind: str, body: bytes, file: str = "") -> None:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
    headers.append((b"content-length", str(len(body)).encode()))
    headers.append((b"x-content-type-options", b"nosniff"))
    if file:
        headers.append((b"content-disposition", f'attachment; filename="{file}"'.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
