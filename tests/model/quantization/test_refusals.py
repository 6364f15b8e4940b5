"""A quantised checkpoint that contradicts itself is refused by the tensor's name, or the key's."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minivllm.model.quantization.choose import choose_method
from minivllm.model.weights import SINGLE_FILE, CheckpointError
from tests.model.conftest import MakeCheckpoint
from tests.model.quantization.checkpoints import RECIPES, compressed, gptq_recipe
from tests.model.quantization.conftest import MakeQuantized
from tests.model.quantization.test_loading import edit_config, load

DOWN = "model.layers.0.mlp.down_proj"


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder, **settings)
    return str(caught.value)


def edit_tensors(folder: Path, remove: str = "", **replace: Tensor) -> None:
    """Of the first layer's `down_proj`."""
    tensors = load_file(folder / SINGLE_FILE)
    tensors.pop(f"{DOWN}.{remove}", None)
    tensors |= {f"{DOWN}.{kind}": tensor for kind, tensor in replace.items()}
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})


INT = torch.int32
# recipe, changes of the settings, tensors put in, tensor taken out, words of the message
CONTRADICTIONS: list[tuple[str, dict[str, Any], dict[str, Tensor], str, list[str]]] = [
    ("gptq-4", {"bits": 8}, {}, "", ["qweight", "[12, 64]", "[24, 64]", "8 bits"]),
    ("gptq-4", {"bits": 3}, {}, "", ["qweight", "[9, 64]", "gptq, 3 bits, groups of 32"]),
    ("gptq-4", {"group_size": 40}, {}, "", ["64 inputs", "groups of 40 do not divide"]),
    ("gptq-4", {"group_size": 16}, {}, "", ["qzeros", "[3, 8]", "[6, 8]"]),
    ("gptq-4-order", {}, {}, "g_idx", [f"{DOWN}.g_idx is missing", "desc_act", "96 inputs"]),
    ("gptq-4", {}, {"g_idx": torch.full((96,), 3, dtype=INT)}, "", ["names groups 3 to 3", "there are 3"]),
    ("gptq-4", {}, {"g_idx": torch.arange(96, dtype=INT) - 1}, "", ["g_idx names groups -1 to 94"]),
    ("gptq-4", {}, {"scales": torch.full((3, 64), math.nan).half()}, "", ["192 numbers", "finite"]),
    ("gptq-4", {}, {}, "qweight", [f"lacks {DOWN}.qweight"]),
    ("gptq-4", {}, {"qweight": torch.zeros(12, 64)}, "", ["qweight", "stored as F32", "I32"]),
    ("gptq-4", {}, {"bias": torch.ones(64)}, "", [f"{DOWN}.bias is not zero"]),
    ("awq", {"group_size": 16}, {}, "", ["qzeros", "[3, 8]", "[6, 8]", "awq, 4 bits"]),
    ("awq", {}, {}, "qzeros", [f"lacks {DOWN}.qzeros"]),
    ("packed-4", {}, {"weight_shape": torch.tensor([64, 95])}, "", ["says [64, 95]", "[64, 96]"]),
    ("packed-8-order", {}, {}, "weight_g_idx", ["weight_g_idx is missing", "6 groups", "96 inputs"]),
    ("packed-8-order", {}, {}, "weight_zero_point", ["lacks", "weight_zero_point"]),
    ("bytes-dynamic", {}, {"weight": torch.zeros(64, 96)}, "", ["weight", "stored as F32", "I8"]),
    ("bytes-static", {}, {"input_scale": torch.tensor([0.0])}, "", ["input_scale", "above 0, got 0.0"]),
    ("bytes-static", {}, {"input_scale": torch.ones(2)}, "", ["input_scale", "[2]", "a single number"]),
    ("bytes-static", {}, {}, "input_scale", ["lacks", "input_scale"]),
    ("float8-channel", {}, {"weight_scale": torch.ones(64)}, "", ["weight_scale", "[64]", "[64, 1]"]),
    ("float8-channel", {}, {"weight": torch.zeros(64, 96)}, "", ["weight", "F32", "F8_E4M3"]),
    ("fp8-block", {"weight_block_size": [16, 16]}, {}, "", ["scale_inv", "[2, 2]", "[4, 6]", "16 × 16"]),
    ("fp8-tensor", {}, {"weight_scale": torch.tensor(math.inf)}, "", ["weight_scale has 1 numbers"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "put", "taken", "words"), CONTRADICTIONS)
def test_a_file_that_contradicts_its_config_is_refused_by_tensor_and_numbers(
    name: str,
    changes: dict[str, Any],
    put: dict[str, Tensor],
    taken: str,
    words: list[str],
    make_quantized: MakeQuantized,
) -> None:
    folder, _ = make_quantized(name)
    edit_config(folder, quantization_config=RECIPES[name].config | changes)
    edit_tensors(folder, taken, **put)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_scales_of_the_kv_cache_are_numbers_above_0(make_quantized: MakeQuantized) -> None:
    folder, _ = make_quantized("float8-channel")
    name = "model.layers.1.self_attn.v_scale"
    for value, words in ((torch.tensor([-1.0]), "above 0, got -1.0"), (torch.ones(2), "a single number")):
        tensors = load_file(folder / SINGLE_FILE)
        save_file(tensors | {name: value}, folder / SINGLE_FILE, {"format": "pt"})
        message = refusal(folder)
        assert name in message and words in message


WHOLE = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FLOAT = {"num_bits": 8, "type": "float", "strategy": "channel"}


def packed(**changes: Any) -> dict[str, Any]:
    return compressed("pack-quantized", WHOLE | changes)


GPTQ = gptq_recipe(4, 32).config
SETTINGS: list[tuple[Any, list[str]]] = [
    (GPTQ | {"bits": 5}, ["bits must be one of 2, 3, 4, 8, got 5"]),
    (GPTQ | {"bits": "4"}, ["bits", "'4'"]),
    ({"quant_method": "gptq"}, ["quantization_config.bits is missing"]),
    (GPTQ | {"group_size": 0}, ["group_size", "got 0"]),
    (GPTQ | {"pack_dtype": "int16"}, ["pack_dtype", "'int32'", "'int16'"]),
    (GPTQ | {"checkpoint_format": "marlin"}, ["checkpoint_format", "'gptq', 'gptq_v2'", "'marlin'"]),
    (GPTQ | {"desc_act": 1}, ["desc_act must be True or False, got 1"]),
    (GPTQ | {"dynamic": {"+:(": {"bits": 8}}}, ["dynamic", "no regular expression"]),
    (GPTQ | {"dynamic": {"+:.*k_proj": {"bits": 7}}}, ["dynamic", "k_proj", "got 7"]),
    (GPTQ | {"dynamic": [1]}, ["dynamic must be an object"]),
    ({"quant_method": "awq"}, ["quantization_config.bits is missing"]),
    ({"quant_method": "awq", "bits": 8}, ["bits must be 4", "got 8"]),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, ["version", "'gemm'", "'gemv'"]),
    ({"quant_method": "fp8", "fmt": "e5m2"}, ["fmt", "'e4m3'", "'e5m2'"]),
    ({"quant_method": "fp8", "weight_block_size": [128]}, ["weight_block_size", "two sizes"]),
    ({"quant_method": "fp8", "weight_block_size": [0, 128]}, ["weight_block_size[0]", "got 0"]),
    ({"quant_method": "fp8", "activation_scheme": "none"}, ["activation_scheme", "'dynamic', 'static'"]),
    (packed(num_bits=9), ["group_0.weights.num_bits", "at most 8", "9"]),
    (packed(type="float"), ["group_0.weights.type is 'float'", "'pack-quantized'"]),
    (packed(actorder="random"), ["actorder", "'random'"]),
    (packed(strategy="block"), ["strategy", "'group', 'channel'", "'block'"]),
    (packed(group_size=None), ["group_size", "None"]),
    (packed() | {"format": "marlin-24"}, ["format", "'pack-quantized'", "'marlin-24'"]),
    (packed() | {"config_groups": {}}, ["config_groups is empty"]),
    (packed() | {"config_groups": {"g": {"targets": ["re:("], "weights": WHOLE}}}, ["targets", "expression"]),
    (packed() | {"ignore": ["re:["]}, ["ignore", "no regular expression"]),
    (packed() | {"transform_config": {"config_groups": {"R1": {}}}}, ["transform_config must be empty"]),
    (packed() | {"sparsity_config": {"format": "sparse-24"}}, ["sparsity_config must be empty"]),
    (compressed("int-quantized", WHOLE, INPUTS), ["num_bits", "at least 8", "4"]),
    (
        compressed("int-quantized", WHOLE | {"num_bits": 8, "strategy": "channel"}, INPUTS | {"num_bits": 4}),
        ["input_activations.num_bits", "4"],
    ),
    (compressed("float-quantized", FLOAT | {"symmetric": False}), ["symmetric must be True", "False"]),
    ({"quant_method": "squeezellm"}, ["squeezellm", "known are gptq, awq, compressed-tensors, fp8"]),
    ({"bits": 4}, ["quant_method is missing"]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), SETTINGS, ids=lambda value: str(value)[:50])
