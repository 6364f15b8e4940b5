"""What a replica is told to load, and what of the machine it may use.

Each has the settings of the server, but its share of the memory and of the cores, a trace of its own, and
another seed: otherwise two users who send the same prompt to two replicas would get the same "random" text.

Read next: `replicas.py`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.settings import settings_of
from minivllm.executor.cpu_hazards import usable_cores
from minivllm.server.replica_messages import Start
from minivllm.trace.recorder import Recorder

MOST_SEED = 2**63


def start_of(args: EngineArgs, index: int, life: int) -> Start:
    """The settings of this replica's engine, in its process number `life`.

    Raises:
        ValueError: `trace` is an object of this process.
    """
    settings = {name: _plain(getattr(args, name)) for name in settings_of(EngineArgs)}
    size = args.data_parallel_size
    sharers = -(-size // max(1, torch.cuda.device_count()))
    return Start(
        settings
        | {
            "data_parallel_size": 1,
            "seed": (args.seed + index) % MOST_SEED,
            "gpu_memory_utilization": args.gpu_memory_utilization / sharers,
            "trace": trace_of(args.trace, index, life),
        }
    )


def variables_of(index: int, size: int) -> dict[str, str]:
    """The environment of a replica: its share of the cores, and its GPU where there are several."""
    threads = str(max(1, usable_cores() // size))
    variables = {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    if (num_devices := torch.cuda.device_count()) > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",") if named else [str(number) for number in range(num_devices)]
        variables["CUDA_VISIBLE_DEVICES"] = devices[index % num_devices]
    return variables


def trace_of(trace: str | Path | Recorder | None, index: int, life: int) -> str | None:
    """`run.jsonl` of engine 1 is `run.engine1.jsonl`, and of its second process `run.engine1-2.jsonl`."""
    if trace is None:
        return None
    if isinstance(trace, Recorder):
        raise ValueError("trace must be a path where data_parallel_size is above 1, got a Recorder")
    path = Path(trace)
    which = f".engine{index}" + (f"-{life + 1}" if life else "")
    return str(path.with_name(path.name.removesuffix(path.suffix) + which + path.suffix))


def _plain(value: Any) -> Any:
    """A value as MessagePack knows it."""
    if is_dataclass(value) and not isinstance(value, type):  # the one about speculation
        return {name: _plain(inner) for name, inner in asdict(value).items()}
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, Recorder) else value
