"""Files that are written whole or not at all.

A disk fills up in the middle of a write. So a result is written to a file beside its place, and takes that
place only when all of it is there: a good file from before is never replaced by half of a new one.

    run.json ◄── rename ── .3f9a….tmp ◄── write ── the result

A trace grows line by line and cannot wait for its end: `trace/recorder.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex


class CannotWrite(ValueError):
    """A result could not be written, and why, in a sentence: the disk is at fault, not the request."""


def write_file(path: str | Path, content: str | bytes, name: str) -> None:
    """Write a file, whole or not at all.

    Args:
        name: of the option or argument that named the path, for the message.

    Raises:
        CannotWrite: and what was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        place = Path(path).resolve()  # where a link leads to, so that the link stays
        if place.exists() and not place.is_file():
            place.write_bytes(data)  # a pipe or a device: nothing may take its place
        else:
            _replace(place, data)
    except (OSError, ValueError) as error:  # the latter: a path that cannot be one, or a lone surrogate
        raise CannotWrite(f"{name}: cannot write to {path}: {reason(error)}") from error


def check_new_folder(path: str | Path, name: str) -> Path:
    """Raises `ValueError` if something is there already, or no folder can be made: said before the work.

    An empty folder may be there, and the folder around it must.
    """
    place = Path(os.path.expanduser(path))
    try:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ValueError(f"{name} must be a new or an empty folder, but {str(path)!r} is there already")
        if not place.absolute().parent.is_dir():
            raise ValueError(f"{name}: there is no folder {str(place.absolute().parent)!r} to make it in")
        trial = _beside(place)
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise ValueError(f"{name}: {str(path)!r} cannot be a folder: {reason(error)}") from error
    return place


@contextmanager
def new_folder(path: str | Path, name: str) -> Iterator[Path]:
    """A folder to fill, which takes its place when all is in it; after an error there is none.

    Raises:
        CannotWrite: the disk is full, or the place is taken.
    """
    place = Path(os.path.expanduser(path))
    beside = _beside(place)
    try:
        beside.mkdir()
        yield beside
        if place.is_dir():
            place.rmdir()  # only an empty one goes
        beside.rename(place)
    except OSError as error:
        raise CannotWrite(f"{name}: cannot write to {path}: {reason(error)}") from error
    finally:  # an interrupt, too, leaves nothing behind
        if beside.exists():
            shutil.rmtree(beside, ignore_errors=True)


def _beside(place: Path) -> Path:
    return place.absolute().parent / f".{token_hex(8)}.tmp"


def reason(error: Exception) -> str:
    """Why, in the system's words and without the path, which messages name themselves."""
    return getattr(error, "strerror", None) or str(error)


def _replace(place: Path, data: bytes) -> None:
    beside = _beside(place)
    try:
        with beside.open("xb") as file:
            file.write(data)
        if place.exists():
            shutil.copymode(place, beside)
        beside.replace(place)
    except BaseException:  # an interrupt, too, leaves nothing behind
        with suppress(OSError):
            beside.unlink()
        raise
