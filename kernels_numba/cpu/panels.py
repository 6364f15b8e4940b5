"""Products with a model's matrices, which lie in panels: the order in which they are read.

`x Wᵀ` for W [n, k] takes, for one step of k, one number of each row of x and a vector of every column of the
result. So columns are cut into panels as wide as a tile of sums, and a panel holds, step by step, what a tile
takes in: it is read once from its beginning to its end, whatever the number of rows.

    W [n, k]                           panels [n / WIDTH, k, WIDTH]
    row 0        ────────────          panel 0    k=0: W[0…63, 0]   k=1: W[0…63, 1]   …
    row 1        ────────────          panel 1    k=0: W[64…127, 0] …
                                       bfloat16   k=0: pairs (W[0, 0] W[0, 1]) (W[1, 0] W[1, 1]) …

Tiles of up to 6 rows go over a panel one after the other, while it is in the core's second cache; the first
ones meanwhile prefetch the next panel. (A single tile need not: a panel is one stream, which the hardware
prefetches by itself.) So few rows are multiplied as fast as memory is read, and many as fast as the
processor multiplies. Rows and k are cut so that what is used again stays near.

The plain twin is `torch.nn.functional.linear`; `tests/kernels/test_cpu_panels.py` says that the two agree.
Source: Goto and van de Geijn (2008), as `tile_product.py`. Read next: `whole_step.py`, made of such products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.tile_product import VECTORS, tile
from kernels_numba.cpu.units import unit
from kernels_numba.cpu.vectors import HAS_PAIRS, LANES

ROWS = 6
"""Of a tile at most."""
WIDTH = VECTORS * LANES
"""Columns of a panel."""
MOST_ROWS = 20 * ROWS
"""Of x that go over a panel together: with `MOST_STEPS` of k, they stay in the second cache beside it."""
MOST_STEPS = 512
FETCHED = 2
"""Vectors of the next panel that are prefetched with each step."""
PARALLEL_STEPS = 1 << 16
"""From so many rows of x times rows of panels on, on all threads: waking them costs time."""


def pack(weight: Any) -> Any:
    """`weight` [n, k], float32 or bfloat16 as uint16, in panels [⌈n / WIDTH⌉, steps, WIDTH]; rest is 0."""
    n, k = weight.shape
    whole = np.zeros((-(-n // WIDTH) * WIDTH, k), weight.dtype)
    whole[:n] = weight
    if has_pairs(weight):
        whole = whole.view(np.uint32)
    return np.ascontiguousarray(whole.reshape(-1, WIDTH, whole.shape[1]).transpose(0, 2, 1))


def unpack(panels: Any, n: int) -> Any:
    """The matrix [n, k] that `pack` was given."""
    whole = np.ascontiguousarray(panels.transpose(0, 2, 1)).reshape(-1, panels.shape[1])
    return (whole.view(np.uint16) if panels.dtype == np.uint32 else whole)[:n]


def has_pairs(weight: Any) -> bool:
    """Is this matrix multiplied in pairs?"""
    return bool(HAS_PAIRS and weight.dtype == np.uint16 and weight.shape[1] % 2 == 0)


def padded(columns: int) -> int:
    """Width of an array that takes products of so many columns."""
    return -(-columns // WIDTH) * WIDTH


_one, _two, _three, _four, _five, _six = (tile(rows, VECTORS, FETCHED) for rows in range(1, ROWS + 1))


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply(x, first, row, panels, source, out, target, out_row, rows, steps, fresh, soon):  # type: ignore[no-untyped-def]
    """A tile of 1 to 6 rows."""
    if rows == 6:
        _six(
            x, first, row, 1, panels, source, WIDTH, out, target, out_row, steps, fresh, soon, FETCHED * LANES
        )
    elif rows == 5:
        _five(
            x, first, row, 1, panels, source, WIDTH, out, target, out_row, steps, fresh, soon, FETCHED * LANES
        )
    elif rows == 4:
        _four(
            x, first, row, 1, panels, source, WIDTH, out, target, out_row, steps, fresh, soon, FETCHED * LANES
        )
    elif rows == 3:
        _three(
            x, first, row, 1, panels, source, WIDTH, out, target, out_row, steps, fresh, soon, FETCHED * LANES
        )
    elif rows == 2:
        _two(
            x, first, row, 1, panels, source, WIDTH, out, target, out_row, steps, fresh, soon, FETCHED * LANES
        )
    else:
        _one(
            x, first, row, 1, panels, source, WIDTH, out, target, out_row, steps, fresh, soon, FETCHED * LANES
        )


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_part(part, x, panels, out, fresh, columns, bands):  # type: ignore[no-untyped-def]
    """One part of `multiply`, on one thread: panels are divided among `columns`, rows among `bands`."""
    column, band = part % columns, part // columns
    panel_begin, panel_end = column * len(panels) // columns, (column + 1) * len(panels) // columns
    row_begin, row_end = band * len(x) // bands, (band + 1) * len(x) // bands
    all_steps = panels.shape[1]
    x_row, out_row, size = x.shape[1], out.shape[1], all_steps * WIDTH
    flat_x, flat_panels, flat_out = x.reshape(-1), panels.reshape(-1), out.reshape(-1)
    for first in range(row_begin, row_end, MOST_ROWS):
        end_row = min(first + MOST_ROWS, row_end)
        for step in range(0, all_steps, MOST_STEPS):
            steps = min(MOST_STEPS, all_steps - step)
            for panel in range(panel_begin, panel_end):
                source = panel * size + step * WIDTH
                end, soon = source + steps * WIDTH, source + size
                row = first
                while row < end_row:
                    rest = end_row - row
                    rows = (
                        ROWS if rest == ROWS or rest >= 2 * ROWS else (rest + 1) // 2 if rest > ROWS else rest
                    )
                    ask = source  # nothing: it is there already
                    if end_row - first > ROWS and panel + 1 < panel_end and soon < end + size:
                        ask = soon
                        soon += steps * FETCHED * LANES
                    target = row * out_row + panel * WIDTH
                    _multiply(
                        flat_x, row * x_row + step, x_row, flat_panels, source, flat_out, target, out_row,
                        rows, steps, fresh and step == 0, ask,
                    )  # fmt: skip
                    row += rows


@unit
@njit(nogil=True, cache=True, error_model="numpy")
def multiply(x, panels, out, fresh, num_threads):  # type: ignore[no-untyped-def]
    """`out = x Wᵀ`, or `out += x Wᵀ` if not `fresh`.

    Args:
        x: [T, k], float32, or bfloat16 as uint16.
        panels: W [n, k] as `pack` gives it, of the same type.
        out: [T, padded(n)], float32; columns behind n get 0, or keep what they are.
        num_threads: among how many to divide it, by columns, and by rows if there are too few columns.
    """
    pairs, columns, bands = as_left(x, panels), 1, 1
    if num_threads > 1 and len(x) * len(panels) * panels.shape[1] >= PARALLEL_STEPS:
        columns = min(num_threads, len(panels))
        bands = max(1, min(num_threads // columns, len(x) // ROWS))
    if columns * bands > 1:
        in_parallel(_multiply_part, columns * bands, (pairs, panels, out, fresh, columns, bands))
    else:
        _multiply_part(columns - 1, pairs, panels, out, fresh, columns, bands)


def as_left(x, panels):  # type: ignore[no-untyped-def]
    """The rows as these panels are multiplied with, bfloat16 maybe in pairs."""
    return x.view(np.uint32) if panels.dtype == np.uint32 else x


@overload(as_left, inline="always")
def _as_left(x, panels):  # type: ignore[no-untyped-def]
    if panels.dtype == types.uint32:
        return lambda x, panels: x.view(np.uint32)
    return lambda x, panels: x
