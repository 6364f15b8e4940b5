"""The plain runner: a step computed op by op, with any attention backend, on any device, in any type.

    metadata ──► token_ids, positions, rows on the device ──► decoder.forward ──► decoder.compute_logits
        │                                                          │ attend(layer, q, k, v)
        └──► attention.begin_step ──────────────────────────► attention

It is what the other runners are tested against, and what they leave their unsupported steps to.

Read next: `minivllm/model/decoder.py`, `minivllm/executor/attention/torch_backend.py`.
"""

from __future__ import annotations

from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.padding import AttentionWithoutPadding, pad_rows
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.model.layers import Attend


class AnyDecoder(Protocol):
    """A whole one, or a rank's share of one (`minivllm/model/parallel/`)."""

    def forward(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor: ...

    def compute_logits(self, hidden: Tensor) -> Tensor: ...


class EagerRunner(ModelRunner):
    """Calls `forward` and `compute_logits` of a decoder."""

    def __init__(self, decoder: AnyDecoder, attention: AttentionBackend) -> None:
        self.decoder = decoder
        self.attention = attention
        self._device = attention.storage.device

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        logits = self.decoder.compute_logits(self.forward(metadata, num_padding))
        self.attention_seconds = self.attention.seconds
        return logits

    def forward(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        """The step without its last part: hidden states [len(metadata.logit_rows), hidden_size]."""
        attention = self.attention
        began = perf_counter()
        attention.begin_step(metadata)
        attention.seconds = perf_counter() - began  # every layer adds its own
        token_ids, positions, rows = (
            torch.from_numpy(array).to(self._device, non_blocking=True)  # on a CPU the same memory
            for array in (metadata.token_ids, metadata.positions, metadata.logit_rows)
        )
        attend: AttentionBackend | AttentionWithoutPadding = attention
        if num_padding:
            attend = AttentionWithoutPadding(attention, metadata.num_tokens, num_padding)
            token_ids, positions = pad_rows(token_ids, num_padding), pad_rows(positions, num_padding)
        return self.decoder.forward(token_ids, positions, attend, rows)
