"""The guard: whatever the learner's code does, the judge gets control back and can say what happened.

    loops for ever     an exception is thrown into it after some seconds, again and again until it ends
    prints             kept, to be shown with the story in which it happened; too much is cut
    sys.exit           is an exception like others
    reads from stdin   there is nothing to read
    takes all memory   `MemoryError`, an exception like others, before this machine has none left

The seconds are those of the processor, which a busy machine does not make fewer. What Python cannot interrupt
(a sleep, a loop in C) or survive (a crash of the interpreter) is noticed by the runner, which watches this
process from outside.

Read next: `refusals.py`, what the code may not use; `playing.py`.
"""

from __future__ import annotations

import ctypes
import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from time import process_time

import psutil

from lessons.refusals import refusing

MOST_PRINTED = 2000
MOST_LOOKS = 1_000_000
LOOK_SECONDS = 0.05
"""How often the time is looked at."""
MOST_BYTES = 2 * 2**30
"""That a solution may take; the largest stories need some hundred megabytes."""


def bound_memory() -> None:
    """From here on this process can take `MOST_BYTES` more, where the system can hold it to that."""
    if sys.platform != "linux":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = psutil.Process().memory_info().data + MOST_BYTES
    if most == resource.RLIM_INFINITY or wanted < most:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))


def too_much_memory(error: MemoryError) -> str:
    """What a `MemoryError` means here. numpy says of which array; Python says nothing."""
    own = f" ({error})" if str(error) else ""
    most = f"{MOST_BYTES / 2**30:g} GiB"
    return f"MemoryError: it takes more than {most}. Does something grow without an end?{own}"


class TooLong(BaseException):
    """Not an `Exception`, so that the code which loops cannot catch it by accident."""


class Printed(io.StringIO):
    """Keeps the beginning of what is printed, and counts the rest."""

    def write(self, text: str) -> int:
        room = MOST_PRINTED - self.tell()
        if room > 0:
            super().write(text[:room])
        return len(text)


@contextmanager
def guarded(seconds: float, printed: io.StringIO) -> Iterator[None]:
    """Run a block with a time limit, without its prints, and without what it may not use.

    Args:
        seconds: of the processor's time, of all threads of this process.

    Raises:
        TooLong: it did not end in time.
    """
    watch = _Watch(seconds)
    watch.start()
    try:
        with refusing(), redirect_stdout(printed), redirect_stderr(printed):
            yield
    finally:
        watch.stop()


class _Watch:
    """Throws `TooLong` into the thread that made it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread = threading.get_ident()
        self._has_thrown = False
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        ends = process_time() + self._seconds
        while not self._ended.wait(LOOK_SECONDS):
            if process_time() < ends:
                continue
            with self._lock:
                if self._ended.is_set():
                    return
                self._has_thrown = True
                _throw(self._thread, TooLong)  # again and again: a bare `except:` may have swallowed it

    def stop(self) -> None:
        """Nothing is thrown any more. To be called by the thread that is watched."""
        with self._lock:
            self._ended.set()
        if self._has_thrown:
            _catch_what_is_on_its_way(self._thread)


def _throw(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _catch_what_is_on_its_way(thread: int) -> None:
    """Throw once more, in place of what this thread has not seen yet, and catch that.

    To take an exception back (to throw nothing) would leave Python's mark that something has come, for ever:
    each call would look for it, and under a tracer Python 3.11 looks for it without an end.
    """
    try:
        _throw(thread, TooLong)
        for _ in range(MOST_LOOKS):  # it comes with one of the next instructions
            pass
    except TooLong:
        pass
