"""The KV cache in 8 bits: codes where the numbers were, and what they are to be multiplied by.

    int8_per_token_head    cells    int8       [layers, 2, num_blocks, kv_heads, block_size, head_dim]
                           scales   float32    [layers, 2, num_blocks, kv_heads, block_size]
    fp8                    cells    uint8      as above; two scales a layer, which no block owns

A head's scale has the same block and the same offset as its codes, so whatever moves a block moves both, and
no other code needs to know: copy-on-write and swaps carry all of `by_block`; a prefix hit, a fork or a
truncation only changes tables. A row is coded when it is written and is never coded again.

Bytes of a token and head, keys and values: 2 · (d + 4) against 2 · 2d in 16 bits and 2 · 4d in 32. So nearly
twice as many tokens of a 16-bit model fit, and nearly four times as many of a 32-bit one.

Read next: `kv_format.py`, the codes; `minivllm/executor/attention/torch_backend.py`, which asks for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.executor.kv_format import AUTO, FP8, INT8, canonical, from_fp8, from_int8, to_fp8, to_int8
from minivllm.executor.kv_storage import KVStorage
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import KVScales


class QuantizedKVStorage(KVStorage, ABC):
    """What both kinds can do for a backend that attends to numbers of the model's type."""

    @abstractmethod
    def write(self, layer: int, part: int, places: Tensor, rows: Tensor) -> None:
        """Keep `rows` [n, head_dim] as codes; `places` [n] count rows of the cells, seen as [.., head_dim].

        `part` is `KEYS` or `VALUES`.
        """

    @abstractmethod
    def gather(self, layer: int, part: int, places: Tensor, out: Tensor) -> None:
        """Fill `out` [n, t · head_dim] with what the codes in `places` [n] stand for, seen in such rows."""

    def rows_of(self, layer: int, part: int, row: int) -> Tensor:
        """The codes of a layer, seen in rows of so many."""
        return (self.values[layer] if part else self.keys[layer]).view(-1, row)


class Int8KVStorage(QuantizedKVStorage):
    """Whole numbers, and a scale for each head of each token.

    Attributes:
        scales: [layers, 2, num_blocks, num_kv_heads, block_size], float32.
    """

    kv_cache_dtype = INT8

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(config, num_blocks, block_size, dtype, device)
        self.scales = torch.empty(self.cells.shape[:-1], dtype=torch.float32, device=device)

    @property
    def by_block(self) -> tuple[Tensor, ...]:
        return self.cells, self.scales

    def write(self, layer: int, part: int, places: Tensor, rows: Tensor) -> None:
        codes, scales = to_int8(rows)
        self.rows_of(layer, part, codes.shape[1]).index_copy_(0, places, codes)
        self.scales[layer, part].view(-1).index_copy_(0, places, scales)

    def gather(self, layer: int, part: int, places: Tensor, out: Tensor) -> None:
        codes = self.rows_of(layer, part, out.shape[1]).index_select(0, places)
        head_dim = self.cells.shape[-1]
        tokens = out.shape[1] // head_dim
        scales = self.scales[layer, part].view(-1, tokens).index_select(0, places)
        from_int8(codes.view(-1, tokens, head_dim), scales, out.view(-1, tokens, head_dim))


class Fp8KVStorage(QuantizedKVStorage):
    """8-bit floats; `layer_scales` are what each layer's keys and values are divided by."""

    kv_cache_dtype = FP8

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        layer_scales: Sequence[KVScales] | None = None,
    ) -> None:
        super().__init__(config, num_blocks, block_size, dtype, device)
        self.layer_scales = tuple(layer_scales or (KVScales(1.0, 1.0),) * config.num_layers)

    def write(self, layer: int, part: int, places: Tensor, rows: Tensor) -> None:
        codes = to_fp8(rows, self.layer_scales[layer][part])
        self.rows_of(layer, part, codes.shape[1]).index_copy_(0, places, codes)

    def gather(self, layer: int, part: int, places: Tensor, out: Tensor) -> None:
        codes = self.rows_of(layer, part, out.shape[1]).index_select(0, places)
        from_fp8(codes, self.layer_scales[layer][part], out)


def make_storage(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kv_cache_dtype: str = AUTO,
    layer_scales: Sequence[KVScales] | None = None,
) -> KVStorage:
    """The cache that `kv_cache_dtype` names; `layer_scales` are for 'fp8', 1 if there are none."""
    kind = config, num_blocks, block_size, dtype, device
    match canonical(kv_cache_dtype):
        case "int8_per_token_head":
            return Int8KVStorage(*kind)
        case "fp8":
            return Fp8KVStorage(*kind, layer_scales)
    return KVStorage(*kind)


def twin_of(storage: KVStorage, config: ModelConfig, num_blocks: int, device: torch.device) -> KVStorage:
    """An empty cache of the same kind, for as many blocks, there: a swap space, or another engine's."""
    return make_storage(
        config,
        num_blocks,
        storage.block_size,
        storage.dtype,
        device,
        storage.kv_cache_dtype,
        getattr(storage, "layer_scales", None),
    )
