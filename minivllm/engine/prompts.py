"""Prompts in all the forms in which callers give them, as the engine takes them: token ids, and their text.

Read next: `admission.py`, which says whether a prompt can be served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from minivllm.validation import check_list, check_text, shown

if TYPE_CHECKING:
    from minivllm.model.tokenizer import Tokenizer

Prompt: TypeAlias = str | Mapping[str, Any] | Sequence[int]
"""A text, `{"prompt": text}`, `{"prompt_token_ids": [...]}`, or a list of token ids. A dictionary may also
have a `cache_salt`: cached prefixes are shared only among prompts with the same one."""

PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt")

NO_TOKENIZER = "this model has no tokenizer: give prompts as token ids (`prompt_token_ids`)"


class TokenizedPrompt(NamedTuple):
    """A prompt as the engine takes it."""

    text: str | None
    token_ids: list[int]
    cache_salt: str | None = None


def tokenize_prompt(prompt: Prompt, name: str, tokenizer: Tokenizer | None) -> TokenizedPrompt:
    """A prompt in any form, with its token ids. What the engine checks itself, it checks later.

    Raises:
        ValueError: it has none of these forms, or is a text and there is no tokenizer; it names `name`.
    """
    text: Any = None
    ids: Any = prompt
    salt: Any = None
    if isinstance(prompt, str):
        text, ids = prompt, None
    elif isinstance(prompt, Mapping):
        if unknown := [key for key in prompt if key not in PROMPT_KEYS]:
            known = ", ".join(PROMPT_KEYS)
            raise ValueError(f"{name} may have the keys {known}, got {shown(unknown[0])}")
        text, ids, salt = (prompt.get(key) for key in PROMPT_KEYS)
    if ids is None and isinstance(text, str):
        if tokenizer is None:
            raise ValueError(f"{name} is a text, but {NO_TOKENIZER}")
        ids = tokenizer.encode(check_text(name, text))
    try:
        return TokenizedPrompt(text, check_list(name, ids, of="token ids"), salt)
    except ValueError:
        raise ValueError(
            f"{name} must be a string, a list of token ids, or a dictionary with 'prompt' (a string) or "
            f"'prompt_token_ids' (a list of integers); got {shown(prompt)}"
        ) from None
