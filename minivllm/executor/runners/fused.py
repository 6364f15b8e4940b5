"""The decoder in fewer passes over memory, with oneDNN's products: a runner for a CPU.

It computes what `compiled.py` leaves to it: large steps in bfloat16 where a processor has units for matrices
(AMX), and models that there is no compiled step for (another activation, windows in some layers, quantised
weights: those are in panels of their own, `quantized_panels.py`).

    x ─ norm ─ [q k v] ─ rotate + write KV ─ attention ─ o (+x) ─ norm ─ [gate up] ─ gate ─ down (+x) ─►
        numba   oneDNN         numba           numba     oneDNN   numba    oneDNN    numba   oneDNN

Why it is fast, in three sentences. The matrices lie in the order that the processor wants (`packed.py`), and
what is added to a product is added while it is still in registers. Everything between two products is one
compiled pass over each row (`kernels_numba/cpu/rows.py`) where torch would take five to ten. Keys and values
go from the product straight into their cells of the cache, and attention reads them there.

Numbers of rows are rounded up, so that few different ones occur (`rounded_up`); attention sees the real ones.
The plain twin is `eager.py`. Read next: `kernels_numba/cpu/rows.py`, then
`minivllm/executor/attention/numba_cpu_backend.py`.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels_numba.cpu import rows
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention, Rotation
from minivllm.executor.padding import AttentionWithoutPadding, pad_rows
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.executor.runners.quantized_panels import compile_products, in_panels
from minivllm.model.decoder import Decoder
from minivllm.model.layers import GatedMLP
from minivllm.model.packed import OneDnnMatrix, as_array, can_pack
from minivllm.model.rotary import AngleTable


class FusedRunner(ModelRunner):
    """A decoder's steps on a CPU, in float32 or bfloat16. It converts the decoder's matrices to oneDNN's.

    Intermediate results are rounded to the model's type less often than in the plain twin, so bfloat16
    differs in the last bits; float32 agrees as closely as sums in another order do.
    """

    def __init__(self, decoder: Decoder, attention: NumbaCpuAttention) -> None:
        if can_pack(decoder.dtype):
            decoder.convert(OneDnnMatrix)
        if decoder.is_quantized:
            decoder.replace(in_panels)
            compile_products(decoder.dtype)
        attention.compile()
        self.decoder = decoder
        self.attention = attention
        self._angles = AngleTable(decoder.rotary, decoder.dtype)
        self._eps = np.float32(decoder.norm.eps)
        no_weight = as_array(decoder.embedding[:0, 0])
        self._norms = [
            [
                no_weight if norm is None else as_array(norm.weight)
                for norm in (
                    layer.input_norm,
                    layer.attention.query_norm,
                    layer.attention.key_norm,
                    layer.post_attention_norm,
                )
            ]
            for layer in decoder.layers
        ]
        """Weights of each layer's norms, seen as arrays once."""

    def run(self, metadata: AttentionMetadata, num_padding: int) -> Tensor:
        attention = self.attention
        began = perf_counter()
        attention.begin_step(metadata)
        attention.seconds = perf_counter() - began
        hidden = self.forward(metadata, num_padding)
        logits = self._compute_logits(hidden)
        self.attention_seconds = attention.seconds
        return logits

    def forward(self, metadata: AttentionMetadata, num_padding: int = 0) -> Tensor:
        """The last hidden states [wanted rows, hidden_size] of a step.

        After the last layer's attention only the rows whose logits are wanted are computed further.
        """
        decoder, count = self.decoder, metadata.num_tokens
        padding = rounded_up(count + num_padding) - count
        wanted: Tensor | None = torch.from_numpy(metadata.logit_rows)
        num_wanted = len(metadata.logit_rows)
        if num_wanted == count + num_padding:
            wanted = None  # all of them, as in every step that only decodes
        token_ids, positions = pad_rows(torch.from_numpy(metadata.token_ids), padding), metadata.positions
        attention: NumbaCpuAttention | AttentionWithoutPadding = self.attention
        if padding:
            attention = AttentionWithoutPadding(self.attention, count, padding)
        pairs = self._angles.upto(positions)
        self._num_threads = torch.get_num_threads()
        x = functional.embedding(token_ids, decoder.embedding)
        for number, (layer, norms) in enumerate(zip(decoder.layers, self._norms, strict=True)):
            own, (before, query_norm, key_norm, between) = layer.attention, norms
            qkv = own.qkv(self._norm(x, before))
            rotation = Rotation(pairs, positions, query_norm, key_norm, self._eps)
            attended = attention.projected(number, qkv, rotation)
            if wanted is not None and number == len(decoder.layers) - 1:
                wanted = pad_rows(wanted, rounded_up(num_wanted) - num_wanted)
                attended, x = attended[wanted], x[wanted]
            x = own.output(attended.flatten(1), added=x)
            gate_up = layer.mlp.gate_up(self._norm(x, between))
            x = layer.mlp.down(self._gate(gate_up, layer.mlp), added=x)
        return self._norm(x, as_array(decoder.norm.weight))[:num_wanted]

    def _compute_logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens [n, vocab_size] after `hidden` [n, hidden_size], in float32."""
        if padding := rounded_up(len(hidden)) - len(hidden):
            return self.decoder.compute_logits(functional.pad(hidden, (0, 0, 0, padding)))[: len(hidden)]
        return self.decoder.compute_logits(hidden)

    def _norm(self, x: Tensor, weight: Any) -> Tensor:
        out = torch.empty_like(x)
        rows.norm(as_array(x), weight, self._eps, as_array(out), self._num_threads)
        return out

    def _gate(self, gate_up: Tensor, mlp: GatedMLP) -> Tensor:
        if not mlp.has_silu:
            return mlp.gated(gate_up)
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        rows.gate(as_array(gate_up), as_array(out), self._num_threads)
        return out


def rounded_up(num_rows: int) -> int:
    """So many rows are computed instead, the last ones for nothing.

    oneDNN generates code for each number of rows that it meets, which takes as long as many steps do, and
    keeps that of some hundred numbers. Small ones repeat by themselves; prompts hardly ever would.
    """
    if num_rows <= 64:
        return num_rows
    step = 16 if num_rows <= 256 else 64
    return -(-num_rows // step) * step
