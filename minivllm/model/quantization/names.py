"""What quantisations are called, in checkpoints and in the setting `quantization`. No tensors here.

    METHODS       how checkpoints are quantised: read as they are
    ROUNDINGS     what a plain checkpoint can be rounded to while it is loaded
    CALIBRATED    what a plain checkpoint is quantised by first, once (`minivllm/quantize.py`)

Read next: `read_method.py` for the first, `rounding.py` for the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.validation import shown

METHODS = ("gptq", "awq", "compressed-tensors", "fp8")
"""Values of `quant_method` in a config.json."""
ALIASES = {"gptq_marlin": "gptq", "awq_marlin": "awq", "auto_gptq": "gptq", "auto_awq": "awq"}
"""Other names that vLLM knows methods by: those of its kernels."""
ROUNDINGS = ("int8", "int4", "fp8")
CALIBRATED = ("awq", "gptq")
SETTINGS = (*dict.fromkeys((*METHODS, *ROUNDINGS, *ALIASES)),)
"""Values of the setting."""


def method_name(settings: Mapping[str, Any]) -> str:
    """The method that a `quantization_config` names.

    Raises:
        ValueError: it names none, or one that is not known.
    """
    named = settings.get("quant_method")
    known = f"known are {', '.join(METHODS)}"
    if named is None:
        raise ValueError(f"quantization_config.quant_method is missing; {known}")
    name = ALIASES.get(named, named) if isinstance(named, str) else named
    if name not in METHODS:
        raise ValueError(
            f"quantization_config.quant_method: weights quantised with {shown(named)} cannot be read; {known}"
        )
    return str(name)
