"""Routes that ask of the engine itself: is it well, what does it do, what has it done.

Read next: `metrics.py`; `live_stream.py`, which answers those who watch.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from minivllm import __version__
from minivllm.server.answer_forms import Load, Reset, Version
from minivllm.server.live import LiveEvents
from minivllm.server.live_stream import open_stream
from minivllm.server.metrics import CONTENT_TYPE
from minivllm.server.openapi import REFUSED
from minivllm.server.served_model import ServedModel


def add_engine_routes(app: FastAPI, model: ServedModel) -> None:
    """Health, version, load, metrics, and the prefix cache."""
    dead: dict[int | str, dict[str, Any]] = {503: {"description": "The engine has ended."}}

    @app.get("/health", response_class=Response, responses=dead)
    async def health() -> Response:
        """200 while the engine serves, 503 when it has ended."""
        return Response(status_code=200 if model.llm.is_running else 503)

    for method in ("get", "post"):
        ping = {"operation_id": f"{method}_ping", "response_class": Response, "responses": dead}
        app.add_api_route("/ping", health, methods=[method.upper()], **ping)  # type: ignore[arg-type]

    @app.get("/version", response_model=Version)
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/load", response_model=Load)
    async def load() -> dict[str, int]:
        """How many requests are being answered."""
        return {"server_load": model.llm.num_unfinished_requests}

    if model.metrics is not None:
        collector = model.metrics

        @app.get("/metrics", response_class=PlainTextResponse)
        def metrics() -> Response:
            """What the engine does and has done, for Prometheus."""
            return Response(collector.text(), media_type=CONTENT_TYPE)

    @app.post("/reset_prefix_cache", response_model=Reset, responses={503: REFUSED[503]})
    async def reset_prefix_cache() -> dict[str, bool]:
        """Forget all cached prefixes. `success`: the cache is empty now; what is in use stays."""
        return {"success": await model.llm.reset_prefix_cache()}


def add_live_route(app: FastAPI, model: ServedModel, live: LiveEvents, *, has_keys: bool) -> None:
    """The engine's events, for those who watch it."""
    live.tokenizer = model.llm.tokenizer

    @app.get("/engine/events", response_model=None)
    async def engine_events(request: Request) -> Response:
        """What the engine does from now on, as server-sent events: a trace, with the texts of all users."""
        host = request.headers.get("host", "")
        return await open_stream(live, lambda: model.llm.is_running, host, has_keys=has_keys)
