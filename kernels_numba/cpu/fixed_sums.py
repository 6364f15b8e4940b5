"""Sums in an order that is written down, for loops that Python cannot express.

A sum of float32 depends on its order, and a compiler that may reorder ("fastmath") chooses another one in
each place. So the sums that a token's numbers are made of are written here as what they are: a few vectors
of partial sums, whose lanes are added in the end in a fixed order. They depend on nothing but the numbers.

    sum_of_squares(row, n)          of a norm
    lane_sum(numbers, first, n)     of a softmax's weights: lane l adds up numbers l, l + LANES, …
    column_dots(rows, vectors)      keys · queries with queries in columns, in the order of `row_dots.py`

That order has a partial sum of every LANES-th step. With queries in columns these are computed four lanes at
a time and added: lanes of a quarter ((0 + 2) + (1 + 3)), in the end quarters in the same way. (It takes a
little longer than one sum from the first step to the last, and makes prompts agree with decoding.)

Read next: `row_dots.py`, `paged_prefill.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_numba.cpu.vectors import BITS, LANES, VECTOR, loader, multiplier

ACCUMULATORS = 4
"""Vectors of partial sums of squares: as many as a multiply-add takes cycles."""


QUARTER = 4
"""Lanes whose sums are in registers together."""


def add_halves(builder: Any, total: Any) -> Any:
    """The sum of a vector's lanes: one half is added to the other, until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        kind = ir.VectorType(BITS, width)
        low, high = (
            builder.shuffle_vector(total, total, ir.Constant(kind, list(range(start, start + width))))
            for start in (0, width)
        )
        total = builder.fadd(low, high)
    return builder.extract_element(total, BITS(0))


@intrinsic
def lane_sum(typing_context: Any, numbers: Any, first: Any, count: Any) -> Any:
    """The sum of `count` float32, a multiple of `LANES`, of a flat array from `first` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        start, load = builder.gep(data, [arguments[1]]), loader(builder, types.float32, is_vector=True)
        total = cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES))
        builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)
        size = ir.Constant(arguments[2].type, LANES)
        with cgutils.for_range(builder, builder.udiv(arguments[2], size)) as loop:
            vector = load(builder.gep(start, [builder.mul(loop.index, size)]))
            builder.store(builder.fadd(builder.load(total), vector), total)
        return add_halves(builder, builder.load(total))

    return types.float32(numbers, types.intp, types.intp), generate


@intrinsic
def sum_of_squares(typing_context: Any, row: Any, count: Any) -> Any:
    """Of the first `count` numbers of a row: float32, or bfloat16 as uint16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        count, dtype = arguments[1], signature.args[0].dtype
        load, load_one = (loader(builder, dtype, is_vector=is_vector) for is_vector in (True, False))
        multiply_add = multiplier(builder, is_pairs=False)
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(ACCUMULATORS)]
        for place in sums:
            builder.store(zero, place)

        def integer(value: int) -> Any:
            return ir.Constant(count.type, value)

        def add(place: Any, number: Any) -> None:
            builder.store(multiply_add(number, number, builder.load(place)), place)

        large = builder.udiv(count, integer(ACCUMULATORS * LANES))
        with cgutils.for_range(builder, large) as loop:
            start = builder.mul(loop.index, integer(ACCUMULATORS * LANES))
            for i, place in enumerate(sums):
                add(place, load(builder.gep(data, [builder.add(start, integer(i * LANES))])))
        done = builder.mul(large, integer(ACCUMULATORS * LANES))
        vectors = builder.udiv(builder.sub(count, done), integer(LANES))
        with cgutils.for_range(builder, vectors) as loop:
            start = builder.add(done, builder.mul(loop.index, integer(LANES)))
            add(sums[0], load(builder.gep(data, [start])))
        done = builder.add(done, builder.mul(vectors, integer(LANES)))
        alone = cgutils.alloca_once(builder, VECTOR)  # what fills no vector: the same in all lanes
        builder.store(zero, alone)
        with cgutils.for_range(builder, builder.sub(count, done)) as loop:
            add(alone, load_one(builder.gep(data, [builder.add(done, loop.index)])))
        first, second, third, fourth = (builder.load(place) for place in sums)
        total = builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth))
        return builder.fadd(add_halves(builder, total), builder.extract_element(builder.load(alone), BITS(0)))

    return types.float32(row, types.intp), generate


