"""Quantised checkpoints of tiny random models, written by our own writers, and what their weights are.

A recipe says how each linear layer is stored; `quantize` rewrites a plain folder by it, and returns the model
of `transformers` with the values that are now in the file: the two must have the same logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minivllm.model.quantization import awq, float8_weights, gptq, int_quantized, pack_quantized
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups
from minivllm.model.weights import SINGLE_FILE

SIZES = {"intermediate_size": 96}
"""Changes of the tiny models: sizes that fill words of 3 bits, and that groups of 16 and 32 divide."""

Packed = tuple[dict[str, Tensor], Tensor]
"""A layer's tensors, and the values that they stand for."""


def on_grid(
    weight: Tensor, bits: int, group_size: int, *, symmetric: bool = True, order: int | None = None
) -> IntegerWeights:
    """`weight` on a grid from each group's smallest to its largest number. `order`: seed of a permutation
    that groups are taken from."""
    num_outputs, num_inputs = weight.shape
    group_of = contiguous_groups(num_inputs, group_size)
    if order is not None:
        group_of = group_of[torch.randperm(num_inputs, generator=torch.Generator().manual_seed(order))]
    num_groups, most = int(group_of.max()) + 1, (1 << bits) - 1
    scales, zeros = torch.empty(num_outputs, num_groups), torch.empty(num_outputs, num_groups)
    for group in range(num_groups):
        some = weight[:, group_of == group].float()
        low, high = some.amin(1).clamp(max=0), some.amax(1).clamp(min=0)
        if symmetric:
            scales[:, group], zeros[:, group] = torch.maximum(-low, high) * 2 / most, 1 << (bits - 1)
        else:
            scales[:, group] = (high - low) / most
            zeros[:, group] = torch.round(-low / scales[:, group].half().float()).clamp(0, most)
    scales = scales.half().float()
    codes = (torch.round(weight / scales[:, group_of]) + zeros[:, group_of]).clamp(0, most)
    return IntegerWeights(codes.to(torch.uint8), scales, zeros.to(torch.int16), group_of, bits)


@dataclass(frozen=True)
class Recipe:
    """A `quantization_config`, and how layers are packed to it; `pack` gives None for a plain layer."""

    config: dict[str, Any]
    pack: Callable[[str, Tensor], Packed | None]
    model: dict[str, Any] = field(default_factory=dict)
    """Changes of the model that it is made for."""
    rounds_inputs: Callable[[Tensor], Tensor] | None = None


