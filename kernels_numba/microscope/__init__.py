"""The microscope: runs a `@cuda.jit` function thread by thread, and shows what it does to memory.

    from kernels_numba.microscope import observe
    seen = observe(kernel, grid, block, *arrays)

Read in this order: `observation`, `machine`, `world` (what a kernel sees), `threads`, `memory`, `analysis`,
`races`.
"""

from kernels_numba.microscope.faults import (
    BarrierMismatch,
    Fault,
    KernelFault,
    NotUnderstood,
    OutOfBounds,
    Place,
    TooLong,
)
from kernels_numba.microscope.observation import Observation, observe

__all__ = [
    "BarrierMismatch",
    "Fault",
    "KernelFault",
    "NotUnderstood",
    "Observation",
    "OutOfBounds",
    "Place",
    "TooLong",
    "observe",
]
