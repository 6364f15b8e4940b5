"""A function and all that it calls, compiled as one piece of code.

Numba compiles each function by itself: LLVM optimises it with everything that it calls copied into it, and
writes machine code. So what is called by what is called … is optimised and written once for each function
above it, and of all that only the outermost is ever called by Python. Here a function that is compiled only
because compiled code calls it is a part:

    whole_step            optimised, with all its parts in it, and written as machine code: once
      └─ paged_decode     a part: LLVM's language, not optimised, no machine code, not kept on disk
           └─ row_dots    a part

It halves the time that our kernels take to compile. A part that Python calls after all is compiled again, as
what it then is. What is large and called by several functions is no part of them, but a unit (`units.py`).

Source: `CPUCodeLibrary.finalize` in Numba's `numba/core/codegen.py`. Read next: `units.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.cpu import CPUContext
from numba.core.dispatcher import Dispatcher
from numba.core.sigutils import normalize_signature

_compiling: list[str] = []
"""Functions that are being compiled, each because of the one before; guarded by Numba's own lock."""


@contextmanager
def compiling(function: Any) -> Iterator[None]:
    """While this lasts, whatever else is compiled is a part of this function: it is none itself."""
    before = list(_compiling)
    _compiling[:] = [function.py_func.__qualname__]
    try:
        with _options(function, no_cfunc_wrapper=True):
            yield
    finally:
        _compiling[:] = before


@contextmanager
def compiling_part(function: Any) -> Iterator[None]:
    """While this lasts, this function is compiled as a part of what is being compiled."""
    _compiling.append(function.py_func.__qualname__)
    try:
        with _options(function, no_cpython_wrapper=True, no_cfunc_wrapper=True):
            yield
    finally:
        _compiling.pop()


@contextmanager
def _options(function: Any, **changed: bool) -> Iterator[None]:
    """Other options: what nobody calls from Python or C needs no code that makes numbers of objects."""
    compiler = function._compiler
    before = compiler.targetoptions
    compiler.targetoptions = {**before, **changed}
    try:
        yield
    finally:
        compiler.targetoptions = before


def is_outermost() -> bool:
    """Is no function of ours being compiled now?"""
    return not _compiling


def compiled_for(function: Any, signature: Any) -> Any:
    """What is known of a function for these types; None if it was not compiled."""
    return function.overloads.get(tuple(normalize_signature(signature)[0]))


def forget_part(function: Any, signature: Any) -> None:
    """If this function is a part so far, let it be compiled as one that can be called."""
    known = compiled_for(function, signature)
    if known is not None and is_part(known):
        del function.overloads[tuple(known.signature.args)]


def is_part(compiled: Any) -> bool:
    """Can only compiled code call it?"""
    return getattr(compiled.library, "is_part", False)


def set_environments(compiled: Any) -> None:
    """Let the copies of its parts find what the parts were compiled with, as Numba does after loading."""
    codegen = compiled.library.codegen
    for environment in compiled._find_referenced_environments():
        if codegen._engine.is_symbol_defined(environment.env_name):
            codegen.set_env(environment.env_name, environment)


class Library(JITCodeLibrary):  # type: ignore[misc]
    """The code of one function. That of a part is only what others link into theirs."""

    needed: Any = None
    """A unit's: what stands for it in the code that calls it (`units.Needed`)."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.is_part = len(_compiling) > 1 or (len(_compiling) == 1 and name != _compiling[0])

    def add_linking_library(self, library: Any) -> None:
        if getattr(library, "needed", None) is None:
            super().add_linking_library(library)
        else:
            self._reload_init.add(library.needed)

    def _optimize_final_module(self) -> None:
        if not self.is_part:
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        if not self.is_part:
            super()._finalize_final_module()
            return
        self._verify_declare_only_symbols()
        self._finalized = True

    def _set_compiled_object(self, value: bytes) -> None:
        self.is_part = False  # it was found on disk, machine code and all
        super()._set_compiled_object(value)

    def get_pointer_to_function(self, name: str) -> int:
        """Its address. A caller that asks for it wants to call it: then it is no part any more."""
        self._ensure_finalized()
        if self.is_part:
            self.is_part = False
            self._optimize_final_module()
            self._finalize_final_module()
        address: int = super().get_pointer_to_function(name)
        return address


_executable = CPUContext.get_executable
_add_overload = Dispatcher.add_overload


def _get_executable(self: Any, library: Any, described: Any, environment: Any) -> Any:
    if getattr(library, "is_part", False):
        return _nothing_to_call(described.qualname)
    return _executable(self, library, described, environment)


def _nothing_to_call(name: str) -> Callable[..., Any]:
    """In the place of the function that Python would call. Numba knows compiled functions by this object."""

    def part(*_: Any) -> Any:
        raise TypeError(f"{name} is compiled as a part of another function")

    return part


def _add_unless_part(self: Any, compiled: Any) -> None:
    if is_part(compiled):  # compiled code finds it here; Python looks elsewhere, and compiles it
        self.overloads[tuple(compiled.signature.args)] = compiled
    else:
        _add_overload(self, compiled)


JITCPUCodegen._library_class = Library
CPUContext.get_executable = _get_executable
Dispatcher.add_overload = _add_unless_part  # type: ignore[assignment, method-assign]
