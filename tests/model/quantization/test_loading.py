"""Quantised checkpoints of every format load, and compute what `transformers` does with the same values."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.decoder import KVScales
from minivllm.model.quantization import gptq
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.model.quantization.stacked_matrix import StackedMatrix
from minivllm.model.weights import SINGLE_FILE
from tests.model.conftest import MakeCheckpoint, Runner, expected_logits, random_tokens
from tests.model.quantization.checkpoints import RECIPES, gptq_recipe, on_grid, rounded_by_token
from tests.model.quantization.conftest import MakeQuantized


def load(folder: Path, **settings: Any) -> TorchExecutor:
    return TorchExecutor.from_folder(folder, num_blocks=8, backend=TorchAttention, **settings)


def logits_of(executor: TorchExecutor, tokens: list[int]) -> torch.Tensor:
    runner = Runner(executor)
    runner.step({0: tokens})
    return runner.result(0)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", RECIPES)
def test_logits_are_those_of_transformers_with_the_same_values(
    name: str, family: str, make_quantized: MakeQuantized
) -> None:
    if family == "qwen2" and name not in ("gptq-4", "awq", "bytes-dynamic", "mixed"):  # it has biases
        pytest.skip("one of each kind will do")
    folder, model = make_quantized(name, family)
    executor, tokens = load(folder), random_tokens(20, vocab_size=96)
    assert executor.decoder.is_quantized
    assert (logits_of(executor, tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_rows_are_the_values_and_bytes_are_those_of_the_file(
    name: str, make_quantized: MakeQuantized
) -> None:
    folder, model = make_quantized(name)
    decoder = load(folder).decoder
    values = dict(model.named_parameters())
    for view_name, view in decoder.views():
        torch.testing.assert_close(view, values[view_name], rtol=0, atol=0, msg=view_name)
    in_file = sum(t.numel() * t.element_size() for t in load_file(folder / SINGLE_FILE).values())
    assert 0.8 * in_file < decoder.num_bytes < 1.15 * in_file


def test_parts_of_one_kind_become_one_matrix_and_others_keep_their_form(
    make_quantized: MakeQuantized,
) -> None:
    attention = load(make_quantized("gptq-4")[0]).decoder.layers[0].attention
    assert isinstance(attention.qkv.matrix, IntegerMatrix)
    decoder = load(make_quantized("mixed")[0]).decoder
    stacked = decoder.layers[0].attention.qkv.matrix
    assert isinstance(stacked, StackedMatrix)
    assert [part.is_quantized for part in stacked.parts] == [True, True, False]
    assert [part.bits for part in stacked.parts if isinstance(part, IntegerMatrix)] == [4, 8]
    assert decoder.head.is_quantized and decoder.quantization == "gptq"


def test_groups_in_different_orders_are_not_joined(make_quantized: MakeQuantized) -> None:
    """Query and key have names of one length here, and so one order; value another."""
    recipe = gptq_recipe(4, 16, order=True)
    folder, model = make_quantized(recipe)
    tensors = load_file(folder / SINGLE_FILE)
    prefix = "model.layers.0.self_attn.v_proj"
    weights = on_grid(torch.randn(32, 64), 4, 16, order=5)
    tensors |= {f"{prefix}.{kind}": tensor for kind, tensor in gptq.pack(weights).items()}
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    with torch.no_grad():
        dict(model.named_parameters())[f"{prefix}.weight"].copy_(weights.dense())
    executor, tokens = load(folder), random_tokens(20)
    assert isinstance(executor.decoder.layers[0].attention.qkv.matrix, StackedMatrix)
    assert (logits_of(executor, tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_matrix_is_the_embedding_and_another_is_its_own(
    tied: bool, make_quantized: MakeQuantized
) -> None:
    folder, model = make_quantized("gptq-4", tie_word_embeddings=tied)
    executor, tokens = load(folder), random_tokens(10)
    assert executor.decoder.tied == tied and not executor.decoder.head.is_quantized
    assert (logits_of(executor, tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


def test_a_label_of_v1_on_zeros_of_v2_is_seen_through(make_quantized: MakeQuantized) -> None:
    folder, model = make_quantized(gptq_recipe(4, 32, version=gptq.V2))
    edit_config(folder, quantization_config=gptq_recipe(4, 32, version=gptq.V1).config)
    tokens = random_tokens(10)
    assert (logits_of(load(folder), tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


def test_layers_that_are_plain_in_the_file_are_plain_whatever_the_config_forgets(
    make_quantized: MakeQuantized,
) -> None:
    folder, model = make_quantized("awq")
    edit_config(folder, quantization_config=RECIPES["awq"].config | {"modules_to_not_convert": None})
    tokens = random_tokens(10)
    assert (logits_of(load(folder), tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_settings_in_a_file_of_their_own_are_found(file: str, make_quantized: MakeQuantized) -> None:
    name = "gptq-4" if file == "quantize_config.json" else "awq"
    folder, model = make_quantized(name)
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    if name == "awq":  # older names
        settings["w_bit"], settings["q_group_size"] = settings.pop("bits"), settings.pop("group_size")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / file).write_text(json.dumps(settings))
    executor, tokens = load(folder), random_tokens(10)
    assert executor.decoder.quantization == name[:4].removesuffix("-").rstrip("-")
    assert (logits_of(executor, tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


def test_scales_of_the_kv_cache_are_kept(make_quantized: MakeQuantized) -> None:
    folder, _ = make_quantized("float8-channel")
    tensors = load_file(folder / SINGLE_FILE)
    attention = "model.layers.{}.self_attn"
    tensors[attention.format(0) + ".k_scale"] = torch.tensor([0.5])
    tensors[attention.format(0) + ".v_scale"] = torch.tensor(0.25)
    tensors[attention.format(1) + ".kv_scale"] = torch.tensor([2.0])
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    assert load(folder).decoder.kv_scales == (KVScales(0.5, 0.25), KVScales(2.0, 2.0))


def test_biases_of_zeros_that_old_tools_write_are_left_out(
    make_quantized: MakeQuantized, recwarn: pytest.WarningsRecorder
) -> None:
    folder, _ = make_quantized("gptq-4")
    tensors = load_file(folder / SINGLE_FILE)
    tensors["model.layers.0.mlp.down_proj.bias"] = torch.zeros(64)
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    load(folder)
    assert not [warning for warning in recwarn if "does not use" in str(warning.message)]


def test_activations_are_rounded_a_token_at_a_time() -> None:
    """In company, a row is rounded as it is alone; a row of zeros stays one."""
    from minivllm.model.quantization.activations import ActivationRounding

    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-3], [1], [9], [50], [0]]
    )
    for rounding in (ActivationRounding(True), ActivationRounding(False)):
        together = rounding(x)
        for row in range(5):
            assert torch.equal(rounding(x[row : row + 1])[0], together[row])
        assert not together[4].any()
        steps = (x.amax(-1) - x.amin(-1) if not rounding.is_symmetric else 2 * x.abs().amax(-1)) / 254
        assert bool(((together - x).abs() <= steps[:, None] * 0.51 + 1e-9).all())
    assert torch.equal(ActivationRounding(True)(x[:4]), rounded_by_token(x[:4]))


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that were made within it and are still there; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize("name", ["gptq-4", "awq", "packed-4", "bytes-dynamic", "float8-channel", "rounded"])
def test_loading_never_holds_more_than_the_model_and_one_layer(
    name: str, make_quantized: MakeQuantized, make_checkpoint: MakeCheckpoint
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12, "vocab_size": 50}
    if name == "rounded":
        folder, quantization = make_checkpoint(**sizes)[0], "int4"
    else:
        folder, quantization = make_quantized(name, **sizes)[0], None
    with LiveBytes() as bytes_:
        decoder = load(folder, quantization=quantization).decoder
    largest = 4 * 2 * 512 * 128  # gate and up of one layer, as floats
    dense = 4 * decoder.config.num_parameters
    most = decoder.num_bytes + 5 * largest
    assert bytes_.peak < most < 0.8 * dense
