"""The first second: kernels are compiled beside a run that does not wait for them.

Compiling takes ten to twenty seconds of a core, once for each type of numbers on a machine. An engine that
finds no compiled code computes with plain torch, and one other process compiles meanwhile, however many
engines start:

    engine ── is the code there? ─┬─ yes ── our kernels
                                  └─ no ─── plain torch until the engine's end, and a line that says so
                                       └──► python -m minivllm.executor.warm_up float32-step

An engine does not change over in the middle: the two agree up to rounding and not in every bit, and a request
must not depend on when a compiler was done. The next start uses what is there then.

The process has the lowest priority, survives a short run, and ends by itself. What ended without success
several times is not tried again before the sources, the versions or the processor change, or `minivllm doctor
--warm-up` is called. With MINIVLLM_WAIT_FOR_COMPILER=1 engines compile first and then start, as they do
where the backend "numba-cpu" is named, and in benchmarks.

Read next: `kernels_numba/kept_code.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from kernels_numba.kept_code import is_complete, usual_folder
from minivllm.executor.cpu_hazards import CACHES, FUSED, QUANTIZED, STEP, code_kind
from minivllm.executor.kv_format import AUTO
from minivllm.executor.runners.choose import has_compiled_step
from minivllm.model.config import ModelConfig
from minivllm.validation import error_words

try:
    import fcntl
except ImportError:  # Windows: there engines compile first and then start
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("minivllm")

ALL_KINDS = tuple(
    f"{dtype}-{runner}" for dtype in ("float32", "bfloat16") for runner in (STEP, FUSED, QUANTIZED)
)
WAIT = "MINIVLLM_WAIT_FOR_COMPILER"
MOST_ATTEMPTS = 3
MOST_SECONDS = 1800
"""A process that compiles for longer ends itself."""

_processes: list[subprocess.Popen[bytes]] = []
"""Started by this one, which does not wait for them."""


def kinds_needed(
    config: ModelConfig,
    dtype: torch.dtype,
    runners: Sequence[str] = (),
    kv_cache_dtype: str = AUTO,
    further: Sequence[str] = (),
) -> list[str]:
    """The compiled code that the runners of this model need on this processor (`runners/choose.py`).

    A quantised model says itself which `runners` it needs, and a quantised copy which `further` ones.
    """
    if not runners:
        has_step = has_compiled_step(config)
        runners = [STEP] if has_step else [FUSED]
        if dtype == torch.bfloat16 and has_step:
            from minivllm.executor.attention.numba_cpu_backend import has_matrix_units

            runners = [*runners, *([FUSED] if has_matrix_units(dtype) else [])]
    of_caches = {runner: AUTO if runner == QUANTIZED else kv_cache_dtype for runner in (*runners, *further)}
    return [code_kind(dtype, runner, kind) for runner, kind in of_caches.items()]


def can_start_compiled(
    config: ModelConfig,
    dtype: torch.dtype,
    runners: Sequence[str] = (),
    kv_cache_dtype: str = AUTO,
    further: Sequence[str] = (),
) -> bool:
    """May an engine use compiled code now? If not, says so, and sees to it that it is compiled beside."""
    if fcntl is None or os.environ.get(WAIT) == "1":
        return True
    folder = usual_folder()
    needed = kinds_needed(config, dtype, runners, kv_cache_dtype, further)
    kinds = [kind for kind in needed if not is_complete(folder, kind)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kinds:
            _compile_beside(folder, kinds)
    except OSError:  # nothing can be kept: the next start would be no better
        return True
    return not kinds


@contextmanager
def compiling_first() -> Iterator[None]:
    """Engines that are made meanwhile wait for the compiler: a comparison of speeds needs all compiled."""
    before = os.environ.get(WAIT)
    os.environ[WAIT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WAIT]
        else:
            os.environ[WAIT] = before


def _compile_beside(folder: Path, kinds: list[str]) -> None:
    """Start a process that compiles, if there is none and it makes sense. `OSError` if it cannot be."""
    failed = [kind for kind in kinds if len(_attempts(folder, kind)) >= MOST_ATTEMPTS]
    if failed:
        reason = _attempts(folder, failed[0])[-1]
        logger.warning(
            "kernels cannot be compiled here (%s): plain torch computes, which gives the same and takes "
            "longer; `minivllm doctor --warm-up` tries again",
            reason,
        )
        return
    with open(folder / "warm-up.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # one is at work
            pass
        else:
            _processes.append(_start(kinds, lock))
    logger.warning(
        "kernels for this machine are being compiled beside this run, once: it computes with plain torch, "
        "which gives the same up to rounding and takes longer; a later start uses them"
    )


def _start(kinds: list[str], lock: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process that compiles. It holds the lock as long as it lives."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "minivllm.executor.warm_up", *kinds],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=[lock.fileno()],
        start_new_session=True,  # Ctrl-C is for the run, and not for it
    )


# ---- in the process that compiles ----------------------------------------------------------------------


def main(kinds: list[str]) -> None:
    """Compile these kinds of code, one after the other."""
    os.nice(19)
    signal.alarm(MOST_SECONDS)
    from kernels_numba.cpu import FOLDER

    for kind in kinds:
        compile_kind(FOLDER, kind)


def compile_kind(folder: Path, kind: str) -> None:
    """Compile one kind of code, or find that it is there, and keep count of what does not end well."""
    attempts = folder / f"{kind}.attempts"
    begun = _attempts(folder, kind)
    _write_attempts(attempts, [*begun, "it was ended before it was done"])
    try:
        make_runner(kind)  # marks the kind as complete: see `cpu_hazards.compiling`
        if not is_complete(folder, kind):
            raise OSError(f"the files in {folder} cannot be kept")
    except Exception as error:
        _write_attempts(attempts, [*begun, error_words(error)])
        raise
    attempts.unlink(missing_ok=True)


def _attempts(folder: Path, kind: str) -> list[str]:
    """How each attempt to compile this kind has ended."""
    try:
        return (folder / f"{kind}.attempts").read_text(errors="replace").splitlines()
    except OSError:
        return []


def _write_attempts(path: Path, endings: list[str]) -> None:
    lines = [" ".join(ending.split())[:300] for ending in endings]
    path.write_text("\n".join(lines) + "\n")


def make_runner(kind: str) -> None:
    """Make a runner of this kind, for the smallest of models: that compiles what every model needs."""
    from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
    from minivllm.executor.quantized_storage import make_storage
    from minivllm.executor.runners.compiled import CompiledRunner
    from minivllm.executor.runners.fused import FusedRunner
    from minivllm.executor.runners.quantized_panels import compile_products
    from minivllm.model.decoder import Decoder

    name, runner = kind.split("-")
    dtype, cpu = getattr(torch, name), torch.device("cpu")
    config = ModelConfig.from_dict(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
         "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    )  # fmt: skip
    kept = next((name for name, code in CACHES.items() if runner in (code + STEP, code + FUSED)), AUTO)
    storage = make_storage(config, 1, 16, dtype, cpu, kept)
    decoder = Decoder(config, dtype, cpu)
    if runner.endswith(STEP):
        CompiledRunner(decoder, storage)
    elif runner == QUANTIZED:
        compile_products(dtype)
    else:
        FusedRunner(decoder, NumbaCpuAttention(config, storage))


@contextmanager
def warming_up(say: Callable[[str], None]) -> Iterator[Path]:
    """The folder of compiled code, while no process compiles beside a run; what went wrong is forgotten."""
    from kernels_numba.cpu import FOLDER

    with open(FOLDER / "warm-up.lock", "ab") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another process is compiling; waiting for it …")
                fcntl.flock(lock, fcntl.LOCK_EX)
        for path in FOLDER.glob("*.attempts"):
            path.unlink(missing_ok=True)
        yield FOLDER


if __name__ == "__main__":
    main(sys.argv[1:])
