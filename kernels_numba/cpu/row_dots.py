"""Dot products of some vectors with four rows, for loops that Python cannot express.

A dot product is multiplied lane by lane, and its lanes must be added up in the end. For one row that takes
as long as the products do; for four it is done at once, and takes a third:

    a a a a   b b b b   c c c c   d d d d      four sums, each in as many lanes as a vector has
        a a b b             c c d d            halves are added, two sums side by side
                  a b c d                      and once more; what is left of them lies in one place

Read next: `paged_decode.py`, whose queries are multiplied with keys this way.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_numba.cpu.vectors import BITS, FLOAT, LANES, VECTOR, loader, multiplier

ROWS = 4
"""As many as fit into a quarter of a vector, whatever its size."""


def dots(count: int) -> Any:
    """The products of `count` vectors with four rows, as a function for compiled code."""

    @intrinsic
    def products(typing_context: Any, left: Any, first: Any, left_row: Any, rows: Any, source: Any,
                 row_size: Any, out: Any, target: Any, out_row: Any) -> Any:  # fmt: skip
        """out[target + i · out_row + r] = left[first + i · left_row …] · rows[source + r · row_size …].

        All arrays flat; `row_size`, in numbers of their types, is a multiple of `LANES`.
        """
        whole = types.intp
        signature = types.void(left, whole, whole, rows, whole, whole, out, whole, whole)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left_data, rows_data, out_data = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 6)
            )
            first, left_row, source, row_size, target, out_row = (arguments[i] for i in (1, 2, 4, 5, 7, 8))
            load_left = loader(builder, signature.args[0].dtype, is_vector=True)
            load_row = loader(builder, signature.args[3].dtype, is_vector=True)
            multiply_add = multiplier(builder, signature.args[0].dtype == types.uint32)

            def at(data: Any, start: Any, number: int, size: Any) -> Any:
                offset = builder.mul(ir.Constant(size.type, number), size)
                return builder.gep(data, [builder.add(start, offset)])

            lefts = [at(left_data, first, i, left_row) for i in range(count)]
            starts = [at(rows_data, source, r, row_size) for r in range(ROWS)]
            sums = [[cgutils.alloca_once(builder, VECTOR) for _ in range(ROWS)] for _ in range(count)]
            for own in sums:
                for place in own:
                    builder.store(ir.Constant(VECTOR, [0.0] * LANES), place)
            steps = builder.udiv(row_size, ir.Constant(row_size.type, LANES))
            with cgutils.for_range(builder, steps) as loop:
                offset = builder.mul(loop.index, ir.Constant(row_size.type, LANES))
                loaded = [load_row(builder.gep(start, [offset])) for start in starts]
                for i in range(count):
                    factor = load_left(builder.gep(lefts[i], [offset]))
                    for row, place in zip(loaded, sums[i], strict=True):
                        builder.store(multiply_add(factor, row, builder.load(place)), place)
            four = ir.VectorType(FLOAT, ROWS)
            for i in range(count):
                added = _add_lanes(builder, *(builder.load(place) for place in sums[i]))
                place = at(out_data, target, i, out_row)
                builder.store(added, builder.bitcast(place, four.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, generate

    return products


def _add_lanes(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The sums of the lanes of four vectors, as one of four lanes."""

    def side_by_side(one: Any, other: Any, of_one: tuple[int, int], of_other: tuple[int, int]) -> Any:
        # Within each quarter of four lanes: what crosses those is slow.
        lanes = [
            quarter + lane + (LANES if is_other else 0)
            for quarter in range(0, LANES, 4)
            for is_other, own in ((False, of_one), (True, of_other))
            for lane in own
        ]
        return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(BITS, LANES), lanes))

    def halves(one: Any, other: Any) -> Any:
        low, high = side_by_side(one, other, (0, 1), (0, 1)), side_by_side(one, other, (2, 3), (2, 3))
        return builder.fadd(low, high)

    ab, cd = halves(a, b), halves(c, d)
    total = builder.fadd(side_by_side(ab, cd, (0, 2), (0, 2)), side_by_side(ab, cd, (1, 3), (1, 3)))
    width = LANES
    while width > ROWS:
        width //= 2
        low, high = (
            builder.shuffle_vector(
                total, total, ir.Constant(ir.VectorType(BITS, width), list(range(start, start + width)))
            )
            for start in (0, width)
        )
        total = builder.fadd(low, high)
    return total
