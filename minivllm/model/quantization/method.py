"""Which quantisation a checkpoint has: `quantization_config` in its config.json, read and checked.

    config.json ──► read_method ──► QuantizationMethod ──► scheme("model.layers.0.mlp.down_proj")
                                                                │
                                                  LinearScheme, or None: the layer is not quantised

    quant_method          module                    formats
    ───────────────────   ───────────────────────   ─────────────────────────────────────────────────────────
    gptq                  `gptq_method.py`          checkpoint_format gptq (v1), gptq_v2
    awq                   `awq_method.py`           version gemm
    compressed-tensors    `compressed_tensors.py`   pack-quantized, int-quantized, float-quantized
    fp8                   `fp8_method.py`           a scale for each matrix, or for each block

A key that would have to be ignored is refused by name: wrong weights are worse than none.

Read next: `scheme.py`, then `load.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from minivllm.model.quantization.names import method_name
from minivllm.model.quantization.scheme import LinearScheme
from minivllm.validation import check_choice, check_list, check_text, shown


class QuantizationMethod(ABC):
    """How the linear layers of one checkpoint are stored."""

    name: str
    """One of `METHODS` or `ROUNDINGS` (`names.py`)."""

    @abstractmethod
    def scheme(self, module: str) -> LinearScheme | None:
        """That of the linear layer of this name in the checkpoint; None if it is not quantised."""


def read_method(settings: object) -> QuantizationMethod | None:
    """What a `quantization_config` says; None if there is none.

    Raises:
        ValueError: the key at fault, its value, and what is allowed.
    """
    from minivllm.model.quantization.awq_method import AwqMethod
    from minivllm.model.quantization.compressed_tensors import CompressedTensorsMethod
    from minivllm.model.quantization.fp8_method import Fp8Method
    from minivllm.model.quantization.gptq_method import GptqMethod

    if settings is None or settings == {}:
        return None
    if not isinstance(settings, Mapping):
        raise ValueError(f"quantization_config must be an object, got {shown(settings)}")
    methods: dict[str, Callable[[Mapping[str, Any]], QuantizationMethod]] = {
        "gptq": GptqMethod, "awq": AwqMethod, "compressed-tensors": CompressedTensorsMethod, "fp8": Fp8Method,
    }  # fmt: skip
    return methods[method_name(settings)](settings)


# ---- what the readers of settings share ---------------------------------------------------------------


def first_of(settings: Mapping[str, Any], *keys: str) -> tuple[str, object]:
    """The first of these keys that is set, under its full name, and its value; None if there is none."""
    for key in keys:
        if settings.get(key) is not None:
            return f"quantization_config.{key}", settings[key]
    return f"quantization_config.{keys[0]}", None


def names_of(settings: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    """A list of modules under any of these keys; none if they are absent."""
    name, value = first_of(settings, *keys)
    if value is None:
        return ()
    return tuple(
        check_text(f"{name}[{i}]", item) for i, item in enumerate(check_list(name, value, of="names"))
    )


def compiled_pattern(name: str, pattern: str) -> re.Pattern[str]:
    """A regular expression of a config, or `ValueError` naming where it stands."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{name}: {shown(pattern)} is no regular expression ({error})") from None


def is_part_of(entry: str, module: str) -> bool:
    """Does an entry of a list name this module or something around it? In whole words: "layers.1" is not
    in "layers.10"."""
    return f".{entry}." in f".{module}."


def check_one(name: str, value: object, only: str) -> None:
    """A setting that has one value which can be read."""
    check_choice(name, value, (only,))
