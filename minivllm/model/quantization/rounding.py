"""A plain checkpoint, rounded while it is loaded: `quantization="int8"`, `"int4"` or `"fp8"`.

    int8    8 bits, symmetric, one scale for each output        s = max|w| / 127     error ≤ s / 2
    int4    4 bits, symmetric, a scale for each 128 inputs      s = max|w| / 7       error ≤ s / 2
            (for all inputs of an output, where 128 does not divide them)
    fp8     e4m3, one scale for each output                     s = max|w| / 448     error ≤ |w| / 16

Weights only: activations stay as they are. All linear layers of the decoder's layers are rounded, the
embedding and the output matrix are not, as in vLLM and nearly all checkpoints. There is no calibration: each
weight goes to the nearest number there is. Conventions differ between tools (compressed-tensors divides
max|w| by 7.5 for 4 bits); these are the plainest.

One layer at a time is a float, so a model needs its rounded size and one layer more.

Read next: `integer_weights.py`; what calibration makes of the same formats: `docs/quantization.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.matrix import Matrix
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.float8_weights import round_to_float8
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups
from minivllm.model.quantization.method import QuantizationMethod
from minivllm.model.quantization.scheme import LayerInFile, LinearScheme, check_finite
from minivllm.model.weights import StoredTensor

INT4_GROUP = 128


def round_symmetrically(weight: Tensor, bits: int, group_size: int) -> IntegerWeights:
    """`weight` [out, in] to the nearest codes; each group's largest number becomes 2^(bits − 1) − 1 steps.

    `group_size` divides the inputs, or is −1 for all of them.
    """
    num_outputs, num_inputs = weight.shape
    middle = 1 << (bits - 1)
    groups = weight.float().reshape(num_outputs, -1, num_inputs if group_size == -1 else group_size)
    scales = groups.abs().amax(-1) / (middle - 1)
    scales = torch.where(scales == 0, 1.0, scales)
    codes = torch.round(groups / scales[:, :, None]) + middle
    return IntegerWeights(
        codes=codes.reshape(num_outputs, num_inputs).to(torch.uint8),
        scales=scales,
        zeros=torch.full(scales.shape, middle, dtype=torch.int16),
        group_of=contiguous_groups(num_inputs, group_size),
        bits=bits,
    )


@dataclass(frozen=True)
class RoundingScheme(LinearScheme):
    """A plain layer of a file, that becomes a matrix of the kind `name`."""

    name: str

    @property
    def description(self) -> str:
        return f"plain weights, rounded to {self.name}"

    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        return {"weight": StoredTensor((layer.num_outputs, layer.num_inputs))}

    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        check_finite(layer, tensors, "weight")
        weight = tensors["weight"].float()
        if self.name == "fp8":
            return Float8Matrix(round_to_float8(weight, (1, layer.num_inputs)), dtype, device)
        if self.name == "int8":
            return IntegerMatrix(round_symmetrically(weight, 8, -1), dtype, device)
        group_size = INT4_GROUP if layer.num_inputs % INT4_GROUP == 0 else -1
        return IntegerMatrix(round_symmetrically(weight, 4, group_size), dtype, device)


class RoundingMethod(QuantizationMethod):
    """All linear layers but the output matrix are rounded. `name` is one of `ROUNDINGS`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._scheme = RoundingScheme(name)

    def scheme(self, module: str) -> LinearScheme | None:
        return None if module == "lm_head" else self._scheme
