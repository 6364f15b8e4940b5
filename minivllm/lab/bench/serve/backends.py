"""The two forms of the OpenAI API: what is sent, and what the parts of a stream say.

    openai         /v1/completions         {"prompt": text or token ids, …}
    openai-chat    /v1/chat/completions    {"messages": [{"role": "user", "content": text}], …}

Only the fields that count are decoded: a client that reads everything would be slower than the server.

Source: the OpenAI API; the fields `ignore_eos` and `return_token_ids` are vLLM's. Read next: `client.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

BACKENDS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
"""Name → path below the server's address."""
ALIASES = {"openai-completions": "openai", "vllm": "openai", "vllm-chat": "openai-chat"}


class Delta(msgspec.Struct):
    """What is new in a chat's answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None

    def has_tokens(self) -> bool:
        """Does it say anything? A chat may begin by naming the speaker, before any token is there."""
        delta = self.delta
        if delta is None:
            return True  # a completion's text may be empty: half a character, or no tokenizer
        is_greeting = delta.role is not None and not self.new_text() and not delta.tool_calls
        return not is_greeting or self.finish_reason is not None

    def new_text(self) -> str:
        if self.delta is None:
            return self.text or ""
        return self.delta.content or self.delta.reasoning_content or self.delta.reasoning or ""


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


decode = msgspec.json.Decoder(Chunk).decode


def make_body(
    backend: str,
    model: str,
    prompt: str | Sequence[int],
    num_output_tokens: int,
    *,
    temperature: float = 0.0,
    ignore_eos: bool = True,
    wants_ids: bool = False,
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """A request as JSON, made before the run, so that making it delays nothing.

    Args:
        prompt: token ids for "openai" only.
        ignore_eos: exactly so many tokens come out, where the server knows the field.
        wants_ids: the answer's token ids, too.
        more: other fields.
    """
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if backend == "openai":
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    body |= {"max_tokens": num_output_tokens, "temperature": temperature}
    if ignore_eos:
        body["ignore_eos"] = True
    if wants_ids:
        body["return_token_ids"] = True
    return msgspec.json.encode(body | dict(more or {}))
