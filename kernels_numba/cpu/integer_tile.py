"""A tile of products of whole numbers: 8-bit weights times 8-bit activations, added up in 32 bits.

    VNNI        4 steps of k at a time    vpdpbusd    acc += u₀·w₀ + u₁·w₁ + u₂·w₂ + u₃·w₃
                                                      u without a sign (0 … 255), w with one
    otherwise   2 steps                   vpmaddwd    both widened to 16 bits; then vpaddd

Whole numbers are added up exactly, whatever the order and the instruction: a row's sums are the same bits on
every processor and in any company, as long as they fit into 32 bits (k ≤ `MAX_INPUTS`). A broadcast takes in
`TOGETHER` numbers of a row, so rows are stored as words of 32 bits that hold so many.

Source: Intel's manual, VPDPBUSD and PMADDWD; the layout is that of oneDNN and FBGEMM for these instructions.
Read next: `matrix_products.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_numba.cpu.panels import ROWS
from kernels_numba.cpu.tile_product import VECTORS
from kernels_numba.cpu.vectors import BIT_VECTOR, FEATURES, LANES, loader

HAS_VNNI = (LANES == 16 and bool(FEATURES.get("avx512vnni"))) or (
    LANES == 8 and bool(FEATURES.get("avxvnni"))
)
TOGETHER = 4 if HAS_VNNI else 2
"""Steps of k that one instruction takes in."""
MAX_INPUTS = 65_536
"""255 · 128 · k must fit into 31 bits."""
STEP_BYTES = TOGETHER * LANES
"""Of one vector."""


def _dot(builder: Any) -> Any:
    """What adds to sums the products of a word of the left and a vector of weights at a pointer."""

    def declared(name: str, result: Any, *kinds: Any) -> Any:
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name)

    if HAS_VNNI:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
        instruction = declared(name, BIT_VECTOR, BIT_VECTOR, BIT_VECTOR, BIT_VECTOR)

        def load(pointer: Any) -> Any:
            return builder.load(builder.bitcast(pointer, BIT_VECTOR.as_pointer()), align=1)

        return load, lambda word, weights, total: builder.call(instruction, [total, word, weights])

    small, pairs = (ir.VectorType(ir.IntType(bits), 2 * LANES) for bits in (8, 16))

    def load_wide(pointer: Any) -> Any:
        return builder.sext(builder.load(builder.bitcast(pointer, small.as_pointer()), align=1), pairs)

    names = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}
    is_available = FEATURES.get({16: "avx512bw", 8: "avx2", 4: "sse2"}[LANES])
    instruction = declared(names[LANES], BIT_VECTOR, pairs, pairs) if is_available else None

    def multiply_add(word: Any, weights: Any, total: Any) -> Any:
        word = builder.bitcast(word, pairs)
        if instruction is not None:
            return builder.add(total, builder.call(instruction, [word, weights]))
        halves = []
        for part in range(2):  # the same in LLVM's plain words
            chosen = ir.Constant(BIT_VECTOR, [2 * lane + part for lane in range(LANES)])
            nothing = ir.Constant(pairs, ir.Undefined)
            one, other = (builder.shuffle_vector(v, nothing, chosen) for v in (word, weights))
            halves.append(builder.mul(builder.sext(one, BIT_VECTOR), builder.sext(other, BIT_VECTOR)))
        return builder.add(total, builder.add(*halves))

    return load_wide, multiply_add


@intrinsic
def integer_tile(typing_context: Any, rows: Any, left: Any, first: Any, left_row: Any, codes: Any,
                 steps: Any, sums: Any) -> Any:  # fmt: skip
    """Sums over all of k, `VECTORS` wide.

    Args:
        rows: 1 to `ROWS`.
        left: words, flat, from `first` on.
        codes: the panel's address. steps: of `TOGETHER` of k.
        sums: int32, flat, written.
    """
    whole = types.intp
    signature = types.void(whole, left, whole, whole, whole, whole, sums)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, _, first, left_row, codes, steps, _ = arguments
        left_data, sums_data = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (1, 6)
        )
        codes = builder.inttoptr(codes, ir.IntType(8).as_pointer())
        for some_rows in range(1, ROWS + 1):
            with builder.if_then(builder.icmp_signed("==", rows, rows.type(some_rows))):
                starts = [
                    builder.gep(left_data, [builder.add(first, builder.mul(first.type(r), left_row))])
                    for r in range(some_rows)
                ]
                _write_tile(builder, starts, codes, steps, sums_data)
        return context.get_dummy_value()

    return signature, generate


def _write_tile(builder: Any, starts: list[Any], codes: Any, steps: Any, sums: Any) -> None:
    """LLVM's instructions for a tile of so many rows."""
    load_left, (load_weights, multiply_add) = loader(builder, types.uint32, is_vector=False), _dot(builder)
    integer = steps.type
    cells = [(r, v) for r in range(len(starts)) for v in range(VECTORS)]
    totals = {cell: cgutils.alloca_once(builder, BIT_VECTOR) for cell in cells}
    for cell in cells:
        builder.store(ir.Constant(BIT_VECTOR, [0] * LANES), totals[cell])
    with cgutils.for_range(builder, steps) as loop:
        row = builder.gep(codes, [builder.mul(loop.index, integer(VECTORS * STEP_BYTES))])
        weights = [load_weights(builder.gep(row, [integer(v * STEP_BYTES)])) for v in range(VECTORS)]
        for r, start in enumerate(starts):
            word = load_left(builder.gep(start, [loop.index]))
            for v in range(VECTORS):
                total = multiply_add(word, weights[v], builder.load(totals[r, v]))
                builder.store(total, totals[r, v])
    for r, v in cells:
        place = builder.gep(sums, [integer((r * VECTORS + v) * LANES)])
        builder.store(builder.load(totals[r, v]), builder.bitcast(place, BIT_VECTOR.as_pointer()), align=4)
