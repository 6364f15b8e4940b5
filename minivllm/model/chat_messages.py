"""A conversation as clients send it, turned into what a chat template expects.

Clients of the OpenAI API send contents as text, as lists of parts, or not at all beside `tool_calls`, and the
arguments of tool calls as JSON in a string. Templates expect text or parts (`content_format.py`), never
nothing, and arguments as dictionaries. Everything else that a message has is handed on as it is.

Source: vLLM's `parse_chat_messages`. What it differs in: keys that it does not know reach the template here.
Read next: `chat_template.py`.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from minivllm.model.content_format import ContentFormat

Message = dict[str, Any]

TEXT_OF_PART = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Where the parts that are text have it."""
_PLAIN_KINDS: dict[type, Any] = {str: str.__str__, int: int.__int__, float: float.__float__}
"""A subclass (an enumeration, say) becomes what it stands for."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Where clients and templates have an assistant's thoughts."""


def read_messages(messages: object) -> list[Message]:
    """The messages as plain dictionaries, copied, without the keys that are None.

    Raises:
        ValueError: not a list of messages, each with a role; or data that is not plain, by its place.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages must be a list of messages that is not empty, got {_short(messages)}")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def normalise_messages(messages: Sequence[Message], content_format: ContentFormat) -> list[Message]:
    """Messages from `read_messages`, with contents in this format, and arguments of tool calls parsed.

    Raises:
        ValueError: a content, a part or a tool call of a form that is not known, by its place.
    """
    normalised = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        message = {**message, "content": _content(message, content_format, place)}
        if message["role"] == "assistant" and "tool_calls" in message:
            message["tool_calls"] = _tool_calls(message["tool_calls"], f"{place}['tool_calls']")
            if not message["tool_calls"]:  # templates ask only whether there are any
                del message["tool_calls"]
        normalised.append(message)
    return normalised


def name_reasoning(message: Message) -> Message:
    """The message with its reasoning under the names that templates read."""
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def plain_data(value: Any, place: str) -> Any:
    """A copy of strings, numbers, lists, dictionaries, and the objects of client libraries as such.

    A template sees nothing else: methods of other objects might do anything.

    Raises:
        ValueError: something else, or too deep, by its place.
    """
    try:
        return _plain(value, place)
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind, made_plain in _PLAIN_KINDS.items():
        if isinstance(value, kind):
            return made_plain(value)
    if callable(getattr(value, "model_dump", None)):  # pydantic: the OpenAI library's messages
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_plain(key, place): _plain(item, f"{place}[{key!r:.40}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise ValueError(
        f"{place} must be plain data (strings, numbers, lists and dictionaries), got {_short(value)}"
    )


def _read_message(message: object, place: str) -> Message:
    message = plain_data(message, place)
    if not isinstance(message, dict):
        raise ValueError(f'{place} must be {{"role": …, "content": …}}, got {_short(message)}')
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{place} must have a 'role' that is a string, got {_short(message)}")
    return {key: value for key, value in message.items() if value is not None}


def _content(message: Message, content_format: ContentFormat, place: str) -> str | list[dict[str, Any]]:
    content = message.get("content", [])
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError(f"{place}['content'] must be a string or a list of parts, got {_short(content)}")
    parts = [_part(part, f"{place}['content'][{index}]") for index, part in enumerate(content)]
    parts = [part for part in parts if part["text"] is not None]
    if (
        content_format == "openai" and message["role"] != "tool"
    ):  # results of tools are text for all templates
        return parts
    return "\n".join(part["text"] for part in parts if part["text"])


def _part(part: object, place: str) -> dict[str, Any]:
    """A part of a content as text; its other keys stay."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f'{place} must be {{"type": "text", "text": …}} or a string, got {_short(part)}')
    if part["type"] not in TEXT_OF_PART:
        raise ValueError(
            f"{place} is of the type {_short(part['type'])}, and this engine reads text only "
            f"({', '.join(TEXT_OF_PART)})"
        )
    key = TEXT_OF_PART[part["type"]]
    if not isinstance(part.get(key), str | None):
        raise ValueError(f"{place}[{key!r}] must be a string, got {_short(part[key])}")
    rest = {name: value for name, value in part.items() if name not in ("type", key)}
    return {"type": "text", "text": part.get(key), **rest}


def _tool_calls(calls: object, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise ValueError(f"{place} must be a list, got {_short(calls)}")
    parsed = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise ValueError(
                f'{place}[{index}] must be {{"type": "function", "function": {{"name": …, "arguments": …}}}}'
                f", got {_short(call)}"
            )
        arguments = _arguments(function.get("arguments"), f"{place}[{index}]['function']['arguments']")
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed


def _arguments(arguments: object, place: str) -> dict[str, Any]:
    """The arguments of a tool call as a dictionary. They were written by a model, so they may be anything."""
    if isinstance(arguments, str) and arguments:
        with suppress(ValueError, RecursionError):  # a string is no object, and spoken of below
            arguments = json.loads(arguments)
    if isinstance(arguments, dict):
        return arguments
    if arguments:
        # An error would make every later turn of the conversation fail.
        warnings.warn(f"{place} is no JSON object ({_short(arguments)}): it is taken for {{}}", stacklevel=2)
    return {}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
