"""The server's end of a replica: its program is started, spoken with, and replaced when it dies or hangs.

    start ──► loading ── Ready ──► serving ── the socket closes ──► its requests are lost ──► start again
                 │                    └────── or falls silent, or a step never ends: it is ended
                 └─ Refused: at first the server does not start; later it is tried again, ever more rarely

Two threads for each replica: one starts the program and reads what it tells, one writes. So neither a replica
that is busy nor one that hangs holds up the server's event loop.

Where the program runs is a `Home`'s business: `replica_process.py`, `replica_actor.py`.

Read next: `replicas.py`, which spreads requests over several.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from math import inf
from queue import SimpleQueue
from typing import Protocol

from minivllm.executor.distributed.heartbeat import silent_seconds
from minivllm.processes import START_SECONDS, STOP_SECONDS
from minivllm.server.engine_thread import EngineDeadError
from minivllm.server.replica import BEAT_SECONDS
from minivllm.server.replica_messages import (
    Answer,
    Ask,
    Beat,
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


class Program(Protocol):
    """The running program of a replica (`replica.py`), and the socket to it."""

    connection: socket.socket

    def ending(self, seconds: float) -> str | None:
        """How it has ended; None if it has not, after so many seconds."""

    def kill(self) -> str:
        """End it now. It is gone when this returns how it ended."""


class Home(Protocol):
    """Where replicas run."""

    def start(self, index: int, is_wanted: Callable[[], bool]) -> Program | None:
        """The program of this replica, connected; None if it was not wanted any more before it was.

        Raises:
            OSError: it cannot be started.
        """

    def close(self) -> None:
        """No replica is left."""


class ReplicaClient:
    """One replica, in one program after the other.

    Args:
        index: its number among the replicas.
        start_of: the first message to the n-th program of this replica.
        home: where they run.
        timeout_seconds: longest that a step may take, before the replica counts as hanging.

    Attributes:
        life: how many programs there were before this one.
        load: tokens that its requests may still come to compute; kept by `replicas.py`.
        num_running: requests in its batch, as it told last.
        is_ready: it serves.
    """

    def __init__(
        self,
        index: int,
        start_of: Callable[[int], Start],
        home: Home,
        listener: ReplicaListener,
        timeout_seconds: float,
    ) -> None:
        self.index = index
        self.life = 0
        self.load = 0
        self.num_running = 0
        self.is_ready = False
        self.ready: Future[Ready] = Future()
        """What the first program has said when it served."""
        self._start_of = start_of
        self._home = home
        self._listener = listener
        self._timeout_seconds = timeout_seconds
        self._last_beat = Beat()
        self._num_same = 0  # beats since a step ended
        self._lock = threading.Lock()  # around the questions, and the connection
        self._stopping = threading.Event()
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
        """Return when its program has ended."""
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
        """The life of one program. Returns whether it served, and how it ended."""
        try:
            program = self._start()
        except OSError as error:
            return False, f"engine {self.index} cannot be started: {error}"
        if program is None:
            return False, "the server was stopped"
        with program.connection as ours:
            with suppress(OSError):
                ours.sendall(frame(self._start_of(self.life)))
            try:
                refusal = self._listen(ours)
            except TimeoutError:
                hang = f"engine {self.index} has given no sign of life for {ours.gettimeout():g} seconds"
                return self._end(program, hang, is_hanging=True)
            except HangError as error:
                return self._end(program, str(error), is_hanging=True)
            return self._end(program, refusal)

    def _start(self) -> Program | None:
        """Its program; None if it is too late for that."""
        program = self._home.start(self.index, lambda: not self._stopping.is_set())
        with self._lock:
            if program is not None and not self._stopping.is_set():
                self._connection = program.connection
                self._last_beat, self._num_same = Beat(), 0
                return program
        if program is not None:
            program.connection.close()
            program.kill()
        return None

    def _listen(self, ours: socket.socket) -> str | None:
        """Hear all that it tells, until it closes the socket. Returns why it refuses to serve, if it does.

        Raises:
            TimeoutError: it is silent.
            HangError: it lives, and does not get on.
        """
        refusal = None
        ours.settimeout(START_SECONDS)
        while (body := receive(ours)) is not None:
            ours.settimeout(silent_seconds(self._timeout_seconds))
            message = decode_from_replica(body)
            if isinstance(message, Refused):
                refusal = message.message
            elif isinstance(message, Ready):
                self._begin_to_serve(message)
            elif isinstance(message, Beat):
                self._judge(message)
            else:
                self._hear(message)
        return refusal

    def _judge(self, beat: Beat) -> None:
        # Beats are counted, and no clock is asked: what stops both of us for a while is no hang.
        self._num_same = self._num_same + 1 if beat.is_busy and beat == self._last_beat else 0
        self._last_beat = beat
        if self._num_same * BEAT_SECONDS > self._timeout_seconds:
            raise HangError(
                f"engine {self.index} is at step {beat.num_steps + 1} for {self._timeout_seconds:g} seconds"
            )

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

    def _end(self, program: Program, why: str | None, *, is_hanging: bool = False) -> tuple[bool, str]:
        """Its socket is closed: so it ends, or has ended. Or it hangs, and is ended."""
        with self._lock:
            has_served, self.is_ready, self._connection = self.is_ready, False, None
            asked, self._asked = self._asked, {}
            life, self.life = self.life, self.life + 1
            self.num_running = 0
        # One that was told to end finishes its step first; for one that ended by itself callers wait.
        is_orderly = has_served and self._stopping.is_set()
        seconds = 0.0 if is_hanging else STOP_SECONDS if is_orderly else LAST_SECONDS
        how = program.ending(seconds) or program.kill()
        words = why or f"engine {self.index} has ended ({how})"
        error = EngineDeadError(words)
        for answer in asked.values():
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
        self._listener.on_death(self.index, life, error)
        return has_served, words


class HangError(RuntimeError):
    """A replica that lives, and does not get on."""
