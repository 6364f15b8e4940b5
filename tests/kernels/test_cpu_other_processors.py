"""The kernels of a CPU compute the same on other processors: narrower vectors, no pairs of bfloat16.

Each compiles everything anew, so they run at night only (`--hypothesis-profile=nightly`).
"""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[2]
TESTED = ("tests/kernels/test_cpu_panels.py", "tests/kernels/test_cpu_decode.py",
          "tests/kernels/test_cpu_prefill.py", "tests/executor/test_compiled_runner.py")  # fmt: skip
OLD = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt"
AVX2 = f"{OLD},+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd"


@pytest.mark.skipif(settings.get_current_profile_name() != "nightly", reason="a minute each: at night only")
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
