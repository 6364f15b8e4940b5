"""The decoder: token ids in, one vector per token out, logits for the rows that need them.

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

Read next: `minivllm/model/layers.py` for a layer, `minivllm/executor/runners/eager.py`, which calls this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.config import ModelConfig
from minivllm.model.layers import Attend, DecoderLayer, DenseMatrix, RMSNorm
from minivllm.model.matrix import Matrix, NamedViews
from minivllm.model.rotary import RotaryEmbedding


class KVScales(NamedTuple):
    """What a layer's keys and values are divided by before they are kept in 8 bits."""

    key: float
    value: float


class Decoder:
    """A causal language model. Its weights are uninitialised memory until a loader fills `views()`.

    On the device "meta" it takes no memory, and only its names and shapes are real.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        *,
        tied: bool | None = None,
        matrix_device: torch.device | None = None,
    ) -> None:
        """An empty decoder.

        Args:
            tied: overrides `config.tie_word_embeddings`: whether logits use the embedding matrix.
            matrix_device: where the matrices of linear layers are, if not on `device`: on "meta", if a
                loader puts others in their places.
        """
        self.config = config
        self.dtype = dtype
        self.rotary = RotaryEmbedding(config, device)
        rows = config.vocab_size, config.hidden_size
        self.embedding = torch.empty(rows, dtype=dtype, device=device)
        self.layers = [
            DecoderLayer(config, index, dtype, device, matrix_device) for index in range(config.num_layers)
        ]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
        self.tied = config.tie_word_embeddings if tied is None else tied
        place = matrix_device or device
        head = self.embedding if self.tied else torch.empty(rows, dtype=dtype, device=place)
        self.head: Matrix = DenseMatrix(head)
        self.kv_scales: tuple[KVScales | None, ...] = (None,) * config.num_layers
        """For each layer what a checkpoint says of keys and values in 8 bits; nothing, as a rule."""
        self.quantization: str | None = None
        """The method by which its weights are stored as small numbers (`quantization/names.py`)."""
        self.decode_weights: Decoder | None = None
        """A rounded copy for generated tokens (`quantization/decode_weights.py`)."""

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
        logits = self.head.product(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    @property
    def lm_head(self) -> Tensor:
        """The last matrix row by row; a copy unless it is stored so. A tied one is the embedding itself."""
        return self.embedding if self.tied else self.head.dense()

    def convert(self, make: Callable[[Tensor], Matrix]) -> None:
        """Store every dense matrix in another format, which `make` builds from its rows [out, in].

        The rows are freed, those of a tied embedding excepted: tokens are still looked up there. Quantised
        matrices stay as they are.
        """
        for layer in self.layers:
            for linear in layer.linears:
                if not linear.matrix.is_quantized:
                    linear.matrix = make(linear.matrix.dense())
        if not self.head.is_quantized:
            self.head = make(self.lm_head)

    def replace(self, other: Callable[[Matrix], Matrix]) -> None:
        """Put what `other` makes of each matrix in its place; a tied head is left alone."""
        for layer in self.layers:
            for linear in layer.linears:
                linear.matrix = other(linear.matrix)
        if not self.tied:
            self.head = other(self.head)

    @property
    def is_quantized(self) -> bool:
        """Is any matrix stored as small numbers?"""
        linears = (linear for layer in self.layers for linear in layer.linears)
        return self.head.is_quantized or any(linear.matrix.is_quantized for linear in linears)

    def views(self) -> NamedViews:
        """Every weight under its name in the checkpoint: write into these tensors to load the model."""
        yield "model.embed_tokens.weight", self.embedding
        for index, layer in enumerate(self.layers):
            yield from layer.views(f"model.layers.{index}")
        yield from self.norm.views("model.norm")
        if not self.tied:
            yield from self.head.views({"lm_head": self.config.vocab_size})

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take, a tied matrix counted once, in the format they are stored in; with
        a copy for generated tokens, of both."""
        layers, output = self.step_bytes
        copy = 0 if self.decode_weights is None else self.decode_weights.num_own_bytes
        return layers + copy + self.embedding.numel() * self.dtype.itemsize + (0 if self.tied else output)

    @property
    def step_bytes(self) -> tuple[int, int]:
        """What a step reads of the weights, as they are stored: of the layers, and of the output matrix."""
        layers = sum(layer.num_bytes for layer in self.layers)
        return layers + self.norm.weight.numel() * self.dtype.itemsize, self.head.num_bytes

    @property
    def num_own_bytes(self) -> int:
        """As the copy of another decoder, whose embedding and norms it shares: what its matrices take."""
        own = sum(linear.matrix.num_bytes for layer in self.layers for linear in layer.linears)
        # An untied output matrix is rounded, too, or put in an order of its own by each runner.
        return own + (0 if self.tied else self.head.num_bytes)
