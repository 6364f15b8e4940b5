"""What this machine can do at most: how fast it reads memory, and how fast it multiplies matrices.

Floors are made of these two: a step cannot be shorter than it takes to read what it must read, nor than it
takes to multiply what it must multiply. Both are measured here, with as many threads as the engine has, and
the best of several samples counts: a limit is what is possible, and not what is usual. So multiplication
begins with the roof that every trace is given (`minivllm/executor/own_hardware.py`), and the engine's own
kernels raise it. Memory is read, and not copied, since that is what a step does, and as much of it as a step.

Source: Williams et al., "Roofline" (2009). Read next: `step_profile.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from kernels_numba.cpu.panels import multiply, pack, padded
from minivllm.executor.cpu_hazards import set_numba_threads
from minivllm.executor.own_hardware import fastest, own_hardware
from minivllm.model.packed import DTYPES, OneDnnMatrix, as_array, can_pack

ROWS, SIZE = 512, 2048
"""Of the product that shows the rate of multiplication: large enough for every library to be at its best."""
MOST_SECONDS = 10.0
"""Of the tries of one call; the best of them counts."""


@dataclass(frozen=True)
class Limits:
    """What was measured."""

    bytes_per_second: float
    flops_per_second: float
    read_bytes: int
    """How much was read each time: memory is faster the less of it there is."""


def measure_limits(num_bytes: int, dtype: torch.dtype) -> Limits:
    """Limits for a step that reads `num_bytes` and multiplies numbers of type `dtype`, on torch's threads."""
    threads = set_numba_threads()
    rows = max(64, num_bytes // (4 * SIZE))
    panels = pack(np.ones((rows, SIZE), np.float32))
    vector, out = np.ones((1, SIZE), np.float32), np.empty((1, padded(rows)), np.float32)
    reading = _fastest(lambda: multiply(vector, panels, out, True, threads))
    multiplying = min(_fastest(product) for product in _products(dtype, threads))
    roof = own_hardware("cpu", str(dtype).removeprefix("torch.")).peak_flops
    flops_per_second = max(roof, 2.0 * ROWS * SIZE * SIZE / multiplying)
    return Limits(panels.nbytes / reading, flops_per_second, panels.nbytes)


def _products(dtype: torch.dtype, threads: int) -> Iterator[Callable[[], object]]:
    """The same product by every library that can compute it: the fastest of them is the limit."""
    x, weight = torch.ones(ROWS, SIZE, dtype=dtype), torch.ones(SIZE, SIZE, dtype=dtype)
    yield lambda: functional.linear(x, weight)
    if can_pack(dtype):
        packed = OneDnnMatrix(weight)
        yield lambda: packed.product(x, None)
    if dtype in DTYPES:
        panels, out = pack(as_array(weight)), np.empty((ROWS, SIZE), np.float32)
        yield lambda: multiply(as_array(x), panels, out, True, threads)


@torch.inference_mode()
def _fastest(call: Callable[[], object]) -> float:
    return fastest(call, most_seconds=MOST_SECONDS)