def test_settings_that_cannot_be_read_are_refused_by_key_and_value(settings: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        choose_method(settings, None)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_setting_and_the_checkpoint_must_agree(
    make_quantized: MakeQuantized, make_checkpoint: MakeCheckpoint
) -> None:
    folder, _ = make_quantized("gptq-4")
    for asked in ("awq", "int8", "fp8"):
        message = refusal(folder, quantization=asked)
        assert f"quantization is {asked!r}" in message and "says 'gptq'" in message
    for asked in ("gptq", "gptq_marlin"):
        assert load(folder, quantization=asked).decoder.quantization == "gptq"
    plain, _ = make_checkpoint()
    message = refusal(plain, quantization="awq")
    assert "'awq', but the checkpoint is not quantised" in message and "int8, int4, fp8" in message
    assert "must be one of 'gptq'" in refusal(plain, quantization="nf4")


DAMAGES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda tensor: None,
    "shorter": lambda tensor: tensor[:-1].clone() if tensor.dim() else None,
    "longer": lambda tensor: (
        torch.cat([tensor.view(torch.uint8)] * 2).view(tensor.dtype) if tensor.dim() else None
    ),
    "of another type": lambda tensor: tensor.double().to(torch.bool),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["gptq-4-order", "awq", "packed-8-order", "bytes-static", "fp8-block"])
