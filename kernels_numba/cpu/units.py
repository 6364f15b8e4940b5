"""Functions that are compiled once, by themselves, and called by whatever else is compiled.

A part (`parts.py`) is copied into each function around it and compiled there. What is large is better
compiled once: the products of a step are the same whatever its cache holds, and without a compiled step
Python calls them one by one.

    float32-step ──────┐              ┌── multiply         a unit: machine code of its own, kept by itself
    float32-int8step ──┼─ call, by ───┼── norm
    Python ────────────┘   address    └── paged_decode

The linker knows names, and only those of this process. So what calls units notes which (`Needed`). When it is
found on disk they are found or compiled before it is loaded, and the linker learns where they are.

A unit that few runs need is not even named by what calls it, but called at an address that it is given
(`call_at`), by a caller that compiles it (`address_of`). A call takes some nanoseconds, a unit at least
a microsecond.

Read next: `cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import llvmlite.binding as llvm
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_numba.cpu.parts import compiled_for

Function = TypeVar("Function")


def unit(function: Function) -> Function:
    """Decorator above `njit`: compiled code calls this function and does not contain it."""
    function.is_unit = True  # type: ignore[attr-defined]
    return function


def is_unit(function: Any) -> bool:
    return getattr(function, "is_unit", False)


@dataclass(frozen=True)
class Needed:
    """A unit that compiled code calls. To call this is to find or compile it, before that code is loaded.

    Attributes:
        module, name: where the function is.
        types: of its arguments.
        symbol: its name in the code that calls it.
    """

    module: str
    name: str
    types: tuple[Any, ...]
    symbol: str

    @property
    def function(self) -> Any:
        return getattr(import_module(self.module), self.name)

    def __call__(self) -> None:
        llvm.add_symbol(self.symbol, _address(self.function, self.types))


def note_unit(function: Any, types: tuple[Any, ...]) -> None:
    """A unit was compiled or found for these types: whatever links its code is to call it instead."""
    compiled = compiled_for(function, types)
    made = function.py_func
    compiled.library.needed = Needed(
        made.__module__, made.__qualname__, tuple(types), compiled.fndesc.llvm_func_name
    )


def units_of(compiled: Any) -> list[Needed]:
    """What this compiled code calls, or what is in it."""
    return [needed for needed in compiled.library._reload_init if isinstance(needed, Needed)]


def address_of(function: Any, *arguments: Any) -> int:
    """Where the code of a unit for such arguments is, for `call_at`. It is compiled if it was not."""
    return _address(function, tuple(map(function.typeof_pyval, arguments)))


def _address(function: Any, types: tuple[Any, ...]) -> int:
    function.compile(types)
    compiled = compiled_for(function, types)
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address


@intrinsic
def call_at(typing_context: Any, address: Any, arguments: Any) -> Any:
    """In compiled code: call the function at this address, which returns nothing, with a tuple of arguments.

    It is not checked that it was compiled for arguments of these types.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds, convention = tuple(arguments.types), context.call_conv
        called = convention.get_function_type(types.none, kinds)
        function = builder.inttoptr(values[0], called.as_pointer())
        status, _ = convention.call_function(
            builder, function, types.none, kinds, cgutils.unpack_tuple(builder, values[1])
        )
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.intp, arguments), generate
