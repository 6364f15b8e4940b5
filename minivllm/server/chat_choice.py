"""One choice of a chat: what the assistant says, as a message or as deltas, calls of functions included.

    text of an output ──► ToolCallParser ──► pieces ──► deltas of a stream, or one message

Source: the OpenAI API; `DeltaMessage` of vLLM. Read next: `chat.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from minivllm.server.tool_calls import Piece, ToolCallParser
from minivllm.server.tool_formats import ToolCall, ToolFormat

Delta = dict[str, Any]


class ChatChoice:
    """What one choice has said so far.

    Args:
        form: of the calls that are looked for; None: all is text.
        most_calls: how many of them are told; None: all.
        before: text that the answer continues, and repeats.
    """

    def __init__(self, form: ToolFormat | None, most_calls: int | None = None, before: str = "") -> None:
        self._parser = ToolCallParser(form) if form else None
        self._most_calls = most_calls
        self._before = before
        self._num_calls = self._num_told = 0
        self._has_begun = False

    def begin(self) -> list[Delta]:
        """The first time, who speaks; then nothing."""
        is_first, self._has_begun = not self._has_begun, True
        first = [{"role": "assistant", "content": ""}]
        return first + ([{"content": self._before}] if self._before else []) if is_first else []

    def deltas(self, text: str, is_end: bool) -> list[Delta]:
        """What a stream tells of this text."""
        deltas: list[Delta] = []
        for piece in self._pieces(text, is_end):
            deltas += [{"content": piece}] if isinstance(piece, str) else self._deltas_of_call(piece)
        return deltas

    def message(self, text: str) -> dict[str, Any]:
        """The whole answer. Without text beside its calls it has none."""
        pieces = self._pieces(text, is_end=True)
        calls = [self._named(piece) for piece in pieces if isinstance(piece, ToolCall)]
        content = self._before + "".join(piece for piece in pieces if isinstance(piece, str))
        message = {
            "role": "assistant",
            "content": content or (None if calls else ""),
            "refusal": None,
            "reasoning": None,
        }
        return message | {"tool_calls": calls} if calls else message

    def finish_reason(self, reason: str | None) -> str | None:
        """The engine's, or that functions are to be called."""
        return "tool_calls" if self._num_calls and reason in ("stop", "length") else reason

    def _pieces(self, text: str, is_end: bool) -> Sequence[Piece]:
        if self._parser is None:
            return [text]
        pieces = self._parser.feed(text) + (self._parser.finish() if is_end else [])
        kept: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, ToolCall):
                self._num_calls += 1
            if isinstance(piece, str) or self._most_calls is None or self._num_calls <= self._most_calls:
                kept.append(piece)
        return kept

    def _named(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": f"chatcmpl-tool-{uuid4().hex[:16]}", "type": "function", "function": function}

    def _deltas_of_call(self, call: ToolCall) -> list[Delta]:
        """Its name, and then its arguments, as OpenAI tells them."""
        index, self._num_told = self._num_told, self._num_told + 1
        whole = self._named(call)
        named = {"index": index, **whole, "function": {"name": call.name}}
        arguments = {"index": index, "function": {"arguments": call.arguments}}
        return [{"tool_calls": [named]}, {"tool_calls": [arguments]}]
