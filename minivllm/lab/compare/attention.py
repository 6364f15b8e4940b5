"""The same attention three ways, counted: bytes of global memory and FLOPs, by length, width and memory.

    naive              writes all scores, reads them, writes the weights, reads them: N d + N²
    FlashAttention 1   keys and values stay in shared memory while all queries pass by
    FlashAttention 2   queries stay, while all keys and values pass by

What stays in shared memory is a tile of M bytes, and what passes by does so once for every such tile. There
are N d / M of them, and N d numbers pass: N² d² / M. That is the paper's bound, and the exponents of a fit
through what the kernels really did under the microscope.

Of the naive kernels two numbers are counted: what their threads request, N² d, and what must be moved if
caches keep all that one kernel has touched. FLOPs are the same for all, 4 N² d and a little: FlashAttention
saves no arithmetic. That it is faster all the same is the point.

Source: Dao et al. (NeurIPS 2022), theorem 2 and section 3.2. Read next: `attention_picture.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.launch import Launch
from kernels_numba.cuda.naive_attention import naive_attention
from kernels_numba.cuda.tiles import Tiles

KERNELS = ("naive", "flash-attention-1", "flash-attention-2")
FLOAT_BYTES = 4


class Case(NamedTuple):
    """One kernel at one size."""

    kernel: str
    tokens: int
    head_dim: int
    tiles: Tiles | None
    """None of the naive kernels."""


class Counted(NamedTuple):
    """What the kernel did in one case."""

    case: Case
    asked_bytes: int
    """Of global memory, requested by all threads together."""
    least_bytes: int
    """Each array once for every kernel that reads it, and once for each that writes it."""
    tile_bytes: int
    """M: what stays in shared memory while the rest passes by; 0 of the naive kernels."""
    flops: int
    exponentials: int


class Exponents(NamedTuple):
    """Of the bytes, fitted through all cases of one kernel: bytes ∝ Nᵃ dᵇ Mᶜ."""

    tokens: float
    head_dim: float
    tile_bytes: float


def cases(longest: int) -> list[Case]:
    """Sizes up to `longest` tokens, with enough of each to fit three exponents."""
    half, wide = longest // 2, 64
    both = [Case("naive", n, d, None) for n, d in ((half // 2, 32), (half, 32), (longest, 32), (half, wide))]
    for n, d, keys in ((half, 32, 32), (longest, 32, 32), (longest, 32, 64), (longest, wide, 32)):
        both.append(Case("flash-attention-1", n, d, Tiles(4, 2, keys)))
    for n, d, tiles in (
        (half, 32, Tiles(4, 2)),
        (longest, 32, Tiles(4, 2)),
        (longest, 32, Tiles(4, 4)),
        (longest, wide, Tiles(4, 2)),
    ):
        both.append(Case("flash-attention-2", n, d, tiles))
    return both


def count(case: Case) -> Counted:
    """Run it under the microscope, on random numbers; every query sees every key."""
    asked = least = flops = exponentials = 0
    for launch in _launches(case):
        seen = launch.observe(keep=False, count=True, max_accesses=10**9)
        assert seen.tally is not None
        flops += seen.tally.flops
        exponentials += seen.tally.exponentials
        for array in seen.arrays:
            if not array.is_shared and array.dtype == "float32":
                read, written = seen.asked_bytes[array.name]
                asked += read + written
                least += array.num_bytes * ((read > 0) + (written > 0))
    return Counted(case, asked, least, _tile_bytes(case), flops, exponentials)


def compare_attention(longest: int = 128, progress: Callable[[str], None] | None = None) -> list[Counted]:
    """All cases.

    Args:
        longest: tokens of the longest, a multiple of 64: the time grows with its square.

    Raises:
        ValueError: it is not such a number.
    """
    if longest < 64 or longest % 64 or longest > 1024:
        raise ValueError(f"tokens must be a multiple of 64, from 64 to 1,024, got {longest}")
    results = []
    for case in cases(longest):
        if progress:
            progress(f"{case.kernel}, {case.tokens} tokens, head_dim {case.head_dim}")
        results.append(count(case))
    return results


def fit(results: Sequence[Counted], kernel: str) -> Exponents:
    """Least squares in logarithms, over the kernel's cases."""
    mine = [result for result in results if result.case.kernel == kernel]
    known = [[result.case.tokens, result.case.head_dim, result.tile_bytes] for result in mine]
    logs = np.log(np.array(known, float))
    found, *_ = np.linalg.lstsq(
        np.column_stack([logs, np.ones(len(mine))]), np.log([r.asked_bytes for r in mine]), rcond=None
    )
    return Exponents(*(float(value) for value in found[:3]))


def naive_formula(tokens: int, head_dim: int) -> int:
    """Bytes of the naive kernels, if each array moves once for each kernel: 4 (N d + N²) numbers."""
    return FLOAT_BYTES * 4 * (tokens * head_dim + tokens * tokens)


def _tile_bytes(case: Case) -> int:
    if case.tiles is None:
        return 0
    if case.kernel == "flash-attention-1":
        return 2 * FLOAT_BYTES * case.tiles.keys * case.head_dim  # keys and values
    return FLOAT_BYTES * case.tiles.num_queries * case.head_dim


def _launches(case: Case) -> list[Launch]:
    random = np.random.default_rng(0)
    shape = (case.tokens, 1, case.head_dim)
    query, key, value = (random.standard_normal(shape, dtype=np.float32) for _ in range(3))
    out = np.zeros_like(query)
    if case.kernel == "naive":
        scores = np.zeros((1, case.tokens, case.tokens), np.float32)
        return naive_attention(query, key, value, out, scores, causal=False)
    if case.kernel == "flash-attention-1":
        maxima, sums = (np.zeros((1, case.tokens), np.float32) for _ in range(2))
        return [flash_attention_1(query, key, value, out, maxima, sums, causal=False, tiles=case.tiles)]
    starts = np.array([0, case.tokens], np.int32)
    return [
        flash_attention_2(
            query, key, value, out, starts, starts, longest_query=case.tokens, causal=False, tiles=case.tiles
        )
    ]
