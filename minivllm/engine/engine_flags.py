"""Settings of the engine as flags of a command: one flag for each field of `EngineArgs`.

    @with_engine_flags()
    def generate(prompts, …, *, engine_settings):        minivllm generate … --block-size 16 --seed 0 …
        LLM(**engine_settings)

Names, types, defaults and help texts are those of `EngineArgs`. The flags check no ranges: `EngineArgs` does,
with the same sentence for every face of the engine.

Read next: `minivllm/engine/settings.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.settings import DeclaredSetting, settings_of

HELP_PANEL = "Engine"


def with_engine_flags(
    names: Collection[str] | None = None, defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a command with the parameter `engine_settings`: flags in its place, their values in a dictionary.

    Args:
        names: the settings that become flags; all if None.
        defaults: defaults of this command that are not those of `EngineArgs`.
    """
    settings = settings_of(EngineArgs)
    chosen = [settings[name] for name in settings if names is None or name in names]
    flags = [_flag(declared, defaults or {}) for declared in chosen]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "engine_settings"]

        @wraps(command)
        def with_flags(**values: Any) -> None:
            engine_settings = {declared.name: values.pop(declared.name) for declared in chosen}
            command(**values, engine_settings=engine_settings)

        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *flags)]
        with_flags.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_flags

    return decorate


def _flag(declared: DeclaredSetting, defaults: Mapping[str, Any]) -> inspect.Parameter:
    # What a command line cannot say in another type, a path or an object, it says as a string.
    kind: Any = str if str in declared.types else declared.types[0]
    default = defaults.get(declared.name, None if declared.is_required else declared.default)
    option = typer.Option(
        help=declared.setting.help,
        metavar="|".join(declared.setting.choices) or None,
        rich_help_panel=HELP_PANEL,
    )
    return inspect.Parameter(
        declared.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, option],
    )
