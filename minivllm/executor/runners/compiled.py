"""The hot path of a CPU: a runner whose steps are one compiled call (`kernels_numba/cpu/whole_step.py`).

What CUDA graphs are to a GPU (`graphs.py`), this is to a CPU: the same step without a call from Python
between its stages; and as nothing is recorded, prompts and decoding sequences may be in it in any number. The
plain twin is `eager.py` with the backend `torch`.

Why it is fast, in three sentences. The matrices lie in panels, in the order in which products read them, so a
step takes as long as memory needs to deliver them once, or the processor to multiply, whichever is longer.
Attention reads keys and values where they lie, block by block. And what lies between the stages is kept in
the same arrays from step to step, so that no memory has to be asked for.

The decoder's matrices are then in panels only, and unpacked where their rows are asked for. Quantised ones
are in panels of their own (`quantized_panels.py`, `float8_panels.py`); each may be of another kind. Where a
processor has units for matrices of this type (AMX, bfloat16), oneDNN's products are faster for many rows:
there the fused runner (`fused.py`) computes those steps, and a copy in panels serves the small ones.

Read next: `kernels_numba/cpu/whole_step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels_numba.cpu.matrix_packing import Packed, pack_dense
from kernels_numba.cpu.matrix_products import DENSE, KIND, quantized_product
from kernels_numba.cpu.panels import multiply, pack, padded, unpack
from kernels_numba.cpu.whole_step import ATTENTION, STAGES, Batch, Scratch, Weights, make_scratch, whole_step
from minivllm.executor.attention.cpu_work import plan_attention
from minivllm.executor.attention.metadata import AttentionMetadata, IntArray
from minivllm.executor.cpu_hazards import STEP, code_kind, compiling, set_numba_threads
from minivllm.executor.kv_format import AUTO
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.quantized_storage import Fp8KVStorage, Int8KVStorage
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.executor.runners.packed_matrix import PackedMatrix
from minivllm.executor.runners.quantized_panels import (
    can_lie_in_panels,
    compile_products,
    in_panels,
    rounds_apart,
)
from minivllm.model.decoder import Decoder
from minivllm.model.layers import DecoderLayer, RMSNorm, StackedLinear
from minivllm.model.matrix import Matrix
from minivllm.model.packed import as_array, as_tensor
from minivllm.model.rotary import AngleTable

MAX_COPY_BYTES = 512 << 20
"""Weights that are worth a copy, where a copy is needed."""
MAX_COPIED_TOKENS = 8
"""Tokens of the steps that the copy serves."""
SERIAL_PRODUCTS = 3 << 20
"""Multiplications of a step that one thread does alone: waking another would take longer than it helps."""
MIN_CAPACITY = 64
"""Tokens that there is room for from the start."""


class CompiledRunner(ModelRunner):
    """Whole steps of one decoder over one cache. It converts the decoder's matrices to panels.

    Args:
        is_copy: leave the decoder's matrices as they are, and keep a copy in panels for small steps only.

    Attributes:
        seconds: of each of `STAGES`, in the latest step.
    """

    def __init__(self, decoder: Decoder, storage: KVStorage, *, is_copy: bool = False) -> None:
        config = decoder.config
        self.config = config
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._is_copy = is_copy
        self._angles = AngleTable(decoder.rotary, decoder.dtype)
        self._cells = _all_cells(storage)
        self._kv_cache_dtype, self._dtype = storage.kv_cache_dtype, as_array(decoder.embedding[:0]).dtype
        self._window = config.layer_windows[0]
        self._eps, self._scale = np.float32(decoder.norm.eps), np.float32(config.head_dim**-0.5)
        self._weights, self._kept = gather_weights(decoder, is_copy)
        self._products_per_token = sum(packed.num_products for packed in self._kept)
        self._room = self._make_room(MIN_CAPACITY)
        self._compile(decoder.dtype)

    def supports(self, metadata: AttentionMetadata, num_padding: int) -> bool:
        return not self._is_copy or metadata.num_tokens + num_padding <= MAX_COPIED_TOKENS

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        num_tokens = metadata.num_tokens + num_padding
        num_threads = self._prepare(num_tokens)
        work = plan_attention(metadata, self._window, self.config, num_threads)
        batch = Batch(
            np.pad(metadata.token_ids, (0, num_padding)) if num_padding else metadata.token_ids,
            self._angles.upto(metadata.positions),
            metadata.positions,
            metadata.slot_mapping,
            metadata.logit_rows,
            work,
        )
        clock = np.zeros(len(STAGES), np.int64)
        logits = torch.empty(len(metadata.logit_rows), padded(self.config.vocab_size))
        if self.on_kernel:
            self.on_kernel()
        began = perf_counter()
        self._call(batch, num_threads, logits, clock)
        tick = (perf_counter() - began) / max(1, int(clock.sum()))
        self.seconds = {stage: int(ticks) * tick for stage, ticks in zip(STAGES, clock, strict=True)}
        self.attention_seconds = self.seconds[STAGES[ATTENTION]]
        return logits[:, : self.config.vocab_size]

    def continue_greedily(self, metadata: AttentionMetadata, count: int, block_size: int) -> IntArray:
        """One step becomes the next in place: for a small model, planning takes as long as computing."""
        num_threads = self._prepare(metadata.num_tokens)
        if num_threads > 1 or self._window is not None:  # then it is divided anew each time
            return super().continue_greedily(metadata, count, block_size)
        work = plan_attention(metadata, self._window, self.config, num_threads)
        lengths = work.items[:, 2]
        tokens, positions = metadata.token_ids.copy(), metadata.positions.copy()
        slots, tables, rows = metadata.slot_mapping.copy(), metadata.block_tables, metadata.logit_rows
        batch = Batch(tokens, self._angles.upto(positions + count), positions, slots, rows, work)
        logits = torch.empty(len(rows), padded(self.config.vocab_size))
        told = logits.numpy()[:, : self.config.vocab_size]
        found, clock = np.empty((count, len(rows)), np.int64), np.zeros(len(STAGES), np.int64)
        for step in range(count):
            self._call(batch, num_threads, logits, clock)
            tokens[:] = found[step] = told.argmax(axis=1)
            lengths += 1
            positions += 1
            if step + 1 < count:
                slots[:] = tables[rows, positions // block_size] * block_size + positions % block_size
        return found

    def _prepare(self, num_tokens: int) -> int:
        """Make room for a step of so many tokens; returns the threads that it is worth."""
        if num_tokens > len(self._room.x):
            self._room = self._make_room(max(num_tokens, 2 * len(self._room.x)))
        is_small = num_tokens * self._products_per_token <= SERIAL_PRODUCTS
        return set_numba_threads(1 if is_small else None)

    def _call(self, batch: Batch, num_threads: int, logits: Tensor, clock: Any) -> None:
        whole_step(*self._arguments(batch, num_threads, logits, clock))

    def _arguments(self, batch: Batch, num_threads: int, logits: Tensor, clock: Any) -> tuple[Any, ...]:
        return (
            batch, self._cells, self._weights, self._room, self._eps, self._scale, num_threads,
            logits.numpy(), clock,
        )  # fmt: skip

    def _make_room(self, num_tokens: int) -> Scratch:
        config = self.config
        return make_scratch(
            num_tokens, config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim,
            config.intermediate_size, self._dtype, self._kv_cache_dtype != AUTO,
        )  # fmt: skip

    def _compile(self, dtype: torch.dtype) -> None:
        """Once for each type of numbers on a machine, for a step without tokens; then it is found on disk."""
        none = np.zeros(0, np.int64)
        empty = AttentionMetadata(
            none, none, none, np.zeros(1, np.int64), none, np.zeros((0, 1), np.int64), none
        )
        work = plan_attention(empty, self._window, self.config, 1)
        batch = Batch(none, self._angles.upto(none), none, none, none, work)
        logits = torch.empty(0, padded(self.config.vocab_size))
        with compiling(code_kind(dtype, STEP, self._kv_cache_dtype)) as prepare:
            prepare(whole_step, *self._arguments(batch, 1, logits, np.zeros(len(STAGES), np.int64)))


def _all_cells(storage: KVStorage) -> Any:
    """Keys and values of all layers, as the step takes them."""
    cells = as_array(storage.cells)
    if isinstance(storage, Int8KVStorage):
        return cells, storage.scales.numpy()
    return (cells, np.array(storage.layer_scales, np.float32)) if isinstance(storage, Fp8KVStorage) else cells


class PanelMatrix(Matrix):
    """A matrix in panels. The compiled step reads them by itself, `fused.py` by `product`."""

    def __init__(self, panels: Any, weight: Tensor) -> None:
        """`panels` hold `weight` [out, in], row after row; the last panel may be padded."""
        self._panels = panels
        self.packed = pack_dense(panels, *weight.shape)
        self._num_rows = len(weight)
        self._num_bytes = weight.numel() * weight.element_size()

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`, summed in float32 and rounded once; a row alone is as it is among others."""
        out = torch.zeros(len(x), padded(self._num_rows))
        sums = out[:, : self._num_rows]
        for term in (bias, added):
            if term is not None:
                sums += term
        multiply(as_array(x.contiguous()), self._panels, out.numpy(), False, set_numba_threads())
        return sums.to(x.dtype).contiguous()

    def dense(self) -> Tensor:
        return as_tensor(unpack(self._panels, self._num_rows))

    @property
    def num_bytes(self) -> int:
        return self._num_bytes


