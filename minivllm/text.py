"""Any text, made safe to show: in a terminal, in a picture, on a page.

A prompt, a generated text, a file's name may hold any character, and some of them act on what stands around
them. Each of these becomes one visible character, so that a text stays as long as it was:

    control characters           a terminal obeys them (ESC), XML forbids them        →  ␛
    bidi controls                turn round the words before and after them           →  �
    surrogates, non-characters   no encoding or no XML has them                       →  �

What a medium takes for markup is another matter, with one place for each medium: `terminal.py` for terminals,
`viz/plain.py` for Markdown, `viz/backends/` for pictures and pages, `lab/drawing.py` for matplotlib.

Source: Unicode Standard Annex 9 (bidi), XML 1.0, section 2.2. Read next: `terminal.py`.
"""

from __future__ import annotations

import re

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line break
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi controls
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
MOST_SHOWN = 80


def printable(text: str) -> str:
    """The text, with a visible character for each one that would act on what stands around it.

    Tabs and line breaks stay.
    """
    return UNSAFE.sub(_visible, text.replace("\r\n", "\n")) if UNSAFE.search(text) else text


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the picture of the character: ␀ … ␟
    return "␡" if code == 0x7F else "\ufffd"


def shown(value: object) -> str:
    """Enough of a value to recognise it in a message, on one line."""
    # A text may have gigabytes, and `repr` would copy them all.
    words = repr(value[:MOST_SHOWN] if isinstance(value, str | bytes) else value)
    is_whole = len(words) <= MOST_SHOWN and not (isinstance(value, str | bytes) and len(value) > MOST_SHOWN)
    return words if is_whole else words[: MOST_SHOWN - 1] + "…"
