"""Traces of real kernels for the tests of the dashboard, in shapes that the microscope is quick with."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numba import cuda, float32

from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.flash_attention_tensor_core import flash_attention_tensor_core
from kernels_numba.cuda.tiles import Tiles
from kernels_numba.microscope import observe
from minivllm.lab.microscope.record import kernel_trace
from minivllm.lab.microscope.subjects import make_subject
from minivllm.trace.kernel_events import KernelTrace, WarpAccess

SMALL = {
    "naive-attention": {"tokens": 6},
    "flash-attention-1": {"tokens": 5, "rows": 2, "warps": 2},
    "flash-attention-2": {"tokens": 5, "rows": 2, "warps": 2},
    "flash-attention-tensor-core": {"tokens": 34, "head_dim": 32},
    "paged-attention": {"context": 6, "splits": 2},
    "quantized-product": {"rows": 1, "outputs": 5, "inputs": 64},
    "kv-write": {},
    "copy-blocks": {"cells": 40},
}


def racy_transpose(a, out):
    """No barrier between the writes and the reads of the tile; only the last block takes that way."""
    tile = cuda.shared.array((8, 8), float32)
    x, y, block = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.x
    tile[y, x] = a[block, y, x]
    if block + 1 < cuda.gridDim.x:
        cuda.syncthreads()
    out[block, y, x] = tile[x, y]


def histogram(values, bins):
    """Atomic additions; values further apart than a sector."""
    i = cuda.grid(1)
    if i < values.shape[0]:
        cuda.atomic.add(bins, values[i] % bins.shape[0], 1)


@cache
def traces(name: str) -> list[KernelTrace]:
    """All kernels of one computation, or one of the kernels above."""
    random = np.random.default_rng(0)
    if name == "racy-transpose":
        a = random.standard_normal((3, 8, 8), dtype=np.float32)
        return [kernel_trace(observe(cuda.jit(racy_transpose), 3, (8, 8), a, np.zeros_like(a)), "a race")]
    if name == "histogram":
        values = random.integers(0, 1000, 41).astype(np.int32)
        seen = observe(cuda.jit(histogram), 2, 32, values, np.zeros(19, np.int32))
        return [kernel_trace(seen, "a histogram")]
    subject = make_subject(name, SMALL[name], seed=0)
    return [kernel_trace(launch.observe(), subject.title, n) for n, launch in enumerate(subject.launches)]


NAMES = (*SMALL, "racy-transpose", "histogram")
NUM_KERNELS = dict.fromkeys(NAMES, 1) | {
    name: len(make_subject(name, sizes, seed=0).launches) for name, sizes in SMALL.items()
}
EVERY = [(name, number) for name in NAMES for number in range(NUM_KERNELS[name])]
"""Each kernel of each computation, known without running any."""


@st.composite
def kernels(draw: Any) -> KernelTrace:
    """Any kernel of any computation, from its beginning to some place: all of it, for the most part."""
    found = draw(st.sampled_from(traces(draw(st.sampled_from(NAMES)))))
    first = next(n for n, event in enumerate(found.events) if isinstance(event, WarpAccess))
    end = draw(st.just(len(found.events)) | st.integers(first + 1, len(found.events)))
    return found if end == len(found.events) else KernelTrace(found.header, found.events[:end])


@cache
def flash(version: str, lengths: tuple[tuple[int, int], ...], heads: int, causal: bool) -> KernelTrace:
    """FlashAttention "1", "2" or on "tensor cores"; `lengths` are queries and keys of each sequence."""
    random = np.random.default_rng(0)
    num_queries, num_keys = (sum(part) for part in zip(*lengths, strict=True))
    query = random.standard_normal((num_queries, heads, 32), dtype=np.float32)
    key, value = (random.standard_normal((num_keys, 1, 32), dtype=np.float32) for _ in range(2))
    key[-2:] *= 3  # large scores come last, so that something is rescaled
    starts = [np.cumsum([0, *part]).astype(np.int32) for part in zip(*lengths, strict=True)]
    most = max(count for count, _ in lengths)
    if version == "1":
        state = [np.zeros((heads, num_queries), np.float32) for _ in range(2)]
        given = query, key, value, np.zeros_like(query), *state
        launch = flash_attention_1(*given, causal=causal, tiles=Tiles(1, 2))
    elif version == "2":
        given = query, key, value, np.zeros_like(query), *starts
        launch = flash_attention_2(*given, longest_query=most, causal=causal, tiles=Tiles(1, 2))
    else:
        words = [array.astype(np.float16).view(np.uint32) for array in (query, key, value)]
        given = *words, np.zeros_like(words[0]), *starts
        launch = flash_attention_tensor_core(*given, longest_query=most, causal=causal, dtype="float16")
    return kernel_trace(launch.observe(), f"flash attention {version}")


ATTENTIONS = [
    (version, lengths, heads, causal)
    for version in ("1", "2", "tensor cores")
    for lengths, heads, causal in (
        (((1, 33),), 1, False),
        (((3, 40),), 1, True),
        (((4, 4),), 2, True),
        (((3, 4), (1, 33)), 1, True),
        (((2, 4), (3, 5)), 2, False),
    )
    if version != "1" or len(lengths) == 1
]
"""Arguments of `flash`: queries that are fewer than keys, several heads, several sequences, and no mask."""
