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
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kernels_numba.cuda.launch import Launch
from minivllm.lab.microscope.subjects import Subject
from minivllm.validation import check_choice

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
    given = _parse_arguments(arguments, np.random.default_rng(seed))
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
        raise ValueError(f"kernel: {file} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _sizes(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be one to three integers such as 4 or 32,8, got {text!r}") from None


def _parse_arguments(text: str, random: np.random.Generator) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"arguments must be NAME=VALUE, separated by commas, got {part!r}")
        given[name] = _parse_value(name, value, random)
    return given


def _parse_value(name: str, value: str, random: np.random.Generator) -> Any:
    dtype, colon, rest = value.partition(":")
    if not colon:
        for read in (int, float):
            try:
                return read(value)
            except ValueError:
                continue
        raise ValueError(f"{name} must be a number, or an array such as float32:32x32, got {value!r}")
    kind = np.dtype(check_choice(f"type of {name}", dtype, DTYPES))
    sizes, _, fill = rest.partition("=")
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
        filled = float(fill) if fill else None
    except ValueError:
        raise ValueError(f"{name} must be sizes such as 32x32, got {rest!r}") from None
    if min(shape) < 1 or np.prod(shape, dtype=float) > MAX_CELLS:
        raise ValueError(f"{name} must have from 1 to {MAX_CELLS:,} cells, got {sizes}")
    if filled is None and kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    return np.full(shape, filled or 0, kind)
