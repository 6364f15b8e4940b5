"""What every kernel takes of a multiprocessor, as a page: `python -m kernels_numba.list_kernels`.

Compiles each for two kinds of devices (`ptx.py`), without a GPU. Read next: `ptx.py`.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np

from kernels_numba.cuda import flash_attention_1 as flash_1
from kernels_numba.cuda import flash_attention_2 as flash_2
from kernels_numba.cuda import flash_attention_tensor_core as tensor_core
from kernels_numba.cuda.copy_blocks import copy_blocks
from kernels_numba.cuda.kv_write import kv_write
from kernels_numba.cuda.kv_write_int8 import kv_write_int8
from kernels_numba.cuda.launch import Launch
from kernels_numba.cuda.naive_attention import naive_attention
from kernels_numba.cuda.paged_attention import PER_WORD, paged_attention
from kernels_numba.cuda.quantized_product import BITS, quantized_product
from kernels_numba.cuda.tiles import HEAD_DIMS
from kernels_numba.ptx import Compiled, compile_launch, missing

CAPABILITIES = ((8, 0), (9, 0))
HEADER = """# What the kernels take

Every kernel compiled for two kinds of devices, without one: registers of a thread, shared memory of a block,
bytes that were spilled because registers ran out, share of a multiprocessor's threads that can be resident at
once, and the instructions that matter. Made {made} by `python -m kernels_numba.list_kernels` (which needs
`pip install "minivllm[ptx]"`).

| kernel | heads, or weights | device | registers | shared bytes | spilled | occupancy | instructions |
|---|---|---|---|---|---|---|---|"""


ON_A_CPU = """
## On a CPU

Compiled by Numba when they are first used, for whichever processor it is (`kernels_numba/cpu/`); none needs
more than AVX2.

| what | numbers | widened by | where |
|---|---|---|---|
| products | float32, bfloat16 | pairs of bfloat16 with AVX512-BF16 | `panels.py`, `tile_product.py` |
| products, W4A16 | 1 to 4 bits, scales of groups | a table in a register, or shifts | `quantized_tile.py` |
| products, W8A16 | 5 to 8 bits, scales of groups | a conversion | `quantized_tile.py` |
| products, FP8 weights | e4m3, scales of channels, blocks | a shift, then F16C | `quantized_tile.py` |
| products, W8A8 | int8 times int8, exactly | `vpdpbusd` (VNNI), `vpmaddwd` | `integer_tile.py` |
| attention, one token | float32, bfloat16, int8, e4m3 | in registers; e4m3 by tiles | `paged_decode.py` |
| attention, many tokens | the same | 8 bits by tiles | `paged_prefill.py` |
| writing the cache | the same | int8 with scales of heads, e4m3 | `rows.py`, `coded_cells.py` |
| a whole step | all of these together | | `whole_step.py` |"""


def catalogue() -> list[tuple[str, Launch]]:
    """Every kernel, for every width of heads or a few typical ones, with arguments of the right types."""
    starts = np.array([0, 256], np.int32)
    launches: list[tuple[str, Launch]] = []
    query = _floats(256, 4, 64)
    for launch in naive_attention(query, query, query, query, _floats(4, 256, 256)):
        launches.append(("64", launch))
    for width in flash_1.HEAD_DIMS:
        query, state = _floats(256, 4, width), _floats(4, 256)
        launches.append((f"{width}", flash_1.flash_attention_1(query, query, query, query, state, state)))
    for width in HEAD_DIMS:
        query = _floats(256, 4, width)
        launch = flash_2.flash_attention_2(query, query, query, query, starts, starts, longest_query=256)
        launches.append((f"{width}", launch))
    for width in tensor_core.HEAD_DIMS:
        for dtype in tensor_core.DTYPES:
            words = np.zeros((256, 4, width // 2), np.uint32)
            launch = tensor_core.flash_attention_tensor_core(
                words, words, words, words, starts, starts, longest_query=256, dtype=dtype
            )
            launches.append((f"{width}, {dtype}", launch))
    for width, group, dtype in (
        (64, 1, "float32"),
        (64, 4, "bfloat16"),
        (128, 1, "float32"),
        (128, 4, "float32"),
        (128, 4, "float16"),
        (128, 4, "bfloat16"),
        (128, 4, "int8"),
        (128, 4, "fp8"),
        (256, 4, "bfloat16"),
    ):
        attend, combine = _paged(width, group, dtype)
        launches.append((f"{width}, {dtype}, {group} together", attend))
    launches.append((f"{width}", combine))  # the same for all
    for bits in BITS:
        for rows in (1, 4, 16):
            launches.append((f"{bits} bits, {rows} rows", _quantized(bits, rows)))
    cache = _floats(4, 2, 16, 64)
    launches.append(
        ("64", kv_write(_floats(1, 2, 64), _floats(1, 2, 64), cache, cache, np.array([0], np.int32)))
    )
    codes, scales = np.zeros((4, 2, 16, 64), np.int8), _floats(4, 2, 16)
    new = _floats(1, 2, 64)
    launches.append(("64", kv_write_int8(new, new, codes, codes, scales, scales, np.array([0], np.int32))))
    launches.append(("–", copy_blocks(_floats(4, 64), np.array([[0, 1]], np.int32))))
    return launches


def _floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _paged(width: int, group: int, dtype: str) -> list[Launch]:
    shape = (4, 2, 16)
    words = np.zeros((*shape, width // PER_WORD[dtype]), np.uint32)
    cache = _floats(*shape, width) if dtype == "float32" else words
    scales = _floats(*shape) if dtype == "int8" else 1.0
    query, parts = _floats(2, 2 * group, width), _floats(2, 2 * group, 2, width)
    tables, lengths = np.zeros((2, 4), np.int32), np.zeros(2, np.int32)
    return paged_attention(
        query, cache, cache, tables, lengths, query, parts, _floats(2, 2 * group, 2), cache_dtype=dtype,
        key_scales=scales, value_scales=scales,
    )  # fmt: skip


def _quantized(bits: int, rows: int) -> Launch:
    words, scales = np.zeros((64, 1024 * bits // 32), np.uint32), _floats(64, 8)
    out = _floats(rows, 64)
    return quantized_product(_floats(rows, 1024), words, scales, scales, out, bits=bits, group_size=128)


def row(heads: str, compiled: Compiled) -> str:
    """Of the table."""
    found = ", ".join(f"{count} {name}" for name, count in compiled.instructions.items() if count)
    cells = (
        compiled.name,
        heads,
        f"{compiled.capability[0]}.{compiled.capability[1]}",
        f"{compiled.registers}",
        f"{compiled.shared_bytes:,}",
        f"{compiled.spilled_bytes}",
        f"{compiled.occupancy:.0%}",
        found or "–",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the page; 2 if nothing can be compiled here."""
    reason = missing()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    print(HEADER.format(made=datetime.now(UTC).strftime("%Y-%m-%d")))
    for heads, launch in catalogue():
        for capability in CAPABILITIES:
            print(row(heads, compile_launch(launch, capability)), flush=True)
    print(ON_A_CPU)
    return 0


if __name__ == "__main__":
    sys.exit(main())
