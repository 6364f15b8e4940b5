"""Kernels become good machine code: nothing spilled, nothing in double precision, loads that are wide.

Compiled without a GPU, in a process of its own: compiler libraries and other tests stay apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import patience

ROOT = Path(__file__).parent.parent.parent
CAPABILITIES = ((8, 0), (9, 0))
PROGRAM = """
import json, sys
import numpy as np
from kernels_numba import ptx

reason = ptx.missing()
if reason:
    print(json.dumps({"missing": reason}))
    sys.exit()

from kernels_numba.cuda.copy_blocks import copy_blocks
from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.kv_write import kv_write
from kernels_numba.cuda.naive_attention import naive_attention
from kernels_numba.cuda.kv_write_int8 import kv_write_int8
from kernels_numba.cuda.paged_attention import PER_WORD, paged_attention
from kernels_numba.cuda.quantized_product import quantized_product

def f32(*shape): return np.zeros(shape, np.float32)
def i32(*shape): return np.zeros(shape, np.int32)

launches = {}
for launch in naive_attention(*[f32(64, 2, 64)] * 4, f32(2, 64, 64)):
    launches[launch.kernel.py_func.__name__] = launch
for dim in (64, 128):
    launches[f"flash_attention_1 {dim}"] = flash_attention_1(*[f32(64, 2, dim)] * 4, f32(2, 64), f32(2, 64))
for dim in (64, 128, 256):
    starts = np.array([0, 4096], np.int32)
    launches[f"flash_attention_2 {dim}"] = flash_attention_2(
        *[f32(4096, 8, dim)] * 4, starts, starts, longest_query=4096
    )
for dim, group, dtype in (
    (128, 4, "float32"), (64, 1, "float16"), (256, 4, "bfloat16"), (128, 4, "int8"), (256, 4, "fp8"),
):
    words = np.zeros((4, 2, 16, dim // PER_WORD[dtype]), np.uint32)
    cache = f32(4, 2, 16, dim) if dtype == "float32" else words
    scales = f32(4, 2, 16) if dtype == "int8" else 1.0
    out = f32(3, 2 * group, dim)
    paged, combine = paged_attention(
        out, cache, cache, i32(3, 2), i32(3), out, f32(3, 2 * group, 2, dim), f32(3, 2 * group, 2),
        cache_dtype=dtype, key_scales=scales, value_scales=scales,
    )
    launches[f"paged_attention {dim} {group} {dtype}"] = paged
launches["combine_splits"] = combine
codes, scales = np.zeros((4, 2, 16, 64), np.int8), f32(4, 2, 16)
launches["kv_write_int8"] = kv_write_int8(
    f32(3, 2, 64), f32(3, 2, 64), codes, codes, scales, scales, np.arange(3, dtype=np.int32)
)
launches["copy_blocks int8"] = copy_blocks(np.zeros((4, 512), np.int8), np.array([[0, 1]], np.int32))
for bits, rows in ((4, 1), (4, 16), (8, 8)):
    launches[f"quantized_product {bits} {rows}"] = quantized_product(
        f32(rows, 1024), np.zeros((64, 32 * bits), np.uint32), f32(64, 8), f32(64, 8), f32(rows, 64),
        bits=bits, group_size=128,
    )
for dtype in ("float32", "uint16", "uint8"):
    key, keys = np.zeros((3, 2, 64), dtype), np.zeros((4, 2, 16, 64), dtype)
    launches[f"kv_write {dtype}"] = kv_write(key, key, keys, keys, np.arange(3, dtype=np.int32))
    launches[f"copy_blocks {dtype}"] = copy_blocks(np.zeros((4, 512), dtype), np.array([[0, 1]], np.int32))

answers = {}
for name, launch in launches.items():
    for capability in CAPABILITIES:
        done = ptx.compile_launch(launch, capability)
        answers[f"{name} for {capability}"] = {
            "spilled": done.spilled_bytes,
            "stack": done.stack_bytes,
            "registers": done.registers,
            "shared": done.shared_bytes,
            "threads": done.num_threads,
            "occupancy": done.occupancy,
            "instructions": dict(done.instructions),
            # Of a function that is gone, numba leaves an empty variable (NumbaEnv).
            "notes": [
                line
                for line in done.ptx.splitlines()
                if "call" in line or ("note_" in line and "NumbaEnv" not in line)
            ],
        }
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """By kernel and capability."""
    program = f"CAPABILITIES = {CAPABILITIES!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience.SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "missing" in answers:
        pytest.skip(answers["missing"])
    return answers


def test_no_kernel_spills_registers_or_keeps_arrays_in_memory(compiled):
    assert {name: k["spilled"] for name, k in compiled.items() if k["spilled"]} == {}
    assert {name: k["stack"] for name, k in compiled.items() if k["stack"]} == {}
    assert all(0 < k["registers"] <= 255 for k in compiled.values())


def test_no_kernel_computes_in_double_precision(compiled):
    assert [name for name, k in compiled.items() if k["instructions"][".f64"]] == []


def test_the_cache_is_read_16_bytes_at_a_time(compiled):
    for name, kernel in compiled.items():
        if name.startswith("paged"):
            assert kernel["instructions"]["ld.global.v4"] >= 2, name  # of keys, and of values


def test_kernels_exchange_by_shuffles_and_meet_at_barriers_where_the_source_says_so(compiled):
    for name, kernel in compiled.items():
        has_barriers = name.startswith(("paged", "flash", "quantized"))
        has_shuffles = has_barriers or name.startswith(("softmax", "kv_write_int8"))
        assert (kernel["instructions"]["shfl.sync"] > 0) == has_shuffles, name
        assert (kernel["instructions"]["bar.sync"] > 0) == has_barriers, name


def test_what_kernels_say_about_themselves_costs_nothing_on_a_device(compiled):
    assert {name: kernel["notes"] for name, kernel in compiled.items() if kernel["notes"]} == {}


def test_shared_memory_is_what_the_tiles_said_and_blocks_fit_on_a_processor(compiled):
    from kernels_numba.cuda.tiles import STATIC_SHARED_BYTES, choose_tiles, shared_bytes

    for capability in CAPABILITIES:
        for dim in (64, 128, 256):
            kernel = compiled[f"flash_attention_2 {dim} for {capability}"]
            tiles = choose_tiles(dim, 4096, 8)
            assert kernel["threads"] == tiles.num_threads
            assert kernel["shared"] == shared_bytes(tiles, dim) <= STATIC_SHARED_BYTES
    assert all(0 < kernel["occupancy"] <= 1 for kernel in compiled.values())
