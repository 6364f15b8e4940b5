"""The model that is served: its names, its tokenizer, its limits, and what clients get by default."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minivllm.model.chat.template import render_chat
from minivllm.model.tokenizer import Tokenizer
from minivllm.sampling_params import SamplingParams
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.errors import ApiError, unknown_model
from minivllm.server.metrics import EngineCollector
from minivllm.server.request_spans import RequestSpans


@dataclass
class ServedModel:
    """One model, as clients see it.

    Attributes:
        names: under which it is asked for; the first one stands in answers.
        root: what was loaded.
        metrics: what `/metrics` shows.
        spans: is told of requests, and sends traces of them to a collector.
        defaults: for fields that a client leaves out.
        chat_template, chat_template_content_format: as for `LLM.chat`.
    """

    llm: AsyncLLM
    names: Sequence[str]
    root: str
    max_model_len: int
    metrics: EngineCollector | None = None
    spans: RequestSpans | None = None
    defaults: SamplingParams = field(default_factory=SamplingParams)
    chat_template: str | Path | None = None
    chat_template_content_format: str = "auto"
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            self.chat_template = self.tokenizer.chat_templates.load(self.chat_template)

    @cached_property
    def _longest_token(self) -> int:
        """Characters of one token at most."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    @property
    def tokenizer(self) -> Tokenizer:
        if self.llm.tokenizer is None:
            raise ApiError("this model has no tokenizer: give prompts as token ids", "prompt")
        return self.llm.tokenizer

    def name_for(self, wanted: str | None) -> str:
        """The name that an answer bears. Raises `ApiError` if this is another model's."""
        if wanted is not None and wanted not in self.names:
            raise unknown_model(wanted, ", ".join(self.names))
        return wanted or self.names[0]

    def prompt(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None,
        salt: str | None = None,
        *,
        is_rendered: bool = False,
    ) -> dict[str, Any]:
        """A prompt for the engine: checked, with its tokens.

        Args:
            is_rendered: a chat template has written it, special tokens included.

        Raises:
            ApiError: it is empty, or too long.
        """
        text = prompt if isinstance(prompt, str) else None
        if text is not None and len(text) > self.max_model_len * self._longest_token:
            self._check_lengths(len(text) // self._longest_token, max_tokens)  # refused before it is encoded
        ids = self.tokenizer.encode(text, add_special_tokens=not is_rendered) if text is not None else prompt
        if not ids:
            raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        self._check_lengths(len(ids), max_tokens)
        return {"prompt": text, "prompt_token_ids": list(ids), "cache_salt": salt}

    def render(self, messages: Sequence[Mapping[str, Any]], **asked: Any) -> str:
        """A conversation as the model's template writes it; arguments as for `LLM.chat`."""
        asked = {"chat_template": self.chat_template} | {
            name: value for name, value in asked.items() if value is not None
        }
        return render_chat(
            self.tokenizer.chat_templates,
            messages,
            chat_template_content_format=self.chat_template_content_format,
            **asked,
        )

    def _check_lengths(self, prompt_tokens: int, max_tokens: int | None) -> None:
        most = self.max_model_len
        if max_tokens is not None and max_tokens > most:
            raise ApiError(
                f"max_tokens={max_tokens} cannot be greater than max_model_len={most}. Please request fewer "
                "output tokens.",
                "max_tokens",
                max_tokens,
            )
        if prompt_tokens >= most:
            raise ApiError(
                f"This model's maximum context length is {most} tokens. However, your prompt contains at "
                f"least {prompt_tokens} input tokens, which exceeds this limit even without any output "
                "tokens. Please reduce the length of the input prompt.",
                "input_tokens",
                prompt_tokens,
            )
        if max_tokens is not None and prompt_tokens + max_tokens > most:
            raise ApiError(
                f"This model's maximum context length is {most} tokens. However, you requested {max_tokens} "
                f"output tokens and your prompt contains {prompt_tokens} input tokens, for a total of "
                f"{prompt_tokens + max_tokens} tokens. Please reduce the length of the input prompt or the "
                "number of requested output tokens.",
                "input_tokens",
                prompt_tokens,
            )

    def card(self, name: str) -> dict[str, Any]:
        """Its entry in `/v1/models`."""
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "minivllm",
            "root": self.root,
            "parent": None,
            "max_model_len": self.max_model_len,
        }
