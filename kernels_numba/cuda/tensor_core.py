"""Instructions of tensor cores: a matrix product by a whole warp, and how its operands get there.

    multiply_add      D = A B + C, with A 16 × 16, B 16 × 8 (16-bit numbers), C and D 16 × 8 (float32)
    load_matrices     four 8 × 8 matrices from shared memory into the registers of a warp
    copy_later        16 bytes from global to shared memory, while the warp goes on

No lane has a matrix. Each of the 32 has a few of its numbers, in a fixed pattern. With lane = 4 · g + t:

    A   rows g and g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9      4 words of two numbers
    B   rows 2t, 2t + 1, 2t + 8, 2t + 9, column g                 2 words
    C   rows g and g + 8, columns 2t and 2t + 1                   4 float32

The pattern of C, packed into words, is that of A: so what comes out of one product (scores, then weights)
goes into the next (weights times values) without leaving its registers.

Source: NVIDIA, PTX ISA, `mma.sync.m16n8k16`, `ldmatrix`, `cp.async`. Read next:
`flash_attention_tensor_core.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda.extending import intrinsic

from kernels_numba.cuda.instructions import all_halves, as_tuple, call_ptx, element_address, types
from kernels_numba.meanings import means

_i32, _i64, _f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
SHARED = 3
"""LLVM's number of the address space."""


def _shared_address(builder: Any, pointer: Any) -> Any:
    kind = ir.PointerType(addrspace=SHARED)
    if not getattr(pointer.type, "is_opaque", False):
        kind = ir.PointerType(pointer.type.pointee, SHARED)
    return builder.ptrtoint(builder.addrspacecast(pointer, kind), _i32)


# ── the product ───────────────────────────────────────────────────────────────────────────────────────────


def _multiply_add(name: str, kind: str) -> Any:
    def multiply(typing_context: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:  # fmt: skip  # noqa: E501
        result = types.UniTuple(types.float32, 4)
        signature = result(*[types.uint32] * 6, *[types.float32] * 4)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            ptx = (
                f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
                "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
            )
            constraints = "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"
            product = call_ptx(builder, [_f32] * 4, list(arguments), ptx, constraints)
            return as_tuple(context, builder, result, product)

        return signature, generate

    multiply.__name__ = name
    return intrinsic(multiply)


multiply_add_f16 = _multiply_add("multiply_add_f16", "f16")
multiply_add_bf16 = _multiply_add("multiply_add_bf16", "bf16")


def _product_of_warp(values: dict[int, Any], is_bf16: bool) -> dict[int, Any]:
    a, b = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32)
    c = np.zeros((16, 8), np.float32)
    lanes = np.array(list(values))
    words = np.array([given[:6] for given in values.values()], np.uint32)
    sums = np.array([given[6:] for given in values.values()], np.float32)
    halves = all_halves(is_bf16)[np.stack((words & 0xFFFF, words >> 16))]  # [2, lanes, 6]
    g, t = lanes >> 2, 2 * (lanes & 3)
    for i, half in enumerate(halves):
        a[g, t + i], a[g + 8, t + i] = half[:, 0], half[:, 1]
        a[g, t + 8 + i], a[g + 8, t + 8 + i] = half[:, 2], half[:, 3]
        b[t + i, g], b[t + 8 + i, g] = half[:, 4], half[:, 5]
        c[g, t + i], c[g + 8, t + i] = sums[:, i], sums[:, 2 + i]
    d = a @ b + c
    answers = zip(d[g, t], d[g, t + 1], d[g + 8, t], d[g + 8, t + 1], strict=True)
    return dict(zip(values, answers, strict=True))


@means(multiply_add_f16)
def _(lane: Any, *words: Any) -> Any:
    return lane.warp_collective("multiply_add_f16", words, lambda values: _product_of_warp(values, False))


@means(multiply_add_bf16)
def _(lane: Any, *words: Any) -> Any:
    return lane.warp_collective("multiply_add_bf16", words, lambda values: _product_of_warp(values, True))


# ── operands ──────────────────────────────────────────────────────────────────────────────────────────────


def _load_matrices(name: str, transposed: str) -> Any:
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        result = types.UniTuple(types.uint32, 4)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _shared_address(builder, element_address(context, builder, signature, arguments))
            ptx = f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
            loaded = call_ptx(builder, [_i32] * 4, [address], ptx, "=r,=r,=r,=r,r,~{memory}")
            return as_tuple(context, builder, result, loaded)

        return result(array, index), generate

    load.__name__ = name
    return intrinsic(load)


