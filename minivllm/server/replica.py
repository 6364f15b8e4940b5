"""A replica: a process with an engine of its own, which works for the server that has started it.

    socket ── Add ──► a task around `AsyncLLM.generate` ──► all outputs of a step ── Outputs ──► socket
    engine ── how many steps it has done ── Beat, once a second ───────────────────────────────► socket

So a request has here all that it has in a server with one engine. The process ends when its server closes the
socket, when its server ends in any way (`minivllm/processes.py`), and when its engine does: then the server
starts another.

    python -m minivllm.server.replica FD        what `replica_process.py` starts
    join_server(address, port, token)           the same in an actor of Ray's (`replica_actor.py`)

Read next: `replica_client.py`, the other end of the socket.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.outputs import RequestOutput
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.engine_report import report_of
from minivllm.server.engine_thread import EngineDeadError
from minivllm.server.replica_messages import (
    LENGTH,
    Abort,
    Add,
    Answer,
    Ask,
    Beat,
    FromReplica,
    Leave,
    Outputs,
    Ready,
    Refused,
    Start,
    decode_params,
    decode_to_replica,
    failure_of,
    frame,
    receive,
)
from minivllm.trace.engine_counts import EngineCounts

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
LOOK_SECONDS = 0.05
"""Time between two looks at how many requests are in the batch, while there are any."""


class Replica:
    """Answers the server's messages. Lives in one event loop.

    Args:
        counts: a sink of the engine's events.
    """

    def __init__(self, engine: Engine, counts: EngineCounts, writer: asyncio.StreamWriter) -> None:
        self._llm = AsyncLLM(engine)
        self._engine = engine
        self._counts = counts
        self._writer = writer
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._names: dict[int, str] = {}
        self._asks: set[asyncio.Task[None]] = set()
        self._outputs: list[tuple[int, RequestOutput]] = []  # of a step, until the loop has dealt with it
        self._num_running = 0  # as the server knows it
        self._looking: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serve until the socket is closed, or the engine has ended."""
        self._send(Ready(self._llm.max_model_len))
        self._reading = asyncio.create_task(self._read(reader))
        beating = asyncio.create_task(self._beat())
        try:
            await asyncio.wait([self._reading])
        finally:
            beating.cancel()
            self._writer.close()
            self._llm.shutdown()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                size = LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]
                body = await reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):  # the server has ended, or ends us
                return
            await self._obey(decode_to_replica(body))

    async def _obey(self, message: object) -> None:
        if isinstance(message, Add):
            serving = asyncio.create_task(self._serve(message))
            self._requests[message.number] = serving
            self._names[message.number] = message.request_id
            serving.add_done_callback(partial(self._forget, message.number))
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
            await asyncio.sleep(0)  # it has begun before the next message, which may abort it, is read
        elif isinstance(message, Leave):
            if task := self._requests.get(message.number):
                task.cancel()
        elif isinstance(message, Abort):
            if name := self._names.get(message.number):
                await self._llm.abort(name)
        elif isinstance(message, Ask):
            asking = asyncio.create_task(self._answer(message))
            self._asks.add(asking)
            asking.add_done_callback(self._asks.discard)

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        del self._requests[number], self._names[number]

    async def _serve(self, add: Add) -> None:
        number = add.number
        prompt = {"prompt": add.prompt, "prompt_token_ids": add.token_ids, "cache_salt": add.cache_salt}
        try:
            params = decode_params(add.params)
            outputs = self._llm.generate(
                prompt, params, add.request_id, priority=add.priority, take=partial(self._take, number)
            )
            async for output in outputs:
                self._take(number, output)
        except EngineDeadError:
            if self._reading:
                self._reading.cancel()  # a process whose engine has ended is of no use
        except Exception as error:
            self._flush()  # what came before is told before
            self._send(failure_of(number, error))

    def _take(self, number: int, output: RequestOutput) -> bool:
        """An output is told with all others of its step."""
        if not self._outputs:
            asyncio.get_running_loop().call_soon(self._flush)
        output.prompt, output.prompt_token_ids = None, ()
        self._outputs.append((number, output))
        return True

    def _flush(self) -> None:
        items, self._outputs = self._outputs, []
        if items:
            self._num_running = self._count_running()
            self._send(Outputs(items, self._num_running))

    def _count_running(self) -> int:
        return self._llm.num_unfinished_requests - self._llm.num_waiting_requests

    async def _look(self) -> None:
        """The server counts those that wait: it hears of requests that begin, and tell nothing for long."""
        while self._requests or self._num_running:
            await asyncio.sleep(LOOK_SECONDS)
            if self._num_running != (now := self._count_running()):
                self._num_running = now
                self._send(Outputs([], now))
        self._looking = None

    async def _beat(self) -> None:
        while True:
            self._send(Beat(self._engine.num_steps, self._count_running() > 0))
            await asyncio.sleep(BEAT_SECONDS)

    async def _answer(self, ask: Ask) -> None:
        try:
            if ask.what == "reset":
                answer = Answer(ask.number, await self._llm.reset_prefix_cache())
            else:
                answer = Answer(ask.number, report=report_of(self._counts, self._engine))
            self._send(answer)
        except EngineDeadError:
            if self._reading:
                self._reading.cancel()

    def _send(self, message: FromReplica) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame(message))


def run(connection: socket.socket) -> None:
    """Load the model that the first message names, and serve."""
    first = receive(connection)
    if first is None:
        return
    start = decode_to_replica(first)
    if not isinstance(start, Start):
        raise RuntimeError(f"a replica begins with Start, got {type(start).__name__}")
    counts = EngineCounts()
    try:
        with beating(connection):
            engine = create_engine(EngineArgs(**start.settings), sinks=[counts])
    except (ValueError, OSError) as error:
        connection.sendall(frame(Refused(str(error))))
        return
    asyncio.run(_serve(engine, counts, connection))


def join_server(address: str, port: int, token: bytes) -> None:
    """Serve the server that waits there, and knows by the token that it is us."""
    with socket.create_connection((address, port)) as connection:
        connection.sendall(token)
        run(connection)


@contextmanager
def beating(connection: socket.socket) -> Iterator[None]:
    """A beat a second while a model is loaded, when there is no event loop yet."""
    is_loaded = threading.Event()

    def beat() -> None:
        with suppress(OSError):  # the server has ended
            while not is_loaded.wait(BEAT_SECONDS):
                connection.sendall(frame(Beat()))

    thread = threading.Thread(target=beat, name="minivllm-beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_loaded.set()
        thread.join()


async def _serve(engine: Engine, counts: EngineCounts, connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 20)
    await Replica(engine, counts, writer).run(reader)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its server ends it
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        run(inherited)
