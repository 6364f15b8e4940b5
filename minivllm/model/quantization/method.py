"""A checkpoint's quantisation: what every method has, and what the readers of its settings share.

    config.json ──► `read_method.py` ──► QuantizationMethod ──► scheme("model.layers.0.mlp.down_proj")
                                                                     │
                                                       LinearScheme, or None: the layer is not quantised

A key that would have to be ignored is refused by name: wrong weights are worse than none.

Read next: `read_method.py`, `scheme.py`, then `load.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from minivllm.model.quantization.scheme import LinearScheme
from minivllm.validation import check_choice, check_list, check_text, shown


class QuantizationMethod(ABC):
    """How the linear layers of one checkpoint are stored."""

    name: str
    """One of `METHODS` or `ROUNDINGS` (`names.py`)."""

    @abstractmethod
    def scheme(self, module: str) -> LinearScheme | None:
        """That of the linear layer of this name in the checkpoint; None if it is not quantised."""


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
