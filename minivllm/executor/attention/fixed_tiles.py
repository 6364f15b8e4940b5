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

TILE_KEYS = 64


class FixedTileAttention(TorchAttention):
    """The backend "torch" of an engine with `batch_invariant`, on a CPU."""

    def begin_step(self, metadata: AttentionMetadata) -> None:
        super().begin_step(metadata)
        self._metadata = metadata

    def _plan_work(self, metadata: AttentionMetadata, window: int | None) -> list[GatheredWork]:
        return []

    def attend(self, layer: int, query: Tensor) -> Tensor:
        out, metadata = torch.empty_like(query), self._metadata
        window = self.config.layer_windows[layer]
        for index, first in enumerate(metadata.first_seen(window).tolist()):
            keys = self._tiles(self.storage.keys[layer], metadata, index, first)
            values = self._tiles(self.storage.values[layer], metadata, index, first)
            for row in range(int(metadata.query_starts[index]), int(metadata.query_starts[index + 1])):
                end = int(metadata.positions[row]) + 1
                begin = 0 if window is None else max(0, end - window)
                attended = self._attend_token(query[row], keys, values, first // TILE_KEYS, begin, end)
                out[row] = attended.to(out.dtype)
        return out

    def _tiles(self, cache: Tensor, metadata: AttentionMetadata, index: int, first: int) -> Tensor:
        """[tiles, kv_heads, TILE_KEYS, head_dim] of one sequence, in float32 (float64 of a float64 model).

        The first one has position `first` in it. What no token of the step sees is 0: it may be anything.
        """
        end, block_size = int(metadata.context_lens[index]), self.storage.block_size
        positions = np.arange(first, end)
        blocks = torch.from_numpy(metadata.block_tables[index, positions // block_size])
        cells = cache[blocks, :, torch.from_numpy(positions % block_size)]  # [n, kv_heads, head_dim]
        begin = first // TILE_KEYS * TILE_KEYS
        num_tiles = -(-(end - begin) // TILE_KEYS)
        exact = torch.float64 if cache.dtype == torch.float64 else torch.float32
        whole = torch.zeros(num_tiles * TILE_KEYS, *cells.shape[1:], dtype=exact)
        whole[first - begin : end - begin] = cells
        return whole.view(num_tiles, TILE_KEYS, *cells.shape[1:]).transpose(1, 2).contiguous()

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
