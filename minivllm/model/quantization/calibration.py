"""A model's decoder run layer by layer over texts, and what its matrices see on the way.

    texts ──► token ids ──► embed ──► layer 0 ──► layer 1 ──► …       hidden states of all samples, one layer
                                        │                             at a time: no step, no cache, no batch
                            a watched matrix tells of its inputs

The decoder's own layers compute; only attention is plain and without a cache (`causal_attention`), because a
sample is read once, whole. A matrix is watched by standing in its place (`Matrix` is a seam): it hands each
input on to an observer and then multiplies as before.

Read next: `quantize_layers.py`, which quantises each layer on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.layers import Attend, DecoderLayer, StackedLinear
from minivllm.model.matrix import Matrix

Observer = Callable[[Tensor], None]


class LayerRunner:
    """Runs single layers of a decoder over whole samples, in float32."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._attend = causal_attention(decoder.config)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """[tokens, hidden]"""
        ids = torch.tensor(token_ids, device=self.decoder.embedding.device)
        return functional.embedding(ids, self.decoder.embedding).float()

    def layer(self, layer: DecoderLayer, hidden: Tensor) -> Tensor:
        """What the layer makes of a sample's `hidden` [tokens, hidden]."""
        return layer(hidden, *self._angles(hidden), self._attend)

    def attention(self, layer: DecoderLayer, normed: Tensor) -> Tensor:
        """What its attention alone makes of a sample [tokens, hidden] that is normed already."""
        return layer.attention(normed, *self._angles(normed), self._attend)

    def _angles(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(len(hidden), device=hidden.device)
        return self.decoder.rotary.angles(positions, hidden.dtype)


def causal_attention(config: ModelConfig) -> Attend:
    """Attention over one whole sample, which begins at position 0; as far back as the layer's window."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[tokens, heads, head_dim] of queries, and of keys and values with their fewer heads."""
        window, length = config.layer_windows[layer], len(query)
        q, k, v = (heads.transpose(0, 1)[None] for heads in (query, key, value))
        mask = None
        if window is not None and window < length:
            distance = torch.arange(length)[:, None] - torch.arange(length)
            mask = ((distance >= 0) & (distance < window)).to(query.device)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return attended[0].transpose(0, 1)

    return attend


class WatchedMatrix(Matrix):
    """Another matrix, whose inputs are told to an observer."""

    def __init__(self, matrix: Matrix, observer: Observer) -> None:
        self._matrix, self._observer = matrix, observer

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        self._observer(x)
        return self._matrix.product(x, bias, added)

    def dense(self) -> Tensor:
        return self._matrix.dense()

    @property
    def num_bytes(self) -> int:
        return self._matrix.num_bytes


@contextmanager
def watched(observers: dict[StackedLinear, Observer]) -> Iterator[None]:
    """While this lasts, each linear layer's inputs [tokens, in] go to its observer, too."""
    matrices = {linear: linear.matrix for linear in observers}
    for linear, observer in observers.items():
        linear.matrix = WatchedMatrix(linear.matrix, observer)
    try:
        yield
    finally:
        for linear, matrix in matrices.items():
            linear.matrix = matrix


class InputStatistics:
    """What calibration keeps of a matrix's inputs, however many tokens there are.

    Attributes:
        moments: Σ x xᵀ [in, in], if they are wanted; the algorithms ask for nothing else about pairs.
        num_tokens: how many inputs there were.
    """

    def __init__(self, num_inputs: int, *, moments: bool = True) -> None:
        self.moments = torch.zeros(num_inputs, num_inputs) if moments else torch.zeros(0, 0)
        self._sum = torch.zeros(num_inputs)
        self.largest = torch.zeros(num_inputs)
        self.num_tokens = 0

    def observe(self, x: Tensor) -> None:
        """Take in inputs [tokens, in]."""
        if len(self.moments):
            self.moments.addmm_(x.T, x)
        size = x.abs()
        self._sum += size.sum(dim=0)
        torch.maximum(self.largest, size.amax(dim=0), out=self.largest)
        self.num_tokens += len(x)

    @property
    def mean(self) -> Tensor:
        """mean|x| of each channel [in]."""
        return self._sum / max(self.num_tokens, 1)

    def divide(self, scales: Tensor) -> None:
        """What the statistics are once each channel of the inputs is divided by `scales` [in]."""
        self._sum, self.largest = self._sum / scales, self.largest / scales
        if len(self.moments):
            self.moments.div_(scales).div_(scales[:, None])


class _SeenAll(Exception):
    """Nothing that a layer has still to compute is of interest."""


@dataclass
class LayerSamples:
    """What arrives at one layer.

    Attributes:
        hidden: for each sample to calibrate with, [tokens, hidden].
        validation: the same for samples that are kept apart.
    """

    runner: LayerRunner
    layer: DecoderLayer
    hidden: list[Tensor]
    validation: list[Tensor]

    def observe(
        self, linears: Sequence[StackedLinear], *, moments: bool = True, validation: bool = False
    ) -> dict[StackedLinear, InputStatistics]:
        """Run the layer as far as the last of these matrices, and tell what arrives at each."""
        seen = {
            linear: InputStatistics(linear.matrix.dense().shape[1], moments=moments) for linear in linears
        }
        last = next(linear for linear in reversed(self.layer.linears) if linear in seen)

        def observe_and_end(x: Tensor) -> None:
            seen[last].observe(x)
            raise _SeenAll

        observers: dict[StackedLinear, Observer] = {linear: found.observe for linear, found in seen.items()}
        with watched(observers | {last: observe_and_end}):
            for sample in self.validation if validation else self.hidden:
                with suppress(_SeenAll):
                    self.runner.layer(self.layer, sample)
        return seen

    def attention_inputs(self, most_tokens: int) -> list[Tensor]:
        """The first few samples, normed, as attention gets them [tokens, hidden]."""
        return [self.layer.input_norm(sample) for sample in first_samples(self.hidden, most_tokens)]

    def mlp_inputs(self, most_tokens: int) -> Tensor:
        """What the MLP makes its products of, for the first few samples: [tokens, hidden]."""
        kept: list[Tensor] = []
        with watched({self.layer.mlp.gate_up: kept.append}):
            for sample in first_samples(self.hidden, most_tokens):
                self.runner.layer(self.layer, sample)
        return torch.cat(kept)


def first_samples(samples: Sequence[Tensor], most_tokens: int) -> list[Tensor]:
    """As many samples, at least one, as have so many tokens together."""
    taken: list[Tensor] = []
    tokens = 0
    for sample in samples:
        if taken and tokens + len(sample) > most_tokens:
            break
        taken.append(sample)
        tokens += len(sample)
    return taken
