"""From a kernel to machine code, on a machine without a GPU: PTX, and what `ptxas` makes of it.

    compile_launch(launch, (9, 0))  ──►  Compiled: registers, shared memory, spills, and the PTX to look into

What to look for: *spills* (registers ran out, and values go through memory), `.f64` (somewhere a constant
was a double, and doubles are slow), and the instructions that were meant (`mma.sync`, `ld.global.v4`).

It needs packages that running kernels does not: `pip install "minivllm[ptx]"`.

Read next: `list_kernels.py`.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from kernels_numba.cuda.launch import Launch

REGISTERS_OF_PROCESSOR = 65536
THREADS_OF_PROCESSOR = {(8, 0): 2048, (9, 0): 2048}
SHARED_BYTES_OF_PROCESSOR = {(8, 0): 164 * 1024, (9, 0): 228 * 1024}
SHARED_BYTES_RESERVED = 1024
"""Of each block, by the system."""
MAX_BLOCKS_OF_PROCESSOR = 32
WATCHED = (
    "mma.sync",
    "ld.global.v4",
    "st.global.v4",
    "cp.async",
    "ldmatrix",
    "shfl.sync",
    "bar.sync",
    ".f64",
)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one kind of device."""

    name: str
    capability: tuple[int, int]
    ptx: str
    registers: int
    """Of a thread."""
    shared_bytes: int
    spilled_bytes: int
    """Stored and loaded because registers ran out."""
    stack_bytes: int
    num_threads: int
    """Of a block."""

    @property
    def instructions(self) -> Counter[str]:
        """How often those of `WATCHED` are in the PTX."""
        return Counter({name: self.ptx.count(name) for name in WATCHED})

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's threads that can be resident at once."""
        # Registers are allocated to warps, 256 at a time.
        of_warp = -(-self.registers * 32 // 256) * 256
        warps = -(-self.num_threads // 32)
        by_registers = REGISTERS_OF_PROCESSOR // (of_warp * warps)
        by_shared = SHARED_BYTES_OF_PROCESSOR[self.capability] // (self.shared_bytes + SHARED_BYTES_RESERVED)
        most = THREADS_OF_PROCESSOR[self.capability]
        blocks = min(by_registers, by_shared, MAX_BLOCKS_OF_PROCESSOR, most // (32 * warps))
        return blocks * 32 * warps / most


@cache
def find_ptxas() -> str | None:
    """The assembler: of the package, or of an installed toolkit."""
    found = sorted(Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/*/bin/ptxas"))
    return str(found[-1]) if found else shutil.which("ptxas")


def missing() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if importlib.util.find_spec("numba_cuda") is None:  # numba's own older target lacks some of what we use
        return "numba-cuda is not installed here: pip install 'minivllm[ptx]'"
    try:
        from numba import cuda

        cuda.compile_ptx(_nothing, (), cc=(8, 0))
    except Exception as error:
        return (
            f"kernels cannot be compiled here ({type(error).__name__}: {error}): pip install 'minivllm[ptx]'"
        )
    return None if find_ptxas() else "there is no ptxas here: pip install 'minivllm[ptx]'"


def _nothing() -> None:
    pass


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compile a kernel for arguments like these.

    Raises:
        RuntimeError: `ptxas` refused it.
    """
    from numba import cuda, typeof

    kernel = launch.kernel.py_func  # type: ignore[attr-defined]
    signature = tuple(typeof(argument) for argument in launch.arguments)
    # Device functions are compiled for "the current device", and perhaps there is none.
    device = SimpleNamespace(compute_capability=capability)
    with patch("numba.cuda.dispatcher.get_current_device", lambda: device):
        ptx, _ = cuda.compile_ptx(kernel, signature, cc=capability, fastmath=True, lineinfo=True)
    ptxas = find_ptxas()
    assert ptxas is not None, missing()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        arch = f"-arch=sm_{capability[0]}{capability[1]}"
        done = subprocess.run(
            [ptxas, arch, "-v", str(file), "-o", str(file.with_suffix(".cubin"))],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"ptxas refused {kernel.__name__} for {capability}: {done.stderr.strip()}")
    threads = 1
    for size in launch.block:
        threads *= size
    return Compiled(
        name=kernel.__name__,
        capability=capability,
        ptx=ptx,
        registers=_number(r"Used (\d+) registers", done.stderr),
        shared_bytes=_number(r"(\d+) bytes smem", done.stderr),
        spilled_bytes=_number(r"(\d+) bytes spill stores", done.stderr)
        + _number(r"(\d+) bytes spill loads", done.stderr),
        stack_bytes=_number(r"(\d+) bytes stack frame", done.stderr),
        num_threads=threads,
    )


def _number(pattern: str, text: str) -> int:
    return sum(int(found) for found in re.findall(pattern, text)[:1])
