"""Paged attention in plain torch, in shapes that never change: batch invariance, at a price.

`torch_backend.py` attends to many sequences at once, or to a prompt as a whole, and the library sums in an
order that depends on those shapes. Here each token is attended to by itself, and keys come in tiles of
`TILE_KEYS` positions from position 0 on, the last one filled up with zeros:

    scores   [kv_heads, group, TILE_KEYS]      of one token: the same shape in every prompt, chunk and batch
    folded   ((tile 0 + tile 1) + tile 2)      as in `kernels_numba/cpu/softmax_parts.py`

Read next: `torch_backend.py`, `minivllm/executor/runners/row_groups.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.attention.torch_backend import GatheredWork, TorchAttention
from minivllm.executor.kv_storage import KEYS, VALUES, KVStorage
from minivllm.model.config import ModelConfig

TILE_KEYS = 64


class FixedTileAttention(TorchAttention):
    """The backend "torch" of an engine with `batch_invariant`, on a CPU."""

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        super().__init__(config, storage)
        self._kv_heads = config.num_kv_heads
        self._exact = torch.float64 if storage.dtype == torch.float64 else torch.float32

    def begin_step(self, metadata: AttentionMetadata) -> None:
        super().begin_step(metadata)
        self._metadata = metadata

    def _plan_work(self, metadata: AttentionMetadata, window: int | None) -> list[GatheredWork]:
        return []

    def attend(self, layer: int, query: Tensor) -> Tensor:
        out, metadata = torch.empty_like(query), self._metadata
        window = self.config.layer_windows[layer]
        for index, first in enumerate(metadata.first_seen(window).tolist()):
            keys, values = (self._tiles(layer, part, metadata, index, first) for part in (KEYS, VALUES))
            for row in range(int(metadata.query_starts[index]), int(metadata.query_starts[index + 1])):
                end = int(metadata.positions[row]) + 1
                begin = 0 if window is None else max(0, end - window)
                attended = self._attend_token(query[row], keys, values, first // TILE_KEYS, begin, end)
                out[row] = attended.to(out.dtype)
        return out

    def _tiles(self, layer: int, part: int, metadata: AttentionMetadata, index: int, first: int) -> Tensor:
        """[tiles, kv_heads, TILE_KEYS, head_dim] of one sequence, in float32 (float64 of a float64 model).

        The first one has position `first` in it. What no token of the step sees is 0: it may be anything.
        """
        end, block_size, kv_heads = int(metadata.context_lens[index]), self.storage.block_size, self._kv_heads
        positions = np.arange(first, end)
        blocks = metadata.block_tables[index, positions // block_size]
        offsets = positions[:, None] % block_size
        rows = (blocks[:, None] * kv_heads + np.arange(kv_heads)) * block_size + offsets
        begin = first // TILE_KEYS * TILE_KEYS
        num_tiles = -(-(end - begin) // TILE_KEYS)
        whole = torch.zeros(num_tiles * TILE_KEYS, kv_heads, self.config.head_dim, dtype=self._exact)
        whole[first - begin : end - begin] = self._numbers(layer, part, torch.from_numpy(rows.ravel()))
        return whole.view(num_tiles, TILE_KEYS, *whole.shape[1:]).transpose(1, 2).contiguous()

    def _numbers(self, layer: int, part: int, rows: Tensor) -> Tensor:
        """[tokens, kv_heads, head_dim] in such rows of the cells, seen as [.., head_dim]; of codes what they
        stand for."""
        head_dim = self.config.head_dim
        if self._quantized is None:
            cells = self._caches[part][layer].view(-1, head_dim).index_select(0, rows)
        else:
            cells = torch.empty(len(rows), head_dim, dtype=self._exact)
            self._quantized.gather(layer, part, rows, cells)
        return cells.view(-1, self._kv_heads, head_dim)

    def _attend_token(
        self, query: Tensor, keys: Tensor, values: Tensor, first_tile: int, begin: int, end: int
    ) -> Tensor:
        """[heads, head_dim] of one token, which sees positions `begin … end`; tiles are those of `_tiles`."""
        kv_heads, head_dim = keys.shape[1], keys.shape[3]
        own = query.to(keys.dtype).reshape(kv_heads, -1, head_dim) * head_dim**-0.5  # [kv_heads, group, d]
        largest = own.new_full((*own.shape[:2], 1), -torch.inf)
        weight_sum, total = torch.zeros_like(largest), torch.zeros_like(own)
        for number in range(begin // TILE_KEYS, (end - 1) // TILE_KEYS + 1):
            key, value = keys[number - first_tile], values[number - first_tile]
            scores = torch.matmul(own, key.transpose(1, 2))  # [kv_heads, group, TILE_KEYS]
            scores[..., : max(0, begin - number * TILE_KEYS)] = -torch.inf
            scores[..., max(0, end - number * TILE_KEYS) :] = -torch.inf
            further = torch.maximum(largest, scores.amax(-1, keepdim=True))
            weights, before = torch.exp(scores - further), torch.exp(largest - further)
            weight_sum = weight_sum * before + weights.sum(-1, keepdim=True)
            total = total * before + torch.matmul(weights, value)
            largest = further
        return (total / weight_sum).view(query.shape)
