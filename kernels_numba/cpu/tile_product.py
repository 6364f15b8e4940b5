"""A small matrix product that stays in registers, for loops that Python cannot express.

A compiler keeps numbers in registers if it can see them all; numbers of an array it writes back to memory in
every iteration. So the innermost loop of a product is written here as what it is: a few rows of sums, each a
few vectors wide, that take in one broadcast number and one row of the right side at a time.

    sums[r, :] += left[r, k] · right[k, :]        k = 0 … count - 1

`left` may lie in any order (a broadcast costs the same everywhere); `right` and `sums` lie in rows. What
numbers there may be: `vectors.py`.

Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), section 4.2.1.
Read next: `panels.py`, products with a model's matrices; `paged_prefill.py`, attention made of two products.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_numba.cpu.vectors import (
    LANES,
    LINE_BYTES,
    MANY_REGISTERS,
    VECTOR,
    fetcher,
    loader,
    multiplier,
    step_loader,
    zip_loader,
)

VECTORS = 4 if MANY_REGISTERS else 2
"""Of a row at most: up to 24 registers of sums where there are 32, 12 where there are 16."""


def tile(rows: int, vectors: int, fetched: int = 0) -> Any:
    """The product for `rows` rows, `vectors` vectors wide, as a function for compiled code.

    Meanwhile it prefetches memory that is needed soon: with every step `fetched` vectors of `right`. Where
    the right side's bytes hold two steps each, `count` counts bytes, and two numbers of the left are taken.
    Where the left holds pairs of bfloat16 and the right does not, two rows of the right are put in pairs.
    """

    @intrinsic
    def product(typing_context: Any, left: Any, first: Any, left_row: Any, left_step: Any, right: Any,
                source: Any, right_step: Any, sums: Any, target: Any, sums_row: Any, count: Any, fresh: Any,
                soon: Any, soon_step: Any) -> Any:  # fmt: skip
        """All arrays flat: `left` from `first`, `right` from `source`, `sums` from `target`.

        `fresh`: sums begin at 0 and not at what is there. `soon`: where in `right` the fetching begins, and
        how far it goes with each step.
        """
        whole = types.intp
        signature = types.void(
            left,
            whole,
            whole,
            whole,
            right,
            whole,
            whole,
            sums,
            whole,
            whole,
            whole,
            types.boolean,
            whole,
            whole,
        )

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left_data, right_data, sums_data = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 7)
            )
            (
                first,
                left_row,
                left_step,
                source,
                right_step,
                target,
                sums_row,
                count,
                fresh,
                soon,
                soon_step,
            ) = (arguments[i] for i in (1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13))
            load_left, load_right, multiply_add = (
                loader(builder, signature.args[0].dtype, is_vector=False),
                step_loader(builder, signature.args[4].dtype),
                multiplier(builder, signature.args[0].dtype == types.uint32),
            )
            fetch = fetcher(builder, signature.args[4].dtype)
            is_zipped = signature.args[0].dtype == types.uint32 and signature.args[4].dtype == types.uint16

            def place(data: Any, start: Any, *more: Any) -> Any:
                for term in more:
                    start = builder.add(start, term)
                return builder.gep(data, [start])

            def integer(value: int) -> Any:
                return ir.Constant(count.type, value)

            def vector_at(pointer: Any, v: int) -> Any:
                return builder.bitcast(builder.gep(pointer, [integer(v * LANES)]), VECTOR.as_pointer())

            places = [place(sums_data, target, builder.mul(integer(r), sums_row)) for r in range(rows)]
            kept = [[cgutils.alloca_once(builder, VECTOR) for _ in range(vectors)] for _ in range(rows)]
            cells = [(r, v) for r in range(rows) for v in range(vectors)]
            with builder.if_else(fresh) as (anew, further):
                with anew:
                    for r, v in cells:
                        builder.store(ir.Constant(VECTOR, [0.0] * LANES), kept[r][v])
                with further:
                    for r, v in cells:
                        builder.store(builder.load(vector_at(places[r], v), align=4), kept[r][v])
            starts = [place(left_data, first, builder.mul(integer(r), left_row)) for r in range(rows)]
            size = signature.args[4].dtype.bitwidth // 8
            lines = range(0, fetched * LANES * size, LINE_BYTES)
            with cgutils.for_range(builder, count) as loop:
                step = loop.index
                right_rows = [step]
                if is_zipped:
                    right_rows = [
                        builder.mul(step, integer(2)),
                        builder.add(builder.mul(step, integer(2)), integer(1)),
                    ]
                for number in right_rows:
                    ahead = place(right_data, soon, builder.mul(number, soon_step))
                    for line in lines:
                        fetch(builder.gep(ahead, [integer(line // size)]))
                starts_right = [
                    place(right_data, source, builder.mul(number, right_step)) for number in right_rows
                ]
                loaded = []
                for v in range(vectors):
                    vectors_here = [builder.gep(start, [integer(v * LANES)]) for start in starts_right]
                    loaded.append(
                        [zip_loader(builder)(*vectors_here)] if is_zipped else load_right(*vectors_here)
                    )
                shared = len(loaded[0])  # steps
                for r, part in ((r, part) for part in range(shared) for r in range(rows)):
                    number = builder.add(builder.mul(step, integer(shared)), integer(part))
                    factor = load_left(builder.gep(starts[r], [builder.mul(number, left_step)]))
                    for v in range(vectors):
                        total = multiply_add(factor, loaded[v][part], builder.load(kept[r][v]))
                        builder.store(total, kept[r][v])
            for r, v in cells:
                builder.store(builder.load(kept[r][v]), vector_at(places[r], v), align=4)
            return context.get_dummy_value()

        return signature, generate

    return product


ROWS = 4
"""Of a tile in `add_product`: enough that a multiply-add need not wait for the one before."""
_one, _two, _three, _four = (tile(ROWS, vectors) for vectors in (1, 2, 3, 4))
_single = tile(1, 1)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply(rows, vectors, left, first, row, step, right, source, width, sums, target, count):  # type: ignore[no-untyped-def]
    """A tile of so many vectors, of one row or of `ROWS`."""
    if rows == 1:
        _single(left, first, row, step, right, source, width, sums, target, width, count, False, source, 0)
    elif vectors == 4:
        _four(left, first, row, step, right, source, width, sums, target, width, count, False, source, 0)
    elif vectors == 3:
        _three(left, first, row, step, right, source, width, sums, target, width, count, False, source, 0)
    elif vectors == 2:
        _two(left, first, row, step, right, source, width, sums, target, width, count, False, source, 0)
    else:
        _one(left, first, row, step, right, source, width, sums, target, width, count, False, source, 0)


@njit(nogil=True, cache=True, error_model="numpy")
def add_product(left, first, left_row, left_step, right, source, sums, target, rows, count, width, begin=0):  # type: ignore[no-untyped-def]
    """sums[r, c] += Σ left[first + r · left_row + k · left_step] · right[source + k · width + c].

    Args:
        left, right: flat, of types that go together.
        sums: flat, float32, like `right` in rows of `width`, a multiple of `LANES`; it begins at `target`.
        count: steps of k. begin: the first column, a multiple of `LANES`.
    """
    row = 0
    while row < rows:
        many = ROWS if row + ROWS <= rows else 1
        column = begin
        while column < width:
            vectors = min(VECTORS, (width - column) // LANES) if many == ROWS else 1
            _multiply(
                many, vectors, left, first + row * left_row, left_row, left_step,
                right, source + column, width, sums, target + row * width + column, count,
            )  # fmt: skip
            column += vectors * LANES
        row += many
