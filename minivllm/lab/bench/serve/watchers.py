"""Those who watch a server while it is measured: streams of `/engine/events`, read in a process of their own.

    we ── starts, and says when to stop ──► this process ── N connections ──► /engine/events
       ◄── how much each of them has read ──┘

In a process of its own, because who sends requests and looks at the clock must not also read events.

Read next: `watched.py`, which compares.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from minivllm.processes import child_command, end_in_order, python_variables

READ_BYTES = 2**18
QUIET_SECONDS = 0.3
READY = "all of them watch"
CUT_OFF = b"\n\n: cut off"
ENDS = b"\n\n"
"""Of a message; one at the end of each step."""


class Readers:
    """So many watchers that read; `stop` ends them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> list[int]:
        """How many messages each of them has read.

        Raises:
            ValueError: one was cut off, or its stream has ended.
        """
        told, _ = self._process.communicate("")
        if self._process.returncode:
            raise ValueError(f"watchers: {told.strip() or 'they have ended'}")
        found: list[int] = json.loads(told)
        return found


@contextmanager
def watchers(url: str, count: int) -> Iterator[Readers]:
    """So many watchers of the server at `url`; all of them watch when the block begins.

    Raises:
        ValueError: the server cannot be watched, and why.
    """
    process = subprocess.Popen(
        child_command("-m", __name__, url, str(count)),
        env=python_variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said != READY:
            raise ValueError(f"{url}/engine/events: {said or 'nothing reads it'}")
        yield Readers(process)
    finally:
        end_in_order(process)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


class _Reader:
    """One watcher. Raises `ValueError` with what the server says instead of events."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.messages = 0

    async def read(self, url: str) -> None:
        """Read until it is cancelled."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(f"GET {parts.path}/engine/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
            if b" 200 " not in head:
                raise ValueError(head.decode(errors="replace"))
            last = b""
            while data := await reader.read(READ_BYTES):
                data = last + data
                if CUT_OFF in data:
                    raise ValueError("a watcher was cut off: it was too slow")
                self.messages += data.count(ENDS)
                last = data[-1:]  # the other half of an end may be in what comes next
                self.has_begun.set()
        finally:
            writer.close()
        raise ValueError("a stream has ended")

    async def is_quiet(self) -> None:
        """Wait until nothing comes for a while: what was on its way has been read.

        It begins now, whenever the last message came: a process that was stopped has more of them to read.
        """
        before = -1
        while before != self.messages:
            before = self.messages
            await asyncio.sleep(QUIET_SECONDS)


async def _watch_all(url: str, count: int) -> list[int]:
    """Watch until our own input ends, and all is read."""
    readers = [_Reader() for _ in range(count)]
    tasks = [asyncio.create_task(reader.read(url)) for reader in readers]
    until = asyncio.create_task(_is_over(readers))
    await asyncio.wait({until, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in (until, *tasks):
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, ValueError | OSError | EOFError):
            raise end
    return [reader.messages for reader in readers]


async def _is_over(readers: list[_Reader]) -> None:
    for reader in readers:
        await reader.has_begun.wait()
    print(READY, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for reader in readers:
        await reader.is_quiet()


def main() -> None:
    """The process: its arguments are the address and the number."""
    url, count = sys.argv[1:]
    try:
        found = asyncio.run(_watch_all(url, int(count)))
    except (OSError, EOFError, ValueError) as error:
        print(error, flush=True)
        sys.exit(1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
