"""Weights as AutoAWQ writes them for its GEMM kernels: `quant_method: awq`, `version: gemm`. 4 bits only.

    qweight   int32 [in, out / 8]        codes, 8 outputs a word
    qzeros    int32 [groups, out / 8]    zeros, in the same order, as they are
    scales    float16 [groups, out]

The nibbles of a word, from the lowest, hold its outputs 0, 2, 4, 6, 1, 3, 5, 7: so one shift and one mask of
a GPU kernel give two halves that lie side by side. Groups are neighbouring inputs; there is no order of
activations.

Sources: casper-hansen/AutoAWQ `awq/modules/linear/gemm.py`, `awq/utils/packing_utils.py`; the algorithm is
that of Lin et al., MLSys 2024 (arXiv 2306.00978).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minivllm.model.quantization.bit_packing import pack_bits, unpack_bits
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups

BITS = 4
OUTPUT_IN_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of a word's 8 outputs is in each nibble, from the lowest."""
_NIBBLE_OF_OUTPUT = tuple(OUTPUT_IN_NIBBLE.index(output) for output in range(8))


def unpack(tensors: Mapping[str, Tensor]) -> IntegerWeights:
    """The weights in a layer's tensors "qweight", "qzeros" and "scales", in the shapes above."""
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    num_inputs, num_groups = len(qweight), len(scales)
    return IntegerWeights(
        codes=_unpack_outputs(qweight).T.contiguous(),
        scales=scales.T.float().contiguous(),
        zeros=_unpack_outputs(qzeros).T.to(torch.int16).contiguous(),
        group_of=contiguous_groups(num_inputs, num_inputs // num_groups),
        bits=BITS,
    )


def pack(weights: IntegerWeights, *, scale_dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The inverse of `unpack`: a layer's tensors by name.

    Raises:
        ValueError: the weights are none that this format has a place for.
    """
    (num_outputs, num_inputs), num_groups = weights.codes.shape, weights.scales.shape[1]
    if weights.bits != BITS:
        raise ValueError(f"AWQ's files have weights of {BITS} bits, got {weights.bits}")
    if num_outputs % 8:
        raise ValueError(f"AWQ's files pack 8 outputs into a word; {num_outputs} do not fill their words")
    if num_inputs % num_groups or not torch.equal(
        weights.group_of, contiguous_groups(num_inputs, num_inputs // num_groups)
    ):
        raise ValueError("AWQ's files have groups of neighbouring inputs, all of one size; these are not")
    if ((weights.zeros < 0) | (weights.zeros >= 1 << BITS)).any():
        raise ValueError(f"AWQ's files store zeros of 0 to {(1 << BITS) - 1}; these go beyond")
    return {
        "qweight": _pack_outputs(weights.codes.T),
        "qzeros": _pack_outputs(weights.zeros.T),
        "scales": weights.scales.T.to(scale_dtype).contiguous(),
    }


def _pack_outputs(codes: Tensor) -> Tensor:
    """Codes [rows, out] as words int32 [rows, out / 8]."""
    return pack_bits(codes.reshape(len(codes), -1, 8)[..., list(OUTPUT_IN_NIBBLE)].flatten(1), BITS)


def _unpack_outputs(words: Tensor) -> Tensor:
    nibbles = unpack_bits(words, BITS, 8 * words.shape[1])
    return nibbles.reshape(len(words), -1, 8)[..., list(_NIBBLE_OF_OUTPUT)].flatten(1)


def shapes(num_outputs: int, num_inputs: int, num_groups: int) -> dict[str, tuple[int, ...]]:
    """What the tensors of such a layer must be like."""
    return {
        "qweight": (num_inputs, num_outputs // 8),
        "qzeros": (num_groups, num_outputs // 8),
        "scales": (num_groups, num_outputs),
    }
