"""Which quantisation a model is loaded with: what its checkpoint says, and what was asked for.

    checkpoint          quantization=…            loaded
    ─────────────────   ───────────────────────   ─────────────────────────────────────────────────────
    plain               None                      plain
    plain               "int8", "int4", "fp8"     rounded to the nearest (`rounding.py`)
    plain               "awq", "gptq"             refused: the engine calibrates first, and loads the result
    plain               "compressed-tensors"      refused: it has no one method
    quantised           None, or its method       as it is
    quantised           anything else             refused, with both names

Read next: `read_method.py`, `rounding.py`, `load.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.model.quantization.method import QuantizationMethod
from minivllm.model.quantization.names import ALIASES, METHODS, ROUNDINGS, SETTINGS, method_name
from minivllm.model.quantization.read_method import read_method
from minivllm.model.quantization.rounding import RoundingMethod
from minivllm.validation import check_choice


def choose_method(stored: Mapping[str, Any] | None, asked: str | None) -> QuantizationMethod | None:
    """The method of the table above.

    Args:
        stored: the checkpoint's `quantization_config`, None if it has none.
        asked: the setting.

    Raises:
        ValueError: the two do not go together, or the config cannot be read.
    """
    if asked is not None:
        check_choice("quantization", asked, SETTINGS)
        asked = ALIASES.get(asked, asked)
    if not stored:
        return None if asked is None else method_at_load(asked)
    own = method_name(stored)
    if asked is not None and asked != own:
        raise ValueError(
            f"quantization is {asked!r}, but the checkpoint's config.json says {own!r}: leave the setting "
            "out, and it is read as it is"
        )
    return read_method(stored)


def method_at_load(asked: str) -> QuantizationMethod:
    """What becomes of a plain checkpoint. Whatever is calibrated at load will be named here.

    Raises:
        ValueError: nothing of this name can be made while loading.
    """
    if asked in ROUNDINGS:
        return RoundingMethod(asked)
    assert asked in METHODS
    raise ValueError(
        f"quantization is {asked!r}, but the checkpoint is not quantised, and {asked} is made by a "
        f"calibration beforehand; without one, weights can be rounded at load: {', '.join(ROUNDINGS)}"
    )
