"""`NAME=VALUE, NAME=VALUE`, taken apart, and refused by the name, the value and what is allowed.

Read next: `subjects.py` and `own_kernel.py`, whose options are of this form.
"""

from __future__ import annotations

import math
import re

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
"""As plain as a count can be, and small enough for 64 bits."""
LONGEST_QUOTE = 60


def parse_pairs(option: str, text: str) -> dict[str, str]:
    """Names and values, both without spaces around them.

    Raises:
        ValueError: a part is not `NAME=VALUE`, or a name is given twice.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not value:
            raise ValueError(f"{option} must be NAME=VALUE, separated by commas, got {quote(part)}")
        if name in pairs:
            raise ValueError(f"{option} must name {name} once, got {quote(text)}")
        pairs[name] = value
    return pairs


def integer_or_text(value: str) -> int | str:
    """An integer if it is written as one; otherwise the text, for the message that refuses it."""
    return int(value) if INTEGER.fullmatch(value) else value[:LONGEST_QUOTE]


def parse_number(name: str, value: str, allowed: str = "a finite number") -> int | float:
    """A number as Python writes it.

    Raises:
        ValueError: it is none that is finite, with what is `allowed`.
    """
    whole = integer_or_text(value)
    if isinstance(whole, int):
        return whole
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {allowed}, got {quote(value)}")
    return number


def quote(text: str) -> str:
    """A value for a message, however long it is."""
    return repr(text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…")
