"""A small matrix product that stays in registers, for loops that Python has no words for.

A compiler keeps numbers in registers if it can see them all; numbers of an array it writes back to memory at
every turn. So the innermost loop of a product is written here as what it is: four rows of sums, each a few
vectors wide, that take in one broadcast number and one row of the right side at a time.

    sums[r, :] += left[r, k] · right[k, :]        r = 0 … 3, k = 0 … count - 1

`left` may lie in any order (a broadcast costs the same everywhere), so nothing has to be transposed first;
`right` and `sums` lie in rows of `width` numbers.

Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), section 4.2.1.
Read next: `paged_prefill.py`, which is made of two such products.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4
"""Sums of so many rows at a time: enough that a multiply-add need not wait for the one before."""
FEATURES = llvm.get_host_cpu_features()
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 4
VECTORS = 2 if LANES == 8 else 4
"""Of a row at most: 16 registers of sums where there are 32, 8 where there are 16."""


def _tile(rows: int, vectors: int) -> Any:
    """The product for `rows` rows, `vectors` vectors wide, as a function for compiled code."""

    @intrinsic
    def tile(typing_context: Any, left: Any, left_row: Any, left_step: Any, right: Any, width: Any, sums: Any,
             count: Any, first: Any, row: Any, column: Any, source: Any, target: Any) -> Any:  # fmt: skip
        """`left` from `first`; `right` from `source` + column; sums from `target` + row · width + column."""
        whole = types.intp
        signature = types.void(left, whole, whole, right, whole, sums, *[whole] * 6)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left_data, right_data, sums_data = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 5)
            )
            left_row, left_step, width, count, first, row, column, source, target = (
                arguments[i] for i in (1, 2, 4, 6, 7, 8, 9, 10, 11)
            )
            number, bits = ir.FloatType(), ir.IntType(32)
            is_narrow = signature.args[0].dtype == types.uint16
            vector = ir.VectorType(number, LANES)
            multiply_add = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector, vector, vector]),
                f"llvm.fmuladd.v{LANES}f32",
            )
            lane = ir.Constant(ir.IntType(32), 0)
            every = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)

            def add(*terms: Any) -> Any:
                total = terms[0]
                for term in terms[1:]:
                    total = builder.add(total, term)
                return total

            def integer(value: int) -> Any:
                return ir.Constant(count.type, value)

            def vectors_at(data: Any, index: Any) -> list[Any]:
                return [
                    builder.bitcast(builder.gep(data, [add(index, integer(v * LANES))]), vector.as_pointer())
                    for v in range(vectors)
                ]

            places = [
                vectors_at(sums_data, add(target, builder.mul(add(row, integer(r)), width), column))
                for r in range(rows)
            ]
            kept = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(ROWS)]
            for r in range(rows):
                for v in range(vectors):
                    builder.store(builder.load(places[r][v], align=4), kept[r][v])
            with cgutils.for_range(builder, count) as loop:
                step = loop.index
                loaded = [
                    builder.load(place, align=4)
                    for place in vectors_at(right_data, add(source, builder.mul(step, width), column))
                ]
                for r in range(rows):
                    place = add(
                        first, builder.mul(add(row, integer(r)), left_row), builder.mul(step, left_step)
                    )
                    one = builder.load(builder.gep(left_data, [place]))
                    if is_narrow:  # a bfloat16 is the upper half of a float32
                        wide = builder.shl(builder.zext(one, bits), ir.Constant(bits, 16))
                        one = builder.bitcast(wide, number)
                    alone = builder.insert_element(ir.Constant(vector, ir.Undefined), one, lane)
                    factor = builder.shuffle_vector(alone, ir.Constant(vector, ir.Undefined), every)
                    for v in range(vectors):
                        before = builder.load(kept[r][v])
                        builder.store(builder.call(multiply_add, [factor, loaded[v], before]), kept[r][v])
            for r in range(rows):
                for v in range(vectors):
                    builder.store(builder.load(kept[r][v]), places[r][v], align=4)
            return context.get_dummy_value()

        return signature, generate

    return tile


_one, _two, _three, _four = (_tile(ROWS, vectors) for vectors in (1, 2, 3, 4))
_single = _tile(1, 1)


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def add_product(left, first, left_row, left_step, right, source, sums, target, rows, count, width, begin=0):  # type: ignore[no-untyped-def]
    """sums[r, c] += Σ left[first + r · left_row + k · left_step] · right[source + k · width + c].

    Args:
        left: flat; float32, or bfloat16 as uint16.
        right, sums: flat, float32, in rows of `width`, a multiple of `LANES`; `sums` begins at `target`.
        count: numbers in each sum. begin: the first column, a multiple of `LANES`.
    """
    whole = rows // ROWS * ROWS
    for row in range(0, whole, ROWS):
        column = begin
        while column + VECTORS * LANES <= width:
            if VECTORS == 4:
                _four(
                    left, left_row, left_step, right, width, sums, count, first, row, column, source, target
                )
            else:
                _two(left, left_row, left_step, right, width, sums, count, first, row, column, source, target)
            column += VECTORS * LANES
        rest = (width - column) // LANES
        if rest == 3:
            _three(left, left_row, left_step, right, width, sums, count, first, row, column, source, target)
        elif rest == 2:
            _two(left, left_row, left_step, right, width, sums, count, first, row, column, source, target)
        elif rest == 1:
            _one(left, left_row, left_step, right, width, sums, count, first, row, column, source, target)
    for row in range(whole, rows):
        for column in range(begin, width, LANES):
            _single(left, left_row, left_step, right, width, sums, count, first, row, column, source, target)
