"""`minivllm serve`: the model behind the OpenAI API. Flags carry vLLM's names.

Read next: `minivllm/server/serve.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from minivllm.engine.engine_flags import with_engine_flags

PANEL = "Server"


@with_engine_flags()
def serve(
    model_tag: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A folder, or a name on the hub; the shipped model."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.", rich_help_panel=PANEL)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", rich_help_panel=PANEL)] = 8000,
    uds: Annotated[
        str | None, typer.Option(help="Listen at a Unix domain socket instead.", rich_help_panel=PANEL)
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="What clients call the model; may be given several times.", rich_help_panel=PANEL),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Clients must give one of these; also VLLM_API_KEY.", rich_help_panel=PANEL),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(help="Another site whose pages may ask.", rich_help_panel=PANEL),
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="The path under which a proxy serves us.", rich_help_panel=PANEL)
    ] = "",
    chat_template: Annotated[
        str | None, typer.Option(help="Another chat template: text or file.", rich_help_panel=PANEL)
    ] = None,
    chat_template_content_format: Annotated[
        str, typer.Option(help="auto, string or openai.", rich_help_panel=PANEL)
    ] = "auto",
    max_waiting_requests: Annotated[
        int | None,
        typer.Option(help="Answer 503 while so many wait; any number may.", rich_help_panel=PANEL),
    ] = None,
    max_body_mib: Annotated[
        int, typer.Option(help="Largest body of a request, in MiB.", rich_help_panel=PANEL)
    ] = 16,
    shutdown_timeout: Annotated[
        int,
        typer.Option(help="Seconds in which requests may finish after SIGTERM.", rich_help_panel=PANEL),
    ] = 0,
    *,
    engine_settings: dict[str, Any],
) -> None:
    """Serve a model to many clients at once, over the OpenAI API."""
    try:
        from minivllm.server.app import AppOptions
        from minivllm.server.serve import ServeOptions, api_keys
        from minivllm.server.serve import serve as run
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'minivllm[serve]'") from None
    from minivllm.engine.engine_args import EngineArgs
    from minivllm.model.tiny import MODEL_PATH
    from minivllm.validation import check_integer

    check_integer("port", port, at_least=0, at_most=65535)
    check_integer("shutdown_timeout", shutdown_timeout, at_least=0)
    check_integer("max_body_mib", max_body_mib, at_least=1)
    if max_waiting_requests is not None:
        check_integer("max_waiting_requests", max_waiting_requests, at_least=1)
    if model_tag is not None and engine_settings["model"] is not None:
        raise ValueError(f"model is given twice, as {model_tag!r} and as {engine_settings['model']!r}")
    engine_settings["model"] = model_tag or engine_settings["model"] or MODEL_PATH
    app = AppOptions(
        api_keys(api_key or []), allowed_origins or [], root_path, max_waiting_requests, max_body_mib * 2**20
    )
    run(
        EngineArgs(**engine_settings),
        ServeOptions(
            host,
            port,
            uds,
            served_model_name or [],
            chat_template,
            chat_template_content_format,
            shutdown_timeout,
            app,
        ),
    )
