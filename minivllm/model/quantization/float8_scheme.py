"""Layers of 8-bit floats in files: compressed-tensors' `float-quantized`, and `quant_method: fp8`.

Read next: `float8_weights.py` for the layouts, `float8_matrix.py` for what becomes of activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.matrix import Matrix
from minivllm.model.quantization import float8_weights
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.scheme import FLOATS, LayerInFile, LinearScheme, check_finite
from minivllm.model.weights import StoredTensor

TENSOR, CHANNEL = "tensor", "channel"


@dataclass(frozen=True)
class Float8Scheme(LinearScheme):
    """8-bit floats.

    Attributes:
        sharing: what shares a scale: `TENSOR`, `CHANNEL` (an output), or a block's (outputs, inputs).
        scale_name: of the tensor that holds the scales.
    """

    sharing: str | tuple[int, int]
    scale_name: str = float8_weights.SCALE

    @property
    def description(self) -> str:
        shared = self.sharing if isinstance(self.sharing, str) else "block of {} × {}".format(*self.sharing)
        return f"fp8 (e4m3), a scale for each {shared}"

    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        why, outputs, inputs = self.description, layer.num_outputs, layer.num_inputs
        if isinstance(self.sharing, str):
            scales = StoredTensor((outputs, 1), FLOATS, why, is_single=self.sharing == TENSOR)
        else:
            rows, columns = self.sharing
            scales = StoredTensor((-(-outputs // rows), -(-inputs // columns)), FLOATS, why)
        tensors = {"weight": StoredTensor((outputs, inputs), ("F8_E4M3",), why), self.scale_name: scales}
        # How activations would be rounded, where a processor multiplies such numbers: known, and left alone.
        for name in ("input_scale", "output_scale"):
            if name in layer.present:
                tensors[name] = StoredTensor((1,), FLOATS, why, is_single=True)
        return tensors

    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        check_finite(layer, tensors, "weight", self.scale_name)
        blocks = {TENSOR: (layer.num_outputs, layer.num_inputs), CHANNEL: (1, layer.num_inputs)}
        block = blocks[self.sharing] if isinstance(self.sharing, str) else self.sharing
        return Float8Matrix(float8_weights.unpack(tensors, block), dtype, device)
