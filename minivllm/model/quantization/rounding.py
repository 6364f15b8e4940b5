"""A plain checkpoint, rounded while it is loaded: `quantization="int8"`, `"int4"` or `"fp8"`.

    int8    8 bits, symmetric, one scale for each output        s = max|w| / 127     error ≤ s / 2
    int4    4 bits, symmetric, a scale for each 128 inputs      s = max|w| / 7       error ≤ s / 2
            (for all inputs of an output, where 128 does not divide them)
    fp8     e4m3, one scale for each output                     s = max|w| / 448     error ≤ |w| / 16

Weights only: activations stay as they are. All linear layers of the decoder's layers are rounded. The
embedding is not; the output matrix, if it is not the embedding itself, is rounded to 8 bits with "int8" and
"int4": in a small model it is a third of what a step reads. (OpenVINO does so, too; checkpoints made for vLLM
mostly leave it out.) There is no calibration: each weight goes to the nearest number there is. Conventions
differ between tools (compressed-tensors divides max|w| by 7.5 for 4 bits); these are the plainest.

One layer at a time is a float, so a model needs its rounded size and one layer more.

Read next: `algorithms/rounding.py`, which rounds; what calibration makes of the same formats:
`docs/quantization-making.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.matrix import Matrix
from minivllm.model.quantization.algorithms.fp8 import round_rows_to_float8
from minivllm.model.quantization.algorithms.rounding import Grid, round_to_nearest
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.model.quantization.method import QuantizationMethod
from minivllm.model.quantization.scheme import LayerInFile, LinearScheme, check_finite
from minivllm.model.weights import StoredTensor

INT4_GROUP = 128
HEADS = {"int8": "int8", "int4": "int8"}
"""What becomes of an output matrix that is not the embedding; it stays as it is where nothing is named."""


def _grid(bits: int, group_size: int) -> Grid:
    return Grid(bits, group_size, symmetric=True, scale_dtype=torch.float32)


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
        return rounded_matrix(tensors["weight"], self.name, dtype, device)


def rounded_matrix(weight: Tensor, name: str, dtype: torch.dtype, device: torch.device) -> Matrix:
    """Plain weights [out, in] in the format `name`, one of `ROUNDINGS`. No row depends on another."""
    if name == "fp8":
        return Float8Matrix(round_rows_to_float8(weight.float()), dtype, device)
    int4_group = INT4_GROUP if weight.shape[1] % INT4_GROUP == 0 else -1
    grid = _grid(8, -1) if name == "int8" else _grid(4, int4_group)
    return IntegerMatrix(round_to_nearest(weight.float(), grid), dtype, device)


class RoundingMethod(QuantizationMethod):
    """All linear layers are rounded; the output matrix to 8 bits or not. `name` is one of `ROUNDINGS`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._scheme = RoundingScheme(name)

    def scheme(self, module: str) -> LinearScheme | None:
        if module != "lm_head":
            return self._scheme
        head = HEADS.get(self.name)
        return None if head is None else RoundingScheme(head)
