"""A kernel of one's own under the microscope: a `@cuda.jit` function in a file.

    minivllm microscope my.py:transpose --grid 1 --block 32,32 --arguments "a=float32:32x32, o=float32:32x32"

Arguments are given by name. An array is a type and its sizes, and is filled with random numbers (integers:
zeros, or `=N` for all N); anything else is a number.

Read next: `record.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kernels_numba.cuda.launch import Launch
from minivllm.lab.microscope.pairs import integer_or_text, parse_number, parse_pairs, quote
from minivllm.lab.microscope.subjects import Subject
from minivllm.validation import check_choice, error_words

DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8", "uint32", "bool")
MAX_CELLS = 2**22


def own_subject(spec: str, grid: str, block: str, arguments: str, seed: int) -> Subject:
    """The kernel `file.py:name` and its launch.

    Raises:
        ValueError: there is no such file or function, or the arguments are not those that it takes.
    """
    file, _, name = spec.rpartition(":")
    kernel = load_kernel(Path(file), name)
    names = tuple(inspect.signature(getattr(kernel, "py_func", kernel)).parameters)
    random = np.random.default_rng(seed)
    pairs = parse_pairs("arguments", arguments)
    given = {parameter: _parse_value(parameter, value, random) for parameter, value in pairs.items()}
    for parameter in names:
        if parameter not in given:
            raise ValueError(
                f"arguments must name every parameter of {name} ({', '.join(names)}); {parameter} is missing"
            )
    for extra in given:
        check_choice(f"arguments of {name}", extra, names)
    launch = Launch(
        kernel, _sizes("grid", grid), _sizes("block", block), tuple(given[parameter] for parameter in names)
    )
    return Subject(f"{Path(file).name}: {name}", [launch])


def load_kernel(file: Path, name: str) -> Any:
    """A function from a file, whatever else the file does when it is imported.

    Raises:
        ValueError: it cannot be imported, or has no such function.
    """
    module = _load(file)
    kernel = getattr(module, name, None)
    if kernel is None:
        known = [key for key, thing in vars(module).items() if hasattr(thing, "py_func")]
        raise ValueError(f"kernel: {file} has no {name!r}; its kernels are: {', '.join(known) or 'none'}")
    if not inspect.isfunction(getattr(kernel, "py_func", kernel)):
        raise ValueError(f"kernel: {name} in {file} is not a function")
    return kernel


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_kernel_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"kernel: there is no Python file {str(file)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"kernel: {file} cannot be imported: {error_words(error)}") from error
    return module


def _sizes(name: str, text: str) -> tuple[int, ...]:
    sizes = [integer_or_text(part.strip()) for part in text.split(",")]
    if len(sizes) > 3 or not all(isinstance(size, int) and 1 <= size <= MAX_CELLS for size in sizes):
        raise ValueError(
            f"{name} must be one to three integers from 1 to {MAX_CELLS:,} such as 4 or 32,8, "
            f"got {quote(text)}"
        )
    return tuple(int(size) for size in sizes)


def _parse_value(name: str, value: str, random: np.random.Generator) -> Any:
    dtype, colon, rest = value.partition(":")
    if not colon:
        return parse_number(name, value, "a finite number, or an array such as float32:32x32")
    kind = np.dtype(check_choice(f"type of {name}", dtype, DTYPES))
    sizes, equals, fill = rest.partition("=")
    shape = [size for size in map(integer_or_text, sizes.split("x")) if isinstance(size, int) and size >= 1]
    if len(shape) <= sizes.count("x") or prod(shape) > MAX_CELLS:
        raise ValueError(
            f"{name} must have sizes such as 32x32, and from 1 to {MAX_CELLS:,} cells, got {quote(sizes)}"
        )
    if not equals and kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    return np.full(shape, _parse_fill(name, fill, kind) if equals else 0, kind)


def _parse_fill(name: str, fill: str, kind: np.dtype[Any]) -> int | float:
    """What all cells of an array are to hold: a number that its type has."""
    least, most = _range(kind)
    allowed = f"a number from {least} to {most}"
    number = parse_number(f"cells of {name}", fill, allowed)
    if not least <= number <= most:
        raise ValueError(f"cells of {name} must be {allowed}, got {quote(fill)}")
    return number


def _range(kind: np.dtype[Any]) -> tuple[int | float, int | float]:
    if kind.kind == "b":
        return 0, 1
    if kind.kind == "f":
        return float(np.finfo(kind).min), float(np.finfo(kind).max)
    return np.iinfo(kind).min, np.iinfo(kind).max
