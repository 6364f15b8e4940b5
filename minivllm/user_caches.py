"""The user's folder for what can be made again: compiled kernels, calibrated weights.

Each system has its own place for such files, which may be deleted at any time.

Source: the XDG Base Directory Specification; Apple's and Microsoft's guides for applications.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_caches() -> Path:
    """The folder, which may not be there yet."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")


def _home() -> Path:
    """A user without a home, as in many containers, has the null device, in which no folder can be made."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)
