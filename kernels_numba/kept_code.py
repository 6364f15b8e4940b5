"""Compiled code between two runs: where it is kept, whether it is all there, and whether it is undamaged.

    NUMBA_CACHE_DIR, or the user's folder for caches  /  minivllm  /  kernels-<hash>  /  float32-step.complete

The hash is of all that compiled code depends on: the sources of all kernels together, because they are
compiled into each other across files, the versions of compiler and Python, and the processor. Change any, and
everything is compiled anew, in another folder. If none of these folders can be written, a temporary one is
used, and a warning says so.

A file is *sealed*: it begins with a checksum of the rest, and appears under its name when it is whole.
Machine code that was cut or overwritten would crash the process or, worse, compute something else. Here it is
found out before it is loaded, and counts as missing.

What a model runs is a *kind* of code, such as "float32-step". Its `.complete` names the files that it needs.

Nothing here needs Numba, so that an engine can ask in a millisecond. Read next: `cpu/cache.py`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

from minivllm.scratch import ScratchFolder
from minivllm.user_caches import user_caches

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpu"
CPU_INFO = Path("/proc/cpuinfo")
CHOSEN_BY_USER = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX", "NUMBA_OPT")
"""Variables that change what Numba compiles."""
CHECKSUM_BYTES = sha256().digest_size
_instead: list[ScratchFolder] = []
"""Of this process, whose usual folder cannot be written: they go when it ends."""


# ---- the folder --------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """A folder that can be written, the same for the same sources on the same machine if possible."""
    folder = usual_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        _instead.append(ScratchFolder("kernels"))
        temporary = _instead[-1].path
        logger.warning(
            "compiled code cannot be kept in %s (%s): it goes to %s, and the next start compiles again; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            folder,
            error.strerror or error,
            temporary,
        )
        return temporary


def usual_folder() -> Path:
    """Where compiled code is kept, if that folder can be written."""
    where = str(SOURCES)  # Numba keeps apart what lies in different folders
    whole = sha256("\n".join((source_hash(), where, *_surroundings())).encode())
    caches = Path(os.environ.get("NUMBA_CACHE_DIR") or user_caches())
    return caches / "minivllm" / f"kernels-{whole.hexdigest()[:16]}"


def source_hash() -> str:
    """Of all modules in the package of kernels."""
    digest = sha256()
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def _surroundings() -> tuple[str, ...]:
    """Compiler, Python and processor."""
    versions = []
    for name in ("numba", "llvmlite"):
        try:
            versions.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            versions.append("none")
    info = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.is_file() else []
    known = [line for line in info if line.startswith(("model name", "flags", "Features"))]
    chosen = [f"{name}={os.environ.get(name, '')}" for name in CHOSEN_BY_USER]
    machine = (sys.platform, platform.machine(), platform.processor())
    return (*versions, sys.version, *machine, *sorted(set(known)), *chosen)


# ---- sealed files ------------------------------------------------------------------------------------


class DamagedError(Exception):
    """A file is not what was written, or cannot be read."""


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file, which appears under its name when it is whole. `OSError` if it cannot be written."""
    fresh = path.with_name(f"{path.name}.{uuid4().hex[:16]}.tmp")
    try:
        fresh.write_bytes(sha256(content).digest() + content)
        if path.is_dir():  # no file of ours, and in its place
            path.rename(path.with_name(f"{path.name}.{uuid4().hex[:16]}.damaged"))
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def read_sealed(path: Path) -> bytes:
    """What was written. `FileNotFoundError` if nothing was; `DamagedError` if it is no longer that."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.name}: {error.strerror}") from None
    checksum, content = whole[:CHECKSUM_BYTES], whole[CHECKSUM_BYTES:]
    if sha256(content).digest() != checksum:
        raise DamagedError(f"{path.name} is not what was written")
    return content


@cache
def say_damaged(folder: Path) -> None:
    """Once for each folder: what is damaged there is compiled anew."""
    logger.warning("compiled code in %s is damaged: it is compiled anew", folder)


# ---- kinds of code that are complete -----------------------------------------------------------------


def mark_complete(folder: Path, kind: str, files: Iterable[Path]) -> None:
    """From now on this kind of code is there: it needs these files, all of them below the folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    write_sealed(folder / f"{kind}.complete", json.dumps(names).encode())


def is_complete(folder: Path, kind: str) -> bool:
    """Are all files of this kind there, and undamaged? Reading them takes some milliseconds."""
    try:
        for name in json.loads(read_sealed(folder / f"{kind}.complete")):
            read_sealed(folder / name)
    except DamagedError:
        say_damaged(folder)
        return False
    except FileNotFoundError:
        return False
    return True


def complete_kinds(folder: Path) -> list[str]:
    """The kinds that are complete."""
    kinds = sorted(path.stem for path in folder.glob("*.complete"))
    return [kind for kind in kinds if is_complete(folder, kind)]
