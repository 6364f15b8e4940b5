"""Which quantisation a checkpoint has: `quantization_config` in its config.json, read and checked.

    quant_method          module                    formats
    ───────────────────   ───────────────────────   ─────────────────────────────────────────────────────────
    gptq                  `gptq_method.py`          checkpoint_format gptq (v1), gptq_v2
    awq                   `awq_method.py`           version gemm
    compressed-tensors    `compressed_tensors.py`   pack-quantized, int-quantized, float-quantized
    fp8                   `fp8_method.py`           a scale for each matrix, or for each block

Read next: `method.py`, then `choose.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minivllm.model.quantization.awq_method import AwqMethod
from minivllm.model.quantization.compressed_tensors import CompressedTensorsMethod
from minivllm.model.quantization.fp8_method import Fp8Method
from minivllm.model.quantization.gptq_method import GptqMethod
from minivllm.model.quantization.method import QuantizationMethod
from minivllm.model.quantization.names import method_name
from minivllm.validation import shown


def read_method(settings: object) -> QuantizationMethod | None:
    """What a `quantization_config` says; None if there is none.

    Raises:
        ValueError: the key at fault, its value, and what is allowed.
    """
    if settings is None or settings == {}:
        return None
    if not isinstance(settings, Mapping):
        raise ValueError(f"quantization_config must be an object, got {shown(settings)}")
    methods: dict[str, Callable[[Mapping[str, Any]], QuantizationMethod]] = {
        "gptq": GptqMethod, "awq": AwqMethod, "compressed-tensors": CompressedTensorsMethod, "fp8": Fp8Method,
    }  # fmt: skip
    return methods[method_name(settings)](settings)
