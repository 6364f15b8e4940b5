"""Errors as clients of the OpenAI API expect them: a status, and one object that says what and where.

    {"error": {"message": "temperature must be …, got -1.0", "type": "BadRequestError",
               "param": "temperature", "code": 400}}

Source: what vLLM answers. Read next: `app.py`, which turns exceptions into these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from minivllm.server.engine_thread import EngineDeadError
from minivllm.validation import error_words

MOST_CHARACTERS = 2000
"""Of a message: it may quote what a client has sent."""
MOST_ERRORS = 5
"""Of a body that is wrong in many places."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        param: the field that is wrong, if it is one.
        value: what it was.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        value: object = None,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
    ) -> None:
        if param is not None:
            message += f" (parameter={param}" + ("" if value is None else f", value={value}") + ")"
        message = message[:MOST_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.kind = kind

    def body(self) -> dict[str, Any]:
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        }


def unknown_model(name: str, known: str) -> ApiError:
    error = ApiError(
        f"The model `{name}` does not exist. Valid aliases: {known}.", status=404, kind="NotFoundError"
    )
    error.param = "model"
    return error


def as_api_error(error: Exception) -> ApiError:
    """What the engine refused is the client's to mend, what failed in it is not."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return _refused(str(error))
    if isinstance(error, EngineDeadError):
        return ApiError(str(error), status=503, kind="ServiceUnavailableError")
    return ApiError(error_words(error), status=500, kind="InternalServerError")


def _refused(message: str) -> ApiError:
    """The engine's sentences begin with the name of the argument, as `stop_token_ids[0] must …`."""
    refusal = ApiError(message)
    named = re.match(r"(\w+)(?=\[|: | \(| must | needs | has | names | is )", message)
    refusal.param = named[1] if named else None
    return refusal


def validation_error(errors: Sequence[dict[str, Any]]) -> ApiError:
    """A body that is not of the form that the route wants, field by field."""
    lines, places = [], []
    for error in errors[:MOST_ERRORS]:
        place = ".".join(str(part) for part in error["loc"])
        places.append(place)
        wrong = {
            "type": error["type"],
            "loc": place,
            "msg": error["msg"],
            "input": _short(error.get("input")),
        }
        if error.get("ctx"):
            wrong["ctx"] = {name: _short(value) for name, value in error["ctx"].items()}
        lines.append(f"  {wrong}")
    plural = "s" if len(errors) > 1 else ""
    refusal = ApiError(f"{len(errors)} validation error{plural}:\n" + "\n".join(lines), kind="Bad Request")
    refusal.param = places[0] if places else None
    return refusal


def _short(value: object) -> object:
    """Long inputs are told by their size."""
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    if isinstance(value, str) and len(value) > 100:
        return value[:100] + "…"
    return value
