"""A KV cache in 8 bits, for kernels that read and write it where it lies.

Wherever a kernel takes the keys or values of a layer, it takes an array of numbers or a pair:

    numbers                  [blocks, kv_heads, block_size, d], float32, or bfloat16 as uint16
    (int8 codes, scales)     scales [blocks, kv_heads, block_size], of each head of a token
    (uint8 codes, scale)     bytes of e4m3, all with one scale

Which it is, is known when a kernel is compiled: numbers cost what they did before. Whole ones are widened
in registers as they are read, a vector in two instructions. Their scales are no part of the long sums: a
key's score is multiplied by its scale, and a value's weight by that of the value,

    Σ q · (code · scale) = scale · Σ q · code            Σ weight · (code · scale) = Σ (weight · scale) · code

E4m3 takes some ten instructions, so a tile of it is put in float32 first.

The plain twin is `minivllm/executor/kv_format.py`: codes are the same in every bit, as everything here is
rounded by itself (no fast math). `tests/kernels/test_cpu_coded_cells.py` says so.

Read next: `paged_decode.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from kernels_numba.cpu.arithmetic import bits_of_float, float_of_bits, widen
from kernels_numba.cpu.parallel import in_parallel
from kernels_numba.cpu.units import unit

INT8_LARGEST, LEAST_SCALE = np.float32(127), np.float32(1e-6)
HALF = np.float32(0.5)
INFINITY_BITS = np.uint32(0x7F800000)
E4M3_LARGEST_BITS, E4M3_SMALL_BITS = (np.float32(number).view(np.uint32) for number in (448, 2.0**-6))
E4M3_ROUNDER = np.float32(2.0**14)
"""Its neighbours among float32 are 2⁻⁹ away, as those of small numbers of e4m3 are."""
PARALLEL_CELLS = 1 << 16
"""Numbers that are worth waking another thread for."""


def _kind(cache: Any) -> str:
    """Of a cache's type: "numbers", "int8" or "fp8"."""
    if isinstance(cache, types.BaseTuple):
        return "int8" if cache[0].dtype == types.int8 else "fp8"
    return "numbers"


def numbers(cache):  # type: ignore[no-untyped-def]
    """The cells [blocks, kv_heads, block_size, d] of keys or values."""
    return cache[0] if isinstance(cache, tuple) else cache


@overload(numbers, inline="always")
def _numbers(cache):  # type: ignore[no-untyped-def]
    return (lambda cache: cache) if _kind(cache) == "numbers" else (lambda cache: cache[0])


def layer_of(cells, layer):  # type: ignore[no-untyped-def]
    """In compiled code: keys and values of one layer, of cells [layers, 2, …], or of codes and scales so."""
    raise NotImplementedError("only in compiled code")


@overload(layer_of, inline="always")
def _layer_of(cells, layer):  # type: ignore[no-untyped-def]
    if _kind(cells) == "numbers":
        return lambda cells, layer: (cells[layer, 0], cells[layer, 1])
    return lambda cells, layer: (
        (cells[0][layer, 0], cells[1][layer, 0]),
        (cells[0][layer, 1], cells[1][layer, 1]),
    )


def where_to_rotate(keys, values, slots, new):  # type: ignore[no-untyped-def]
    """In compiled code: keys, values and slots that new tokens are rotated into, before they are coded.

    new: [2, tokens, kv_heads, 1, d], where each token is a block of its own.
    """
    raise NotImplementedError("only in compiled code")


@overload(where_to_rotate)
def _where_to_rotate(keys, values, slots, new):  # type: ignore[no-untyped-def]
    if _kind(keys) == "numbers":
        return lambda keys, values, slots, new: (keys, values, slots)
    return lambda keys, values, slots, new: (new[0], new[1], np.arange(len(slots)))


def code(new, slots, keys, values, num_threads):  # type: ignore[no-untyped-def]
    """In compiled code: what was rotated into `new` goes to its cells."""
    raise NotImplementedError("only in compiled code")


@overload(code)
def _code(new, slots, keys, values, num_threads):  # type: ignore[no-untyped-def]
    if _kind(keys) == "numbers":
        return lambda new, slots, keys, values, num_threads: None

    def coded(new, slots, keys, values, num_threads):  # type: ignore[no-untyped-def]
        shape = new.shape[1], new.shape[2], new.shape[4]
        write_codes(new[0].reshape(shape), new[1].reshape(shape), slots, keys, values, num_threads)

    return coded


