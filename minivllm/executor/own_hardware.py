"""What the device of this run can do at most, measured in the moment: the roof over the steps of its trace.

A trace that knows on what it ran can be held against that: FLOP/s of matrix products in the model's dtype,
and the bytes a second that a copy of much memory reads and writes. Both are the best of a few tries, since
what else runs on the machine can only make them slower. All of it takes about a tenth of a second, once for
each process, and only if a trace was asked for.

Source: Williams, Waterman & Patterson, "Roofline" (CACM 2009). Read next: `minivllm/trace/work.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from minivllm.trace.events import HardwareShape

CPU_INFO = Path("/proc/cpuinfo")
SIDES = {"cpu": 512, "cuda": 4096}
"""Of the matrices that are multiplied."""
COPIED_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
MOST_TRIES, MOST_SECONDS = 8, 0.06


@cache
def own_hardware(device: str, dtype: str) -> HardwareShape:
    """The roof of "cpu" or "cuda" in a dtype of torch, by name; measured when it is first asked for."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    side, numbers = SIDES[kind], COPIED_BYTES[kind] // 4
    with torch.inference_mode():
        left = torch.ones((side, side), dtype=getattr(torch, dtype, torch.float32), device=device)
        product = torch.empty_like(left)
        seconds = _fastest(lambda: torch.mm(left, left, out=product), kind)
        peak = 2.0 * side**3 / seconds
        source = torch.ones(numbers, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        seconds = _fastest(lambda: target.copy_(source), kind)
        bandwidth = 2.0 * 4 * numbers / seconds
    return HardwareShape(f"{_name(kind)}, measured", peak, bandwidth)


def _fastest(work: Callable[[], object], kind: str) -> float:
    """The least seconds of a few tries, after one that does not count."""
    best, begin = float("inf"), perf_counter()
    for number in range(MOST_TRIES + 1):
        start = perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        now = perf_counter()
        if number:
            best = min(best, now - start)
        if number and now - begin > MOST_SECONDS:
            break
    return max(best, 1e-9)


def cpu_name() -> str:
    """What the processor calls itself."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _name(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"{cpu_name()}, {count} thread{'' if count == 1 else 's'}"
