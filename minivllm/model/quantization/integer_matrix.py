"""A matrix in codes of 1 to 8 bits, as it lies in memory: packed, with 16-bit scales where they suffice.

    words      int32 [out, ⌈in · bits / 32⌉]      codes, a stream along each row (`bit_packing.py`)
    scales     [out, groups]                       float16, bfloat16 or float32, whichever loses nothing
    zeros      uint8 or int16 [out, groups]        None if all are the middle
    group_of   int32 [in]                          None if groups are neighbours, all of one size

So a model takes as much memory as its file, in whichever integer format that is.

Read next: `integer_weights.py` for what the numbers mean, `dequantized_matrix.py` for the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.bit_packing import pack_bits, unpack_bits
from minivllm.model.quantization.dequantized_matrix import DequantizedMatrix, exact_type, narrowest
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups


class IntegerMatrix(DequantizedMatrix):
    """Weights on a grid of codes; `weights` are copied into this form."""

    def __init__(
        self,
        weights: IntegerWeights,
        dtype: torch.dtype,
        device: torch.device,
        activations: ActivationRounding | None = None,
    ) -> None:
        num_outputs, num_inputs = weights.codes.shape
        super().__init__(num_outputs, num_inputs, dtype, activations)
        self.bits = weights.bits
        self.words = pack_bits(weights.codes, weights.bits).to(device)
        self.scales = narrowest(weights.scales).to(device)
        self.zeros = None if weights.is_symmetric else _narrow_zeros(weights.zeros).to(device)
        self.group_of = None
        num_groups = weights.scales.shape[1]
        neighbours = contiguous_groups(self.num_inputs, self._group_size(num_groups))
        # A piece of a matrix may end within a group; then they are neighbours, but not all of one size.
        if num_inputs % num_groups or not torch.equal(weights.group_of.cpu(), neighbours):
            self.group_of = weights.group_of.to(torch.int32).to(device)

    def weights(self, begin: int = 0, end: int | None = None) -> IntegerWeights:
        """Some rows of it, unpacked."""
        scales = self.scales[begin:end].float()
        group_of = self.group_of
        if group_of is None:
            group_of = contiguous_groups(self.num_inputs, self._group_size(scales.shape[1]))
        return IntegerWeights(
            codes=unpack_bits(self.words[begin:end], self.bits, self.num_inputs),
            scales=scales,
            zeros=zeros_of(self)[begin:end],
            group_of=group_of.long().to(scales.device),
            bits=self.bits,
        )

    def rows(self, begin: int, end: int) -> Tensor:
        kind = exact_type(self.dtype)
        codes = unpack_bits(self.words[begin:end], self.bits, self.num_inputs).to(kind)
        scales = self.scales[begin:end].to(kind)
        zeros = None if self.zeros is None else self.zeros[begin:end].to(kind)
        if self.group_of is None:  # neighbours share a scale: no need to spread it
            codes = codes.reshape(*scales.shape, -1)
            scales, zeros = scales[:, :, None], None if zeros is None else zeros[:, :, None]
        else:
            group_of = self.group_of.long()
            scales, zeros = scales[:, group_of], None if zeros is None else zeros[:, group_of]
        codes -= float(1 << (self.bits - 1)) if zeros is None else zeros
        return codes.mul_(scales).reshape(end - begin, self.num_inputs)

    def shard(self, rows: slice, columns: slice) -> IntegerMatrix:
        """Groups keep their scales wherever the edge falls, in act order, too; what lost some counts anew."""
        own = range(self.num_inputs)[columns]
        if self.activations is not None and self.activations.scale is None and len(own) < self.num_inputs:
            raise ValueError(
                "this checkpoint rounds each token's activations by the largest of them, of which a part of "
                "the inputs knows nothing: it cannot be shared among ranks (tensor_parallel_size, "
                "pipeline_parallel_size), nor computed in parts (reduction_parts)"
            )
        whole = self.weights()
        used, group_of = torch.unique(whole.group_of[columns], return_inverse=True)
        weights = IntegerWeights(
            codes=whole.codes[rows, columns],
            scales=whole.scales[rows][:, used],
            zeros=whole.zeros[rows][:, used],
            group_of=group_of,
            bits=self.bits,
        )
        return IntegerMatrix(weights, self.dtype, self.words.device, self.activations)

    @property
    def num_bytes(self) -> int:
        held = (self.words, self.scales, self.zeros, self.group_of)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def _group_size(self, num_groups: int) -> int:
        return -(-self.num_inputs // num_groups)

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self.num_inputs, dtype=self.dtype, device=self.words.device)


def joined(parts: Sequence[IntegerMatrix]) -> IntegerMatrix | None:
    """The rows of several matrices as one, if they are of one kind; otherwise None."""
    first = parts[0]
    if any(_kind(part) != _kind(first) or not _same_groups(part, first) for part in parts):
        return None
    whole = IntegerMatrix.__new__(IntegerMatrix)
    DequantizedMatrix.__init__(
        whole, sum(part.num_outputs for part in parts), first.num_inputs, first.dtype, first.activations
    )
    whole.bits, whole.group_of = first.bits, first.group_of
    whole.words = torch.cat([part.words for part in parts])
    whole.scales = narrowest(torch.cat([part.scales.float() for part in parts]))
    has_zeros = any(part.zeros is not None for part in parts)
    whole.zeros = _narrow_zeros(torch.cat([zeros_of(part) for part in parts])) if has_zeros else None
    return whole


def zeros_of(matrix: IntegerMatrix) -> Tensor:
    """Its zeros, int16 [out, groups], those in the middle written out."""
    if matrix.zeros is not None:
        return matrix.zeros.to(torch.int16)
    return torch.full(
        matrix.scales.shape, 1 << (matrix.bits - 1), dtype=torch.int16, device=matrix.words.device
    )


def _kind(matrix: IntegerMatrix) -> tuple[object, ...]:
    return matrix.bits, matrix.num_inputs, matrix.scales.shape[1], matrix.activations, matrix.dtype


def _same_groups(one: IntegerMatrix, other: IntegerMatrix) -> bool:
    if one.group_of is None or other.group_of is None:
        return one.group_of is other.group_of
    return torch.equal(one.group_of, other.group_of)


def _narrow_zeros(zeros: Tensor) -> Tensor:
    return zeros.to(torch.uint8) if bool(((zeros >= 0) & (zeros < 256)).all()) else zeros
