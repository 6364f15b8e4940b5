"""The microscope has no circle: its files import upwards in one table only, and its objects hold no ring."""

from __future__ import annotations

import ast
import gc
import weakref
from pathlib import Path

import numpy as np
from numba import cuda, float32

from kernels_numba import microscope
from kernels_numba.cuda.instructions import load_float4
from kernels_numba.cuda.tensor_core import commit_copies, copy_later, wait_for_all_but_newest
from kernels_numba.microscope.machine import Machine
from kernels_numba.microscope.recording import Recording
from kernels_numba.microscope.threads import Dim3, Running

FOLDER = Path(microscope.__file__).parent
PACKAGE = "kernels_numba.microscope"


def rows() -> list[list[str]]:
    """The files in the table of the package's docstring, row by row."""
    _, _, table = (microscope.__doc__ or "").partition("rows above its own:\n\n")
    return [line[:38].split() for line in table.partition("\n\n")[0].splitlines()]


def imports_of(path: Path) -> set[str]:
    """Files of the package that it imports: anywhere, in functions and for types as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            found.add((node.module or "").removeprefix(f"{PACKAGE}."))
    return found


def test_every_file_of_the_microscope_imports_only_from_the_rows_above_its_own():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert sorted(name for row in rows() for name in row) == sorted(files)
    above: set[str] = set()
    for row in rows():
        for name in row:
            assert imports_of(FOLDER / f"{name}.py") <= above, name
        above |= set(row)


@cuda.jit(device=True)
def total(tile, t):
    return tile[0, t, 0] + cuda.shfl_xor_sync(0xFFFFFFFF, tile[0, t, 1], 1)


@cuda.jit
def uses_everything(a, out):
    t = cuda.threadIdx.x
    tile = cuda.shared.array((1, 32, 4), float32)
    own = cuda.local.array(4, float32)
    copy_later(tile, (0, t, 0), a, (t, 0), True)
    commit_copies()
    commit_copies()
    wait_for_all_but_newest()
    cuda.syncthreads()
    own[0], own[1], own[2], own[3] = load_float4(a, (t, 0))
    for i in range(4):
        cuda.atomic.add(out, i, own[i])
    out[4 + t] = total(tile, t)


def test_after_a_run_nothing_of_the_machine_is_left_in_a_ring():
    a, out = np.arange(128, dtype=np.float32).reshape(32, 4), np.zeros(36, np.float32)
    gc.collect()
    gc.disable()
    try:
        recording = Recording(Running(Dim3(1), Dim3(32)), 10_000, keep=True, count=False)
        machine = Machine(recording)
        machine.run(uses_everything.py_func, {"a": a, "out": out}, {})
        left = [weakref.ref(thing) for thing in (recording, machine, machine.shared, recording.source)]
        del recording, machine
        assert [ref() for ref in left] == [None] * 4
    finally:
        gc.enable()
    assert (out[:4] == a.sum(0)).all()
    assert (out[4:] == a[:, 0] + a[np.arange(32) ^ 1, 1]).all()
