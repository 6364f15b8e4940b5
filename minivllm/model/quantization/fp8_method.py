"""`quant_method: fp8`: what the checkpoints of DeepSeek and Qwen, and others in FP8, say of themselves.

    weight_block_size                          [128, 128]: a scale for each block, in `weight_scale_inv`;
                                               absent: one for each matrix, in `weight_scale`
    activation_scheme                          dynamic or static (`float8_matrix.py` says what becomes of it)
    fmt                                        e4m3
    modules_to_not_convert, ignored_layers     names, or whole words of them

The output matrix is not quantised. Source: vLLM `model_executor/layers/quantization/fp8.py`; transformers'
`FineGrainedFP8Config`. Read next: `float8_scheme.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.model.quantization.float8_scheme import TENSOR, Float8Scheme
from minivllm.model.quantization.float8_weights import SCALE, SCALE_INV
from minivllm.model.quantization.method import QuantizationMethod, check_one, first_of, is_part_of, names_of
from minivllm.model.quantization.scheme import LinearScheme
from minivllm.validation import check_choice, check_integer, check_list, shown


class Fp8Method(QuantizationMethod):
    """The settings of an FP8 checkpoint."""

    name = "fp8"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        where, scheme = first_of(settings, "activation_scheme")
        check_choice(where, scheme or "dynamic", ("dynamic", "static"))
        where, kind = first_of(settings, "fmt")
        check_one(where, kind or "e4m3", "e4m3")
        where, sizes = first_of(settings, "weight_block_size")
        self._scheme = Float8Scheme(TENSOR, SCALE)
        if sizes is not None:
            self._scheme = Float8Scheme(block_size(where, sizes), SCALE_INV)
        self._plain = names_of(settings, "modules_to_not_convert", "ignored_layers")

    def scheme(self, module: str) -> LinearScheme | None:
        if module == "lm_head" or any(is_part_of(entry, module) for entry in self._plain):
            return None
        return self._scheme


def block_size(name: str, sizes: object) -> tuple[int, int]:
    """Two sizes, of outputs and inputs."""
    both = check_list(name, sizes, of="two sizes")
    if len(both) != 2:
        raise ValueError(f"{name} must be two sizes, of outputs and inputs, got {shown(sizes)}")
    rows, columns = (check_integer(f"{name}[{i}]", size, at_least=1) for i, size in enumerate(both))
    return rows, columns
