"""Products with matrices of small whole numbers: 8 or 4 bits each, widened in registers as they are read.

A product with few rows takes as long as its matrix takes to read, so a matrix in a quarter or an eighth of
the bytes is multiplied that much faster, as far as widening it lets. The order is that of `panels.py`:

    codes     int8 [n / WIDTH, k, WIDTH]         numbers −128 … 127
              uint8 [n / WIDTH, k / 2, WIDTH]    two numbers −8 … 7 in a byte, of k even in its lower half
    scales    float32 [groups, n padded]         of k / groups neighbouring steps of k

    out[r, c] = Σ over groups   scales[group, c] · Σ over its k   x[r, k] · code[k, c]

The inner sum is a tile that stays in registers (`tile_product.py`); only at a group's end is it scaled, and
added in float32. So a row's result depends on that row alone, whatever is multiplied with it.

The plain twin is `minivllm/model/quantization/dequantized_matrix.py`; `tests/kernels/test_small_panels.py`
says that the two agree. Read next: `minivllm/executor/runners/quantized_panels.py`, which packs models so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kernels_numba.cpu.panels import PARALLEL_STEPS, ROWS, WIDTH, padded
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.tile_product import VECTORS, tile

_one, _two, _three, _four, _five, _six = (tile(rows, VECTORS) for rows in range(1, ROWS + 1))


def pack_small(numbers: Any, is_half: bool) -> Any:
    """`numbers` int8 [n, k] in panels; `is_half`: from −8 to 7, in half a byte each (k must be even)."""
    n, k = numbers.shape
    whole = np.zeros((padded(n), k), np.int8)
    whole[:n] = numbers
    panels = whole.reshape(-1, WIDTH, k).transpose(0, 2, 1)
    if not is_half:
        return np.ascontiguousarray(panels)
    shifted = (panels + 8).astype(np.uint8)
    return np.ascontiguousarray(shifted[:, 0::2] | shifted[:, 1::2] << 4)


def unpack_small(codes: Any, n: int) -> Any:
    """The numbers that `pack_small` was given."""
    panels = codes
    if codes.dtype == np.uint8:
        halves = np.stack((codes & 15, codes >> 4), axis=2)
        panels = halves.reshape(len(codes), -1, WIDTH).astype(np.int8) - np.int8(8)
    return np.ascontiguousarray(panels.transpose(0, 2, 1)).reshape(-1, panels.shape[1])[:n]


def pack_scales(scales: Any) -> Any:
    """`scales` [n, groups] as products read them: float32 [groups, padded(n)]."""
    n, groups = scales.shape
    whole = np.zeros((groups, padded(n)), np.float32)
    whole[:, :n] = scales.T
    return whole


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply(rows, x, first, x_row, codes, source, sums, count):  # type: ignore[no-untyped-def]
    """A tile of 1 to 6 rows: its sums from 0 on, in rows of `WIDTH`."""
    if rows == 6:
        _six(x, first, x_row, 1, codes, source, WIDTH, sums, 0, WIDTH, count, True, source, 0)
    elif rows == 5:
        _five(x, first, x_row, 1, codes, source, WIDTH, sums, 0, WIDTH, count, True, source, 0)
    elif rows == 4:
        _four(x, first, x_row, 1, codes, source, WIDTH, sums, 0, WIDTH, count, True, source, 0)
    elif rows == 3:
        _three(x, first, x_row, 1, codes, source, WIDTH, sums, 0, WIDTH, count, True, source, 0)
    elif rows == 2:
        _two(x, first, x_row, 1, codes, source, WIDTH, sums, 0, WIDTH, count, True, source, 0)
    else:
        _one(x, first, x_row, 1, codes, source, WIDTH, sums, 0, WIDTH, count, True, source, 0)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_part(part, x, codes, scales, out, columns, bands):  # type: ignore[no-untyped-def]
    """One part of `multiply_small`, on one thread: panels divided among `columns`, rows among `bands`."""
    column, band = part % columns, part // columns
    panel_begin, panel_end = column * len(codes) // columns, (column + 1) * len(codes) // columns
    row_begin, row_end = band * len(x) // bands, (band + 1) * len(x) // bands
    x_row, groups, bytes_down = x.shape[1], len(scales), codes.shape[1]
    count, steps = bytes_down // groups, x_row // groups
    flat_x, flat_codes = x.reshape(-1), codes.reshape(-1)
    sums = np.empty(ROWS * WIDTH, np.float32)
    for panel in range(panel_begin, panel_end):
        start, left = panel * bytes_down * WIDTH, panel * WIDTH
        for row in range(row_begin, row_end, ROWS):
            rows = min(ROWS, row_end - row)
            for group in range(groups):
                source = start + group * count * WIDTH
                _multiply(rows, flat_x, row * x_row + group * steps, x_row, flat_codes, source, sums, count)
                own = scales[group, left : left + WIDTH]
                for r in range(rows):
                    target, tile_sums = out[row + r, left : left + WIDTH], sums[r * WIDTH : (r + 1) * WIDTH]
                    for c in range(WIDTH):
                        target[c] = tile_sums[c] * own[c] + (target[c] if group else np.float32(0))


@njit(nogil=True, cache=True, error_model="numpy")
def multiply_small(x, codes, scales, out, num_threads):  # type: ignore[no-untyped-def]
    """`out = x Wᵀ` for W of codes and scales.

    Args:
        x: [T, k], float32, or bfloat16 as uint16; in rows without gaps.
        codes, scales: W [n, k], as `pack_small` and `pack_scales` give them; groups divide k, evenly into
            bytes.
        out: [T, padded(n)], float32; columns behind n get 0.
        num_threads: among how many to divide it, by columns, and by rows if there are too few columns.
    """
    columns, bands = 1, 1
    if num_threads > 1 and len(x) * len(codes) * x.shape[1] >= PARALLEL_STEPS:
        columns = min(num_threads, len(codes))
        bands = max(1, min(num_threads // columns, len(x) // ROWS))
    if columns * bands > 1:
        in_parallel(_multiply_part, columns * bands, (x, codes, scales, out, columns, bands))
    else:
        _multiply_part(columns - 1, x, codes, scales, out, columns, bands)
