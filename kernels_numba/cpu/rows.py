"""What a decoder does between two matrix products, one pass over each row.

In torch each of these is five to ten operations, and each of them a walk through memory and a call. Here a
row is read once, kept in the processor's cache, and written once:

    norm     x / sqrt(mean(x²) + eps) · weight
    rotate   queries and keys are normalised (if the model does that) and rotated by their position; keys and
             values go straight into their cells of the cache
    gate     silu(gate) · up

Loops count from 0 and arrays are cut to what they need: only of such an index does the compiler know that it
is not negative (which in Python means "from the end"), and without that it computes number by number.

Arithmetic is float32 whatever the arrays are; a bfloat16 array is given as uint16. Each has two forms:
`…_rows` for a range of rows, on one thread, and one of all rows, on all threads if there is enough to do.
(A literal number as an argument would be a type of its own: where one thread does it all, it is called with
variables, so that it is compiled once.)

The plain twins are in `minivllm/model/layers.py`; `tests/kernels/test_cpu_rows.py` says that they agree.
Read next: `minivllm/executor/runners/fused.py`, which calls these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from kernels_numba.cpu.arithmetic import exp_fast, narrow, widen
from kernels_numba.cpu.fixed_sums import sum_of_squares
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.units import unit

ONE, ZERO = np.float32(1), np.float32(0)
PARALLEL_CELLS = 1 << 15
"""From so many numbers on, all threads work: waking them takes as long as one needs for some thousands."""


@njit(nogil=True, cache=True, error_model="numpy")
def norm_rows(x, weight, eps, out, begin, end):  # type: ignore[no-untyped-def]
    """Rows `begin … end` of `out` [T, n] become those of `x` [T, ≥ n], normalised, scaled by `weight` [n]."""
    n = len(weight)
    for row in range(begin, end):
        total = sum_of_squares(x[row], n)
        factor = ONE / np.sqrt(total / np.float32(n) + eps)
        for c in range(n):  # rounded before the scale, as the plain twin does it
            out[row, c] = narrow(widen(narrow(widen(x[row, c]) * factor, out)) * widen(weight[c]), out)


@njit(nogil=True, cache=True, error_model="numpy")
def gate_rows(gate_up, out, begin, end):  # type: ignore[no-untyped-def]
    """Rows `begin … end` of `out` [T, n] become silu(g) · u of the halves g and u of `gate_up` [T, ≥ 2n]."""
    n = out.shape[1]
    for row in range(begin, end):
        gates, ups, target = gate_up[row, :n], gate_up[row, n : 2 * n], out[row]
        for c in range(n):
            g = widen(gates[c])
            small = exp_fast(-abs(g))
            sigmoid = (ONE if g >= ZERO else small) / (ONE + small)
            target[c] = narrow(g * sigmoid * widen(ups[c]), out)


@njit(nogil=True, cache=True, error_model="numpy")
def _rotate_head(source, cos, sin, weight, eps, target):  # type: ignore[no-untyped-def]
    """One head [d]: normalised if there is a `weight`, then the pairs (i, i + d/2) are rotated."""
    d = len(source)
    half = d // 2
    firsts, seconds, lower, upper = source[:half], source[half:], target[:half], target[half:]
    if len(weight):
        total = sum_of_squares(source, d)
        factor = ONE / np.sqrt(total / np.float32(d) + eps)
        first_weights, second_weights = weight[:half], weight[half:]
        for c in range(half):
            first = widen(narrow(widen(firsts[c]) * factor, target))
            second = widen(narrow(widen(seconds[c]) * factor, target))
            first = widen(narrow(first * widen(first_weights[c]), target))
            second = widen(narrow(second * widen(second_weights[c]), target))
            lower[c] = narrow(first * cos[c] - second * sin[c], target)
            upper[c] = narrow(second * cos[c] + first * sin[c], target)
        return
    for c in range(half):
        first, second = widen(firsts[c]), widen(seconds[c])
        lower[c] = narrow(first * cos[c] - second * sin[c], target)
        upper[c] = narrow(second * cos[c] + first * sin[c], target)


@njit(nogil=True, cache=True, error_model="numpy")
def rotate_rows(  # type: ignore[no-untyped-def]
    qkv, pairs, positions, query_weight, key_weight, eps, slots, keys, values, queries, begin, end
):
    """Rows `begin … end` of projected tokens.

    Args:
        qkv: [T, ≥ (heads + 2 · kv_heads) · d].
        pairs, positions: cosines and sines [most positions, 2, d/2] in float32, and a position of each row.
        query_weight, key_weight: [d], or [0] if heads are not normalised.
        slots: [T], cells of the cache.
        keys, values: [blocks, kv_heads, block_size, d]; the cells of these rows are written.
        queries: [T, heads, d], written.
    """
    heads, kv_heads, block_size, d = queries.shape[1], keys.shape[1], keys.shape[2], keys.shape[3]
    for row in range(begin, end):
        block, cell = slots[row] // block_size, slots[row] % block_size
        cos, sin = pairs[positions[row], 0], pairs[positions[row], 1]
        for head in range(heads):
            head_at = head * d
            _rotate_head(qkv[row, head_at : head_at + d], cos, sin, query_weight, eps, queries[row, head])
        for head in range(kv_heads):
            key_at, value_at = (heads + head) * d, (heads + kv_heads + head) * d
            _rotate_head(qkv[row, key_at : key_at + d], cos, sin, key_weight, eps, keys[block, head, cell])
            value, target = qkv[row, value_at : value_at + d], values[block, head, cell]
            for c in range(d):
                target[c] = narrow(widen(value[c]), values)


@njit(nogil=True, cache=True, error_model="numpy")
def _norm_part(part, parts, x, weight, eps, out):  # type: ignore[no-untyped-def]
    norm_rows(x, weight, eps, out, part * len(x) // parts, (part + 1) * len(x) // parts)


@njit(nogil=True, cache=True, error_model="numpy")
def _gate_part(part, parts, gate_up, out):  # type: ignore[no-untyped-def]
    gate_rows(gate_up, out, part * len(out) // parts, (part + 1) * len(out) // parts)


@njit(nogil=True, cache=True, error_model="numpy")
def _rotate_part(  # type: ignore[no-untyped-def]
    part, parts, qkv, pairs, positions, query_weight, key_weight, eps, slots, keys, values, queries
):
    rotate_rows(
        qkv, pairs, positions, query_weight, key_weight, eps, slots, keys, values, queries,
        part * len(slots) // parts, (part + 1) * len(slots) // parts,
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _num_parts(array, num_threads):  # type: ignore[no-untyped-def]
    """Among how many threads to divide the work on so many numbers."""
    return num_threads if array.size >= PARALLEL_CELLS else min(num_threads, 1)


@unit
@njit(nogil=True, cache=True, error_model="numpy")
def norm(x, weight, eps, out, num_threads):  # type: ignore[no-untyped-def]
    """`norm_rows` of all rows."""
    parts = _num_parts(out, num_threads)
    if parts > 1:
        in_parallel(_norm_part, parts, (parts, x, weight, eps, out))
    else:
        _norm_part(parts - 1, parts, x, weight, eps, out)


@unit
@njit(nogil=True, cache=True, error_model="numpy")
def gate(gate_up, out, num_threads):  # type: ignore[no-untyped-def]
    """`gate_rows` of all rows."""
    parts = _num_parts(out, num_threads)
    if parts > 1:
        in_parallel(_gate_part, parts, (parts, gate_up, out))
    else:
        _gate_part(parts - 1, parts, gate_up, out)


@unit
@njit(nogil=True, cache=True, error_model="numpy")
def rotate(qkv, pairs, positions, query_weight, key_weight, eps, slots, keys, values, queries, num_threads):  # type: ignore[no-untyped-def]
    """`rotate_rows` of all rows that have a slot. No two may have the same."""
    parts = _num_parts(qkv, num_threads)
    if parts > 1:
        in_parallel(
            _rotate_part, parts,
            (parts, qkv, pairs, positions, query_weight, key_weight, eps, slots, keys, values, queries),
        )  # fmt: skip
    else:
        _rotate_part(
            parts - 1, parts, qkv, pairs, positions, query_weight, key_weight, eps, slots, keys, values,
            queries,
        )  # fmt: skip


def compile_all(dtype: Any, prepare: Callable[..., None]) -> None:
    """`prepare` a call of everything, so that none has to wait for the compiler."""
    one, two = np.ones((1, 2), dtype), np.ones((1, 6), dtype)
    pairs, cells, zero = np.ones((1, 2, 1), np.float32), np.ones((1, 1, 1, 2), dtype), np.zeros(1, np.int64)
    prepare(norm, one, one[0], ONE, one, 1)
    prepare(gate, two, one, 1)
    prepare(
        rotate, two, pairs, zero, one[0], one[0], ONE, zero, cells, cells, np.empty((1, 1, 2), dtype), 1
    )  # fmt: skip
