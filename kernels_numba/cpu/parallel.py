"""A function called on several threads, as quickly compiled as a call on one.

Numba's `prange` makes of its loop's body a function, of that another one for each kind of array, and of that
a third; each contains a copy of all that is called, optimised and written as machine code again. Six such
loops were half of the time that the kernels took to compile. What those functions do for us is little, and it
is written here as LLVM's instructions:

    in_parallel(function, parts, (a, b))        function(0, a, b), function(1, a, b) … on as many threads as
                                                `numba.set_num_threads` allows

It hands the arguments' addresses to the very routine that `prange` ends in, so threads are Numba's, whichever
they are (OpenMP, TBB, a queue). Functions must not raise: their errors are lost.

Source: `build_gufunc_kernel` in Numba's `numba/np/ufunc/parallel.py`. Read next: `paged_decode.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.ufunc.parallel import _launch_threads

WHOLE, BYTES = ir.IntType(types.intp.bitwidth), ir.IntType(8).as_pointer()
WORKER = ir.FunctionType(ir.VoidType(), [BYTES.as_pointer(), WHOLE.as_pointer(), WHOLE.as_pointer(), BYTES])
"""What Numba's threads call: with addresses, with how many parts, how far apart, and our arguments."""


def in_parallel(function, parts, arguments):  # type: ignore[no-untyped-def]
    """Call `function(part, *arguments)` for all parts from 0 on. This is what it means in Python."""
    for part in range(parts):
        function(part, *arguments)


@overload(in_parallel, inline="always")
def _in_compiled_code(function, parts, arguments):  # type: ignore[no-untyped-def]
    return lambda function, parts, arguments: _on_threads(function, parts, arguments)


@intrinsic
def _on_threads(typing_context: Any, function: Any, parts: Any, arguments: Any) -> Any:
    """The same, in code that does not hold Python's lock."""
    called = function.get_call_type(typing_context, (types.intp, *arguments.types), {})

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _launch_threads()
        context.active_code_library._reload_init.add(_launch_threads)  # once it is found on disk, too
        compiled = function.dispatcher.get_compile_result(called)
        context.add_linking_libs([compiled.library])
        worker = _make_worker(context, builder.module, compiled.fndesc, called, arguments)

        def address(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), BYTES)

        def routine(name: str, result: Any, *kinds: Any) -> Any:
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, kinds), name)

        num_threads = builder.call(routine("get_num_threads", WHOLE), [])
        builder.call(
            routine("numba_parallel_for", ir.VoidType(), *[BYTES] * 5, *[WHOLE] * 3),
            [
                builder.bitcast(worker, BYTES),
                address(BYTES(None)),  # the address of part 0 is 0: so that of a part is its number
                address(values[1]),
                address(WHOLE(1)),
                address(values[2]),
                WHOLE(0),
                WHOLE(1),
                num_threads,
            ],
        )
        return context.get_dummy_value()

    return types.void(function, types.intp, arguments), generate


def _make_worker(context: Any, module: Any, described: Any, called: Any, arguments: Any) -> Any:
    """The function that a thread calls: it calls ours for some parts, one after the other."""
    worker = ir.Function(module, WORKER, module.get_unique_name("worker"))
    worker.linkage = "internal"
    builder = ir.IRBuilder(worker.append_basic_block())
    addresses, counts, _, data = worker.args
    first = builder.ptrtoint(builder.load(addresses), WHOLE)
    kind = context.get_value_type(arguments).as_pointer()
    given = cgutils.unpack_tuple(builder, builder.load(builder.bitcast(data, kind)))
    kinds = zip(given, arguments.types, called.args[1:], strict=True)
    values = [context.cast(builder, value, own, wanted) for value, own, wanted in kinds]
    with cgutils.for_range(builder, builder.load(counts)) as loop:
        part = builder.add(first, loop.index)
        context.call_internal_no_propagate(builder, described, called, [part, *values])
    builder.ret_void()
    return worker
