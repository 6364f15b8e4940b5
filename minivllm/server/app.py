"""The server's routes: which path leads where, and what becomes of errors.

    /v1/completions   /v1/chat/completions   /v1/models        the OpenAI API
    /tokenize   /detokenize   /reset_prefix_cache               vLLM's own
    /health   /ping   /version   /load   /metrics               for those who run it
    /engine/events                                              what the engine does, live (`--live`)
    /docs   /openapi.json                                       for those who read

Source: vLLM's `api_server.py`. Read next: `completions.py`; `serve.py`, which runs it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import Response

from minivllm import __version__
from minivllm.server.answer_forms import (
    ChatAnswer,
    CompletionAnswer,
    ModelCard,
    ModelList,
)
from minivllm.server.chat import Chat
from minivllm.server.completions import Completion
from minivllm.server.engine_routes import add_engine_routes, add_live_route
from minivllm.server.engine_thread import EngineDeadError
from minivllm.server.errors import ApiError, as_api_error, validation_error
from minivllm.server.guards import ApiKey, BodyLimit
from minivllm.server.http_metrics import CountAnswers
from minivllm.server.metrics import TOO_MANY_WAIT
from minivllm.server.openapi import REFUSED, WITHOUT_KEY, answers, describe
from minivllm.server.protocol import ChatCompletionRequest, CompletionRequest
from minivllm.server.request_limits import MAX_NAME_CHARACTERS
from minivllm.server.responses import (
    ClientGone,
    EventStream,
    JsonResponse,
    answered,
    unless_gone,
    write_now,
)
from minivllm.server.served_model import ServedModel
from minivllm.server.token_routes import add_token_routes

CLIENT_CLOSED_REQUEST = 499
RETRY_AFTER_SECONDS = 1
NOT_READ = (
    "The body cannot be read: it must be JSON in UTF-8, not nested too deeply, and without numbers of "
    "thousands of digits."
)


@dataclass
class AppOptions:
    """How the server treats its clients.

    Attributes:
        api_keys: one of them must be given for paths below /v1 and /engine; none: everyone may ask.
        allowed_origins: other sites whose pages may ask.
        root_path: under which a proxy serves us.
        max_waiting_requests: how many may wait before others are sent away with 503; None: any number.
        max_body_bytes: of a request.
    """

    api_keys: list[str] = field(default_factory=list)
    allowed_origins: list[str] = field(default_factory=list)
    root_path: str = ""
    max_waiting_requests: int | None = None
    max_body_bytes: int = 16 * 1024 * 1024


def make_app(model: ServedModel, options: AppOptions | None = None) -> FastAPI:
    """The server for one model."""
    options = options or AppOptions()
    app = FastAPI(title="minivllm", version=__version__, root_path=options.root_path)
    describe(app)
    _add_error_handlers(app)
    _add_openai_routes(app, model, options)
    add_engine_routes(app, model)
    add_token_routes(app, model)
    if model.live:
        add_live_route(app, model, model.live, has_keys=bool(options.api_keys))
    app.add_middleware(
        CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=["*"], allow_headers=["*"]
    )
    if options.api_keys:
        app.add_middleware(ApiKey, keys=options.api_keys)
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    if model.metrics is not None:
        app.add_middleware(CountAnswers, metrics=model.metrics.http)
    return app


def _add_openai_routes(app: FastAPI, model: ServedModel, options: AppOptions) -> None:
    async def answer(
        request: Request, make: Any, asked: CompletionRequest | ChatCompletionRequest
    ) -> Response:
        _admit(model, options)
        asked.request_id = request.headers.get("x-request-id", "")[:MAX_NAME_CHARACTERS] or asked.request_id
        work = await asyncio.to_thread(make, asked, model)  # templates and tokenizers may take a while
        if model.spans is not None:
            model.spans.announce(work.request_ids(), work.params, request.headers)
        if not asked.stream:
            return await answered(request, work.whole())
        events = work.stream(write_now(request.scope))
        # What the engine refuses is answered with its status, so the answer begins with the first event.
        first = await unless_gone(anext(events), request.receive)
        return EventStream(first, events)

    keyed: dict[int | str, dict[str, Any]] = WITHOUT_KEY if options.api_keys else {}

    @app.post(
        "/v1/completions", response_model=None, responses=answers(CompletionAnswer, is_streamed=True) | keyed
    )
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Continue one prompt, or several."""
        return await answer(request, Completion, asked)

    @app.post(
        "/v1/chat/completions", response_model=None, responses=answers(ChatAnswer, is_streamed=True) | keyed
    )
    async def chat(asked: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await answer(request, Chat, asked)

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=keyed | {404: REFUSED[404]})
    async def one_model(name: str) -> dict[str, Any]:
        """The model under this name."""
        return model.card(model.name_for(name))

    @app.get("/v1/models", response_model=ModelList, responses=keyed)
    async def models() -> dict[str, Any]:
        """The model that is served, under all its names."""
        return {"object": "list", "data": [model.card(name) for name in model.names]}


def _admit(model: ServedModel, options: AppOptions) -> None:
    most = options.max_waiting_requests
    if most is not None and model.llm.num_waiting_requests >= most:
        if model.metrics is not None:
            model.metrics.rejections[TOO_MANY_WAIT] += 1
        raise ApiError(
            f"The server is busy: {most} requests wait already. Try again later.",
            status=503,
            kind="ServiceUnavailableError",
        )


def _add_error_handlers(app: FastAPI) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientGone):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if isinstance(error, RequestValidationError):
            error = validation_error(error.errors())
        if isinstance(error, HTTPException):
            if error.status_code in (404, 405):  # as in vLLM
                return await http_exception_handler(request, error)
            error = ApiError(
                NOT_READ if error.status_code == 400 else str(error.detail), status=error.status_code
            )
        refusal = as_api_error(error)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if refusal.status == 503 else None
        return JsonResponse(refusal.body(), refusal.status, headers)

    own = (ApiError, ValueError, EngineDeadError, ClientGone)
    for kind in (*own, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)
