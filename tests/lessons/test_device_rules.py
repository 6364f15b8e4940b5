"""What no GPU can run is told by name and line; what it can is let through."""

import subprocess
import sys
from dataclasses import replace

import pytest

from lessons.catalogue import find_lesson
from lessons.device_rules import not_for_a_device
from lessons.loading import SUBJECT, load_module, load_properties
from lessons.playing import judge_property
from lessons.verdict import PASSED
from tests import patience

HEAD = """
from numba import cuda, float32
SIZE = 32
SHAPE = (SIZE, 4)
@cuda.jit(device=True)
def helper(x): return x * 2
@cuda.jit
def kernel(out, n):
    room = cuda.shared.array(SIZE, float32)
    i = cuda.threadIdx.x
"""


def words(tmp_path, line):
    path = tmp_path / "kernel.py"
    path.write_text(f"{HEAD}    {line}\n")
    return not_for_a_device(load_module(path, "a_kernel").kernel.py_func)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seen = []", "a list"),
        ("seen = [n for n in range(3)]", "a list"),
        ("seen = {}", "a dictionary"),
        ("seen = dict()", "a dictionary"),
        ("seen = {1, 2}", "a set"),
        ("total = sum(out[j] for j in range(n))", "a generator"),
        ("more = cuda.shared.array(n, float32)", "an array whose size is not constant"),
        ("more = cuda.local.array(len(out), float32)", "an array whose size is not constant"),
        ("size = 4; more = cuda.shared.array((2, size), float32)", "an array whose size is not constant"),
    ],
)
def test_what_a_gpu_cannot_run_is_named_with_its_line(tmp_path, line, expected):
    found = words(tmp_path, line)
    assert found.startswith(expected) and line in found and "line 1" in found


@pytest.mark.parametrize(
    "line",
    [
        "out[i] = helper(room[0])",
        "more = cuda.local.array((2 * SIZE, 4), float32)",
        "more = cuda.local.array(SHAPE, float32)",
        "first, second = n, out[0]",
        "out[i, 0] = out[(0, 1)]",
    ],
)
def test_what_it_can_run_is_let_through(tmp_path, line):
    assert words(tmp_path, line) == ""


def test_a_kernel_without_a_text_is_not_looked_at():
    made = {}
    exec("def kernel(out):\n    out[0] = [1][0]\n", made)
    assert not_for_a_device(made["kernel"]) == ""


def test_a_solution_may_have_helpers_on_the_device():
    lesson = find_lesson("13")
    source = lesson.reference.read_text(encoding="utf-8")
    helper = "@cuda.jit(device=True)\ndef larger(a, b):\n    return max(a, b)\n\n\n@cuda.jit\ndef paged"
    source = source.replace("@cuda.jit\ndef paged", helper).replace("= max(highest, ", "= larger(highest, ")
    assert source.count("larger(") == 2
    for prop in load_properties(lesson, load_module(lesson.reference, SUBJECT, source))[:2]:
        verdict = judge_property(replace(prop, examples=5, large=None), str(lesson.reference))
        assert verdict.status == PASSED, (verdict.expected, verdict.got)


def test_functions_that_a_kernel_calls_are_looked_at_too(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text(f"{HEAD.replace('return x * 2', 'return [x, x]')}    out[i] = helper(room[0])[0]\n")
    assert not_for_a_device(load_module(path, "a_kernel").kernel.py_func).startswith("a list in a kernel")


COMPILED = """
import numpy as np
from kernels_numba import ptx
from kernels_numba.cuda.launch import Launch
from lessons.catalogue import find_lesson
from lessons.loading import load_module

if reason := ptx.missing():
    print(reason)
    raise SystemExit(3)
kernels = load_module(find_lesson("12").reference, "the_reference")
some, parts = np.zeros((4, 64), np.float32), np.zeros((2, 4, 64), np.float32)
given = some, some, some, np.float32(1)
for kernel, arguments in (
    (kernels.flash2, (*given, True, some)),
    (kernels.decode_split, (*given, some, some, parts)),
    (kernels.merge_splits, (some, some, parts, some)),
):
    done = ptx.compile_launch(Launch(kernel, (1,), (64,), arguments), (9, 0))
    assert done.spilled_bytes == 0 and done.shared_bytes <= 48 * 1024, done
"""


def test_kernels_of_lesson_12_compile_for_a_gpu():
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr[-2000:]
