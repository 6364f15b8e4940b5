"""What is put side by side: the same model in twelve precisions, and how each is made.

    float32, bfloat16         the weights as they are
    FP8, INT8                 rounded to the nearest while they are loaded
    INT4 by RTN, AWQ, GPTQ    the same grid for all three: 4 bits, asymmetric, groups of one size
    W8A8                      SmoothQuant: activations of 8 bits, too
    KV INT8, KV FP8           weights of 32 bits, keys and values of 8
    … decode                  prompts with the full weights, generated tokens with rounded weights

Quality: all compute in float32 but the second, so what differs from the first is what the rounding did.

Read next: `precision_quality.py`, `precision_speed.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.settings import settings_of
from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.algorithms.rounding import Grid
from minivllm.validation import shown

KV = "kv_cache_dtype"
SPEED_GROUP = 128
"""What published checkpoints of 4 bits have; the small models measured have inputs that it divides."""


@dataclass(frozen=True)
class Variant:
    """One precision.

    Attributes:
        name: in tables.
        what: which of "weights", "cache" and "phase" is in other numbers; "" for the reference.
        settings: of `EngineArgs`, beside the model.
        method: how a checkpoint is made first, and the options of that; None: none is made.
        grid: of the matrices whose speed is measured, where no setting makes them.
        activations: how what is multiplied there is rounded.
        speed_of: the variant whose matrices lie in memory as its own do, and whose speed is taken; its own
            if None.
    """

    name: str
    what: str = "weights"
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: tuple[str, Mapping[str, Any]] | None = None
    grid: Grid | None = None
    activations: ActivationRounding | None = None
    speed_of: str | None = None

    @property
    def lacking(self) -> str:
        """The setting that it needs and that this version does not have; "" if it can run."""
        known = settings_of(EngineArgs)
        return next((name for name in self.settings if name not in known), "")


INT4_GRID = {"bits": 4, "symmetric": False}
RTN = "INT4 RTN"
REFERENCE = "float32"
SIXTEEN_BITS = "bfloat16"
VARIANTS = (
    Variant(REFERENCE, ""),
    Variant(SIXTEEN_BITS, settings={"dtype": "bfloat16"}),
    Variant("FP8", settings={"quantization": "fp8"}),
    Variant("INT8", settings={"quantization": "int8"}),
    Variant(RTN, method=("rtn", INT4_GRID | {"scale_dtype": torch.float16}), grid=Grid(4, SPEED_GROUP)),
    Variant("INT4 AWQ", method=("awq", {}), speed_of=RTN),
    Variant(
        "INT4 GPTQ",
        method=("gptq", INT4_GRID | {"act_order": True, "static_groups": True}),
        speed_of=RTN,
    ),
    Variant(
        "W8A8",
        method=("smoothquant", {}),
        grid=Grid(8, -1, symmetric=True),
        activations=ActivationRounding(),
    ),
    Variant("KV INT8", "cache", {KV: "int8_per_token_head"}),
    Variant("KV FP8", "cache", {KV: "fp8"}),
    Variant("INT8 decode", "phase", {"decode_weight_dtype": "int8"}),
    Variant("INT4 decode", "phase", {"decode_weight_dtype": "int4"}),
)


def choose_variants(names: str) -> list[Variant]:
    """Those of a list with commas, the reference first, which the others are compared with; all of "".

    Raises:
        ValueError: there is none of that name.
    """
    by_name = {variant.name.lower(): variant for variant in VARIANTS}
    if not names.strip():
        return list(VARIANTS)
    known = ", ".join(variant.name for variant in VARIANTS)
    wanted = [name for part in names.split(",") if (name := part.strip())]
    if not wanted:
        raise ValueError(f"precisions must be some of {known}, got {shown(names)}")
    chosen = []
    for name in wanted:
        if name.lower() not in by_name:
            raise ValueError(f"precisions must be some of {known}, got {shown(name)}")
        chosen.append(by_name[name.lower()])
    return [variant for variant in VARIANTS if variant.name == REFERENCE or variant in chosen]
