"""Kernels for NVIDIA GPUs in Python (Numba), each a file with one idea.

    naive_attention               all scores in global memory: what FlashAttention does away with
    flash_attention_1             tiles and an online softmax; keys and values outside, queries inside
    flash_attention_2             queries outside, so that tiles of queries run side by side
    flash_attention_tensor_core   the same in 16 bits, with matrix products by whole warps
    paged_attention               one new token against a cache in blocks, read through a block table
    quantized_product             a few rows times weights of 4 or 8 bits, made floats in registers
    kv_write, copy_blocks         into the cache; from block to block

Whatever a kernel mentions that is not Python (a 128-bit load) is in `instructions.py` and `tensor_core.py`;
what it says about itself, in `notes.py`; how large its tiles are, in `tiles.py`. Every file has a function
that checks its arguments and returns a `Launch`: on a GPU `launch.run()`, anywhere `launch.observe()`.

Read next: `naive_attention.py`.
"""
