"""What an attention backend does: put keys and values into their cells, then attend through block tables.

A backend is the only code that knows how the cache is read. Once a step it is shown the metadata and
prepares whatever all layers share (row numbers, masks, device copies); then each layer calls it:

    begin_step(metadata)
        layer 0:  backend(0, q, k, v)  =  write k and v into their cells, then attend with q
        layer 1:  …

Writing comes first, so a token finds its own key in the cache and attention has one source for all keys,
whether they were computed in this step or a thousand steps ago. There are no phases: prefill, chunk and
decode differ only in how many query rows a sequence has.

Read next: `torch_backend.py`, the plain implementation every other one is tested against.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.kv_storage import KVStorage
from minivllm.model.config import ModelConfig


class AttentionBackend(ABC):
    """One model's attention over one KV cache. Scores are scaled by `head_dim ** -0.5`.

    Query row i, at position p, sees the cells of positions `max(0, p - window + 1) … p` of its own
    sequence, with the layer's window if it has one. What unwritten cells hold must not matter.
    """

    name: ClassVar[str]
    """What users call it."""

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        self.config = config
        self.storage = storage
        self.seconds = 0.0
        """Time spent in this backend in the latest step (on a GPU: time spent queueing work). A runner sets
        it to the time of `begin_step`; each call adds its own."""

    @abstractmethod
    def begin_step(self, metadata: AttentionMetadata) -> None:
        """Prepare what all layers of the coming step share."""

    @abstractmethod
    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store `key` and `value` [T, num_kv_heads, head_dim] in the cells of `slot_mapping`, then attend.

        Returns the attended values [T, num_heads, head_dim] of `query` [T, num_heads, head_dim].
        """
