"""What ends a text, and how to sample by default: the files of a folder together, as vLLM reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig as TheirConfig

from minivllm import LLM, SamplingParams
from minivllm.model.generation_config import SAMPLING_NAMES, GenerationConfig
from tests.model.conftest import MakeCheckpoint, random_tokens

LETTERS = "abcdefghijklmnopqrstuvwxyz"
END = len(LETTERS)
"""Id of `<|im_end|>`, the end of the tokenizer's vocabulary; the model has 97 tokens."""


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


def add_tokenizer(folder: Path, eos_token: str | None) -> None:
    vocabulary = {text: number for number, text in enumerate([*LETTERS, "<|im_end|>"])}
    write(folder, "tokenizer.json", {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}})
    write(folder, "tokenizer_config.json", {} if eos_token is None else {"eos_token": eos_token})


def change_config(folder: Path, **changes: Any) -> None:
    write(folder, "config.json", json.loads((folder / "config.json").read_text()) | changes)


@pytest.fixture
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    folder, _ = make_checkpoint(eos_token_id=1)
    (folder / "generation_config.json").unlink(missing_ok=True)
    add_tokenizer(folder, "<|im_end|>")
    return folder


def load(folder: Path, **settings: Any) -> LLM:
    return LLM(folder, num_gpu_blocks_override=8, attention_backend="torch", **settings)


def ending(llm: LLM, token: int, **params: Any) -> tuple[int, str, object]:
    """Tokens and reasons of a text that can only be `token`, again and again."""
    wanted = SamplingParams(temperature=0, max_tokens=5, allowed_token_ids=[token], **params)
    (output,) = llm.generate([random_tokens(3)], wanted, use_tqdm=False)
    told = output.outputs[0]
    return len(told.token_ids), str(told.finish_reason), told.stop_reason


def test_a_chat_models_text_ends_with_its_tokenizers_token_whatever_the_config_names(folder: Path) -> None:
    llm = load(folder)
    assert ending(llm, END) == (1, "stop", None)
    assert ending(llm, 1) == (1, "stop", 1)
    assert ending(llm, 7) == (5, "length", None)


def test_all_endings_count_and_only_the_tokenizers_own_has_no_name(folder: Path) -> None:
    write(folder, "generation_config.json", {"eos_token_id": [3, END, 4]})
    llm = load(folder)
    assert [ending(llm, token) for token in (END, 3, 4)] == [
        (1, "stop", None),
        (1, "stop", 3),
        (1, "stop", 4),
    ]
    assert ending(llm, 1) == (5, "length", None), (
        "config.json is asked where generation_config.json is silent"
    )
    for token in (END, 3):
        assert ending(llm, token, ignore_eos=True) == (5, "length", None)
        assert ending(llm, token, ignore_eos=True, stop_token_ids=[token]) == (1, "stop", token)


def test_every_ending_is_held_back_until_min_tokens(folder: Path) -> None:
    write(folder, "generation_config.json", {"eos_token_id": [3]})
    llm = load(folder)
    for token in (END, 3):
        wanted = SamplingParams(temperature=0, max_tokens=5, min_tokens=2, allowed_token_ids=[token, 7])
        (output,) = llm.generate([random_tokens(3)], wanted, use_tqdm=False)
        assert output.outputs[0].token_ids[:2] == [7, 7]


@pytest.mark.parametrize(
    ("config", "generation", "eos_token", "expected"),
    [
        (5, {}, None, (5,)),
        (None, {}, None, ()),
        (None, {}, "<|im_end|>", (END,)),
        ([5, 6], {}, "<|im_end|>", (END, 5, 6)),
        (5, {"eos_token_id": None}, "<|im_end|>", (END, 5)),
        (5, {"eos_token_id": 6}, "<|im_end|>", (END, 6)),
        (5, {"eos_token_id": [6, END, 6]}, "<|im_end|>", (END, 6)),
        (5, {}, "no such token", (27, 5)),  # a token that the vocabulary lacks is added to it
        ([96, 97], {}, None, (96,)),  # the vocabulary has 97 tokens
    ],
)
def test_where_the_endings_come_from(
    config: object, generation: dict[str, Any], eos_token: str | None, expected: tuple[int, ...], folder: Path
) -> None:
    change_config(folder, eos_token_id=config)
    write(folder, "generation_config.json", generation)
    add_tokenizer(folder, eos_token)
    assert load(folder).engine.eos_token_ids == expected


# ---- defaults for sampling ----------------------------------------------------------------------------

RECOMMENDED = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.1,
    "repetition_penalty": 1.05,
    "max_new_tokens": 7,
    "do_sample": True,
    "eos_token_id": 3,
}
AS_PARAMS = SamplingParams(
    temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, repetition_penalty=1.05, max_tokens=7
)


def test_generate_and_chat_use_the_models_defaults_where_nothing_is_given(folder: Path) -> None:
    write(folder, "generation_config.json", RECOMMENDED)
    llm = load(folder)
    assert llm.get_default_sampling_params() == AS_PARAMS
    (output,) = llm.generate([random_tokens(3)], use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 7 or output.outputs[0].finish_reason == "stop"
    llm.get_default_sampling_params().temperature = 2  # a copy, so nothing else changes
    assert llm.get_default_sampling_params() == AS_PARAMS


def test_the_setting_names_vllms_defaults_or_another_folder(folder: Path, tmp_path: Path) -> None:
    write(folder, "generation_config.json", RECOMMENDED)
    llm = load(folder, generation_config="vllm")
    assert llm.get_default_sampling_params() == SamplingParams()
    assert llm.engine.eos_token_ids == (END, 3), "the setting is about sampling alone"
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match=r"generation_config must be 'auto', 'vllm', or a folder .*other"):
        load(folder, generation_config=other)
    for name in ("x" * 5000, "a\0b", "~noone"):
        with pytest.raises(ValueError, match="generation_config must be"):
            load(folder, generation_config=name)
    write(other, "generation_config.json", {"top_p": 0.5, "eos_token_id": 4})
    llm = load(folder, generation_config=str(other))
    assert llm.get_default_sampling_params() == SamplingParams(top_p=0.5)
    assert llm.engine.eos_token_ids == (END, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"temperature": "hot"}, ["temperature", "'hot'", "generation_config='vllm'"]),
        ({"top_p": 0}, ["top_p", "0"]),
        ({"max_new_tokens": 1.5}, ["max_tokens", "1.5"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
        ({"eos_token_id": [1, None]}, ["eos_token_id[1]", "None"]),
    ],
)
def test_a_generation_config_that_cannot_be_meant_is_refused_by_name(
    content: dict[str, Any], words: list[str], folder: Path
) -> None:
    write(folder, "generation_config.json", content)
    with pytest.raises(ValueError) as caught:
        load(folder)
    assert all(word in str(caught.value) for word in ("generation_config.json", *words))


values = st.sampled_from([None, 1, 2, 0.5, 1.0, 40])


@given(given_values=st.dictionaries(st.sampled_from(sorted(SAMPLING_NAMES)), values))
def test_what_is_given_counts_as_in_vllm_with_transformers(
    given_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """vLLM takes what differs from Hugging Face's own defaults, which are "nothing" since version 5."""
    folder = tmp_path_factory.mktemp("generation")
    write(folder, "generation_config.json", given_values)
    told = TheirConfig.from_dict(dict(given_values)).to_diff_dict()
    expected = {name: told[key] for key, name in SAMPLING_NAMES.items() if told.get(key) is not None}
    assert GenerationConfig.from_folder(folder).sampling == expected
