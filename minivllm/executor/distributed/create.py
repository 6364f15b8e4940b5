"""From settings to a distributed executor: what the model allows is checked, and ranks are started.

Read next: `distributed_executor.py`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from minivllm.executor.cpu_hazards import note_parallel_run, usable_cores
from minivllm.executor.distributed import ray_cluster
from minivllm.executor.distributed.cache_limits import CacheLimits
from minivllm.executor.distributed.distributed_executor import DistributedExecutor
from minivllm.executor.distributed.heartbeat import TIMEOUT_SECONDS
from minivllm.executor.distributed.launch import (
    Ranks,
    is_under_torchrun,
    meet_under_torchrun,
    num_local_ranks,
    start_processes,
)
from minivllm.executor.distributed.meeting import START_SECONDS
from minivllm.executor.distributed.messages import RankSettings
from minivllm.executor.distributed.ray_ranks import start_actors
from minivllm.executor.kv_format import AUTO
from minivllm.executor.torch_executor import name_of, torch_device_for, torch_dtype_for
from minivllm.model.config import ModelConfig
from minivllm.model.hub import resolve_model
from minivllm.model.parallel.layout import Grid, choose_parts, wanted_partition
from minivllm.model.quantization.choose import choose_method

logger = logging.getLogger("minivllm")
NOTHING_ASKED = CacheLimits()


def create_distributed_executor(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    block_size: int = 16,
    attention_backend: str = "auto",
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    reduction_parts: int | None = None,
    launcher: str | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str = AUTO,
    batch_invariant: bool = False,
    limits: CacheLimits = NOTHING_ASKED,
    record_spans: bool = False,
    start_seconds: float = START_SECONDS,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> DistributedExecutor:
    """Start the ranks, or meet them, and let each load its share.

    Under `torchrun` only rank 0 returns: the others work, and end the program.

    Args:
        launcher: as `launch.py` names them; what fits, if None.
        timeout_seconds: that no rank may get on within a step, before they count as hanging.
        record_spans: let each rank note when it does what (`DistributedExecutor.rank_times`).

    Raises:
        ValueError: the model cannot be shared so, or cannot be read; nothing was started.
        RankError: a rank has not come within `start_seconds`, or has failed; no process is left.
    """
    config = ModelConfig.from_folder(folder := resolve_model(path))
    choose_method(config.quantization, quantization)
    config.check_max_model_len(limits.max_model_len)
    grid = _grid(pipeline_parallel_size, tensor_parallel_size)
    num_parts = choose_parts(config, grid, reduction_parts)
    kind = torch_device_for(device).type
    external = uses_torchrun(launcher, grid.size, kind)
    num_threads = threads_of_a_rank(num_local_ranks() if external else grid.size)
    settings = RankSettings(
        model=str(path if external or not Path(path).exists() else folder.resolve()),
        dtype=str(torch_dtype_for(dtype, config)).removeprefix("torch."),
        device=kind,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        layers=grid.layers,
        num_parts=num_parts,
        block_size=block_size,
        attention_backend="torch" if attention_backend == "auto" else attention_backend,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        record_spans=record_spans,
        timeout_seconds=timeout_seconds,
        batch_invariant=batch_invariant,
        num_threads=num_threads,
    )
    note_parallel_run(num_threads)
    ranks = start_ranks("external_launcher" if external else launcher, grid.size, num_threads, start_seconds)
    return DistributedExecutor(settings, ranks, limits, name_of(path, folder))


def _grid(num_stages: int, num_ranks: int) -> Grid:
    """Stages of so many ranks, with the layers that the environment gives them."""
    return Grid(1, num_stages, num_ranks, wanted_partition(os.environ) if num_stages > 1 else ())


def start_ranks(launcher: str | None, size: int, num_threads: int, seconds: float) -> Ranks:
    """The other ranks, in the way that was asked for."""
    if launcher == "external_launcher":
        return meet_under_torchrun(size, seconds)
    if launcher == "ray" and size > 1:
        return start_actors(size, num_threads, seconds)
    return start_processes(size, num_threads, seconds)


def uses_torchrun(launcher: str | None, num_ranks: int, device: str) -> bool:
    """Have the ranks been started by `torchrun`?

    Raises:
        ValueError: it was said so, and there is no `torchrun`; or Ray was asked for, and cannot be had.
    """
    if launcher == "ray":
        ray_cluster.check("distributed_executor_backend", device)
    if launcher == "external_launcher" and not is_under_torchrun():
        raise ValueError(
            "distributed_executor_backend is 'external_launcher', but this program was not started by "
            f"torchrun: torchrun --nproc-per-node {num_ranks} -m minivllm generate …"
        )
    return is_under_torchrun() if launcher is None else launcher == "external_launcher"


def threads_of_a_rank(num_ranks: int) -> int:
    """Cores are shared out; a rank has at least one thread, and no more than torch would take by itself."""
    cores = usable_cores()
    if num_ranks > cores:
        logger.warning(
            "%d ranks share %d cores: this is for learning, and slower than fewer ranks", num_ranks, cores
        )
    return max(1, min(torch.get_num_threads(), cores // num_ranks))
