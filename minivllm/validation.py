"""Say clearly what is wrong with an argument: its name, the value given, and what is allowed.

Every public constructor checks its arguments with these functions *before* anything changes,
so that a refused call leaves the engine exactly as it was (house rule 6: nothing silently accepted).
They return the value in its one form: a number of numpy's as a number of Python's, an array as a list.
`bool` is not an integer here, although Python says so: `n=True` is a slip, not a count.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from reprlib import Repr
from stat import S_ISREG
from typing import Any

LONGEST_PATH = 4096
"""Characters; Linux allows no more."""

_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100
_SHOWN.maxlong, _SHOWN.maxlevel = 40, 3


def shown(value: object) -> str:
    """The value as a message shows it: short, on one line, and whatever its own `repr` may do."""
    try:
        return _SHOWN.repr(value).replace("\n", " ")
    except ValueError:  # an integer of more digits than Python is willing to write
        return f"{type(value).__name__} of too many digits"


def check_integer(
    name: str, value: object, *, at_least: int | None = None, at_most: int | None = None
) -> int:
    """Return `value` as an int, or raise `ValueError` naming the argument and its allowed range."""
    allowed = "an integer" + _range_words(at_least, at_most)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    number = int(value)
    if (at_least is not None and number < at_least) or (at_most is not None and number > at_most):
        raise ValueError(f"{name} must be {allowed}, got {shown(number)}")
    return number


def check_int64(name: str, value: object, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """As `check_integer`, for numbers that end in traces, arrays and kernels, which know 64 bits."""
    number = check_integer(name, value, at_least=at_least, at_most=at_most)
    lowest, highest = -(2**63), 2**63 - 1
    return check_integer(
        name,
        number,
        at_least=lowest if at_least is None else max(at_least, lowest),
        at_most=highest if at_most is None else min(at_most, highest),
    )


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
    number = float("nan") if isinstance(value, bool) else _as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    too_small = (at_least is not None and number < at_least) or (
        more_than is not None and number <= more_than
    )
    if too_small or (at_most is not None and number > at_most):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    return number


def check_boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False, or raise `ValueError` naming the argument."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return value


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`, or raise `ValueError` listing them all."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return str(value)


def check_text(name: str, value: object, *, may_be_empty: bool = True) -> str:
    """Return `value` if it is a string that UTF-8 can express, or raise `ValueError` naming the argument.

    Half of a surrogate pair is no character: JSON, tokenizers and terminals refuse it, each in its own way.
    """
    if not isinstance(value, str) or not (value or may_be_empty):
        wanted = "a string" if may_be_empty else "a string that is not empty"
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    try:
        return value.encode().decode()  # numpy's strings become Python's
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be text, but its character {error.start} is none (a lone surrogate): "
            f"got {shown(value[error.start : error.end])}"
        ) from None


def check_path(name: str, value: str | Path) -> str | Path:
    """Return `value` if a file can have that name, or raise `ValueError` naming the argument."""
    text = str(value)
    try:
        is_possible = b"\0" not in os.fsencode(text) and len(text) <= LONGEST_PATH
    except UnicodeEncodeError:  # half of a surrogate pair
        is_possible = False
    if not is_possible:
        raise ValueError(
            f"{name} must be a name that a file can have, of at most {LONGEST_PATH} characters, "
            f"got {shown(value)}"
        )
    return value if isinstance(value, Path) else text


def check_list(name: str, value: object, *, of: str, may_be_set: bool = False) -> list[Any]:
    """The items of a list, a tuple, an array, a tensor (or a set), or `ValueError` naming the argument."""
    texts = str | bytes | bytearray | memoryview  # sequences, too, of something else than is meant
    items = value.tolist() if hasattr(value, "tolist") and not isinstance(value, texts) else value
    wanted = Sequence | Set if may_be_set else Sequence
    if isinstance(items, texts) or not isinstance(items, wanted):
        raise ValueError(f"{name} must be a list of {of}, got {shown(value)}")
    return list(items)


def check_entries(name: str, value: object, known: Sequence[str]) -> Mapping[str, Any]:
    """The entries of a dictionary or of its JSON, or `ValueError` naming the argument or an unknown entry."""
    wanted = f"{name} must be a dictionary or its JSON, got"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{wanted} {shown(value)}") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"{wanted} {shown(value)}")
    for entry in value:
        if entry not in known:
            raise ValueError(f"{name} has no entry {shown(entry)}; it has {', '.join(known)}")
    return value


def check_token_ids(name: str, value: object, *, may_be_set: bool = False) -> list[int]:
    """The token ids of a list, an array or a tensor, or `ValueError` naming the one that is none."""
    ids = check_list(name, value, of="token ids", may_be_set=may_be_set)
    return [
        token if type(token) is int and token >= 0 else check_integer(f"{name}[{index}]", token, at_least=0)
        for index, token in enumerate(ids)
    ]


def _as_float(value: object) -> float:
    """NaN if it is none."""
    try:
        return float(value) if isinstance(value, Real) else float("nan")
    except OverflowError:  # an integer too large for any float
        return float("inf")


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


def check_output_files(**paths: Path | None) -> None:
    """As `check_output_file`, for all that one command writes: no two of them are one file.

    Raises:
        ValueError: one cannot be written, or would be written over another.
    """
    taken: dict[str, str] = {}
    for name, path in paths.items():
        if check_output_file(name, path) is None:
            continue
        assert path is not None
        first = taken.setdefault(os.path.realpath(path), name)
        if first != name:
            raise ValueError(f"{name} must be another file than {first}, got {str(path)!r} for both")


def error_words(error: BaseException) -> str:
    """The kind of an error, and what it says; some say nothing."""
    kind, words = type(error).__name__, str(error)
    return f"{kind}: {words}" if words else kind
