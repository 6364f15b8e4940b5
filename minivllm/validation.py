"""Say clearly what is wrong with an argument: its name, the value given, and what is allowed.

Every public constructor checks its arguments with these functions *before* anything changes,
so that a refused call leaves the engine exactly as it was (house rule 5: nothing silently dropped).
`bool` is not an integer here, although Python says so: `n=True` is a slip, not a count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISREG


def check_integer(
    name: str, value: object, *, at_least: int | None = None, at_most: int | None = None
) -> int:
    """Return `value` as an int, or raise `ValueError` naming the argument and its allowed range."""
    allowed = "an integer" + _range_words(at_least, at_most)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as a finite float, or raise `ValueError` naming the argument and its allowed range."""
    allowed = "a finite number" + _range_words(at_least, at_most, more_than)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    too_small = (at_least is not None and value < at_least) or (more_than is not None and value <= more_than)
    if too_small or (at_most is not None and value > at_most):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return float(value)


def check_boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False, or raise `ValueError` naming the argument."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`, or raise `ValueError` listing them all."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for any float
        return False


def _range_words(at_least: float | None, at_most: float | None, more_than: float | None = None) -> str:
    words = []
    if at_least is not None:
        words.append(f"of at least {at_least}")
    if more_than is not None:
        words.append(f"above {more_than}")
    if at_most is not None:
        words.append(f"at most {at_most}")
    return (" " + " and ".join(words)) if words else ""


def check_input_file(name: str, path: str | Path) -> Path:
    """A file that can be read to its end: a pipe or a device might never end.

    Raises:
        ValueError: it is not there, or is no file.
    """
    path = Path(path)
    try:
        is_file = S_ISREG(path.stat().st_mode)
    except (OSError, ValueError) as error:  # the latter: a name that cannot be one
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} {str(path)[:300]!r} cannot be read: {why}") from error
    if not is_file:
        raise ValueError(f"{name} {str(path)[:300]!r} cannot be read: it is not a file")
    return path


def check_output_file(name: str, path: Path | None) -> Path | None:
    """A file that can be written, or None: said before the work, not after it.

    Raises:
        ValueError: it is a folder, or in a folder that does not exist.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{name} must be a file in a folder that exists, got {str(path)!r}")
    return path