def can_be_packed(decoder: Decoder) -> bool:
    """Can compiled steps multiply by all its matrices?"""
    matrices = [linear.matrix for layer in decoder.layers for linear in layer.linears]
    return all(_can_be_packed(matrix) for matrix in [*matrices, decoder.head])


def _can_be_packed(matrix: Matrix) -> bool:
    if matrix.is_quantized:
        return can_lie_in_panels(matrix) and not rounds_apart(matrix)
    weight = matrix.dense()
    return weight.dtype == torch.float32 or weight.shape[1] % 2 == 0  # pairs of bfloat16


def pack_matrix(matrix: Matrix) -> PanelMatrix | PackedMatrix:
    """The same matrix, as compiled steps take it."""
    panels = in_panels(matrix) if matrix.is_quantized else _in_dense_panels(matrix.dense())
    assert isinstance(panels, PanelMatrix | PackedMatrix)
    return panels


def _in_dense_panels(weight: Tensor) -> PanelMatrix:
    return PanelMatrix(pack(as_array(weight)), weight)


def _product_of(dtype: torch.dtype, matrices: list[Packed]) -> int:
    """`Weights.quantized`; it is compiled if one of the matrices needs it."""
    if all(matrix.row[KIND] == DENSE for matrix in matrices):
        return 0
    compile_products(dtype)
    return quantized_product(as_array(torch.empty(0, dtype=dtype)).dtype)


