"""`quant_method: compressed-tensors`: what llm-compressor says of its checkpoints.

    config_groups     {"group_0": {targets, weights: {…}, input_activations: {…} | null, format}}
    format            pack-quantized, int-quantized, float-quantized; of all groups that do not name their own
    ignore            layers that are not quantised
    targets, ignore   names, "re:" and a regular expression, or "Linear" for all linear layers

A layer belongs to the group that names it, by name before pattern before class. The output matrix is a linear
layer like the others, so "ignore" nearly always has "lm_head".

Source: vllm-project/compressed-tensors 0.19 `quantization/quant_scheme.py`, `utils/match.py`.
Read next: `integer_schemes.py`, `float8_scheme.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.float8_scheme import CHANNEL, TENSOR, Float8Scheme
from minivllm.model.quantization.fp8_method import block_size
from minivllm.model.quantization.integer_schemes import Activations, BytesScheme, PackedScheme, StaticRounding
from minivllm.model.quantization.method import QuantizationMethod, compiled_pattern, names_of
from minivllm.model.quantization.scheme import LinearScheme
from minivllm.validation import check_boolean, check_choice, check_integer, check_list, check_text, shown

FORMATS = ("pack-quantized", "int-quantized", "float-quantized")
NAIVE = "naive-quantized"
"""An older name of the last two."""
_ABOUT = "quantization_config"
_ORDERS = {"group": True, "dynamic": True, "weight": False, "static": False, "none": False}
"""Values of `actorder`, and whether they leave an order in the file."""


@dataclass(frozen=True)
class _Group:
    targets: tuple[str, ...]
    scheme: LinearScheme


class CompressedTensorsMethod(QuantizationMethod):
    """The settings of a compressed-tensors checkpoint."""

    name = "compressed-tensors"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        for key in ("sparsity_config", "transform_config"):
            _refuse_more_than_nothing(key, settings.get(key))
        groups = _object(f"{_ABOUT}.config_groups", settings.get("config_groups"))
        if not groups:
            raise ValueError(f"{_ABOUT}.config_groups is empty: it says how layers are quantised")
        self._ignore = names_of(settings, "ignore")
        for pattern in self._ignore:
            _check_pattern(f"{_ABOUT}.ignore", pattern)
        self._groups = tuple(
            _read_group(f"{_ABOUT}.config_groups.{name}", group, settings.get("format"))
            for name, group in groups.items()
        )

    def scheme(self, module: str) -> LinearScheme | None:
        if any(_matches(entry, module) for entry in self._ignore):
            return None
        ranked = [
            (rank, index)
            for index, group in enumerate(self._groups)
            for target in group.targets
            if (rank := _matches(target, module))
        ]
        if not ranked:
            return None
        _, index = max(ranked, key=lambda found: (found[0], -found[1]))
        return self._groups[index].scheme


def _matches(entry: str, module: str) -> int:
    """How closely an entry names a linear layer: 3 by its name, 2 by a pattern, 1 by its class, 0 not."""
    if entry.startswith("re:"):
        return 2 if compiled_pattern(f"{_ABOUT}", entry[3:]).match(module) else 0
    return 3 if entry == module else 1 if entry == "Linear" else 0


def _check_pattern(where: str, entry: str) -> None:
    if entry.startswith("re:"):
        compiled_pattern(where, entry[3:])


def _read_group(where: str, value: object, whole_format: object) -> _Group:
    group = _object(where, value)
    targets = tuple(
        check_text(f"{where}.targets[{i}]", target)
        for i, target in enumerate(check_list(f"{where}.targets", group.get("targets"), of="names"))
    )
    for target in targets:
        _check_pattern(f"{where}.targets", target)
    if group.get("output_activations") is not None:
        raise ValueError(f"{where}.output_activations: rounded outputs are not computed here")
    weights = _object(f"{where}.weights", group.get("weights"))
    named = group.get("format") or whole_format
    kind = check_choice(f"{where}.weights.type", weights.get("type", "int"), ("int", "float"))
    if named == NAIVE:
        named = "int-quantized" if kind == "int" else "float-quantized"
    layout = check_choice(f"{where}.format" if group.get("format") else f"{_ABOUT}.format", named, FORMATS)
    if (layout == "float-quantized") != (kind == "float"):
        raise ValueError(f"{where}.weights.type is {kind!r}, which format {layout!r} does not hold")
    if check_boolean(f"{where}.weights.dynamic", weights.get("dynamic", False)):
        raise ValueError(f"{where}.weights.dynamic must be False: weights in a file are fixed, got True")
    inputs = group.get("input_activations")
    rounding = _read_activations(f"{where}.input_activations", inputs) if kind == "int" else None
    makers = {
        "pack-quantized": _packed_scheme, "int-quantized": _bytes_scheme, "float-quantized": _float8_scheme,
    }  # fmt: skip
    return _Group(targets, makers[layout](f"{where}.weights", weights, rounding))


def _packed_scheme(where: str, weights: Mapping[str, Any], activations: Activations) -> LinearScheme:
    bits = check_integer(f"{where}.num_bits", weights.get("num_bits", 8), at_least=1, at_most=8)
    strategy = _strategy(where, weights, ("group", "channel"))
    size = weights.get("group_size")
    group_size = -1
    if strategy == "group":
        group_size = check_integer(f"{where}.group_size", size, at_least=1)
    actorder = weights.get("actorder")
    if isinstance(actorder, bool):  # as older files say it
        actorder = "group" if actorder else "none"
    order = _ORDERS[check_choice(f"{where}.actorder", actorder or "none", tuple(_ORDERS))]
    return PackedScheme(
        bits, group_size, _symmetric(where, weights), order and strategy == "group", activations
    )


def _bytes_scheme(where: str, weights: Mapping[str, Any], activations: Activations) -> LinearScheme:
    _eight_bits(where, weights)
    strategy = _strategy(where, weights, ("channel", "tensor"))
    return BytesScheme(strategy == "tensor", _symmetric(where, weights), activations)


def _float8_scheme(where: str, weights: Mapping[str, Any], activations: Activations) -> LinearScheme:
    _eight_bits(where, weights)
    if not _symmetric(where, weights):
        raise ValueError(f"{where}.symmetric must be True for floats, got False")
    strategy = _strategy(where, weights, ("channel", "tensor", "block"))
    if strategy == "block":
        return Float8Scheme(block_size(f"{where}.block_structure", weights.get("block_structure")))
    return Float8Scheme(TENSOR if strategy == "tensor" else CHANNEL)


def _read_activations(where: str, value: object) -> Activations:
    """How activations are rounded to whole numbers, if they are."""
    if value is None:
        return None
    settings = _object(where, value)
    check_choice(f"{where}.type", settings.get("type", "int"), ("int",))
    _eight_bits(where, settings)
    is_symmetric = _symmetric(where, settings)
    if check_boolean(f"{where}.dynamic", settings.get("dynamic", False)):
        _strategy(where, settings, ("token",))
        return ActivationRounding(is_symmetric)
    _strategy(where, settings, ("tensor",))
    return StaticRounding(is_symmetric)


def _strategy(where: str, settings: Mapping[str, Any], allowed: tuple[str, ...]) -> str:
    """As it is named, or as compressed-tensors infers it."""
    named = settings.get("strategy")
    if named is None:
        size = settings.get("group_size")
        named = "tensor" if size is None else "channel" if size == -1 else "group"
    return check_choice(f"{where}.strategy", named, allowed)


def _symmetric(where: str, settings: Mapping[str, Any]) -> bool:
    return check_boolean(f"{where}.symmetric", settings.get("symmetric", True))


def _eight_bits(where: str, settings: Mapping[str, Any]) -> None:
    check_integer(f"{where}.num_bits", settings.get("num_bits", 8), at_least=8, at_most=8)


def _object(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {shown(value)}")
    return value


def _refuse_more_than_nothing(key: str, value: object) -> None:
    """Sparsity and rotations: present in every file, and empty in those that can be read."""
    is_nothing = value in (None, {}) or (
        isinstance(value, Mapping) and (value.get("format") == "dense" or value == {"config_groups": {}})
    )
    if not is_nothing:
        raise ValueError(
            f"{_ABOUT}.{key} must be empty: nothing of that kind is computed here; got {shown(value)}"
        )
