"""Instructions of the hardware that Python has no words for, each from one line of PTX.

An instruction is two things: what the compiler writes (`@intrinsic`, with the PTX), and what it means
(`@means`, plain Python, for the microscope).

    load_float4(array, (i, j))      16 bytes at once: four neighbours along the last dimension
    load_uint4(array, (i, j))       the same of 32-bit words; each holds two 16-bit numbers
    low_half(word, is_bf16)         the 16-bit number in the lower half, as a float32
    high_half(word, is_bf16)        in the upper half
    int8_at(word, n)                its byte n (0 is the lowest) as a whole number from -128 to 127, a float32
    e4m3_at(word, n)                its byte n as an 8-bit float, a float32

A warp that loads 16 bytes a lane asks for 512 bytes in one instruction. Arrays of records or of vectors do
not give such loads; only the instruction does.

Source: NVIDIA, PTX ISA, `ld`, `cvt`. Read next: `paged_attention.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda.extending import intrinsic
from numpy.typing import NDArray

try:
    from numba.cuda import cgutils
    from numba.cuda import types as types
    from numba.cuda.api_util import normalize_indices
except ImportError:  # the older home of numba.cuda, within numba itself
    from numba.core import cgutils
    from numba.core import types as types
    from numba.cuda.cudaimpl import _normalize_indices as normalize_indices

from kernels_numba.meanings import means


def element_address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """LLVM: the address of `array[index]`, the first two arguments."""
    array_type, index_type = signature.args[:2]
    index_type, indices = normalize_indices(
        context, builder, index_type, arguments[1], array_type, array_type.dtype
    )
    array = context.make_array(array_type)(context, builder, arguments[0])
    return cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)


def call_ptx(
    builder: Any, results: list[Any], arguments: list[Any], ptx: str, constraints: str, *, pure: bool = False
) -> Any:
    """LLVM: a line of PTX with these results and arguments, as one call."""
    kind = ir.LiteralStructType(results) if results else ir.VoidType()
    function = ir.FunctionType(kind, [argument.type for argument in arguments])
    return builder.call(ir.InlineAsm(function, ptx, constraints, side_effect=not pure), arguments)


def as_tuple(context: Any, builder: Any, kind: Any, struct: Any) -> Any:
    """LLVM: the results of a call as a tuple that Python can unpack."""
    return context.make_tuple(builder, kind, [builder.extract_value(struct, i) for i in range(kind.count)])


def _vector_load(name: str, element: Any, llvm_type: Any, suffix: str, letter: str) -> Any:
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        result = types.UniTuple(element, 4)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = builder.ptrtoint(
                element_address(context, builder, signature, arguments), ir.IntType(64)
            )
            ptx = f"ld.global.v4.{suffix} {{$0, $1, $2, $3}}, [$4];"
            constraints = ",".join([f"={letter}"] * 4 + ["l", "~{memory}"])
            loaded = call_ptx(builder, [llvm_type] * 4, [address], ptx, constraints)
            return as_tuple(context, builder, result, loaded)

        return result(array, index), generate

    load.__name__ = name
    return intrinsic(load)


load_float4 = _vector_load("load_float4", types.float32, ir.FloatType(), "f32", "f")
load_uint4 = _vector_load("load_uint4", types.uint32, ir.IntType(32), "u32", "r")


@means(load_float4)
@means(load_uint4)
def _(lane: Any, array: Any, index: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(lane.read(array, index, 4))


def _half(name: str, shift: int) -> Any:
    def convert(typing_context: Any, word: Any, is_bf16: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word, is_bf16 = arguments
            bits = builder.lshr(word, ir.Constant(ir.IntType(32), shift))
            # bfloat16 is the upper half of a float32; float16 has an instruction of its own.
            wide = builder.bitcast(builder.shl(bits, ir.Constant(ir.IntType(32), 16)), ir.FloatType())
            half = builder.bitcast(builder.trunc(bits, ir.IntType(16)), ir.HalfType())
            return builder.select(is_bf16, wide, builder.fpext(half, ir.FloatType()))

        return types.float32(types.uint32, types.boolean), generate

    convert.__name__ = name
    return intrinsic(convert)


low_half = _half("low_half", 0)
high_half = _half("high_half", 16)


@cache
def all_halves(is_bf16: bool) -> NDArray[np.float32]:
    """What any 16 bits stand for, by these bits."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    if is_bf16:
        return (bits << 16).view(np.float32)
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


@means(low_half)
def _(lane: Any, word: Any, is_bf16: bool) -> Any:
    return all_halves(is_bf16)[int(word) & 0xFFFF]


@means(high_half)
def _(lane: Any, word: Any, is_bf16: bool) -> Any:
    return all_halves(is_bf16)[int(word) >> 16]


def _byte(name: str, convert: Any) -> Any:
    def at(typing_context: Any, word: Any, n: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word, n = arguments
            shift = builder.mul(builder.trunc(n, word.type), ir.Constant(word.type, 8))
            return convert(builder, builder.and_(builder.lshr(word, shift), ir.Constant(word.type, 0xFF)))

        return types.float32(types.uint32, types.int64), generate

    at.__name__ = name
    return intrinsic(at)


def _from_int8(builder: Any, byte: Any) -> Any:
    return builder.sitofp(builder.trunc(byte, ir.IntType(8)), ir.FloatType())


def _from_e4m3(builder: Any, byte: Any) -> Any:
    """A float16 has one bit of exponent more: moved there, the number is 2⁸ times too small."""

    def word(value: int) -> Any:
        return ir.Constant(byte.type, value)

    magnitude = builder.and_(byte, word(0x7F))
    sign = builder.shl(builder.and_(byte, word(0x80)), word(8))
    bits = builder.trunc(builder.or_(sign, builder.shl(magnitude, word(7))), ir.IntType(16))
    small = builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
    value = builder.fmul(small, ir.Constant(ir.FloatType(), 256.0))
    is_none = builder.icmp_unsigned("==", magnitude, word(0x7F))
    return builder.select(is_none, ir.Constant(ir.FloatType(), float("nan")), value)


int8_at = _byte("int8_at", _from_int8)
e4m3_at = _byte("e4m3_at", _from_e4m3)


@means(int8_at)
def _(lane: Any, word: Any, n: int) -> np.float32:
    byte = int(word) >> 8 * n & 0xFF
    return np.float32(byte - 256 if byte >= 128 else byte)


@means(e4m3_at)
def _(lane: Any, word: Any, n: int) -> np.float32:
    byte = int(word) >> 8 * n & 0xFF
    exponent, fraction = byte >> 3 & 15, byte & 7
    if exponent == 15 and fraction == 7:
        return np.float32(np.nan)
    value = (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0**-9
    return np.float32(-value if byte & 0x80 else value)
