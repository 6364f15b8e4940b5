"""What the device of this run can do at most, measured in the moment: the roof over the steps of its trace.

A trace that knows on what it ran can be held against that: FLOP/s of matrix products in the model's dtype,
and the bytes a second that a copy of much memory reads and writes. Both are the best of a few tries, since
what else runs on the machine can only make them slower. All of it takes about a tenth of a second, once for
each process, and only if a trace was asked for.

`minivllm/lab/bench/limits.py` begins with the same roof, and raises it where the engine's own kernels do
better.

Source: Williams, Waterman & Patterson, "Roofline" (CACM 2009). Read next: `minivllm/trace/work.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter

import torch

from minivllm.executor.processor import cpu_name
from minivllm.trace.events import HardwareShape

SIDES = {"cpu": 512, "cuda": 4096}
"""Of the matrices that are multiplied."""
COPIED_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
MOST_TRIES, MOST_SECONDS = 8, 0.06


def own_hardware(device: str, dtype: str) -> HardwareShape:
    """The roof of "cpu" or "cuda" in a dtype of torch, by name, with the threads that torch has now.

    It is measured when it is first asked for.
    """
    return _measured("cuda" if device.startswith("cuda") else "cpu", device, dtype, torch.get_num_threads())


@cache
def _measured(kind: str, device: str, dtype: str, threads: int) -> HardwareShape:
    side, numbers = SIDES[kind], COPIED_BYTES[kind] // 4
    with torch.inference_mode():
        left = torch.ones((side, side), dtype=getattr(torch, dtype, torch.float32), device=device)
        product = torch.empty_like(left)
        seconds = fastest(lambda: torch.mm(left, left, out=product), kind)
        peak = 2.0 * side**3 / seconds
        source = torch.ones(numbers, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        seconds = fastest(lambda: target.copy_(source), kind)
        bandwidth = 2.0 * 4 * numbers / seconds
    return HardwareShape(f"{_name(kind, threads)}, measured", peak, bandwidth)


def fastest(work: Callable[[], object], kind: str = "cpu", most_seconds: float = MOST_SECONDS) -> float:
    """The least seconds of a few tries, after one that does not count.

    Args:
        most_seconds: no further try begins after so long.
    """
    best, begin = float("inf"), perf_counter()
    for number in range(MOST_TRIES + 1):
        start = perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        now = perf_counter()
        if number:
            best = min(best, now - start)
        if number and now - begin > most_seconds:
            break
    return max(best, 1e-9)


def _name(kind: str, threads: int) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"
