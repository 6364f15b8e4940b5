"""A console on which text is text.

What is printed comes from prompts, models, traces and file names. Printed by `rich` as it is, "[/b]" ends the
program, "[red]" vanishes, ":smile:" becomes a picture, and an escape sequence moves the cursor. On this
console nothing in a string means anything; what is to be bold is a `Text` of ours, put together from parts:

    console.print(prompt)                                        as it is
    console.print(Text.assemble("see ", (str(path), "bold")))    the path as it is, in bold

Read next: `text.py`, which knows the characters that a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import console as rich_console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from minivllm.text import printable


class Console(rich_console.Console):
    """A console of `rich` without markup, emoji codes or highlighting, and without control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it is: also the cells of a table, its title, and the text of a rule."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written in the end: no text gets past here."""
        for segment in super().render(renderable, options):
            is_text = not segment.control
            yield segment._replace(text=printable(segment.text)) if is_text else segment

    def point_to(self, trace: str | Path) -> None:
        """Say how a trace is looked at; one that a full disk has left empty cannot be."""
        if Path(trace).exists() and not Path(trace).stat().st_size:
            return
        self.print(Text.assemble("To look at it: ", (f"minivllm dashboard {trace}", "bold")))

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A spinner with a text that may change."""
        return _PlainStatus(_as_text(status), console=self, **options)


class _PlainStatus(Status):
    """`rich` takes the text of a spinner for markup, whatever its console says."""

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else _as_text(status), **options)


def _as_text(what: RenderableType) -> RenderableType:
    return Text(printable(what)) if isinstance(what, str) else what
