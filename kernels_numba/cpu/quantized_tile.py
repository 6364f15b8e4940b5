"""A tile of sums that takes in small numbers, and scales at each group's end, all in registers.

    for each group:  sums = 0
        for each step:   bytes ──► numbers, exactly ──► sums[r, :] += left[r, k] · number[k, :]
        totals[r, :] += scale[group, :] · sums[r, :]  −  offset[group, :] · Σ left[r, group]

Numbers lie so that one load brings many, and each instruction after it makes a whole vector of them:

    NIBBLES   8 steps of k in 32 bits, of each column       k:  7 5 3 1 6 4 2 0     (upper bits … lower bits)
              ┌ AVX-512: a shift, and the four lowest bits look their float up among 16, in a register
              ├ in pairs of bfloat16: the same of 16 bits, two numbers each, ready for one instruction
              └ otherwise two shifts and a conversion
    BYTES     2 steps: the vector's numbers of the even one, then of the odd one
    E4M3      the same of 8-bit floats: shifted, they are floats of 16 bits, which processors widen
    WIDE      what the others become, written down once for many rows (`widen_steps`)

Whole numbers below 256 are exact in float32 and in bfloat16, and so are numbers of e4m3: a row comes to the
same bits whichever way its numbers were widened, alone or in company.

    e4m3     s eeee mmm              the exponent of the 16 bits is 8 less than it should be, which makes each
    16 bits  s 0eeee mmm0000000      number 1/256 of itself (`E4M3_SHRINKS`): the scales make up for it

Source: the lookup is that of FLUTE (Guo et al., 2024, arXiv 2407.10960), in a vector register. Read next:
`matrix_products.py`, which calls these; `integer_tile.py`, where both sides are whole numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_numba.cpu.panels import ROWS
from kernels_numba.cpu.tile_product import VECTORS
from kernels_numba.cpu.vectors import (
    BIT_VECTOR,
    BITS,
    FEATURES,
    LANES,
    LINE_BYTES,
    VECTOR,
    fetcher,
    loader,
    multiplier,
)

NIBBLES, BYTES, WIDE = 4, 8, 32
"""Bits that a number lies in."""
E4M3 = 43
"""Floats of 8 bits: 4 of exponent, 3 of mantissa."""
E4M3_SHRINKS = 256.0
STEPS = {NIBBLES: 8, BYTES: 2, E4M3: 2, WIDE: 2}
"""Of k, that lie together."""
HAS_HALVES = LANES >= 8 and bool(FEATURES.get("f16c") or FEATURES.get("avx512f"))
"""Can this processor widen vectors of 16-bit floats?"""
HAS_LOOKUP = LANES == 16 and bool(FEATURES.get("avx512bw"))


def step_bytes(kind: int, is_pairs: bool) -> int:
    """Of one vector, in one step."""
    return {NIBBLES: 4, BYTES: 2, E4M3: 2, WIDE: 4 if is_pairs else 8}[kind] * LANES


def _spread(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _unpacker(builder: Any, kind: int, is_pairs: bool) -> Any:
    """What makes of the bytes at a pointer vectors, each when it is called for: sooner would take registers.

    There is one for each step of k, or for each two if `is_pairs`.
    """

    def load(pointer: Any, offset: int, loaded: Any) -> Any:
        pointer = builder.bitcast(builder.gep(pointer, [BITS(offset)]), loaded.as_pointer())
        return builder.load(pointer, align=1)

    def look_up(name: str, table: Any, index: Any) -> Any:
        function = ir.FunctionType(table.type, [table.type, index.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [table, index])

    def shifted(number: Any, places: int) -> Any:
        return builder.lshr(number, _spread(number.type, places)) if places else number

    def wide(pointer: Any) -> list[Any]:
        kind, count = (BIT_VECTOR, 1) if is_pairs else (VECTOR, 2)
        return [lambda part=part: load(pointer, part * 4 * LANES, kind) for part in range(count)]

    def in_bytes(pointer: Any) -> list[Any]:
        small = ir.VectorType(ir.IntType(8), LANES)
        widened = _of_e4m3 if kind == E4M3 else _of_whole_numbers

        def number(part: int) -> Any:
            return widened(builder, load(pointer, part * LANES, small))

        def pair() -> Any:  # of numbers with so few digits the lower half of a float32 is 0
            even, odd = (builder.bitcast(number(part), BIT_VECTOR) for part in range(2))
            return builder.or_(shifted(even, 16), odd)

        return [pair] if is_pairs else [lambda: number(0), lambda: number(1)]

    def in_nibbles(pointer: Any) -> list[Any]:
        word = load(pointer, 0, BIT_VECTOR)
        signed = [number - 16 if number > 7 else number for number in range(16)]
        halves = ir.VectorType(ir.IntType(16), 2 * LANES)

        def pair(part: int) -> Any:  # the table is there twice: the fifth bit of an index is not ours
            table = ir.Constant(halves, [_bfloat_bits(number) for number in signed] * 2)
            index = shifted(builder.bitcast(word, halves), 4 * part)
            return builder.bitcast(look_up("llvm.x86.avx512.permvar.hi.512", table, index), BIT_VECTOR)

        def number(k: int) -> Any:
            place = 4 * (k // 2 + 4 * (k % 2))
            if HAS_LOOKUP:
                table = ir.Constant(VECTOR, [float(number) for number in signed])
                return look_up("llvm.x86.avx512.permvar.sf.512", table, shifted(word, place))
            upper = builder.shl(word, _spread(BIT_VECTOR, 28 - place)) if place < 28 else word
            return builder.sitofp(builder.ashr(upper, _spread(BIT_VECTOR, 28)), VECTOR)

        if is_pairs:
            return [lambda part=part: pair(part) for part in range(4)]
        return [lambda k=k: number(k) for k in range(8)]

    return {NIBBLES: in_nibbles, BYTES: in_bytes, E4M3: in_bytes, WIDE: wide}[kind]


def _of_whole_numbers(builder: Any, numbers: Any) -> Any:
    return builder.sitofp(builder.sext(numbers, BIT_VECTOR), VECTOR)


def _of_e4m3(builder: Any, numbers: Any) -> Any:
    """Each 1/`E4M3_SHRINKS` of itself."""
    if HAS_HALVES:
        halves = ir.VectorType(ir.IntType(16), LANES)
        placed = builder.shl(builder.sext(numbers, halves), _spread(halves, 7))
        bits = builder.and_(placed, _spread(halves, 0xBF80))  # but for the sign that was drawn out
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), VECTOR)
    bits = builder.shl(builder.sext(numbers, BIT_VECTOR), _spread(BIT_VECTOR, 20))
    bits = builder.and_(bits, _spread(BIT_VECTOR, 0x87F00000))
    return builder.fmul(builder.bitcast(bits, VECTOR), _spread(VECTOR, 2.0**120 / E4M3_SHRINKS))


def _bfloat_bits(number: int) -> int:
    """Of a small whole number."""
    return int(np.float32(number).view(np.uint32)) >> 16


@intrinsic
def group_tile(typing_context: Any, rows: Any, kind: Any, left: Any, first: Any, left_row: Any, codes: Any,
               scales: Any, offsets: Any, scale_row: Any, left_sums: Any, first_sum: Any, groups: Any,
               steps: Any, out: Any, target: Any, out_row: Any, fresh: Any, soon: Any) -> Any:  # fmt: skip
    """The product above, `VECTORS` wide. Arrays are flat; codes, scales and offsets are addresses.

    Args:
        rows: 1 to `ROWS`. kind: one of `STEPS`.
        left: float32, or bfloat16 as uint16, or pairs of them as uint32; from `first` on.
        codes: of the panel. scales, offsets: of its first column; offsets may be 0: there are none.
        scale_row: how far a group's scales are from the next one's.
        left_sums: [rows, groups] flat, from `first_sum` on: of each group of the left side.
        steps: of each group; how many of k they are says `STEPS`.
        out: from `target` on; `fresh`: it begins at 0 and not at what is there.
        soon: where to fetch ahead, a line with each step, if it is of `WIDE`.
    """
    whole = types.intp
    signature = types.void(
        whole, whole, left, whole, whole, whole, whole, whole, whole, left_sums, whole, whole, whole, out,
        whole, whole, types.boolean, whole,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, kind = arguments[:2]
        data = {
            i: context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (2, 9, 13)
        }
        given = [data.get(i, argument) for i, argument in enumerate(arguments)][2:]
        for some_kind in STEPS:
            is_kind = builder.icmp_signed("==", kind, kind.type(some_kind))
            with builder.if_then(is_kind):
                for some_rows in range(1, ROWS + 1):
                    with builder.if_then(builder.icmp_signed("==", rows, rows.type(some_rows))):
                        _Tile(builder, some_rows, some_kind, left.dtype).write(*given)
        return context.get_dummy_value()

    return signature, generate


class _Tile:
    """LLVM's instructions for a tile of so many rows, of one kind."""

    def __init__(self, builder: Any, rows: int, kind: int, left_type: Any) -> None:
        self.builder, self.rows, self.kind = builder, rows, kind
        self.cells = [(r, v) for r in range(rows) for v in range(VECTORS)]
        self.totals, self.sums = (
            {cell: cgutils.alloca_once(builder, VECTOR) for cell in self.cells} for _ in range(2)
        )
        is_pairs = left_type == types.uint32
        self.size, self.numbers = step_bytes(kind, is_pairs), STEPS[kind] // (2 if is_pairs else 1)
        self.load_left = loader(builder, left_type, is_vector=False)
        self.load_one = loader(builder, types.float32, is_vector=False)
        self.fetch = fetcher(builder, types.uint32)
        self.unpack = _unpacker(builder, kind, is_pairs)
        self.multiply_add, self.scale_add = multiplier(builder, is_pairs), multiplier(builder, False)

    def write(
        self, left: Any, first: Any, left_row: Any, codes: Any, scales: Any, offsets: Any, scale_row: Any,
        left_sums: Any, first_sum: Any, groups: Any, steps: Any, out: Any, target: Any, out_row: Any,
        fresh: Any, soon: Any,
    ) -> None:  # fmt: skip
        builder = self.builder
        left_rows, sum_rows, out_rows = (
            [
                builder.gep(data, [builder.add(begin, builder.mul(begin.type(r), row))])
                for r in range(self.rows)
            ]
            for data, begin, row in (
                (left, first, left_row),
                (left_sums, first_sum, groups),
                (out, target, out_row),
            )
        )
        with builder.if_else(fresh) as (anew, further):
            with anew:
                self._clear(self.totals)
            with further:
                for r, v in self.cells:
                    builder.store(self._load(out_rows[r], v), self.totals[r, v])
        codes = builder.inttoptr(codes, ir.IntType(8).as_pointer())
        with cgutils.for_range(builder, groups) as loop:
            self._clear(self.sums)
            self._add_steps(left_rows, codes, builder.mul(loop.index, steps), steps, soon)
            behind = builder.mul(loop.index, scale_row)
            self._scale(self._floats(scales, behind), lambda r, v: builder.load(self.sums[r, v]))
            with builder.if_then(builder.icmp_signed("!=", offsets, offsets.type(0))):
                own = [self.load_one(builder.gep(row, [loop.index])) for row in sum_rows]
                self._scale(self._floats(offsets, behind), lambda r, v: builder.fneg(own[r]))
        for r, v in self.cells:
            builder.store(builder.load(self.totals[r, v]), self._at(out_rows[r], v), align=4)

    def _add_steps(self, left_rows: Any, codes: Any, begin: Any, steps: Any, soon: Any) -> None:
        """The sums of one group."""
        builder, integer = self.builder, steps.type
        ahead = builder.inttoptr(soon, ir.IntType(8).as_pointer())
        with cgutils.for_range(builder, steps) as loop:
            step = builder.add(begin, loop.index)
            if self.kind == WIDE:
                self.fetch(builder.gep(ahead, [builder.mul(step, integer(LINE_BYTES))]))
            row = builder.gep(codes, [builder.mul(step, integer(VECTORS * self.size))])
            unpacked = [self.unpack(builder.gep(row, [integer(v * self.size)])) for v in range(VECTORS)]
            number = builder.mul(step, integer(self.numbers))
            for part in range(self.numbers):
                vectors = [of_vector[part]() for of_vector in unpacked]
                at = builder.add(number, integer(part))
                for r in range(self.rows):
                    factor = self.load_left(builder.gep(left_rows[r], [at]))
                    for v in range(VECTORS):
                        total = self.multiply_add(factor, vectors[v], builder.load(self.sums[r, v]))
                        builder.store(total, self.sums[r, v])

    def _scale(self, scales: Any, factor: Any) -> None:
        """The totals grow by factors times scales."""
        builder = self.builder
        for v in range(VECTORS):
            scale = self._load(scales, v)
            for r in range(self.rows):
                total = self.scale_add(factor(r, v), scale, builder.load(self.totals[r, v]))
                builder.store(total, self.totals[r, v])

    def _clear(self, kept: Any) -> None:
        for cell in self.cells:
            self.builder.store(_spread(VECTOR, 0.0), kept[cell])

    def _floats(self, address: Any, behind: Any) -> Any:
        return self.builder.gep(self.builder.inttoptr(address, ir.FloatType().as_pointer()), [behind])

    def _at(self, row: Any, v: int) -> Any:
        return self.builder.bitcast(self.builder.gep(row, [BITS(v * LANES)]), VECTOR.as_pointer())

    def _load(self, row: Any, v: int) -> Any:
        return self.builder.load(self._at(row, v), align=4)


