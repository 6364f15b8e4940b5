"""What a model's makers recommend for generating: `generation_config.json`, and what ends a text.

Three files name tokens that end a text, and as in vLLM they are asked together:

    tokenizer_config.json            eos_token       the end-of-sequence token itself: `stop_reason` is None
    generation_config.json           eos_token_id    others that end a text, an end-of-turn token say: each is
    config.json, if that has none    eos_token_id    like a stop token, and `stop_reason` names it

The other numbers of `generation_config.json` are defaults for sampling, under vLLM's names: they count where
a caller gives no parameters.

Source: vLLM's `SamplingParams.update_from_generation_config` and `ModelConfig.get_diff_sampling_param`.
Read next: `minivllm/decoding/stop_criteria.py`, which ends texts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivllm.model.config import read_eos_token_ids
from minivllm.model.json_file import read_json_object

GENERATION_FILE = "generation_config.json"
SAMPLING_NAMES = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}
"""Hugging Face's names, and vLLM's. Only a temperature of 0 says "greedy": `do_sample` is not among them."""


@dataclass(frozen=True)
class GenerationConfig:
    """The contents of a `generation_config.json`.

    Attributes:
        path: the file.
        eos_token_ids: tokens that end a text.
        sampling: what it has for `SamplingParams`, under their names; not checked yet.
    """

    path: Path
    eos_token_ids: tuple[int, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationConfig:
        """Read the file, if there is one.

        Raises:
            ValueError: it cannot be understood; the message names file and key.
        """
        path = folder / GENERATION_FILE
        if not os.path.exists(path):  # `Path.exists` raises if the name is too long
            return cls(path)
        raw = read_json_object(path)
        try:
            eos_token_ids = read_eos_token_ids(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        given = {name: raw[key] for key, name in SAMPLING_NAMES.items() if raw.get(key) is not None}
        return cls(path, eos_token_ids, given)
