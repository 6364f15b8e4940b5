"""Products with matrices of every kind: what a compiled step multiplies by.

A product with few rows takes as long as its matrix takes to read, so a matrix in a quarter of the bytes is
multiplied up to four times as fast. A model's matrices may be of several kinds, so compiled code asks for the
kind as it runs, and all models share it; a matrix is a row of numbers and addresses, and none is copied.
All but the first need code that takes seconds to compile, so that is a unit which only they ask for:

    kind       where                        product
    ────────   ──────────────────────────   ───────────────────────────────────────────────────────────────
    DENSE      panels of `panels.py`        theirs
    NIBBLES    4 bits each, scales of       Σ over groups  scale · Σ x · code  −  offset · Σ x
    BYTES      8 bits each     groups       (`quantized_tile.py`)
    E4M3       8-bit floats
    INTEGERS   8 bits each, activations     scale · row's scale · (Σ u · code  −  shift · Σ code)
               rounded row by row           (`integer_tile.py`)

A few rows are multiplied by numbers widened in registers; for more of them a panel is widened once, into
memory that stays in the second cache. Both are exact, so a row comes to the same bits in any company.

The plain twins are `minivllm/model/quantization/dequantized_matrix.py` and `activations.py` there;
`tests/kernels/test_matrix_products.py` says that they agree. Read next: `matrix_packing.py`, which makes
those rows; `whole_step.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from kernels_numba.cpu.arithmetic import float_of_bits, widen
from kernels_numba.cpu.integer_tile import HAS_VNNI, integer_tile
from kernels_numba.cpu.panels import PARALLEL_STEPS, ROWS, WIDTH, multiply
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.quantized_tile import NIBBLES, WIDE, group_tile, widen_steps
from kernels_numba.cpu.units import address_of, call_at, unit
from kernels_numba.cpu.vectors import HAS_PAIRS, LINE_BYTES

DENSE, INTEGERS = 16, 88
"""Kinds besides `NIBBLES`, `BYTES` and `E4M3`."""
(KIND, OUTPUTS, INPUTS, GROUPS, CODES, SCALES, OFFSETS, ORDER, CODE_SUMS, ROUNDING, STATIC_SCALE,
 STATIC_ZERO, FIELDS) = range(13)  # fmt: skip
"""What stands in a matrix's row: CODES to CODE_SUMS are addresses, 0 if there is none."""
BY_LARGEST, BY_RANGE, STATIC = range(3)
"""How activations are rounded (`minivllm/model/quantization/activations.py`)."""

ONE, ZERO = np.float32(1), np.float32(0)


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), generate


