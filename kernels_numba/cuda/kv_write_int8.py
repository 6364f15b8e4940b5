"""Into the cache in 8 bits: a warp looks at a head of a token, finds its scale, and writes whole numbers.

    lane 0      x[0], x[32], …   ┐                                  ┌  codes[0], codes[32], …
    lane 1      x[1], x[33], …   ├─ max|x| of all, by a butterfly ──┤  codes[1], codes[33], …
    …                            ┘   scale = max|x| / 127           └  …, and lane 0 the scale

Nothing is calibrated, and no other token is looked at. Codes are those of the plain twin to the bit
(`minivllm/executor/kv_format.py`), so there is no fast math here: each division is rounded as a division.

Source: `reshape_and_cache` with scales for each token and head, of vLLM. Read next: `copy_blocks.py`.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, float32, int32

from kernels_numba.cuda.kv_write import check_slots
from kernels_numba.cuda.launch import Launch, check_array, check_same
from kernels_numba.cuda.warp import warp_max, warp_sum

INT8_LARGEST, LEAST_SCALE = float32(127), float32(1e-6)
HALF = float32(0.5)


@cuda.jit(device=True)
def code_head(new, token, head, codes, scales, block, row):  # type: ignore[no-untyped-def]
    """One head of a token, by one warp."""
    lane = cuda.threadIdx.x
    largest, doubt = float32(0), float32(0)
    for c in range(lane, new.shape[2], 32):
        x = new[token, head, c]
        largest = max(largest, abs(x))
        doubt += x * float32(0)  # no number, if one of them is none: a maximum would pass over it
    scale = max(warp_max(largest) / INT8_LARGEST, LEAST_SCALE) + warp_sum(doubt)
    for c in range(lane, new.shape[2], 32):
        step = new[token, head, c] / scale
        rounded = step + (HALF if step >= float32(0) else -HALF)
        codes[block, head, row, c] = int32(rounded) if abs(step) <= INT8_LARGEST + HALF else int32(0)
    if lane == 0:
        scales[block, head, row] = scale


@cuda.jit
def kv_write_int8_kernel(key, value, keys, values, key_scales, value_scales, slots):  # type: ignore[no-untyped-def]
    """Grid (tokens, KV heads), block 32."""
    token, head = cuda.blockIdx.x, cuda.blockIdx.y
    slot = slots[token]
    if slot < 0:
        return
    block_size = keys.shape[2]
    block, row = slot // block_size, slot % block_size
    code_head(key, token, head, keys, key_scales, block, row)
    code_head(value, token, head, values, value_scales, block, row)


def kv_write_int8(
    key: Any, value: Any, keys: Any, values: Any, key_scales: Any, value_scales: Any, slots: Any
) -> Launch:
    """Store the keys and values of new tokens as whole numbers.

    Args:
        key, value: [tokens, kv_heads, head_dim], float32.
        keys, values: the cache, [blocks, kv_heads, block_size, head_dim], int8; written.
        key_scales, value_scales: [blocks, kv_heads, block_size], float32; written.
        slots: [tokens], int32: block · block_size + row, or -1 for none. No two tokens have the same.

    Raises:
        ValueError: shapes that do not fit together, or slots outside the cache or given twice.
    """
    for name, array in (("key", key), ("value", value)):
        check_array(name, array, "tokens, kv_heads, head_dim")
        check_same(f"the shape of {name}", tuple(array.shape), "key", tuple(key.shape))
    for name, array in (("keys", keys), ("values", values)):
        check_array(name, array, "blocks, kv_heads, block_size, head_dim", ("int8",))
        check_same(f"the shape of {name}", tuple(array.shape), "keys", tuple(keys.shape))
        check_same(f"the heads of {name}", (array.shape[1], array.shape[3]), "key", tuple(key.shape[1:]))
    for name, array in (("key_scales", key_scales), ("value_scales", value_scales)):
        check_array(name, array, "blocks, kv_heads, block_size")
        check_same(f"the shape of {name}", tuple(array.shape), "keys", tuple(keys.shape[:3]))
    check_slots(slots, keys, key.shape[0])
    return Launch(
        kv_write_int8_kernel,
        (key.shape[0], key.shape[1]),
        (32,),
        (key, value, keys, values, key_scales, value_scales, slots),
    )
