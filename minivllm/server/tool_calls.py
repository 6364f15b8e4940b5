"""Calls of functions found in an answer, while it comes.

    text ──► feed ──► pieces: text that is an answer, calls that are complete ──► finish

A call is told when it is complete, because only then it is known to be one: what is no JSON, or names no
function, stays text to the last character. So a stream and a whole answer say the same, wherever the stream
was cut into chunks; no half of a tag is told as text; and each character is looked at once.

Source: the formats of vLLM's parsers. What it differs in: vLLM streams arguments before it knows how they
end, and drops text that stands after a call. Read next: `chat_choice.py`, which tells clients.
"""

from __future__ import annotations

from typing import Literal

from minivllm.server.tool_formats import ToolCall, ToolFormat

Piece = str | ToolCall

BLANK = " \t\r\n"
OUTSIDE_STRINGS = frozenset(BLANK + '{}[]:,"+-.0123456789eEtrufalsn')
"""All that JSON has there: other characters end the search for a call at once."""


class ToolCallParser:
    """The calls in one answer.

    Args:
        form: how this model writes them.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""  # what is not told yet; while there is a candidate, it begins with its opening
        self._candidate: _Candidate | None = None
        self._blank: str | None = ""  # before and after calls: dropped unless a text follows
        self.num_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """What is known now that this text has come."""
        self._held += text
        return self._told(is_end=False)

    def finish(self) -> list[Piece]:
        """The rest. Nothing comes any more."""
        return self._told(is_end=True)

    def _told(self, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._held:
            if self._candidate is None:
                if not self._look_for_opening(pieces, is_end):
                    break
                continue
            verdict = self._candidate.look(self._held, is_end)
            if verdict == "more":
                break
            end = self._candidate.position
            call = self._form.read(self._candidate.json(self._held)) if verdict == "complete" else None
            self._tell(pieces, self._held[:end] if call is None else call)
            self._held, self._candidate = self._held[end:], None
        if is_end and self._blank and not self.num_calls:
            pieces.append(self._blank)
        return pieces

    def _look_for_opening(self, pieces: list[Piece], is_end: bool) -> bool:
        """Tell the text before the next opening. Returns whether there is one."""
        found = [(self._held.find(mark), mark) for mark in self._form.openings if mark in self._held]
        if found:
            start, mark = min(found)
            self._candidate = _Candidate(self._form, 0 if mark == "{" else len(mark))
        else:
            start = len(self._held) - (0 if is_end else self._half_an_opening())
        self._tell(pieces, self._held[:start])
        self._held = self._held[start:]
        return bool(found)

    def _half_an_opening(self) -> int:
        """How many characters at the end may be the beginning of an opening."""
        openings = self._form.openings
        most = min(len(self._held), max(map(len, openings)) - 1)
        ends = (self._held[-length:] for length in range(most, 0, -1))
        return next((len(end) for end in ends if any(mark.startswith(end) for mark in openings)), 0)

    def _tell(self, pieces: list[Piece], piece: Piece) -> None:
        if isinstance(piece, ToolCall):
            pieces.append(piece)
            self.num_calls += 1
            self._blank = ""
            return
        if self._blank is not None:
            piece = self._blank + piece
            self._blank = piece if not piece.strip(self._form.separators) else None
        if piece and self._blank is None:
            if pieces and isinstance(pieces[-1], str):
                piece = pieces.pop() + piece  # type: ignore[operator]
            pieces.append(piece)


class _Candidate:
    """What may be a call: an opening, an object, a closing. It is read up to `position`."""

    def __init__(self, form: ToolFormat, start: int) -> None:
        self._form = form
        self.position = start
        self._start: int | None = None
        self._end: int | None = None
        self._depth = 0
        self._is_in_string = self._is_escaped = False
        self._first_key: int | None = None  # where it begins; −1 when it was seen

    def json(self, held: str) -> str:
        """Its object."""
        return held[self._start : self._end]

    def look(self, held: str, is_end: bool) -> Literal["more", "complete", "none"]:
        """Read on. "none": it is no call, and all up to `position` is text."""
        while self._end is None and self.position < len(held):
            character = held[self.position]
            if not self._may_be(character, held):
                return "none"
            self.position += 1
            if self._start is not None and self._depth == 0:
                self._end = self.position
        if self._end is None:
            return "none" if is_end else "more"
        return self._closed(held, is_end)

    def _may_be(self, character: str, held: str) -> bool:
        """Can this be the next character of the object?"""
        if self._start is None:
            self._start = self.position if character == "{" else None
            self._depth = int(character == "{")
            return character in BLANK or character == "{"
        if self._is_in_string:
            return self._within_string(character, held)
        if self._first_key is None and character not in BLANK:
            self._first_key = self.position + 1
            self._is_in_string = character == '"'
            return self._is_in_string
        self._is_in_string = character == '"'
        self._depth += (character in "{[") - (character in "}]")
        return character in OUTSIDE_STRINGS

    def _within_string(self, character: str, held: str) -> bool:
        if self._is_escaped or character == "\\":
            self._is_escaped = not self._is_escaped
        elif character == '"':
            self._is_in_string = False
            first, self._first_key = self._first_key, -1
            allowed = self._form.first_keys
            return first == -1 or not allowed or held[first : self.position] in allowed
        return character >= " "

    def _closed(self, held: str, is_end: bool) -> Literal["more", "complete", "none"]:
        """Its object is complete: is it closed, too? One at the end of an answer may lack its closing tag."""
        assert self._end is not None
        closing = self._form.closing
        if not closing:  # blanks behind it belong to what follows, as they do when they come later
            self.position = self._end
            return "complete"
        rest = held[self._end :].lstrip(BLANK)
        if rest.startswith(closing):
            self.position = len(held) - len(rest) + len(closing)
            return "complete"
        if closing.startswith(rest):
            self.position = len(held)
            return "complete" if is_end else "more"
        self.position = len(held) - len(rest)
        return "none"