@intrinsic
def widen_steps(typing_context: Any, left: Any, kind: Any, codes: Any, steps: Any, target: Any) -> Any:
    """Write the numbers of some steps of `kind` down, as `WIDE` reads them with this left side.

    Codes and target are addresses.
    """
    whole, is_pairs = types.intp, left.dtype == types.uint32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, kind, codes, steps, target = arguments
        byte = ir.IntType(8).as_pointer()
        codes, target = builder.inttoptr(codes, byte), builder.inttoptr(target, byte)
        for some_kind in (NIBBLES, BYTES, E4M3):
            with builder.if_then(builder.icmp_signed("==", kind, kind.type(some_kind))):
                _write_widened(builder, some_kind, is_pairs, codes, steps, target)
        return context.get_dummy_value()

    return types.void(left, whole, whole, whole, whole), generate


def _write_widened(builder: Any, kind: int, is_pairs: bool, codes: Any, steps: Any, target: Any) -> None:
    size, wide_size, each = step_bytes(kind, is_pairs), step_bytes(WIDE, is_pairs), 1 if is_pairs else 2
    unpack, integer = _unpacker(builder, kind, is_pairs), steps.type
    with cgutils.for_range(builder, steps) as loop:
        source = builder.gep(codes, [builder.mul(loop.index, integer(VECTORS * size))])
        wide_steps = integer(STEPS[kind] // 2 * VECTORS * wide_size)
        place = builder.gep(target, [builder.mul(loop.index, wide_steps)])
        for v in range(VECTORS):
            for index, number in enumerate(unpack(builder.gep(source, [integer(v * size)]))):
                step, part = divmod(index, each)
                behind = integer((step * VECTORS + v) * wide_size + part * 4 * LANES)
                vector = number()
                pointer = builder.bitcast(builder.gep(place, [behind]), vector.type.as_pointer())
                builder.store(vector, pointer, align=4)
