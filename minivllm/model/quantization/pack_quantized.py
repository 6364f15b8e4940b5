"""Weights as compressed-tensors packs them (llm-compressor): format `pack-quantized`, 1 to 8 bits.

    weight_packed       int32 [out, ⌈in · bits / 32⌉]       codes, a stream along each row
    weight_scale        floats [out, groups]                 of the model's type, as a rule
    weight_zero_point   int32 [⌈out · bits / 32⌉, groups]   zeros, a stream down each column; or absent
    weight_shape        int64 [2]                            out and in: what the padding is cut by
    weight_g_idx        int32 [in]                           the group of each input; only in old files

A code is stored as it is here: the format's own numbers are signed, and 2^(bits − 1) is added to store them,
to zeros as well; so its zero 0 is our middle.

Source: vllm-project/compressed-tensors 0.19 `compressors/pack_quantized`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minivllm.model.quantization.bit_packing import num_words, pack_bits, unpack_bits
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups


def unpack(tensors: Mapping[str, Tensor], bits: int) -> IntegerWeights:
    """The weights in a layer's tensors, named and shaped as above; the ones that may be absent can be."""
    num_outputs, num_inputs = (int(size) for size in tensors["weight_shape"])
    scales = tensors["weight_scale"].float()
    num_groups = scales.shape[1]
    stored = tensors.get("weight_zero_point")
    zeros = (
        torch.full(scales.shape, 1 << (bits - 1), dtype=torch.int16)
        if stored is None
        else unpack_bits(stored.T.contiguous(), bits, num_outputs).T.to(torch.int16).contiguous()
    )
    group_of = tensors.get("weight_g_idx")
    if group_of is None:
        group_of = contiguous_groups(num_inputs, -(-num_inputs // num_groups))
    codes = unpack_bits(tensors["weight_packed"], bits, num_inputs)
    return IntegerWeights(codes, scales, zeros, group_of.long(), bits)


def pack(weights: IntegerWeights, *, scale_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The inverse of `unpack`: a layer's tensors by name. Symmetric weights get no zeros.

    Raises:
        ValueError: a zero has no place in this format.
    """
    bits, (num_outputs, num_inputs) = weights.bits, weights.codes.shape
    if ((weights.zeros < 0) | (weights.zeros >= 1 << bits)).any():
        raise ValueError(
            f"compressed-tensors stores zeros of 0 to {(1 << bits) - 1} (2^(bits − 1) added); these go beyond"
        )
    tensors = {
        "weight_packed": pack_bits(weights.codes, bits),
        "weight_scale": weights.scales.to(scale_dtype),
        "weight_shape": torch.tensor([num_outputs, num_inputs]),
    }
    if not weights.is_symmetric:
        tensors["weight_zero_point"] = pack_bits(weights.zeros.T, bits).T.contiguous()
    num_groups = weights.scales.shape[1]
    if not torch.equal(weights.group_of, contiguous_groups(num_inputs, -(-num_inputs // num_groups))):
        tensors["weight_g_idx"] = weights.group_of.to(torch.int32)
    return tensors


def shapes(num_outputs: int, num_inputs: int, bits: int, num_groups: int) -> dict[str, tuple[int, ...]]:
    """What the tensors of such a layer must be like."""
    return {
        "weight_packed": (num_outputs, num_words(num_inputs, bits)),
        "weight_scale": (num_outputs, num_groups),
        "weight_zero_point": (num_words(num_outputs, bits), num_groups),
        "weight_shape": (2,),
        "weight_g_idx": (num_inputs,),
    }