@intrinsic
def _round_even(typing_context: Any, value: Any) -> Any:
    """To the nearest whole number, halves to the even one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
        return builder.call(function, arguments)

    return types.float32(types.float32), generate


def _dense_panels(x, matrix):  # type: ignore[no-untyped-def]
    """The panels of a dense matrix, of the type that goes with `x`."""
    raise NotImplementedError("only in compiled code")


@overload(_dense_panels, inline="always")
def _dense_panels_of(x, matrix):  # type: ignore[no-untyped-def]
    is_narrow = x.dtype == types.uint16
    number = np.float32 if not is_narrow else np.uint32 if HAS_PAIRS else np.uint16
    together = 2 if is_narrow and HAS_PAIRS else 1

    def panels(x, matrix):  # type: ignore[no-untyped-def]
        shape = (-(-matrix[OUTPUTS] // WIDTH), matrix[INPUTS] // together, WIDTH)
        return carray(_pointer(matrix[CODES]), shape, number)

    return panels


def _in_pairs(x):  # type: ignore[no-untyped-def]
    """Rows in the words that they are multiplied in."""
    raise NotImplementedError("only in compiled code")


@overload(_in_pairs, inline="always")
def _in_pairs_of(x):  # type: ignore[no-untyped-def]
    if x.dtype == types.uint16 and HAS_PAIRS:
        return lambda x: x.view(np.uint32)
    return lambda x: x


@njit(nogil=True, cache=True, error_model="numpy")
def _rows_of_tile(rest):  # type: ignore[no-untyped-def]
    """How many of so many rows the next tile takes: nearly equal ones at the end."""
    return ROWS if rest == ROWS or rest >= 2 * ROWS else (rest + 1) // 2 if rest > ROWS else rest


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_groups(x, groups, sums):  # type: ignore[no-untyped-def]
    """`sums` [T, groups] become those of neighbouring numbers of each row."""
    size = x.shape[1] // groups
    for row in range(len(x)):
        for group in range(groups):
            total = ZERO
            for k in range(size):
                total += widen(x[row, group * size + k])
            sums[row, group] = total


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_part(part, left, matrix, sums, out, fresh, columns, bands):  # type: ignore[no-untyped-def]
    """One part of a product with groups, on one thread: panels divided among columns, rows among bands."""
    column, band = part % columns, part // columns
    out_row, left_row = out.shape[1], left.shape[1]
    panels, groups, kind = out_row // WIDTH, matrix[GROUPS], matrix[KIND]
    panel_begin, panel_end = column * panels // columns, (column + 1) * panels // columns
    row_begin, row_end = band * len(left) // bands, (band + 1) * len(left) // bands
    num_inputs = matrix[INPUTS]
    panel_bytes = num_inputs * WIDTH // (2 if kind == NIBBLES else 1)
    together = 8 if kind == NIBBLES else 2
    flat, flat_sums, flat_out = left.reshape(-1), sums.reshape(-1), out.reshape(-1)
    is_widened = row_end - row_begin > ROWS
    wide = np.empty(num_inputs * WIDTH if is_widened else 0, np.float32)
    for panel in range(panel_begin, panel_end):
        codes, tile_kind, steps = matrix[CODES] + panel * panel_bytes, kind, num_inputs // groups // together
        if is_widened:
            widen_steps(left, kind, codes, num_inputs // together, wide.ctypes.data)
            codes, tile_kind, steps = wide.ctypes.data, WIDE, num_inputs // groups // 2
        soon = end = matrix[CODES] + panel * panel_bytes  # nothing: it has been read
        if is_widened and panel + 1 < panel_end:
            soon, end = soon + panel_bytes, soon + 2 * panel_bytes
        behind = 4 * panel * WIDTH
        offsets = matrix[OFFSETS] + behind if matrix[OFFSETS] else 0
        row = row_begin
        while row < row_end:
            rows = _rows_of_tile(row_end - row)
            group_tile(
                rows, tile_kind, flat, row * left_row, left_row, codes, matrix[SCALES] + behind, offsets,
                out_row, flat_sums, row * groups, groups, steps, flat_out, row * out_row + panel * WIDTH,
                out_row, fresh, soon,
            )  # fmt: skip
            row += rows
            if soon < end:
                soon = min(soon + num_inputs // 2 * LINE_BYTES, end)  # as many lines as a tile has steps


@njit(nogil=True, cache=True, error_model="numpy")
def _round_rows(x, matrix, numbers, scales, shifts):  # type: ignore[no-untyped-def]
    """Activations as whole numbers [T, k], with what a step of each row's is, and what its zero is."""
    rounding = matrix[ROUNDING]
    for row in range(len(x)):
        lowest, highest, largest = widen(x[row, 0]), widen(x[row, 0]), ZERO
        for k in range(x.shape[1]):
            value = widen(x[row, k])
            lowest, highest, largest = min(lowest, value), max(highest, value), max(largest, abs(value))
        scale, zero = largest / np.float32(127), ZERO
        if rounding == STATIC:
            scale = float_of_bits(np.int32(matrix[STATIC_SCALE]))
        elif rounding == BY_RANGE:
            scale = (highest - lowest) / np.float32(255)
        scale = ONE if scale == ZERO else scale
        if rounding == STATIC:
            zero = np.float32(matrix[STATIC_ZERO])
        elif rounding == BY_RANGE:
            zero = _round_even(np.float32(-128) - lowest / scale)
        scales[row] = scale
        for k in range(x.shape[1]):
            code = _round_even(widen(x[row, k]) / scale) + zero
            code = min(max(code, np.float32(-128)), np.float32(127))
            if HAS_VNNI:  # without a sign: corrected by the sums of codes
                numbers[row, k] = np.int32(code) + 128
            else:
                numbers[row, k] = np.int32(code - zero)
        shifts[row] = np.int32(zero) + np.int32(128) if HAS_VNNI else np.int32(0)


