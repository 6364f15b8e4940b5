"""Layers of whole numbers in files: GPTQ's, AWQ's, and the two forms of compressed-tensors.

What the tensors mean is said where they are unpacked: `gptq.py`, `awq.py`, `pack_quantized.py`,
`int_quantized.py`. Here is what must be there, and what cannot be.

Read next: `integer_matrix.py`, which all of them become.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.matrix import Matrix
from minivllm.model.quantization import awq, gptq, int_quantized, pack_quantized
from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.model.quantization.scheme import (
    FLOATS,
    LayerInFile,
    LinearScheme,
    check_finite,
    check_groups,
    group_words,
)
from minivllm.model.weights import CheckpointError, StoredTensor


@dataclass(frozen=True)
class GptqScheme(LinearScheme):
    """See `gptq.py`. `has_order`: inputs were quantised in the order of their activations ("desc_act")."""

    bits: int
    group_size: int
    has_order: bool
    is_symmetric: bool
    version: str

    @property
    def description(self) -> str:
        order = ", act order" if self.has_order else ""
        return f"{self.version}, {self.bits} bits, {group_words(self.group_size)}{order}"

    @property
    def own_names(self) -> tuple[str, ...]:
        return ("qweight",)

    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        layer.check_words("inputs", layer.num_inputs, self.bits)
        layer.check_words("outputs", layer.num_outputs, self.bits)
        num_groups = layer.num_groups(self.group_size)
        shapes = gptq.shapes(layer.num_outputs, layer.num_inputs, self.bits, num_groups)
        if "g_idx" not in layer.present:
            if self.has_order and num_groups > 1:
                raise CheckpointError(
                    f"{layer.name}.g_idx is missing: with desc_act true it says which group of "
                    f"{num_groups} each of the {layer.num_inputs} inputs is in"
                )
            del shapes["g_idx"]
        types = {"scales": FLOATS, "g_idx": ("I32", "I64")}
        return _expected(shapes, types, self.description)

    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        check_finite(layer, tensors, "scales")
        check_groups(layer, "g_idx", tensors.get("g_idx"), layer.num_groups(self.group_size))
        weights = gptq.unpack(tensors, self.bits, version=self.version, is_symmetric=self.is_symmetric)
        return IntegerMatrix(weights, dtype, device)


@dataclass(frozen=True)
class AwqScheme(LinearScheme):
    """See `awq.py`."""

    group_size: int

    @property
    def description(self) -> str:
        return f"awq, {awq.BITS} bits, {group_words(self.group_size)}"

    @property
    def own_names(self) -> tuple[str, ...]:
        return ("qweight",)

    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        layer.check_words("outputs", layer.num_outputs, awq.BITS)
        shapes = awq.shapes(layer.num_outputs, layer.num_inputs, layer.num_groups(self.group_size))
        return _expected(shapes, {"scales": FLOATS}, self.description)

    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        check_finite(layer, tensors, "scales")
        return IntegerMatrix(awq.unpack(tensors), dtype, device)


@dataclass(frozen=True)
class StaticRounding:
    """Activations are rounded by numbers of the checkpoint: `input_scale`, and a zero if not symmetric."""

    is_symmetric: bool

    def expected(self, why: str) -> dict[str, StoredTensor]:
        tensors = {"input_scale": StoredTensor((1,), FLOATS, why, is_single=True)}
        if not self.is_symmetric:
            types = ("I8", "I16", "I32", *FLOATS)
            tensors["input_zero_point"] = StoredTensor((1,), types, why, is_single=True)
        return tensors

    def rounding(self, layer: LayerInFile, tensors: Mapping[str, Tensor]) -> ActivationRounding:
        scale = float(tensors["input_scale"])
        if not 0 < scale < float("inf"):
            raise CheckpointError(f"{layer.name}.input_scale must be a finite number above 0, got {scale}")
        zero = 0 if self.is_symmetric else int(tensors["input_zero_point"])
        return ActivationRounding(self.is_symmetric, scale, zero)


Activations = ActivationRounding | StaticRounding | None


@dataclass(frozen=True)
class PackedScheme(LinearScheme):
    """See `pack_quantized.py`."""

    bits: int
    group_size: int
    is_symmetric: bool
    has_order: bool
    activations: Activations = None

    @property
    def description(self) -> str:
        kind = "symmetric" if self.is_symmetric else "asymmetric"
        return f"pack-quantized, {self.bits} bits, {kind}, {group_words(self.group_size)}"

    @property
    def own_names(self) -> tuple[str, ...]:
        return ("weight_packed",)

    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        num_groups = layer.num_groups(self.group_size)
        shapes = pack_quantized.shapes(layer.num_outputs, layer.num_inputs, self.bits, num_groups)
        if self.is_symmetric:
            del shapes["weight_zero_point"]
        if "weight_g_idx" not in layer.present:
            if self.has_order:
                raise CheckpointError(
                    f"{layer.name}.weight_g_idx is missing: with actorder 'group' it says which of "
                    f"{num_groups} groups each of the {layer.num_inputs} inputs is in"
                )
            del shapes["weight_g_idx"]
        types = {"weight_scale": FLOATS, "weight_shape": ("I64", "I32")}
        own = _expected(shapes, types, self.description)
        return own | _static_tensors(self.activations, self.description)

    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        check_finite(layer, tensors, "weight_scale")
        shape = tensors["weight_shape"].tolist()
        if shape != [layer.num_outputs, layer.num_inputs]:
            raise CheckpointError(
                f"{layer.name}.weight_shape says {shape}, but the layer is "
                f"{[layer.num_outputs, layer.num_inputs]}"
            )
        check_groups(layer, "weight_g_idx", tensors.get("weight_g_idx"), layer.num_groups(self.group_size))
        weights = pack_quantized.unpack(tensors, self.bits)
        return IntegerMatrix(weights, dtype, device, _rounding(self.activations, layer, tensors))


@dataclass(frozen=True)
class BytesScheme(LinearScheme):
    """See `int_quantized.py`. `has_one_scale`: for the whole matrix; otherwise one for each output."""

    has_one_scale: bool
    is_symmetric: bool
    activations: Activations = None

    @property
    def description(self) -> str:
        return f"int-quantized, 8 bits, one scale for {'all' if self.has_one_scale else 'each output'}"

    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        why, by_output = self.description, (layer.num_outputs, 1)
        tensors = {
            "weight": StoredTensor((layer.num_outputs, layer.num_inputs), ("I8",), why),
            "weight_scale": StoredTensor(by_output, FLOATS, why, is_single=self.has_one_scale),
        }
        if not self.is_symmetric:
            tensors["weight_zero_point"] = StoredTensor(by_output, ("I8",), why, is_single=self.has_one_scale)
        return tensors | _static_tensors(self.activations, why)

    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        check_finite(layer, tensors, "weight_scale")
        rounding = _rounding(self.activations, layer, tensors)
        return IntegerMatrix(int_quantized.unpack(tensors), dtype, device, rounding)


def _expected(
    shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, tuple[str, ...]], why: str
) -> dict[str, StoredTensor]:
    """Tensors of these shapes; words of 32 bits where `types` says nothing else."""
    return {name: StoredTensor(shape, types.get(name, ("I32",)), why) for name, shape in shapes.items()}


def _static_tensors(activations: Activations, why: str) -> dict[str, StoredTensor]:
    return activations.expected(why) if isinstance(activations, StaticRounding) else {}


def _rounding(
    activations: Activations, layer: LayerInFile, tensors: Mapping[str, Tensor]
) -> ActivationRounding | None:
    return activations.rounding(layer, tensors) if isinstance(activations, StaticRounding) else activations
