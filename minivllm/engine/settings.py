"""A setting is declared once: name, type and default as a field, everything else beside the type.

    @dataclass
    class EngineArgs:
        block_size: Annotated[int, Setting("Tokens per KV-cache block.", at_least=1)] = 16
              │
              ├──► the check of a value            `check_settings`
              ├──► the keyword of `LLM`            `takes_settings`
              ├──► the text of `help(LLM)`         `documented`
              └──► the flag --block-size           `engine_flags.py`

So a help text, a range or a default can be changed in one place, and no face of the engine can forget one.

Read next: `minivllm/engine/engine_args.py`, the list itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import SequenceMatcher
from functools import cache, reduce, wraps
from operator import or_
from pathlib import Path
from textwrap import fill
from types import NoneType, UnionType
from typing import Any, Concatenate, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from minivllm.validation import check_boolean, check_choice, check_int64, check_number, check_path, shown

P = ParamSpec("P")
Owner = TypeVar("Owner")

TYPE_WORDS: dict[type, str] = {str: "a string", Path: "a path", dict: "a dictionary"}


@dataclass(frozen=True)
class Setting:
    """What a field's name, type and default do not say."""

    help: str
    """One or two sentences, for the command line and for `help()`."""
    choices: tuple[str, ...] = ()
    """The strings that are allowed; all if empty."""
    at_least: int | None = None
    more_than: int | None = None
    at_most: int | None = None


@dataclass(frozen=True)
class DeclaredSetting:
    """A field of a settings class, taken apart. `types` are those of its values, None left out."""

    name: str
    types: tuple[type, ...]
    is_optional: bool
    default: Any
    setting: Setting

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    def checked(self, value: object) -> object:
        """The value in its one form; `ValueError` unless the setting can have it."""
        setting = self.setting
        if value is None and self.is_optional:
            return None
        if setting.choices:
            return check_choice(self.name, value, setting.choices)
        if self.types == (bool,):
            return check_boolean(self.name, value)
        if self.types == (int,):
            return check_int64(self.name, value, at_least=setting.at_least, at_most=setting.at_most)
        if self.types == (float,):
            return check_number(
                self.name,
                value,
                at_least=setting.at_least,
                more_than=setting.more_than,
                at_most=setting.at_most,
            )
        if not isinstance(value, self.types):
            words = " or ".join(TYPE_WORDS.get(kind, f"a {kind.__name__}") for kind in self.types)
            raise ValueError(f"{self.name} must be {words}, got {shown(value)}")
        return check_path(self.name, value) if isinstance(value, str | Path) else value

    def annotation(self) -> Any:
        """The plain type, as a signature shows it."""
        return reduce(or_, (*self.types, NoneType) if self.is_optional else self.types)


@cache
def settings_of(args_class: Callable[..., Any]) -> Mapping[str, DeclaredSetting]:
    """All settings that a dataclass declares, by name, in its order."""
    assert isinstance(args_class, type) and is_dataclass(args_class)
    hints = get_type_hints(args_class, include_extras=True)
    found = {}
    for field in fields(args_class):
        hint, setting = get_args(hints[field.name])
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        types = tuple(get_origin(kind) or kind for kind in members if kind is not NoneType)
        found[field.name] = DeclaredSetting(field.name, types, NoneType in members, field.default, setting)
    return found


def check_settings(args: Any) -> None:
    """Put every value into its one form; `ValueError` for the first of a wrong type, range or choice."""
    for name, declared in settings_of(args.__class__).items():
        setattr(args, name, declared.checked(getattr(args, name)))


def takes_settings(
    args_class: Callable[P, Any],
) -> Callable[[Callable[Concatenate[Owner, ...], None]], Callable[Concatenate[Owner, P], None]]:
    """For a class's `__init__`: it takes what `args_class` takes, for readers, editors and type checkers.

    An argument that is not among the settings is a `TypeError` that lists them, the most similar name first.
    """
    settings = settings_of(args_class)

    def decorate(
        init: Callable[Concatenate[Owner, ...], None],
    ) -> Callable[Concatenate[Owner, P], None]:
        @wraps(init)
        def checked(self: Owner, *args: P.args, **kwargs: P.kwargs) -> None:
            for name in kwargs:
                if name not in settings:
                    known = ", ".join(nearest_first(name, settings))
                    raise TypeError(f"{type(self).__name__} has no argument {name!r}; it has {known}")
            init(self, *args, **kwargs)

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *(_parameter(declared) for declared in settings.values())]
        checked.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return cast("Callable[Concatenate[Owner, P], None]", checked)

    return decorate


def documented(summary: str | None, args_class: Callable[..., Any]) -> str:
    """A docstring, and below it what each setting means."""
    lines = [
        fill(f"{name}: {declared.setting.help}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, declared in settings_of(args_class).items()
    ]
    return "\n".join((inspect.cleandoc(summary or ""), "", "Settings:", *lines))


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those most similar to `name` first."""
    return sorted(known, key=lambda other: -SequenceMatcher(None, name, other).ratio())


def _parameter(declared: DeclaredSetting) -> inspect.Parameter:
    if declared.is_required:
        return inspect.Parameter(
            declared.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=declared.annotation()
        )
    return inspect.Parameter(
        declared.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=declared.default,
        annotation=declared.annotation(),
    )
