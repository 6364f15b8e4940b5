"""The language that pages and pictures speak: English, or Chinese from one catalogue.

    _("{name} waits")                 the text in the current language; fill it in afterwards: .format(name=…)
    counted("{count} block is free", "{count} blocks are free", count)      the same, where one is no plural
    N_("Beam tree")                   a constant, made at import: marked here, said later by `_(TITLE)`

English texts are the keys (GNU gettext), so the code reads as the page does, and a text without a translation
is simply English. Values are never part of a key: `_(f"…")` could not be found in any catalogue, and
`python -m viz.texts` refuses it. The catalogue is `locale/zh/LC_MESSAGES/minivllm.po`, compiled beside it.

The language belongs to a thread or task: each run of Streamlit's script says first what it speaks
(`language_switch.py`), what draws without Streamlit says `with speaking("zh"):`. What is cached must have
`current()` in its key.

Read next: `language_switch.py`; `texts.py`, which keeps the catalogue.
"""

from __future__ import annotations

import gettext
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文"}
"""Code, as links have it → its own name."""
LOCALE = Path(__file__).parent / "locale"
DOMAIN = "minivllm"

_current: ContextVar[str] = ContextVar("language", default="en")


def current() -> str:
    """The language spoken here: a key of `LANGUAGES`."""
    return _current.get()


def speak(language: str) -> None:
    """Speak this language from now on, in this thread or task.

    Raises:
        ValueError: there is no such language.
    """
    _current.set(checked(language))


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Speak this language within a `with`.

    Raises:
        ValueError: there is no such language.
    """
    before = _current.set(checked(language))
    try:
        yield
    finally:
        _current.reset(before)


def checked(language: str) -> str:
    """The same, if there is such a language.

    Raises:
        ValueError: there is none.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}")
    return language


def _(text: str) -> str:
    """A text in the current language."""
    return _catalogue(_current.get()).gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    """A text about a number of things, in the current language; `{count}` in it is still to be filled in."""
    return _catalogue(current()).ngettext(one, many, count)


def counted(one: str, many: str, count: int, **values: object) -> str:
    """`ngettext`, filled in: `counted("{count} block is free", "{count} blocks are free", 3)`."""
    return ngettext(one, many, count).format(count=f"{count:,}", **values)


def sentences(told: Iterable[str]) -> str:
    """One after the other. A Chinese full stop brings its own space."""
    return ("" if current() == "zh" else " ").join(told)


def N_(text: str) -> str:
    """A text that `_` says later: this only marks it for the catalogue."""
    return text


def in_all_languages(text: str) -> list[str]:
    """The text as each language has it."""
    return [_catalogue(language).gettext(text) for language in LANGUAGES]


@cache
def _catalogue(language: str) -> gettext.NullTranslations:
    return gettext.translation(DOMAIN, LOCALE, [language], fallback=True)
