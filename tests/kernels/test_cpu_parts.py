"""What only compiled code calls is in that code, and nowhere else, until Python calls it, too."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from kernels_numba.cpu.cache import kept_in
from kernels_numba.cpu.parts import is_part
from tests import patience

ROOT = Path(__file__).parents[2]
SOURCE = """
import numpy as np
from numba import njit

@njit(cache=True)
def half(x):
    if x % 2:
        raise ValueError("an odd number")
    return x // 2

@njit(cache=True)
def halves(numbers):
    out = np.empty_like(numbers)
    for i, x in enumerate(numbers):
        out[i] = half(x)
    return out

@njit(cache=True)
def sum_of_halves(numbers):
    return halves(numbers).sum()
"""
NUMBERS = np.array([2, 4, 8])


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load three functions, of which each calls the one before, as another process would: again and again."""
    (tmp_path / "three_functions.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)

    def load():
        sys.modules.pop("three_functions", None)
        with kept_in(tmp_path / "kept"):
            import three_functions
        return three_functions

    yield load
    sys.modules.pop("three_functions", None)


def parts_of(module):
    return {
        name: [is_part(one) for one in getattr(module, name).overloads.values()]
        for name in ("half", "halves", "sum_of_halves")
    }


def kept(folder):
    return sorted(path.name.split(".")[1].split("-")[0] for path in folder.rglob("*.nbc"))


def test_only_what_python_calls_is_written_as_machine_code_and_kept(load, tmp_path):
    module = load()
    assert module.sum_of_halves(NUMBERS) == 7
    assert parts_of(module) == {"half": [True], "halves": [True], "sum_of_halves": [False]}
    assert kept(tmp_path / "kept") == ["sum_of_halves"]
    again = load()
    assert again.sum_of_halves(NUMBERS) == 7
    assert parts_of(again) == {"half": [], "halves": [], "sum_of_halves": [False]}


def test_a_part_that_python_calls_is_a_function_like_others(load, tmp_path):
    module = load()
    assert module.sum_of_halves(NUMBERS) == 7
    assert module.half(np.int64(6)) == 3 and module.halves(NUMBERS).tolist() == [1, 2, 4]
    assert parts_of(module) == {"half": [False], "halves": [False], "sum_of_halves": [False]}
    assert kept(tmp_path / "kept") == ["half", "halves", "sum_of_halves"]
    assert load().halves(NUMBERS).tolist() == [1, 2, 4]


def test_code_of_others_may_call_parts(load):
    module = load()
    module.sum_of_halves(NUMBERS)

    @numba.njit
    def of_a_user(numbers):
        return module_halves(numbers)[0] + 1

    module_halves = module.halves
    assert of_a_user(NUMBERS) == 2
    assert module.sum_of_halves(NUMBERS) == 7


def test_what_a_part_raises_is_raised(load):
    for module in (load(), load()):  # compiled, and found on disk
        with pytest.raises(ValueError, match="an odd number"):
            module.sum_of_halves(np.array([2, 3]))
        assert module.sum_of_halves(NUMBERS) == 7


def test_a_part_has_nothing_that_python_could_call(load):
    module = load()
    module.sum_of_halves(NUMBERS)
    (compiled,) = module.half.overloads.values()
    with pytest.raises(TypeError, match="half is compiled as a part of another function"):
        compiled.entry_point(6)
    assert compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    assert not is_part(compiled)


PARALLEL = """
import numpy as np
from numba import njit
from kernels_numba.cpu.parallel import in_parallel

@njit(nogil=True, cache=True)
def double(part, numbers):
    numbers[part] *= 2

@njit(nogil=True, cache=True)
def double_all(numbers):
    in_parallel(double, len(numbers), (numbers,))

@njit(nogil=True, cache=True)
def quadruple_all(numbers):
    double_all(numbers)
    double_all(numbers)
"""
CALL = """
import sys
import numpy as np
from kernels_numba.cpu.cache import kept_in
with kept_in(sys.argv[1]):
    import two_functions
numbers = np.arange(4.0)
getattr(two_functions, sys.argv[2])(numbers)
print(numbers.tolist())
"""


def test_threads_are_started_for_code_that_was_compiled_around_code_that_was_kept(tmp_path):
    """The inner function by one process, the outer around it by a second; a third finds both."""
    (tmp_path / "two_functions.py").write_text(PARALLEL)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    said = []
    for name in ("double_all", "quadruple_all", "quadruple_all"):
        command = [sys.executable, "-c", CALL, str(tmp_path / "kept"), name]
        options = {"capture_output": True, "text": True, "check": False, "timeout": patience.SECONDS}
        done = subprocess.run(command, env=environment, **options)
        said.append((done.returncode, done.stdout.strip()))
    assert said == [(0, "[0.0, 2.0, 4.0, 6.0]"), *[(0, "[0.0, 4.0, 8.0, 12.0]")] * 2]
