"""Replicas as processes of the server's own, on its machine.

    server ◄── a pair of sockets, one of them handed on ──► python -m minivllm.server.replica FD

A process ends when its server closes the socket, and when its server ends in any way
(`minivllm/processes.py`).

Read next: `replica.py`, what it runs.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable

from minivllm.processes import child_command, end_group, python_variables
from minivllm.server.replica_settings import variables_of

MODULE = "minivllm.server.replica"


class ProcessHome:
    """See `Home`. `size` replicas share this machine."""

    def __init__(self, size: int) -> None:
        self._size = size

    def start(self, index: int, is_wanted: Callable[[], bool]) -> ReplicaProcess | None:
        if not is_wanted():
            return None
        ours, its = socket.socketpair()
        with its:
            process = subprocess.Popen(
                child_command("-m", MODULE, str(its.fileno())),
                env=python_variables(**variables_of(index, self._size)),
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],  # no other process has it, so its end is seen at once
                start_new_session=True,
            )
        return ReplicaProcess(process, ours)

    def close(self) -> None:
        """Each process was ended by who had it."""


class ReplicaProcess:
    """See `Program`."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.connection = connection
        self._process = process

    def ending(self, seconds: float) -> str | None:
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> str:
        end_group(self._process.pid)
        self._process.wait()
        return self.ending(0) or "it was ended"
