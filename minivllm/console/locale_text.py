"""Text of any language on a terminal whose locale knows only ASCII (`LC_ALL=C`, as in many containers).

There Python keeps the bytes of arguments that it cannot read as lone surrogates, and printing what ASCII does
not have ends the program. The terminal itself nearly always speaks UTF-8, of which ASCII is a part.

Source: PEP 383 for the surrogates, PEP 540 for why UTF-8. Read next: `commands.py`.
"""

from __future__ import annotations

import codecs
import io
import os
import sys


def typed_text(argument: str) -> str:
    """What was typed: bytes that Python could not read are UTF-8. What is not even that stays as it is."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode(errors="surrogateescape")
    return argument


def print_all_languages() -> None:
    """Let both output streams take any text: as UTF-8 where they know only ASCII, else escaped if need be."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="backslashreplace")
