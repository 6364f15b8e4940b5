"""Plain torch, a fixed number of rows at a time: a row's numbers do not depend on how many others there are.

A library chooses by the shape of a product in which order to sum: a row alone and the same row among others
differ in their last bits. It cannot choose if the shape is always the same:

    rows of a step     0 … 15 │ 16 … 31 │ 32 33 · · ·        the last group is padded, and cut again
    each group         norm ─ q k v ─ rotate                 then attention for all (`fixed_tiles.py`)
                       output ─ norm ─ MLP ─ …

What is left is the place of a row within its group. That is found out by trying: a group of equal rows must
come out equal, through all layers; if it does not, groups are made smaller, in the end of one row.

Source: He et al., "Defeating Nondeterminism in LLM Inference" (2025); `docs/batch-invariance.md` tells the
price. Read next: `eager.py`, the runner where this is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.padding import AttentionWithoutPadding
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.model.decoder import Decoder
from minivllm.model.layers import DecoderLayer, rotate
from minivllm.model.matrix import Matrix
from minivllm.model.quantization.dequantized_matrix import DequantizedMatrix
from minivllm.model.quantization.stacked_matrix import StackedMatrix

GROUP_SIZES = (16, 8, 4, 2, 1)
"""Of rows, the first that keeps the promise is taken."""


def in_groups(size: int, function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """`function` of every `size` rows of the arrays, side by side; 0 behind the last ones."""
    count = len(arrays[0])
    padding = -count % size
    padded = [functional.pad(array, [0, 0] * (array.ndim - 1) + [0, padding]) for array in arrays]
    groups = zip(*(torch.split(array, size) for array in padded), strict=True)
    return torch.cat([function(*group) for group in groups])[:count]


class RowGroupRunner(ModelRunner):
    """`EagerRunner`, in groups of rows. The attention backend keeps the promise by itself."""

    def __init__(self, decoder: Decoder, attention: AttentionBackend) -> None:
        self.decoder, self.attention = decoder, attention
        self._device = attention.storage.device
        self.group_size = next(size for size in GROUP_SIZES if self._keeps_promise(size))

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        attention = self.attention
        began = perf_counter()
        attention.begin_step(metadata)
        attention.seconds = perf_counter() - began
        attend: AttentionBackend | AttentionWithoutPadding = attention
        if num_padding:
            attend = AttentionWithoutPadding(attention, metadata.num_tokens, num_padding)
        token_ids, positions, rows = (
            torch.from_numpy(array).to(self._device)
            for array in (metadata.token_ids, metadata.positions, metadata.logit_rows)
        )
        pad = [0, num_padding]
        logits = self._forward(functional.pad(token_ids, pad), functional.pad(positions, pad), attend, rows)
        self.attention_seconds = attention.seconds
        return logits

    def _forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: AttentionBackend | AttentionWithoutPadding,
        rows: Tensor,
    ) -> Tensor:
        decoder, size = self.decoder, self.group_size
        x = functional.embedding(token_ids, decoder.embedding)
        for layer in decoder.layers:
            own = layer.attention
            qkv = in_groups(size, lambda x, at, layer=layer: self._project(layer, x, at), x, positions)
            query, key, value = qkv.split_with_sizes([own.num_heads, own.num_kv_heads, own.num_kv_heads], 1)
            attended = attend(own.layer, query, key, value).flatten(1)
            x = in_groups(size, lambda x, a, layer=layer: self._finish(layer, x, a), x, attended)
        if not len(rows):
            return decoder.compute_logits(x[rows])
        return in_groups(size, lambda x: decoder.compute_logits(decoder.norm(x)), x[rows])

    def _project(self, layer: DecoderLayer, x: Tensor, positions: Tensor) -> Tensor:
        """Queries, keys and values of one group, side by side: [size, heads + 2 · kv_heads, head_dim]."""
        cos, sin = self.decoder.rotary.angles(positions, self.decoder.dtype)
        own = layer.attention
        heads = own.qkv(layer.input_norm(x)).view(len(x), -1, own.head_dim)
        query, key, value = heads.split_with_sizes([own.num_heads, own.num_kv_heads, own.num_kv_heads], 1)
        if own.query_norm is not None and own.key_norm is not None:
            query, key = own.query_norm(query), own.key_norm(key)
        return torch.cat((rotate(torch.cat((query, key), dim=1), cos, sin), value), dim=1)

    @staticmethod
    def _finish(layer: DecoderLayer, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention in a layer, for one group."""
        x = layer.attention.output(attended).add_(x)
        return layer.mlp(layer.post_attention_norm(x)).add_(x)

    @torch.inference_mode()
    def _keeps_promise(self, size: int) -> bool:
        """Do equal rows come out equal, wherever they are in a group?"""
        config, dtype = self.decoder.config, self.decoder.dtype
        generator = torch.Generator().manual_seed(size)

        def rows(width: int) -> Tensor:
            return torch.randn(1, width, generator=generator).to(self._device, dtype).repeat(size, 1)

        def is_same(array: Tensor) -> bool:
            return torch.equal(array, array[:1].expand_as(array))

        x, attended = rows(config.hidden_size), rows(config.num_heads * config.head_dim)
        positions = torch.full((size,), 1001, device=self._device)
        if size == 1:
            return True
        for layer in self.decoder.layers:
            if not is_same(self._project(layer, x, positions)) or not is_same(
                self._finish(layer, x, attended)
            ):
                return False
        return is_same(self.decoder.compute_logits(self.decoder.norm(x)))


class RowGroupMatrix(Matrix):
    """A matrix whose products are torch's, in groups of rows; for a runner whose other ones are our own."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._size = next(size for size in GROUP_SIZES if self._keeps_promise(size))

    @property
    def is_quantized(self) -> bool:
        return self._matrix.is_quantized

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        product = in_groups(self._size, lambda rows: self._matrix.product(rows, bias), x)
        return product if added is None else product.add_(added)

    def dense(self) -> Tensor:
        return self._matrix.dense()

    @property
    def num_bytes(self) -> int:
        return self._matrix.num_bytes

    def _keeps_promise(self, size: int) -> bool:
        dense = self._matrix.dense()
        row = torch.randn(1, dense.shape[1], generator=torch.Generator().manual_seed(size)).to(dense.dtype)
        product = self._matrix.product(row.repeat(size, 1))
        return torch.equal(product, product[:1].expand_as(product))


def in_row_groups(matrix: Matrix) -> Matrix:
    """The same matrix; if its products are torch's, in groups of rows."""
    if isinstance(matrix, StackedMatrix):
        return StackedMatrix([in_row_groups(part) for part in matrix.parts], matrix.sizes)
    return RowGroupMatrix(matrix) if isinstance(matrix, DequantizedMatrix) else matrix
