"""A watcher of the live events: what has come for it, and is not sent yet.

    events, encoded ── put ──┬── write_now ──► its connection     it has taken all that came before
                             └── next ──► a task ──► its connection      it is behind, and this waits

The short way needs no turn of a task: with ten watchers, those were most of what sending cost. A watcher
that is behind by too much is cut off, with a comment that says so.

Source: server-sent events, WHATWG HTML, section 9.2. Read next: `live_stream.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minivllm.server.answers import WriteNow


class Watcher:
    """What has come for one watcher and is not sent yet. Lives in the event loop.

    Attributes:
        is_cut: set once this watcher gets no more, because it was too slow.
        write_now: the short way to its connection, without a task's turn; it returns False where the
            connection is behind.
    """

    def __init__(self, most_bytes: int) -> None:
        self.is_cut = asyncio.Event()
        self.write_now: WriteNow | None = None
        self._chunks: deque[bytes] = deque()
        self._num_bytes = 0
        self._most_bytes = most_bytes
        self._is_over = False
        self._has_come = asyncio.Event()
        self._is_waiting = False  # its task has sent all
        self._has_written = False

    def begin(self, first: bytes) -> None:
        """Forget what has come: all of it is in this, which does not count as unread."""
        self._chunks, self._num_bytes = deque([first]), 0
        self._has_come.set()

    def put(self, chunk: bytes) -> None:
        """Write it, or keep it until it is sent, or cut the watcher off."""
        if self._is_over:
            return
        if self._is_waiting and not self._chunks and self.write_now and self.write_now(lambda: chunk):
            self._has_written = True
            return
        if self._num_bytes + len(chunk) > self._most_bytes:
            self._chunks.clear()
            self.is_cut.set()
            mib = self._most_bytes / 2**20
            self.end(comment(f"cut off: more than {mib:g} MiB were not read"))
            return
        self._chunks.append(chunk)
        self._num_bytes += len(chunk)
        self._has_come.set()

    def end(self, last: bytes) -> None:
        """Nothing comes after this."""
        if not self._is_over:
            self._chunks.append(last)
            self._is_over = True
            self._has_come.set()

    async def next(self) -> bytes:
        """All that has come; nothing (`b""`) at the end."""
        while not self._chunks:
            if self._is_over:
                return b""
            self._has_come.clear()
            self._is_waiting = True
            try:
                await self._has_come.wait()
            finally:
                self._is_waiting = False
        chunks = b"".join(self._chunks)
        self._chunks.clear()
        self._num_bytes = 0
        return chunks

    def has_written(self) -> bool:
        """Was anything written the short way since this was asked last?"""
        has_written, self._has_written = self._has_written, False
        return has_written


def comment(words: str) -> bytes:
    """A line of the stream that is no event: for people, and for programs that want to know why it ends."""
    return b": " + " ".join(words.split()).encode(errors="replace") + b"\n\n"
