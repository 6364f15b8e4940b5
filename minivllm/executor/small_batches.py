"""Decode steps of a few sequences, each in one compiled call (`kernels_numba/cpu/decode_step.py`).

A laptop serves one user: a step then is one token, and calling things takes longer than computing them. What
CUDA graphs are to a GPU (`decode_graphs.py`), this is to a CPU: the same step, without anybody in between. It
reads weights row by row, so it keeps a copy of them beside the packed ones; models too large for that, and
larger batches, which packed products serve better, take the usual way.

Read next: `kernels_numba/cpu/decode_step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu.decode_step import Weights, decode_step
from kernels_numba.cpu.paged_decode import plan_items
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.fused_decoder import AngleTable, as_array
from minivllm.executor.kv_storage import KVStorage
from minivllm.hazards import compiling, set_numba_threads
from minivllm.model.decoder import Decoder, DecoderLayer
from minivllm.model.layers import RMSNorm

LARGEST_BYTES = 512 << 20
"""Of weights that are worth a copy."""
CACHED_BYTES = 8 << 20
"""Of weights that stay in a core's own cache: waking another core would take longer than it helps."""
MOST_CACHED, MOST_STREAMED = 8, 2
"""Sequences up to which reading rows beats packed products: of small models, and of others."""


class SmallBatches:
    """Whole decode steps. Make it before the decoder's weights are packed; it keeps them as they are."""

    def __init__(self, decoder: Decoder, storage: KVStorage) -> None:
        self.config = decoder.config
        self._angles = AngleTable(decoder)
        self._cells = as_array(storage.cells)
        self._block_size = storage.block_size
        self._is_cached = decoder.num_bytes <= CACHED_BYTES
        self._eps = np.float32(decoder.norm.eps)
        self._scale = np.float32(decoder.config.head_dim**-0.5)
        self._window = decoder.config.layer_windows[0]
        self._weights = gather_weights(decoder)
        self._compile()

    @staticmethod
    def fits(decoder: Decoder) -> bool:
        """Is there a compiled step for this model, and is a copy of its weights worth it?"""
        config = decoder.config
        return (
            decoder.num_bytes <= LARGEST_BYTES
            and decoder.layers[0].mlp.has_silu
            and len(set(config.layer_windows)) == 1
        )

    def covers(self, metadata: AttentionMetadata) -> bool:
        """Does everybody decode one token and want to know what comes next, and are they few?"""
        most = MOST_CACHED if self._is_cached else MOST_STREAMED
        return metadata.is_decode and metadata.num_tokens <= most

    def run(self, metadata: AttentionMetadata) -> Tensor:
        """Logits [S, vocab_size] of a step that `covers` has said yes to."""
        num_threads = set_numba_threads(1 if self._is_cached else None)
        firsts, lengths = metadata.first_seen(self._window), metadata.context_lens
        items = plan_items(firsts, lengths, self.config.num_kv_heads, num_threads, self._block_size)
        logits = torch.empty(len(lengths), self.config.vocab_size)
        self._call(metadata, items, num_threads, logits)
        return logits

    def _call(self, metadata: AttentionMetadata, items: Any, num_threads: int, logits: Tensor) -> None:
        decode_step(
            metadata.token_ids, self._angles.upto(metadata.positions), metadata.positions,
            metadata.slot_mapping, metadata.block_tables, *items, self._cells, self._weights, self._eps,
            self._scale, num_threads, logits.numpy(),
        )  # fmt: skip

    def _compile(self) -> None:
        """By a step of nobody."""
        none = np.zeros(0, np.int64)
        nobody = AttentionMetadata(
            none, none, none, np.zeros(1, np.int64), none, np.zeros((0, 1), np.int64), none
        )
        items = (np.zeros((0, 3), np.int64), np.zeros(1, np.int64))
        with compiling("steps of a few tokens"):
            self._call(nobody, items, 1, torch.empty(0, self.config.vocab_size))


def gather_weights(decoder: Decoder) -> Weights:
    """The decoder's weights, stacked over layers."""

    def stack(part: Callable[[DecoderLayer], Tensor | None]) -> Any:
        parts = [part(layer) for layer in decoder.layers]
        there = [tensor.to_dense() if tensor.is_mkldnn else tensor for tensor in parts if tensor is not None]
        return as_array(torch.stack(there) if there else decoder.embedding.new_empty(len(parts), 0))

    def norm(layer: RMSNorm | None) -> Tensor | None:
        return None if layer is None else layer.weight

    head = decoder.lm_head
    return Weights(
        embedding=as_array(decoder.embedding),
        input_norm=stack(lambda layer: layer.input_norm.weight),
        qkv=stack(lambda layer: layer.attention.qkv.weight),
        qkv_bias=stack(lambda layer: layer.attention.qkv.bias),
        query_norm=stack(lambda layer: norm(layer.attention.query_norm)),
        key_norm=stack(lambda layer: norm(layer.attention.key_norm)),
        output=stack(lambda layer: layer.attention.output.weight),
        output_bias=stack(lambda layer: layer.attention.output.bias),
        mlp_norm=stack(lambda layer: layer.post_attention_norm.weight),
        gate_up=stack(lambda layer: layer.mlp.gate_up.weight),
        gate_up_bias=stack(lambda layer: layer.mlp.gate_up.bias),
        down=stack(lambda layer: layer.mlp.down.weight),
        down_bias=stack(lambda layer: layer.mlp.down.bias),
        norm=as_array(decoder.norm.weight),
        head=as_array(head.to_dense() if head.is_mkldnn else head),
    )
