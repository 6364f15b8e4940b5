"""What can go wrong between threads, compilers and processes on a CPU. Each was seen; all are met here.

    hazard                         what happened                         what is done
    ────────────────────────────   ───────────────────────────────────   ───────────────────────────────────
    idle threads spin              one busy neighbour, and a step of     they spin for some ten
                                   0.1 ms takes 8: the core is held      microseconds, then sleep
    more threads than cores        the same, always                      a warning
    Numba sets torch's threads     they share one OpenMP runtime, and    it is set back
                                   starting Numba's pool resizes it
    fork after parallel code       the child waits forever for threads   a clear error in the child
                                   that were not copied
    Numba's layer "workqueue"      two engines in two threads abort      one step at a time
                                   the process
    compiling at first use         seconds of silence in the middle      done at the start, announced,
                                   of a step                             and kept on disk
    compiling at the first start   a minute before the first token       plain torch computes, another
                                                                         process compiles: `warm_up.py`
    oneDNN forgets its code        it compiles again for a number of     it may keep four times as much, and
                                   rows that it has seen before          prompts are rounded up
    code kept for one file         a change in another goes unseen       `kernels_numba/kept_code.py`: one
                                                                         folder for each state of all files
    kept code that is damaged      the process crashes                   checksums, verified before loading
    nowhere to keep it             Numba refuses to compile              a temporary folder, and a warning
    a type without a fast path     slower, without a sign of why         a warning

`minivllm doctor` says how this machine stands. The engine's modules call these functions and know no more.
The first and the seventh are met by `minivllm/environment.py`, before torch is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

logger = logging.getLogger("minivllm")

_alone = threading.Lock()
_has_run_parallel = False
_is_forked_child = False


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_numba_threads(num_threads: int | None = None) -> int:
    """Let Numba's parallel code use as many threads as torch, or `num_threads`. Returns how many they are."""
    import numba
    import torch

    wanted = torch.get_num_threads() if num_threads is None else num_threads
    granted: int = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(granted)
    return granted


def warn_of_threads(num_threads: int) -> None:
    """More threads than cores work, slowly."""
    if num_threads > (cores := usable_cores()):
        logger.warning(
            "torch has %d threads, but this process may use %d cores: threads will wait for each other; "
            "set OMP_NUM_THREADS=%d",
            num_threads,
            cores,
            cores,
        )


def warn_of_dtype(dtype: Any) -> None:
    """Types that are computed by plain torch."""
    logger.warning(
        "%s has no fast path on a CPU: plain torch computes it, which is several times slower than "
        "float32 or bfloat16",
        str(dtype).removeprefix("torch."),
    )


# ---- processes and threads ---------------------------------------------------------------------------


def note_parallel_run(num_threads: int) -> None:
    """To be called before parallel code runs. `RuntimeError` in a process that must not run any."""
    global _has_run_parallel
    if _is_forked_child:
        raise RuntimeError(
            "this process was forked after its parent had computed on several threads, which were not "
            "copied: it would wait for them forever. Start processes with "
            "multiprocessing.get_context('spawn'), or fork before the first engine is made"
        )
    _has_run_parallel |= num_threads > 1


def _after_fork() -> None:
    global _is_forked_child
    _is_forked_child = _has_run_parallel


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def guard_step(num_threads: int) -> AbstractContextManager[Any]:
    """Around a step on a CPU, on so many threads: `note_parallel_run`, then `one_at_a_time`."""
    note_parallel_run(num_threads)
    return one_at_a_time()


def one_at_a_time() -> AbstractContextManager[Any]:
    """Around a step that runs Numba's parallel code: a lock where its threading layer allows one caller."""
    return _alone if _layer_allows_one_caller() else nullcontext()


def _layer_allows_one_caller() -> bool:
    parallel = sys.modules.get("numba.np.ufunc.parallel")
    try:
        return parallel is not None and parallel.threading_layer() == "workqueue"
    except ValueError:  # not started yet
        return False


# ---- compiling ---------------------------------------------------------------------------------------


STEP, FUSED, QUANTIZED = "step", "fused", "quantized"
"""Runners that need compiled code, `runners/compiled.py` and `runners/fused.py`, and what both multiply
quantised matrices with."""
CACHES = {"auto": "", "int8_per_token_head": "int8", "fp8": "fp8"}
"""The first two runners have code of their own for each kind of KV cache."""


def code_kind(dtype: Any, runner: str, kv_cache_dtype: str = "auto") -> str:
    """The name of all compiled code that this runner needs for these types: "float32-step"."""
    return f"{str(dtype).removeprefix('torch.')}-{CACHES[kv_cache_dtype]}{runner}"


_completed: dict[str, set[Any]] = {}
"""The files of each kind that this process has prepared."""


@contextmanager
def compiling(kind: str) -> Iterator[Callable[..., None]]:
    """Gives a function that compiles, or finds, one for some arguments: for all that are of one kind.

    Says so if one is compiled indeed, and notes that the kind (`code_kind`) is complete; torch keeps its
    threads.
    """
    import torch
    from numba.core.event import install_listener

    from kernels_numba.cpu import FOLDER
    from kernels_numba.cpu.cache import Announcement, prepare
    from kernels_numba.kept_code import mark_complete

    num_threads, files = torch.get_num_threads(), set(_completed.get(kind, ()))
    text = f"compiling kernels for this machine ({kind}); it takes ten to twenty seconds, once"

    def prepare_and_note(function: Any, *arguments: Any) -> None:
        files.update(prepare(function, *arguments))

    try:
        with install_listener("numba:compile", Announcement(lambda: logger.warning(text))):
            yield prepare_and_note
    finally:
        torch.set_num_threads(num_threads)  # starting Numba's threads has changed it
    if files != _completed.get(kind, set()):
        with suppress(OSError):  # where nothing can be kept, that has been said
            mark_complete(FOLDER, kind, files)
            _completed[kind] = files
