"""How ranks find each other: a store that all of them reach, and what is said there before they can talk.

    rank 0                       the store                     rank r
    settings ─────────────────►  settings
                                 here/r  ◄──────────────────── I have come
                                 loaded/r  ◄────────────────── my weights are in place, so many bytes
    sizes ────────────────────►  sizes  ─────────────────────► so many blocks
                                 ready/r  ◄─────────────────── my cache is there, so many bytes
                                 failed/r  ◄────────────────── or: what went wrong

The store is torch's own (`TCPStore`): a small server in the process of rank 0, at a port that the operating
system gives, so that two engines on one machine never meet; with `torchrun`, the one that it started.

A rank that does not come is named, with what is known of it: nothing here waits for ever.

Read next: `groups.py`, then `distributed_executor.py`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from minivllm.executor.executor import RankError

LOOPBACK = "127.0.0.1"
START_SECONDS = 300.0
"""Longest that ranks may take to come, or to load a model."""
LOOK_SECONDS = 0.02


class Meeting:
    """One rank's view of the store.

    Args:
        store: shared by all ranks.
        rank, size: which of them this is, and how many come.
        look: called while waiting; it raises if there is no point in waiting any more.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        look: Callable[[], None] = lambda: None,
        seconds: float = START_SECONDS,
    ) -> None:
        self._store: Store | None = store
        self.rank, self.size = rank, size
        self.look, self.seconds = look, seconds

    def close(self) -> None:
        """Leave the store. It ends, and its port is free, once no rank has it any more."""
        self._store = None

    @property
    def store(self) -> Store:
        if self._store is None:
            raise RankError("the ranks have ended")
        return self._store

    def own_store(self) -> Store:
        """A connection of its own to the store, for another thread, which then never waits for this one's."""
        clone = getattr(self.store, "clone", None)  # torch 2.8
        return clone() if clone else self.store

    def say(self, key: str, message: str | bytes = "") -> None:
        """For all to read."""
        self.store.set(key, message.decode() if isinstance(message, bytes) else message)

    def note(self, key: str, message: str = "") -> None:
        """As `say`, of this rank."""
        self.say(f"{key}/{self.rank}", message)

    def hear(self, key: str) -> bytes:
        """What was said, once it has been.

        Raises:
            RankError: no rank has said it in time.
        """
        self._wait([key], lambda _: f"rank 0 has not told the others its {key}")
        return bytes(self.store.get(key))

    def wait_for_all(self, key: str, what: str) -> list[bytes]:
        """Until every other rank has noted this; what each has noted.

        Raises:
            RankError: a rank has not, in time, or it has failed; `what` it should have done.
        """
        others = [f"{key}/{rank}" for rank in range(self.size) if rank != self.rank]

        def late(missing: list[str]) -> str:
            ranks = ", ".join(name.rpartition("/")[2] for name in missing)
            return f"rank {ranks} of {self.size} has not {what} within {self.seconds:.0f} seconds"

        self._wait(others, late)
        return [bytes(self.store.get(name)) for name in others]

    def _wait(self, keys: list[str], late: Callable[[list[str]], str]) -> None:
        end = time.monotonic() + self.seconds
        while missing := [key for key in keys if not self.store.check([key])]:
            try:
                self.look()
            except RankError:  # if it has told why, that is what counts
                self._look_for_failures()
                raise
            self._look_for_failures()
            if time.monotonic() > end:
                raise RankError(late(missing))
            time.sleep(LOOK_SECONDS)

    def _look_for_failures(self) -> None:
        for rank in range(self.size):
            if self.store.check([f"failed/{rank}"]):
                raise RankError(f"rank {rank}: {self.store.get(f'failed/{rank}').decode()}")


def make_store(address: str = LOOPBACK) -> tuple[Store, int]:
    """A store in this process, and its port: one that is free, at this address of the machine only."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        # Left to itself, the store would listen at all of the machine's addresses.
        master = {"is_master": True, "master_listen_fd": listener.detach()}
    return _store(address, port, **master), port


def open_store(address: str, port: int, *, is_master: bool = False, name: str = "") -> Store:
    """The store at this address, which is elsewhere, or made here for all that know the address."""
    store = _store(address, port, is_master=is_master)
    return PrefixStore(name, store) if name else store


def _store(address: str, port: int, **master: Any) -> Store:
    seconds = timedelta(seconds=START_SECONDS)
    return TCPStore(address, port, world_size=None, timeout=seconds, wait_for_workers=False, **master)


def own_address(master: str) -> str:
    """The address of this machine at which others reach it, if they reach the one called `master`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:  # nothing is sent
        route.connect((master, 9))
        return str(route.getsockname()[0])
