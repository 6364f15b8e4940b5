"""One line of a workload file: what it says, or what is wrong with it.

Everything that a line can get wrong is named: the field, its value, and what is allowed. The file's name and
the number of the line are added by `jsonl.py`.

Read next: `parse.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from minivllm.validation import check_integer, check_number

Encode = Callable[[str], Sequence[int]]

FIELDS = (
    "arrival_seconds",
    "prompt",
    "prompt_tokens",
    "output_tokens",
    "max_tokens",
    "priority",
    "user",
    "request_id",
)


class Line(NamedTuple):
    """What a line says."""

    number: int
    arrival_seconds: float
    prompt_tokens: array[int] | int
    output_tokens: int
    max_tokens: int
    priority: int
    user: str | None
    prompt: str | None
    request_id: str


class LineReader:
    """Turns one line into what it says, or raises `ValueError`."""

    def __init__(self, vocab_size: int, max_model_len: int | None, encode: Encode | None) -> None:
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.encode = encode
        self.decode = msgspec.json.Decoder().decode

    def line(self, number: int, text: bytes, default_id: str) -> Line:
        try:
            row = self.decode(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"not JSON: {error}, in {shown(text.strip().decode(errors='replace'))}"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"each line must be a JSON object, {{…}}, got {shown(row)}")
        for name in row:
            if name not in FIELDS:
                raise ValueError(f"unknown field {shown(name)}; there are {', '.join(FIELDS)}")
        for name in ("arrival_seconds", "output_tokens"):
            if name not in row:
                raise ValueError(f"the field {name} is missing")
        seconds = check_number("arrival_seconds", row["arrival_seconds"], at_least=0)
        output = check_integer("output_tokens", row["output_tokens"], at_least=1)
        limit = check_integer("max_tokens", row.get("max_tokens", output), at_least=output)
        priority = check_integer("priority", row.get("priority", 0))
        user = _name("user", row["user"]) if "user" in row else None
        request_id = _name("request_id", row["request_id"]) if "request_id" in row else default_id
        tokens = self._prompt(row)
        length = tokens if isinstance(tokens, int) else len(tokens)
        if self.max_model_len is not None and length + output > self.max_model_len:
            raise ValueError(
                f"the request can never fit: {length} prompt tokens and output_tokens {output} are "
                f"{length + output}, max_model_len is {self.max_model_len}"
            )
        return Line(number, seconds, tokens, output, limit, priority, user, row.get("prompt"), request_id)

    def _prompt(self, row: dict[str, object]) -> array[int] | int:
        if ("prompt" in row) == ("prompt_tokens" in row):
            what = "both are" if "prompt" in row else "neither is"
            raise ValueError(
                "a request has either prompt (a text) or prompt_tokens (a number of tokens, or a list "
                f"of token ids); here {what} given"
            )
        if "prompt" in row:
            return self._encoded(_name("prompt", row["prompt"]))
        tokens = row["prompt_tokens"]
        if not isinstance(tokens, list):
            longest = None if self.max_model_len is None else self.max_model_len - 1
            if isinstance(tokens, int) and not isinstance(tokens, bool):
                return check_integer("prompt_tokens", tokens, at_least=1, at_most=longest)
            raise ValueError(
                f"prompt_tokens must be an integer of at least 1, or a list of token ids, got {shown(tokens)}"
            )
        if not tokens:
            raise ValueError("prompt_tokens must have at least one token id, got []")
        return self._checked("prompt_tokens", tokens)

    def _encoded(self, text: str) -> array[int]:
        if self.encode is None:
            raise ValueError(
                f"prompt is a text, {shown(text)}, and there is no tokenizer here: give prompt_tokens instead"
            )
        tokens = self.encode(text)
        if not len(tokens):
            raise ValueError(f"prompt must have at least one token, {shown(text)} has none")
        return self._checked("the tokens of prompt", tokens)

    def _checked(self, name: str, tokens: Sequence[object]) -> array[int]:
        last = self.vocab_size - 1
        return array(
            "i",
            (
                check_integer(f"{name}[{place}]", token, at_least=0, at_most=last)
                for place, token in enumerate(tokens)
            ),
        )


def _name(field: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field} must be a text that is not empty, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """Enough of a value to recognise it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
