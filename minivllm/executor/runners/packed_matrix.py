"""What all quantised matrices in panels have in common: the product, by our own kernels.

Read next: `quantized_panels.py` for whole numbers, `float8_panels.py` for 8-bit floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels_numba.cpu.matrix_packing import Packed
from kernels_numba.cpu.matrix_products import OUTPUTS, multiply_quantized
from kernels_numba.cpu.panels import padded
from minivllm.executor.cpu_hazards import set_numba_threads
from minivllm.model.matrix import Matrix
from minivllm.model.packed import as_array


class PackedMatrix(Matrix):
    """Small numbers in panels.

    Attributes:
        packed: as compiled code takes them.
    """

    packed: Packed

    @property
    def is_quantized(self) -> bool:
        return True

    def product(self, x: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """`x Wᵀ + bias + added`, summed in float32 and rounded to the type of `x` before what is added."""
        num_outputs = int(self.packed.row[OUTPUTS])
        out = torch.empty(len(x), padded(num_outputs))
        multiply_quantized(as_array(self._left(x)), self.packed.row, out.numpy(), True, set_numba_threads())
        product = out[:, :num_outputs]
        if bias is not None:
            product = product.add_(bias)
        product = product.to(x.dtype)
        return product.contiguous() if added is None else product.add_(added)

    def _left(self, x: Tensor) -> Tensor:
        """What is multiplied, for these inputs."""
        return x.contiguous()
