"""Kernels looked at: `minivllm microscope`.

Read in this order: `subjects` (which kernels, on which arrays), `record` (from an observation to a trace),
`commands`. The microscope itself is in `kernels_numba/microscope`. Bytes and FLOPs over lengths and sizes of
memory are counted in `minivllm/lab/compare/attention.py`.
"""
