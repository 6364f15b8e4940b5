"""Text of any language on a terminal whose locale knows only ASCII (`LC_ALL=C`, as in many containers).

There Python keeps the bytes of arguments that it cannot read as lone surrogates, and printing what ASCII does
not have ends the program. The terminal itself nearly always speaks UTF-8, of which ASCII is a part.

Source: PEP 383 for the surrogates, PEP 540 for why UTF-8. Read next: `commands.py`.
"""

from __future__ import annotations

import os


def typed_text(argument: str) -> str:
    """What was typed: bytes that Python could not read are UTF-8. What is not even that stays as it is."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode(errors="surrogateescape")
    return argument
