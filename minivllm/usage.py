"""A mistake in a command line, as a sentence: what was typed, and what there is instead.

typer draws a box around its own words; on our command lines every mistake is one line on stderr, with the
value that was given and where the help is. Read next: `console/commands.py`, `lessons/commands.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text
from typer.core import TyperGroup

from minivllm.terminal import Console


def usage_mistake(error: Exception, arguments: Sequence[str]) -> str | None:
    """What is wrong with a command line; None if it is no such error, empty if it has been said."""
    if not hasattr(error, "format_message"):  # typer has no public name for all of its usage errors
        return None
    context = getattr(error, "ctx", None)
    text = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
        return ""
    text = text.rstrip(".")
    if context is None:
        return text
    value = _value_given(getattr(error, "param", None), arguments)
    if value is not None and repr(value) not in text:
        text += f", got {value!r}"
    if isinstance(context.command, TyperGroup) and text.startswith("No such command"):
        text += f"; there are {', '.join(context.command.list_commands(context))}"
    return f"{text} (see {context.command_path} --help)"


def print_mistake(message: str) -> None:
    """One line on stderr."""
    Console(stderr=True).print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)


def _value_given(param: Any, arguments: Sequence[str]) -> str | None:
    """The value of an option as it was typed, which typer's messages leave out; None if it had none."""
    found = None
    for word, following in zip(arguments, (*arguments[1:], None), strict=True):
        flag, equals, value = word.partition("=")
        if flag in getattr(param, "opts", ()):
            found = value if equals else following  # of several, the last one counts
    return found
