"""Where compiled code is kept between runs.

Numba keeps it beside the source and takes it for current as long as *that file* is unchanged. Our kernels are
compiled into each other across files, so a change in one would leave the others as they were. Here the folder
has a name made from all of them together: change any, and everything is compiled anew.

    NUMBA_CACHE_DIR, or the user's folder for caches  /  minivllm  /  kernels-<hash of the sources>

If none of these folders can be written, a temporary one is used, and a warning says so.

Numba looks whether a function is kept, compiles it if not, and keeps it. Two processes that do so at once
could take the same file, or call each other's code by names that only one of them knows (seen: crashes). So
one at a time compiles or loads here, and the others then find what it has compiled.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


_compile = Dispatcher.compile
_num_entered = 0  # compiling a function compiles those that it calls; guarded by Numba's own lock


def _compile_alone(self: Any, signature: Any) -> Any:
    """As Numba loads or compiles a function, while no other process does so with the same folder."""
    global _num_entered
    folder = self._cache.cache_path
    with global_compiler_lock:
        if fcntl is None or folder is None or _num_entered:
            return _compile(self, signature)
        Path(folder).mkdir(parents=True, exist_ok=True)
        with open(Path(folder) / "compiling.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or its process dies
            _num_entered += 1
            try:
                return _compile(self, signature)
            finally:
                _num_entered -= 1


Dispatcher.compile = _compile_alone  # type: ignore[assignment, method-assign]


def cache_folder() -> Path:
    """A folder that can be written, the same for the same sources if possible."""
    folder = _user_caches() / "minivllm" / f"kernels-{source_hash()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        temporary = Path(mkdtemp(prefix="minivllm-kernels-"))
        logger.warning(
            "compiled code cannot be kept in %s (%s): it goes to %s, and the next start compiles again; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            folder,
            error.strerror or error,
            temporary,
        )
        return temporary


def source_hash() -> str:
    """Of all modules in this package."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _user_caches() -> Path:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Functions decorated meanwhile keep their compiled code in this folder."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before
