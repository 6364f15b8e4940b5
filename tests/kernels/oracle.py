"""What the kernels should come to: attention in float64, with a bound on what float32 may lose.

Also the strategies that the kernel tests share.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels_numba.cuda.launch import Launch
from kernels_numba.microscope import Observation
from minivllm.executor.kv_format import from_fp8, from_int8, to_fp8, to_int8

UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the relative error of one operation."""
HEADS = st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
"""Query heads and KV heads."""
FP8_SCALE = 0.0625
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([None, 0.05, 0.5])


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Random numbers of which none is zero, so that every one of them counts."""
    values = rng.normal(size=shape)
    return np.where(abs(values) < 0.01, 0.5, values).astype(np.float32)


def attention(
    query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], scale: float | None, causal: bool
) -> NDArray[np.float64]:
    """[T, H, d] against [L, KV, d], one query and head at a time; queries are the last tokens of the keys."""
    out = np.zeros(query.shape)
    for i, visible in enumerate(visible_keys(len(query), len(key), causal)):
        for head in range(query.shape[1]):
            scores = row_scores(query, key, scale, i, head)[:visible]
            if visible:
                weights = np.exp(scores - scores.max())
                out[i, head] = (weights / weights.sum()) @ kv_of(value, query, head)[:visible]
    return out


def visible_keys(num_queries: int, num_keys: int, causal: bool) -> list[int]:
    """How many of the first keys each query sees."""
    if not causal:
        return [num_keys] * num_queries
    return [max(0, num_keys - num_queries + i + 1) for i in range(num_queries)]


def row_scores(
    query: NDArray[Any], key: NDArray[Any], scale: float | None, i: int, head: int
) -> NDArray[np.float64]:
    """Of one query with every key."""
    factor = query.shape[2] ** -0.5 if scale is None else scale
    return factor * (kv_of(key, query, head) @ query[i, head].astype(np.float64))


def kv_of(cache: NDArray[Any], query: NDArray[Any], head: int) -> NDArray[np.float64]:
    """Keys or values [L, d] that a query head looks at."""
    return cache[:, head // (query.shape[1] // cache.shape[1])].astype(np.float64)


def score_error(query: NDArray[Any], key: NDArray[Any], scale: float | None) -> float:
    """How far a score in float32 can be from the true one, for any order of the sum."""
    dim = query.shape[2]
    factor = dim**-0.5 if scale is None else scale
    # A sum of d products errs by at most d units of the sum of their absolute values; the scale adds two.
    group = query.shape[1] // key.shape[1]
    products = 0.0
    for head in range(query.shape[1]):
        q, k = abs(query[:, head].astype(np.float64)), abs(key[:, head // group].astype(np.float64))
        products = max(products, (q @ k.T).max(initial=0))
    return float((dim + 3) * UNIT * factor * products)


def allowed_error(
    query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], scale: float | None, tiles: int = 1
) -> float:
    """How far the output of a kernel in float32 can be from the true one.

    A weight is e to the power of the difference of two scores, so it errs, relatively, by twice a score's
    error and a few units for the exponential; sums of weights and of weighted values add a unit for each term
    and a few for each rescaling. Numerator and denominator both do. The output is an average of values.
    """
    weight = 2 * score_error(query, key, scale) + 8 * UNIT
    return float(2 * (weight + (len(key) + 16 * tiles + 16) * UNIT) * abs(value).max(initial=0))


def assert_close(out: NDArray[Any], expected: NDArray[np.float64], error: float) -> None:
    """Everywhere, NaN being close to nothing."""
    far = ~(abs(out.astype(np.float64) - expected) <= error)
    assert not far.any(), (
        f"{far.sum()} numbers differ by more than {error:.2e}, the first at {np.argwhere(far)[0].tolist()}: "
        f"{out[far][0]} where {expected[far][0]} is right"
    )


def observe_all(launches: Launch | list[Launch], **poison: Any) -> list[Observation]:
    """Run launches one after another, each free of faults; `poison` by the names of their parameters."""
    seen = []
    for launch in [launches] if isinstance(launches, Launch) else launches:
        names = inspect.signature(launch.kernel.py_func).parameters
        mine = {name: cells for name, cells in poison.items() if name in names}
        seen.append(launch.observe(poison=mine).check())
    return seen


def written_arrays(seen: Observation) -> set[str]:
    """Global arrays into which anything was written."""
    written = seen.columns["array"][seen.columns["kind"] != 0]
    return {seen.arrays[i].name for i in np.unique(written) if not seen.arrays[i].is_shared}


def as_small_cache(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], Any, NDArray[np.float64]]:
    """Of numbers and NaN: an 8-bit cache as the kernel takes it, its scales, and what its numbers are."""
    rows = torch.from_numpy(values)
    if dtype == "int8":
        codes, scales = to_int8(rows.nan_to_num(0.0))
        from_int8(codes, scales, exact := torch.empty(values.shape))
        scales[rows.isnan().any(-1)] = torch.nan
        return codes.numpy().view(np.uint32), scales.numpy(), exact.double().numpy()
    codes = to_fp8(rows, FP8_SCALE)
    from_fp8(codes, FP8_SCALE, exact := torch.empty(values.shape))
    return codes.numpy().view(np.uint32), FP8_SCALE, exact.double().numpy()


def as_cache(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A cache of this type as the kernel takes it, and what its numbers are after rounding."""
    if dtype == "float32":
        return values, values.astype(np.float64)
    if dtype == "float16":
        halves = values.astype(np.float16)
        return halves.view(np.uint32), halves.astype(np.float64)
    bits = values.view(np.uint32)
    # To the nearest, ties to even; a NaN stays one (its first fraction bit survives).
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    rounded = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint32)
    exact = (rounded << 16).view(np.float32).astype(np.float64)
    return rounded.astype(np.uint16).view(np.uint32), exact
