"""A few rows times a quantised matrix: weights of 4 or 8 bits become floats in registers, and nowhere else.

Decoding multiplies a row or a handful of them by every weight there is, so it takes as long as the weights
take to read. Here they are read as they are stored, 8 or 4 in a word of 32 bits, each once:

    words [outputs, inputs / 8]      lane 0     lane 1     lane 2    …  lane 31
    output 0, of warp 0           │ 76543210 │ 76543210 │ 76543210 │ … │         │   128 bytes a request
    output 1, of warp 0           │          │          │          │             │   four outputs a warp:
    …                                                                                 four requests at once
    word ──► shift, mask, convert ──► (code − zero) · scale ──► times x of each row, added to that row's sum

The inputs of a word belong to one group, which has a scale and a zero. A thread block puts its part of x into
shared memory once, transposed: what the 32 lanes need at the same time, number 0 of each word, then number 1,
lies side by side in 32 banks, and all outputs of the block use it.

       x:  0 1 2 … 7 │ 8 9 …15 │ 16 …          shared:  0  8 16 …   (number 0 of lane 0, 1, 2 …)
           lane 0      lane 1    lane 2                 1  9 17 …   (rows a little longer than 32, so that
                                                        2 10 18 …    writing, down a column, has no conflicts)

At the end a butterfly adds the 32 lanes up. More rows than `MAX_ROWS` are multiplied faster by tensor cores,
after the weights were made floats.

Sources: GEMV as in Frantar et al., "MARLIN" (2024), section 2; llm.c's and AWQ's kernels for one row.
The plain twin is `minivllm/model/quantization/dequantized_matrix.py`. Read next: `kv_write.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numba import cuda, float32, uint32

from kernels_numba.cuda.launch import Launch, check_array, check_same
from kernels_numba.cuda.warp import ALL_LANES

BITS = (4, 8)
MAX_ROWS = 16
NUM_WARPS = 4
MAX_SUMS = 32
"""That a lane keeps, rows times outputs: more of them would take registers that keep other warps away."""
MAX_OUTPUTS = 4
"""Of a warp."""


def outputs_per_warp(rows: int) -> int:
    """So many that there are loads to wait for at the same time, and registers for all sums."""
    return max(1, min(MAX_OUTPUTS, MAX_SUMS // rows))


@lru_cache(maxsize=32)
def make_kernel(bits: int, rows: int) -> Callable[..., Any]:
    """The kernel for weights of so many bits, and so many rows of x."""
    per_word, mask = 32 // bits, (1 << bits) - 1
    step = 32 * per_word  # inputs that a warp takes in with one load
    num_outputs, num_threads = outputs_per_warp(rows), 32 * NUM_WARPS
    sums_shape = (num_outputs, rows)
    # Neighbours in x go down a column: its rows are longer by what keeps 32 of them in 32 banks.
    part_shape = (rows, per_word, 32 + 32 // per_word)

    @cuda.jit(fastmath=True)
    def quantized_product(x, words, scales, zeros, out, group_size):  # type: ignore[no-untyped-def]
        """Grid (outputs / (warps · outputs of each)), block 32 · warps."""
        thread = cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32
        first_output = (cuda.blockIdx.x * NUM_WARPS + warp) * num_outputs
        inputs, row_words = x.shape[1], words.shape[1]
        part = cuda.shared.array(part_shape, float32)
        sums = cuda.local.array(sums_shape, float32)
        loaded = cuda.local.array(num_outputs, uint32)
        for o in range(num_outputs):
            for r in range(rows):
                sums[o, r] = float32(0)

        for first in range(0, inputs, step):
            for i in range(thread, rows * step, num_threads):
                r, c = i // step, i % step
                if first + c < inputs:
                    part[r, c % per_word, c // per_word] = x[r, first + c]
            cuda.syncthreads()
            word = first // per_word + lane
            if word < row_words:
                group = word * per_word // group_size
                for o in range(num_outputs):
                    if first_output + o < words.shape[0]:
                        loaded[o] = words[first_output + o, word]
                for o in range(num_outputs):
                    output = first_output + o
                    if output < words.shape[0]:
                        scale, zero = scales[output, group], zeros[output, group]
                        for j in range(per_word):
                            code = uint32(loaded[o] >> uint32(bits * j)) & uint32(mask)
                            weight = (float32(code) - zero) * scale
                            for r in range(rows):
                                sums[o, r] += part[r, j, lane] * weight
            cuda.syncthreads()  # all warps have read it: the next part may come

        for o in range(num_outputs):
            for r in range(rows):
                total = sums[o, r]
                distance = 16
                while distance > 0:
                    total += cuda.shfl_xor_sync(ALL_LANES, total, distance)
                    distance //= 2
                if lane == 0 and first_output + o < words.shape[0]:
                    out[r, first_output + o] = total

    return quantized_product  # type: ignore[no-any-return]


def quantized_product(
    x: Any, words: Any, scales: Any, zeros: Any, out: Any, *, bits: int, group_size: int
) -> Launch:
    """`out = x Wᵀ` for W[o, i] = (code − zero) · scale, both of the group of neighbours that i is in.

    Args:
        x: [rows, inputs], float32, at most `MAX_ROWS` of them.
        words: [outputs, inputs · bits / 32], uint32: the codes, the first in the lowest bits.
        scales, zeros: [outputs, groups], float32.
        out: [rows, outputs], float32, written.
        bits: one of `BITS`. group_size: inputs of a group; a multiple of the codes in a word.

    Raises:
        ValueError: shapes that do not fit together, or what the kernel is not made for.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be {' or '.join(map(str, BITS))}, got {bits}")
    for name, array, dimensions, dtype in (
        ("x", x, "rows, inputs", "float32"),
        ("words", words, "outputs, words", "uint32"),
        ("scales", scales, "outputs, groups", "float32"),
        ("zeros", zeros, "outputs, groups", "float32"),
        ("out", out, "rows, outputs", "float32"),
    ):
        check_array(name, array, dimensions, (dtype,))
    rows, inputs = x.shape
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"the rows of x must be 1 to {MAX_ROWS}, got {rows}")
    per_word = 32 // bits
    if group_size < 1 or group_size % per_word or inputs % group_size:
        raise ValueError(
            f"group_size must divide the inputs ({inputs}) and be a multiple of {per_word}, the codes in a "
            f"word, got {group_size}"
        )
    check_same("the words of a row", words.shape[1], "inputs in words", inputs // per_word)
    groups = (words.shape[0], inputs // group_size)
    check_same("the shape of scales", tuple(scales.shape), "outputs and groups", groups)
    check_same("the shape of zeros", tuple(zeros.shape), "scales", groups)
    check_same("the shape of out", tuple(out.shape), "rows and outputs", (rows, words.shape[0]))
    outputs = NUM_WARPS * outputs_per_warp(rows)
    grid = (-(-words.shape[0] // outputs),)
    arguments = (x, words, scales, zeros, out, group_size)
    return Launch(make_kernel(bits, rows), grid, (32 * NUM_WARPS,), arguments)
