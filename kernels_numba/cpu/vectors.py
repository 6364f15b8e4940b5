"""Vectors of numbers in compiled code: how many fit, how they are loaded, multiplied and fetched in advance.

What Numba cannot express is written in LLVM's instructions here, in a few small functions; `tile_product.py`
and `row_dots.py` make loops of them. Numbers are what the type of their array says:

    float32    multiplied and added in one instruction
    uint16     a bfloat16: the upper half of a float32, widened as it is loaded
    uint32     two bfloat16 side by side: the products of both are added by one instruction that processors
               with AVX512-BF16 have; both factors must be such pairs
    int8       a whole number, made a float32 as it is loaded; only in vectors
    uint8      two whole numbers from -8 to 7, plus 8, of two steps: the first in the lower half; only there

Read next: `tile_product.py`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload


def features_compiled_for() -> dict[str, bool]:
    """What Numba assumes of the processor: what this one has, or what `NUMBA_CPU_FEATURES` says instead."""
    if given := numba.config.CPU_FEATURES:
        return {name[1:]: name.startswith("+") for name in given.split(",")}
    return dict(llvm.get_host_cpu_features())


FEATURES = features_compiled_for()
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 4
LINE_BYTES = 64
"""Of a cache line: what one fetch brings."""
MANY_REGISTERS = LANES != 8
"""32 of them, and not 16."""
HAS_PAIRS = bool(LANES == 16 and FEATURES.get("avx512bf16"))
"""Can this processor multiply pairs of bfloat16?"""

FLOAT, BITS = ir.FloatType(), ir.IntType(32)
VECTOR, BIT_VECTOR = ir.VectorType(FLOAT, LANES), ir.VectorType(BITS, LANES)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    null = "0.0"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def loader(builder: Any, dtype: Any, is_vector: bool) -> Any:
    """What loads a vector of numbers of this type from a pointer, or one of them into all lanes."""

    def spread(value: Any) -> Any:
        kind = ir.VectorType(value.type, LANES)
        alone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, BITS(0))
        lanes = ir.Constant(ir.VectorType(BITS, LANES), [0] * LANES)
        return builder.shuffle_vector(alone, ir.Constant(kind, ir.Undefined), lanes)

    def load_int8(pointer: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), LANES)
        loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)
        return builder.sitofp(builder.sext(loaded, BIT_VECTOR), VECTOR)

    def load(pointer: Any) -> Any:
        element = ir.IntType(16) if dtype == types.uint16 else BITS if dtype == types.uint32 else FLOAT
        size = 2 if dtype == types.uint16 else 4
        if is_vector:
            pointer = builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer())
            value = builder.load(pointer, align=size)
        else:
            value = builder.load(pointer, align=2 if dtype == types.uint32 else size)
        if dtype == types.uint16:
            bits, wide = (BIT_VECTOR, VECTOR) if is_vector else (BITS, FLOAT)
            shift = ir.Constant(bits, [16] * LANES) if is_vector else BITS(16)
            value = builder.bitcast(builder.shl(builder.zext(value, bits), shift), wide)
        return value if is_vector else spread(value)

    return load_int8 if dtype == types.int8 and is_vector else load


def step_loader(builder: Any, dtype: Any) -> Any:
    """What loads a vector for each step that lies at a pointer: two steps if they share bytes, else one."""
    if dtype != types.uint8:
        load = loader(builder, dtype, is_vector=True)
        return lambda pointer: [load(pointer)]

    def constant(value: int) -> Any:
        return ir.Constant(BIT_VECTOR, [value] * LANES)

    def load_small(pointer: Any) -> list[Any]:
        kind = ir.VectorType(ir.IntType(8), LANES)
        loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)
        both = builder.zext(loaded, BIT_VECTOR)
        halves = builder.and_(both, constant(15)), builder.lshr(both, constant(4))
        return [builder.sitofp(builder.sub(half, constant(8)), VECTOR) for half in halves]

    return load_small


def zip_loader(builder: Any) -> Any:
    """What loads a vector of pairs of bfloat16: one of each pair from one row, the other from another."""

    def load(lower: Any, upper: Any) -> Any:
        kind = ir.VectorType(ir.IntType(16), LANES).as_pointer()
        low, high = (
            builder.zext(builder.load(builder.bitcast(pointer, kind), align=2), BIT_VECTOR)
            for pointer in (lower, upper)
        )
        return builder.or_(low, builder.shl(high, ir.Constant(BIT_VECTOR, [16] * LANES)))

    return load


def multiplier(builder: Any, is_pairs: bool) -> Any:
    """What adds the product of two vectors to a third."""
    if not is_pairs:
        kind = ir.FunctionType(VECTOR, [VECTOR, VECTOR, VECTOR])
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        return lambda a, b, total: builder.call(multiply_add, [a, b, total])
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    kind = ir.FunctionType(VECTOR, [VECTOR, pairs, pairs])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    dot = cgutils.get_or_insert_function(builder.module, kind, name)
    return lambda a, b, total: builder.call(
        dot, [total, builder.bitcast(a, pairs), builder.bitcast(b, pairs)]
    )


def fetcher(builder: Any, dtype: Any) -> Any:
    """What asks for the cache line at a pointer to such numbers.

    A core can wait for a few dozen lines at once. Those of wide numbers come so fast that the innermost
    cache is better left to what is in use: they stop in the next one (measured: a third faster). Narrow
    ones, half as many, do not.
    """
    byte_pointer = ir.IntType(8).as_pointer()
    name = "llvm.prefetch.p0" if getattr(byte_pointer, "is_opaque", False) else "llvm.prefetch.p0i8"
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, BITS, BITS, BITS])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    to_read, data = BITS(0), BITS(1)
    level = BITS(2 if dtype.bitwidth >= 32 else 3)  # all caches but the innermost, or all
    return lambda pointer: builder.call(
        function, [builder.bitcast(pointer, byte_pointer), to_read, level, data]
    )


def as_pairs(array):  # type: ignore[no-untyped-def]
    """A flat array of bfloat16 as pairs, where they can be multiplied; other numbers as they are."""
    is_narrow = array.dtype == np.uint16 and HAS_PAIRS
    return array[: len(array) // 2 * 2].view(np.uint32) if is_narrow else array


@overload(as_pairs, inline="always")
def _as_pairs(array):  # type: ignore[no-untyped-def]
    if array.dtype == types.uint16 and HAS_PAIRS:
        return lambda array: array[: len(array) // 2 * 2].view(np.uint32)
    return lambda array: array
