"""Ways to start ranks: by the engine itself, by `torchrun`, or by Ray.

    mp                   the engine starts a process for every other rank, and ends them with itself
    external_launcher    `torchrun` has started all of them, with the same program; ranks above 0 become
                         workers where the program makes its engine, and leave it from there
    ray                  the engine has Ray start an actor for every other rank, on its machine or on others
                         (`ray_ranks.py`)

However they are started, each of the others runs `worker.py`, and `Ranks` is what rank 0 has of them.

Names are vLLM's. A process of ours is no fork and needs no `if __name__ == "__main__"`: it runs a module of
its own (`worker.py`).

Read next: `meeting.py`; torch's documentation on `torchrun` for its variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from typing import NoReturn

from minivllm.executor.distributed.meeting import (
    LOOPBACK,
    Meeting,
    make_store,
    open_store,
    own_address,
)
from minivllm.executor.distributed.worker import serve_rank
from minivllm.executor.executor import RankError
from minivllm.processes import child_command, end_group, python_variables

WORKER = "minivllm.executor.distributed.worker"
END_SECONDS = 5.0
"""Time for a worker to end by itself, once it was told to."""


class Ranks:
    """The other ranks, as rank 0 has them. Of this class itself: another program has started and ends them.

    Args:
        meeting: where all ranks meet, as seen from rank 0.
        address: of this machine, for the others.
        num_local: ranks on this machine.
    """

    are_ours = False

    def __init__(self, meeting: Meeting, address: str, num_local: int) -> None:
        self.meeting, self.address, self.num_local = meeting, address, num_local

    def look(self) -> None:
        """Raise `RankError` if one of them has ended. Called again and again, so it takes no time."""

    def wait(self) -> None:
        """They were told to end: see them go."""

    def kill(self) -> None:
        """End them now. None is left when this returns, and the place to meet is closed."""
        self.meeting.close()


class Processes(Ranks):
    """Processes of this one's own, on this machine."""

    are_ours = True

    def __init__(self, meeting: Meeting, address: str, num_local: int) -> None:
        super().__init__(meeting, address, num_local)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._finalizer = weakref.finalize(self, _kill, self.processes)

    def look(self) -> None:
        for rank, process in self.processes.items():
            code = process.poll()
            if code is not None:
                raise RankError(f"rank {rank} has ended ({_ending(code)})")

    def wait(self) -> None:
        for process in self.processes.values():
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                break
        self.kill()

    def kill(self) -> None:
        self._finalizer()
        super().kill()


def start_processes(size: int, num_threads: int, seconds: float) -> Ranks:
    """A process for each rank but the first, which is this one."""
    store, port = make_store()
    meeting = Meeting(store, 0, size, seconds=seconds)
    ranks = Processes(meeting, LOOPBACK, size)
    variables = python_variables(**rank_variables(num_threads))
    for rank in range(1, size):
        arguments = LOOPBACK, str(port), str(rank), str(size)
        ranks.processes[rank] = subprocess.Popen(
            child_command("-m", WORKER, *arguments),
            env=variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    meeting.look = ranks.look
    return ranks


def rank_variables(num_threads: int) -> dict[str, str]:
    """What the environment of a rank says about threads."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "NUMBA_NUM_THREADS": str(num_threads),
        # Ranks that wait leave the cores to those that work.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def num_local_ranks() -> int:
    """Ranks that `torchrun` has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))


_num_meetings = 0
"""Engines of this program that other ranks have worked for."""


def meet_under_torchrun(size: int, seconds: float) -> Ranks:
    """The ranks that `torchrun` has started. Those above 0 do not return: they work, and end the program.

    Raises:
        ValueError: they are more or fewer than the engine's settings say.
        RuntimeError: this program has had its engine.
    """
    global _num_meetings
    started, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if started != size:
        raise ValueError(
            f"tensor_parallel_size times pipeline_parallel_size is {size}, but torchrun has started "
            f"{started} processes: both must be the same number"
        )
    if _num_meetings:
        raise RuntimeError(
            "under torchrun a program has one engine: its other ranks have worked for the first"
        )
    _num_meetings += 1
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"minivllm/{os.environ['TORCHELASTIC_RUN_ID']}/{restarts}"
    store = open_store(master, port, is_master=is_master, name=name)
    meeting = Meeting(store, rank, size, seconds=seconds)
    address = own_address(master)
    if rank:
        _work_and_leave(meeting, address)
    return Ranks(meeting, address, num_local_ranks())


def _work_and_leave(meeting: Meeting, address: str) -> NoReturn:
    local_rank = int(os.environ.get("LOCAL_RANK", meeting.rank))
    serve_rank(meeting, address, local_rank, watches_rank_0=True)
    sys.exit(0)


def _kill(processes: dict[int, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        if process.poll() is None:
            end_group(process.pid)
            process.kill()
    for process in processes.values():
        process.wait()
    processes.clear()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
