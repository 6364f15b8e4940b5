"""Small files that came from somewhere else: read in bounded memory, or refused by their names.

Most of them hold a JSON object; a chat template is a text.

Read next: `minivllm/model/config.py`, which takes the object apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 << 20
"""Far above any config or index of shards. What a parser makes of it takes twenty times the memory."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is missing, or is not what it should be; the message begins with its path.
    """
    content = _read_bytes(path)
    try:
        value = json.loads(content.decode("utf-8-sig"))  # some editors begin a file with a mark
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found a {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """The text in a small file.

    Raises:
        ValueError: the file is missing, or is not what it should be; the message begins with its path.
    """
    try:
        return _read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe would be waited for
            lack = "is not a file" if path.exists() else "no such file"
            raise ValueError(f"{path}: {lack}; a model folder needs a {path.name}")
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ValueError(f"{path} has {size:,} bytes; a {path.name} has at most {MAX_JSON_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