@njit(nogil=True, cache=True, error_model="numpy")
def _integer_part(part, words, scales, shifts, matrix, out, fresh, columns, bands):  # type: ignore[no-untyped-def]
    """One part of a product of whole numbers, on one thread."""
    column, band = part % columns, part // columns
    out_row, left_row = out.shape[1], words.shape[1]
    panels = out_row // WIDTH
    row_begin, row_end = band * len(words) // bands, (band + 1) * len(words) // bands
    flat = words.reshape(-1)
    sums = np.empty(ROWS * WIDTH, np.int32)
    weight_scales = carray(_pointer(matrix[SCALES]), (out_row,), np.float32)
    code_sums = carray(_pointer(matrix[CODE_SUMS]), (out_row,), np.int32)
    for panel in range(column * panels // columns, (column + 1) * panels // columns):
        codes, left = matrix[CODES] + panel * matrix[INPUTS] * WIDTH, panel * WIDTH
        own_scales, own_sums = weight_scales[left : left + WIDTH], code_sums[left : left + WIDTH]
        row = row_begin
        while row < row_end:
            rows = _rows_of_tile(row_end - row)
            integer_tile(rows, flat, row * left_row, left_row, codes, left_row, sums)
            for r in range(rows):
                target, tile_sums = out[row + r, left : left + WIDTH], sums[r * WIDTH : (r + 1) * WIDTH]
                scale, shift = scales[row + r], shifts[row + r]
                for c in range(WIDTH):
                    whole = tile_sums[c] - shift * own_sums[c]
                    product = np.float32(whole) * own_scales[c] * scale
                    target[c] = product + (ZERO if fresh else target[c])
            row += rows


@unit
@njit(nogil=True, cache=True, error_model="numpy")
def multiply_quantized(x, matrix, out, fresh, num_threads):  # type: ignore[no-untyped-def]
    """`out = x Wᵀ`, or `out += x Wᵀ` if not `fresh`, for a matrix of any kind but `DENSE`.

    Args:
        x: [T, k], float32, or bfloat16 as uint16; in rows without gaps.
        matrix: [FIELDS], int64: the row of W [n, k].
        out: [T, padded(n)], float32; columns behind n get 0, or keep what they are.
        num_threads: among how many to divide it, by columns, and by rows if there are too few columns.
    """
    groups, columns, bands, panels = matrix[GROUPS], 1, 1, out.shape[1] // WIDTH
    if num_threads > 1 and len(x) * panels * x.shape[1] >= PARALLEL_STEPS:
        columns = min(num_threads, panels)
        bands = max(1, min(num_threads // columns, len(x) // ROWS))
    parts = columns * bands
    if matrix[KIND] == INTEGERS:
        numbers = np.empty(x.shape, np.uint8 if HAS_VNNI else np.int16)
        scales, shifts = np.empty(len(x), np.float32), np.empty(len(x), np.int32)
        _round_rows(x, matrix, numbers, scales, shifts)
        words = numbers.view(np.uint32)
        if parts > 1:
            in_parallel(_integer_part, parts, (words, scales, shifts, matrix, out, fresh, columns, bands))
        else:
            _integer_part(columns - 1, words, scales, shifts, matrix, out, fresh, columns, bands)
        return
    ordered = x
    if matrix[ORDER]:
        order = carray(_pointer(matrix[ORDER]), (x.shape[1],), np.int64)
        ordered = np.empty(x.shape, x.dtype)
        for row in range(len(x)):
            for k in range(len(order)):
                ordered[row, k] = x[row, order[k]]
    sums = np.empty((len(x) if matrix[OFFSETS] else 0, groups), np.float32)
    if matrix[OFFSETS]:
        _sum_groups(ordered, groups, sums)
    left = _in_pairs(ordered)
    if parts > 1:
        in_parallel(_multiply_part, parts, (left, matrix, sums, out, fresh, columns, bands))
    else:
        _multiply_part(columns - 1, left, matrix, sums, out, fresh, columns, bands)


@njit(nogil=True, cache=True, error_model="numpy")
def multiply_by(x, matrix, out, fresh, num_threads, quantized):  # type: ignore[no-untyped-def]
    """The same for a matrix of any kind. `quantized` is the address of the function above, as
    `quantized_product` gives it; 0 where no matrix needs it, so that it need not be compiled."""
    if matrix[KIND] == DENSE:
        multiply(x, _dense_panels(x, matrix), out, fresh, num_threads)
    else:
        call_at(quantized, (x, matrix, out, fresh, num_threads))


def quantized_arguments(dtype: Any) -> tuple[Any, ...]:
    """Arguments of `multiply_quantized` for no rows of this type: what it is compiled for."""
    x, out = np.zeros((0, 2), dtype), np.zeros((0, WIDTH), np.float32)
    return x, np.zeros(FIELDS, np.int64), out, True, 1


def quantized_product(dtype: Any) -> int:
    """The address of `multiply_quantized` for activations of this type."""
    return address_of(multiply_quantized, *quantized_arguments(dtype))
