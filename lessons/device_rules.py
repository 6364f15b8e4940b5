"""What a GPU cannot run, though Python under the microscope could: found in the text of a kernel.

    lists, dictionaries, sets    a thread has registers, and what `cuda.shared.array` gives to its block
    sizes that are not constant  of shared or local arrays: they are fixed when the kernel is compiled

Read next: `kernels.py`, which runs what is left.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

_DISPLAYS = {
    ast.List: "a list",
    ast.ListComp: "a list",
    ast.Dict: "a dictionary",
    ast.DictComp: "a dictionary",
    ast.Set: "a set",
    ast.SetComp: "a set",
    ast.GeneratorExp: "a generator",
    ast.JoinedStr: "a text",
}
_MAKERS = {"list": "a list", "dict": "a dictionary", "set": "a set", "sorted": "a list", "str": "a text"}


def not_for_a_device(kernel: Callable[..., Any]) -> str:
    """The first thing in a kernel, or a function that it calls, that no GPU can run; "" if there is none."""
    functions = [kernel]
    for function in functions:  # grows while we walk
        if words := _first_in(function):
            return words
        named = (function.__globals__.get(name) for name in function.__code__.co_names)
        helpers = (getattr(thing, "py_func", None) for thing in named)
        functions += [helper for helper in helpers if inspect.isfunction(helper) and helper not in functions]
    return ""


def _first_in(kernel: Callable[..., Any]) -> str:
    try:
        lines, first = inspect.getsourcelines(kernel)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (
        OSError,
        TypeError,
        SyntaxError,
    ):  # made without a text that can be found: then it is not looked at
        return ""
    for node in ast.walk(tree):
        if words := _forbidden(node, kernel):
            line = first + getattr(node, "lineno", 1) - 1
            return f"{words} (line {line}: {lines[line - first].strip()})"
    return ""


def _forbidden(node: ast.AST, kernel: Callable[..., Any]) -> str:
    if type(node) in _DISPLAYS and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return f"{_DISPLAYS[type(node)]} in a kernel"
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Name) and node.func.id in _MAKERS:
        return f"{_MAKERS[node.func.id]} in a kernel"
    is_array = isinstance(node.func, ast.Attribute) and node.func.attr == "array" and node.args
    if is_array and not all(_is_constant(name, kernel) for name in _names(node.args[0])):
        return "an array whose size is not constant"
    return ""


def _names(size: ast.expr) -> Iterator[str]:
    yield from (item.id for item in ast.walk(size) if isinstance(item, ast.Name))


def _is_constant(name: str, kernel: Callable[..., Any]) -> bool:
    """Does it stand outside of the kernel, and is it a number, or a tuple of them?"""
    known = {**kernel.__globals__, **inspect.getclosurevars(kernel).nonlocals}
    size = known.get(name)
    is_size = all(isinstance(n, int) for n in size) if isinstance(size, tuple) else isinstance(size, int)
    return name not in kernel.__code__.co_varnames and is_size
