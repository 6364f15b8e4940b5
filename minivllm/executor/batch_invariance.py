"""Batch invariance: the same logits for a request, bit for bit, whatever is computed beside it.

    backend        kept by
    ────────────   ─────────────────────────────────────────────────────────────────────────────────────────
    numba-cpu      its kernels, always: every sum has an order that is written down. `batch_invariant` also
                   refuses help that has none: oneDNN for matrix units, torch for what fits in no panels
    torch          `batch_invariant`: rows in groups of a fixed size, attention token by token in fixed tiles
    others         not: on a GPU torch multiplies, and chooses by the number of rows

`docs/batch-invariance.md` says what is promised and what it costs.

Read next: `kernels_numba/cpu/softmax_parts.py`, `runners/row_groups.py`, `attention/fixed_tiles.py`.
"""

from __future__ import annotations

import os

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.attention.choose import BackendFactory
from minivllm.executor.attention.fixed_tiles import FixedTileAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.model.config import ModelConfig
from minivllm.validation import shown

VARIABLE = "VLLM_BATCH_INVARIANT"
"""vLLM's name of the wish: 1 in the environment."""


def is_wanted(batch_invariant: bool) -> bool:
    """By a setting, or by the environment.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE) or "0"
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {shown(value)}")
    return batch_invariant or value == "1"


def invariant(factory: BackendFactory) -> BackendFactory:
    """Attention backends that keep the promise.

    Raises:
        ValueError: when one is made that cannot.
    """

    def make(config: ModelConfig, storage: KVStorage) -> AttentionBackend:
        if type(storage) is not KVStorage:
            raise ValueError(
                "batch_invariant must be False with allocator='virtual_memory' or a kv_cache_dtype of 8 "
                f"bits: not every kernel reads {type(storage).__name__} in the same order"
            )
        attention = factory(config, storage)
        if storage.cells.device.type != "cpu" or attention.name not in ("torch", "numba-cpu"):
            raise ValueError(
                f"batch_invariant must be False with the attention backend {attention.name!r} on "
                f"{storage.cells.device}: torch multiplies there, and chooses by the number of rows in which "
                "order to sum; it can be True with 'numba-cpu' and 'torch' on a CPU"
            )
        if type(attention) is TorchAttention:
            return FixedTileAttention(config, storage)
        from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention

        if isinstance(attention, NumbaCpuAttention):
            attention.keep_one_order()
        return attention

    return make
