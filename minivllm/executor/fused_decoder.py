"""The decoder in fewer passes over memory, with oneDNN's products. The plain twin is `Decoder.forward`.

It computes what `compiled_steps.py` leaves to it: large steps in bfloat16 where a processor has units for
matrices (AMX), and models that there is no compiled step for (another activation, windows in some layers).

    x ─ norm ─ [q k v] ─ turn + write KV ─ attention ─ o (+x) ─ norm ─ [gate up] ─ gate ─ down (+x) ─►
        numba   oneDNN        numba          numba     oneDNN   numba    oneDNN    numba   oneDNN

Why it is fast, in three sentences. The matrices lie in the order that the processor wants (`packed.py`), and
what is added to a product is added while it is still in registers. Everything between two products is one
compiled pass over each row (`kernels_numba/cpu/rows.py`) where torch would take five to ten. Keys and values
go from the product straight into their cells of the cache, and attention reads them there.

Numbers of rows are rounded up, so that few different ones occur (`rounded_up`); attention sees the real ones.

Read next: `kernels_numba/cpu/rows.py`, then `minivllm/executor/attention/numba_cpu_backend.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels_numba.cpu import rows
from minivllm.executor.padding import AttentionWithoutPadding, pad_rows
from minivllm.model.decoder import Decoder
from minivllm.model.layers import GatedMLP
from minivllm.model.packed import as_array


class Turn(NamedTuple):
    """What turns queries and keys, as arrays of the kernel: see `rows.turn_rows`."""

    pairs: Any
    positions: Any
    query_weight: Any
    key_weight: Any
    eps: np.float32


class AttendProjected(Protocol):
    """What the fused decoder asks of attention: take projected tokens, turn and store them, attend."""

    def projected(self, layer: int, qkv: Tensor, turn: Turn) -> Tensor:
        """`qkv` [T, (num_heads + 2 · num_kv_heads) · head_dim], not turned, to [T, num_heads, head_dim]."""


class FusedDecoder:
    """A decoder's `forward` for a CPU, in float32 or bfloat16. It packs the decoder's weights.

    Intermediate results are rounded to the model's type less often than in the plain twin, so bfloat16
    differs in the last bits; float32 agrees as closely as sums in another order do.
    """

    def __init__(self, decoder: Decoder) -> None:
        decoder.pack()
        self.decoder = decoder
        self._angles = AngleTable(decoder)
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

    def forward(
        self, token_ids: Tensor, positions: Tensor, attention: AttendProjected, rows: Tensor | None = None
    ) -> Tensor:
        """The last hidden state of `token_ids` [T] at `positions` [T]: [T, hidden_size], or only `rows`.

        Behind the last attention nobody looks at the other rows any more, so they end there.
        """
        decoder, count = self.decoder, len(token_ids)
        if rows is not None and len(rows) == count:
            rows = None  # all of them, as in every step that only decodes
        num_wanted = count if rows is None else len(rows)
        if padding := rounded_up(count) - count:
            token_ids, positions = pad_rows(token_ids, padding), pad_rows(positions, padding)
            attention = AttentionWithoutPadding(attention, count, padding)
        places = positions.numpy()
        pairs = self._angles.upto(places)
        self._num_threads = torch.get_num_threads()
        x = functional.embedding(token_ids, decoder.embedding)
        for number, (layer, norms) in enumerate(zip(decoder.layers, self._norms, strict=True)):
            own, (before, query_norm, key_norm, between) = layer.attention, norms
            qkv = own.qkv(self._norm(x, before))
            turn = Turn(pairs, places, query_norm, key_norm, self._eps)
            attended = attention.projected(number, qkv, turn)
            if rows is not None and number == len(decoder.layers) - 1:
                rows = pad_rows(rows, rounded_up(num_wanted) - num_wanted)
                attended, x = attended[rows], x[rows]
            x = own.output(attended.flatten(1), added=x)
            gate_up = layer.mlp.gate_up(self._norm(x, between))
            x = layer.mlp.down(self._gate(gate_up, layer.mlp), added=x)
        return self._norm(x, as_array(decoder.norm.weight))[:num_wanted]

    def compute_logits(self, hidden: Tensor) -> Tensor:
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


class AngleTable:
    """Cosines and sines of positions, kept from step to step; it grows as sequences do."""

    def __init__(self, decoder: Decoder) -> None:
        self._rotary, self._dtype = decoder.rotary, decoder.dtype
        self._pairs = decoder.rotary.table(0, decoder.dtype).numpy()

    def upto(self, positions: Any) -> Any:
        """[at least the largest of `positions` + 1, 2, head_dim / 2], float32."""
        needed = int(positions.max(initial=-1)) + 1
        if needed > len(self._pairs):
            self._pairs = self._rotary.table(max(256, 2 * needed), self._dtype).numpy()
        return self._pairs


def rounded_up(num_rows: int) -> int:
    """So many rows are computed instead, the last ones for nothing.

    oneDNN generates code for each number of rows that it meets, which takes as long as many steps do, and
    keeps that of some hundred numbers. Small ones repeat by themselves; prompts hardly ever would.
    """
    if num_rows <= 64:
        return num_rows
    step = 16 if num_rows <= 256 else 64
    return -(-num_rows // step) * step
