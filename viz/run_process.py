"""A run that was asked for on the page: in a process of its own, watched by the trace that it writes.

    Run   ──► minivllm/console/run_requests.py, which is told the job, and records it
              │ trace, line by line
    page  ◄── `Watched`: the events so far, folded
    Stop  ──► its stdin is closed: it ends after the step that it is in

There is one at a time, for all windows of a dashboard: two that press at once see the same run. It ends with
the dashboard, however that ends (`minivllm/processes.py`), and soon after the last window that watches it was
closed. Nothing that a visitor types is in its command.

Read next: `views/run.py`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import msgspec

from minivllm.processes import child_command, end_in_order, python_variables
from minivllm.text import printable
from minivllm.trace.events import AnyEvent, TraceHeader
from minivllm.trace.replay import ReplayState, SequenceState
from viz.figures.common import names_of_requests
from viz.jobs import Job

NAME = "a run of our own"
PROGRAM = "minivllm.console.run_requests"
REFUSED = 2
LOOK_SECONDS = 0.05
MOST_SECONDS = 600.0
STOP_SECONDS = 3.0
"""For the step that it is in, once it was told to stop; then it is ended."""
MOST_ROWS = 24
MOST_TEXT = 400
ALONE_SECONDS = 15.0
"""A page that is loaded anew is away for a moment."""


class Row(NamedTuple):
    """A sequence as it is now."""

    tag: str
    """What its request is called in all pictures."""
    status: str
    """"waiting", "preempted", "prefill", "decode" or "done"."""
    num_tokens: int
    most_tokens: int
    text: str


class Now(NamedTuple):
    """The run as it is now: a copy, which the process that is being watched does not change."""

    step: int
    used_blocks: int
    num_blocks: int
    num_running: int
    num_waiting: int
    num_done: int
    """Sequences that have finished."""
    rows: tuple[Row, ...]


class Watched:
    """The run so far, as its trace tells it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now: Now | None = None
        self._state: ReplayState | None = None
        self._place = 0
        self._rest = b""
        self._decode = msgspec.json.Decoder(AnyEvent).decode

    @property
    def num_steps(self) -> int:
        return self._state.num_steps if self._state else 0

    def read(self) -> None:
        """Fold what was written since the last time."""
        with suppress(OSError):
            with self.path.open("rb") as file:
                file.seek(self._place)
                new = file.read()
            self._place += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                if self._state is None:
                    self._state = ReplayState(msgspec.json.decode(line, type=TraceHeader))
                else:
                    self._state.apply(self._decode(line))
            if lines and self._state is not None:
                self.now = _now(self._state)


def _now(state: ReplayState) -> Now:
    told = sorted([*state.finished.values(), *state.sequences.values()], key=lambda item: item.seq)
    names = names_of_requests(list(dict.fromkeys(item.request for item in told)))
    done = [item for item in told if item.finish_reason and item.finish_reason != "pruned"]
    going = [item for item in told if not item.finish_reason][:MOST_ROWS]
    room = MOST_ROWS - len(going)
    shown = sorted([*done[len(done) - min(room, len(done)) :], *going], key=lambda item: item.seq)
    waiting = frozenset(state.waiting)
    return Now(
        state.step,
        state.num_used_blocks,
        state.header.num_blocks,
        len(state.running),
        len(state.waiting),
        len(done),
        tuple(
            Row(names[item.request].tag, _status(item, waiting), item.num_output_tokens, item.max_tokens,
                item.text[-MOST_TEXT:])
            for item in shown
        ),
    )  # fmt: skip


def _status(item: SequenceState, waiting: frozenset[str]) -> str:
    if item.finish_reason:
        return "done"
    if item.request in waiting:
        return "preempted" if item.num_preemptions else "waiting"
    return "prefill" if item.is_prefilling else "decode"


class OwnRun:
    """A run that goes on."""

    def __init__(self, path: Path, settings: Any, num_requests: int) -> None:
        self.path, self.settings, self.num_requests = path, settings, num_requests
        self.watched = Watched(path)
        self.pid = 0
        self._stopped = threading.Event()
        self._watchers: set[str] = set()

    def stop(self) -> None:
        """End it soon; what it has recorded so far is its trace."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def watched_by(self, session: str) -> None:
        """While this window is open, it goes on."""
        self._watchers.add(session)

    @property
    def is_alone(self) -> bool:
        return bool(self._watchers) and not any(is_open(session) for session in self._watchers)


class Done(NamedTuple):
    """A run that has ended."""

    path: Path
    settings: Any
    was_stopped: bool
    seconds: float


def is_open(session: str) -> bool:
    """Is this window still open? Yes, where there is no telling."""
    from streamlit import runtime

    return not runtime.exists() or runtime.get_instance().is_active_session(session)


def work(run: OwnRun, job_words: dict[str, Any]) -> Callable[[Job], Done]:
    """The work of a job (`viz/jobs.py`), which tells nothing but the `OwnRun` that it was started with.

    Raises:
        ValueError: the engine refuses a setting or a request, in its words; or it failed, and its last ones.
    """

    def do(job: Job) -> Done:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                child_command("-m", PROGRAM),
                env=python_variables(PYTHONIOENCODING="utf-8"),
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said,
                start_new_session=True,
            )  # fmt: skip
            run.pid = process.pid
            try:
                assert process.stdin is not None
                with suppress(OSError):  # it has ended already: its words say why
                    process.stdin.write(json.dumps(job_words).encode() + b"\n")
                    process.stdin.flush()
                _follow(process, run)
            finally:
                with suppress(OSError):
                    process.stdin.close()  # type: ignore[union-attr]
                _goodbye(process)
            said.seek(0)
            last = _last_words(said.read().decode("utf-8", "replace"))
        return _done(run, job, process.returncode, last)

    return do


def _follow(process: subprocess.Popen[bytes], run: OwnRun) -> None:
    """Until it ends, or shall end."""
    began = seen = monotonic()
    while process.poll() is None and not run.is_stopped:
        run.watched.read()
        now = monotonic()
        if not run.is_alone:
            seen = now
        if now - began > MOST_SECONDS or now - seen > ALONE_SECONDS:
            run.stop()
        sleep(LOOK_SECONDS)


def _goodbye(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    end_in_order(process)


def _done(run: OwnRun, job: Job, code: int, last: str) -> Done:
    run.watched.read()
    has_steps = run.watched.num_steps > 0
    if not has_steps or (code and not run.is_stopped):
        with suppress(OSError):
            run.path.unlink()
    if code and not run.is_stopped:
        raise ValueError(last if code == REFUSED else f"the run ended with exit code {code}: {last}")
    if not has_steps:
        raise ValueError("it was stopped before its first step, so there is nothing to open")
    return Done(run.path, run.settings, run.is_stopped, job.seconds)


def _last_words(said: str) -> str:
    lines = [printable(line) for line in said.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it ended without a word"
