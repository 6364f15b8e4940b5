"""How long a text a model takes: derived from its config as in vLLM, and obeyed by the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.model.config import ModelConfig
from tests.model.conftest import MakeCheckpoint, random_tokens

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 100,
}
PAIRS = [1.0] * 8
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def longest(**changes: Any) -> int:
    config = {key: value for key, value in (BASE | changes).items() if value != "absent"}
    return ModelConfig.from_dict(config).max_model_len


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 100),
        ({"rope_type": "default"}, 100),
        ({"rope_type": "linear", "factor": 4.0}, 400),
        ({"rope_type": "linear", "factor": 2.555}, 255),
        ({"rope_type": "dynamic", "factor": 4.0}, 100),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 400),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, **LLAMA3}, 100),
        ({"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": PAIRS}, 64),
        ({"rope_type": "su", "original_max_position_embeddings": 64, "short_factor": PAIRS}, 64),
        ({"rope_type": "longrope", "factor": 4.0, "short_factor": PAIRS}, 100),
    ],
)
def test_each_scaling_has_its_rule_in_every_spelling(scaling: dict[str, Any] | None, expected: int) -> None:
    assert longest(rope_parameters=scaling) == longest(rope_scaling=scaling) == expected
    if scaling:
        old = {"type": scaling["rope_type"], **{k: v for k, v in scaling.items() if k != "rope_type"}}
        assert longest(rope_scaling=old, rope_theta=1e4) == expected


def test_an_empty_scaling_leaves_the_word_to_the_other_spelling() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert longest(rope_scaling={}, rope_parameters=yarn) == 256


def test_what_stands_beside_the_scaling_counts_more_than_what_stands_within() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert longest(rope_scaling=yarn, original_max_position_embeddings=32) == 128


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("LlamaForCausalLM", 2048), ("MistralForCausalLM", 131_072), ("Qwen2ForCausalLM", 32_768)],
)
def test_a_file_without_a_length_has_its_familys(architecture: str, expected: int) -> None:
    changes = {"max_position_embeddings": "absent", "num_key_value_heads": 2}
    assert longest(architectures=[architecture], **changes) == expected


def test_of_several_names_for_the_length_the_smallest_counts_and_a_window_does_not() -> None:
    assert longest(max_sequence_length=60, seq_length=70) == 60
    assert longest(model_max_length=200) == 100
    assert longest(max_seq_len=50, rope_scaling={"type": "linear", "factor": 2}) == 100
    assert longest(architectures=["MistralForCausalLM"], sliding_window=16, num_key_value_heads=2) == 100


@given(
    st.sampled_from(["linear", "yarn"]),
    st.integers(2, 10**6),
    st.one_of(st.none(), st.integers(2, 10**6)),
    st.floats(1, 1e4),
)
def test_scaled_lengths_are_those_of_vllm(
    rope_type: str, trained: int, original: int | None, factor: float
) -> None:
    """Its rule, said slowly."""
    scaling = {"rope_type": rope_type, "factor": factor, "original_max_position_embeddings": original}
    derived: float = trained
    if rope_type == "yarn":
        derived = trained if original is None else original
    assert longest(max_position_embeddings=trained, rope_parameters=scaling) == int(derived * factor)


@pytest.fixture
def yarn(make_checkpoint: MakeCheckpoint) -> Path:
    """The case of the issue: `max_position_embeddings` has the length of the training."""
    folder, _ = make_checkpoint(max_position_embeddings=64)
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    return change_rope(folder, scaling)


def change_rope(folder: Path, scaling: dict[str, Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    return folder


def load(folder: Path, **settings: Any) -> LLM:
    return LLM(folder, num_gpu_blocks_override=32, attention_backend="torch", **settings)


def test_the_engine_takes_texts_of_the_derived_length(yarn: Path) -> None:
    llm = load(yarn, skip_tokenizer_init=True)
    assert llm.engine.config.max_model_len == 256
    wanted = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    (output,) = llm.generate([random_tokens(250)], wanted, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 6
    with pytest.raises(ValueError, match="max_model_len 256"):
        llm.generate([random_tokens(256)], wanted, use_tqdm=False)


def test_a_longer_limit_is_refused_with_the_numbers_it_was_derived_from(yarn: Path) -> None:
    assert load(yarn, max_model_len=200, skip_tokenizer_init=True).engine.config.max_model_len == 200
    words = r"max_model_len must be at most 256 .*original_max_position_embeddings 64 × factor 4.*got 257"
    with pytest.raises(ValueError, match=words):
        load(yarn, max_model_len=257, skip_tokenizer_init=True)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "longrope", "factor": 4.0, "short_factor": PAIRS, "long_factor": PAIRS},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_a_rotation_that_changes_with_the_texts_length_is_refused_by_name(
    scaling: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    folder = change_rope(make_checkpoint(max_position_embeddings=64)[0], scaling)
    words = f"max_model_len must be at most 64 .*rope_type '{scaling['rope_type']}'.*got 65"
    with pytest.raises(ValueError, match=words):
        load(folder, max_model_len=65, skip_tokenizer_init=True)
    assert load(folder, skip_tokenizer_init=True).engine.config.max_model_len == 64
