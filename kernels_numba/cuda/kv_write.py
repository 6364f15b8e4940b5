"""Into the cache: every new token's key and value goes to its slot.

    slot 37, blocks of 16:   block 37 // 16 = 2, row 37 % 16 = 5

One thread for one number: neighbours in a head are neighbours in memory, on both sides, so a warp writes
whole sectors. A slot of -1 belongs to no token (padding, as in CUDA graphs of a fixed size), and is skipped.

Source: `reshape_and_cache` of vLLM. Read next: `kv_write_int8.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from kernels_numba.cuda.launch import Launch, check_array, check_same

DTYPES = ("float32", "float16", "uint16", "uint32", "uint8")


@cuda.jit(fastmath=True)
def kv_write_kernel(key, value, keys, values, slots):  # type: ignore[no-untyped-def]
    """Grid (tokens, KV heads), block head_dim."""
    token, head, c = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    slot = slots[token]
    if slot < 0:
        return
    block_size = keys.shape[2]
    block, row = slot // block_size, slot % block_size
    keys[block, head, row, c] = key[token, head, c]
    values[block, head, row, c] = value[token, head, c]


def kv_write(key: Any, value: Any, keys: Any, values: Any, slots: Any) -> Launch:
    """Store the keys and values of new tokens.

    Args:
        key, value: [tokens, kv_heads, head_dim].
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], of the same type; written.
        slots: [tokens], int32: block · block_size + row, or -1 for none. No two tokens have the same.

    Raises:
        ValueError: shapes that do not fit together, or slots outside the cache or given twice.
    """
    for name, array in (("key", key), ("value", value)):
        check_array(name, array, "tokens, kv_heads, head_dim", DTYPES)
        check_same(f"the shape of {name}", tuple(array.shape), "key", tuple(key.shape))
        check_same(f"the type of {name}", array.dtype, "key", key.dtype)
    dtype = str(key.dtype).removeprefix("torch.")
    for name, array in (("keys", keys), ("values", values)):
        check_array(name, array, "blocks, kv_heads, block_size, head_dim", (dtype,))
        check_same(f"the shape of {name}", tuple(array.shape), "keys", tuple(keys.shape))
        check_same(f"the heads of {name}", (array.shape[1], array.shape[3]), "key", tuple(key.shape[1:]))
    check_slots(slots, keys, key.shape[0])
    return Launch(
        kv_write_kernel, (key.shape[0], key.shape[1]), (key.shape[2],), (key, value, keys, values, slots)
    )


def check_slots(slots: Any, keys: Any, num_tokens: int) -> None:
    """Refuse slots outside the cache or given twice, with the first that is wrong."""
    check_array("slots", slots, "tokens", ("int32",))
    check_same("the number of slots", len(slots), "tokens", num_tokens)
    if isinstance(slots, np.ndarray):
        num_slots = keys.shape[0] * keys.shape[2]
        for token in np.flatnonzero((slots < -1) | (slots >= num_slots)):
            raise ValueError(f"slots[{token}] must be -1 or from 0 to {num_slots - 1}, got {slots[token]}")
        used = slots[slots >= 0]
        if len(np.unique(used)) != len(used):
            raise ValueError("slots must be all different: two tokens would be written to one place")
