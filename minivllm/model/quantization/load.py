"""A quantised checkpoint into a decoder, one linear layer at a time.

    each linear layer ──► its parts (q, k, v) ──► their schemes ──► headers checked, of all layers
                                                       │
                    one layer's tensors read ──► matrices ──► stacked ──► the layer's place in the decoder

Nothing is ever dense but what is not quantised: besides the model itself, loading takes what one layer needs
while it is unpacked. Norms, biases and embeddings are loaded as always (`minivllm/model/weights.py`).

Read next: `scheme.py`, `stacked_matrix.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.layers import DenseMatrix, StackedLinear
from minivllm.model.matrix import Matrix
from minivllm.model.quantization.kv_scales import find_kv_scales, read_kv_scales
from minivllm.model.quantization.method import QuantizationMethod
from minivllm.model.quantization.scheme import LayerInFile, LinearScheme
from minivllm.model.quantization.stacked_matrix import stack
from minivllm.model.weights import Checkpoint, CheckpointError, StoredTensor

_HEAD = "lm_head"


@dataclass(frozen=True)
class StoredMatrix:
    """One named matrix of a checkpoint, and how it is stored; plain, if `scheme` is None."""

    layer: LayerInFile
    scheme: LinearScheme | None

    @property
    def expected(self) -> dict[str, StoredTensor]:
        """Its tensors by their full names."""
        if self.scheme is None:
            own = {"weight": StoredTensor((self.layer.num_outputs, self.layer.num_inputs))}
        else:
            own = self.scheme.expected(self.layer)
        return {f"{self.layer.name}.{name}": stored for name, stored in own.items()}

    def read(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Matrix:
        start = len(self.layer.name) + 1
        tensors = {name[start:]: tensor for name, tensor in checkpoint.read(self.expected).items()}
        if self.scheme is None:
            return DenseMatrix(tensors["weight"].to(device, dtype, copy=True))
        return self.scheme.matrix(self.layer, tensors, dtype, device)


def load_quantized(
    checkpoint: Checkpoint,
    config: ModelConfig,
    method: QuantizationMethod,
    dtype: torch.dtype,
    device: torch.device,
    *,
    tied: bool,
) -> Decoder:
    """A decoder whose linear layers are stored as `method` says.

    Raises:
        CheckpointError: a tensor is missing, misshapen, of another type, or holds what cannot be.
    """
    plan = plan_matrices(checkpoint, config, method, dtype, tied=tied)
    decoder = Decoder(config, dtype, device, tied=tied, matrix_device=torch.device("meta"))
    with torch.inference_mode():
        for (_, linear), group in zip(_linears(decoder), plan.groups, strict=True):
            linear.matrix = stack(
                [part.read(checkpoint, dtype, device) for part in group], [*linear.rows.values()]
            )
        if plan.head:
            decoder.head = plan.head.read(checkpoint, dtype, device)
        decoder.quantization = method.name
        decoder.kv_scales = read_kv_scales(checkpoint, config.num_layers)
    checkpoint.load_into(_plain_views(decoder), plan.others)
    return decoder


@dataclass(frozen=True)
class MatricesInFile:
    """Where all of a decoder's matrices are.

    Attributes:
        groups: for each linear layer, in the decoder's order, the matrices that are stacked there.
        head: of the logits, if it is not the embedding.
        plain: names of what is loaded as always.
        others: names of everything else that has a meaning.
    """

    groups: list[list[StoredMatrix]]
    head: StoredMatrix | None
    plain: frozenset[str]
    others: frozenset[str]


def plan_matrices(
    checkpoint: Checkpoint, config: ModelConfig, method: QuantizationMethod, dtype: torch.dtype, *, tied: bool
) -> MatricesInFile:
    """Find all matrices of a checkpoint, and check the headers of all that it has.

    Raises:
        CheckpointError: a tensor is missing, misshapen, or of another type.
    """
    parts = _Parts(checkpoint, method)
    skeleton = Decoder(config, dtype, torch.device("meta"), tied=tied)
    wanted = dict(_plain_views(skeleton))
    groups = [[*parts.of_linear(prefix, linear)] for prefix, linear in _linears(skeleton)]
    head = None if tied else parts.named(_HEAD, config.vocab_size, config.hidden_size)
    matrices: dict[str, StoredTensor] = {}
    for part in (part for group in (*groups, [head] if head else []) for part in group):
        matrices |= part.expected
    kv_names = find_kv_scales(checkpoint.file_of, config.num_layers)
    plain = {name: StoredTensor(tuple(view.shape)) for name, view in wanted.items()}
    checkpoint.check_stored(plain | matrices | kv_names, config.summary)
    unused = _check_unused_biases(checkpoint, wanted, groups)
    return MatricesInFile(groups, head, frozenset(wanted), frozenset({*matrices, *kv_names, *unused}))


class _Parts:
    """The named matrices of a checkpoint, as its files and its method describe them."""

    def __init__(self, checkpoint: Checkpoint, method: QuantizationMethod) -> None:
        self._checkpoint, self._method = checkpoint, method
        self._present: dict[str, set[str]] = {}
        for name in checkpoint.file_of:
            layer, _, kind = name.rpartition(".")
            self._present.setdefault(layer, set()).add(kind)

    def of_linear(self, prefix: str, linear: StackedLinear) -> Iterator[StoredMatrix]:
        for name, rows in linear.rows.items():
            yield self.named(f"{prefix}.{name}", rows, linear.in_size)

    def named(self, name: str, num_outputs: int, num_inputs: int) -> StoredMatrix:
        present = frozenset(self._present.get(name, ()))
        layer = LayerInFile(name, num_outputs, num_inputs, present)
        scheme = self._method.scheme(name)
        if scheme is not None and scheme.own_names and self._is_plain(layer, scheme):
            scheme = None  # the file says so, though its config does not
        return StoredMatrix(layer, scheme)

    def _is_plain(self, layer: LayerInFile, scheme: LinearScheme) -> bool:
        has_own = any(name in layer.present for name in scheme.own_names)
        return "weight" in layer.present and not has_own


def _linears(decoder: Decoder) -> Iterator[tuple[str, StackedLinear]]:
    for number, layer in enumerate(decoder.layers):
        yield from layer.named_linears(f"model.layers.{number}")


def _plain_views(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """What is loaded as always: all but the matrices of linear layers."""
    matrices = {f"{prefix}.{name}.weight" for prefix, linear in _linears(decoder) for name in linear.rows} | {
        f"{_HEAD}.weight"
    }
    for name, view in decoder.views():
        if name not in matrices:
            yield name, view


def _check_unused_biases(
    checkpoint: Checkpoint, wanted: dict[str, Tensor], groups: list[list[StoredMatrix]]
) -> list[str]:
    """Old tools write a bias of zeros for every layer, whether the model has one or not.

    Raises:
        CheckpointError: such a bias is not zero.
    """
    names = [f"{part.layer.name}.bias" for group in groups for part in group if "bias" in part.layer.present]
    unused = [name for name in names if name not in wanted]
    for name in unused:
        if bool(checkpoint.read([name])[name].any()):
            raise CheckpointError(f"{name} is not zero, but this model has no such bias")
    return unused
