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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu import panels, rows
from kernels_numba.cpu.coded_cells import write_codes
from kernels_numba.cpu.vectors import FEATURES
from kernels_numba.cpu.whole_step import AttentionWork, attend
from minivllm.executor.attention.cpu_work import NO_ITEMS, NO_TILES, plan_attention
from minivllm.executor.attention.metadata import AttentionMetadata, IntArray
from minivllm.executor.attention.torch_backend import GatheredWork, TorchAttention
from minivllm.executor.cpu_hazards import FUSED, code_kind, compiling, set_numba_threads
from minivllm.executor.kv_storage import KEYS, VALUES, KVStorage
from minivllm.executor.quantized_storage import Fp8KVStorage, Int8KVStorage, QuantizedKVStorage
from minivllm.model.config import ModelConfig
from minivllm.model.packed import DTYPES, as_array


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
        self._arrays = [cells_of(storage, layer) for layer in range(config.num_layers)]
        self._scale = np.float32(config.head_dim**-0.5)
        self._own_work: dict[int | None, AttentionWork] = {}
        # Where the processor multiplies matrices of bfloat16 by itself, torch's products are hard to beat.
        self._torch_prompts = has_matrix_units(self._dtype)

    def keep_one_order(self) -> None:
        self._torch_prompts = False

    def begin_step(self, metadata: AttentionMetadata) -> None:
        self._num_threads = set_numba_threads()
        super().begin_step(metadata)

    def _plan_work(self, metadata: AttentionMetadata, window: int | None) -> list[GatheredWork]:
        """What is left for torch."""
        work = plan_attention(metadata, window, self.config, self._num_threads)
        for_torch: list[GatheredWork] = []
        if self._torch_prompts:
            work = work._replace(tiles=work.tiles[:0])
            for_torch = super()._plan_work(metadata, window)
        self._own_work[window] = work
        return for_torch

    def _plan_decodes(
        self, metadata: AttentionMetadata, window: int | None, first_seen: IntArray, num_blocks: IntArray
    ) -> list[GatheredWork]:
        return []

    def attend(self, layer: int, query: Tensor) -> Tensor:
        query = query.contiguous()
        out = super().attend(layer, query) if self._torch_prompts else torch.empty_like(query)
        work = self._own_work[self.config.layer_windows[layer]]
        attend(as_array(query), *self._arrays[layer], work, as_array(out), self._scale)
        return out

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        if isinstance(self.storage, QuantizedKVStorage):
            keys, values = (as_array(new.contiguous()) for new in (key, value))
            write_codes(keys, values, self._slots, *self._arrays[layer], self._num_threads)
        else:
            super().write(layer, key, value)

    def projected(self, layer: int, qkv: Tensor, rotation: Rotation) -> Tensor:
        """As `__call__`, for tokens that are projected but not rotated yet (`runners/fused.py`).

        `qkv` is [T, (num_heads + 2 · num_kv_heads) · head_dim].
        """
        began = perf_counter()
        heads = self.config.num_heads
        query = torch.empty((len(qkv), heads, self.config.head_dim), dtype=qkv.dtype)
        if self._quantized is None:
            slots, (keys, values) = self._slots, self._arrays[layer]
        else:  # rotated keys are coded afterwards: here each token is a block of its own
            new = qkv.new_empty(2, len(qkv), self.config.num_kv_heads, 1, self.config.head_dim)
            slots, (keys, values) = np.arange(len(qkv)), (as_array(new[KEYS]), as_array(new[VALUES]))
        rows.rotate(
            as_array(qkv), *rotation, slots, keys, values, as_array(query), self._num_threads,
        )  # fmt: skip
        if self._quantized is not None:
            self.write(layer, new[KEYS].squeeze(2), new[VALUES].squeeze(2))
        attended = self.attend(layer, query)
        self.seconds += perf_counter() - began
        return attended

    def compile(self) -> None:
        """What a fused step calls, before the first one: once for each type, then it is found on disk."""
        dtype = as_array(torch.empty(0, dtype=self._dtype)).dtype
        row = np.zeros((0, self.config.num_heads, self.config.head_dim), dtype)
        none, no_tables = np.zeros(0, np.int64), np.zeros((0, 1), np.int64)
        nothing = AttentionWork(none, no_tables, *NO_ITEMS, no_tables, *NO_TILES)
        with compiling(code_kind(self._dtype, FUSED, self.storage.kv_cache_dtype)) as prepare:
            prepare(attend, row, *self._arrays[0], nothing, row, self._scale)
            if isinstance(self.storage, QuantizedKVStorage):
                prepare(write_codes, row, row, none, *self._arrays[0], 1)
            rows.compile_all(row.dtype, prepare)
            panel, out = panels.pack(np.zeros((1, 2), row.dtype)), np.zeros((0, panels.WIDTH), np.float32)
            prepare(panels.multiply, np.zeros((0, 2), row.dtype), panel, out, False, 1)


def cells_of(storage: KVStorage, layer: int) -> tuple[Any, Any]:
    """Keys and values of a layer as kernels take them (`kernels_numba/cpu/coded_cells.py`)."""
    keys, values = as_array(storage.keys[layer]), as_array(storage.values[layer])
    if isinstance(storage, Int8KVStorage):
        scales = storage.scales[layer].numpy()
        return (keys, scales[KEYS]), (values, scales[VALUES])
    if isinstance(storage, Fp8KVStorage):
        key_scale, value_scale = map(np.float32, storage.layer_scales[layer])
        return (keys, key_scale), (values, value_scale)
    return keys, values


class Rotation(NamedTuple):
    """What rotates queries and keys, as arrays of the kernel: see `rows.rotate_rows`."""

    pairs: Any
    positions: Any
    query_weight: Any
    key_weight: Any
    eps: np.float32


def has_matrix_units(dtype: torch.dtype) -> bool:
    """Has this processor matrix units for this type, which only oneDNN, torch's library, knows how to use?"""
    return dtype == torch.bfloat16 and bool(FEATURES.get("amx-bf16"))
