"""Weights as GPTQ's tools write them (AutoGPTQ, GPTQModel): `quant_method: gptq`.

    qweight   int32 [in · bits / 32, out]       codes, a stream down each column
    qzeros    int32 [groups, out · bits / 32]   zeros, a stream along each row
    scales    float16 [groups, out]
    g_idx     int32 [in]                        the group of each input; absent in the oldest files

**The minus one.** In `checkpoint_format: gptq`, "v1", what is stored is the zero minus 1: a convention of
the first kernels. The one is taken off whole words, as numbers, so a zero of 0 borrows from the next code's
bits, and gives back when the one is added again. `gptq_v2` stores zeros as they are.

**Labels can lie.** Symmetric weights have all their zeros in the middle, which is 2^(bits − 1), or one less
in v1; so there the words themselves say which version they are, and are believed (checkpoints of v2 labelled
v1 have been published: vllm-project/vllm, pull request 38966). GPTQModel takes another constant off the words
of 3-bit zeros than adding 1 to each code would be (its words 0 and 2 are exchanged); of symmetric weights
this is seen, too.

Sources: AutoGPTQ `nn_modules/qlinear`, ModelCloud/GPTQModel `utils/model.py`; the algorithm is that of
Frantar et al., ICLR 2023 (arXiv 2210.17323).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minivllm.model.quantization.bit_packing import num_words, pack_bits, unpack_bits
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups

BITS = (2, 3, 4, 8)
V1, V2 = "gptq", "gptq_v2"
VERSIONS = (V1, V2)
"""Values of `checkpoint_format`."""


def unpack(
    tensors: Mapping[str, Tensor], bits: int, *, version: str = V1, is_symmetric: bool = False
) -> IntegerWeights:
    """The weights in a layer's tensors.

    Args:
        tensors: "qweight", "qzeros", "scales" and, if there is one, "g_idx", in the shapes above.
        version: one of `VERSIONS`, as the file is labelled.
        is_symmetric: whether the zeros are said to be in the middle; then they tell their version.
    """
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    num_inputs, (num_groups, num_outputs) = len(qweight) * 32 // bits, scales.shape
    codes = unpack_bits(qweight.T.contiguous(), bits, num_inputs)
    zeros = unpack_bits(_zero_words(qzeros, bits, version, is_symmetric), bits, num_outputs)
    group_of = tensors.get("g_idx")
    if group_of is None:
        group_of = contiguous_groups(num_inputs, -(-num_inputs // num_groups))
    return IntegerWeights(
        codes, scales.T.float().contiguous(), zeros.T.to(torch.int16).contiguous(), group_of.long(), bits
    )


def pack(
    weights: IntegerWeights, *, version: str = V1, scale_dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """The inverse of `unpack`: a layer's tensors by name.

    Raises:
        ValueError: inputs or outputs do not fill their words, or a number has no place in this format.
    """
    bits, (num_outputs, num_inputs) = weights.bits, weights.codes.shape
    if bits not in BITS:
        raise ValueError(f"GPTQ's files have weights of {_listed(BITS)} bits, got {bits}")
    for what, count in (("inputs", num_inputs), ("outputs", num_outputs)):
        if count * bits % 32:
            raise ValueError(
                f"GPTQ's files pack {bits}-bit codes into whole words of 32 bits; {count} {what} do not fill "
                "theirs"
            )
    if ((weights.zeros < 0) | (weights.zeros >= 1 << bits)).any():
        raise ValueError(f"GPTQ's files store zeros of 0 to {(1 << bits) - 1}; these go beyond")
    qzeros = pack_bits(weights.zeros.T, bits)
    return {
        "qweight": pack_bits(weights.codes, bits).T.contiguous(),
        "qzeros": qzeros - _ones(qzeros, bits) if version == V1 else qzeros,
        "scales": weights.scales.T.to(scale_dtype).contiguous(),
        "g_idx": weights.group_of.to(torch.int32),
    }


def _zero_words(qzeros: Tensor, bits: int, version: str, is_symmetric: bool) -> Tensor:
    """The words of zeros as v2 has them. Sums wrap, as they do where the one was taken off."""
    from_v1 = qzeros + _ones(qzeros, bits)
    labelled = from_v1 if version == V1 else qzeros
    if is_symmetric:
        num_codes = qzeros.shape[1] * 32 // bits
        middle = pack_bits(torch.full((1, num_codes), 1 << (bits - 1)), bits)[:, : qzeros.shape[1]]
        exchanged = qzeros + _ones(qzeros, bits, is_exchanged=True)
        for words in (labelled, from_v1, qzeros, exchanged):
            if bool((words == middle).all()):
                return words
    return labelled


def _ones(words: Tensor, bits: int, *, is_exchanged: bool = False) -> Tensor:
    """A stream of codes 1 along words [groups, w]; `is_exchanged`: as GPTQModel has it for 3 bits."""
    width = words.shape[1]
    count = -(-width * 32 // bits)
    ones = pack_bits(torch.ones(1, count, dtype=torch.int32), bits)[:, :width]
    if is_exchanged and bits == 3 and width % 3 == 0:
        ones = ones.reshape(1, -1, 3).flip(2).flatten(1)
    return ones


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


def shapes(num_outputs: int, num_inputs: int, bits: int, num_groups: int) -> dict[str, tuple[int, ...]]:
    """What the tensors of such a layer must be like."""
    return {
        "qweight": (num_words(num_inputs, bits), num_outputs),
        "qzeros": (num_groups, num_words(num_outputs, bits)),
        "scales": (num_groups, num_outputs),
        "g_idx": (num_inputs,),
    }
