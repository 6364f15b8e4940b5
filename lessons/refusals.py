"""What a solution may not use: the solutions that are there already, and the judge that looks at it.

    imports             of the engine's packages, by their names in the text and by any back door
    files               the references, the wrong solutions, and the engine's own source: by whatever name
                        (a link, bytes, an open descriptor's path), for the file itself is compared
    other processes     none is started: what one reads, the judge would not see
    the judge's frames  no way up from one's own frame to the story that is being played, and no debugger

Python tells its audit hooks of all of these (PEP 578), and a hook cannot be taken out again. A learner's code
is whatever is neither Python's, nor an installed package's, nor ours: so code that was made from a text is
the learner's, too, and so is a thread that none of us has started.

It is no sandbox: Python has none. It tells an honest learner where the line is, and it makes what crosses the
line hard enough that writing the solution is easier. The rest is for the trial of the judge (`trial.py`).

Read next: `trial.py`.
"""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType

from lessons.catalogue import ROOT, lessons

FORBIDDEN = ("minivllm", "lessons", "viz", "kernels_numba")
WORK: list[str] = []
"""Files that are being judged."""

OWN = "the solution must be your own: it may not"
NO_FRAMES = f"{OWN} look into the judge"


class Refused(ImportError):
    """What was handed in must not use this."""


@contextmanager
def refusing() -> Iterator[None]:
    """A block in which the learner's code may run: what it imports is looked at."""
    finder = _RefusingFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


# ── imports ───────────────────────────────────────────────────────────────────────────────────────────


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
        if _is_forbidden(fullname) and _is_learners(sys._getframe(1)):
            raise Refused(f"{OWN} import {fullname}")
        return None


# ── whose code is it? ─────────────────────────────────────────────────────────────────────────────────

_PYTHON = tuple(
    {
        os.path.realpath(folder) + os.sep
        for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *sys.path)
        if folder
    }
)
"""Where Python and installed packages lie, borrowed ones included."""
_OURS = tuple(str(ROOT.parent / package) + os.sep for package in FORBIDDEN)


def _is_python(file: str) -> bool:
    if file.startswith("<frozen "):
        return True
    if file in WORK or not os.path.isabs(file):  # a solution, wherever it lies, or made from a text
        return False
    return file.startswith(_PYTHON) or os.path.realpath(file).startswith(_PYTHON)


def _is_learners(frame: FrameType | None) -> bool:
    """Is the nearest caller that is not Python's own machinery the learner's?"""
    while frame is not None:
        file = frame.f_code.co_filename
        if file in WORK:
            return True
        if file.startswith(_OURS):
            return False
        if not _is_python(file):
            return True
        frame = frame.f_back
    # A thread that ends in Python's own code was started with it: `Thread(target=open, …)`.
    return threading.current_thread() is not threading.main_thread()


# ── what the process is told of ───────────────────────────────────────────────────────────────────────

_inside = threading.local()


def watch_process() -> None:
    """From now on, the learner's code is refused what it may not use. For a process that only judges."""
    solutions = _solutions()
    refuse_processes: _Rule = lambda frame, arguments: f"{OWN} start another process"  # noqa: E731

    def refuse_solutions(frame: FrameType, arguments: tuple[object, ...]) -> str:
        return f"{OWN} read the reference" if _file_of(arguments[0]) in solutions else ""

    rules: Mapping[str, _Rule] = {
        **dict.fromkeys(("open", "os.link", "os.symlink", "os.rename"), refuse_solutions),
        **dict.fromkeys(_PROCESSES, refuse_processes),
        **dict.fromkeys(_LOOKS, _refuse_look),
        "object.__getattr__": _refuse_frame_of_object,
    }

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        rule = rules.get(event)
        if rule is None or getattr(_inside, "hook", False) or not WORK:
            return
        _inside.hook = True  # what is asked below is audited, too
        try:
            frame = sys._getframe(1)
            words = rule(frame, arguments)
            is_refused = bool(words) and _is_learners(frame)
        finally:
            _inside.hook = False
        if is_refused:
            raise Refused(words)

    sys.addaudithook(hook)


_Rule = Callable[[FrameType, tuple[object, ...]], str]
_PROCESSES = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_LOOKS = (
    "sys._getframe",
    "sys._current_frames",
    "sys._current_exceptions",
    "sys.settrace",
    "sys.setprofile",
    "gc.get_objects",
    "gc.get_referrers",
    "gc.get_referents",
    "ctypes.dlopen",
    "ctypes.dlsym",
)
_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")


_LENDERS = ("ctypes.__init__", "inspect", "traceback.walk_tb", "traceback.walk_stack")
"""Of Python's own: what asks for their caller. What others of Python's ask, they ask for themselves: named
tuples, data classes and warnings look at frames, printing an exception does, and packages load libraries."""


def _refuse_look(frame: FrameType, arguments: tuple[object, ...]) -> str:
    asker: FrameType | None = frame
    while asker and _is_python(asker.f_code.co_filename):
        file = Path(asker.f_code.co_filename)
        names = (file.stem, f"{file.parent.name}.{file.stem}", f"{file.stem}.{asker.f_code.co_name}")
        if not set(names) & set(_LENDERS):
            return ""
        asker = asker.f_back
    return NO_FRAMES


def _refuse_frame_of_object(frame: FrameType, arguments: tuple[object, ...]) -> str:
    return _refuse_look(frame, arguments) if arguments[1] in _FRAMES else ""


def _solutions() -> frozenset[tuple[int, int]]:
    """Every file with a solution in it: the lessons' own, and the engine that they are about."""
    files = [path for lesson in lessons() for path in (lesson.reference, lesson.mutants)]
    for package in FORBIDDEN:
        files += (ROOT.parent / package).rglob("*.py*")
    return frozenset(found for path in files if (found := _file_of(path)))


def _file_of(path: object) -> tuple[int, int] | None:
    """The file itself, whatever it is called; None if there is none."""
    try:
        status = os.stat(path)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return None
    return status.st_dev, status.st_ino
