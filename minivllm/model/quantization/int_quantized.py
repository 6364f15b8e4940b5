"""Weights as whole bytes, of compressed-tensors' format `int-quantized`: W8A8, SmoothQuant's form.

    weight              int8 [out, in]          from −128 to 127
    weight_scale        floats [out, 1]         one for each output; or [1], one for all
    weight_zero_point   int8 [out, 1] or [1]    absent if symmetric
    input_scale, input_zero_point   [1]         how inputs are rounded, if that is fixed (`activations.py`)

A code here is the number plus 128, so its zero 0 is our middle.

Source: vllm-project/compressed-tensors 0.19 `compressors/naive_quantized`; the scheme is that of Xiao et al.,
ICML 2023 (arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minivllm.model.quantization.integer_weights import IntegerWeights

BITS = 8
MIDDLE = 1 << (BITS - 1)


def unpack(tensors: Mapping[str, Tensor]) -> IntegerWeights:
    """The weights in a layer's tensors, named and shaped as above."""
    weight = tensors["weight"]
    num_outputs, num_inputs = weight.shape
    scales = _by_output(tensors["weight_scale"].float(), num_outputs)
    stored = tensors.get("weight_zero_point")
    zeros = torch.full(scales.shape, MIDDLE, dtype=torch.int16)
    if stored is not None:
        zeros += _by_output(stored.to(torch.int16), num_outputs)
    codes = weight.view(torch.uint8) ^ MIDDLE  # adds 128
    return IntegerWeights(codes, scales, zeros, torch.zeros(num_inputs, dtype=torch.int64), BITS)


def pack(weights: IntegerWeights, *, scale_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The inverse of `unpack`: a layer's tensors by name. Symmetric weights get no zeros.

    Raises:
        ValueError: the weights are none that this format has a place for.
    """
    if weights.bits != BITS or weights.scales.shape[1] != 1:
        raise ValueError(
            "int-quantized files have weights of 8 bits and one scale for each output, got "
            f"{weights.bits} bits and {weights.scales.shape[1]} groups"
        )
    if ((weights.zeros < 0) | (weights.zeros >= 1 << BITS)).any():
        raise ValueError("int-quantized files store zeros of 0 to 255 (less 128); these go beyond")
    tensors = {
        "weight": (weights.codes ^ MIDDLE).view(torch.int8),
        "weight_scale": weights.scales.to(scale_dtype),
    }
    if not weights.is_symmetric:
        tensors["weight_zero_point"] = (weights.zeros - MIDDLE).to(torch.int8)
    return tensors


def _by_output(numbers: Tensor, num_outputs: int) -> Tensor:
    """[out, 1] or a single number, as [out, 1]."""
    return numbers.reshape(-1, 1).expand(num_outputs, 1).contiguous()