def quantize(folder: Path, model: Any, recipe: Recipe) -> Any:
    """Rewrite the folder's linear layers, and put their new values into the model."""
    plain = load_file(folder / SINGLE_FILE)
    values = dict(model.named_parameters())
    for name in [*plain]:
        module = name.removesuffix(".weight")
        if not module.endswith(("_proj", "lm_head")):
            continue
        packed = recipe.pack(module, plain[name].float())
        if packed is None:
            continue
        del plain[name]
        tensors, dense = packed
        plain |= {f"{module}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()}
        with torch.no_grad():
            values[name].copy_(dense)
    save_file(plain, folder / SINGLE_FILE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": recipe.config}))
    if recipe.rounds_inputs is not None:
        rounded = recipe.rounds_inputs
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    return model


# ---- recipes ------------------------------------------------------------------------------------------


def _is_head(module: str) -> bool:
    return module == "lm_head"


def gptq_recipe(
    bits: int, group_size: int, *, version: str = gptq.V1, sym: bool = True, order: bool = False
) -> Recipe:
    def pack(module: str, weight: Tensor) -> Packed | None:
        if _is_head(module):
            return None
        weights = on_grid(weight, bits, group_size, symmetric=sym, order=len(module) if order else None)
        return gptq.pack(weights, version=version), weights.dense()

    config = {
        "quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": order, "sym": sym,
        "checkpoint_format": version, "lm_head": False, "pack_dtype": "int32",
    }  # fmt: skip
    return Recipe(config, pack)


def awq_recipe(group_size: int) -> Recipe:
    def pack(module: str, weight: Tensor) -> Packed | None:
        if _is_head(module) or "v_proj" in module:
            return None
        weights = on_grid(weight, 4, group_size, symmetric=False)
        return awq.pack(weights), weights.dense()

    config = {
        "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["v_proj"],
    }  # fmt: skip
    return Recipe(config, pack)


def compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A `quantization_config` of compressed-tensors."""
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip


def packed_recipe(
    bits: int, group_size: int | None, *, symmetric: bool = True, order: bool = False
) -> Recipe:
    def pack(module: str, weight: Tensor) -> Packed | None:
        if _is_head(module):
            return None
        size = -1 if group_size is None else group_size
        weights = on_grid(weight, bits, size, symmetric=symmetric, order=len(module) if order else None)
        return pack_quantized.pack(weights), weights.dense()

    strategy = "channel" if group_size is None else "group"
    config = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy,
        "group_size": group_size, "actorder": "group" if order else None, "dynamic": False,
    }  # fmt: skip
    return Recipe(compressed("pack-quantized", config), pack)


def rounded_by_token(x: Tensor) -> Tensor:
    """Symmetric int8 by each row's largest number, as vLLM defines it."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def bytes_recipe(kind: str) -> Recipe:
    """`kind`: "dynamic", "static" or "asymmetric" (static, with zeros)."""
    inputs: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": kind != "asymmetric"}
    inputs |= (
        {"strategy": "token", "dynamic": True}
        if kind == "dynamic"
        else {"strategy": "tensor", "dynamic": False}
    )
    scale, zero = 0.05, -20 if kind == "asymmetric" else 0

    def pack(module: str, weight: Tensor) -> Packed | None:
        if _is_head(module):
            return None
        weights = on_grid(weight, 8, -1)
        tensors = int_quantized.pack(weights)
        if kind != "dynamic":
            tensors["input_scale"] = torch.tensor([scale])
        if kind == "asymmetric":
            tensors["input_zero_point"] = torch.tensor([zero], dtype=torch.int8)
        return tensors, weights.dense()

    def static(x: Tensor) -> Tensor:
        return (torch.clamp(torch.round(x / scale) + zero, -128, 127) - zero) * scale

    config = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    return Recipe(
        compressed("int-quantized", config, inputs), pack,
        rounds_inputs=rounded_by_token if kind == "dynamic" else static,
    )  # fmt: skip


def float8_recipe(kind: str) -> Recipe:
    """`kind`: "channel", "tensor" or "block" of compressed-tensors; "fp8 tensor" or "fp8 block"."""
    block = {"channel": (1, 10**6), "tensor": (10**6, 10**6), "block": (32, 48)}[kind.split()[-1]]
    is_own = kind.startswith("fp8")
    name = float8_weights.SCALE_INV if kind == "fp8 block" else float8_weights.SCALE

    def pack(module: str, weight: Tensor) -> Packed | None:
        if _is_head(module) or (is_own and "layers.1.mlp" in module):
            return None
        weights = float8_weights.round_to_float8(weight, block)
        tensors = float8_weights.pack(weights, scale_name=name)
        if kind.endswith("tensor"):
            tensors["input_scale"] = torch.tensor([0.03])
        return tensors, weights.dense()

    own: dict[str, Any] = {
        "quant_method": "fp8", "fmt": "e4m3", "modules_to_not_convert": ["lm_head", "model.layers.1.mlp"],
        "activation_scheme": "static" if kind.endswith("tensor") else "dynamic",
    }  # fmt: skip
    if kind == "fp8 block":
        own["weight_block_size"] = [*block]
    weights = {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": kind, "dynamic": False,
        "block_structure": [*block] if kind == "block" else None,
    }  # fmt: skip
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
    return Recipe(own if is_own else compressed("float-quantized", weights, inputs), pack)


def mixed_recipe() -> Recipe:
    """Every part of a stack in another form: 4 bits, 8 bits, none; the output matrix, too."""
    wider = {"bits": 8}
    config = gptq_recipe(4, 32).config | {
        "lm_head": True,
        "dynamic": {r"+:.*\.k_proj": wider, r"-:.*\.v_proj": {}, r"-:.*\.1\.mlp\.up": {}},
    }

    def pack(module: str, weight: Tensor) -> Packed | None:
        if "v_proj" in module or "1.mlp.up" in module:
            return None
        weights = on_grid(weight, 8, 32) if "k_proj" in module else on_grid(weight, 4, 32)
        return gptq.pack(weights), weights.dense()

    return Recipe(config, pack, {"vocab_size": 96})


RECIPES: dict[str, Recipe] = {
    "gptq-2": gptq_recipe(2, 16),
    "gptq-3": gptq_recipe(3, 32),
    "gptq-4": gptq_recipe(4, 32),
    "gptq-4-order": gptq_recipe(4, 16, sym=False, order=True, version=gptq.V2),
    "gptq-8": gptq_recipe(8, -1, sym=False),
    "awq": awq_recipe(32),
    "packed-4": packed_recipe(4, 32),
    "packed-5-channel": packed_recipe(5, None, symmetric=False),
    "packed-8-order": packed_recipe(8, 16, symmetric=False, order=True),
    "bytes-dynamic": bytes_recipe("dynamic"),
    "bytes-static": bytes_recipe("static"),
    "bytes-asymmetric": bytes_recipe("asymmetric"),
    "float8-channel": float8_recipe("channel"),
    "float8-tensor": float8_recipe("tensor"),
    "float8-block": float8_recipe("block"),
    "fp8-tensor": float8_recipe("fp8 tensor"),
    "fp8-block": float8_recipe("fp8 block"),
    "mixed": mixed_recipe(),
}
