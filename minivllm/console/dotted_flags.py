"""Entries of a setting that is a dictionary, as flags of their own: vLLM's dotted form.

    --structured-outputs-config.backend guidance    ──►  --structured-outputs-config '{"backend": "guidance"}'
    --speculative-config.method=ngram --speculative-config.num_speculative_tokens 4

A value is JSON if it can be, otherwise a string. Read next: `minivllm/engine/engine_flags.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DOTTED = ("--speculative-config", "--structured-outputs-config")


def join_dotted(arguments: Sequence[str]) -> list[str]:
    """The same command line, with one JSON flag for each setting that had dotted ones; they win over its own.

    Raises:
        ValueError: a dotted flag has no value, or its setting is given as something that is no dictionary.
    """
    entries: dict[str, dict[str, Any]] = {}
    whole: dict[str, str] = {}
    left: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            left += [word, *words]
            break
        flag, equals, value = word.partition("=")
        name, dot, entry = flag.partition(".")
        if name not in DOTTED:
            left.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None:
                raise ValueError(f"{flag} needs a value")
            value = following
        if dot:
            entries.setdefault(name, {})[entry.replace("-", "_")] = _value(value)
        else:
            whole[name] = value
    if not entries:
        return list(arguments)
    for name in whole.keys() | entries.keys():
        given = whole.get(name)
        if name in entries:
            base = {} if given is None else _value(given)
            if not isinstance(base, dict):
                raise ValueError(f"{name} must be a dictionary as JSON, got {given!r}")
            given = json.dumps(base | entries[name])
        assert given is not None
        left += [name, given]
    return left


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word
