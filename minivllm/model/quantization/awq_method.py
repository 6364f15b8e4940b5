"""`quant_method: awq`: what AutoAWQ says of its checkpoints.

    bits (w_bit), group_size (q_group_size)     4 bits only
    version                                     gemm only: `gemv`, `marlin` and others lie in another order
    zero_point                                  false: symmetric; the zeros are in the file all the same
    modules_to_not_convert                      parts of names; layers that have one are not quantised

The output matrix never is. Source: casper-hansen/AutoAWQ `awq/models/_config.py`; transformers reads it so.
Read next: `integer_schemes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.model.quantization.awq import BITS
from minivllm.model.quantization.integer_schemes import AwqScheme
from minivllm.model.quantization.method import QuantizationMethod, check_one, first_of, names_of
from minivllm.model.quantization.scheme import LinearScheme
from minivllm.validation import check_integer


class AwqMethod(QuantizationMethod):
    """The settings of an AWQ checkpoint."""

    name = "awq"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        where, bits = first_of(settings, "bits", "w_bit")
        if bits is None:
            raise ValueError(f"{where} is missing")
        if check_integer(where, bits) != BITS:
            raise ValueError(f"{where} must be {BITS}: AWQ's files have no other; got {bits}")
        where, size = first_of(settings, "group_size", "q_group_size")
        group_size = check_integer(where, -1 if size is None else size, at_least=-1)
        if group_size == 0:
            raise ValueError(f"{where} must be -1 (one group) or at least 1, got 0")
        where, version = first_of(settings, "version")
        check_one(where, version.lower() if isinstance(version, str) else version or "gemm", "gemm")
        self._scheme = AwqScheme(group_size)
        self._plain = names_of(settings, "modules_to_not_convert")

    def scheme(self, module: str) -> LinearScheme | None:
        if module == "lm_head" or any(entry in module for entry in self._plain):
            return None
        return self._scheme
