"""Numba's cache, made safe: several processes, damaged files, full disks.

Numba looks whether a function is kept, compiles it if not, and keeps it. It believes every file that it
finds, and processes that compile at once may choose the same file for different code (seen: crashes). Here

    files are sealed     a damaged one counts as missing, and what cannot be written is not kept
    one compiles         a function called from Python is compiled, with all that it calls, by one process
                         at a time; the others wait, say so, and find it
    code has its key     so reading needs no lock: code for other types is never taken for what was wanted
    parts are not kept   a function that only compiled code calls is in that code (`parts.py`), unless it is
                         a unit, which is kept by itself (`units.py`)

Read next: `kernels_numba/kept_code.py`, which says where files are and what sealed means.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numba
from numba.core import dispatcher as numba_dispatcher
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.event import Listener

from kernels_numba.cpu.parts import (
    compiled_for,
    compiling,
    compiling_part,
    forget_part,
    is_outermost,
    is_part,
    set_environments,
)
from kernels_numba.cpu.units import is_unit, note_unit, units_of
from kernels_numba.kept_code import read_sealed, say_damaged, write_sealed
from minivllm.uncollected import without_collections

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_locked: set[Path] = set()
"""Folders that this process keeps others from writing to."""


class SealedFiles(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one function: an index, which names a file for each key, and those files."""

    def load(self, key: Any) -> Any:
        name = self._load_index().get(key)
        kept = None if name is None else _read(self._data_path(name))
        return kept[1] if kept is not None and kept[0] == key else None

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def paths(self, key: Any) -> list[Path]:
        """The files that `load` reads."""
        name = self._load_index().get(key)
        return [] if name is None else [Path(self._index_path), Path(self._data_path(name))]

    def _load_index(self) -> dict[Any, str]:
        stamp, names = _read(self._index_path) or (None, {})
        return names if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        write_sealed(Path(self._index_path), self._dump((self._source_stamp, overloads)))

    def _save_data(self, name: str, data: Any) -> None:
        write_sealed(Path(self._data_path(name)), self._dump(data))


def _read(path: str) -> Any:
    """What a sealed file holds; None if there is none that can be read."""
    try:
        return pickle.loads(read_sealed(Path(path)))
    except FileNotFoundError:
        return None
    except Exception:  # damaged, or an object of a class that is gone
        say_damaged(Path(path).parent)
        return None


class KernelCache(FunctionCache):  # type: ignore[misc]
    """The compiled code of one function. Whatever is wrong with it, the function is compiled."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self.files = SealedFiles(self._cache_path, self._impl.filename_base, stamp)
        self._cache_file = self.files

    def key(self, signature: Any, target: Any) -> Any:
        """Of the function, compiled for these types on this processor."""
        return self._index_key(signature, target.codegen())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
            if found is not None:
                # What is compiled around it must ask for the same when it is loaded in its turn: for threads,
                # say. Numba forgets that, and the code then calls what is not there.
                found.library._reload_init.update(found.reload_init)
            return found
        except Exception:  # whole, but not code that can be loaded here
            say_damaged(Path(self._cache_path))
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if is_part(data):
            return
        try:
            super().save_overload(sig, data)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("compiled code cannot be kept in %s (%s)", self._cache_path, reason)
            self.disable()


_compile = Dispatcher.compile


def _load_or_compile(self: Any, signature: Any) -> Any:
    """As Numba loads or compiles a function; if it is one of ours, no other process compiles meanwhile."""
    with global_compiler_lock:
        if not is_outermost() and not is_unit(self):
            with compiling_part(self):
                return _compile(self, signature)
        forget_part(self, signature)
        if isinstance(self._cache, KernelCache) and compiled_for(self, signature) is None:
            return _load_or_compile_kernel(self, signature)
        return _compile(self, signature)


def _load_or_compile_kernel(kernel: Any, signature: Any) -> Any:
    """A function of ours that Python calls, or a unit, and as parts of it all that it calls."""
    cache = kernel._cache
    key, folder = cache.key(signature, kernel.targetctx), Path(cache.cache_path)
    with nullcontext() if cache.files.load(key) is not None else compiling_alone(folder):
        with compiling(kernel), without_collections():
            entry = _compile(kernel, signature)
        compiled = compiled_for(kernel, signature)
        set_environments(compiled)
        if is_unit(kernel):
            note_unit(kernel, tuple(compiled.signature.args))
        return entry


def prepare(function: Any, *arguments: Any) -> set[Path]:
    """Compile a function of ours for such arguments, or find it, and do not call it.

    Returns the files that a call needs: its own and those of its units.
    """
    kinds = tuple(map(function.typeof_pyval, arguments))
    function.compile(kinds)
    return _files_of(function, kinds)


def _files_of(function: Any, kinds: tuple[Any, ...]) -> set[Path]:
    cache, compiled = function._cache, compiled_for(function, kinds)
    own = cache.files.paths(cache.key(kinds, function.targetctx))
    files = set(own or [Path(cache.cache_path) / "not kept"])
    return files.union(*(_files_of(needed.function, needed.types) for needed in units_of(compiled)))


Dispatcher.compile = _load_or_compile  # type: ignore[assignment, method-assign]


@contextmanager
def compiling_alone(folder: Path) -> Iterator[None]:
    """While this lasts, no other process compiles code that is kept in the folder."""
    if folder in _locked:
        yield
        return
    with ExitStack() as stack:  # a lock is let go when its file is closed, or its process dies
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _wait_for(stack.enter_context(open(folder / "compiling.lock", "ab")))
        except OSError as error:  # compiled twice is better than not at all
            logger.info("no lock in %s: %s", folder, error)
        _locked.add(folder)
        stack.callback(_locked.remove, folder)
        yield


def _wait_for(lock: IO[bytes]) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("another process is compiling the same code; this one waits for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


class Announcement(Listener):  # type: ignore[misc]
    """Calls a function when the first of some functions is compiled, for which Numba's events are asked."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce: Callable[[], None] | None = announce

    def on_start(self, event: Any) -> None:
        if self._announce is not None:
            self._announce()
        self._announce = None

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Functions decorated meanwhile keep their compiled code in this folder."""
    dispatchers: Any = numba_dispatcher
    before = numba.config.CACHE_DIR, dispatchers.FunctionCache
    numba.config.CACHE_DIR, dispatchers.FunctionCache = str(folder), KernelCache
    try:
        yield
    finally:
        numba.config.CACHE_DIR, dispatchers.FunctionCache = before
