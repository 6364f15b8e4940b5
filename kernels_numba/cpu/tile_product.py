"""A small matrix product that stays in registers, for loops that Python has no words for.

A compiler keeps numbers in registers if it can see them all; numbers of an array it writes back to memory at
every turn. So the innermost loop of a product is written here as what it is: a few rows of sums, each a few
vectors wide, that take in one broadcast number and one row of the right side at a time.

    sums[r, :] += left[r, k] · right[k, :]        k = 0 … count - 1

`left` may lie in any order (a broadcast costs the same everywhere); `right` and `sums` lie in rows. Numbers
are what their type says:

    float32    multiplied and added in one instruction
    uint16     a bfloat16: the upper half of a float32, widened as it is loaded
    uint32     two bfloat16 side by side, two steps of k at once: their products are added by one instruction
               that processors with AVX512-BF16 have; both sides must be such pairs

Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), section 4.2.1.
Read next: `panels.py`, products with a model's matrices; `paged_prefill.py`, attention made of two products.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = llvm.get_host_cpu_features()
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 4
VECTORS = 2 if LANES == 8 else 4
"""Of a row at most: 24 registers of sums where there are 32, 12 where there are 16."""
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


def tile(rows: int, vectors: int, lines: int = 0) -> Any:
    """The product for `rows` rows, `vectors` vectors wide, as a function for compiled code.

    Meanwhile it asks for memory that is needed soon: `lines` cache lines of `right` with every step.
    """

    @intrinsic
    def product(typing_context: Any, left: Any, first: Any, left_row: Any, left_step: Any, right: Any,
                source: Any, right_step: Any, sums: Any, target: Any, sums_row: Any, count: Any, fresh: Any,
                soon: Any) -> Any:  # fmt: skip
        """All arrays flat: `left` from `first`, `right` from `source`, `sums` from `target`.

        `fresh`: sums begin at 0 and not at what is there. `soon`: where in `right` the fetching begins.
        """
        whole = types.intp
        signature = types.void(
            left, whole, whole, whole, right, whole, whole, sums, whole, whole, whole, types.boolean, whole
        )

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left_data, right_data, sums_data = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 7)
            )
            first, left_row, left_step, source, right_step, target, sums_row, count, fresh, soon = (
                arguments[i] for i in (1, 2, 3, 5, 6, 8, 9, 10, 11, 12)
            )
            load_left, load_right, multiply_add = (
                _loader(builder, signature.args[0].dtype, is_vector=False),
                _loader(builder, signature.args[4].dtype, is_vector=True),
                _multiplier(builder, signature.args[0].dtype == types.uint32),
            )
            fetch = _fetcher(builder)

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
            per_line = lines * 64 * 8 // signature.args[4].dtype.bitwidth
            with cgutils.for_range(builder, count) as loop:
                step = loop.index
                ahead = place(right_data, soon, builder.mul(step, integer(per_line)))
                for line in range(lines):
                    fetch(builder.gep(ahead, [integer(line * per_line // lines)]))
                row = place(right_data, source, builder.mul(step, right_step))
                loaded = [load_right(builder.gep(row, [integer(v * LANES)])) for v in range(vectors)]
                for r in range(rows):
                    factor = load_left(builder.gep(starts[r], [builder.mul(step, left_step)]))
                    for v in range(vectors):
                        builder.store(multiply_add(factor, loaded[v], builder.load(kept[r][v])), kept[r][v])
            for r, v in cells:
                builder.store(builder.load(kept[r][v]), vector_at(places[r], v), align=4)
            return context.get_dummy_value()

        return signature, generate

    return product


def _loader(builder: Any, dtype: Any, is_vector: bool) -> Any:
    """What loads a vector of numbers of this type from a pointer, or one of them into all lanes."""

    def spread(value: Any) -> Any:
        kind = ir.VectorType(value.type, LANES)
        alone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, BITS(0))
        lanes = ir.Constant(ir.VectorType(BITS, LANES), [0] * LANES)
        return builder.shuffle_vector(alone, ir.Constant(kind, ir.Undefined), lanes)

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

    return load


def _multiplier(builder: Any, is_pairs: bool) -> Any:
    """What adds the product of two vectors to a third."""
    if not is_pairs:
        kind = ir.FunctionType(VECTOR, [VECTOR, VECTOR, VECTOR])
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        return lambda a, b, total: builder.call(multiply_add, [a, b, total])
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    kind = ir.FunctionType(VECTOR, [VECTOR, pairs, pairs])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    dot = cgutils.get_or_insert_function(builder.module, kind, name)
    return lambda a, b, total: builder.call(
        dot, [total, builder.bitcast(a, pairs), builder.bitcast(b, pairs)]
    )


def _fetcher(builder: Any) -> Any:
    """What asks for the cache line at a pointer: into the second cache, so that the first keeps its own."""
    byte_pointer = ir.IntType(8).as_pointer()
    name = "llvm.prefetch.p0" if getattr(byte_pointer, "is_opaque", False) else "llvm.prefetch.p0i8"
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, BITS, BITS, BITS])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    to_read, level, data = BITS(0), BITS(2), BITS(1)
    return lambda pointer: builder.call(
        function, [builder.bitcast(pointer, byte_pointer), to_read, level, data]
    )


ROWS = 4
"""Of a tile in `add_product`: enough that a multiply-add need not wait for the one before."""
_one, _two, _three, _four = (tile(ROWS, vectors) for vectors in (1, 2, 3, 4))
_single = tile(1, 1)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply(rows, vectors, left, first, row, step, right, source, width, sums, target, count):  # type: ignore[no-untyped-def]
    """A tile of so many vectors, of one row or of `ROWS`."""
    if rows == 1:
        _single(left, first, row, step, right, source, width, sums, target, width, count, False, source)
    elif vectors == 4:
        _four(left, first, row, step, right, source, width, sums, target, width, count, False, source)
    elif vectors == 3:
        _three(left, first, row, step, right, source, width, sums, target, width, count, False, source)
    elif vectors == 2:
        _two(left, first, row, step, right, source, width, sums, target, width, count, False, source)
    else:
        _one(left, first, row, step, right, source, width, sums, target, width, count, False, source)


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
