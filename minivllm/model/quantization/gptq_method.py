"""`quant_method: gptq`: what GPTQModel and AutoGPTQ say of their checkpoints.

    bits, group_size, desc_act, sym     for all layers
    checkpoint_format                   gptq (v1) or gptq_v2, see `gptq.py`
    lm_head                             whether the output matrix is quantised, too
    dynamic                             {"-:regex": {}: not quantised, "+:regex": {"bits": 8, …}: otherwise}
    modules_in_block_to_quantize        [["self_attn.q_proj", …], …]: the others are not

Source: ModelCloud/GPTQModel `quantization/config.py`. Read next: `integer_schemes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minivllm.model.quantization import gptq
from minivllm.model.quantization.integer_schemes import GptqScheme
from minivllm.model.quantization.method import (
    QuantizationMethod,
    check_one,
    compiled_pattern,
    first_of,
    is_part_of,
)
from minivllm.model.quantization.scheme import LinearScheme
from minivllm.validation import check_boolean, check_choice, check_integer, check_list, check_text, shown

_ABOUT = "quantization_config"


class GptqMethod(QuantizationMethod):
    """The settings of a GPTQ checkpoint."""

    name = "gptq"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        where, version = first_of(settings, "checkpoint_format", "format")
        version = check_choice(where, version or gptq.V1, gptq.VERSIONS)
        self._scheme = _override(GptqScheme(4, -1, False, True, version), settings, _ABOUT, is_whole=True)
        self._quantizes_head = _flag(settings, "lm_head", default=False)
        self._overrides = tuple(_read_overrides(settings.get("dynamic"), self._scheme))
        self._only = tuple(_read_only(settings.get("modules_in_block_to_quantize")))

    def scheme(self, module: str) -> LinearScheme | None:
        if module == "lm_head" and not self._quantizes_head:
            return None
        for pattern, scheme in self._overrides:
            if pattern.match(module):
                return scheme
        if module == "lm_head":
            return self._scheme
        if self._only and not any(is_part_of(name, module) for name in self._only):
            return None
        return self._scheme


def _override(
    scheme: GptqScheme, settings: Mapping[str, Any], where: str, *, is_whole: bool = False
) -> GptqScheme:
    """The scheme with what `settings` say otherwise; `is_whole`: they say all."""
    if is_whole and "bits" not in settings:
        raise ValueError(f"{where}.bits is missing")
    if "bits" in settings:
        scheme = replace(scheme, bits=check_integer(f"{where}.bits", settings["bits"], at_least=1))
    if "group_size" in settings:
        size = check_integer(f"{where}.group_size", settings["group_size"], at_least=-1)
        scheme = replace(scheme, group_size=size)
    if scheme.bits not in gptq.BITS:
        raise ValueError(f"{where}.bits must be one of {', '.join(map(str, gptq.BITS))}, got {scheme.bits}")
    if scheme.group_size == 0:
        raise ValueError(f"{where}.group_size must be -1 (one group) or at least 1, got 0")
    scheme = replace(
        scheme,
        has_order=check_boolean(f"{where}.desc_act", settings.get("desc_act", scheme.has_order)),
        is_symmetric=check_boolean(f"{where}.sym", settings.get("sym", scheme.is_symmetric)),
    )
    if settings.get("pack_dtype") is not None:
        check_one(f"{where}.pack_dtype", settings["pack_dtype"], "int32")
    return scheme


def _read_overrides(dynamic: object, scheme: GptqScheme) -> list[tuple[re.Pattern[str], GptqScheme | None]]:
    """`dynamic`: for modules whose names match, in order, another scheme or none."""
    if not isinstance(dynamic, Mapping | None):
        raise ValueError(f"{_ABOUT}.dynamic must be an object, got {shown(dynamic)}")
    found: list[tuple[re.Pattern[str], GptqScheme | None]] = []
    for key, settings in (dynamic or {}).items():
        where = f"{_ABOUT}.dynamic[{shown(key)}]"
        pattern = compiled_pattern(where, key.removeprefix("-:").removeprefix("+:"))
        if key.startswith("-:") or settings is False:
            found.append((pattern, None))
        elif isinstance(settings, Mapping):
            found.append((pattern, _override(scheme, settings, where)))
        else:
            raise ValueError(f"{where} must be an object, got {shown(settings)}")
    return found


def _read_only(groups: object) -> list[str]:
    """`modules_in_block_to_quantize`: a list of lists of names, or one list."""
    where = f"{_ABOUT}.modules_in_block_to_quantize"
    found: list[str] = []
    for i, group in enumerate(check_list(where, groups, of="names") if groups is not None else ()):
        names = [group] if isinstance(group, str) else check_list(f"{where}[{i}]", group, of="names")
        found += [check_text(f"{where}[{i}]", name) for name in names]
    return found


def _flag(settings: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = settings.get(key)
    return default if value is None else check_boolean(f"{_ABOUT}.{key}", value)
