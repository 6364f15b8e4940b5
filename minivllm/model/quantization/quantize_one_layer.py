"""What each method does to one decoder layer: which inputs it looks at, in what order, and what it changes.

    rtn, fp8       look at no inputs
    gptq           [q k v], o, [gate up], down: one after the other, each on inputs that those before it made
    awq            scales of all four are searched and folded, then clipping, then rounding
    smoothquant    scales of [q k v] and [gate up] are folded into the norms, then rounding

Read next: `algorithms/`, a module for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.layers import DecoderLayer, DenseMatrix, StackedLinear
from minivllm.model.matrix import Matrix
from minivllm.model.quantization.algorithms.folding import fold_into_norm
from minivllm.model.quantization.algorithms.fp8 import round_rows_to_float8, round_tokens_to_float8
from minivllm.model.quantization.algorithms.gptq import gptq
from minivllm.model.quantization.algorithms.rounding import round_to_nearest
from minivllm.model.quantization.algorithms.smoothquant import round_tokens_to_int8, smoothing_scales
from minivllm.model.quantization.awq_layer import quantize_awq
from minivllm.model.quantization.calibration import LayerSamples
from minivllm.model.quantization.float8_weights import Float8Weights
from minivllm.model.quantization.integer_weights import IntegerWeights
from minivllm.model.quantization.settings import QuantizationSettings

QuantizedWeights = IntegerWeights | Float8Weights


def quantize_one_layer(
    samples: LayerSamples, settings: QuantizationSettings, fold_dtype: torch.dtype
) -> dict[StackedLinear, QuantizedWeights]:
    """The weights of each linear layer. What AWQ and SmoothQuant fold into norms has changed in the layer."""
    match settings.method:
        case "gptq":
            return _gptq(samples, settings)
        case "awq":
            return dict(quantize_awq(samples, settings, fold_dtype))
        case "smoothquant":
            return _smoothquant(samples, settings, fold_dtype)
    return round_plainly(samples.layer, settings)


def round_plainly(
    layer: DecoderLayer, settings: QuantizationSettings
) -> dict[StackedLinear, QuantizedWeights]:
    """Each weight to the nearest number of the format."""
    return {linear: _plain(linear.matrix.dense(), settings) for linear in layer.linears}


def _plain(weight: Tensor, settings: QuantizationSettings) -> QuantizedWeights:
    if settings.method == "fp8":
        return round_rows_to_float8(weight)
    return round_to_nearest(weight, settings.grid)


def _gptq(samples: LayerSamples, settings: QuantizationSettings) -> dict[StackedLinear, QuantizedWeights]:
    linears = samples.layer.linears
    stages = [[linear] for linear in linears] if settings.true_sequential else [list(linears)]
    weights: dict[StackedLinear, QuantizedWeights] = {}
    for stage in stages:
        for linear, seen in samples.observe(stage).items():
            weights[linear] = gptq(linear.matrix.dense(), seen.moments, settings.grid, settings.gptq)
            linear.matrix = DenseMatrix(weights[linear].dense())
    return weights


def _smoothquant(
    samples: LayerSamples, settings: QuantizationSettings, fold_dtype: torch.dtype
) -> dict[StackedLinear, QuantizedWeights]:
    layer = samples.layer
    normed = {layer.attention.qkv: layer.input_norm, layer.mlp.gate_up: layer.post_attention_norm}
    for linear, seen in samples.observe(list(normed), moments=False).items():
        scales = smoothing_scales(seen.largest, linear.matrix.dense(), settings.smoothing)
        fold_into_norm(normed[linear], linear, scales, fold_dtype)
    return round_plainly(layer, settings)


def as_matrix(weights: QuantizedWeights, settings: QuantizationSettings) -> Matrix:
    """Multiplies as the quantised model will: with its inputs rounded, if the method does so."""
    matrix = DenseMatrix(weights.dense())
    return RoundedInputs(matrix, settings.method) if settings.rounds_activations else matrix


@dataclass
class RoundedInputs(Matrix):
    """Another matrix, whose inputs are rounded to 8 bits, token by token."""

    matrix: Matrix
    method: str

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        round_tokens = round_tokens_to_float8 if self.method == "fp8" else round_tokens_to_int8
        return self.matrix.product(round_tokens(x), bias, added)

    def dense(self) -> Tensor:
        return self.matrix.dense()

    @property
    def num_bytes(self) -> int:
        return self.matrix.num_bytes
