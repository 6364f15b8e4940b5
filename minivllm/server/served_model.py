"""The model that is served: its names, its tokenizer, its limits, and what clients get by default."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minivllm.model.chat.template import ChatTemplateError, render_chat
from minivllm.model.tokenizer import Tokenizer
from minivllm.sampling_params import SamplingParams
from minivllm.server.engine_client import EngineClient
from minivllm.server.errors import ApiError, unknown_model
from minivllm.server.live import LiveEvents
from minivllm.server.metrics import MetricsCollector
from minivllm.server.request_spans import RequestSpans
from minivllm.server.tool_formats import ToolFormat, format_of_template
from minivllm.validation import check_text

MOST_CHARACTERS = 2**20
"""Of a text that is made tokens, where the model takes no longer ones."""


@dataclass
class ServedModel:
    """One model, as clients see it.

    Attributes:
        names: under which it is asked for; the first one stands in answers.
        root: what was loaded.
        metrics: what `/metrics` shows.
        live: what `/engine/events` tells; None if it tells nothing.
        spans: is told of requests, and sends traces of them to a collector.
        defaults: for fields that a client leaves out.
        chat_template, chat_template_content_format: as for `LLM.chat`.
        tool_format: how the model writes calls of functions; None: they are left as text.
    """

    llm: EngineClient
    names: Sequence[str]
    root: str
    max_model_len: int
    metrics: MetricsCollector | None = None
    live: LiveEvents | None = None
    spans: RequestSpans | None = None
    defaults: SamplingParams = field(default_factory=SamplingParams)
    chat_template: str | Path | None = None
    chat_template_content_format: str = "auto"
    tool_format: ToolFormat | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            self.chat_template = self.tokenizer.chat_templates.load(self.chat_template)

    @cached_property
    def _longest_token(self) -> int:
        """Characters of one token at most."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    @cached_property
    def num_token_ids(self) -> int:
        """Ids that may have a token are below it: those of added tokens, too, and there may be holes."""
        return 1 + max(self.tokenizer.get_vocab().values(), default=-1)

    @property
    def tokenizer(self) -> Tokenizer:
        if self.llm.tokenizer is None:
            raise ApiError("this model has no tokenizer: give prompts as token ids", "prompt")
        return self.llm.tokenizer

    def format_of_template(self) -> ToolFormat | None:
        """How the chat template, the one for tools if there are several, lets the model call functions."""
        if self.llm.tokenizer is None:
            return None
        try:
            own = None if self.chat_template is None else str(self.chat_template)
            chosen = self.llm.tokenizer.chat_templates.choose(own, tools=[{}])
        except ChatTemplateError:
            return None
        return format_of_template(chosen)

    def has_special(self, tags: Iterable[str]) -> bool:
        """Is one of these a special token, which texts leave out?"""
        ids = [self.tokenizer.token_to_id(tag) for tag in tags]
        return any(
            token is not None and not self.tokenizer.decode([token], skip_special_tokens=True)
            for token in ids
        )

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
        add_special_tokens: bool = True,
        truncate_to: int | None = None,
    ) -> dict[str, Any]:
        """A prompt for the engine: checked, with its tokens.

        Args:
            add_special_tokens: to a text; a chat template has written them already.
            truncate_to: only so many tokens of its end are used; −1: as many as the model takes.

        Raises:
            ApiError: it is empty, or too long.
        """
        text = prompt if isinstance(prompt, str) else None
        is_huge = text is not None and len(text) > self.max_model_len * self._longest_token
        if is_huge and truncate_to is None:  # refused before it is encoded
            self._check_lengths(len(text or "") // self._longest_token, max_tokens)
        ids = self.encode(text, add_special_tokens) if text is not None else prompt
        if truncate_to is not None and len(ids) > (most := self._truncation(truncate_to, max_tokens)):
            text, ids = None, ids[len(ids) - most :]
        if not ids:
            raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        self._check_lengths(len(ids), max_tokens)
        return {"prompt": text, "prompt_token_ids": list(ids), "cache_salt": salt}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The tokens of a text. Raises `ApiError` for one that would take too long."""
        text = check_text("prompt", text)
        most = max(MOST_CHARACTERS, self.max_model_len * self._longest_token)
        if len(text) > most:
            raise ApiError(f"A prompt must have at most {most:,} characters, got {len(text):,}.", "prompt")
        return self.tokenizer.encode(text, add_special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], **asked: Any) -> str:
        """A conversation as the model's template writes it; arguments as for `LLM.chat`.

        Raises:
            ApiError: the client's own template is broken, or refuses the messages.
        """
        templates, own = self.tokenizer.chat_templates, asked.get("chat_template")
        asked = {"chat_template": self.chat_template} | {
            name: value for name, value in asked.items() if value is not None
        }
        if own is not None:
            templates = templates.of("this request")
        try:
            return render_chat(
                templates,
                messages,
                chat_template_content_format=self.chat_template_content_format,
                **asked,
            )
        except ChatTemplateError as error:
            raise ApiError(str(error), None if own is None else "chat_template") from None

    def _truncation(self, wanted: int, max_tokens: int | None) -> int:
        """Tokens that a prompt is cut to."""
        if wanted > self.max_model_len:
            raise ApiError(
                f"truncate_prompt_tokens value ({wanted}) is greater than max_model_len "
                f"({self.max_model_len}). Please request a smaller truncation size.",
                "truncate_prompt_tokens",
                wanted,
            )
        return wanted if wanted >= 0 else max(1, self.max_model_len - (max_tokens or 1))

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
