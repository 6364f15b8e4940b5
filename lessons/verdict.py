"""A verdict: what came of one property, and what the learner's code did wrong, in words.

Read next: `playing.py`, which finds it.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lessons.guard import TooLong, too_much_memory
from lessons.refusals import Refused
from lessons.story import Story

IMPORT_SECONDS = 10.0
"""Of processor time."""
PASSED, FAILED, UNWRITTEN = "passed", "failed", "unwritten"


@dataclass
class Verdict:
    """What came of one property."""

    number: str
    status: str
    stories: int = 0
    missing: str = ""
    """The function that is still to be written."""
    case: Any = None
    story: Story | None = None
    expected: str = ""
    got: str = ""
    where: str = ""
    symptoms: list[str] = field(default_factory=list)
    """How it failed, the most telling first: words of `story.py`."""
    printed: str = ""
    unplayable: list[Any] = field(default_factory=list)
    """Of the cases that failed before: those that the right solution cannot play either."""
    size: tuple[int, int] = field(default=(0, 0), repr=False)

    def to_data(self) -> dict[str, Any]:
        """For the runner."""
        return {name: value for name, value in vars(self).items() if name not in ("story", "size")}


def words_of(error: BaseException) -> str:
    """What an exception says of itself, which is the learner's and may do anything."""
    try:
        return str(error)[:300] or "with no message"
    except Exception:
        return "with a message that cannot be read"


def line_of(error: BaseException, file: str) -> str:
    """Where in the learner's file it came from, in words; "" if it did not."""
    frames = _frames(error, file)
    if not frames:
        return ""
    last = frames[-1]
    return f"line {last.lineno}, in {last.name}: {last.line}"


def function_of(error: BaseException, file: str) -> str:
    """The function that raised it, if it is the learner's."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    code = trace.tb_frame.f_code if trace else None
    return code.co_qualname if code and code.co_filename == file else ""


def import_problem(error: BaseException, path: Path) -> str:
    """Why a file cannot be judged, in a sentence."""
    if isinstance(error, SyntaxError):
        where = f" (line {error.lineno}: {(error.text or '').strip()})" if error.lineno else ""
        return f"Python cannot read it: {error.msg}{where}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not a text in UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, OSError) and not isinstance(error, ImportError) and not _frames(error, str(path)):
        return f"it cannot be read: {error.strerror}"
    where = line_of(error, str(path))
    at = f" ({where})" if where else ""
    if isinstance(error, Refused):
        return f"{words_of(error)}{at}"
    if isinstance(error, TooLong):
        return f"importing it took more than {IMPORT_SECONDS:g} seconds: does a loop never end?{at}"
    if isinstance(error, MemoryError):
        return f"importing it raised {too_much_memory(error)}{at}"
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}) when it is imported{at}"
    return f"importing it raised {type(error).__name__}: {words_of(error)}{at}"


def _frames(error: BaseException, file: str) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
