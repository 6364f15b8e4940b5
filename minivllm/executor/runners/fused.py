"""The decoder in fewer passes over memory, stage by stage: a runner for a CPU.

It computes what `compiled.py` leaves to it: large steps in bfloat16 where a processor has units for matrices
(AMX), and models that there is no compiled step for (another activation, windows in some layers, quantised
weights: those are in panels of their own, `quantized_panels.py`).

    x ─ norm ─ [q k v] ─ rotate + write KV ─ attention ─ o (+x) ─ norm ─ [gate up] ─ gate ─ down (+x) ─►
        numba  product         numba           numba    product  numba   product     numba  product

Products are those of our panels, whose rows do not depend on each other (`docs/batch-invariance.md`). Only
where a processor has matrix units, which oneDNN alone knows how to use, are they oneDNN's: it chooses by the
number of rows in which order to sum, so `batch_invariant` has panels there, too.

Why it is fast, in three sentences. The matrices lie in the order that the processor wants, and
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
from kernels_numba.cpu.panels import pack
from minivllm.executor.attention.metadata import AttentionMetadata
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention, Rotation, has_matrix_units
from minivllm.executor.padding import AttentionWithoutPadding, pad_rows
from minivllm.executor.runners.compiled import PanelMatrix
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.executor.runners.quantized_panels import compile_products, in_panels
from minivllm.executor.runners.row_groups import in_row_groups
from minivllm.model.decoder import Decoder
from minivllm.model.layers import GatedMLP
from minivllm.model.packed import OneDnnMatrix, as_array, can_pack
from minivllm.model.rotary import AngleTable


class FusedRunner(ModelRunner):
    """A decoder's steps on a CPU, in float32 or bfloat16. It converts the decoder's matrices to oneDNN's.

    Intermediate results are rounded to the model's type less often than in the plain twin, so bfloat16
    differs in the last bits; float32 agrees as closely as sums in another order do.
    """

    def __init__(
        self, decoder: Decoder, attention: NumbaCpuAttention, *, batch_invariant: bool = False
    ) -> None:
        self.attention, self._batch_invariant = attention, batch_invariant
        attention.compile()
        if has_matrix_units(decoder.dtype) and can_pack(decoder.dtype) and not batch_invariant:
            decoder.convert(OneDnnMatrix)
        else:
            decoder.convert(lambda weight: PanelMatrix(pack(as_array(weight)), weight))
        if decoder.is_quantized:
            decoder.replace(in_panels)
            compile_products(decoder.dtype)
        if batch_invariant:
            decoder.replace(in_row_groups)
        self.decoder = decoder
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
        if not mlp.has_silu and self._batch_invariant:  # torch computes the last numbers of an array apart
            return torch.cat([mlp.gated(row) for row in torch.split(gate_up, 1)])
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
