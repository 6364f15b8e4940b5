"""Running the server: sockets, signals, and an orderly end.

    SIGTERM, Ctrl-C ──► no new connections ──► those that run finish, for `shutdown_timeout` seconds ──► abort

The port is taken before the model is loaded: what cannot work is said at once.

Read next: `app.py`.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.server.app import AppOptions, make_app
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.connections import OrderlyServer, PromptProtocol, allow_many_connections
from minivllm.server.engine_counts import EngineCounts
from minivllm.server.metrics import EngineCollector
from minivllm.server.served_model import ServedModel
from minivllm.server.tool_formats import TOOL_FORMATS

KEY_VARIABLE = "VLLM_API_KEY"


@dataclass
class ServeOptions:
    """Where the server listens, and under which names.

    Attributes:
        host, port: the address; `uds` instead: a Unix domain socket.
        served_model_name: what clients call the model; the model's own name if none is given.
        chat_template, chat_template_content_format: as for `LLM.chat`.
        enable_auto_tool_choice: look for calls of functions in answers; else they are left as text.
        tool_call_parser: how the model writes them (`TOOL_FORMATS`); None: as its chat template says.
        shutdown_timeout: seconds in which requests may finish after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    served_model_name: list[str] = field(default_factory=list)
    chat_template: str | None = None
    chat_template_content_format: str = "auto"
    enable_auto_tool_choice: bool = True
    tool_call_parser: str | None = None
    shutdown_timeout: int = 0
    app: AppOptions = field(default_factory=AppOptions)


def serve(args: EngineArgs, options: ServeOptions) -> None:
    """Load the model, and answer until SIGTERM or Ctrl-C.

    Raises:
        ValueError: an address that cannot be had, or a model or setting that cannot work.
    """
    if not options.host:
        raise ValueError("host must be an address, got ''; 0.0.0.0 listens at all of this machine")
    root = options.app.root_path
    if root and (not root.startswith("/") or root.endswith("/")):
        raise ValueError(f"root_path must begin with '/' and not end with it, got {root!r}")
    listener = _listen(options)
    allow_many_connections()
    try:
        counts = EngineCounts()
        engine = create_engine(args, sinks=[counts])
        llm = AsyncLLM(engine)
        try:
            model = _served(llm, args, options)
            model.metrics = EngineCollector(counts, engine, model.names[0])
            run_server(model, options, listener)
        finally:
            llm.shutdown()
    finally:
        listener.close()
        if options.uds:
            Path(options.uds).unlink(missing_ok=True)


def run_server(model: ServedModel, options: ServeOptions, listener: socket.socket) -> None:
    """Answer on this socket until a signal comes."""
    config = uvicorn.Config(
        make_app(model, options.app),
        log_level="info",
        server_header=False,
        http=PromptProtocol,
        lifespan="off",
        ws="none",
    )
    where = options.uds or f"http://{_for_link(options.host)}:{listener.getsockname()[1]}"
    print(f"{model.names[0]} is served at {where}", file=sys.stderr, flush=True)
    goodbye = partial(model.llm.end_requests, "the server is shutting down")
    OrderlyServer(config, goodbye, options.shutdown_timeout).run(sockets=[listener])


def api_keys(given: list[str]) -> list[str]:
    """Those of the command line, and that of the environment. Raises `ValueError` for one that is empty."""
    keys = [*given, *([os.environ[KEY_VARIABLE]] if os.environ.get(KEY_VARIABLE) else [])]
    if not all(key.strip() == key != "" for key in keys):
        raise ValueError("api_key must not be empty, nor begin or end with a space")
    return keys


def _served(llm: AsyncLLM, args: EngineArgs, options: ServeOptions) -> ServedModel:
    model = ServedModel(
        llm,
        options.served_model_name or [Path(args.model).name],
        root=str(args.model),
        max_model_len=llm.max_model_len,
        defaults=llm.default_params,
        chat_template=options.chat_template,
        chat_template_content_format=options.chat_template_content_format,
    )
    if options.enable_auto_tool_choice:
        model.tool_format = TOOL_FORMATS.get(options.tool_call_parser or "") or model.format_of_template()
    return model


def _listen(options: ServeOptions) -> socket.socket:
    try:
        if options.uds:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(options.uds)
        else:
            family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((options.host, options.port))
    except (OSError, OverflowError) as error:
        where = f"uds {options.uds!r}" if options.uds else f"host {options.host!r} and port {options.port}"
        raise ValueError(f"{where} cannot be had: {getattr(error, 'strerror', None) or error}") from None
    listener.listen(2048)
    return listener


def _for_link(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
