"""The hot path of a CPU: the same decoder in fewer passes over memory. The plain twin is `Decoder.forward`.

    x ─ norm ─ [q k v] ─ turn + write KV ─ attention ─ o (+x) ─ norm ─ [gate up] ─ gate ─ down (+x) ─►
        numba   oneDNN        numba          numba     oneDNN   numba    oneDNN    numba   oneDNN

Why it is fast, in three sentences. The matrices lie in the order that the processor wants (`packed.py`), and
what is added to a product is added while it is still in registers. Everything between two products is one
compiled pass over each row (`kernels_numba/cpu/rows.py`) where torch would take five to ten. Keys and values
go from the product straight into their cells of the cache, and attention reads them there.

Read next: `kernels_numba/cpu/rows.py`, then `minivllm/executor/attention/numba_cpu_backend.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels_numba.cpu import rows
from minivllm.model.decoder import Decoder
from minivllm.model.layers import RMSNorm


@dataclass(frozen=True, slots=True)
class Turn:
    """What turns the queries and keys of a step, as arrays of the kernel: see `rows.turn_rows`."""

    cos: Any
    sin: Any
    """[T, head_dim / 2] each, float32."""
    query_weight: Any
    key_weight: Any
    """[head_dim] of the norms of one layer's heads, or [0]."""
    eps: np.float32


class AttendProjected(Protocol):
    """What the fused decoder asks of attention: take projected tokens, turn and store them, attend."""

    def projected(self, layer: int, qkv: Tensor, turn: Turn) -> Tensor:
        """`qkv` [T, num_heads + 2 · num_kv_heads, head_dim], not yet turned, to [T, num_heads, head_dim]."""


class FusedDecoder:
    """A decoder's `forward` for a CPU, in float32 or bfloat16. It packs the decoder's weights.

    Intermediate results are rounded to the model's type less often than in the plain twin, so bfloat16
    differs in the last bits; float32 agrees as closely as sums in another order do.
    """

    def __init__(self, decoder: Decoder) -> None:
        decoder.pack()
        self.decoder = decoder
        self._no_weight = as_array(decoder.embedding[:0, 0])
        self._has_silu = decoder.config.hidden_act in ("silu", "swish")

    def forward(
        self, token_ids: Tensor, positions: Tensor, attention: AttendProjected, rows: Tensor | None = None
    ) -> Tensor:
        """The last hidden state of `token_ids` [T] at `positions` [T]: [T, hidden_size], or only `rows`.

        Behind the last attention nobody looks at the other rows any more, so they end there.
        """
        decoder, head_dim = self.decoder, self.decoder.config.head_dim
        if rows is not None and len(rows) == len(token_ids):
            rows = None  # all of them, as in every step that only decodes
        cos, sin = (table.numpy() for table in decoder.rotary.pairs(positions, decoder.dtype))
        x = functional.embedding(token_ids, decoder.embedding)
        for number, layer in enumerate(decoder.layers):
            own = layer.attention
            turn = Turn(
                cos,
                sin,
                self._weight(own.query_norm),
                self._weight(own.key_norm),
                np.float32(decoder.norm.eps),
            )
            qkv = own.qkv(self._norm(x, layer.input_norm)).view(len(x), -1, head_dim)
            attended = attention.projected(number, qkv, turn)
            if rows is not None and number == len(decoder.layers) - 1:
                attended, x = attended[rows], x[rows]
            x = own.output(attended.flatten(1), added=x)
            gate_up = layer.mlp.gate_up(self._norm(x, layer.post_attention_norm))
            x = layer.mlp.down(self._gate(gate_up, layer.mlp.activation), added=x)
        return self._norm(x, decoder.norm)

    def _norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        out = torch.empty_like(x)
        weight = as_array(norm.weight)
        rows.norm(as_array(x), weight, np.float32(norm.eps), as_array(out), torch.get_num_threads())
        return out

    def _gate(self, gate_up: Tensor, activation: Any) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        if not self._has_silu:
            return activation(gate).mul_(up)  # type: ignore[no-any-return]
        out = torch.empty(gate.shape, dtype=gate.dtype)
        rows.gate(as_array(gate_up), as_array(out), torch.get_num_threads())
        return out

    def _weight(self, norm: RMSNorm | None) -> Any:
        return self._no_weight if norm is None else as_array(norm.weight)


def as_array(tensor: Tensor) -> Any:
    """The same memory; a bfloat16 as the 16 bits that it is."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
