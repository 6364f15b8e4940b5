"""AWQ on one decoder layer: four searches for scales, one for clipping, and rounding.

    matrices       searched by the output of          folded into
    ────────────   ────────────────────────────────   ──────────────
    q, k, v        the whole attention                input norm
    o              itself                             v
    gate, up       the whole MLP                      norm before it
    down           itself                             up

An output of o or down needs no samples: its squared error follows from the second moments of all inputs.
Clipping leaves q and k alone, as AutoAWQ does: their product goes through a softmax, and a squared error of
q says little about it.

Why clipping is validated. The search chooses one of ten ranges for each row and group, so it makes some ten
thousand choices a matrix, and sees a group alone. That fits the calibration samples; on others, rows come
out worse. So a row's clipping, all groups together, is kept only if its output is closer to the true one on
samples that the search has not seen.

Read next: `algorithms/awq.py`, `algorithms/clipping.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minivllm.model.layers import DecoderLayer, DenseMatrix, StackedLinear
from minivllm.model.quantization.algorithms.awq import search_scales
from minivllm.model.quantization.algorithms.clipping import search_clipping
from minivllm.model.quantization.algorithms.folding import (
    fold_into_norm,
    fold_into_up,
    fold_into_values,
    tie_query_heads,
)
from minivllm.model.quantization.algorithms.gptq import squared_error
from minivllm.model.quantization.algorithms.rounding import grouped_limits, grouped_weights, round_to_nearest
from minivllm.model.quantization.calibration import InputStatistics, LayerSamples
from minivllm.model.quantization.integer_weights import IntegerWeights
from minivllm.model.quantization.settings import QuantizationSettings

SEARCH_TOKENS = 2048
"""Of calibration, for the two searches that run a block twenty times."""

Seen = dict[StackedLinear, InputStatistics]
Loss = Callable[[Tensor], float]


def quantize_awq(
    samples: LayerSamples, settings: QuantizationSettings, fold_dtype: torch.dtype
) -> dict[StackedLinear, IntegerWeights]:
    """The weights of each linear layer. What is folded has changed in the layer's norms, v and up."""
    linears = list(samples.layer.linears)
    seen = samples.observe(linears)
    apart = samples.observe(linears, validation=True) if settings.clipping == "validated" else {}
    for linear, scales in _search_and_fold(samples, seen, settings, fold_dtype).items():
        for statistics in (seen, apart):
            if linear in statistics:
                statistics[linear].divide(scales)
    return {linear: _round(samples.layer, linear, seen, apart, settings) for linear in linears}


def _search_and_fold(
    samples: LayerSamples, seen: Seen, settings: QuantizationSettings, fold_dtype: torch.dtype
) -> dict[StackedLinear, Tensor]:
    """By how much each matrix's inputs are divided from now on."""
    layer, attention, mlp = samples.layer, samples.layer.attention, samples.layer.mlp

    def search(linear: StackedLinear, loss: Loss, tie: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        weight, mean = linear.matrix.dense(), seen[linear].mean
        found = search_scales(weight, mean, settings.grid, loss, duo_scaling=settings.duo_scaling, tie=tie)
        return found.scales

    scales = search(attention.qkv, _attention_loss(samples))
    folded = {attention.qkv: fold_into_norm(layer.input_norm, attention.qkv, scales, fold_dtype)}
    scales = search(
        attention.output, _own_loss(attention.output, seen), lambda s: tie_query_heads(attention, s)
    )
    fold_into_values(attention, scales)
    folded[attention.output] = scales
    scales = search(mlp.gate_up, _mlp_loss(samples))
    folded[mlp.gate_up] = fold_into_norm(layer.post_attention_norm, mlp.gate_up, scales, fold_dtype)
    scales = search(mlp.down, _own_loss(mlp.down, seen))
    fold_into_up(layer, scales)
    folded[mlp.down] = scales
    return folded


def _attention_loss(samples: LayerSamples) -> Loss:
    normed = samples.attention_inputs(SEARCH_TOKENS)
    layer, runner = samples.layer, samples.runner
    return _block_loss(
        layer.attention.qkv, lambda: torch.cat([runner.attention(layer, sample) for sample in normed])
    )


def _mlp_loss(samples: LayerSamples) -> Loss:
    tokens = samples.mlp_inputs(SEARCH_TOKENS)
    return _block_loss(samples.layer.mlp.gate_up, lambda: samples.layer.mlp(tokens))


def _block_loss(linear: StackedLinear, block: Callable[[], Tensor]) -> Loss:
    """The mean squared error of a block's output [tokens, hidden] when one of its matrices is another."""
    true = block()

    def loss(weight: Tensor) -> float:
        kept, linear.matrix = linear.matrix, DenseMatrix(weight)
        try:
            return float((block() - true).square().mean())
        finally:
            linear.matrix = kept

    return loss


def _own_loss(linear: StackedLinear, seen: Seen) -> Loss:
    true, statistics = linear.matrix.dense(), seen[linear]
    count = statistics.num_tokens * len(true)
    return lambda weight: float(squared_error(true - weight, statistics.moments).sum()) / count


def _round(
    layer: DecoderLayer, linear: StackedLinear, seen: Seen, apart: Seen, settings: QuantizationSettings
) -> IntegerWeights:
    """Round, with groups clipped where settings and samples say so."""
    weight, grid = linear.matrix.dense(), settings.grid
    if settings.clipping == "never":
        return round_to_nearest(weight, grid)
    whole = grouped_limits(grouped_weights(weight, grid))
    clipped = search_clipping(weight, seen[linear].moments, grid)
    keep = torch.zeros(len(weight), dtype=torch.bool)
    if linear is layer.attention.qkv:
        attention = layer.attention
        keep[: attention.num_heads * attention.head_dim + attention.num_kv_heads * attention.head_dim] = True
    if linear in apart:
        moments = apart[linear].moments
        errors = [
            squared_error(weight - round_to_nearest(weight, grid, limits).dense(), moments)
            for limits in (whole, clipped)
        ]
        keep |= errors[0] <= errors[1]
    limits = [torch.where(keep[:, None], a, b) for a, b in zip(whole, clipped, strict=True)]
    return round_to_nearest(weight, grid, (limits[0], limits[1]))
