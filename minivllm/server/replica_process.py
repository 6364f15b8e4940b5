"""The server's end of a replica: its process is started, spoken with, and replaced when it dies.

    start ──► loading ── Ready ──► serving ── the socket closes ──► its requests are lost ──► start again
                 └─ Refused: at first the server does not start; later it is tried again, ever more rarely

Two threads for each replica: one starts the process and reads what it tells, one writes. So neither a replica
that is busy nor one that hangs holds up the server's event loop.

Read next: `replicas.py`, which spreads requests over several.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from math import inf
from queue import SimpleQueue
from typing import Protocol

from minivllm.processes import STOP_SECONDS, child_command, end_group, python_variables
from minivllm.server.engine_thread import EngineDeadError
from minivllm.server.replica_messages import (
    Answer,
    Ask,
    Failed,
    Outputs,
    Ready,
    Refused,
    Start,
    ToReplica,
    decode_from_replica,
    frame,
    receive,
)

logger = logging.getLogger(__name__)

MODULE = "minivllm.server.replica"
FIRST_PAUSE_SECONDS = 1.0
"""Before a replica that could not be started again is tried once more; then twice as long, and so on."""
LONGEST_PAUSE_SECONDS = 60.0
LAST_SECONDS = 1.0
"""That a replica may live on after it has closed its socket."""


class ReplicaListener(Protocol):
    """What hears of a replica. Called in the replica's own thread, so it returns at once."""

    def on_outputs(self, outputs: Outputs) -> None: ...

    def on_failure(self, failed: Failed) -> None: ...

    def on_death(self, index: int, life: int, error: EngineDeadError) -> None:
        """What was sent to this replica in this life, and is not answered, never will be."""


class ReplicaProcess:
    """One replica, in one process after the other.

    Args:
        index: its number among the replicas.
        start_of: the first message of the n-th process of this replica.
        variables: of its environment.

    Attributes:
        life: how many processes there were before this one.
        load: tokens that its requests may still come to compute; kept by `replicas.py`.
        num_running: requests in its batch, as it told last.
        is_ready: it serves.
    """

    def __init__(
        self,
        index: int,
        start_of: Callable[[int], Start],
        variables: Mapping[str, str],
        listener: ReplicaListener,
    ) -> None:
        self.index = index
        self.life = 0
        self.load = 0
        self.num_running = 0
        self.is_ready = False
        self.ready: Future[Ready] = Future()
        """What the first process has said when it served."""
        self._start_of = start_of
        self._variables = dict(variables)
        self._listener = listener
        self._lock = threading.Lock()  # around the questions, and the process
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._asked: dict[int, Future[Answer]] = {}
        self._numbers = count()
        self._outbox: SimpleQueue[tuple[socket.socket, bytes] | None] = SimpleQueue()
        name = f"minivllm-replica-{index}"
        self._writer = threading.Thread(target=self._write, name=f"{name}-writes", daemon=True)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._writer.start()
        self._thread.start()

    @property
    def outstanding_tokens(self) -> float:
        """For routers; infinitely many while it does not serve."""
        return self.load if self.is_ready else inf

    @property
    def pid(self) -> int | None:
        """Of its process; None between two of them."""
        process = self._process
        return process.pid if process else None

    def send(self, message: ToReplica) -> int | None:
        """Have this written. Returns in which life of the replica; None if it does not serve.

        Raises:
            ValueError: it cannot be written.
        """
        framed = frame(message)
        with self._lock:
            return self._put(framed)

    def ask(self, what: str) -> Future[Answer]:
        """Ask something of it. The answer may be an `EngineDeadError`."""
        answer: Future[Answer] = Future()
        number = next(self._numbers)
        framed = frame(Ask(number, what))
        with self._lock:
            if self._put(framed) is None:
                answer.set_exception(EngineDeadError(f"engine {self.index} does not serve"))
            else:
                self._asked[number] = answer
        return answer

    def _put(self, framed: bytes) -> int | None:
        if not self.is_ready or self._connection is None:
            return None
        self._outbox.put((self._connection, framed))
        return self.life

    def begin_to_stop(self) -> None:
        """Tell it to end: it sees that by its socket. Nothing replaces it."""
        with self._lock:
            self._stopping.set()
            if self._connection:
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Return when its process has ended."""
        self._thread.join()
        self._outbox.put(None)
        self._writer.join()

    # ── in its threads ────────────────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        while (item := self._outbox.get()) is not None:
            with suppress(OSError):  # it has died, which the other thread notices
                item[0].sendall(item[1])

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            has_served, words = self._live()
            if self._stopping.is_set():
                break
            if not self.ready.done():  # the server itself does not start
                self.ready.set_exception(ValueError(words))
                return
            logger.error("%s; another one is started", words)
            if has_served:
                pause = FIRST_PAUSE_SECONDS
                continue
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if not self.ready.done():
            self.ready.set_exception(EngineDeadError("the server was stopped"))

    def _live(self) -> tuple[bool, str]:
        """The life of one process. Returns whether it served, and how it ended."""
        try:
            ours = self._start()
        except OSError as error:
            return False, f"engine {self.index} cannot be started: {error}"
        if ours is None:
            return False, "the server was stopped"
        with ours:
            refusal = None
            with suppress(OSError):
                ours.sendall(frame(self._start_of(self.life)))
            while (body := receive(ours)) is not None:
                message = decode_from_replica(body)
                if isinstance(message, Refused):
                    refusal = message.message
                elif isinstance(message, Ready):
                    self._begin_to_serve(message)
                else:
                    self._hear(message)
            return self._end(refusal)

    def _start(self) -> socket.socket | None:
        """Our end of its socket; None if it is too late for that."""
        ours, its = socket.socketpair()
        with self._lock, its:
            if self._stopping.is_set():
                ours.close()
                return None
            self._process = subprocess.Popen(
                child_command("-m", MODULE, str(its.fileno())),
                env=python_variables(**self._variables),
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],  # no other process has it, so its end is seen at once
                start_new_session=True,
            )
            self._connection = ours
        return ours

    def _begin_to_serve(self, ready: Ready) -> None:
        with self._lock:
            self.is_ready = True
        if self.ready.done():
            logger.warning("engine %d serves again", self.index)
        else:
            self.ready.set_result(ready)

    def _hear(self, message: Outputs | Failed | Answer) -> None:
        if isinstance(message, Answer):
            with self._lock:
                asked = self._asked.pop(message.number, None)
            if asked and asked.set_running_or_notify_cancel():
                asked.set_result(message)
        elif isinstance(message, Failed):
            self._listener.on_failure(message)
        else:
            self.num_running = message.num_running
            self._listener.on_outputs(message)

    def _end(self, refusal: str | None) -> tuple[bool, str]:
        """Its socket is closed: so it ends, or has ended."""
        assert self._process is not None, "it was started"
        with self._lock:
            has_served, self.is_ready, self._connection = self.is_ready, False, None
            asked, self._asked = self._asked, {}
            life, self.life = self.life, self.life + 1
            self.num_running = 0
        # One that was told to end finishes its step first; for one that ended by itself callers wait.
        with suppress(subprocess.TimeoutExpired):
            is_orderly = has_served and self._stopping.is_set()
            self._process.wait(STOP_SECONDS if is_orderly else LAST_SECONDS)
        if self._process.poll() is None:
            end_group(self._process.pid)
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        words = refusal or f"engine {self.index} has ended ({how})"
        error = EngineDeadError(words)
        self._process = None
        for answer in asked.values():
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
        self._listener.on_death(self.index, life, error)
        return has_served, words
