"""Which files a page may open: those below the folders that the dashboard's command named, and uploads.

A link can name any file (`?trace=…`), and links come from anywhere. So a page opens a trace only if it lies,
with all symbolic links resolved, below one of these:

    minivllm dashboard TRACE       the folder of the trace; without one, the folder of the command
    --folder FOLDER                that one, too
    walkthroughs and your work     where the lessons write their traces and stories
    a file that you uploaded       a folder that is made for uploads, and removed at the end
    samples, and runs made here    the dashboard's own folder (`state.py`)
    a trace that you opened        by one of these rules, at an earlier start: a recent one

Read next: `loading.py`, which asks here before it opens anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from lessons.walkthroughs import trace_folder
from lessons.work import work_folder
from minivllm.scratch import ScratchFolder
from minivllm.trace.reader import TraceError
from viz.state import recent_paths, run_folder

ENVIRONMENT = "MINIVLLM_FOLDERS"
"""A JSON list, because every character that could part paths may be part of one."""
LONGEST_QUOTE = 300


def as_variable(folders: Iterable[Path]) -> str:
    """Folders for the environment of the server."""
    return json.dumps([str(folder.resolve()) for folder in folders])


def open_folders() -> list[Path]:
    """All folders below which files may be opened."""
    named = os.environ.get(ENVIRONMENT)
    folders = [Path(name) for name in json.loads(named)] if named else [Path()]
    return [
        folder.resolve()
        for folder in (*folders, trace_folder(), work_folder(), upload_folder(), run_folder())
    ]


@cache
def _uploads() -> ScratchFolder:
    return ScratchFolder("uploads")


def upload_folder() -> Path:
    """Where uploaded files are kept until the server ends."""
    return _uploads().path


def check_may_open(path: Path) -> None:
    """Is this file one of those that may be opened? It need not exist.

    Raises:
        TraceError: it is not, or it is no path at all.
    """
    shown = str(path)[:LONGEST_QUOTE]
    try:
        place = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
        raise TraceError(f"{shown} cannot be read: {error}") from error
    if not any(place.is_relative_to(folder) for folder in open_folders()) and place not in recent_paths():
        raise TraceError(
            f"{shown} lies in no folder that this dashboard was started for: upload it, or start "
            f"`minivllm dashboard {shown}`, or add `--folder` with its folder"
        )
