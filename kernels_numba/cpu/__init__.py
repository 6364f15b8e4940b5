"""Kernels for CPUs, compiled by Numba: the hot path of decoding without a GPU.

    paged_decode    one new token of each sequence against a cache in blocks

Read next: `paged_decode.py`.
"""
