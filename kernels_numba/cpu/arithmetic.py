"""Six things that a fast loop needs and Python cannot express.

    exp_fast(x)          e^x for x ≤ 0 by a polynomial, so that a loop over it can be vectorised (a call of
                         the library's function could not); relative error 10⁻⁶ near 0, 10⁻⁵ far away;
                         exactly 0 below −87, so that what is not seen weighs nothing
    multiply_add(…)      a · b + c, rounded once where the processor can
    widen(x)             an array's number as float32: float32 itself, or the bits of a bfloat16
    narrow(x, array)     a float32 as this array holds it, rounded to the nearest (ties to even)
    prefetch(array, i)   the processor fetches this element while it computes something else
    ticks()              the processor's clock; 0 where programs may not read it

None of our kernels lets the compiler reorder sums ("fastmath"): a sum's order is written down, so that a
token's numbers are the same bits whichever kernel computes them (`docs/batch-invariance.md`).

Source: the polynomial is the minimax one for 2^f on [-½, ½], as in Cephes and its many descendants.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from kernels_numba.cpu.vectors import fetcher

LOG2_E = np.float32(1.4426950408889634)
LEAST_EXPONENT = np.float32(-87.0)
"""Of e, before a float32 is 0."""
C6, C5, C4, C3, C2, C1 = (
    np.float32(c)
    for c in (1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3,
              5.550332471162809e-2, 2.402264791363012e-1, 6.931472028550421e-1)
)  # fmt: skip


@intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c of float32: one instruction where the processor has it, in vectors and alone."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.FloatType()
        kind = ir.FunctionType(number, [number] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), arguments
        )

    return types.float32(types.float32, types.float32, types.float32), generate


@njit(inline="always")
def exp_fast(x):  # type: ignore[no-untyped-def]
    """e^x for x ≤ 0: 2^n by writing n into the exponent, times 2^f by a polynomial."""
    y = max(x, LEAST_EXPONENT) * LOG2_E
    n = np.int32(y - np.float32(0.5))  # towards zero: so this is the nearest integer
    f = y - np.float32(n)
    p = multiply_add(C6, f, C5)
    p = multiply_add(p, f, C4)
    p = multiply_add(p, f, C3)
    p = multiply_add(p, f, C2)
    p = multiply_add(p, f, C1)
    p = multiply_add(p, f, np.float32(1))
    power = p * float_of_bits((n + np.int32(127)) << np.int32(23))
    return np.float32(0) if x < LEAST_EXPONENT else power


def widen(x):  # type: ignore[no-untyped-def]
    """In compiled code: a number of the cache as float32."""
    raise NotImplementedError("only in compiled code")


@overload(widen, inline="always")
def _widen(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: x
    if x == types.uint16:  # a bfloat16 is the upper half of a float32
        return lambda x: float_of_bits(np.uint32(x) << np.uint32(16))
    return None


@intrinsic
def bits_of_float(typing_context: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@njit(inline="always")
def pair_of(first, second):  # type: ignore[no-untyped-def]
    """Two numbers (float32, finite), rounded to bfloat16, side by side in 32 bits, the first one lower."""
    low, high = bits_of_float(first), bits_of_float(second)
    low += np.uint32(0x7FFF) + ((low >> np.uint32(16)) & np.uint32(1))
    high += np.uint32(0x7FFF) + ((high >> np.uint32(16)) & np.uint32(1))
    return (low >> np.uint32(16)) | (high & np.uint32(0xFFFF0000))


def narrow(x, array):  # type: ignore[no-untyped-def]
    """In compiled code: a float32 as an element of `array`, which holds float32, or bfloat16 as uint16."""
    raise NotImplementedError("only in compiled code")


@overload(narrow, inline="always")
def _narrow(x, array):  # type: ignore[no-untyped-def]
    if array.dtype == types.float32:
        return lambda x, array: x
    if array.dtype == types.uint16:

        def round_to_even(x, array):  # type: ignore[no-untyped-def]
            bits = bits_of_float(x)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return round_to_even
    return None


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line that holds element `index` of a one-dimensional array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        made = context.make_array(array_type)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(
            context, builder, array_type, made, [arguments[1]], wraparound=False
        )
        fetcher(builder, array_type.dtype)(pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


HAS_CLOCK = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic
def ticks(typing_context: Any) -> Any:
    """Ticks of the processor's clock, which beats evenly: to tell what share of a call went where."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(64)
        if not HAS_CLOCK:
            return number(0)
        kind = ir.FunctionType(number, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), generate
