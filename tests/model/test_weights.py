"""Every good checkpoint loads; every bad one is refused with the culprit's name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.hub import ModelNotFoundError, missing_files, resolve_model, resolve_tokenizer
from minivllm.model.tokenizer import Tokenizer
from minivllm.model.weights import INDEX_FILE, SINGLE_FILE, Checkpoint, CheckpointError
from tests.model.conftest import MakeCheckpoint, Runner, expected_logits, random_tokens


def load(folder: Path, dtype: str = "auto") -> TorchExecutor:
    return TorchExecutor.from_folder(folder, dtype=dtype, num_blocks=8)


def logits_of(folder: Path, tokens: list[int]) -> torch.Tensor:
    runner = Runner(load(folder))
    runner.step({0: tokens})
    return runner.result(0)


def edit_weights(folder: Path, remove: str = "", **replace: torch.Tensor) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    tensors.pop(remove, None)
    tensors.update({name.replace("__", "."): tensor for name, tensor in replace.items()})
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})


# ---- what must load -----------------------------------------------------------------------------------


def test_shards_and_a_single_file_hold_the_same_model(make_checkpoint: MakeCheckpoint) -> None:
    tokens = random_tokens(20)
    single, _ = make_checkpoint("qwen2")
    sharded, _ = make_checkpoint("qwen2", max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2 and not (sharded / SINGLE_FILE).exists()
    assert torch.equal(logits_of(single, tokens), logits_of(sharded, tokens))


def test_shards_need_no_index_if_all_are_there(make_checkpoint: MakeCheckpoint) -> None:
    tokens = random_tokens(20)
    single, _ = make_checkpoint("qwen2")
    sharded, _ = make_checkpoint("qwen2", max_shard_size="40KB")
    (sharded / INDEX_FILE).unlink()
    expected = logits_of(single, tokens)
    assert torch.equal(logits_of(sharded, tokens), expected)
    (single / SINGLE_FILE).rename(single / "model-00001-of-00001.safetensors")
    assert torch.equal(logits_of(single, tokens), expected)


def test_the_links_of_a_hub_snapshot_are_followed(make_checkpoint: MakeCheckpoint) -> None:
    sharded, _ = make_checkpoint("qwen2", max_shard_size="40KB")
    expected = logits_of(sharded, random_tokens(20))
    blobs = sharded.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    assert torch.equal(logits_of(sharded, random_tokens(20)), expected)


def test_a_tied_model_needs_no_output_matrix(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / SINGLE_FILE)
    decoder = load(folder).decoder
    assert decoder.lm_head is decoder.embedding
    assert decoder.num_bytes == 4 * decoder.config.num_parameters


def test_an_output_matrix_in_the_file_is_used_even_if_the_config_says_tied(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder, _ = make_checkpoint(tie_word_embeddings=True)
    edit_weights(folder, lm_head__weight=torch.randn(97, 64))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = random_tokens(10)
    assert (logits_of(folder, tokens) - expected_logits(model, tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("auto", torch.bfloat16),
        ("half", torch.float16),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float", torch.float32),
        ("float32", torch.float32),
        ("double", torch.float64),
        ("float64", torch.float64),
    ],
)
def test_weights_and_cache_take_the_asked_for_type(
    name: str, dtype: torch.dtype, make_checkpoint: MakeCheckpoint
) -> None:
    folder, model = make_checkpoint(dtype=torch.bfloat16)
    executor = load(folder, name)
    views = dict(executor.decoder.views())
    assert {view.dtype for view in views.values()} == {dtype}
    assert executor.storage.keys[0].dtype == dtype
    assert executor.model_shape.dtype == str(dtype).removeprefix("torch.")
    for key, parameter in model.named_parameters():
        assert torch.equal(views[key], parameter.to(dtype)), key


def test_an_unknown_type_is_refused_with_the_list_of_known_ones(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of .*bfloat16.*got 'int4'"):
        load(make_checkpoint()[0], "int4")


def test_a_device_that_is_not_there_is_refused(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_checkpoint()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, words in (("cuda", "finds no GPU"), ("cuda:1", "finds no GPU"), ("tpu", "'cpu', 'cuda'")):
        with pytest.raises(ValueError, match=f"device .*{words}"):
            TorchExecutor.from_folder(folder, device=device, num_blocks=8)
    assert TorchExecutor.from_folder(folder, num_blocks=8).device.type == "cpu"


def test_left_over_tensors_are_reported_and_old_rotary_tables_are_not(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)
    edit_weights(folder, model__extra__weight=torch.ones(3))
    with pytest.warns(UserWarning, match=r"does not use: model\.extra\.weight$"):
        load(folder)


# ---- what must be refused -----------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return str(caught.value)


def test_a_missing_tensor_is_named(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, remove="model.layers.1.mlp.up_proj.weight")
    assert "model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_an_untied_model_without_output_matrix_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, remove="lm_head.weight")
    assert "lm_head.weight" in refusal(folder)


def test_a_wrong_shape_is_named_with_both_shapes(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, model__layers__0__self_attn__k_proj__weight=torch.ones(33, 64))
    message = refusal(folder)
    assert all(word in message for word in ("layers.0.self_attn.k_proj", "[33, 64]", "[32, 64]", SINGLE_FILE))


def test_a_shape_that_would_broadcast_is_still_wrong(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, model__norm__weight=torch.ones(1))
    assert "model.norm.weight" in refusal(folder)


def test_a_shape_is_refused_with_the_keys_that_call_for_it_before_memory_is_taken(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder, _ = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"intermediate_size": 10**7, "vocab_size": 10**7})
    )
    message = refusal(folder)
    assert "[97, 64]" in message and "[10000000, 64]" in message and "vocab_size 10000000" in message
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 900}))
    message = refusal(folder)
    assert "lacks model.layers.2." in message and "num_hidden_layers 900" in message


def test_quantised_weights_are_refused_even_if_torch_calls_them_floating_point(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, model__norm__weight=torch.ones(64).to(torch.float8_e4m3fn))
    assert "model.norm.weight" in refusal(folder) and "F8_E4M3" in refusal(folder)


def test_integer_weights_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    edit_weights(folder, model__norm__weight=torch.ones(64, dtype=torch.int32))
    message = refusal(folder)
    assert "model.norm.weight" in message and "I32" in message


@pytest.mark.parametrize("keep", [0, 5, 1000, -4])
def test_a_truncated_file_is_named(keep: int, make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    content = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(content[:keep])
    message = refusal(folder)
    assert SINGLE_FILE in message and f"({len(content[:keep])} bytes)" in message


def test_a_pointer_that_a_clone_has_left_is_told_for_what_it_is(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint("llama")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (folder / SINGLE_FILE).write_text(pointer)
    assert "`git lfs pull` in its folder" in refusal(folder)
    (folder / "tokenizer.json").write_text(pointer)
    with pytest.raises(ValueError, match="`git lfs pull` in its folder"):
        Tokenizer.from_folder(folder)


def test_a_missing_shard_is_named(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(max_shard_size="40KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(folder)


def test_a_missing_shard_is_named_without_an_index_too(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(max_shard_size="40KB")
    (folder / INDEX_FILE).unlink()
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    second.rename(folder / "elsewhere")
    message = refusal(folder)
    assert second.name in message and first.name not in message


def test_shards_of_two_models_need_an_index(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(max_shard_size="40KB")
    (folder / INDEX_FILE).unlink()
    (folder / "model-00001-of-00099.safetensors").write_bytes(b"")
    assert "-of-00099" in refusal(folder) and INDEX_FILE in refusal(folder)


def test_a_tensor_in_two_shards_is_named_with_both(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    (folder / SINGLE_FILE).rename(first := folder / "model-00001-of-00002.safetensors")
    shutil.copy(first, second := folder / "model-00002-of-00002.safetensors")
    message = refusal(folder)
    assert "lm_head.weight" in message and first.name in message and second.name in message


OUTSIDE = ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..", ".", "",
           "x\0.safetensors", "x" * 300 + ".safetensors", "pytorch_model.bin", "C:x.safetensors"]  # fmt: skip


@pytest.mark.parametrize("shard", OUTSIDE)
def test_an_index_names_only_files_of_its_own_folder(shard: str, make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    (folder / SINGLE_FILE).rename(folder.parent / "x.safetensors")
    (folder / "other.safetensors").write_bytes(b"")  # so that the folder looks complete
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    message = refusal(folder)
    assert INDEX_FILE in message and "model.norm.weight" in message and "plain name" in message


def test_a_shard_that_is_a_folder_is_named(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(max_shard_size="40KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    shard.mkdir()
    assert f"{shard} is no file" in refusal(folder)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with a model of one small layer, and the bytes of its weights before any damage."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    folder = tmp_path_factory.mktemp("damaged")
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder, (folder / SINGLE_FILE).read_bytes()


@given(data=st.data())
def test_a_damaged_file_is_refused_by_name_or_still_read(
    data: st.DataObject, damaged: tuple[Path, bytes]
) -> None:
    folder, whole = damaged
    content = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, 7) | st.integers(0, header - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789[]{},":-'))
    length = data.draw(st.sampled_from([len(whole)] * 3 + [header, 8]) | st.integers(0, len(whole) + 9))
    (folder / SINGLE_FILE).write_bytes(bytes(content[:length]).ljust(length, b"\0"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tensor whose name was hit is left over
        try:
            load(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)


def test_a_shard_that_lacks_what_the_index_promises_is_named(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(max_shard_size="40KB")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    assert second.name in refusal(folder)


@pytest.mark.parametrize(
    "content", ["not json", "[]", "{}", json.dumps({"weight_map": 3}), json.dumps({"weight_map": {"a": 1}})]
)
def test_an_index_that_is_none_is_named(content: str, make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint(max_shard_size="40KB")
    (folder / INDEX_FILE).write_text(content)
    assert INDEX_FILE in refusal(folder)


def test_weights_in_another_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found pytorch_model\.bin, convert it"):
        Checkpoint(tmp_path)


# ---- finding the folder -------------------------------------------------------------------------------


def test_a_local_folder_is_used_as_it_is(make_checkpoint: MakeCheckpoint) -> None:
    folder, _ = make_checkpoint()
    assert resolve_model(folder) == resolve_model(str(folder)) == folder
    assert missing_files(folder) == []


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "/nowhere/at/all", "~/nowhere", "~noone/x", "a/b/c", "no where", "a\0b", "/" + "x" * 5000],
)
def test_a_path_that_does_not_exist_says_so(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        resolve_model(name)


def test_an_incomplete_folder_says_what_it_lacks_and_holds(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ModelNotFoundError, match=r"lacks config\.json and model\.safetensors.*readme\.txt"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=r"lacks model\.safetensors"):
        resolve_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve_model(tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"found pytorch_model\.bin, convert it .*save_pretrained"):
        resolve_model(tmp_path)


def test_a_tokenizer_needs_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"lacks tokenizer\.json; it holds nothing"):
        resolve_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert resolve_tokenizer(str(tmp_path)) == tmp_path


def test_an_id_that_cannot_be_fetched_says_what_was_tried_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("some-owner/some-model")
    message = str(caught.value)
    assert all(
        word in message
        for word in ("some-owner/some-model", "network is unreachable", "hf download", "local folder")
    )


def test_an_id_is_fetched_without_the_files_that_are_not_read(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint
) -> None:
    folder, _ = make_checkpoint()
    asked: dict[str, object] = {}

    def fetch(name: str, **patterns: object) -> str:
        asked.update(patterns, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve_model("some-owner/some-model") == folder
    assert asked["name"] == "some-owner/some-model"
    assert "*.safetensors" in str(asked["allow_patterns"]) and "*.bin" not in str(asked["allow_patterns"])


def test_a_folder_that_is_missing_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        resolve_model(tmp_path / "nowhere")
    assert str(refused.value).count("nowhere") == 1
