"""A connection: one server's events, read in a thread of its own until the page is left.

    thread:   connect ──► read messages ──► window       again after a pause, if the connection is lost
    page:     status, frames ◄── lock ──────┘

A server that ends says so, and what was seen stays. When it answers again, a new window begins, because what
happened meanwhile is not known; the one before is kept, and shown until something new has happened.

The address is what the reader of the page typed, or the command named: nothing else decides where this
connects, and it follows no redirection. Read next: `picture.py`; SECURITY.md.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from contextvars import copy_context
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import msgspec

from minivllm.text import printable
from minivllm.trace.events import VERSION, AnyEvent, TraceHeader
from minivllm.trace.lines import MOST_LINE_BYTES, TraceError
from viz.engine_words import in_words_of_the_reader
from viz.language import N_, _
from viz.live.window import LiveWindow

PATH = "/engine/events"
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 40.0
"""The server says something every fifteen seconds; after this the connection is dead."""
PAUSES = (1.0, 2.0, 5.0)
"""Between attempts to connect again; the last one for ever."""
ABANDONED_SECONDS = 120.0
"""After which a page that asks for nothing has been left."""
LONGEST_URL = 2000
AGAIN = N_("The server answers again, and has taken no step yet. Shown is what was seen before.")


class Status(NamedTuple):
    """How the connection is: "connecting", "live", "ended", "lost" or "refused"; and a sentence."""

    kind: str
    words: str


class _Refused(Exception):
    """The server answers, and says no: to ask again helps nothing."""


def check_url(url: str) -> SplitResult:
    """The parts of the address of a server.

    Raises:
        ValueError: it is not one, and why.
    """
    shown = printable(url[:80])
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown} is no address of a server: {error}") from None
    if len(url) > LONGEST_URL or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{shown} is no address of a server: give one such as http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{shown}: give the address alone, without a name, a password, ? or #")
    if any(ord(char) <= 32 or ord(char) == 127 for char in url.strip()) or not url.strip().isascii():
        raise ValueError(f"{shown} holds characters that no address has")
    return parts


class Connection:
    """Watches a server until `close`, or until the page asks for nothing any more.

    Raises:
        ValueError: the address or the key cannot be one.

    Attributes:
        lock: to be held while a window is looked at.
        window: what was seen since the connection was made; None before the first snapshot.
        before: what was seen before the connection was lost, if it was.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self._parts = check_url(url)
        if not key.isprintable() or not key.isascii():
            raise ValueError("the key holds characters that no key has")
        self.url = url.strip().rstrip("/")
        self._key = key.strip()
        self.lock = threading.Lock()
        self.window: LiveWindow | None = None
        self.before: LiveWindow | None = None
        self.status = Status("connecting", _("Connecting to {url} …").format(url=self.url))
        self.serial = 0
        """Of the window: another one after each connection."""
        self._asked = monotonic()
        self._closed = threading.Event()
        self._http: HTTPConnection | None = None
        self._socket: socket.socket | None = None
        # It speaks as the page that connected.
        run = copy_context().run
        threading.Thread(target=run, args=(self._run,), name="minivllm-live", daemon=True).start()

    @property
    def shown(self) -> LiveWindow | None:
        """What there is to see: after a break the window before it, until something new has happened."""
        is_new = self.window is not None and (self.window.num_steps or self.before is None)
        return self.window if is_new else self.before

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def touch(self) -> None:
        """The page still asks."""
        self._asked = monotonic()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        with suppress(OSError):
            if self._socket:
                self._socket.shutdown(socket.SHUT_RDWR)

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        attempt = 0
        while not self._closed.is_set():
            serial = self.serial
            try:
                self._watch()
            except _Refused as error:
                self.status = Status("refused", str(error))
                return
            except TraceError as error:
                self.status = Status(
                    "refused",
                    _("The server sends what is no trace: {error}").format(
                        error=in_words_of_the_reader(str(error))
                    ),
                )
                return
            except (OSError, HTTPException) as error:
                self.status = Status("lost", self._lost(error))
            finally:
                if self._http:
                    self._http.close()
            attempt = 0 if self.serial != serial else attempt + 1
            self._closed.wait(PAUSES[min(attempt, len(PAUSES) - 1)])
        self.status = Status(
            "lost", _("The page was left, so nothing more was read. Connect again to go on.")
        )

    def _lost(self, error: Exception) -> str:
        if self.shown is None:
            reason = getattr(error, "strerror", None) or type(error).__name__
            return _("No server answers at {url} ({reason}). Trying again …").format(
                url=self.url, reason=reason
            )
        return _("The connection was lost: the server has stopped, or cannot be reached. Trying again …")

    def _watch(self) -> None:
        """Read one stream to its end."""
        response = self._open()
        header: TraceHeader | None = None
        decode = msgspec.json.Decoder(AnyEvent).decode
        for lines, size in self._messages(response):
            try:
                if header is None:
                    header, lines = self._begin(lines[0]), lines[1:]
                events = [decode(line) for line in lines]
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise TraceError(printable(str(error))[:200]) from error
            with self.lock:
                assert self.window is not None
                self.window.add(events, size)
                is_ended = self.window.is_ended
                is_empty = self.shown is not self.window
            self.status = Status("live", _(AGAIN) if is_empty else "")
            if is_ended:
                self.status = Status("ended", _("The server has stopped. What was seen stays here."))
                return

    def _open(self) -> HTTPResponse:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            self._http = HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=context)
        else:
            self._http = HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        self._http.connect()
        self._socket = self._http.sock  # the connection forgets it where the answer says that it will close
        self._socket.settimeout(SILENCE_SECONDS)
        headers = {"Accept": "text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http.request("GET", self._parts.path.rstrip("/") + PATH, headers=headers)
        response = self._http.getresponse()
        if response.status == 200:
            return response
        if response.status == 503:
            raise OSError(0, "it has nothing to watch yet")
        raise _Refused(_refusal(response.status, self.url))

    def _begin(self, line: bytes) -> TraceHeader:
        header = msgspec.json.decode(line, type=TraceHeader)
        if header.version != VERSION:
            raise TraceError(
                f"its events are of version {header.version}, this dashboard reads {VERSION}: use the same "
                "minivllm for both"
            )
        with self.lock:
            if self.window is not None and self.window.num_steps:
                self.before = self.window
            self.serial += 1
            self.window = LiveWindow(header, number=self.serial)
        return header

    def _messages(self, response: HTTPResponse) -> Iterator[tuple[list[bytes], int]]:
        """The lines of each server-sent event, and their length."""
        lines: list[bytes] = []
        size = 0
        while not self._closed.is_set():
            if monotonic() - self._asked > ABANDONED_SECONDS:
                self._closed.set()
                return
            line = response.readline(MOST_LINE_BYTES + 1)
            if len(line) > MOST_LINE_BYTES:
                raise TraceError("a line is longer than any line of a trace")
            if not line:
                raise OSError(0, "the stream has ended")
            if line.startswith(b"data: "):
                lines.append(line[6:])
                size += len(line)
            elif line.startswith(b": cut off"):
                raise OSError(0, "this page did not read fast enough")
            elif not line.strip() and lines:
                yield lines, size
                lines, size = [], 0


def _refusal(status: int, url: str) -> str:
    if status == 401:
        return _("The server asks for a key, or for another one: give that of its --api-key.")
    if status == 404:
        return _("{url} cannot be watched: start it with `minivllm serve --live`.").format(url=url)
    if status == 403:
        return _("The server answers to an IP address or to localhost only, because it has no --api-key.")
    return _("{url} answers with status {status}, not with events.").format(url=url, status=status)
