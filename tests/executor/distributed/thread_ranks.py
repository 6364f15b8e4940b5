"""Ranks as threads of one process: the same messages between the same groups, and nothing to be started."""

import threading
from contextlib import contextmanager, suppress

import torch
from torch.distributed import HashStore

from minivllm.executor.distributed.cache_limits import CacheLimits
from minivllm.executor.distributed.distributed_executor import DistributedExecutor
from minivllm.executor.distributed.groups import GroupPeers
from minivllm.executor.distributed.launch import Ranks
from minivllm.executor.distributed.meeting import LOOPBACK, Meeting
from minivllm.executor.distributed.messages import RankSettings
from minivllm.executor.distributed.worker import serve_rank
from minivllm.model.config import ModelConfig
from minivllm.model.parallel.layout import choose_parts
from tests import patience


def run_ranks(grid, work):
    """`work(rank, peers)` on each rank of a grid, at once: what came out, by rank."""
    store, results, errors = HashStore(), [None] * grid.size, []

    def run(rank):
        try:
            peers = GroupPeers(store, grid, rank, torch.device("cpu"), LOOPBACK)
            with torch.inference_mode():
                results[rank] = work(rank, peers)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(grid.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience.SECONDS)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
    return results


class ThreadRanks(Ranks):
    """Threads in the place of processes; they are seen to their ends."""

    def __init__(self, size):
        store = HashStore()
        super().__init__(Meeting(store, 0, size, seconds=patience.SECONDS), LOOPBACK, size)
        self.threads = [
            threading.Thread(target=serve_rank, args=(Meeting(store, rank, size), LOOPBACK), daemon=True)
            for rank in range(1, size)
        ]
        for thread in self.threads:
            thread.start()

    def wait(self):
        super().wait()
        for thread in self.threads:
            patience.join(thread)


def start_threads(size, num_threads, seconds):
    """For `launch.start_processes`."""
    return ThreadRanks(size)


def be_rank(meeting):
    """As a process would be; its exit code is nobody's business here."""
    with suppress(SystemExit):
        serve_rank(meeting, LOOPBACK)


@contextmanager
def executor_on_threads(
    folder, grid, *, dtype="float64", num_parts=None, block_size=16, spans=False, kv="auto", **limits
):
    """A distributed executor whose other ranks are threads."""
    config = ModelConfig.from_folder(folder)
    settings = RankSettings(
        model=str(folder),
        dtype=dtype,
        device="cpu",
        tensor_parallel_size=grid.tensor,
        pipeline_parallel_size=grid.pipeline,
        num_parts=choose_parts(config, grid, num_parts),
        block_size=block_size,
        attention_backend="torch",
        kv_cache_dtype=kv,
        num_threads=1,
        record_spans=spans,
    )
    store = HashStore()
    threads = [
        threading.Thread(target=be_rank, args=(Meeting(store, rank, grid.size),), daemon=True)
        for rank in range(1, grid.size)
    ]
    for thread in threads:
        thread.start()
    ranks = Ranks(Meeting(store, 0, grid.size, seconds=patience.SECONDS), LOOPBACK, grid.size)
    executor = DistributedExecutor(settings, ranks, CacheLimits(**limits))
    try:
        yield executor
    finally:
        executor.close()
        for thread in threads:
            patience.join(thread)
