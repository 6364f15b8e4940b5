"""What the judge says of a lesson in the reader's language: the sentences of its properties, and their hints.

`checks.py` says them in English, and its English is the key (as in GNU gettext): beside it `checks.zh.json`
has the Chinese of each. What is not in there is said in English; a test sees to it that nothing is missing,
and that nothing is left that no source says.

On the command line the language is `--lang`, or that of the system's locale; on the page it is the page's.

Read next: `desk_work.py`, which climbs the ladder of hints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache

from lessons.catalogue import LANGUAGES, Lesson


def in_language(lesson: Lesson, text: str, language: str) -> str:
    """A sentence or hint of the lesson's `checks.py`, as this language has it."""
    return _table(lesson, language).get(text, text)


@cache
def _table(lesson: Lesson, language: str) -> Mapping[str, str]:
    try:
        found: dict[str, str] = json.loads(lesson.sentences(language).read_text(encoding="utf-8"))
    except OSError:  # English, which needs none
        return {}
    return found


def checked(language: str) -> str:
    """The same, if lessons speak it.

    Raises:
        ValueError: they do not.
    """
    if language not in LANGUAGES:
        raise ValueError(f"--lang must be one of {', '.join(LANGUAGES)}, got {language!r}")
    return language


def language_of_locale(environment: Mapping[str, str] = os.environ) -> str:
    """The language that the system speaks, if lessons have it; English otherwise."""
    # The first that is set decides, as POSIX says; "C.UTF-8" and "POSIX" are no language.
    said = next(
        (environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), ""
    )
    language = said.split("_")[0].split(".")[0].lower()
    return language if language in LANGUAGES else "en"
