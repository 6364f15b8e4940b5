"""Running the server: sockets, signals, and an orderly end.

    SIGTERM, Ctrl-C ──► no new connections ──► those that run finish, for `shutdown_timeout` seconds ──► abort

The port is taken before the model is loaded: what cannot work is said at once.

Read next: `app.py`.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvicorn

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.executor.distributed import ray_cluster
from minivllm.executor.torch_executor import torch_device_for
from minivllm.processes import allow_many_files
from minivllm.scheduling.router import ROUND_ROBIN, make_router
from minivllm.server.app import AppOptions, make_app
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.connections import OrderlyServer, PromptProtocol
from minivllm.server.engine_client import EngineClient
from minivllm.server.live import LiveEvents
from minivllm.server.live_stream import paced
from minivllm.server.metrics import EngineCollector, MetricsCollector
from minivllm.server.metrics_port import metrics_served
from minivllm.server.replicas import Replicas
from minivllm.server.request_spans import RequestSpans
from minivllm.server.served_model import ServedModel
from minivllm.server.tool_formats import TOOL_FORMATS
from minivllm.trace.engine_counts import EngineCounts
from minivllm.validation import check_choice

KEY_VARIABLE = "VLLM_API_KEY"


@dataclass
class ServeOptions:
    """Where the server listens, and under which names.

    Attributes:
        host, port: the address; `uds` instead: a Unix domain socket.
        metrics_host, metrics_port: where the metrics are beside it; no port: only at the address itself, no
            host: the same one.
        served_model_name: what clients call the model; the model's own name if none is given.
        chat_template, chat_template_content_format: as for `LLM.chat`.
        enable_auto_tool_choice: look for calls of functions in answers; else they are left as text.
        tool_call_parser: how the model writes them (`TOOL_FORMATS`); None: as its chat template says.
        shutdown_timeout: seconds in which requests may finish after SIGTERM.
        live: `/engine/events` tells what the engine does, with the texts of all users.
        otlp_traces_endpoint: the collector that gets a span for each request.
        data_parallel_router: which of several engines gets a request (`minivllm/scheduling/router.py`).
        data_parallel_backend: where they run: "mp" or "ray" (`replicas.py`).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    metrics_host: str | None = None
    metrics_port: int | None = None
    served_model_name: list[str] = field(default_factory=list)
    chat_template: str | None = None
    chat_template_content_format: str = "auto"
    enable_auto_tool_choice: bool = True
    tool_call_parser: str | None = None
    shutdown_timeout: int = 0
    live: bool = False
    otlp_traces_endpoint: str | None = None
    data_parallel_router: str = ROUND_ROBIN
    data_parallel_backend: str = "mp"
    app: AppOptions = field(default_factory=AppOptions)


def serve(args: EngineArgs, options: ServeOptions) -> None:
    """Load the model, and answer until SIGTERM or Ctrl-C.

    Raises:
        ValueError: an address that cannot be had, or a model or setting that cannot work.
    """
    for name in ("host", "metrics_host"):
        if getattr(options, name) == "":
            raise ValueError(f"{name} must be an address, got ''; 0.0.0.0 listens at all of this machine")
    if options.metrics_host is not None and options.metrics_port is None:
        raise ValueError(f"metrics_host is {options.metrics_host!r}, but there is no metrics_port")
    root = options.app.root_path
    if root and (not root.startswith("/") or root.endswith("/")):
        raise ValueError(f"root_path must begin with '/' and not end with it, got {root!r}")
    _check_replicas(args, options)
    spans = RequestSpans(options.otlp_traces_endpoint) if options.otlp_traces_endpoint is not None else None
    listener, metrics_listener = _listeners(options)
    allow_many_files()
    try:
        live = LiveEvents() if options.live else None
        llm, make_collector = _start_engines(args, options, spans, live)
        try:
            model = _served(llm, args, options)
            model.metrics = make_collector(model.names[0])
            if live:
                model.live = live
            if spans:
                model.spans, spans.model_name = spans, model.names[0]
            with metrics_served(model, metrics_listener):
                run_server(model, options, listener, metrics_listener)
        finally:
            llm.shutdown()
            if spans:
                spans.shutdown()
    finally:
        _close(options, listener, metrics_listener)


def _check_replicas(args: EngineArgs, options: ServeOptions) -> None:
    """What several engines cannot have is refused before any of them loads a model."""
    make_router(options.data_parallel_router, "data_parallel_router")
    check_choice("data_parallel_backend", options.data_parallel_backend, ("mp", "ray"))
    if args.data_parallel_size == 1:
        if options.data_parallel_backend != "mp":
            raise ValueError(
                f"data_parallel_backend is {options.data_parallel_backend!r}, but data_parallel_size is 1: "
                "one engine runs in the server itself"
            )
        if options.data_parallel_router != ROUND_ROBIN:
            raise ValueError(
                f"data_parallel_router is {options.data_parallel_router!r}, but data_parallel_size is 1: "
                "there is nothing to choose from"
            )
        return
    if options.data_parallel_backend == "ray":
        ray_cluster.check("data_parallel_backend", torch_device_for(None).type)
    refused = {"live": options.live, "otlp_traces_endpoint": options.otlp_traces_endpoint is not None}
    for name, is_refused in refused.items():
        if is_refused:
            raise ValueError(
                f"{name} must be left out where data_parallel_size is {args.data_parallel_size}: events stay "
                "with the engines, which are other processes"
            )


