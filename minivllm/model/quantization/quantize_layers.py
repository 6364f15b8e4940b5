"""A model quantised layer by layer, each on what the quantised layers before it give.

    samples ──embed──► layer 0 ──quantise──► its outputs ──► layer 1 ──quantise──► …
                          │                                     │
                     LayerResult                           LayerResult      one at a time, as it is done

Three streams of hidden states run alongside: the samples to calibrate with; a few kept apart from them, on
which a layer's error is told and clipping is tried; and, if there are any, held-out samples through the
quantised layers and through the original ones, which give the last word (`judge.py`).

One layer at a time is in float32. Afterwards its matrices hold the quantised values, in the decoder's type.

Read next: `quantize_one_layer.py`, what each method does to a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minivllm.model.decoder import Decoder
from minivllm.model.layers import DecoderLayer, DenseMatrix, RMSNorm, StackedLinear
from minivllm.model.quantization.algorithms.rounding import check_finite
from minivllm.model.quantization.calibration import LayerRunner, LayerSamples
from minivllm.model.quantization.quantize_one_layer import (
    QuantizedWeights,
    as_matrix,
    quantize_one_layer,
    round_plainly,
)
from minivllm.model.quantization.settings import QuantizationSettings

KEPT_APART = 8
"""Every eighth sample is kept apart from calibration."""


@dataclass
class Samples:
    """Token ids to quantise with.

    Attributes:
        calibration: what the method may look at.
        held_out: what nothing is fitted to; may be empty.
    """

    calibration: Sequence[Sequence[int]]
    held_out: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class LayerResult:
    """One layer, quantised.

    Attributes:
        index: its number.
        weights: for each of its linear layers, all stacked rows together.
        rounded_error: of plain rounding to the same format, relative to what the layer adds to its input.
        error: of the method, likewise.
    """

    index: int
    weights: dict[StackedLinear, QuantizedWeights]
    rounded_error: float
    error: float


@dataclass
class Run:
    """A model being quantised: iterate over it, then look at `held_out`.

    Attributes:
        held_out: hidden states [tokens, hidden] of held-out samples behind the last layer: of the quantised
            model, and of the original one.
    """

    decoder: Decoder
    settings: QuantizationSettings
    samples: Samples
    fold_dtype: torch.dtype | None = None
    """What norms are stored in; None: the decoder's type."""
    held_out: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __iter__(self) -> Iterator[LayerResult]:
        """Quantise layer after layer, in place.

        Raises:
            ValueError: a weight is not finite; the message names its tensor. Nothing has changed by then.
        """
        check_weights(self.decoder)
        runner = LayerRunner(self.decoder)
        with torch.inference_mode():
            fitted, apart = split(self.samples.calibration)
            hidden = [runner.embed(ids) for ids in fitted]
            validation = [runner.embed(ids) for ids in apart]
            self.held_out = [(states := runner.embed(ids), states) for ids in self.samples.held_out]
        for index, layer in enumerate(self.decoder.layers):
            with torch.inference_mode():
                result = self._one_layer(runner, index, layer, hidden, validation)
            yield result

    def _one_layer(
        self, runner: LayerRunner, index: int, layer: DecoderLayer, hidden: list[Tensor], apart: list[Tensor]
    ) -> LayerResult:
        to_dtype(layer, torch.float32)
        true = [runner.layer(layer, states) for states in apart]
        originals = [runner.layer(layer, original) for _, original in self.held_out]
        samples = LayerSamples(runner, layer, hidden, apart)
        rounded = self._error_of(samples, round_plainly(layer, self.settings), true)
        weights = quantize_one_layer(samples, self.settings, self.fold_dtype or self.decoder.dtype)
        for linear, quantized in weights.items():
            linear.matrix = as_matrix(quantized, self.settings)
        error = relative_error([runner.layer(layer, states) for states in apart], true, apart)
        for streams in (hidden, apart):
            streams[:] = [runner.layer(layer, states) for states in streams]
        ours = [runner.layer(layer, states) for states, _ in self.held_out]
        self.held_out = list(zip(ours, originals, strict=True))
        for linear in layer.linears:
            linear.matrix = DenseMatrix(linear.matrix.dense())
        to_dtype(layer, self.decoder.dtype)
        return LayerResult(index, weights, rounded, error)

    def _error_of(
        self, samples: LayerSamples, weights: dict[StackedLinear, QuantizedWeights], true: list[Tensor]
    ) -> float:
        matrices = {linear: linear.matrix for linear in weights}
        for linear, quantized in weights.items():
            linear.matrix = as_matrix(quantized, self.settings)
        outputs = [samples.runner.layer(samples.layer, states) for states in samples.validation]
        for linear, matrix in matrices.items():
            linear.matrix = matrix
        return relative_error(outputs, true, samples.validation)


def split(samples: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Those to calibrate with, and those kept apart: the same ones if there are too few to part with."""
    apart = list(samples[::KEPT_APART])
    fitted = [ids for number, ids in enumerate(samples) if number % KEPT_APART]
    return (fitted, apart) if fitted else (apart, apart)


def relative_error(outputs: list[Tensor], true: list[Tensor], inputs: list[Tensor]) -> float:
    """The size of what is wrong with the outputs, relative to the size of what the layer adds."""
    wrong = sum(float((a - b).square().sum()) for a, b in zip(outputs, true, strict=True))
    added = sum(float((a - b).square().sum()) for a, b in zip(true, inputs, strict=True))
    return (wrong / added) ** 0.5 if added else 0.0


def check_weights(decoder: Decoder) -> None:
    """Raises `ValueError` naming the first tensor of the checkpoint that is not finite."""
    for name, view in decoder.views():
        check_finite(name, view)


def to_dtype(layer: DecoderLayer, dtype: torch.dtype) -> None:
    """Convert all weights of a layer, in place."""
    attention = layer.attention
    for norm in (layer.input_norm, layer.post_attention_norm, attention.query_norm, attention.key_norm):
        if isinstance(norm, RMSNorm):
            norm.weight = norm.weight.to(dtype)
    for linear in layer.linears:
        linear.matrix = DenseMatrix(linear.matrix.dense().to(dtype))
        if linear.bias is not None:
            linear.bias = linear.bias.to(dtype)
