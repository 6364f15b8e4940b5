"""A place in a text that is being read: what the parsers of patterns and of grammars have in common.

Read next: `regex.py`, `gbnf.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NoReturn


class Cursor(ABC):
    """Reads a text from its beginning. `place` is the number of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    @property
    def is_at_end(self) -> bool:
        return self.place >= len(self.text)

    def peek(self, ahead: str) -> bool:
        """Does this come next?"""
        return self.text.startswith(ahead, self.place)

    def take(self, ahead: str) -> bool:
        """If this comes next, go behind it."""
        is_next = self.peek(ahead)
        self.place += len(ahead) if is_next else 0
        return is_next

    def next(self, what: str) -> str:
        """The next character, of something that is called so."""
        if self.is_at_end:
            self.refuse(f"{self.ends} within {what}")
        self.place += 1
        return self.text[self.place - 1]

    ends = "ends"
    """How the sentence begins that says that the text ends too early."""

    @abstractmethod
    def refuse(self, problem: str) -> NoReturn:
        """Raise `StructureError` with the problem and its place."""
