"""The microscope: runs a `@cuda.jit` function thread by thread, and shows what it does to memory.

    from kernels_numba.microscope import observe
    seen = observe(kernel, grid, block, *arrays)

Data flows one way, and every file imports only from rows above its own:

    faults  counting  threads             what can go wrong; numbers that are counted; which thread runs
    accesses                              the columns, and which accesses are one request of a warp
    recording          races  analysis    written down while it runs │ found out afterwards, from the columns
    memory                                arrays: an access goes to the recording
    memory_spaces                         global, shared, local
    executing_lane                        what the meaning of an instruction may do
    cuda_module                           what `cuda` is to a kernel
    rebind                                a kernel with those names in the place of the real ones
    machine                               runs threads until they wait, exchanges their values, goes on
    observation                           `observe`: the launch, the machine, and what is left of it

Read from the outside in: `observation`, `machine`, `rebind`, `cuda_module`, `threads`, `recording`, `memory`,
`analysis`, `races`.
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
