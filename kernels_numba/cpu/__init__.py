"""Kernels for CPUs, compiled by Numba: the hot path without a GPU.

    paged_decode    attention of one new token of each sequence, against a cache in blocks
    rows            what lies between two matrix products, in one pass over each row
    decode_step     a whole step of a few sequences

All are imported here, so that their compiled code is kept in one place (`cache.py`).
Read next: `paged_decode.py`.
"""

from kernels_numba.cpu.cache import cache_folder, kept_in

with kept_in(cache_folder()):
    from kernels_numba.cpu import arithmetic, decode_step, paged_decode, rows

__all__ = ["arithmetic", "decode_step", "paged_decode", "rows"]
