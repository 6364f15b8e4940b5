"""Quantised matrices as products read them: panels of small numbers, and a row that says where they are.

    numbers [n, k]  ──►  panels of `WIDTH` columns, k in steps of 8, 2 or `TOGETHER`     (`quantized_tile.py`,
                                                                                          `integer_tile.py`)
    scales [n, groups]  ──►  float32 [groups, padded(n)], and offsets alike

A `Packed` keeps the arrays alive whose addresses stand in its row.

Read next: `matrix_products.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels_numba.cpu.integer_tile import MAX_INPUTS, TOGETHER
from kernels_numba.cpu.matrix_products import (
    CODE_SUMS,
    CODES,
    DENSE,
    FIELDS,
    GROUPS,
    INPUTS,
    INTEGERS,
    KIND,
    OFFSETS,
    ORDER,
    OUTPUTS,
    ROUNDING,
    SCALES,
    STATIC_SCALE,
    STATIC_ZERO,
)
from kernels_numba.cpu.panels import WIDTH, padded
from kernels_numba.cpu.quantized_tile import BYTES, E4M3, E4M3_SHRINKS, NIBBLES, STEPS
from kernels_numba.cpu.vectors import LANES


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix [n, k] that `multiply_by` takes, or `multiply_quantized`.

    Attributes:
        row: int64 [FIELDS].
        arrays: by the field that holds an array's address.
    """

    row: Any
    arrays: dict[int, Any] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Of all that lies in memory for it."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @property
    def num_products(self) -> int:
        """Multiplications for one row, padding included."""
        return padded(int(self.row[OUTPUTS])) * int(self.row[INPUTS])


def fits(kind: int, k: int, groups: int) -> bool:
    """Can so many inputs in so many groups lie in panels of this kind?"""
    if k % groups:
        return False
    if kind == INTEGERS:
        return groups == 1 and k % 4 == 0 and k <= MAX_INPUTS
    return k // groups % STEPS[kind] == 0


def pack_groups(kind: int, codes: Any, k: int, scales: Any, offsets: Any = None, order: Any = None) -> Packed:
    """A matrix with a scale for each group of its inputs.

    Args:
        kind: `NIBBLES` (numbers from −8 to 7), `BYTES` or `E4M3`; `fits` says which can be.
        codes: the numbers [n, k] as `pack_numbers` gives them, inputs in the order of their groups.
        scales, offsets: float32 [n, groups].
        order: int64 [k]: the input that each place stands for.
    """
    scales = scales * np.float32(E4M3_SHRINKS) if kind == E4M3 else scales
    arrays = {CODES: codes, SCALES: pack_scales(scales)}
    if offsets is not None:
        arrays[OFFSETS] = pack_scales(offsets)
    if order is not None:
        arrays[ORDER] = np.ascontiguousarray(order, np.int64)
    return _packed(kind, len(scales), k, scales.shape[1], arrays)


def pack_integers(
    codes: Any, k: int, scales: Any, rounding: int, static_scale: float = 0.0, static_zero: int = 0
) -> Packed:
    """A matrix [n, k] with a scale [n, 1] for each row, that is multiplied by rounded activations."""
    n = len(scales)
    sums = np.zeros(padded(n), np.int32)
    cut = codes.view(np.int8).reshape(-1, k // TOGETHER, WIDTH, TOGETHER)
    sums[:] = cut.sum(axis=(1, 3), dtype=np.int32).ravel()
    packed = _packed(INTEGERS, n, k, 1, {CODES: codes, SCALES: pack_scales(scales), CODE_SUMS: sums})
    packed.row[ROUNDING] = rounding
    packed.row[STATIC_SCALE] = np.float32(static_scale).view(np.int32)
    packed.row[STATIC_ZERO] = static_zero
    return packed


def pack_dense(panels: Any, n: int, k: int) -> Packed:
    """A matrix [n, k] in panels as `panels.pack` gives them."""
    return _packed(DENSE, n, k, 1, {CODES: panels})


def _packed(kind: int, n: int, k: int, groups: int, arrays: dict[int, Any]) -> Packed:
    row = np.zeros(FIELDS, np.int64)
    row[KIND], row[OUTPUTS], row[INPUTS], row[GROUPS] = kind, n, k, groups
    for place, array in arrays.items():
        row[place] = array.ctypes.data
    return Packed(row, arrays)


def pack_scales(scales: Any) -> Any:
    """`scales` [n, groups] as products read them: float32 [groups, padded(n)]."""
    n, groups = scales.shape
    whole = np.zeros((groups, padded(n)), np.float32)
    whole[:, :n] = scales.T
    return whole


def pack_numbers(kind: int, numbers: Any) -> Any:
    """`numbers` int8 [n, k] (of `E4M3` their bits) in panels of this kind, as bytes."""
    n, k = numbers.shape
    whole = np.zeros((padded(n), k), np.int8)
    whole[:n] = numbers
    vectors = WIDTH // LANES
    if kind == INTEGERS:  # [panels, steps, columns, together]
        cut = whole.reshape(-1, WIDTH, k // TOGETHER, TOGETHER)
        return np.ascontiguousarray(cut.transpose(0, 2, 1, 3)).view(np.uint8)
    together = STEPS[kind]
    cut = whole.reshape(-1, vectors, LANES, k // together, together)
    if kind in (BYTES, E4M3):  # [panels, steps, vectors, together, lanes]
        return np.ascontiguousarray(cut.transpose(0, 3, 1, 4, 2)).view(np.uint8)
    words = np.zeros(cut.shape[:-1], np.uint32)
    for k_of_word in range(8):
        place = 4 * (k_of_word // 2 + 4 * (k_of_word % 2))
        words |= (cut[..., k_of_word].astype(np.uint32) & 15) << np.uint32(place)
    return np.ascontiguousarray(words.transpose(0, 3, 1, 2)).view(np.uint8)


def unpack_numbers(kind: int, codes: Any, n: int, k: int) -> Any:
    """The numbers that `pack_numbers` was given."""
    vectors = WIDTH // LANES
    if kind == INTEGERS:
        cut = codes.view(np.int8).reshape(-1, k // TOGETHER, WIDTH, TOGETHER).transpose(0, 2, 1, 3)
    elif kind in (BYTES, E4M3):
        cut = codes.view(np.int8).reshape(-1, k // 2, vectors, 2, LANES).transpose(0, 2, 4, 1, 3)
    else:
        assert kind == NIBBLES
        words = codes.view(np.int32).reshape(-1, k // 8, vectors, LANES).transpose(0, 2, 3, 1)
        cut = np.empty((*words.shape, 8), np.int8)
        for k_of_word in range(8):
            place = 4 * (k_of_word // 2 + 4 * (k_of_word % 2))
            cut[..., k_of_word] = (words << np.int32(28 - place)) >> np.int32(28)
    return np.ascontiguousarray(cut).reshape(-1, k)[:n]
