"""What this machine can do at most: how fast it reads memory, and how fast it multiplies matrices.

Floors are made of these two: a step cannot be shorter than it takes to read what it must read, nor than it
takes to multiply what it must multiply. Both are measured here, with as many threads as the engine has, and
the best of several samples counts: a limit is what is possible, and not what is usual.

Source: Williams et al., "Roofline" (2009). Read next: `step_profile.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch.nn import functional

from kernels_numba.cpu.decode_step import add_products_parallel
from minivllm.hazards import set_numba_threads
from minivllm.model.packed import can_pack, pack, packed_linear

ROWS, SIZE = 512, 2048
"""Of the product that shows the rate of multiplication: large enough for every library to be at its best."""
SAMPLES = 7


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
    matrix = np.ones((rows, SIZE), np.float32)
    vector, out = np.ones((1, SIZE), np.float32), np.zeros((1, rows), np.float32)
    seconds = _best(lambda: add_products_parallel(vector, matrix, matrix[0, :0], out, threads))
    return Limits(matrix.nbytes / seconds, 2.0 * ROWS * SIZE * SIZE / _best(_product(dtype)), matrix.nbytes)


@torch.inference_mode()
def _product(dtype: torch.dtype) -> Callable[[], object]:
    x, weight = torch.ones(ROWS, SIZE, dtype=dtype), torch.ones(SIZE, SIZE, dtype=dtype)
    if not can_pack(dtype):
        return lambda: functional.linear(x, weight)
    packed = pack(weight)
    return lambda: packed_linear(x, packed, None)


@torch.inference_mode()
def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls; the first one is for warming up."""
    call()
    seconds = []
    for _ in range(SAMPLES):
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return min(seconds)
