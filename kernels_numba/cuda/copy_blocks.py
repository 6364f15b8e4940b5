"""From block to block: what copy-on-write does on the device.

One thread block for each pair walks over the cells with a stride of its own size, so that neighbouring
threads copy neighbouring cells. Pairs are copied in no order, so no block may be read by one and written by
another.

It is here to be seen under the microscope: the engine copies blocks with torch, in
`minivllm/executor/block_mover.py`.

Source: `copy_blocks` of vLLM. Read next: `tiles.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from kernels_numba.cuda.launch import Launch, check_array

NUM_THREADS = 256


@cuda.jit(fastmath=True)
def copy_blocks_kernel(cache, pairs):  # type: ignore[no-untyped-def]
    """Grid (pairs), block 256."""
    source, target = pairs[cuda.blockIdx.x, 0], pairs[cuda.blockIdx.x, 1]
    for i in range(cuda.threadIdx.x, cache.shape[1], cuda.blockDim.x):
        cache[target, i] = cache[source, i]


def copy_blocks(cache: Any, pairs: Any) -> Launch:
    """Copy whole blocks within a cache.

    Args:
        cache: [blocks, cells], any type; written.
        pairs: [pairs, 2], int32: from where, and to where.

    Raises:
        ValueError: a pair that points outside the cache, or a target that is another pair's source or target.
    """
    check_array("cache", cache, "blocks, cells", (str(cache.dtype).removeprefix("torch."),))
    check_array("pairs", pairs, "pairs, 2", ("int32",))
    if pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(f"pairs must be at least one (source, target), got the shape {tuple(pairs.shape)}")
    if isinstance(pairs, np.ndarray):
        for pair in np.flatnonzero(((pairs < 0) | (pairs >= cache.shape[0])).any(1)):
            raise ValueError(
                f"pairs[{pair}] must be blocks of the cache (0 to {cache.shape[0] - 1}), "
                f"got {pairs[pair].tolist()}"
            )
        targets = pairs[:, 1].tolist()
        if len(set(targets)) < len(targets) or set(targets) & set(pairs[:, 0].tolist()):
            raise ValueError(
                "pairs must not write a block twice, nor one that another reads: they are copied in no order"
            )
    return Launch(copy_blocks_kernel, (len(pairs),), (NUM_THREADS,), (cache, pairs))
