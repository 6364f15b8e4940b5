"""How models write that they want a function called, and which form a chat template teaches them.

    hermes        <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>      Qwen, Hermes
    llama3_json   {"name": "weather", "parameters": {"city": "Rome"}}                            Llama 3
                  with or without <|python_tag|> before it; several with ; between

The names are those of vLLM's parsers. Read next: `tool_calls.py`, which finds the calls in an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec


class ToolCall(NamedTuple):
    """A function that the model wants called."""

    name: str
    arguments: str
    """A JSON object, as the model wrote it."""


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls.

    Attributes:
        openings: what a call may begin with. A brace is the beginning of the call's own object.
        closing: what it ends with, after its object; "" for nothing.
        arguments: the keys under which the arguments may stand.
        first_keys: the keys with which its object may begin, so that other JSON and code are not waited for;
            none: any.
        separators: characters that stand between calls and mean nothing.
    """

    name: str
    openings: tuple[str, ...]
    closing: str
    arguments: tuple[str, ...]
    first_keys: tuple[str, ...] = ()
    separators: str = " \t\r\n"

    @property
    def tags(self) -> tuple[str, ...]:
        """Those of its marks that a tokenizer may have as special tokens."""
        return tuple(mark for mark in (*self.openings, self.closing) if len(mark) > 1)

    def read(self, text: str) -> ToolCall | None:
        """The call that is this JSON object; None if it is none, or not JSON."""
        try:
            found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            name = msgspec.json.decode(found["name"], type=str)
            arguments = next(found[key] for key in self.arguments if key in found)
            msgspec.json.decode(arguments, type=dict)
        except (ValueError, KeyError, StopIteration, RecursionError):
            return None
        return ToolCall(name, bytes(arguments).decode()) if name else None


HERMES = ToolFormat("hermes", ("<tool_call>",), "</tool_call>", ("arguments",))
LLAMA3_JSON = ToolFormat(
    "llama3_json",
    ("<|python_tag|>", "{"),
    "",
    ("parameters", "arguments"),
    first_keys=("name", "type", "parameters", "arguments"),
    separators=" \t\r\n;",
)
ENFORCED = ToolFormat("enforced", ("{",), "", ("parameters",), first_keys=("name",), separators=" \t\r\n[],")
"""Of calls that structured output makes a model write (`tool_choice.py`): no form that it was taught."""

TOOL_FORMATS: Mapping[str, ToolFormat] = {form.name: form for form in (HERMES, LLAMA3_JSON)}

OTHER_FORMATS = ("<function=", "<arg_key>", "<function_calls>")
"""What stands in templates whose calls have `<tool_call>` around them, and no JSON within."""


def format_of_template(template: str | None) -> ToolFormat | None:
    """The form in which this chat template asks for calls; None for any other."""
    if template is None or any(mark in template for mark in OTHER_FORMATS):
        return None
    if HERMES.openings[0] in template and "arguments" in template:
        return HERMES
    names_llama = "<|python_tag|>" in template or "<|start_header_id|>" in template
    return LLAMA3_JSON if names_llama and '"parameters": dictionary' in template.replace("\\", "") else None