load_matrices = _load_matrices("load_matrices", "")
"""Lane i says where a row of 8 numbers begins: row i % 8 of matrix i // 8. It gets, of every matrix, numbers
2t and 2t + 1 of row g."""
load_matrices_transposed = _load_matrices("load_matrices_transposed", ".trans")
"""The same, and it gets numbers 2t and 2t + 1 of *column* g."""


def _distribute(rows: dict[int, Any], transposed: bool) -> dict[int, Any]:
    matrices = [np.array([rows[8 * m + r] for r in range(8)]).view(np.uint16) for m in range(4)]
    answers = {}
    for lane in rows:
        g, t = lane >> 2, 2 * (lane & 3)
        words = []
        for matrix in matrices:
            low, high = (matrix[t, g], matrix[t + 1, g]) if transposed else (matrix[g, t], matrix[g, t + 1])
            words.append(np.uint32(int(low) | int(high) << 16))
        answers[lane] = tuple(words)
    return answers


@means(load_matrices)
def _(lane: Any, array: Any, index: Any) -> Any:
    row = lane.read(array, index, 4).copy()
    return lane.warp_collective("load_matrices", row, lambda rows: _distribute(rows, False))


@means(load_matrices_transposed)
def _(lane: Any, array: Any, index: Any) -> Any:
    row = lane.read(array, index, 4).copy()
    return lane.warp_collective("load_matrices_transposed", row, lambda rows: _distribute(rows, True))


def _pack(name: str, kind: str) -> Any:
    def pack(typing_context: Any, low: Any, high: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return call_ptx_word(builder, list(arguments), f"cvt.rn.{kind}x2.f32 $0, $2, $1;")

        return types.uint32(types.float32, types.float32), generate

    pack.__name__ = name
    return intrinsic(pack)


def call_ptx_word(builder: Any, arguments: list[Any], ptx: str) -> Any:
    """LLVM: a line of PTX from two float32 to one word."""
    function = ir.FunctionType(_i32, [_f32, _f32])
    return builder.call(ir.InlineAsm(function, ptx, "=r,f,f"), arguments)


pack_f16 = _pack("pack_f16", "f16")
pack_bf16 = _pack("pack_bf16", "bf16")


@means(pack_f16)
def _(lane: Any, low: Any, high: Any) -> np.uint32:
    return np.uint32(np.array([low, high], np.float16).view(np.uint32)[0])


@means(pack_bf16)
def _(lane: Any, low: Any, high: Any) -> np.uint32:
    bits = np.array([low, high], np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest, of two the even one
    return np.uint32(int(rounded[0]) | int(rounded[1]) << 16)


# ── copies that the warp does not wait for ────────────────────────────────────────────────────────────────


@intrinsic  # type: ignore[untyped-decorator]
def copy_later(
    typing_context: Any, shared: Any, shared_index: Any, array: Any, index: Any, is_inside: Any
) -> Any:
    """16 bytes from `array[index]` to `shared[shared_index]`; zeros, and nothing is read, if not inside."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = signature.args[:2], signature.args[2:4]
        to = element_address(context, builder, _Part(target), arguments[:2])
        start = element_address(context, builder, _Part(source), arguments[2:4])
        num_bytes = builder.select(arguments[4], ir.Constant(_i32, 16), ir.Constant(_i32, 0))
        given = [_shared_address(builder, to), builder.ptrtoint(start, _i64), num_bytes]
        call_ptx(builder, [], given, "cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r,~{memory}")
        return context.get_dummy_value()

    return types.void(shared, shared_index, array, index, types.boolean), generate


class _Part:
    """Some of a signature's arguments."""

    def __init__(self, args: Any) -> None:
        self.args = args


@means(copy_later)
def _(lane: Any, shared: Any, shared_index: Any, array: Any, index: Any, is_inside: Any) -> None:
    lane.copy_later(shared, shared_index, array, index, 4, bool(is_inside))


def _plain(name: str, ptx: str) -> Any:
    def instruction(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            call_ptx(builder, [], [], ptx, "~{memory}")
            return context.get_dummy_value()

        return types.void(), generate

    instruction.__name__ = name
    return intrinsic(instruction)


commit_copies = _plain("commit_copies", "cp.async.commit_group;")
"""What was copied since the last time is one group."""
wait_for_all_but_newest = _plain("wait_for_all_but_newest", "cp.async.wait_group 1;")
"""Until every group of this lane has arrived, except the newest."""


@means(commit_copies)
def _(lane: Any) -> None:
    lane.commit_copies()


@means(wait_for_all_but_newest)
def _(lane: Any) -> None:
    lane.wait_for_copies(1)
