"""A server of our own while something is measured: `minivllm serve` in a process of its own, at a free port.

In its own process, because client and server in one Python would take turns at its interpreter lock, and each
would be measured with the other in the way.

Read next: `load.py`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep

import psutil

from minivllm.processes import child_command, end_group, python_variables

START_SECONDS = 600.0
STOP_SECONDS = 10.0
SERVED = re.compile(r"is served at (http://\S+)")


@dataclass(frozen=True)
class OwnServer:
    """A server that answers at `url`."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time that it has used, on all its threads."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

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
    command = child_command("-m", "minivllm", "serve", str(folder), "--port", "0", *flags)
    variables = python_variables(OMP_NUM_THREADS=str(threads), PYTHONUNBUFFERED="1")
    with tempfile.NamedTemporaryFile("w+", prefix="minivllm-serve-", suffix=".log") as log:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield OwnServer(_wait_for_url(process, Path(log.name)), process.pid)
        finally:
            _stop(process)


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = perf_counter() + START_SECONDS
    while perf_counter() < deadline:
        has_ended = process.poll() is not None
        said = log.read_text(encoding="utf-8", errors="replace")
        if found := SERVED.search(said):
            return found[1]
        if has_ended:
            lines = said.strip().splitlines() or ["it ended without a word"]
            raise ValueError(f"our own server did not start: {lines[-1].removeprefix('error: ')}")
        sleep(0.05)
    raise ValueError(f"our own server did not start within {START_SECONDS:g} seconds")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """In order, and if that takes too long, at once."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        waiting = Thread(target=process.wait, daemon=True)
        waiting.start()
        waiting.join(STOP_SECONDS)
    if process.poll() is None:
        end_group(process.pid)
        process.wait()


def api_key(given: str | None) -> str | None:
    """The key that was given, or that of the environment, as OpenAI's own client takes it."""
    return given or os.environ.get("OPENAI_API_KEY") or None
