"""What a linear layer multiplies by: a matrix [out, in], in whatever format it is stored.

A checkpoint has weights row after row. A processor may read them faster in another order, and a quantised
format stores less than one number a weight. So a layer holds a `Matrix` and asks it for products; the layer,
the decoder and the sizing of the cache know no format:

    format     module                                  stored as
    ────────   ─────────────────────────────────────   ──────────────────────────────────────────────────────
    dense      `layers.py`: DenseMatrix                rows, as a checkpoint has them; every layer starts so
    oneDNN     `packed.py`: OneDnnMatrix               an order of oneDNN's own (`executor/runners/fused.py`)
    panels     `executor/runners/compiled.py`:         columns cut into panels, for our own kernels
               PanelMatrix
    integers   `quantization/integer_matrix.py`        codes of 1 to 8 bits, scales of groups
               `executor/runners/quantized_panels.py`  the same, in panels for our own kernels on a CPU
               `executor/runners/kernel_matrix.py`     as they are, for our own kernel on a GPU
    float8     `quantization/float8_matrix.py`         e4m3 numbers, scales of blocks
               `executor/runners/float8_panels.py`     the same, in panels for our own kernels on a CPU
    stacked    `quantization/stacked_matrix.py`        parts that each have a format of their own

A decoder is loaded dense, unless its checkpoint is quantised; a runner that multiplies in another format
converts what is dense (`Decoder.convert`). A new format is one more class with these members, and a line
above.

Read next: `minivllm/model/layers.py`, whose linear layers multiply by matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from torch import Tensor

NamedViews = Iterator[tuple[str, Tensor]]


class Matrix(ABC):
    """Weights [out, in]."""

    @abstractmethod
    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`: [T, out] for `x` [T, in], `bias` [out] and `added` [T, out]."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weights row by row: the memory itself if they are stored so, otherwise a copy."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the weights in this format, padding not counted: what a product must read of them."""

    @property
    def is_quantized(self) -> bool:
        """Are weights stored as small numbers? Then runners leave them so, or convert them knowing it."""
        return False

    def shard(self, rows: slice, columns: slice) -> Matrix:
        """These rows and columns alone, in the same format, of the same values; it shares no memory.

        Raises:
            ValueError: this format, or what is done with its inputs, cannot be shared among ranks.
        """
        raise ValueError(f"{type(self).__name__} cannot be shared among ranks")

    def views(self, rows: Mapping[str, int]) -> NamedViews:
        """Its tensors under their names in the checkpoint: a loader writes into them.

        `rows` says how many rows of the matrix each name has, in order. A format that is only converted to
        gives copies, to be read; so do quantised weights, whose own tensors a loader reads in another way
        (`quantization/load.py`).
        """
        weight, start = self.dense(), 0
        for name, size in rows.items():
            yield f"{name}.weight", weight[start : start + size]
            start += size
