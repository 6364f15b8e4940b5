"""`config.json` means here what it means to `transformers`, and what cannot be meant is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minivllm.model.config import ModelConfig, RopeConfig
from tests.model.conftest import FAMILIES, TINY, MakeCheckpoint

ARCHITECTURE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
NEEDED = {
    "vocab_size": 50,
    "hidden_size": 4096,
    "intermediate_size": 80,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
}


def raw(family: str = "llama", **changes: Any) -> dict[str, Any]:
    return {"architectures": [ARCHITECTURE[family]], **NEEDED, **changes}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_left_out_mean_what_transformers_takes_them_to_mean(family: str) -> None:
    ours, theirs = ModelConfig.from_dict(raw(family)), FAMILIES[family](**NEEDED)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", None) or theirs.hidden_size // 32
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.hidden_act == theirs.hidden_act
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    assert ours.layer_windows == (theirs.sliding_window if family == "mistral" else None,) * 30


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_of_a_saved_model_are_read_back(
    family: str, tied: bool, make_checkpoint: MakeCheckpoint
) -> None:
    folder, model = make_checkpoint(family, tie_word_embeddings=tied, head_dim=24)
    config = ModelConfig.from_folder(folder)
    assert config.num_parameters == model.num_parameters()
    shape = config.shape("tiny", "bfloat16")
    assert (shape.name, shape.num_layers, shape.num_heads, shape.num_kv_heads) == ("tiny", 2, 4, 2)
    assert (shape.head_dim, shape.vocab_size, shape.dtype) == (24, TINY["vocab_size"], "bfloat16")
    assert shape.kv_bytes_per_token == 2 * 2 * 2 * 24 * 2


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [None, None, None, None]),
        ({"sliding_window": 8, "max_window_layers": 2}, [None, None, None, None]),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            [None, None, None, 8],
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [8, None, 8, None],
        ),
    ],
)
def test_qwen_layers_slide_only_where_they_are_told_to(
    changes: dict[str, Any], windows: list[int | None]
) -> None:
    for family in ("qwen2", "qwen3"):
        config = ModelConfig.from_dict(raw(family, num_hidden_layers=4, **changes))
        assert list(config.layer_windows) == windows


def test_families_differ_only_in_their_switches() -> None:
    switches = {
        family: (config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm)
        for family in FAMILIES
        for config in [ModelConfig.from_dict(raw(family, attention_bias=True, mlp_bias=True))]
    }
    assert switches == {
        "llama": (True, True, True, False),
        "mistral": (False, False, False, False),  # transformers knows no biases here, whatever the file says
        "qwen2": (True, False, False, False),
        "qwen3": (True, True, False, True),
    }


def test_old_and_new_spelling_of_rotary_settings_agree() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
    old = raw(rope_theta=5e5, rope_scaling={"type": "yarn", **scaling})
    middle = raw(rope_theta=5e5, rope_scaling={"rope_type": "yarn", **scaling})
    new = raw(rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **scaling})
    configs = [ModelConfig.from_dict(value).rope for value in (old, middle, new)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0] == RopeConfig("yarn", 5e5, 4.0, 64)
    assert ModelConfig.from_dict(raw(rope_theta=7e3, rope_scaling=None)).rope == RopeConfig(theta=7e3)


def test_dtype_is_read_in_both_spellings() -> None:
    assert ModelConfig.from_dict(raw()).dtype == "float32"
    assert ModelConfig.from_dict(raw(torch_dtype="float16")).dtype == "float16"
    assert ModelConfig.from_dict(raw(dtype="bfloat16")).dtype == "bfloat16"


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"architectures": ["GPT2LMHeadModel"]}, ["architectures", "GPT2LMHeadModel", "Qwen3ForCausalLM"]),
    ({"architectures": None, "model_type": "mamba"}, ["architectures", "mamba"]),
    ({"architectures": 5}, ["architectures", "list", "5"]),
    ({"text_config": [1]}, ["text_config", "object", "[1]"]),
    ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "at most 1000", "1000000000"]),
    ({"head_dim": 10**9}, ["head_dim", "1000000000"]),
    ({"hidden_size": 10**9}, ["hidden_size", "1000000000"]),
    ({"max_position_embeddings": 10**12}, ["max_position_embeddings", "1000000000000"]),
    ({"num_key_value_heads": 5}, ["num_attention_heads (32)", "num_key_value_heads (5)"]),
    ({"hidden_size": 100}, ["hidden_size (100)", "num_attention_heads (32)"]),
    ({"head_dim": 33}, ["head_dim", "even", "33"]),
    ({"hidden_act": "relu2"}, ["hidden_act", "relu2", "silu", "gelu"]),
    ({"vocab_size": 0}, ["vocab_size", "0"]),
    ({"num_hidden_layers": "two"}, ["num_hidden_layers", "two"]),
    ({"intermediate_size": True}, ["intermediate_size", "True"]),
    ({"rms_norm_eps": -1e-6}, ["rms_norm_eps"]),
    ({"dtype": "int8"}, ["dtype", "int8", "bfloat16"]),
    ({"eos_token_id": ["</s>"]}, ["eos_token_id", "</s>"]),
    ({"eos_token_id": [[2]]}, ["eos_token_id[0]", "[2]"]),
    ({"eos_token_id": True}, ["eos_token_id", "True"]),
    ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, ["rope_type", "ntk", "dynamic", "llama3", "yarn"]),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, ["mrope_section"]),
    ({"rope_scaling": {"rope_type": "mrope"}}, ["rope_type", "mrope"]),
    ({"rope_scaling": 5}, ["rope_scaling", "5"]),
    ({"rope_parameters": {"rope_type": "longrope"}}, ["short_factor", "64 numbers", "None"]),
    ({"rope_scaling": {"type": "yarn", "factor": "4"}}, ["factor", "yarn", "'4'"]),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": "1"}}, ["attention_factor", "'1'"]),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": []}}, ["mscale", "[]"]),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": "64"}},
        ["original_max_position_embeddings", "'64'"],
    ),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters"]),
    ({"rope_scaling": {"factor": 4}}, ["rope_type is missing", "rope_scaling", "factor 4"]),
    ({"rope_scaling": {"type": "linear"}}, ["factor", "linear"]),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, ["factor", "linear", "0"]),
    (
        {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
        ["low_freq_factor", "high_freq_factor"],
    ),
    ({"rope_theta": -1}, ["rope_theta", "-1"]),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    (
        {"quantization_config": {"quant_method": "squeezellm"}},
        ["squeezellm", "gptq, awq, compressed-tensors, fp8"],
    ),
    ({"quantization_config": {"bits": 4}}, ["quantization_config.quant_method", "missing"]),
    ({"quantization_config": True}, ["quantization_config", "True"]),
    ({"quantization_config": False}, ["quantization_config", "False"]),
    ({"compression_config": []}, ["compression_config", "[]"]),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_served_is_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_dict(raw(**changes))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sliding_window": 0}, "sliding_window"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 30}, "chunked_attention"),
        ({"use_sliding_window": False, "layer_types": ["sliding_attention"] * 30}, "sliding_window"),
    ],
)
def test_impossible_windows_are_refused_by_name(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ModelConfig.from_dict(raw("qwen2", **{"use_sliding_window": True, **changes}))


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_size_is_named(key: str) -> None:
    values = raw()
    del values[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        ModelConfig.from_dict(values)


DAMAGED = {
    "empty": b"",
    "cut": b"{",
    "a list": b"[1, 2]",
    "binary": b"\x00\x01",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "a number of ten thousand digits": b'{"vocab_size": ' + b"1" * 10_000 + b"}",
    "a number of a thousand digits": b'{"architectures": ' + b"1" * 1_000 + b"}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_named_in_one_short_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        ModelConfig.from_folder(tmp_path)
    assert len(str(caught.value)) < 400


def test_a_config_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw()), encoding="utf-8-sig")
    assert ModelConfig.from_folder(tmp_path).vocab_size == 50


def test_a_config_that_is_no_file_or_gigantic_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.mkdir()
    with pytest.raises(ValueError, match=r"config\.json: is not a file"):
        ModelConfig.from_folder(tmp_path)
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match=r"config\.json has 1,000,000,000,000 bytes"):
        ModelConfig.from_folder(tmp_path)


def test_a_deep_value_can_be_shown_in_a_message() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"^hidden_size .* got \[\[\[\[\.\.\.\]\]\]\]$"):
        ModelConfig.from_dict(raw(hidden_size=deep))


def test_the_decoders_part_of_a_larger_config_is_read() -> None:
    inner = {key: value for key, value in raw(eos_token_id=[3, 4]).items() if key != "architectures"}
    nested = {"architectures": [ARCHITECTURE["llama"]], "eos_token_id": 9, "text_config": inner}
    assert ModelConfig.from_dict(nested) == ModelConfig.from_dict(raw(eos_token_id=[3, 4]))


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        ModelConfig.from_folder(tmp_path)
