"""Paged attention by our own kernels (`kernels_numba/cuda`): on a GPU, or interpreted under the microscope.

Tensors are not copied for a kernel: it gets the same memory as another kind of array.

    one new token      `paged_attention`, all such sequences at once, through their block tables
    many new tokens    keys and values are gathered from their blocks, then `flash_attention_2` (float32) or
                       `flash_attention_tensor_core` (16 bits), all such sequences at once
    every token        `kv_write` into its slot; in 8 bits `kv_write_int8`, or `kv_write` of bytes

Layers with a sliding window, and prompts whose heads are too wide for tensor cores, are left to torch. With
`keep_one_order` (`batch_invariance.py`) every token is attended to as if it were generated, by one kernel, in
splits of a fixed size: what it gets depends on nothing but the tokens before it. Two backends differ only in
how a launch is carried out:

    "numba-cuda"    compiled, on torch's own stream
    "microscope"    thread by thread in Python: the whole engine on the very kernels, to test and to show
                    them; a token takes seconds

Read next: `kernels_numba/cuda/paged_attention.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cuda import flash_attention_tensor_core as tensor_core
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.kv_write import kv_write
from kernels_numba.cuda.kv_write_int8 import kv_write_int8
from kernels_numba.cuda.launch import Launch
from kernels_numba.cuda.paged_attention import (
    SPLIT_KEYS,
    choose_splits,
    num_fixed_splits,
    paged_attention,
)
from kernels_numba.cuda.tiles import HEAD_DIMS
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.attention.torch_backend import TorchAttention, to_device
from minivllm.executor.kv_format import to_fp8
from minivllm.executor.kv_storage import KEYS, VALUES, KVStorage
from minivllm.executor.quantized_storage import Fp8KVStorage, Int8KVStorage
from minivllm.model.config import ModelConfig

CACHES = {"int8_per_token_head": "int8", "fp8": "fp8"}
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
MOST_ROWS = 256
"""Tokens that are attended to at once in one order: each has results of its own for every split."""


class KernelAttention(TorchAttention):
    """What both backends share. What the kernels cannot do is left to the plain backend, their base.

    Raises:
        ValueError: heads or a type that the kernels are not made for.
    """

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        super().__init__(config, storage)
        dtype = storage.dtype
        if dtype not in DTYPES:
            raise ValueError(
                f"dtype must be float32, float16 or bfloat16 for the attention backend {self.name!r}, "
                f"got {dtype}"
            )
        if config.head_dim not in HEAD_DIMS:
            raise ValueError(
                f"the attention backend {self.name!r} needs heads of {', '.join(map(str, HEAD_DIMS))} "
                f"dimensions, and this model's have {config.head_dim}; use attention_backend='torch'"
            )
        self._dtype_name = DTYPES[dtype]
        self._cache_name = CACHES.get(storage.kv_cache_dtype, self._dtype_name)
        # float32 is computed without tensor cores; 16 bits on them, whose registers hold narrower heads.
        self._can_prefill = self._dtype_name == "float32" or config.head_dim in tensor_core.HEAD_DIMS
        self._has_windows = any(window is not None for window in config.layer_windows)
        self._split_keys: int | None = None

    def keep_one_order(self) -> None:
        """From now on a token's result is the same bits alone and in any company.

        Raises:
            ValueError: layers have sliding windows, which are torch's.
        """
        if self._has_windows:
            raise ValueError(
                f"batch_invariant must be False with the attention backend {self.name!r} and a model whose "
                "layers have sliding windows: torch attends there, in an order that depends on the batch"
            )
        self._split_keys = SPLIT_KEYS

    @abstractmethod
    def array(self, tensor: Tensor) -> Any:
        """The same memory, as kernels take it; 16-bit numbers as integers."""

    @abstractmethod
    def run(self, launches: Sequence[Launch]) -> None:
        """Carry launches out, in order."""

    def begin_step(self, metadata: AttentionMetadata) -> None:
        lengths = np.diff(metadata.query_starts)
        if self._split_keys is not None:
            self._plan_tokens(metadata, lengths)
            return
        decodes, prompts = np.flatnonzero(lengths == 1), np.flatnonzero(lengths > 1)
        if self._has_windows or (len(prompts) and not self._can_prefill):
            super().begin_step(metadata)
        self._new_slots = self._integers(metadata.slot_mapping)
        self._decode_rows: Tensor | None = to_device(metadata.query_starts[decodes], self._device)
        self._tables = self._integers(metadata.block_tables[decodes])
        self._lengths = self._integers(metadata.context_lens[decodes])
        longest = -(-int(metadata.context_lens[decodes].max(initial=0)) // self.storage.block_size)
        self._num_splits = choose_splits(len(decodes), self.config.num_kv_heads, longest)
        self._plan_prompts(metadata, prompts, lengths[prompts])

    def _plan_tokens(self, metadata: AttentionMetadata, lengths: Any) -> None:
        """Every token by itself, with as many keys as its position says, the sequence's table before it."""
        self._new_slots = self._integers(metadata.slot_mapping)
        self._decode_rows, self._longest_prompt = None, 0
        self._tables = self._integers(np.repeat(metadata.block_tables, lengths, axis=0))
        self._lengths = self._integers(metadata.positions + 1)
        self._num_splits = num_fixed_splits(metadata.block_tables.shape[1] * self.storage.block_size)

    def begin_static(self, slots: Tensor, tables: Tensor, lengths: Tensor) -> None:
        """A step in which every row decodes, whose arrays stay where they are (`runners/graphs.py`).

        Args:
            slots, lengths: [S], int32: cells to write, -1 for none; tokens of each, 0 for an empty place.
            tables: [S, most blocks], int32.
        """
        self._new_slots, self._tables, self._lengths = (self.array(t) for t in (slots, tables, lengths))
        self._decode_rows, self._longest_prompt = None, 0
        self._num_splits = choose_splits(len(lengths), self.config.num_kv_heads, tables.shape[1])

    def _plan_prompts(self, metadata: AttentionMetadata, prompts: Any, lengths: Any) -> None:
        size, kv_heads = self.storage.block_size, self.config.num_kv_heads
        rows, cells = [], []
        for sequence in prompts:
            context = int(metadata.context_lens[sequence])
            rows.append(np.arange(metadata.query_starts[sequence], metadata.query_starts[sequence + 1]))
            positions = np.arange(context)
            blocks = metadata.block_tables[sequence, positions // size]
            # Seen as rows of one head of one token: [blocks · kv_heads · block_size].
            first = (blocks[:, None] * kv_heads + np.arange(kv_heads)) * size
            cells.append(first + (positions % size)[:, None])
        self._longest_prompt = int(lengths.max(initial=0))
        if len(prompts) and self._can_prefill:
            self._prompt_rows = to_device(np.concatenate(rows), self._device)
            self._prompt_cells = to_device(np.concatenate(cells).ravel(), self._device)
            contexts = metadata.context_lens[prompts]
            self._starts_q = self._integers(np.concatenate(([0], lengths.cumsum())))
            self._starts_k = self._integers(np.concatenate(([0], contexts.cumsum())))

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        storage = self.storage
        caches = self.array(storage.keys[layer]), self.array(storage.values[layer])
        if isinstance(storage, Int8KVStorage):
            keys, values = (self.array(rows.float().contiguous()) for rows in (key, value))
            self.run([kv_write_int8(keys, values, *caches, *self._scales(layer), self._new_slots)])
            return
        if isinstance(storage, Fp8KVStorage):
            key, value = map(to_fp8, (key, value), storage.layer_scales[layer])
        self.run(
            [kv_write(self.array(key.contiguous()), self.array(value.contiguous()), *caches, self._new_slots)]
        )

    def attend(self, layer: int, query: Tensor) -> Tensor:
        if self.config.layer_windows[layer] is not None or (self._longest_prompt and not self._can_prefill):
            return super().attend(layer, query)
        if self._decode_rows is None:
            return self._decode(layer, query.float().contiguous()).to(query.dtype)
        out = torch.empty_like(query)
        if len(self._decode_rows):
            chosen = query.index_select(0, self._decode_rows).float().contiguous()
            out.index_copy_(0, self._decode_rows, self._decode(layer, chosen).to(out.dtype))
        if self._longest_prompt:
            chosen = query.index_select(0, self._prompt_rows).contiguous()
            out.index_copy_(0, self._prompt_rows, self._prefill(layer, chosen))
        return out

    def _decode(self, layer: int, query: Tensor) -> Tensor:
        out = torch.empty_like(query)
        if self._split_keys is None:
            self._decode_rows_of(layer, query, self._tables, self._lengths, out)
            return out
        for first in range(0, len(query), MOST_ROWS):
            rows = slice(first, first + MOST_ROWS)
            self._decode_rows_of(layer, query[rows], self._tables[rows], self._lengths[rows], out[rows])
        return out

    def _decode_rows_of(self, layer: int, query: Tensor, tables: Any, lengths: Any, out: Tensor) -> None:
        num_sequences, num_heads, head_dim = query.shape
        shape = (num_sequences, num_heads, self._num_splits, head_dim)
        # In one order, results of splits are always merged: one split is no other case than several.
        is_whole = self._num_splits == 1 and self._split_keys is None
        parts = out.view(shape) if is_whole else query.new_empty(shape)
        sums = query.new_empty(shape[:3])
        key_scales, value_scales = self._scales(layer)
        self.run(
            paged_attention(
                self.array(query),
                self._words(self.storage.keys[layer]),
                self._words(self.storage.values[layer]),
                tables,
                lengths,
                self.array(out),
                self.array(parts),
                self.array(sums),
                split_keys=self._split_keys,
                cache_dtype=self._cache_name,
                key_scales=key_scales,
                value_scales=value_scales,
            )
        )

    def _scales(self, layer: int) -> tuple[Any, Any]:
        """What keys and values in 8 bits are multiplied by."""
        if isinstance(self.storage, Int8KVStorage):
            scales = self.storage.scales[layer]
            return self.array(scales[KEYS]), self.array(scales[VALUES])
        if isinstance(self.storage, Fp8KVStorage):
            return self.storage.layer_scales[layer]
        return 1.0, 1.0

    def _gather_tokens(self, layer: int, part: int) -> Tensor:
        """Keys or values [tokens, kv_heads, head_dim] of all prompts, side by side, in the model's type."""
        shape = (-1, self.config.num_kv_heads, self.config.head_dim)
        if self._quantized is not None:
            out = torch.empty(
                len(self._prompt_cells), shape[2], dtype=self.storage.dtype, device=self._device
            )
            self._quantized.gather(layer, part, self._prompt_cells, out)
            return out.view(shape)
        cells = self._caches[part][layer].view(-1, shape[2])
        return cells.index_select(0, self._prompt_cells).view(shape)

    def _prefill(self, layer: int, query: Tensor) -> Tensor:
        keys, values = self._gather_tokens(layer, KEYS), self._gather_tokens(layer, VALUES)
        out = torch.empty_like(query)
        q, k, v, o = (self._words(tensor) for tensor in (query, keys, values, out))
        starts_q, starts_k, longest = self._starts_q, self._starts_k, self._longest_prompt
        if self._dtype_name == "float32":
            launch = flash_attention_2(q, k, v, o, starts_q, starts_k, longest_query=longest)
        else:
            launch = tensor_core.flash_attention_tensor_core(
                q, k, v, o, starts_q, starts_k, longest_query=longest, dtype=self._dtype_name
            )
        self.run([launch])
        return out

    def _words(self, tensor: Tensor) -> Any:
        """Narrow numbers side by side in words of 32 bits; float32 as it is."""
        array = self.array(tensor)
        return array if tensor.dtype == torch.float32 else array.view(np.uint32)

    def _integers(self, array: Any) -> Any:
        return self.array(to_device(np.ascontiguousarray(array, np.int32), self._device))


class NumbaCudaAttention(KernelAttention):
    """Compiled kernels on torch's tensors and torch's stream."""

    name = "numba-cuda"

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        if storage.keys[0].device.type != "cuda":
            raise ValueError(
                "the attention backend 'numba-cuda' needs an NVIDIA GPU, and this engine runs on "
                f"{storage.keys[0].device}; 'microscope' runs the same kernels anywhere, slowly"
            )
        super().__init__(config, storage)
        from numba import cuda

        self._cuda = cuda

    def array(self, tensor: Tensor) -> Any:
        if tensor.element_size() == 2:
            return self._cuda.as_cuda_array(tensor.view(torch.int16)).view(np.uint16)
        return self._cuda.as_cuda_array(tensor)

    def run(self, launches: Sequence[Launch]) -> None:
        stream = self._cuda.external_stream(torch.cuda.current_stream(self._device).cuda_stream)
        for launch in launches:
            launch.run(stream)


class MicroscopeAttention(KernelAttention):
    """The same kernels, thread by thread, with every access checked."""

    name = "microscope"
    MOST_ACCESSES = 10**9

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        if storage.keys[0].device.type != "cpu":
            raise ValueError("the attention backend 'microscope' runs on the CPU")
        super().__init__(config, storage)

    def array(self, tensor: Tensor) -> Any:
        if tensor.element_size() == 2:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        return tensor.numpy()

    def run(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            launch.observe(keep=False, max_accesses=self.MOST_ACCESSES).check()