def gather_weights(decoder: Decoder, is_copy: bool) -> tuple[Weights, list[Packed]]:
    """The decoder's weights, layer by layer, and the matrices among them, which must be kept.

    Its matrices then lie in panels only, unless it is a copy.
    """
    layers = decoder.layers
    kept: list[Packed] = []

    def stack(part: Callable[[DecoderLayer], Tensor | None]) -> Any:
        parts = [tensor for layer in layers if (tensor := part(layer)) is not None]
        return as_array(torch.stack(parts) if parts else decoder.embedding.new_empty(len(layers), 0))

    def scale(part: Callable[[DecoderLayer], RMSNorm | None]) -> Any:
        return stack(lambda layer: None if (norm := part(layer)) is None else norm.weight)

    def matrices(part: Callable[[DecoderLayer], StackedLinear]) -> Any:
        rows = []
        for linear in map(part, layers):
            matrix = pack_matrix(linear.matrix)
            kept.append(matrix.packed)
            rows.append(matrix.packed.row)
            if not is_copy:
                linear.matrix = matrix
        return np.stack(rows)

    head = _in_dense_panels(decoder.lm_head) if decoder.tied else pack_matrix(decoder.head)
    kept.append(head.packed)
    weights = Weights(
        embedding=as_array(decoder.embedding),
        input_norm=scale(lambda layer: layer.input_norm),
        qkv=matrices(lambda layer: layer.attention.qkv),
        qkv_bias=stack(lambda layer: layer.attention.qkv.bias),
        query_norm=scale(lambda layer: layer.attention.query_norm),
        key_norm=scale(lambda layer: layer.attention.key_norm),
        output=matrices(lambda layer: layer.attention.output),
        output_bias=stack(lambda layer: layer.attention.output.bias),
        mlp_norm=scale(lambda layer: layer.post_attention_norm),
        gate_up=matrices(lambda layer: layer.mlp.gate_up),
        gate_up_bias=stack(lambda layer: layer.mlp.gate_up.bias),
        down=matrices(lambda layer: layer.mlp.down),
        down_bias=stack(lambda layer: layer.mlp.down.bias),
        norm=as_array(decoder.norm.weight),
        head=head.packed.row,
        quantized=_product_of(decoder.dtype, kept),
    )
    if not is_copy:
        decoder.head = head
    return weights, kept