def make_copies(cache, count, width):  # type: ignore[no-untyped-def]
    """In compiled code: room for `count` keys and as many values, as `copy_block` copies them."""
    raise NotImplementedError("only in compiled code")


@overload(make_copies)
def _make_copies(cache, count, width):  # type: ignore[no-untyped-def]
    if _kind(cache) == "fp8":
        return lambda cache, count, width: np.zeros((2, count, width), np.float32)
    return lambda cache, count, width: np.zeros((2, count, width), numbers(cache).dtype)


def must_copy(cache):  # type: ignore[no-untyped-def]
    """In compiled code: can these numbers not be read where they are?"""
    raise NotImplementedError("only in compiled code")


@overload(must_copy, inline="always")
def _must_copy(cache):  # type: ignore[no-untyped-def]
    is_fp8 = _kind(cache) == "fp8"
    return lambda cache: is_fp8


def rows_of(cache, copies, is_copied):  # type: ignore[no-untyped-def]
    """In compiled code: all rows, flat, of the cache or of the copies [count, width]."""
    raise NotImplementedError("only in compiled code")


@overload(rows_of)
def _rows_of(cache, copies, is_copied):  # type: ignore[no-untyped-def]
    if _kind(cache) == "fp8":  # another type, but they are always copied
        return lambda cache, copies, is_copied: copies.reshape(-1)
    return lambda cache, copies, is_copied: copies.reshape(-1) if is_copied else numbers(cache).reshape(-1)


def copy_block(cache, block, head, copied, at):  # type: ignore[no-untyped-def]
    """In compiled code: one head's rows of a block go behind row `at` of `copied` [.., width].

    What is behind them stays 0. E4m3 becomes float32, its scale multiplied in.
    """
    raise NotImplementedError("only in compiled code")


@overload(copy_block)
def _copy_block(cache, block, head, copied, at):  # type: ignore[no-untyped-def]
    if _kind(cache) == "fp8":

        def widened(cache, block, head, copied, at):  # type: ignore[no-untyped-def]
            source, scale = cache[0][block, head], cache[1]
            for t in range(len(source)):
                row, target = source[t], copied[at + t]
                for c in range(len(row)):
                    target[c] = from_e4m3(row[c]) * scale

        return widened

    def copied_as_it_is(cache, block, head, copied, at):  # type: ignore[no-untyped-def]
        source = numbers(cache)[block, head]
        for t in range(len(source)):
            row, target = source[t], copied[at + t]
            for c in range(len(row)):
                target[c] = row[c]

    return copied_as_it_is


def copy_rows(cache, table, head, begin, stop, copied, at):  # type: ignore[no-untyped-def]
    """In compiled code: positions `begin … stop` of one head go behind row `at` of `copied` [.., width].

    As `copy_block` copies a block.
    """
    raise NotImplementedError("only in compiled code")


