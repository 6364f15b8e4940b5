"""The judge's process, seen from outside: what it is told, what it says, and when it is given up.

It is given up when it has been silent for some seconds *and* has done nothing meanwhile: it sleeps, or waits.
A process that works, however slowly on a busy machine, is waited for; how long a story may take, the judge
itself watches, in processor time. Before it is ready nothing is counted: imports take what they take.

Read next: `judge.py`, what runs in it.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO, Any

import psutil

from lessons.catalogue import Lesson
from minivllm.processes import child_command, end_group, python_variables

SILENCE_SECONDS = 20.0
"""Without a word from the judge."""
IDLE_SHARE = 0.01
"""Of a processor: one that uses less does nothing."""
START_SECONDS = 600.0
"""Until it is ready; a disk may be slow."""
STUCK_SECONDS = 60.0
"""Of processor time without a word: a loop that Python cannot interrupt."""


class JudgeProcess:
    """A judge that runs. `tell` it something, read its `words`; it ends with the block.

    Args:
        wishes: the first line that it is told.
        scratch: a folder for what it writes, and for what the learner's code takes for temporary.
    """

    def __init__(self, lesson: Lesson, path: Path, wishes: dict[str, Any], scratch: Path) -> None:
        variables = python_variables(
            PYTHONHASHSEED="0",
            OMP_NUM_THREADS="1",
            PYTHONDONTWRITEBYTECODE="1",
            **written_in(scratch),
        )
        self._process = subprocess.Popen(
            child_command("-m", "lessons.judge", lesson.name, str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._is_ready = False
        self.tell(wishes)
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()

    def __enter__(self) -> JudgeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end_group(self._process.pid)
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a line. One that the process reads no more is no error: `words` says what has happened."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def words(self) -> Iterator[dict[str, Any]]:
        """What it says, up to "done"; or a last word of ours, "lost", and what has happened to it."""
        while True:
            line = self._next_line()
            if line is None:
                what = f"none within {SILENCE_SECONDS:g} seconds, uninterruptible: does it sleep, or wait?"
                yield {"event": "lost", "what": what}
                return
            if not line:
                code = self._process.wait()
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                yield {"event": "lost", "what": f"the end of the whole Python process ({how})"}
                return
            message = _as_message(line)
            event = message["event"]
            if event == "ready":
                self._is_ready = True
                continue
            yield message
            if event in ("done", "lost"):
                return

    def _next_line(self) -> bytes | None:
        """Its next line, b"" at the end; None if it does nothing, or nothing that comes to an end."""
        begun, silent_since = monotonic(), self._processor_seconds()
        while True:
            before = self._processor_seconds()
            try:
                return self._lines.get(timeout=SILENCE_SECONDS)
            except queue.Empty:
                now = self._processor_seconds()
            if not self._is_ready and monotonic() - begun < START_SECONDS:
                continue
            if now - before < IDLE_SHARE * SILENCE_SECONDS or now - silent_since > STUCK_SECONDS:
                return None

    def _processor_seconds(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)


def written_in(scratch: Path) -> dict[str, str]:
    """Variables of a process that judges: what it writes lies there, and not where the learner works."""
    return {"TMPDIR": str(scratch), "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis")}


def _as_message(line: bytes) -> dict[str, Any]:
    """A line of the judge; what is none was not written by it."""
    with suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict) and isinstance(message.get("event"), str):
            return message
    return {"event": "lost", "what": "words that are not the judge's: what writes to its files?"}


def _read(stream: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")
