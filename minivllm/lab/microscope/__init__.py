"""Kernels looked at: `minivllm microscope`.

Read in this order: `subjects` (which kernels, on which arrays), `record` (from an observation to a trace),
`commands`; `scaling` counts bytes and FLOPs over lengths and sizes of memory. The microscope itself is in
`kernels_numba/microscope`.
"""
