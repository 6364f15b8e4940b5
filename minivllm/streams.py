"""The standard streams of a program of ours: they take any text, and are no other file's.

    closed by the caller (`>&-`)            lead nowhere, so that no file of ours gets their number
    a locale that knows only ASCII          is written to in UTF-8, of which ASCII is a part
    standard error on a full disk           loses words: a log ends neither a run nor a server

That standard output is lost is another matter: see `guard.py`.

Source: PEP 540 for why UTF-8. Read next: `guard.py`.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself takes longer than all of this
    from typing import TextIO


def open_streams() -> None:
    """Make all three of them usable, whatever the caller has left of them."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    sys.stderr = _Messages.instead_of(sys.stderr)
    print_all_languages()


def print_all_languages() -> None:
    """Let both output streams take any text: as UTF-8 where they know only ASCII, else escaped if need be."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="backslashreplace")


class _Messages(io.TextIOWrapper):
    """Standard error, which writes what it can."""

    @classmethod
    def instead_of(cls, stream: TextIO) -> _Messages:
        """At the same descriptor, in the same encoding."""
        binary = os.fdopen(2, "wb", closefd=False)
        return cls(binary, stream.encoding, "backslashreplace", line_buffering=True, write_through=True)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()
