"""The decoder: token ids in, one vector per token out, logits for those who ask.

One class serves Llama, Mistral, Qwen2 and Qwen3; what differs between them is data in `ModelConfig`.
It holds weights and nothing else: no cache, no batch, no step. Keys and values go to whatever `attend`
is handed in, so the same decoder runs over paged memory, contiguous memory, or none.

    token_ids [T] ── embed ── layer 0 ── … ── layer n-1 ── norm ──► hidden [T, hidden_size]
                                  │ attend(layer, q, k, v)
                                  ▼
                        the attention backend and its KV cache

    hidden[rows] ── lm_head ──► logits [len(rows), vocab_size]

Logits are a separate call because few tokens need them: a prompt of a thousand tokens wants one row,
and the output matrix is often the largest of all.

Read next: `minivllm/executor/torch_executor.py`, which calls it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.config import ModelConfig
from minivllm.model.layers import Attend, Attention, GatedMLP, NamedViews, RMSNorm
from minivllm.model.packed import OneDnnMatrix, PackedMatrix, can_pack
from minivllm.model.rotary import RotaryEmbedding


class Decoder:
    """A causal language model. Its weights are uninitialised memory until a loader fills `views()`."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: torch.device, *, tied: bool | None = None
    ) -> None:
        """`tied` overrides `config.tie_word_embeddings`: whether logits use the embedding matrix."""
        self.config = config
        self.dtype = dtype
        self.rotary = RotaryEmbedding(config, device)
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [DecoderLayer(config, index, dtype, device) for index in range(config.num_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.tied = config.tie_word_embeddings if tied is None else tied
        self.lm_head = self.embedding if self.tied else torch.empty_like(self.embedding)
        self.packed_head: PackedMatrix | None = None

    def forward(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None
    ) -> Tensor:
        """The last hidden state of `token_ids` [T] at `positions` [T]: [T, hidden_size], or only `rows`."""
        cos, sin = self.rotary.angles(positions, self.dtype)
        x = functional.embedding(token_ids, self.embedding)
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        return self.norm(x if rows is None else x[rows])

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens [n, vocab_size] after `hidden` [n, hidden_size], in float32 or float64."""
        if self.packed_head is not None:
            logits = self.packed_head.product(hidden, None)
        else:
            logits = functional.linear(hidden, self.lm_head)
        return logits if logits.dtype == torch.float64 else logits.float()

    def pack(self, make: Callable[[Tensor], PackedMatrix] = OneDnnMatrix) -> None:
        """Put all matrices in another order; by default in oneDNN's, where that is possible."""
        if make is OneDnnMatrix and not (self.embedding.device.type == "cpu" and can_pack(self.dtype)):
            return
        for layer in self.layers:
            for linear in (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down):
                linear.pack(make)
        self.pack_head(make)

    def pack_head(self, make: Callable[[Tensor], PackedMatrix]) -> None:
        """The last matrix. A tied one is still needed, row by row; another is kept in that order only."""
        if self.packed_head is None:
            self.packed_head = make(self.lm_head)
            if not self.tied:
                self.lm_head = self.lm_head.new_empty(0)

    def views(self) -> NamedViews:
        """Every weight under its name in the checkpoint: write into these tensors to load the model."""
        yield "model.embed_tokens.weight", self.embedding
        for index, layer in enumerate(self.layers):
            yield from layer.views(f"model.layers.{index}")
        yield from self.norm.views("model.norm")
        if not self.tied:
            yield "lm_head.weight", self.dense_head()

    def dense_head(self) -> Tensor:
        """The last matrix row by row, as a copy if it is packed and not tied."""
        return self.lm_head if self.tied or self.packed_head is None else self.packed_head.dense()

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(view.numel() * view.element_size() for _, view in self.views())


class DecoderLayer:
    """Attention, then the gated MLP, each added to the stream it read from."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, device: torch.device) -> None:
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.attention = Attention(config, layer, dtype, device)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.mlp = GatedMLP(config, dtype, device)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = self.attention(self.input_norm(x), cos, sin, attend).add_(x)
        return self.mlp(self.post_attention_norm(x)).add_(x)

    def views(self, prefix: str) -> NamedViews:
        yield from self.input_norm.views(f"{prefix}.input_layernorm")
        yield from self.attention.views(f"{prefix}.self_attn")
        yield from self.post_attention_norm.views(f"{prefix}.post_attention_layernorm")
        yield from self.mlp.views(f"{prefix}.mlp")
