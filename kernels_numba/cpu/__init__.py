"""Kernels for CPUs, compiled by Numba: the hot path without a GPU.

    panels           products with a model's matrices
    paged_decode     attention of one new token of each sequence, against a cache in blocks
    paged_prefill    attention of many
    rows             what lies between two products, in one pass over each row
    whole_step       all of it: a step from tokens to logits

All are imported here, so that their compiled code is kept in one place (`cache.py`).
Read next: `whole_step.py`.
"""

from kernels_numba.cpu.cache import kept_in
from kernels_numba.kept_code import cache_folder

FOLDER = cache_folder()
"""Where the compiled code is kept."""

with kept_in(FOLDER):
    from kernels_numba.cpu import arithmetic, paged_decode, paged_prefill, panels, rows, whole_step

__all__ = ["FOLDER", "arithmetic", "paged_decode", "paged_prefill", "panels", "rows", "whole_step"]
