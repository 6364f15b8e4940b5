"""The guard: whatever the learner's code does, the judge gets control back and can say what happened.

    loops for ever     an exception is thrown into it after some seconds, again and again until it ends
    prints             kept, to be shown with the story in which it happened; too much is cut
    sys.exit           is an exception like others
    reads from stdin   there is nothing to read
    the reference      may be neither imported nor opened: a solution is written, not fetched

What Python cannot interrupt (a sleep, a loop in C) or survive (a crash of the interpreter) is noticed by the
runner, which watches this process from outside.

Read next: `judge.py`.
"""

from __future__ import annotations

import ast
import ctypes
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

FORBIDDEN = ("minivllm", "lessons", "viz", "kernels_numba")
MOST_PRINTED = 2000
REPEAT_SECONDS = 0.05


class TooLong(BaseException):
    """Not an `Exception`, so that the code which loops cannot catch it by accident."""


class Refused(ImportError):
    """What was handed in must not use this."""


class Printed(io.StringIO):
    """Keeps the beginning of what is printed, and counts the rest."""

    def write(self, text: str) -> int:
        room = MOST_PRINTED - self.tell()
        if room > 0:
            super().write(text[:room])
        return len(text)


@contextmanager
def guarded(seconds: float, printed: io.StringIO) -> Iterator[None]:
    """Run a block with a time limit, and without its prints and imports.

    Raises:
        TooLong: it did not end in time.
    """
    watch = _Watch(seconds)
    finder = _RefusingFinder()
    sys.meta_path.insert(0, finder)
    _judging.depth += 1
    watch.start()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    finally:
        watch.stop()
        _judging.depth -= 1
        sys.meta_path.remove(finder)


class _Watch:
    """Throws `TooLong` into the thread that made it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread = threading.get_ident()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        seconds = self._seconds
        while not self._ended.wait(seconds):
            with self._lock:
                if self._ended.is_set():
                    return
                _throw(self._thread, TooLong)
            seconds = REPEAT_SECONDS  # a bare `except:` may have swallowed it

    def stop(self) -> None:
        with self._lock:
            self._ended.set()
            _throw(self._thread, None)  # one that is on its way is taken back


def _throw(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )


# ── what may be used ──────────────────────────────────────────────────────────────────────────────────


def refused_imports(source: str) -> Iterator[tuple[int, str]]:
    """Lines of a program that import what must not be used, and what that is."""
    for node in ast.walk(ast.parse(source)):
        names: Sequence[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        for name in names:
            if _is_forbidden(name):
                yield getattr(node, "lineno", 0), name


def _is_forbidden(name: str) -> bool:
    return name.split(".")[0] in FORBIDDEN


class _RefusingFinder(MetaPathFinder):
    """Asked first when something is imported; most things it lets pass."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _is_forbidden(fullname) and _comes_from(WORK):
            raise Refused(f"the solution must be your own: it may not import {fullname}")
        return None


class _Judging(threading.local):
    depth = 0


_judging = _Judging()
WORK: list[str] = []
"""Files that are being judged."""


def forbid_reading() -> None:
    """From now on, guarded code of `WORK` cannot open the solutions. For a process that only judges."""
    lessons = str(Path(__file__).parent)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and _judging.depth and isinstance(arguments[0], str):
            name = Path(arguments[0]).name
            is_solution = name in ("reference.py", "mutants.py") and lessons in str(
                Path(arguments[0]).resolve()
            )
            if is_solution and _comes_from(WORK):
                raise Refused("the solution must be your own: it may not read the reference")

    sys.addaudithook(hook)


def _comes_from(files: Sequence[str]) -> bool:
    """Is one of these files the nearest caller, of those that are not Python's own machinery?"""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file in files:
            return True
        if file.startswith(str(Path(__file__).parent)) and file != __file__:
            return False  # a check, or the judge itself
        frame = frame.f_back  # type: ignore[assignment]
    return False
