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


async def _watch(url: str, begun: asyncio.Event) -> int:
    """Read until it is cancelled. Raises `ValueError` with what the server said instead of events."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    messages, last = 0, b""
    try:
        writer.write(f"GET /engine/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.splitlines()[0]:
            raise ValueError(head.splitlines()[0].decode(errors="replace"))
        while data := await reader.read(READ_BYTES):
            data = last + data
            if CUT_OFF in data:
                raise ValueError("a watcher was cut off: it was too slow")
            messages += data.count(ENDS)
            last = data[-1:]  # the other half of an end may be in what comes next
            begun.set()
    except asyncio.CancelledError:
        return messages
    finally:
        writer.close()
    raise ValueError("a stream has ended")


async def _watch_all(url: str, count: int) -> list[int]:
    """Watch until our own input ends."""
    begun = [asyncio.Event() for _ in range(count)]
    tasks = [asyncio.create_task(_watch(url, event)) for event in begun]
    until = asyncio.create_task(_told_to_stop(begun))
    await asyncio.wait({until, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in (until, *tasks):
        task.cancel()
    return await asyncio.gather(*tasks)


async def _told_to_stop(begun: list[asyncio.Event]) -> None:
    for event in begun:
        await event.wait()
    print(READY, flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """The process: its arguments are the address and the number."""
    url, count = sys.argv[1:]
    try:
        found = asyncio.run(_watch_all(url, int(count)))
    except (OSError, ValueError) as error:
        print(error, flush=True)
        sys.exit(1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
