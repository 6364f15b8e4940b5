"""Attention on a CPU by our own kernels.

The plain backend (`torch_backend.py`) has to copy a sequence's blocks side by side before torch can attend to
them. Decoding is nothing but reading keys and values, so that copy is most of its time, and it is some of a
prompt's. Here the kernels read keys and values where they are, block by block.

    many new tokens    `kernels_numba/cpu/paged_prefill.py`: matrix products that stay in registers
    one new token      `kernels_numba/cpu/paged_decode.py`: as fast as memory can be read

Read next: `kernels_numba/cpu/paged_decode.py`.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu import paged_decode, paged_prefill, rows
from kernels_numba.cpu.tile_product import FEATURES
from minivllm.executor.attention.metadata import AttentionMetadata, IntArray
from minivllm.executor.attention.torch_backend import GatheredWork, TorchAttention
from minivllm.executor.fused_decoder import FusedDecoder, Turn, as_array
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.small_batches import SmallBatches
from minivllm.hazards import compiling, set_numba_threads
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.packed import DTYPES


class NumbaCpuAttention(TorchAttention):
    """Compiled decoding; see the module's docstring.

    Raises:
        ValueError: the cache is on a GPU, or its type is not float32 or bfloat16.
    """

    name = "numba-cpu"

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        super().__init__(config, storage)
        if self._device.type != "cpu":
            raise ValueError(
                f"the attention backend 'numba-cpu' needs the CPU; this engine runs on {self._device}"
            )
        if self._dtype not in DTYPES:
            raise ValueError(
                "dtype must be float32 or bfloat16 for the attention backend 'numba-cpu', got "
                f"{self._dtype}; use attention_backend='torch'"
            )
        self._caches = [(as_array(k), as_array(v)) for k, v in zip(storage.keys, storage.values, strict=True)]
        self._scale = np.float32(config.head_dim**-0.5)
        self._items: dict[int | None, tuple[Any, Any]] = {}
        self._tiles: dict[int | None, tuple[Any, Any]] = {}
        # Where the processor multiplies matrices of bfloat16 by itself, torch's products are hard to beat.
        self._torch_prompts = self._dtype == torch.bfloat16 and bool(FEATURES.get("amx-bf16"))
        self._compile()

    def whole_steps(self, decoder: Decoder) -> SmallBatches | None:
        return SmallBatches(decoder, self.storage) if SmallBatches.fits(decoder) else None

    def tuned(self, decoder: Decoder) -> FusedDecoder:
        return FusedDecoder(decoder)

    def begin_step(self, metadata: AttentionMetadata) -> None:
        self._num_threads = set_numba_threads()
        new_tokens = np.diff(metadata.query_starts)
        self._decoding, self._prompts = np.flatnonzero(new_tokens == 1), np.flatnonzero(new_tokens > 1)
        self._rows = torch.from_numpy(metadata.query_starts[self._decoding])
        self._all_decode = len(self._decoding) == metadata.num_tokens
        self._tables = metadata.block_tables[self._decoding]
        self._prompt_tables = metadata.block_tables[self._prompts]
        super().begin_step(metadata)

    def _plan_work(self, metadata: AttentionMetadata, window: int | None) -> list[GatheredWork]:
        """What is left for torch."""
        if len(self._decoding):
            self._items[window] = paged_decode.plan_items(
                metadata.first_seen(window)[self._decoding],
                metadata.context_lens[self._decoding],
                self.config.num_kv_heads,
                self._num_threads,
                self.storage.block_size,
            )
        if self._torch_prompts:
            return super()._plan_work(metadata, window)
        if len(self._prompts):
            starts = metadata.query_starts[self._prompts]
            self._tiles[window] = paged_prefill.plan_tiles(
                starts,
                metadata.query_starts[self._prompts + 1] - starts,
                metadata.positions[starts],
                self.config.num_kv_heads,
                self.config.num_heads // self.config.num_kv_heads,
                window,
                self._num_threads,
            )
        return []

    def _plan_decodes(
        self, metadata: AttentionMetadata, window: int | None, first_seen: IntArray, num_blocks: IntArray
    ) -> list[GatheredWork]:
        return []

    def attend(self, layer: int, query: Tensor) -> Tensor:
        if self._all_decode:
            return self._decode(layer, query)
        query = query.contiguous()
        out = super().attend(layer, query)
        if len(self._prompts) and not self._torch_prompts:
            self._prefill(layer, query, out)
        if len(self._decoding):
            out.index_copy_(0, self._rows, self._decode(layer, query.index_select(0, self._rows)))
        return out

    def projected(self, layer: int, qkv: Tensor, turn: Turn) -> Tensor:
        """As `__call__`, for tokens that are projected but not turned (`fused_decoder.py`)."""
        began = perf_counter()
        heads = self.config.num_heads
        query = torch.empty((len(qkv), heads, self.config.head_dim), dtype=qkv.dtype)
        rows.turn(
            as_array(qkv), *turn, self._slots, *self._caches[layer], as_array(query), self._num_threads,
        )  # fmt: skip
        attended = self.attend(layer, query)
        self.seconds += perf_counter() - began
        return attended

    def _decode(self, layer: int, query: Tensor) -> Tensor:
        query = query.contiguous()
        out = torch.empty_like(query)
        items, starts = self._items[self.config.layer_windows[layer]]
        paged_decode.paged_decode(
            as_array(query), *self._caches[layer], self._tables, items, starts, as_array(out), self._scale
        )
        return out

    def _prefill(self, layer: int, query: Tensor, out: Tensor) -> None:
        items, shares = self._tiles[self.config.layer_windows[layer]]
        paged_prefill.paged_prefill(
            as_array(query),
            *self._caches[layer],
            self._prompt_tables,
            items,
            shares,
            as_array(out),
            self._scale,
        )

    def _compile(self) -> None:
        """Once for each type of cache on a machine; afterwards it is found on disk. Never within a step."""
        shape = (1, self.config.num_heads, self.config.head_dim)
        query, out = (np.zeros(shape, self._caches[0][0].dtype) for _ in range(2))
        small = [cache[:1] for cache in self._caches[0]]
        small = [np.zeros_like(cache) for cache in small]
        items, starts = paged_decode.plan_items(
            np.array([0]), np.array([1]), small[0].shape[1], 1, small[0].shape[2]
        )
        with compiling("attention and what is around it"):
            paged_decode.paged_decode(
                query, *small, np.zeros((1, 1), np.int64), items, starts, out, self._scale
            )
            items, shares = paged_prefill.plan_tiles([0], [1], [0], small[0].shape[1], 1, None, 1)
            paged_prefill.paged_prefill(
                query, *small, np.zeros((1, 1), np.int64), items[:0], shares * 0, out, self._scale
            )
            rows.compile_all(query.dtype)
