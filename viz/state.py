"""What the dashboard keeps from one start to the next: which traces were opened, and runs made on its page.

    ~/.local/state/minivllm/        or below $XDG_STATE_HOME, or where $MINIVLLM_STATE says
        recent.json                 the traces that were opened last, the newest first
        runs/                       what the page "Run" has recorded, the newest few

Where nothing can be kept, nothing is kept, and nothing fails for it.

Read next: `loading.py`, which offers the recent ones; `run_process.py`, which records runs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from minivllm.files import CannotWrite, write_file

ENVIRONMENT = "MINIVLLM_STATE"
MOST_RECENT = 20
MOST_RUNS = 40


class Recent(NamedTuple):
    """A trace that was opened."""

    path: Path
    is_there: bool


class _Kept(msgspec.Struct):
    recent: list[str] = []


def state_folder() -> Path:
    """Where all of it lies; it need not exist."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    above = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(above)) / "minivllm"


def run_folder() -> Path:
    """Where runs made on the page lie."""
    return state_folder() / "runs"


def recent_paths() -> list[Path]:
    """The traces that were opened last, the newest first, whether they are still there or not."""
    try:
        kept = msgspec.json.decode((state_folder() / "recent.json").read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):  # none yet, or damaged: it begins anew
        return []
    return [Path(name) for name in kept.recent if "\0" not in name][:MOST_RECENT]


def recent() -> list[Recent]:
    """The same, with what has become of them."""
    return [Recent(path, path.is_file()) for path in recent_paths()]


def note_recent(path: Path) -> None:
    """A trace was opened."""
    place = path.resolve()
    kept = [place, *(other for other in recent_paths() if other != place)][:MOST_RECENT]
    _keep(kept)


def _keep(paths: list[Path]) -> None:
    content = msgspec.json.encode(_Kept([os.fsencode(path).decode(errors="replace") for path in paths]))
    with suppress(CannotWrite, OSError):
        state_folder().mkdir(parents=True, exist_ok=True)
        write_file(state_folder() / "recent.json", content, "state")


def new_run_path(words: str) -> Path:
    """A name for the next run, `007-fcfs.jsonl`; the oldest runs make room.

    Raises:
        ValueError: the folder cannot be written to.
    """
    folder = run_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runs = sorted(folder.glob("[0-9]*.jsonl"), key=_number)
        for old in runs[: max(0, len(runs) - MOST_RUNS + 1)]:
            old.unlink()
        number = _number(runs[-1]) + 1 if runs else 1
        path = folder / f"{number:03}-{words}.jsonl"
        path.touch()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to: {error.strerror}") from error
    return path


def _number(path: Path) -> int:
    digits = path.name.split("-")[0]
    return int(digits) if digits.isdecimal() else 0
