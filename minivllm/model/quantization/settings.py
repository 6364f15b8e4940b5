"""What to quantise a model to, and how: the settings of `minivllm quantize`, checked.

    method        default grid                     written as
    ───────────   ──────────────────────────────   ──────────────────────────────────────────
    rtn           4 bits, symmetric, groups        compressed-tensors, pack-quantized
    gptq          4 bits, symmetric, groups        GPTQ (v1; asymmetric: v2)
    awq           4 bits, asymmetric, groups       AWQ, GEMM
    smoothquant   8 bits, symmetric, rows          compressed-tensors, int-quantized (W8A8)
    fp8           e4m3, rows                       compressed-tensors, float-quantized

Read next: `quantize_layers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from minivllm.model.config import ModelConfig
from minivllm.model.quantization.algorithms.gptq import GptqOptions
from minivllm.model.quantization.algorithms.rounding import SCALE_RANGES, Grid, check_groups
from minivllm.validation import check_boolean, check_choice, check_integer, check_number

METHODS = ("rtn", "awq", "gptq", "smoothquant", "fp8")
BITS = {"rtn": (2, 3, 4, 8), "gptq": (2, 3, 4, 8), "awq": (4,), "smoothquant": (8,), "fp8": (8,)}
CLIPPINGS = ("validated", "always", "never")
GROUP_SIZES = (128, 64, 32, 16)
"""Tried in this order where no size is named; 128 is what published checkpoints have."""


@dataclass(frozen=True)
class QuantizationSettings:
    """How to quantise. Build it with `make_settings`, which checks it against a model.

    Attributes:
        method: one of `METHODS`.
        grid: of integer weights; of no meaning for fp8.
        gptq: how GPTQ visits channels.
        true_sequential: GPTQ sees each matrix's inputs as they are once those before it are quantised.
        clipping: of AWQ: where it helps on samples kept apart, always, or never.
        duo_scaling: AWQ's scales look at the weights, too.
        smoothing: SmoothQuant's α.
    """

    method: str
    grid: Grid
    gptq: GptqOptions = field(default_factory=GptqOptions)
    true_sequential: bool = True
    clipping: str = "validated"
    duo_scaling: bool = False
    smoothing: float = 0.5

    @property
    def rounds_activations(self) -> bool:
        return self.method in ("smoothquant", "fp8")

    @property
    def needs_samples(self) -> bool:
        return self.method not in ("rtn", "fp8")


def make_settings(
    method: str,
    config: ModelConfig,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    act_order: bool = False,
    static_groups: bool = False,
    true_sequential: bool = True,
    damping: float = 0.01,
    clipping: str = "validated",
    duo_scaling: bool = False,
    smoothing: float = 0.5,
    scale_range: str = "restricted",
    scale_dtype: torch.dtype = torch.float16,
) -> QuantizationSettings:
    """Settings for a model; None takes the method's default.

    Raises:
        ValueError: naming the setting that is wrong, or that this method or this model cannot have.
    """
    check_choice("method", method, METHODS)
    _check_method_only(method, "act_order", act_order, "gptq")
    _check_method_only(method, "static_groups", static_groups, "gptq")
    if static_groups and not act_order:
        raise ValueError("static_groups is for act_order: without it groups are fixed in order anyway")
    check_choice("clipping", clipping, CLIPPINGS)
    check_choice("scale_range", scale_range, SCALE_RANGES)
    check_boolean("true_sequential", true_sequential)
    check_number("damping", damping, more_than=0, at_most=1)
    check_number("smoothing", smoothing, at_least=0, at_most=1)
    grid = Grid(
        _bits(method, bits),
        _group_size(method, group_size, config),
        _is_symmetric(method, symmetric),
        scale_range,
        torch.float32 if method in ("smoothquant", "fp8") else scale_dtype,
    )
    options = GptqOptions(act_order, static_groups, damping)
    return QuantizationSettings(method, grid, options, true_sequential, clipping, duo_scaling, smoothing)


def matrix_inputs(config: ModelConfig) -> dict[str, int]:
    """Inputs of each matrix of a layer, by name."""
    inputs = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), config.hidden_size)
    return inputs | {"o_proj": config.num_heads * config.head_dim, "down_proj": config.intermediate_size}


def _check_method_only(method: str, name: str, value: bool, only: str) -> None:
    if check_boolean(name, value) and method != only:
        raise ValueError(f"{name} is for the method {only!r}, got method {method!r}")


def _bits(method: str, bits: int | None) -> int:
    allowed = BITS[method]
    if bits is None:
        return 4 if 4 in allowed else allowed[0]
    if check_integer("bits", bits, at_least=1) not in allowed:
        raise ValueError(
            f"bits must be {' or '.join(map(str, allowed))} for the method {method!r}, got {bits}"
        )
    return bits


def _group_size(method: str, group_size: int | None, config: ModelConfig) -> int:
    inputs = matrix_inputs(config)
    if method in ("smoothquant", "fp8"):
        if group_size not in (None, -1):
            raise ValueError(f"group_size is -1 for the method {method!r} (a scale a row), got {group_size}")
        return -1
    if group_size is None:
        fitting = (size for size in GROUP_SIZES if all(count % size == 0 for count in inputs.values()))
        return next(fitting, -1)
    check_integer("group_size", group_size, at_least=-1)
    if group_size == 0:
        raise ValueError("group_size must be -1 (one group a row) or at least 1, got 0")
    for name, count in inputs.items():
        check_groups(name, count, group_size)
    return group_size


def _is_symmetric(method: str, symmetric: bool | None) -> bool:
    if symmetric is None:
        return method != "awq"
    if not check_boolean("symmetric", symmetric) and method in ("smoothquant", "fp8"):
        raise ValueError(f"symmetric must be True for the method {method!r}, got False")
    return symmetric
