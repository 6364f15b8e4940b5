"""From a conversation to a prompt: choose the model's template, and run it.

A chat template is a small Jinja program that writes messages as the one string that the model was trained on.
A model may have several by name (`default`, `tool_use`, `rag`). Two callers use them: `render_template` is
what `transformers` does with messages as they are, and `render_chat` is what vLLM does with messages as
clients of the OpenAI API send them.

    messages ──► read ──► normalise (vLLM only) ──► reasoning under all its names ──► template ──► prompt

Source: `apply_chat_template` of `transformers`; `chat` of vLLM.
Read next: `sandbox.py`, where the program runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from minivllm.model.chat.content_format import CONTENT_FORMATS, detect_content_format
from minivllm.model.chat.messages import (
    Message,
    name_reasoning,
    normalise_messages,
    plain_data,
    read_messages,
)
from minivllm.model.chat.sandbox import CompiledTemplate
from minivllm.model.json_file import read_text
from minivllm.validation import check_boolean, check_choice, check_input_file

ARGUMENTS = (
    "messages",
    "tools",
    "documents",
    "chat_template",
    "chat_template_content_format",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
)
"""What variables of a template cannot be called, because arguments are."""

_END = "CONTINUE_FINAL_MESSAGE_TAG "
"""Written at the end of the last message, and searched in the prompt, to cut off what follows."""


class ChatTemplateError(ValueError):
    """No template, a template that is broken, or one that refuses the messages, with its words."""


class ChatTemplates:
    """The chat templates of one model, by name, and the special tokens that they write."""

    def __init__(
        self,
        templates: str | Mapping[str, str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        source: str = "this tokenizer",
    ) -> None:
        self.templates = templates
        self.special_tokens = dict(special_tokens or {})
        self.source = source

    def of(self, source: str) -> ChatTemplates:
        """The same, with messages that name another as the one whose template it is."""
        return ChatTemplates(self.templates, self.special_tokens, source)

    def choose(self, wanted: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """The text of a template: the wanted one (its text, or a name), or the one for tools, or the default.

        Raises:
            ChatTemplateError: there is none, or several and none of them is the default.
        """
        if wanted is not None and not isinstance(wanted, str):
            raise ValueError(f"chat_template must be a string, got {wanted!r:.100}")
        named = self.templates if isinstance(self.templates, Mapping) else {}
        if wanted is not None:
            return named.get(wanted, wanted)
        if isinstance(self.templates, str):
            return self.templates
        if tools is not None and "tool_use" in named:
            return named["tool_use"]
        if "default" in named:
            return named["default"]
        if named:
            raise ChatTemplateError(
                f"{self.source} has several chat templates and no default: give chat_template one of "
                f"{', '.join(map(repr, sorted(named)))}"
            )
        raise ChatTemplateError(
            f"{self.source} has no chat template: give chat_template one, or use `generate` with a prompt of "
            "your own making"
        )

    def load(self, template: str | Path | None) -> str | None:
        """A template given as its text, as the name of one of the model's, or as the path of a file.

        For what the owner of this program gives, not a client of a server: it may name any file.

        Raises:
            ValueError: it is none of these.
        """
        if template is None or (isinstance(template, str) and any(mark in template for mark in "{}\n")):
            return template
        if isinstance(self.templates, Mapping) and template in self.templates:
            return self.templates[str(template)]
        if not isinstance(template, str | Path) or template == "":
            raise ValueError(f"chat_template must be a template's text or path, got {template!r:.100}")
        try:
            return read_text(check_input_file("chat_template", template))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"chat_template must be a template's text or its file, got {str(template)!r:.100}: {error}"
            ) from error

    def render_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        content_format: str | None = None,
    ) -> str:
        """The prompt of a conversation, special tokens included.

        Args:
            messages: `{"role": …, "content": …}` each, and what else the template reads.
            tools, documents: JSON schemas of functions, and texts, for templates that know them.
            chat_template: a template's text, or the name of one of the model's.
            add_generation_prompt: end the prompt where the assistant's answer begins.
            continue_final_message: end it within the last message, which the model then continues.
            variables: what else the template may read, such as `enable_thinking`.
            content_format: "string", "openai" or "auto" turns contents into this format, as vLLM does; None
                leaves the messages as they are, as `transformers` does.

        Raises:
            ValueError: an argument of a wrong form, by name.
            ChatTemplateError: the template is broken, works too much, or refuses the messages.
        """
        check_boolean("add_generation_prompt", add_generation_prompt)
        if check_boolean("continue_final_message", continue_final_message) and add_generation_prompt:
            raise ValueError(
                "continue_final_message and add_generation_prompt cannot both be True: one continues the last"
                " message, the other begins a new one"
            )
        template = self.choose(chat_template, tools)
        conversation = read_messages(messages)
        if content_format is not None:
            if check_choice("chat_template_content_format", content_format, CONTENT_FORMATS) == "auto":
                content_format = self._attempt("is broken", lambda: detect_content_format(template))
            conversation = normalise_messages(conversation, content_format)  # type: ignore[arg-type]
        conversation = [name_reasoning(message) for message in conversation]
        if continue_final_message:
            final_text = _mark_end(conversation[-1])
        values = {
            **self.special_tokens,
            **_variables(variables),
            "messages": conversation,
            "tools": _dictionaries("tools", tools),
            "documents": _dictionaries("documents", documents),
            "add_generation_prompt": add_generation_prompt,
        }
        compiled = self._attempt("is broken", lambda: _compiled(template))
        prompt = self._attempt("refuses these messages", lambda: compiled.render(values))
        return _cut_at_end(prompt, final_text) if continue_final_message else prompt

    def _attempt(self, what: str, action: Any) -> Any:
        """A template is a program: whatever it raises is a fault of its own, or of the messages."""
        try:
            return action()
        except RecursionError:
            raise ChatTemplateError(
                f"the chat template of {self.source} {what}: it is nested too deeply"
            ) from None
        except Exception as error:
            raise ChatTemplateError(f"the chat template of {self.source} {what}: {error!s:.1200}") from error


def render_chat(
    templates: ChatTemplates,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template_content_format: str = "auto",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> str:
    """The prompt of a conversation as clients send it, with vLLM's names for the arguments.

    `options` are the others of `ChatTemplates.render_template`, and so are the errors.
    """
    return templates.render_template(
        messages, content_format=chat_template_content_format, variables=chat_template_kwargs, **options
    )


_compiled = lru_cache(maxsize=32)(CompiledTemplate)


def _variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(variables, Mapping | None) or not all(
        isinstance(name, str) for name in variables or ()
    ):
        raise ValueError(f"chat_template_kwargs must be a dictionary with names, got {variables!r:.100}")
    taken = [name for name in variables or () if name in ARGUMENTS]
    if taken:
        raise ValueError(f"chat_template_kwargs cannot have {taken[0]!r}, which is an argument of its own")
    return {
        name: plain_data(value, f"chat_template_kwargs[{name!r}]")
        for name, value in (variables or {}).items()
    }


def _dictionaries(name: str, items: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if items is None:
        return None
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Sequence):
        raise ValueError(f"{name} must be a list of dictionaries, got {items!r:.100}")
    for index, item in enumerate(items):
        if callable(item):
            raise ValueError(
                f"{name}[{index}] is a function, and must be a dictionary with its JSON schema "
                "(`transformers.utils.get_json_schema` makes one)"
            )
    plain = [plain_data(item, f"{name}[{index}]") for index, item in enumerate(items)]
    for index, item in enumerate(plain):
        if not isinstance(item, dict):
            raise ValueError(f"{name}[{index}] must be a dictionary, got {item!r:.100}")
    return plain


def _mark_end(message: Message) -> str:
    """Mark the end of the last message's text, and return that text without the mark."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END
        return content
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _END
                return text
    raise ValueError("continue_final_message needs a last message that has text to continue")


def _cut_at_end(prompt: str, final_text: str) -> str:
    end = prompt.rfind(_END.strip())
    if end < 0 or final_text.strip() not in prompt:
        raise ChatTemplateError(
            "continue_final_message is True, but the template writes the last message otherwise than it is, "
            f"so there is no place to continue it ({final_text!r:.100})"
        )
    kept = prompt[:end]
    # A template that trims has trimmed behind the mark, and would have trimmed here.
    return kept if prompt.startswith(_END, end) else kept.rstrip()
