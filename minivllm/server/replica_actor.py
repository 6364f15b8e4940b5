"""Replicas as actors in a Ray cluster, each on any of its machines.

    server    listens at an address that the replica reaches, for as long as one is expected
    actor     connects to it, shows the token that came with its task, and is from then on as any other

Replicas are spread over the machines, since they never talk to each other. What becomes of a replica is read
off its connection, as with a process; an actor whose machine is gone falls silent.

Read next: `minivllm/executor/distributed/ray_cluster.py`.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable

from minivllm.executor.distributed.meeting import LOOPBACK, START_SECONDS
from minivllm.executor.distributed.ray_cluster import Actor, Bundles
from minivllm.executor.executor import RankError
from minivllm.server.replica import join_server
from minivllm.server.replica_settings import variables_of

LOOK_SECONDS = 0.2
"""Time between two looks at an actor that has not come yet."""
TOKEN_SECONDS = 5.0
"""For who has connected to show the token."""
TOKEN_BYTES = 32


class ActorHome:
    """See `Home`: a bundle for each of `size` replicas, with as many CPUs as it has threads.

    Raises:
        ValueError: there is no cluster, or no room in it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        num_threads = int(variables_of(0, size)["OMP_NUM_THREADS"])
        try:
            self._bundles = Bundles(size, num_threads, "SPREAD", seconds=START_SECONDS)
        except RankError as error:
            raise ValueError(str(error)) from None

    def start(self, index: int, is_wanted: Callable[[], bool]) -> ReplicaActor | None:
        try:
            return self._start(index, is_wanted)
        except RankError as error:
            raise OSError(str(error)) from None

    def _start(self, index: int, is_wanted: Callable[[], bool]) -> ReplicaActor | None:
        is_here = self._bundles.machines()[index] == ""
        address = LOOPBACK if is_here else self._bundles.address
        token = secrets.token_bytes(TOKEN_BYTES)
        with socket.create_server((address, 0)) as listener:
            place = address, listener.getsockname()[1], token
            variables = variables_of(index, self._size)
            actor = self._bundles.start(index, join_server, *place, variables=variables)
            try:
                while is_wanted():
                    if ending := actor.ending():
                        raise OSError(ending)
                    if connection := _accept(listener, token):
                        return ReplicaActor(actor, connection)
            except BaseException:
                actor.kill()
                raise
        actor.kill()
        return None

    def close(self) -> None:
        self._bundles.close()


class ReplicaActor:
    """See `Program`."""

    def __init__(self, actor: Actor, connection: socket.socket) -> None:
        self.connection = connection
        self._actor = actor

    def ending(self, seconds: float) -> str | None:
        return self._actor.ending(seconds)

    def kill(self) -> str:
        self._actor.kill()
        return "its actor was ended"


def _accept(listener: socket.socket, token: bytes) -> socket.socket | None:
    """The first that connects within a moment and has the token."""
    listener.settimeout(LOOK_SECONDS)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    connection.settimeout(TOKEN_SECONDS)
    try:
        shown = connection.recv(TOKEN_BYTES, socket.MSG_WAITALL)
    except OSError:
        shown = b""
    if hmac.compare_digest(shown, token):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection.close()
    return None
