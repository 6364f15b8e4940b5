"""A program of ours that is stopped ends at once, with one line, and never with a traceback.

    Ctrl-C                                         `finally` blocks run, one line, exit code 130
    SIGTERM, or the terminal is closed             the same, with exit code 143
    the same again, before that is done            the process ends there and then
    our output is not read any more (`| head`)     silence
    our output cannot be written (a full disk)     one line, exit code 1
    the folder in which it runs has been removed   one line, exit code 2

A program of ours is the command `minivllm`, a `python -m` of our packages, or a script in one of them (a
lesson's walkthrough); in any other program nothing happens here. Each of our packages imports this
module before anything else, because what takes time comes afterwards. Only the start of Python itself, some
20 ms, is before it.

Why the handler raises `SystemExit` and not `KeyboardInterrupt`: libraries turn the latter into errors of
their own, and it ends in a traceback wherever it is not expected.

Read next: `minivllm/streams.py`; `minivllm/processes.py`, which starts other programs.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from contextlib import suppress
from itertools import pairwise

from minivllm.streams import open_streams

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself takes longer than all of this
    from types import FrameType, TracebackType
    from typing import Any, NoReturn

PACKAGES = ("kernels_numba", "lessons", "minivllm", "viz")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
WORDS: dict[int, bytes] = {signal.SIGINT: b"interrupted\n", signal.SIGTERM: b"terminated\n"}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
SHOW_CURSOR = b"\x1b[?25h"

_owner = 0
"""The process that is guarded: one that was forked from it has no last words."""
_stopped_by = 0
"""The signal that stops it; 0 until one has come."""


def guard_our_program() -> None:
    """Install all of this if the running program is one of ours."""
    global _owner
    if _owner or not is_ours(sys.argv, sys.orig_argv):
        return
    import threading

    if threading.current_thread() is not threading.main_thread():  # of `streamlit run viz/app.py`
        return
    _owner = os.getpid()
    open_streams()
    _check_folder()
    for number in SIGNALS:
        # What is ignored stays ignored: `nohup`, or a job in the background of a script.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop if number in WORDS else _hang_up)
    sys.excepthook = _uncaught
    sys.unraisablehook = _ignored
    atexit.register(_last_words)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by `become`


def _check_folder() -> None:
    """Where the current folder is gone, every relative path fails, each library in its own way."""
    try:
        os.getcwd()
    except OSError:
        with suppress(OSError):
            os.write(2, b"error: the folder in which this runs is gone: cd to another one\n")
        os._exit(2)


def is_ours(arguments: list[str], original: list[str]) -> bool:
    """Is this a program of ours?

    Args:
        arguments: `sys.argv`. While the packages above a module are imported, `python -m` leaves "-m" in it.
        original: `sys.orig_argv`, with the options of Python itself.
    """
    program = arguments[0] if arguments else ""
    if program == "-m":
        modules = [value for option, value in pairwise(original) if _is_dash_m(option)]
        return bool(modules) and modules[0].partition(".")[0] in PACKAGES
    # Processes of `multiprocessing` have their parent's `sys.argv`, but were started in another way.
    if program not in original:
        return False
    if os.path.basename(program).removesuffix(".exe") == "minivllm":
        return True
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    above = os.path.realpath(program).removeprefix(root + os.sep)
    return above.split(os.sep)[0] in PACKAGES


def _is_dash_m(option: str) -> bool:
    return option.startswith("-") and not option.startswith("--") and option.endswith("m")


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds the program; a second one, or one in a forked process, ends it here."""
    global _stopped_by
    if _stopped_by or os.getpid() != _owner:
        _leave(number)
    _stopped_by = number
    raise SystemExit(128 + number)


def _hang_up(number: int, frame: FrameType | None) -> None:
    """The terminal is closed: the same as SIGTERM, which servers answer, too."""
    signal.raise_signal(signal.SIGTERM)


def _leave(number: int) -> NoReturn:
    global _stopped_by
    _stopped_by = number
    _last_words()
    os._exit(128 + number)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception that nothing has caught: `SystemExit` in its place sets the exit code."""
    global _stopped_by
    if issubclass(kind, KeyboardInterrupt):
        _stopped_by = signal.SIGINT
        raise SystemExit(128 + signal.SIGINT)
    if issubclass(kind, BrokenPipeError):
        _drop_output()
        raise SystemExit(1)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        _say_lost(error)
        _drop_output()
        raise SystemExit(1)
    sys.__excepthook__(kind, error, trace)


def _say_lost(error: OSError) -> None:
    with suppress(OSError):
        os.write(2, f"error: the output cannot be written: {os.strerror(error.errno or 0)}\n".encode())


def _ignored(lost: Any) -> None:
    """An exception that Python cannot pass on, as in a destructor: there, the stop would be lost."""
    if issubclass(lost.exc_type, SystemExit | KeyboardInterrupt):
        _leave(_stopped_by or signal.SIGINT)
    if not issubclass(lost.exc_type, BrokenPipeError):
        sys.__unraisablehook__(lost)


def _last_words() -> None:
    if os.getpid() != _owner:
        return
    lost: Exception | None = None
    try:
        sys.stdout.flush()
    except (OSError, ValueError, RuntimeError) as error:  # no reader, closed, interrupted within a write
        lost = error
        _drop_output()
    if _stopped_by in WORDS:
        above = b"\n" + SHOW_CURSOR if os.isatty(2) else b""  # the terminal has written ^C
        with suppress(OSError):
            os.write(2, above + WORDS[_stopped_by])
    elif isinstance(lost, OSError) and lost.errno in DISK_ERRORS:
        _say_lost(lost)
        os._exit(1)  # nothing else is left to be done, and nothing else changes the exit code here


def _drop_output() -> None:
    """Nothing more goes to standard output, so that nothing fails when it is closed."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
