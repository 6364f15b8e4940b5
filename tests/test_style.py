"""The rules of the house that can be counted."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import patience, trees

ROOT = Path(__file__).parent.parent
MAX_LINES = 60
LONG_FUNCTIONS = {
    "kernels_numba/cpu/fixed_sums.py:column_dots",
    "kernels_numba/cpu/fixed_sums.py:products",
    "kernels_numba/cpu/fixed_sums.py:generate",
    "kernels_numba/cpu/paged_decode.py:_values_added",
    "kernels_numba/cpu/paged_decode.py:_attend",
    "kernels_numba/cpu/paged_prefill.py:_attend",
    "kernels_numba/cpu/tile_product.py:tile",
    "kernels_numba/cpu/tile_product.py:product",
    "kernels_numba/cpu/tile_product.py:generate",
    "kernels_numba/cuda/flash_attention_1.py:make_kernel",
    "kernels_numba/cuda/flash_attention_1.py:flash_attention_1",
    "kernels_numba/cuda/flash_attention_2.py:make_kernel",
    "kernels_numba/cuda/flash_attention_2.py:flash_attention_2",
    "kernels_numba/cuda/flash_attention_tensor_core.py:make_kernel",
    "kernels_numba/cuda/flash_attention_tensor_core.py:flash_attention_tensor_core",
    "kernels_numba/cuda/paged_attention.py:make_kernel",
    "kernels_numba/cuda/paged_attention.py:paged_attention",
    "lessons/13_paged_kernel/reference.py:paged_attention",
}
"""Functions that may be longer: factories of kernels, and commands, whose options are their signature."""


def functions(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in trees.statements(trees.of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("package", ["minivllm", "kernels_numba", "viz", "lessons", "tests"])
def test_a_function_fits_a_screen(package):
    too_long = {name for name, length in functions(package) if length > MAX_LINES}
    named = {name for name in LONG_FUNCTIONS if name.startswith(package)}
    assert too_long == named, "name it here with a reason, or cut it; and take out what is short by now"


def test_a_decode_step_visits_no_more_files_than_contributing_says():
    """In a process of its own, because what was imported or cached before changes the count."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = re.findall(r"(\d+) files, (\d+) changes of file, (\d+) calls", text)
    command = [sys.executable, "-m", "tests.hops", "torch"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=patience.SECONDS
    )
    counted = re.findall(r"(\d+) files, (\d+) changes of file, (\d+) calls", done.stdout)
    assert len(said) == len(counted) == 2
    for most, found in zip(said, counted, strict=True):
        assert [int(number) for number in found] <= [int(number) for number in most], done.stdout
