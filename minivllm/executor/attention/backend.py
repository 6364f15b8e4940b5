"""What an attention backend does: put keys and values into their cells, then attend through block tables.

A backend is the only code that knows how the cache is read. Once a step it is shown the metadata and
prepares whatever all layers share (row numbers, masks, device copies); then each layer calls it:

    begin_step(metadata)
        layer 0:  backend(0, q, k, v)  =  write(0, k, v), then attend(0, q)
        layer 1:  …

Writing comes first, so a token finds its own key in the cache and attention has one source for all keys,
whether they were computed in this step or a thousand steps ago. There are no phases: prefill, chunk and
decode differ only in how many query rows a sequence has.

Read next: `torch_backend.py`, the plain implementation every other one is tested against.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.kv_storage import KVStorage
from minivllm.model.config import ModelConfig

if TYPE_CHECKING:
    from minivllm.executor.compiled_steps import CompiledSteps
    from minivllm.executor.fused_decoder import FusedDecoder
    from minivllm.model.decoder import Decoder


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
        """Time spent in this backend since `begin_step` (on a GPU: time spent queueing work)."""

    @abstractmethod
    def begin_step(self, metadata: AttentionMetadata) -> None:
        """Prepare what all layers of the coming step share."""

    @abstractmethod
    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store `key` and `value` [T, num_kv_heads, head_dim] in the cells of `slot_mapping`."""

    @abstractmethod
    def attend(self, layer: int, query: Tensor) -> Tensor:
        """The attended values [T, num_heads, head_dim] of `query` [T, num_heads, head_dim]."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`write`, `attend`, and the time they took."""
        began = perf_counter()
        self.write(layer, key, value)
        attended = self.attend(layer, query)
        self.seconds += perf_counter() - began
        return attended

    def whole_steps(self, decoder: Decoder) -> CompiledSteps | None:
        """Steps that are one call, if this backend has such."""
        return None

    def tuned(self, decoder: Decoder) -> Decoder | FusedDecoder:
        """The decoder's `forward` in the form that goes best with this backend."""
        return decoder

    def prepare(self, metadata: AttentionMetadata) -> None:
        """`begin_step`, timed from zero."""
        began = perf_counter()
        self.begin_step(metadata)
        self.seconds = perf_counter() - began


def to_device(array: object, device: torch.device) -> Tensor:
    """A numpy array as a tensor: the same memory on a CPU, one copy elsewhere."""
    return torch.as_tensor(array).to(device, non_blocking=True)