@overload(copy_rows)
def _copy_rows(cache, table, head, begin, stop, copied, at):  # type: ignore[no-untyped-def]
    if _kind(cache) == "fp8":

        def widened(cache, table, head, begin, stop, copied, at):  # type: ignore[no-untyped-def]
            block_size = cache[0].shape[2]
            for t in range(stop - begin):
                position = begin + t
                row = cache[0][table[position // block_size], head, position % block_size]
                target = copied[at + t]
                for c in range(len(row)):
                    target[c] = from_e4m3(row[c]) * cache[1]

        return widened

    def copied_as_they_are(cache, table, head, begin, stop, copied, at):  # type: ignore[no-untyped-def]
        cells = numbers(cache)
        block_size = cells.shape[2]
        for t in range(stop - begin):
            position = begin + t
            row = cells[table[position // block_size], head, position % block_size]
            target = copied[at + t]
            for c in range(len(row)):
                target[c] = row[c]

    return copied_as_they_are


def apply_scales(scores, cache, table, part, begin, stop, head, group, capacity):  # type: ignore[no-untyped-def]
    """In compiled code: what belongs to each key or value of positions `begin … stop` gets its scale.

    scores: flat, `capacity` for each of `group` heads, beginning with position `part`.
    """
    raise NotImplementedError("only in compiled code")


@overload(apply_scales, inline="always")
def _apply_scales(scores, cache, table, part, begin, stop, head, group, capacity):  # type: ignore[no-untyped-def]
    if _kind(cache) != "int8":
        return lambda scores, cache, table, part, begin, stop, head, group, capacity: None
    return lambda scores, cache, table, part, begin, stop, head, group, capacity: _multiply(
        scores, cache[1], table, part, begin, stop, head, group, capacity
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply(scores, scales, table, part, begin, stop, head, group, capacity):  # type: ignore[no-untyped-def]
    block_size, key = scales.shape[2], begin
    while key < stop:
        own, offset = scales[table[key // block_size], head], key % block_size
        count = min(block_size - offset, stop - key)
        for g in range(group):
            place = g * capacity + key - part
            for t in range(count):
                scores[place + t] *= own[offset + t]
        key += count


def make_tile(cache, num_blocks):  # type: ignore[no-untyped-def]
    """In compiled code: room for so many blocks, for `open_tile`."""
    raise NotImplementedError("only in compiled code")


@overload(make_tile)
def _make_tile(cache, num_blocks):  # type: ignore[no-untyped-def]
    if _kind(cache) == "numbers":
        return lambda cache, num_blocks: None

    def room(cache, num_blocks):  # type: ignore[no-untyped-def]
        block_size, d = cache[0].shape[2:]
        return np.empty((2, num_blocks, 1, block_size, d), np.float32)

    return room


def open_tile(keys, values, table, first_block, num_blocks, head, copies):  # type: ignore[no-untyped-def]
    """In compiled code: some blocks of one head as numbers: keys, values, their table, their head.

    Coded ones are put in `copies` [2, blocks, 1, block_size, d], float32; others are what they are. Whole
    numbers come without their scales: `scale_rows` applies those, as `apply_scales` does where keys are read
    one after the other. In both places a sum is of the same products, and is rounded in the same places.
    """
    raise NotImplementedError("only in compiled code")


@overload(open_tile, inline="always")
def _open_tile(keys, values, table, first_block, num_blocks, head, copies):  # type: ignore[no-untyped-def]
    if _kind(keys) == "numbers":
        return lambda keys, values, table, first_block, num_blocks, head, copies: (
            keys,
            values,
            table[first_block:],
            head,
        )

    def opened(keys, values, table, first_block, num_blocks, head, copies):  # type: ignore[no-untyped-def]
        for b in range(num_blocks):
            _widen_block(keys, table[first_block + b], head, copies[0, b, 0])
            _widen_block(values, table[first_block + b], head, copies[1, b, 0])
        return copies[0], copies[1], np.arange(num_blocks).astype(table.dtype), 0

    return opened


def _widen_block(cache, block, head, copied):  # type: ignore[no-untyped-def]
    raise NotImplementedError("only in compiled code")


@overload(_widen_block)
def _widened_block(cache, block, head, copied):  # type: ignore[no-untyped-def]
    if _kind(cache) == "fp8":
        return lambda cache, block, head, copied: copy_block(cache, block, head, copied, 0)

    def widened(cache, block, head, copied):  # type: ignore[no-untyped-def]
        source = cache[0][block, head]
        for t in range(len(source)):
            row, target = source[t], copied[t]
            for c in range(len(row)):
                target[c] = np.float32(row[c])

    return widened


def scale_rows(scores, cache, table, part, begin, stop, head, width):  # type: ignore[no-untyped-def]
    """In compiled code: rows [.., width] of `scores`, one for each key or value, get its scale.

    Of positions `begin … stop`; the first row is that of position `part`.
    """
    raise NotImplementedError("only in compiled code")


@overload(scale_rows, inline="always")
def _scale_rows(scores, cache, table, part, begin, stop, head, width):  # type: ignore[no-untyped-def]
    if _kind(cache) != "int8":
        return lambda scores, cache, table, part, begin, stop, head, width: None
    return lambda scores, cache, table, part, begin, stop, head, width: _multiply_rows(
        scores, cache[1], table, part, begin, stop, head, width
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_rows(scores, scales, table, part, begin, stop, head, width):  # type: ignore[no-untyped-def]
    block_size = scales.shape[2]
    for key in range(begin, stop):
        scale = scales[table[key // block_size], head, key % block_size]
        row = scores[(key - part) * width : (key - part + 1) * width]
        for i in range(width):
            row[i] *= scale


@njit(inline="always")
def from_e4m3(byte):  # type: ignore[no-untyped-def]
    """The float32 that a byte of e4m3 stands for: sign, 4 bits of exponent (less 7), 3 of mantissa."""
    bits = np.int32(byte)
    magnitude, sign = bits & np.int32(0x7F), (bits & np.int32(0x80)) << np.int32(24)
    normal = float_of_bits((magnitude << np.int32(20)) + np.int32(120 << 23))
    small = np.float32(magnitude) * np.float32(2.0**-9)  # without an exponent: eighths of 2⁻⁶
    value = small if magnitude < np.int32(8) else normal
    value = np.float32(np.nan) if magnitude == np.int32(0x7F) else value
    return float_of_bits(np.int32(bits_of_float(value)) | sign)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=False)
def _code_head(row, codes):  # type: ignore[no-untyped-def]
    """`codes` [d] for one head, and its scale; as `kv_format.to_int8`, to the bit."""
    largest = np.uint32(0)
    for c in range(len(row)):  # as whole numbers: they have the order of what they stand for, and NaN is last
        largest = max(largest, bits_of_float(widen(row[c])) & np.uint32(0x7FFFFFFF))
    scale = float_of_bits(np.int32(largest)) / INT8_LARGEST
    if scale < LEAST_SCALE:
        scale = LEAST_SCALE
    for c in range(len(row)):
        step = widen(row[c]) / scale
        codes[c] = np.int8(np.int32(step + (HALF if step >= 0 else -HALF)))
    return scale


@njit(nogil=True, cache=True, error_model="numpy", fastmath=False)
def to_e4m3(value):  # type: ignore[no-untyped-def]
    """The byte of e4m3 for a float32: the nearest, of two the even one; what is too large becomes ±448.

    As `kv_format.to_fp8`, to the bit.
    """
    bits = bits_of_float(value)
    sign, magnitude = (bits >> np.uint32(24)) & np.uint32(0x80), bits & np.uint32(0x7FFFFFFF)
    if magnitude > INFINITY_BITS:
        return np.uint8(sign | np.uint32(0x7F))
    magnitude = min(magnitude, E4M3_LARGEST_BITS)
    if magnitude < E4M3_SMALL_BITS:  # without an exponent: an addition rounds to eighths of 2⁻⁶
        shifted = bits_of_float(float_of_bits(np.int32(magnitude)) + E4M3_ROUNDER)
        return np.uint8(sign | (shifted - bits_of_float(E4M3_ROUNDER)))
    rounded = magnitude + np.uint32(0x7FFFF) + ((magnitude >> np.uint32(20)) & np.uint32(1))
    return np.uint8(sign | ((rounded >> np.uint32(20)) - np.uint32(120 << 3)))


def _write_head(row, cache, block, head, cell):  # type: ignore[no-untyped-def]
    """In compiled code: one head of a new token, coded, into its cell."""
    raise NotImplementedError("only in compiled code")


@overload(_write_head)
def _write_head_of(row, cache, block, head, cell):  # type: ignore[no-untyped-def]
    if _kind(cache) == "fp8":

        def as_floats(row, cache, block, head, cell):  # type: ignore[no-untyped-def]
            codes = cache[0][block, head, cell]
            for c in range(len(row)):
                codes[c] = to_e4m3(widen(row[c]) / cache[1])

        return as_floats

    def as_whole_numbers(row, cache, block, head, cell):  # type: ignore[no-untyped-def]
        cache[1][block, head, cell] = _code_head(row, cache[0][block, head, cell])

    return as_whole_numbers


@njit(nogil=True, cache=True, error_model="numpy", fastmath=False)
def _write_part(part, parts, new_keys, new_values, slots, keys, values):  # type: ignore[no-untyped-def]
    """One part of `write_codes`, on one thread."""
    block_size = keys[0].shape[2]
    for row in range(part * len(slots) // parts, (part + 1) * len(slots) // parts):
        block, cell = slots[row] // block_size, slots[row] % block_size
        for head in range(new_keys.shape[1]):
            _write_head(new_keys[row, head], keys, block, head, cell)
            _write_head(new_values[row, head], values, block, head, cell)


@unit
@njit(nogil=True, cache=True, error_model="numpy", fastmath=False)
def write_codes(new_keys, new_values, slots, keys, values, num_threads):  # type: ignore[no-untyped-def]
    """Keep new tokens.

    Args:
        new_keys, new_values: [≥ T, kv_heads, d], float32, or bfloat16 as uint16.
        slots: [T], the cell of each token; no two have the same.
        keys, values: pairs of codes and scales; codes are written, and the scales of whole numbers.
        num_threads: among how many to divide it.
    """
    size = len(slots) * new_keys.shape[1] * new_keys.shape[2]
    parts = num_threads if size >= PARALLEL_CELLS else min(num_threads, 1)
    if parts > 1:
        in_parallel(_write_part, parts, (parts, new_keys, new_values, slots, keys, values))
    else:
        _write_part(parts - 1, parts, new_keys, new_values, slots, keys, values)