def column_dots(rows: int, vectors: int) -> Any:
    """Dot products of `rows` rows with `vectors` vectors of columns, as a function for compiled code."""

    @intrinsic
    def products(typing_context: Any, left: Any, first: Any, left_row: Any, right: Any, source: Any,
                 width: Any, out: Any, target: Any, count: Any) -> Any:  # fmt: skip
        """out[target + r · width + c] = Σ left[first + r · left_row + k] · right[source + at(k) · width + c].

        All arrays flat, `left` and `right` of types that go together; k from 0 to `count` - 1. The right
        side's rows lie lane by lane, at(k) = k % LANES · ⌈count / LANES⌉ + k // LANES: so what is multiplied
        one after the other lies there one behind the other.
        """
        whole = types.intp
        signature = types.void(left, whole, whole, right, whole, whole, out, whole, whole)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left_data, right_data, out_data = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3, 6)
            )
            first, left_row, source, width, target, count = (arguments[i] for i in (1, 2, 4, 5, 7, 8))
            load_left = loader(builder, signature.args[0].dtype, is_vector=False)
            load_right = loader(builder, signature.args[3].dtype, is_vector=True)
            multiply_add = multiplier(builder, signature.args[0].dtype == types.uint32)
            cells = [(r, v) for r in range(rows) for v in range(vectors)]

            def integer(value: int) -> Any:
                return ir.Constant(count.type, value)

            def at(data: Any, start: Any, number: int, size: Any) -> Any:
                return builder.gep(data, [builder.add(start, builder.mul(integer(number), size))])

            starts = [at(left_data, first, r, left_row) for r in range(rows)]
            column = builder.gep(right_data, [source])
            sums = [[cgutils.alloca_once(builder, VECTOR) for _ in cells] for _ in range(QUARTER)]
            quarters = cgutils.alloca_once(builder, ir.ArrayType(VECTOR, LANES // QUARTER * len(cells)))
            chunks, rest = builder.udiv(count, integer(LANES)), builder.urem(count, integer(LANES))
            rows_of_lane = builder.udiv(builder.add(count, integer(LANES - 1)), integer(LANES))

            def add_step(own: list[Any], lane: Any, chunk: Any) -> None:
                step = builder.add(lane, builder.mul(chunk, integer(LANES)))
                row = builder.add(builder.mul(lane, rows_of_lane), chunk)
                start = builder.gep(column, [builder.mul(row, width)])
                loaded = [load_right(builder.gep(start, [integer(v * LANES)])) for v in range(vectors)]
                factors = [load_left(builder.gep(start, [step])) for start in starts]
                for (r, v), place in zip(cells, own, strict=True):
                    builder.store(multiply_add(factors[r], loaded[v], builder.load(place)), place)

            with cgutils.for_range(builder, integer(LANES // QUARTER)) as quarter:
                lanes = [
                    builder.add(builder.mul(quarter.index, integer(QUARTER)), integer(i))
                    for i in range(QUARTER)
                ]
                for place in (place for own in sums for place in own):
                    builder.store(ir.Constant(VECTOR, [0.0] * LANES), place)
                with cgutils.for_range(builder, chunks) as loop:
                    for lane, own in zip(lanes, sums, strict=True):
                        add_step(own, lane, loop.index)
                for lane, own in zip(lanes, sums, strict=True):
                    with builder.if_then(builder.icmp_unsigned("<", lane, rest)):
                        add_step(own, lane, chunks)
                for number in range(len(cells)):
                    first_lane, second, third, fourth = (builder.load(own[number]) for own in sums)
                    total = builder.fadd(builder.fadd(first_lane, third), builder.fadd(second, fourth))
                    place = builder.add(builder.mul(quarter.index, integer(len(cells))), integer(number))
                    builder.store(total, builder.gep(quarters, [integer(0), place]))
            for number, (r, v) in enumerate(cells):
                parts = [
                    builder.load(builder.gep(quarters, [integer(0), integer(q * len(cells) + number)]))
                    for q in range(LANES // QUARTER)
                ]
                while len(parts) > 1:
                    half = len(parts) // 2
                    parts = [
                        builder.fadd(low, high) for low, high in zip(parts[:half], parts[half:], strict=True)
                    ]
                place = builder.gep(at(out_data, target, r, width), [integer(v * LANES)])
                builder.store(parts[0], builder.bitcast(place, VECTOR.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, generate

    return products
