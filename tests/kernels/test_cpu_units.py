"""A unit is compiled once, whoever calls it, is kept by itself, and found before what calls it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from kernels_numba import kept_code
from kernels_numba.cpu.cache import kept_in, prepare
from kernels_numba.cpu.parts import is_part
from kernels_numba.cpu.units import address_of

SOURCE = """
from numba import njit
from kernels_numba.cpu.units import call_at, unit

@njit(cache=True)
def checked(x):
    if x < 0:
        raise ValueError("below zero")
    return x

@unit
@njit(cache=True)
def double(numbers):
    for i in range(len(numbers)):
        numbers[i] = 2 * checked(numbers[i])

@njit(cache=True)
def double_twice(numbers):
    double(numbers)
    double(numbers)

@njit(cache=True)
def quadruple(numbers):
    double_twice(numbers)

@njit(cache=True)
def double_first(numbers):
    double(numbers[:1])

@njit(cache=True)
def call(address, numbers):
    if address:
        call_at(address, (numbers,))
"""
NUMBERS = np.array([2.0, 4.0])
NAMES = ("checked", "double", "double_twice", "quadruple", "double_first", "call")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load these functions, as another process would: again and again."""
    (tmp_path / "functions_with_unit.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    kept_code.say_damaged.cache_clear()

    def load():
        sys.modules.pop("functions_with_unit", None)
        with kept_in(tmp_path / "kept"):
            import functions_with_unit
        return functions_with_unit

    yield load
    sys.modules.pop("functions_with_unit", None)


def result(function, *arguments):
    numbers = NUMBERS.copy()
    function(*arguments, numbers)
    return numbers.tolist()


def num_compiled(module):
    return {name: n for name in NAMES if (n := sum(getattr(module, name).stats.cache_misses.values()))}


def kept(folder, name):
    return list(folder.rglob(f"*.{name}-*.nbc"))


def test_it_is_compiled_once_and_kept_once(load, tmp_path):
    module = load()
    assert result(module.quadruple) == [8, 16]
    assert result(module.double_first) == [4, 4]
    assert result(module.double) == [4, 8]
    assert num_compiled(module)["double"] == 1
    assert [is_part(one) for one in module.double.overloads.values()] == [False]
    assert [len(kept(tmp_path, name)) for name in NAMES] == [0, 1, 0, 1, 1, 0]


def test_all_is_found_again(load):
    for expected in ({"checked": 1, "double": 1, "double_twice": 1, "quadruple": 1}, {}):
        module = load()
        assert result(module.quadruple) == [8, 16]
        assert num_compiled(module) == expected
    assert result(load().double) == [4, 8]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_what_calls_it_finds_it_where_it_was_compiled_again(load, tmp_path, damage):
    """It has another name then, which what was kept does not know."""
    assert result(load().quadruple) == [8, 16]
    (path,) = kept(tmp_path, "double")
    damage(path)
    for expected in ({"checked": 1, "double": 1}, {}):
        module = load()
        assert result(module.quadruple) == [8, 16]
        assert num_compiled(module) == expected


def test_what_it_raises_is_raised(load):
    for _ in range(2):
        module = load()
        for function in (module.quadruple, module.double):
            with pytest.raises(ValueError, match="below zero"):
                function(np.array([1.0, -1.0]))


def test_it_can_be_called_at_its_address(load):
    for _ in range(2):
        module = load()
        assert result(module.call, 0) == [2, 4]
        assert not module.double.overloads, "nobody has asked for it"
        address = address_of(module.double, NUMBERS)
        assert result(module.call, address) == [4, 8]
        with pytest.raises(ValueError, match="below zero"):
            module.call(address, -NUMBERS)


def test_what_is_prepared_is_compiled_and_not_called_and_all_its_files_are_named(load, tmp_path):
    files = None
    for _ in range(3):
        module, numbers = load(), NUMBERS.copy()
        for _ in range(2):
            named = prepare(module.quadruple, numbers)
            files = files or named
            assert named == files
        assert numbers.tolist() == NUMBERS.tolist()
    assert {path.suffix for path in files} == {".nbi", ".nbc"} and all(path.is_file() for path in files)
    assert {path.name.split(".")[1].split("-")[0] for path in files} == {"quadruple", "double"}
    prepare(module.double_first, NUMBERS)
    assert prepare(module.quadruple, NUMBERS) == files
