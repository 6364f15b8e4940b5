"""Where compiled code is kept between runs.

Numba keeps it beside the source and takes it for current as long as *that file* is unchanged. Our kernels are
compiled into each other across files, so a change in one would leave the others as they were. Here the folder
has a name made from all of them together: change any, and everything is compiled anew.

    NUMBA_CACHE_DIR, or the user's folder for caches  /  minivllm  /  kernels-<hash of the sources>

If none of these folders can be written, a temporary one is used, and a warning says so.

Numba looks up which file is free, and then writes it: two processes that compile at once could take the same,
and one of them would later run the other's code (seen: a crash). So here they save one after the other.
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
from numba.core.caching import IndexDataCacheFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


_save = IndexDataCacheFile.save


def _save_alone(self: Any, key: Any, data: Any) -> None:
    """As Numba saves compiled code, while no other process does."""
    if fcntl is None:
        _save(self, key, data)
        return
    with open(Path(self._cache_path) / "saving.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _save(self, key, data)


IndexDataCacheFile.save = _save_alone


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
