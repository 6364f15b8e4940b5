"""The lines of a trace, of whichever kind: read within limits, and decoded within the types of their events.

A trace may come from anywhere, and anything may lie where one is expected: a pipe that never ends, a film, a
file with a single line of gigabytes. So a line is read only up to a limit, and what it holds has the types
and ranges that the classes of the events declare, before anything else sees it:

    a regular file ──► lines, none longer than 32 MiB ──► events ──► `reader.py`, `kernel_events.py`, …

Reading takes time and memory in proportion to the file, and no more than a line of it where it is no trace.
That the events fit each other is for `contradictions.py` to say.

Read next: `reader.py`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, TypeVar

import msgspec

from minivllm.files import reason
from minivllm.text import printable

MOST_LINE_BYTES = 32 * 2**20
"""The longest line that an event may take: a prompt of a million tokens, with their texts, takes a third."""
MOST_WORDS = 300
"""Characters that a message quotes."""
CHUNK_BYTES = 2**20
OTHER_FILES = {
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\xff\xfe": "UTF-16, and a trace is UTF-8",
}
"""How files begin that people take for a trace, and what they are."""
KINDS = {
    "TraceHeader": "a minivllm trace of a run",
    "KernelHeader": "a trace of a kernel",
    "StoryHeader": "a story of a lesson",
    "PrecisionHeader": "a comparison of precisions",
}
"""The first event of each kind of trace, and the kind in words."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a line may raise; the last, if brackets are nested thousands deep."""

AnEvent = TypeVar("AnEvent")


class TraceError(ValueError):
    """This trace cannot be read or replayed, and why, in one sentence."""


class _FirstLine(msgspec.Struct):
    """What the first line of any trace says; all else in it is skipped."""

    event: str
    version: msgspec.Raw = msgspec.Raw(b"null")


@contextmanager
def open_trace(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read it; an error of the disk meanwhile is told as well.

    Raises:
        TraceError: it cannot be read, or is no file (a pipe or a device might never end).
    """
    check_is_file(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TraceError(f"{words(path)} cannot be read: {reason(error)}") from error


def check_is_file(path: Path) -> tuple[int, int]:
    """When the file was changed (in nanoseconds), and its size.

    Raises:
        TraceError: it cannot be read, or is no regular file.
    """
    try:
        info = path.stat()
    except (OSError, ValueError) as error:
        raise TraceError(f"{words(path)} cannot be read: {reason(error)}") from error
    if not S_ISREG(info.st_mode):
        raise TraceError(
            f"{words(path)} is not a file: give the path of a trace, such as minivllm-out/trace.jsonl"
        )
    return info.st_mtime_ns, info.st_size


def begins_as(path: str | Path, event: str) -> bool:
    """Does the file begin as a trace with such a header does? False, too, if it cannot be read."""
    try:
        with open_trace(Path(path)) as file:
            return f'"{event}"'.encode() in file.read(200)
    except TraceError:
        return False


def read_header(
    path: Path, file: BinaryIO, kind: str, newest: int, decode: Callable[[bytes], AnEvent]
) -> AnEvent:
    """The first line of a trace of this kind, which is of a version from 1 to `newest`.

    Raises:
        TraceError: the file is empty, is something else, or its header is damaged or absurd.
    """
    line = _read_line(path, file, 1).removeprefix(codecs.BOM_UTF8)  # some editors begin a file with a mark
    if not line.strip() and not _has_more(file):
        raise TraceError(f"{words(path)} is empty: a trace has at least a header line")
    if line.startswith(b"data: "):
        raise TraceError(
            f"{words(path)} is a recorded stream of events; `sed -n 's/^data: //p' FILE > trace.jsonl` makes "
            "a trace of it"
        )
    try:
        first = msgspec.json.decode(line, type=_FirstLine)
    except UNREADABLE as error:
        if f'"{kind}"'.encode() in line[:200]:
            raise TraceError(f"{words(path)} has a damaged header: {words(error)}") from error
        first = _FirstLine("")
    if first.event in KINDS and first.event != kind:
        raise TraceError(f"{words(path)} is {KINDS[first.event]}, not {KINDS[kind]}")
    if first.event != kind:
        is_what = OTHER_FILES.get(line[:2])
        why = f"it is {is_what}" if is_what else "its first line is not a header"
        raise TraceError(f"{words(path)} is not {KINDS[kind]}: {why}")
    if bytes(first.version) not in {b"%d" % version for version in range(1, newest + 1)}:
        raise TraceError(
            f"{words(path)} is {KINDS[kind]} of version {words(bytes(first.version).decode(), 40)}; this "
            f"program reads {'versions 1 to ' if newest > 1 else ''}{newest}. Open it with the minivllm that "
            f"wrote it, or make it again."
        )
    try:
        return decode(line)
    except UNREADABLE as error:
        raise TraceError(f"{words(path)} has a damaged header: {words(error)}") from error


def read_events(
    path: Path, file: BinaryIO, decode: Callable[[bytes], AnEvent], what: str
) -> tuple[list[AnEvent], int | None]:
    """All lines behind the first, decoded; and the number of the last line if it was cut off.

    Args:
        what: one of them in words, for the message: "an event".

    Raises:
        TraceError: a line is too long, or is damaged and not the last one.
    """
    events: list[AnEvent] = []
    number = 1
    while line := _read_line(path, file, number := number + 1):
        try:
            events.append(decode(line))
        except UNREADABLE as error:
            if _has_more(file):
                raise TraceError(f"{words(path)}, line {number}, is not {what}: {words(error)}") from error
            return events, number if line.strip() else None
    return events, None


def words(value: object, most: int = MOST_WORDS) -> str:
    """A path or an error as a part of a sentence: one line, not too long, nothing that acts on a terminal."""
    text = " ".join(printable(str(value)[: most + 1]).split("\n"))
    return text if len(text) <= most else text[: most - 1] + "…"


def _read_line(path: Path, file: BinaryIO, number: int) -> bytes:
    """The next line, with its end; nothing at the end of the file."""
    line = file.readline(MOST_LINE_BYTES + 1)
    if len(line) > MOST_LINE_BYTES:
        raise TraceError(
            f"{words(path)}, line {number}, is longer than any line of a trace: it has more than "
            f"{MOST_LINE_BYTES:,} bytes"
        )
    return line


def _has_more(file: BinaryIO) -> bool:
    """Is there anything but blanks behind the line that was read?"""
    while chunk := file.read(CHUNK_BYTES):
        if chunk.strip():
            return True
    return False
