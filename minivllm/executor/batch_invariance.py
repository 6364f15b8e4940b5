"""Batch invariance: the same logits for a request, bit for bit, whatever is computed beside it.

    backend        kept by
    ────────────   ─────────────────────────────────────────────────────────────────────────────────────────
    numba-cpu      its kernels, always: every sum has an order that is written down. `batch_invariant` also
                   refuses help that has none: oneDNN for matrix units, torch for what fits in no panels
    torch          `batch_invariant`: rows in groups of a fixed size, attention token by token in fixed tiles
    numba-cuda,    `batch_invariant`: rows in groups as above, so that the library sees one shape; every token
    microscope     attended to by the kernel of generated ones, in splits of a fixed size
    torch, GPU     not: its attention there is for speed only

`docs/batch-invariance.md` says what is promised and what it costs.

Read next: `kernels_numba/cpu/softmax_parts.py`, `runners/row_groups.py`, `attention/fixed_tiles.py`.
"""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.attention.choose import BackendFactory
from minivllm.executor.attention.fixed_tiles import FixedTileAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.model.config import ModelConfig
from minivllm.validation import shown

VARIABLE = "VLLM_BATCH_INVARIANT"
"""vLLM's name of the wish: 1 in the environment."""


@runtime_checkable
class InOneOrder(Protocol):
    """Attention that has an order which depends on nothing, and perhaps a faster one that does."""

    def keep_one_order(self) -> None:
        """From now on have that one only. `ValueError` if it cannot be had."""
        ...


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
        attention = factory(config, storage)
        if type(attention) is TorchAttention and storage.device.type == "cpu":
            return FixedTileAttention(config, storage)
        if not isinstance(attention, InOneOrder):
            raise ValueError(
                f"batch_invariant must be False with the attention backend {attention.name!r} on "
                f"{storage.device}: in which order it sums depends on the number of tokens"
            )
        attention.keep_one_order()
        return attention

    return make
