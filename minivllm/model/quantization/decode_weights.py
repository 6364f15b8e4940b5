"""A second set of weights for generated tokens: the same model, its linear layers rounded.

    decoder ──── embedding, norms, biases, rotary angles ───► shared, the same memory
       └──────── matrices of the layers ─── rounded ────────► a copy of 8 or 4 bits beside the original

Both are in memory, because both compute: prompts with the original, generated tokens with the copy
(`minivllm/executor/phases.py` says why, and which is which). The copy's place is `Decoder.decode_weights`.
An output matrix that is not the embedding itself becomes what `rounding.py` makes of it.

Read next: `rounding.py`, which says what each format is.
"""

from __future__ import annotations

from copy import copy

import torch

from minivllm.model.decoder import Decoder
from minivllm.model.layers import StackedLinear
from minivllm.model.quantization.rounding import HEADS, rounded_matrix


def make_decode_weights(decoder: Decoder, name: str) -> Decoder:
    """The copy of a decoder with plain weights; `name` is one of `names.ROUNDINGS`."""
    other = copy(decoder)
    other.layers = []
    with torch.inference_mode():
        for layer in decoder.layers:
            layer = copy(layer)
            layer.attention, layer.mlp = copy(layer.attention), copy(layer.mlp)
            layer.attention.qkv = _rounded(layer.attention.qkv, name)
            layer.attention.output = _rounded(layer.attention.output, name)
            layer.mlp.gate_up = _rounded(layer.mlp.gate_up, name)
            layer.mlp.down = _rounded(layer.mlp.down, name)
            other.layers.append(layer)
        if not decoder.tied and (head := HEADS.get(name)):
            weight = decoder.head.dense()
            other.head = rounded_matrix(weight, head, weight.dtype, weight.device)
    other.quantization = name
    return other


def _rounded(linear: StackedLinear, name: str) -> StackedLinear:
    weight = linear.matrix.dense()
    linear = copy(linear)
    linear.matrix = rounded_matrix(weight, name, weight.dtype, weight.device)
    return linear