def _start_engines(
    args: EngineArgs, options: ServeOptions, spans: RequestSpans | None, live: LiveEvents | None
) -> tuple[EngineClient, Callable[[str], MetricsCollector]]:
    """One engine in this process, or several in others; and what makes their metrics, given their name."""
    if args.data_parallel_size > 1:
        replicas = Replicas(args, options.data_parallel_router, options.data_parallel_backend)
        return replicas, partial(MetricsCollector, replicas.reports)
    counts = EngineCounts(spans.note if spans else None)
    engine = create_engine(args, sinks=[counts, *([live] if live else [])])
    llm = AsyncLLM(engine)
    if live:
        live.hop = paced(llm.hop)
    return llm, partial(EngineCollector, counts, engine)


def run_server(
    model: ServedModel,
    options: ServeOptions,
    listener: socket.socket,
    metrics_listener: socket.socket | None = None,
) -> None:
    """Answer on this socket until a signal comes."""
    config = uvicorn.Config(
        make_app(model, options.app),
        log_level="info",
        server_header=False,
        http=PromptProtocol,
        lifespan="off",
        ws="none",
    )
    where = options.uds or _link(options.host, listener)
    if metrics_listener:
        metrics = f"{_link(_metrics_host(options), metrics_listener)}/metrics"
        print(f"metrics are at {metrics}", file=sys.stderr, flush=True)
    print(f"{model.names[0]} is served at {where}", file=sys.stderr, flush=True)
    if model.live:
        print(_how_to_watch(options, where), file=sys.stderr, flush=True)
    llm = model.llm
    gc.freeze()  # what is here stays: the collector, which stops all threads, need not look at it again
    OrderlyServer(
        config,
        partial(llm.end_requests, "the server is shutting down"),
        options.shutdown_timeout,
        end_watching=model.live.end if model.live else lambda: None,
        is_idle=lambda: not llm.num_unfinished_requests,
    ).run(sockets=[listener])


def _how_to_watch(options: ServeOptions, where: str) -> str:
    if options.uds:
        return f"Watch it live: curl -N --unix-socket {options.uds} http://localhost/engine/events"
    told = f"Watch it live: minivllm dashboard --live {where}{options.app.root_path}"
    if not options.app.api_keys and options.host not in ("127.0.0.1", "::1", "localhost"):
        told += "\nWhoever reaches this port can read the texts of all users: set --api-key."
    return told


def api_keys(given: list[str]) -> list[str]:
    """Those of the command line, and that of the environment. Raises `ValueError` for one that is empty."""
    keys = [*given, *([os.environ[KEY_VARIABLE]] if os.environ.get(KEY_VARIABLE) else [])]
    if not all(key.strip() == key != "" for key in keys):
        raise ValueError("api_key must not be empty, nor begin or end with a space")
    return keys


def _served(llm: EngineClient, args: EngineArgs, options: ServeOptions) -> ServedModel:
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


def _listeners(options: ServeOptions) -> tuple[socket.socket, socket.socket | None]:
    """The address of the server and that of its metrics, or neither."""
    if options.uds:
        listener = _listen(socket.AF_UNIX, options.uds, f"uds {options.uds!r}")
    else:
        listener = _listen_at(options.host, options.port)
    if options.metrics_port is None:
        return listener, None
    try:
        return listener, _listen_at(_metrics_host(options), options.metrics_port, "metrics_")
    except ValueError:
        _close(options, listener)
        raise


def _metrics_host(options: ServeOptions) -> str:
    return options.host if options.metrics_host is None else options.metrics_host


def _listen_at(host: str, port: int, kind: str = "") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return _listen(family, (host, port), f"{kind}host {host!r} and {kind}port {port}")


def _listen(family: int, address: str | tuple[str, int], where: str) -> socket.socket:
    listener = None
    try:
        if isinstance(address, str):
            _remove_stale_socket(address)
        # asyncio sends what is written at once (TCP_NODELAY) only where a socket says that it speaks TCP.
        # Else a token waits until the one before is acknowledged, which clients put off for 40 milliseconds.
        protocol = 0 if isinstance(address, str) else socket.IPPROTO_TCP
        listener = socket.socket(family, socket.SOCK_STREAM, protocol)
        if protocol:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, OverflowError, TypeError) as error:  # the last: a host of bytes that are no text
        if listener:
            listener.close()
        raise ValueError(f"{where} cannot be had: {getattr(error, 'strerror', None) or error}") from None
    return listener


def _remove_stale_socket(path: str) -> None:
    """A server that was killed leaves its socket file behind, and nobody answers there any more."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)


def _close(options: ServeOptions, *listeners: socket.socket | None) -> None:
    for listener in filter(None, listeners):
        listener.close()
    if options.uds:
        Path(options.uds).unlink(missing_ok=True)


def _link(host: str, listener: socket.socket) -> str:
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{named}:{listener.getsockname()[1]}"
