"""`minivllm serve`: the model behind the OpenAI API. Flags carry vLLM's names.

Read next: `minivllm/server/serve.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from minivllm.engine.engine_flags import with_engine_flags
from minivllm.model.chat.content_format import CONTENT_FORMATS
from minivllm.validation import check_choice, check_integer, check_text

TOOL_CALL_PARSERS = ("hermes", "llama3_json")


def _option(words: str) -> Any:
    return typer.Option(help=words, rich_help_panel="Server")


ModelTag = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="A folder, or a name on the hub; the shipped model.")
]
Host = Annotated[str, _option("Address to listen at.")]
Port = Annotated[int, _option("0 takes any free one.")]
Uds = Annotated[str | None, _option("Listen at a Unix domain socket instead.")]
MetricsPort = Annotated[int | None, _option("The metrics at a port of their own, too; 0 takes any free one.")]
MetricsHost = Annotated[str | None, _option("Address of the metrics' own port; that of the server.")]
Otlp = Annotated[str | None, _option("An OpenTelemetry collector: it gets a span for each request.")]
Names = Annotated[list[str] | None, _option("What clients call the model; may be given several times.")]
Keys = Annotated[list[str] | None, _option("Clients must give one of these; also VLLM_API_KEY.")]
Origins = Annotated[list[str] | None, _option("Another site whose pages may ask.")]
RootPath = Annotated[str, _option("The path under which a proxy serves us.")]
Template = Annotated[str | None, _option("Another chat template: text or file.")]
Format = Annotated[str, _option("What the template expects: auto, string or openai.")]
AutoTools = Annotated[bool, _option("Look for calls of functions in answers.")]
ToolParser = Annotated[str | None, _option("How calls are written; as the chat template says.")]
Waiting = Annotated[int | None, _option("Answer 503 while so many wait; any number may.")]
Body = Annotated[int, _option("Largest body of a request, in MiB.")]
Live = Annotated[bool, _option("Let the dashboard watch the engine, with the texts of all users.")]
DataRouter = Annotated[
    str, _option("Which of several engines gets a request: round-robin, least-loaded or prefix-aware.")
]
DataBackend = Annotated[
    str, _option("Where several engines run: mp (processes) or ray (actors in a Ray cluster).")
]
Timeout = Annotated[int, _option("Seconds in which requests may finish after SIGTERM.")]


@with_engine_flags()
def serve(
    model_tag: ModelTag = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    uds: Uds = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    served_model_name: Names = None,
    api_key: Keys = None,
    allowed_origins: Origins = None,
    root_path: RootPath = "",
    chat_template: Template = None,
    chat_template_content_format: Format = "auto",
    enable_auto_tool_choice: AutoTools = True,
    tool_call_parser: ToolParser = None,
    max_waiting_requests: Waiting = None,
    max_body_mib: Body = 16,
    shutdown_timeout: Timeout = 0,
    live: Live = False,
    otlp_traces_endpoint: Otlp = None,
    data_parallel_router: DataRouter = "round-robin",
    data_parallel_backend: DataBackend = "mp",
    *,
    engine_settings: dict[str, Any],
) -> None:
    """Serve a model to many clients at once, over the OpenAI API."""
    check_integer("port", port, at_least=0, at_most=65535)
    if metrics_port is not None:
        check_integer("metrics_port", metrics_port, at_least=0, at_most=65535)
    check_integer("shutdown_timeout", shutdown_timeout, at_least=0)
    check_integer("max_body_mib", max_body_mib, at_least=1)
    if max_waiting_requests is not None:
        check_integer("max_waiting_requests", max_waiting_requests, at_least=1)
    check_choice("chat_template_content_format", chat_template_content_format, CONTENT_FORMATS)
    for name in served_model_name or ():
        check_text("served_model_name", name, may_be_empty=False)
    if tool_call_parser is not None:
        check_choice("tool_call_parser", tool_call_parser, TOOL_CALL_PARSERS)
    try:
        from minivllm.server.app import AppOptions
        from minivllm.server.serve import ServeOptions, api_keys
        from minivllm.server.serve import serve as run
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'minivllm[serve]'") from None
    app = AppOptions(
        api_keys(api_key or []), allowed_origins or [], root_path, max_waiting_requests, max_body_mib * 2**20
    )
    options = ServeOptions(
        host, port, uds, metrics_host, metrics_port, served_model_name or [], chat_template
    )
    options.chat_template_content_format = chat_template_content_format
    options.enable_auto_tool_choice, options.tool_call_parser = enable_auto_tool_choice, tool_call_parser
    options.shutdown_timeout, options.live, options.app = shutdown_timeout, live, app
    options.otlp_traces_endpoint = otlp_traces_endpoint
    options.data_parallel_router, options.data_parallel_backend = data_parallel_router, data_parallel_backend
    run(_engine_args(model_tag, engine_settings), options)


def _engine_args(model_tag: str | None, settings: dict[str, Any]) -> Any:
    """The model is the command's argument, vLLM's older `--model`, or the shipped one."""
    from minivllm.engine.engine_args import EngineArgs
    from minivllm.model.tiny import MODEL_PATH

    if model_tag is not None and settings["model"] is not None:
        raise ValueError(f"model is given twice, as {model_tag!r} and as {settings['model']!r}")
    return EngineArgs(**settings | {"model": model_tag or settings["model"] or MODEL_PATH})
