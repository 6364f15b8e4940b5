"""Folders for a while: each goes with its block or its process, and what a killed one left, with the next.

A process that is killed removes nothing, and a server that always ends in this way would fill the disk. So
a process that makes a folder here first removes those whose owners are gone:

    minivllm-uploads-x3k9_w2a.scratch     locked; the system lets go of the lock when the owner ends
    minivllm-bench-0qd81k7z.scratch       no process holds it: removed

Nothing else is touched: no other name, no link, no folder of another user. A lock says more than a process's
number, which may be another's by now, or of another container that shares the disk.

On Windows, which has no such locks, what a killed process left stays.
"""

from __future__ import annotations

import os
import re
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from types import TracebackType

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".scratch"
NAME = re.compile(r"minivllm-[a-z]+-[a-z0-9_]+\.scratch")


class ScratchFolder:
    """A folder that does not outlive its process for long: `path`, until `remove` or the end of the block.

    Args:
        purpose: one word, for its name.
        where: the folder that it lies in; if not given, the usual one for temporary files.
    """

    def __init__(self, purpose: str, where: str | Path | None = None) -> None:
        place = Path(where or gettempdir())
        remove_abandoned(place)
        self.path, lock = _make(purpose, place)
        self.remove = weakref.finalize(self, _remove, self.path, lock)
        """Remove it, with all that lies in it. A second time it does nothing."""

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def remove_abandoned(place: Path) -> None:
    """Remove the folders of ours that lie there and that no process holds any more."""
    if fcntl is None:
        return
    with suppress(OSError):
        for entry in os.scandir(place):
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):  # another removes it at this moment
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    if path.stat().st_uid == os.getuid() and (lock := _try_to_lock(path)) is not None:
        _remove(path, lock)


def _make(purpose: str, place: Path) -> tuple[Path, int | None]:
    """A new folder, and what holds it. Another process may take it for abandoned before it is locked."""
    while True:
        path = Path(mkdtemp(SUFFIX, f"minivllm-{purpose}-", place))
        if fcntl is None:
            return path, None
        with suppress(OSError):
            lock = _try_to_lock(path)
            if lock is not None and path.exists():
                return path, lock


def _try_to_lock(path: Path) -> int | None:
    """The file that holds a folder as long as it is open; None if another process has it."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # not inherited by programs that we start
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number


def _remove(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)
