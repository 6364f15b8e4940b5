"""A server of our own while something is measured: `minivllm serve` in a process of its own, at a free port.

In its own process, because client and server in one Python would take turns at its interpreter lock, and each
would be measured with the other in the way.

Read next: `load.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from minivllm.processes import start_server


class ThreadSeconds(NamedTuple):
    """CPU time of a server."""

    loop: float
    """Of its main thread, in which the event loop runs."""
    engine: float
    """Of all others: the engine's, and those that compute with it."""

    def __sub__(self, other: ThreadSeconds) -> ThreadSeconds:
        return ThreadSeconds(self.loop - other.loop, self.engine - other.engine)


@dataclass(frozen=True)
class OwnServer:
    """A server that answers at `url`."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time that it has used, on all its threads."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def thread_seconds(self) -> ThreadSeconds:
        """CPU time of its threads, to a hundredth of a second."""
        seconds = {one.id: one.user_time + one.system_time for one in psutil.Process(self.pid).threads()}
        loop = seconds.pop(self.pid, 0.0)  # on Linux, the main thread has the number of the process
        return ThreadSeconds(loop, sum(seconds.values()))

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)


@contextmanager
def own_server(folder: Path, threads: int, flags: Sequence[str] = ()) -> Iterator[OwnServer]:
    """Serve the model in this folder until the block ends.

    Args:
        threads: of torch and of our kernels.
        flags: further ones for `minivllm serve`.

    Raises:
        ValueError: it did not start, and its own words why.
    """
    server = start_server([str(folder), *flags], variables={"OMP_NUM_THREADS": str(threads)})
    try:
        yield OwnServer(server.url, server.process.pid)
    finally:
        server.end()


def api_key(given: str | None) -> str | None:
    """The key that was given, or that of the environment, as OpenAI's own client takes it."""
    return given or os.environ.get("OPENAI_API_KEY") or None
