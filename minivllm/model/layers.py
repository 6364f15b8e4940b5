"""The parts of a decoder layer: normalise, project, rotate, attend, gate; and the layer made of them.

Everything works on flattened tokens `[T, features]`: the tokens of all sequences of a step, one after
the other, with no batch dimension and no padding. Only attention cares where one sequence ends and the
next begins, and it leaves that to the attention backend.

    x ┬─ RMSNorm ─ [q k v] ─ (q/k norm) ─ rotate ─ attention ─ o ─ (+) ┬─ RMSNorm ─ [gate up] ─ down ─ (+) ─►
      └─────────────────────────────────────────────────────────────┘  └───────────────────────────────┘

Matrices that read the same input are stacked and multiplied at once ([q k v], [gate up]): fewer, larger
products, which is what small batches need. `views` tells the loader which rows belong to which name in
the checkpoint, so stacking costs no copy. How a matrix is stored is its own business (`matrix.py`); every
one begins dense, as it is here.

Papers: RMSNorm (arXiv 1910.07467), SwiGLU (2002.05202), grouped queries (2305.13245), RoFormer (2104.09864).
Read next: `minivllm/model/rotary.py` for the angles, then `minivllm/executor/attention/backend.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.config import ModelConfig
from minivllm.model.matrix import Matrix, NamedViews

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


class DecoderLayer:
    """Attention, then the gated MLP, each added to the stream it read from."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        matrix_device: torch.device | None = None,
    ) -> None:
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.attention = Attention(config, layer, dtype, device, matrix_device)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.mlp = GatedMLP(config, dtype, device, matrix_device)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = self.attention(self.input_norm(x), cos, sin, attend).add_(x)
        return self.mlp(self.post_attention_norm(x)).add_(x)

    @property
    def linears(self) -> tuple[StackedLinear, ...]:
        return tuple(linear for _, linear in self.named_linears(""))

    def named_linears(self, prefix: str) -> Iterator[tuple[str, StackedLinear]]:
        """Each with what the names of its parts begin with in the checkpoint."""
        for linear in (self.attention.qkv, self.attention.output):
            yield f"{prefix}.self_attn", linear
        for linear in (self.mlp.gate_up, self.mlp.down):
            yield f"{prefix}.mlp", linear

    @property
    def num_bytes(self) -> int:
        own = (self.input_norm, self.attention.query_norm, self.attention.key_norm, self.post_attention_norm)
        norms = sum(norm.weight.numel() * norm.weight.element_size() for norm in own if norm is not None)
        return norms + sum(linear.num_bytes for linear in self.linears)

    def views(self, prefix: str) -> NamedViews:
        yield from self.input_norm.views(f"{prefix}.input_layernorm")
        yield from self.attention.views(f"{prefix}.self_attn")
        yield from self.post_attention_norm.views(f"{prefix}.post_attention_layernorm")
        yield from self.mlp.views(f"{prefix}.mlp")


class Attention:
    """Grouped-query attention: `num_heads` queries look at `num_kv_heads` keys and values."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        matrix_device: torch.device | None = None,
    ) -> None:
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        rows = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
        places = dtype, device, matrix_device
        self.qkv = StackedLinear(config.hidden_size, rows, config.qkv_bias, *places)
        self.output = StackedLinear(query_size, {"o_proj": config.hidden_size}, config.output_bias, *places)
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype, device)
            self.key_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype, device)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.head_dim)  # [T, num_heads + 2 · num_kv_heads, head_dim]
        positional = heads[:, : -self.num_kv_heads]  # queries and keys; values carry no position
        if self.query_norm is not None and self.key_norm is not None:
            query, key = positional[:, : self.num_heads], positional[:, self.num_heads :]
            positional = torch.cat((self.query_norm(query), self.key_norm(key)), dim=1)
        rotated = rotate(positional, cos, sin)
        query, key = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
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

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        matrix_device: torch.device | None = None,
    ) -> None:
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        places = dtype, device, matrix_device
        self.gate_up = StackedLinear(size, {"gate_proj": inner, "up_proj": inner}, bias, *places)
        self.down = StackedLinear(inner, {"down_proj": size}, bias, *places)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]

    @property
    def has_silu(self) -> bool:
        """Under either of its names in a config ("silu", "swish")."""
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
        self,
        in_size: int,
        rows: dict[str, int],
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        matrix_device: torch.device | None = None,
    ) -> None:
        """`matrix_device` "meta": the matrix has no memory yet, because a loader puts in another one."""
        self.rows = rows
        """How many rows of the stack each checkpoint name has, in order."""
        self.in_size = in_size
        total = sum(rows.values())
        place = matrix_device or device
        self.matrix: Matrix = DenseMatrix(torch.empty(total, in_size, dtype=dtype, device=place))
        self.bias = torch.empty(total, dtype=dtype, device=device) if bias else None

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """The products of `x` [T, in_size], plus `added` [T, rows] if there is something to add."""
        return self.matrix.product(x, self.bias, added)

    @property
    def num_bytes(self) -> int:
        bias = 0 if self.bias is None else self.bias.numel() * self.bias.element_size()
        return self.matrix.num_bytes + bias

    def views(self, prefix: str) -> NamedViews:
        for name, view in self.matrix.views(self.rows):
            yield f"{prefix}.{name}", view
        if self.bias is not None:
            for name, bias in zip(self.rows, self.bias.split_with_sizes([*self.rows.values()]), strict=True):
                yield f"{prefix}.{name}.bias", bias


class DenseMatrix(Matrix):
    """Row after row, as a checkpoint has it. `weight` [out, in] may be shared, as tied embeddings are."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        product = functional.linear(x, self._weight, bias)
        return product if added is None else product.add_(added)

    def dense(self) -> Tensor:
        return self._weight

    def shard(self, rows: slice, columns: slice) -> DenseMatrix:
        return DenseMatrix(self._weight[rows, columns].clone(memory_format=torch.contiguous_format))

    @property
    def num_bytes(self) -> int:
        return self._weight.numel() * self._weight.element_size()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head of `x` [T, heads, head_dim] by the angles of its token's position (`rotary.py`).

    The pair (a, b) becomes (a·cos - b·sin, b·cos + a·sin). The halves swapped, `(b, a)`, times the
    sines with their signs `(-sin, sin)`, is the second summand of both at once.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)
