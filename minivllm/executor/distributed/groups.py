"""Ranks that talk: `torch.distributed`, gloo between CPUs and NCCL between GPUs.

    control    all ranks         plans, from rank 0; gloo everywhere
    tensor     a row of the grid parts, from each to each
    world      all ranks         hidden states down the stages, logits back to rank 0

Groups are made as objects of their own and not by `init_process_group`, which knows one set of ranks a
process: so one program can have two engines, and a test can have all ranks in one process.

The NCCL path is written as torch's documentation says, and has not run: no machine with two GPUs was at hand.

Source: `stateless_init_torch_distributed_process_group` of vLLM. Read next: `rank_executor.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import get_ident
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store  # type: ignore[attr-defined]

from minivllm.executor.distributed.heartbeat import COMPUTING, TIMEOUT_SECONDS, Activity
from minivllm.model.parallel.layout import Grid
from minivllm.model.parallel.peers import Peers
from minivllm.trace.rank_spans import ALL_GATHER, RECEIVE, RECEIVE_LOGITS, SEND, SEND_LOGITS, RankSpans

MORE_SECONDS = 60.0
"""That a message may take beyond what a rank may: it is the watch (`heartbeat.py`) that knows the names."""
FOR_EVER = 10 * 365 * 24 * 3600
"""An idle engine's ranks wait for the next plan. If rank 0 ends meanwhile, they notice by themselves."""
FRAME_BYTES = 4096
"""Most plans fit into one message of this size; what does not is sent after it."""
HIDDEN, LOGITS = 1, 2
"""Tags."""


class PeerLostError(RuntimeError):
    """A rank that is needed does not answer any more."""


class Control:
    """Plans, from rank 0 to all."""

    def __init__(self, store: Store, rank: int, size: int, address: str) -> None:
        self._group = make_gloo(PrefixStore("control", store), rank, size, address, FOR_EVER)
        self._sent: deque[tuple[Any, Tensor]] = deque()  # and perhaps not received by every rank yet

    def broadcast(self, message: bytes, *, most_unheard: int = 0) -> None:
        """Of rank 0. Before it returns, all but the last `most_unheard` messages have been heard by all."""
        length = len(message).to_bytes(8, "little")
        framed = torch.frombuffer(bytearray(length + message), dtype=torch.uint8)
        first = torch.zeros(FRAME_BYTES, dtype=torch.uint8)
        first[: len(framed)] = framed[:FRAME_BYTES]
        parts = [first, framed[FRAME_BYTES:].clone()] if len(framed) > FRAME_BYTES else [first]
        with noticing_loss():
            self._sent += [(self._group.broadcast(part, 0), part) for part in parts]
            while len(self._sent) > most_unheard:
                self._sent.popleft()[0].wait()

    def next_message(self) -> bytes:
        """Of all others: wait for it."""
        data = self._hear(FRAME_BYTES)
        end = 8 + int.from_bytes(data[:8], "little")
        if end > FRAME_BYTES:
            data += self._hear(end - FRAME_BYTES)
        return data[8:end]

    def _hear(self, num_bytes: int) -> bytes:
        heard = torch.empty(num_bytes, dtype=torch.uint8)
        with noticing_loss():
            self._group.broadcast(heard, 0).wait()
        return heard.numpy().tobytes()


class GroupPeers(Peers):
    """The other ranks of a grid.

    Attributes:
        seconds: spent in sending to them and waiting for them, since it was set to 0.
        spans: where it notes when that was; nowhere, if None.
        activity: where it notes what it does now.
    """

    def __init__(
        self,
        store: Store,
        grid: Grid,
        rank: int,
        device: torch.device,
        address: str,
        seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._rank, self._row = rank, grid.group_of(rank, "tensor")
        column = grid.group_of(rank, "pipeline")
        place = grid.place(rank)
        self._before = column[place.pipeline - 1] if place.pipeline else None
        self._next = column[place.pipeline + 1] if place.pipeline + 1 < grid.pipeline else None
        self._last_row = grid.groups("tensor")[-1]
        self.spans: RankSpans | None = None
        self.activity = Activity()
        self._thread = get_ident()
        where = device, address, seconds + MORE_SECONDS
        self._world = make_group(PrefixStore("world", store), rank, grid.size, *where)
        self._tensor = self._world
        if grid.pipeline > 1 and grid.tensor > 1:
            row_store = PrefixStore(f"tensor-{place.pipeline}", store)
            self._tensor = make_group(row_store, place.tensor, grid.tensor, *where)

    def all_parts(self, own: Tensor) -> Tensor:
        if len(self._row) == 1:
            return own
        own = own.contiguous()
        everyone = own.new_empty(len(self._row) * len(own), *own.shape[1:])
        with self._talking(ALL_GATHER):
            self._tensor._allgather_base(everyone, own).wait()
        return everyone

    def parts_at_rank_0(self, own: Tensor) -> Tensor | None:
        if self._rank and self._rank not in self._last_row:
            return None
        with self._talking(SEND_LOGITS if self._rank else RECEIVE_LOGITS):
            if self._rank:
                self._world.send([own.contiguous()], 0, LOGITS).wait()
                return None
            found = [own if rank == 0 else torch.empty_like(own) for rank in self._last_row]
            for rank, parts in zip(self._last_row, found, strict=True):
                if rank:
                    self._world.recv([parts], rank, LOGITS).wait()
        return torch.cat(found)

    def send_on(self, hidden: Tensor) -> None:
        with self._talking(SEND):
            self._world.send([hidden.contiguous()], self._next, HIDDEN).wait()

    def receive(self, hidden: Tensor) -> Tensor:
        with self._talking(RECEIVE):
            self._world.recv([hidden], self._before, HIDDEN).wait()
        return hidden

    @contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        began = perf_counter()
        self.activity.begin(what)
        with noticing_loss():
            yield
        self.activity.begin(COMPUTING)
        if get_ident() != self._thread:
            return  # where plans overlap, rank 0 gets logits in another thread, and its stage does not wait
        if self.spans is not None:
            self.spans.note_talk(what, began, perf_counter())


@contextmanager
def noticing_loss() -> Iterator[None]:
    """What torch says in general words, of a connection that has ended, as a `PeerLostError`."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"another rank has ended, or does not answer: {error}") from None


def make_group(store: Store, rank: int, size: int, device: torch.device, address: str, seconds: float) -> Any:
    """The ranks of a group, able to exchange tensors on `device`."""
    if device.type == "cpu":
        return make_gloo(store, rank, size, address, seconds)
    from torch.distributed import ProcessGroupNCCL  # not in builds for CPUs

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=seconds)
    return ProcessGroupNCCL(store, rank, size, options)


def make_gloo(store: Store, rank: int, size: int, address: str, seconds: float) -> Any:
    options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=seconds)
    return ProcessGroupGloo(store, rank, size, options)
