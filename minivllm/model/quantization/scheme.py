"""How one linear layer lies in a file, and the matrix that is made of it.

    LinearScheme.expected(layer)            which tensors there must be, of which shapes and types
    LinearScheme.matrix(layer, tensors)     what the layer multiplies by

A quantisation method (`method.py`) gives every layer its scheme; the loader (`load.py`) checks the headers of
all layers against their schemes before it reads the first one.

Read next: `method.py`, then `integer_schemes.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.matrix import Matrix
from minivllm.model.weights import CheckpointError, StoredTensor

FLOATS = ("F16", "BF16", "F32")
"""Types of scales."""


@dataclass(frozen=True)
class LayerInFile:
    """A linear layer [num_outputs, num_inputs].

    Attributes:
        name: what the names of its tensors begin with: "model.layers.0.mlp.down_proj".
        present: what of it is in the file: "qweight", "scales", …
    """

    name: str
    num_outputs: int
    num_inputs: int
    present: frozenset[str]

    def num_groups(self, group_size: int) -> int:
        """Groups along its inputs; a size of −1 is one group.

        Raises:
            CheckpointError: groups do not divide the inputs.
        """
        if group_size == -1:
            return 1
        if self.num_inputs % group_size:
            raise CheckpointError(
                f"{self.name} has {self.num_inputs} inputs, which groups of {group_size} do not divide"
            )
        return self.num_inputs // group_size

    def check_words(self, what: str, count: int, bits: int) -> None:
        """Do `count` codes fill their words?"""
        if count * bits % 32:
            raise CheckpointError(
                f"{self.name} has {count} {what}, whose {bits}-bit codes do not fill words of 32 bits"
            )


class LinearScheme(ABC):
    """One way to store a linear layer."""

    @property
    @abstractmethod
    def description(self) -> str:
        """For messages: "gptq, 4 bits, groups of 128"."""

    @abstractmethod
    def expected(self, layer: LayerInFile) -> dict[str, StoredTensor]:
        """The tensors that `matrix` is given, by what follows the layer's name."""

    @abstractmethod
    def matrix(
        self, layer: LayerInFile, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Matrix:
        """The layer's matrix, for a model of this type; it shares no memory with `tensors`.

        Raises:
            CheckpointError: numbers that cannot be.
        """

    @property
    def own_names(self) -> tuple[str, ...]:
        """Tensors by whose names a layer of this scheme is told from a plain one; none if it has the same."""
        return ()


def check_finite(layer: LayerInFile, tensors: Mapping[str, Tensor], *names: str) -> None:
    """Are all numbers of these tensors finite?"""
    for name in names:
        if name in tensors and (bad := int((~torch.isfinite(tensors[name].float())).sum())):
            raise CheckpointError(f"{layer.name}.{name} has {bad} numbers that are not finite")


def check_groups(layer: LayerInFile, name: str, group_of: Tensor | None, num_groups: int) -> None:
    """Is every input in a group that exists?"""
    if group_of is None or not len(group_of):
        return
    lowest, highest = int(group_of.min()), int(group_of.max())
    if lowest < 0 or highest >= num_groups:
        raise CheckpointError(
            f"{layer.name}.{name} names groups {lowest} to {highest}, but there are {num_groups}, from 0 on"
        )


def group_words(group_size: int) -> str:
    return "one group" if group_size == -1 else f"groups of {group_size}"
