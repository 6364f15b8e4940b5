"""Ranks that Ray starts: an actor for each, on this machine or on others of the cluster.

    bundle 0    this process, rank 0          bundle 1    an actor, rank 1          …

A bundle has as many CPUs as a rank has threads. They are packed on as few machines as possible, since ranks
exchange parts in every layer, but need not be on one (as STRICT_PACK would have it): what does not fit there
is why one asks for Ray. Ranks that follow each other, as those of one stage do, are on the same machine where
that can be.

An actor runs what the process of another rank runs (`worker.py`), and meets the others at a store at rank 0's
address. Ray itself carries nothing but the start and the end.

Read next: `ray_cluster.py`.
"""

from __future__ import annotations

import weakref

from minivllm.executor.distributed import worker
from minivllm.executor.distributed.launch import END_SECONDS, Ranks, rank_variables
from minivllm.executor.distributed.meeting import LOOPBACK, Meeting, make_store
from minivllm.executor.distributed.ray_cluster import Actor, Bundles
from minivllm.executor.executor import RankError


class RayRanks(Ranks):
    """Actors of ours."""

    are_ours = True

    def __init__(self, meeting: Meeting, address: str, num_local: int, bundles: Bundles) -> None:
        super().__init__(meeting, address, num_local)
        self.actors: dict[int, Actor] = {}
        self._finalizer = weakref.finalize(self, bundles.close)

    def look(self) -> None:
        for rank, actor in self.actors.items():
            if ending := actor.ending():
                raise RankError(f"rank {rank} has ended ({ending})")

    def wait(self) -> None:
        for actor in self.actors.values():
            if actor.ending(END_SECONDS) is None:
                break
        self.kill()

    def kill(self) -> None:
        self._finalizer()
        super().kill()


def start_actors(size: int, num_threads: int, seconds: float) -> Ranks:
    """An actor for each rank but the first, which is this process.

    Raises:
        ValueError: there is no such cluster.
        RankError: it has no room.
    """
    bundles = Bundles(size, num_threads, "PACK", first_here=True, seconds=seconds)
    try:
        machines = bundles.machines()
        num_local = machines.count("")
        address = LOOPBACK if num_local == size else bundles.address
        store, port = make_store(address)
        meeting = Meeting(store, 0, size, seconds=seconds)
        ranks = RayRanks(meeting, address, num_local, bundles)
        by_machine = sorted(range(1, size), key=lambda bundle: machines[bundle])  # this one first
        for rank, bundle in enumerate(by_machine, 1):
            where = address, str(port), str(rank), str(size)
            variables = rank_variables(num_threads)
            ranks.actors[rank] = bundles.start(bundle, worker.main, *where, variables=variables)
    except BaseException:
        bundles.close()
        raise
    meeting.look = ranks.look
    return ranks