def test_any_damaged_tensor_of_a_layer_is_named(
    name: str, damage: str, make_quantized: MakeQuantized
) -> None:
    folder, _ = make_quantized(name)
    whole = load_file(folder / SINGLE_FILE)
    random.seed(0)
    names = sorted(key for key in whole if "layers.0.mlp.down" in key or "layers.0.self_attn.q" in key)
    for key in names:
        damaged = DAMAGES[damage](whole[key])
        rest = {other: tensor for other, tensor in whole.items() if other != key}
        save_file(rest if damaged is None else rest | {key: damaged}, folder / SINGLE_FILE, {"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert key in str(caught.value) or key.rpartition(".")[0] in str(caught.value)


def test_a_cut_file_is_named(make_quantized: MakeQuantized) -> None:
    folder, _ = make_quantized("awq")
    content = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(content[:-8])
    assert SINGLE_FILE in refusal(folder) and "complete safetensors file" in refusal(folder)


def test_a_config_that_is_wrong_is_named_by_its_file(make_quantized: MakeQuantized) -> None:
    folder, _ = make_quantized("awq")
    edit_config(folder, quantization_config=RECIPES["awq"].config | {"version": "gemv"})
    message = refusal(folder)
    assert message.startswith(str(folder / "config.json")) and "gemv" in message
    edit_config(folder, quantization_config="awq")
    assert "must be an object, got 'awq'" in refusal(folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == "awq"
