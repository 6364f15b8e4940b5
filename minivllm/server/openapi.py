"""`/openapi.json`, and the page that shows it: what may be sent, and what comes back, in every case.

The words of fields are those of the classes' own docstrings, and for what the engine is asked those of
`SamplingParams`: they are written once.

Read next: `protocol.py` and `answer_forms.py`, which are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from minivllm.sampling_params import SamplingParams
from minivllm.server import answer_forms, protocol
from minivllm.server.answer_forms import ErrorAnswer, PathError, Unauthorized, error

ABOUT = "The OpenAI API, with vLLM's fields, answers and errors. Fields that are not known are ignored."
REFUSED: dict[int | str, dict[str, Any]] = {
    400: error("The body is not JSON, a field is wrong, or the request could never be served."),
    404: {"model": ErrorAnswer | PathError, "description": "There is no such model, or no such path."},
    408: error("The body took too long."),
    413: error("The body is too large."),
    500: error("The step that computed this request has failed."),
    503: error(
        "Too many requests wait, or the server is shutting down. `Retry-After` says when to try again."
    ),
}
WITHOUT_KEY: dict[int | str, dict[str, Any]] = {
    401: {"model": Unauthorized, "description": "A key is wanted, as `Authorization: Bearer …`."}
}


def answers(model: type[BaseModel], is_streamed: bool = False) -> dict[int | str, dict[str, Any]]:
    """All that a route which reads a body may answer."""
    answer: dict[str, Any] = {"model": model, "description": "The answer."}
    if is_streamed:
        # No schema: readers of this document take it for one of the stream's text, or for one of each event.
        events = {
            "example": 'data: {"id": …, "choices": […]}\n\ndata: [DONE]\n\n',
        }
        answer["content"] = {"text/event-stream": events}
        answer["description"] = "The answer; with `stream`, server-sent events, and `[DONE]` at the end."
    return {200: answer} | REFUSED


def describe(app: FastAPI) -> None:
    """Let the app show this document."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes, description=ABOUT)
            app.openapi_schema = _with_words(_without_422(made))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    """Bodies of a wrong form are answered with 400, as in vLLM; FastAPI speaks of its own answer."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _with_words(document: dict[str, Any]) -> dict[str, Any]:
    classes = {**vars(answer_forms), **vars(protocol)}
    for name, schema in document["components"]["schemas"].items():
        if not isinstance(found := classes.get(name), type):
            continue
        schema["description"] = (found.__doc__ or "").split("\n\n")[0].strip()
        words = {key: text for owner in reversed(found.__mro__) for key, text in attribute_words(owner)}
        words = dict(attribute_words(SamplingParams)) | words
        for key, value in schema.get("properties", {}).items():
            if key in words:
                value["description"] = words[key]
    return document


def attribute_words(owner: type) -> Iterator[tuple[str, str]]:
    """What a class says of its attributes, one by one."""
    about = (vars(owner).get("__doc__") or "").partition("Attributes:")[2].split("\n\n")[0]
    for names, words in re.findall(r"^        ([\w, ]+): (.*(?:\n {9,}.*)*)", about, flags=re.MULTILINE):
        for name in names.split(", "):
            yield name, re.sub(r"\s+", " ", words)
