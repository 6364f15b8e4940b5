"""How much of anything one request may have, so that no client costs the others more than a moment.

The types carry their limits; a list with one wrong item, or one too many, is refused before the rest is
looked at. What depends on the model (`max_model_len`, `max_num_seqs`) the engine checks.

Read next: `protocol.py`, whose fields have these types.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import MaxLen
from pydantic import FailFast

MAX_LOGPROBS = 20
"""As in vLLM."""
MAX_SALT_CHARACTERS = 1024
"""As in vLLM."""
MAX_NAME_CHARACTERS = 200
MOST_TEXTS = 1024
"""Of stop strings and bad words: each is looked for at every token."""
MOST_CHARACTERS = 1024
"""Of one of them."""
MOST_IDS = 2**18
"""Of stop tokens and allowed tokens: as many as a large vocabulary has."""
MOST_BIASES = 4096
MOST_MESSAGES = 2**14
MOST_TOOLS = 1024
MOST_PROMPTS = 4096
"""Each is a request of the engine."""


class _FailFast(FailFast):
    """One wrong item is enough to refuse a list of a million."""

    __hash__ = object.__hash__  # what stands in a union must have one


_FIRST = _FailFast()
Tokens = Annotated[list[int], _FIRST]
ManyTokens = Annotated[list[Tokens], _FIRST]
FewTokens = Annotated[list[int], _FIRST, MaxLen(MOST_IDS)]
Texts = Annotated[list[str], _FIRST]
ShortText = Annotated[str, MaxLen(MOST_CHARACTERS)]
FewTexts = Annotated[list[ShortText], _FIRST, MaxLen(MOST_TEXTS)]
Biases = Annotated[dict[str, float], MaxLen(MOST_BIASES)]
Tools = Annotated[list[dict[str, Any]], MaxLen(MOST_TOOLS)]
Messages = Annotated[list[dict[str, Any]], MaxLen(MOST_MESSAGES)]
