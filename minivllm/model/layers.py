"""The parts of a decoder layer: normalise, project, attend, gate.

Everything works on flattened tokens `[T, features]`: the tokens of all sequences of a step, one after
the other, with no batch dimension and no padding. Only attention cares where one sequence ends and the
next begins, and it leaves that to the attention backend.

    x ┬─ RMSNorm ─ [q k v] ─ (q/k norm) ─ rotate ─ attention ─ o ─ (+) ┬─ RMSNorm ─ [gate up] ─ down ─ (+) ─►
      └─────────────────────────────────────────────────────────────┘  └───────────────────────────────┘

Matrices that read the same input are stacked and multiplied at once ([q k v], [gate up]): fewer, larger
products, which is what small batches need. `views` tells the loader which rows belong to which name in
the checkpoint, so stacking costs no copy.

Papers: RMSNorm (arXiv 1910.07467), SwiGLU (2002.05202), grouped queries (2305.13245).
Read next: `minivllm/model/decoder.py`, then `minivllm/executor/attention/backend.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.config import ModelConfig
from minivllm.model.packed import PackedMatrix
from minivllm.model.rotary import rotate

NamedViews = Iterator[tuple[str, Tensor]]

_tanh_gelu = partial(functional.gelu, approximate="tanh")
ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


class Attend(Protocol):
    """What a layer asks of the attention backend: store these keys and values, then attend to all so far."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class RMSNorm:
    """Divide each vector by its root mean square, then scale each feature.

    The mean is taken in float32 and the result rounded *before* the scale, as `transformers` does it:
    the order is visible in 16-bit logits, and float64 logits agree to 1e-9 only because both round here.
    """

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        normed = functional.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return normed.to(x.dtype).mul_(self.weight)

    def views(self, prefix: str) -> NamedViews:
        yield f"{prefix}.weight", self.weight


class StackedLinear:
    """`y = x Wᵀ (+ b)` for one or more checkpoint matrices that share their input, stacked by rows."""

    def __init__(
        self, in_size: int, rows: dict[str, int], bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = rows
        """How many rows of the stack each checkpoint name has, in order."""
        total = sum(rows.values())
        self.weight = torch.empty(total, in_size, dtype=dtype, device=device)
        self.bias = torch.empty(total, dtype=dtype, device=device) if bias else None
        self.packed: PackedMatrix | None = None

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """The products of `x` [T, in_size], plus `added` [T, rows] if there is something to add."""
        if self.packed is not None:
            return self.packed.product(x, self.bias, added)
        product = functional.linear(x, self.weight, self.bias)
        return product if added is None else product.add_(added)

    def pack(self, make: Callable[[Tensor], PackedMatrix]) -> None:
        """Keep the weights in another order only: to be read, and changed no more."""
        if self.packed is None:
            self.packed, self.weight = make(self.weight), self.weight.new_empty(0)

    def dense(self) -> Tensor:
        """The weights row by row, as a copy if they are packed."""
        return self.weight if self.packed is None else self.packed.dense()

    def views(self, prefix: str) -> NamedViews:
        weight = self.dense()
        start = 0
        for name, size in self.rows.items():
            yield f"{prefix}.{name}.weight", weight[start : start + size]
            if self.bias is not None:
                yield f"{prefix}.{name}.bias", self.bias[start : start + size]
            start += size


class Attention:
    """Grouped-query attention: `num_heads` queries look at `num_kv_heads` keys and values."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        rows = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv = StackedLinear(config.hidden_size, rows, config.qkv_bias, dtype, device)
        self.output = StackedLinear(
            query_size, {"o_proj": config.hidden_size}, config.output_bias, dtype, device
        )
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype, device)
            self.key_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype, device)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.head_dim)  # [T, num_heads + 2 · num_kv_heads, head_dim]
        turned = heads[:, : -self.num_kv_heads]  # queries and keys; values carry no position
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turned[:, : self.num_heads], turned[:, self.num_heads :]
            turned = torch.cat((self.query_norm(query), self.key_norm(key)), dim=1)
        turned = rotate(turned, cos, sin)
        query, key = turned[:, : self.num_heads], turned[:, self.num_heads :]
        value = heads[:, -self.num_kv_heads :]
        attended = attend(self.layer, query, key, value)  # [T, num_heads, head_dim]
        return self.output(attended.reshape(len(x), -1))

    def views(self, prefix: str) -> NamedViews:
        yield from self.qkv.views(prefix)
        yield from self.output.views(prefix)
        if self.query_norm is not None and self.key_norm is not None:
            yield from self.query_norm.views(f"{prefix}.q_norm")
            yield from self.key_norm.views(f"{prefix}.k_norm")


class GatedMLP:
    """`down(act(gate(x)) · up(x))`: one half of the stacked product decides how much of the other passes."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up = StackedLinear(size, {"gate_proj": inner, "up_proj": inner}, bias, dtype, device)
        self.down = StackedLinear(inner, {"down_proj": size}, bias, dtype, device)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]

    @property
    def has_silu(self) -> bool:
        """Whatever name the config has for it."""
        return self.activation is functional.silu

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.gated(self.gate_up(x)))

    def gated(self, gate_up: Tensor) -> Tensor:
        """What is left of the products [T, 2 · intermediate_size] once one half has gated the other."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.activation(gate).mul_(up)

    def views(self, prefix: str) -> NamedViews:
        yield from self.gate_up.views(prefix)
        yield from self.down.views(prefix)
