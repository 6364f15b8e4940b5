"""Prompts in all the forms in which callers give them, as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from minivllm.model.tokenizer import Tokenizer

Prompt: TypeAlias = str | Mapping[str, Any] | Sequence[int]


class TokenizedPrompt(NamedTuple):
    text: str | None
    token_ids: list[int]
    cache_salt: str | None = None


def tokenize_prompt(prompt: Prompt, name: str, tokenizer: Tokenizer | None) -> TokenizedPrompt:
    if isinstance(prompt, str):
        return TokenizedPrompt(prompt, tokenizer.encode(prompt))
    if isinstance(prompt, dict):
        ids = prompt.get("prompt_token_ids") or tokenizer.encode(prompt["prompt"])
        return TokenizedPrompt(prompt.get("prompt"), ids, prompt.get("cache_salt"))
    return TokenizedPrompt(None, list(prompt))
