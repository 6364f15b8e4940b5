"""The kernels of a CPU compute the same on other processors: narrower vectors, no pairs of bfloat16.

Each compiles everything anew, so they run at night only (`--hypothesis-profile=nightly`).
"""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from tests import patience, profiles

ROOT = Path(__file__).parents[2]
TESTED = (
    "tests/kernels/test_cpu_panels.py",
    "tests/kernels/test_matrix_products.py",
    "tests/kernels/test_cpu_decode.py",
    "tests/kernels/test_cpu_prefill.py",
    "tests/executor/test_compiled_runner.py",
)
OLD = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt"
AVX2 = f"{OLD},+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd"


@pytest.mark.skipif(not profiles.is_night(), reason="a minute each: at night only")
@pytest.mark.parametrize(
    ("name", "features"), [("nehalem", OLD), ("haswell", AVX2), ("skylake-avx512", AVX512)]
)
def test_kernels_compute_the_same_on(name, features, tmp_path):
    has = llvm.get_host_cpu_features()
    if missing := [feature for feature in features.replace("+", "").split(",") if not has.get(feature)]:
        pytest.skip(f"this processor has no {', '.join(missing)}")
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", *TESTED]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **told}, capture_output=True, text=True, timeout=7000
    )
    assert done.returncode == 0, done.stdout[-3000:]


VNNI = f"{AVX512},+avx512vnni"
WRITTEN = """
import numpy as np
from numba import njit
from kernels_numba.cpu.integer_tile import TOGETHER, integer_tile

@njit
def add_up(left, codes, sums):
    integer_tile(6, left, 0, len(left) // 6, codes, len(left) // 6, sums)

add_up.compile("void(uint32[::1], int64, int32[::1])")
(text,) = add_up.inspect_asm().values()
print(TOGETHER, *sorted({"vpdpbusd", "vpmaddwd", "pmaddwd"}.intersection(text.split())))
"""
"""Prints how many numbers an instruction takes in, and which of those that do so are in the code."""


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("cascadelake", VNNI, "4 vpdpbusd"),
        ("znver4", VNNI, "4 vpdpbusd"),
        ("alderlake", f"{AVX2},+avxvnni", "4 vpdpbusd"),
        ("skylake-avx512", AVX512, "2 vpmaddwd"),
        ("haswell", AVX2, "2 vpmaddwd"),
        ("nehalem", OLD, "2 pmaddwd"),
    ],
)
def test_whole_numbers_are_multiplied_by_the_instruction_that_there_is(name, features, expected, tmp_path):
    """Nothing is executed, so any processor will do."""
    if name not in ("cascadelake", "haswell") and not profiles.is_night():
        pytest.skip("two of them by day")
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WRITTEN]
    options = {"capture_output": True, "text": True, "timeout": patience.SECONDS}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **told}, **options)
    assert done.stdout.strip() == expected, done.stderr[-3000:]
