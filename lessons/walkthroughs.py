"""Where walkthroughs put their traces: `minivllm-out/lessons/`, below the folder in which they are run.

A `walkthrough.py` is a script, a notebook (py:percent: `# %%` begins a cell), and what the Lessons page of
the dashboard plays. It says of itself, as constants:

    TRACES     the files that it writes, by `trace_path(...)`
    PAGE       the dashboard page that shows the first of them: "kv_pool", "compare", …
    PICTURES   {"table.svg": (figure, number of the trace, step)}: the pictures of the text, made by
               `python -m viz.lesson_pictures`, in each language: `table.svg`, `table.zh.svg`
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from minivllm.processes import child_command, python_variables

ENVIRONMENT = "MINIVLLM_LESSON_TRACES"
TIMES = "MINIVLLM_LESSON_TIMES"


def trace_folder() -> Path:
    """Where all of them go."""
    return Path(os.environ.get(ENVIRONMENT) or "minivllm-out/lessons")


def times(usual: int) -> int:
    """How often something is measured, so that the least one counts; less often where a test says so."""
    return min(usual, int(os.environ.get(TIMES) or usual))


def trace_path(name: str) -> Path:
    """Where the trace `name` goes; the folder is made."""
    folder = trace_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def picture_file(name: str, language: str) -> str:
    """The file of one of PICTURES in a language: "table.svg" in English, "table.zh.svg" in Chinese."""
    path = Path(name)
    return name if language == "en" else f"{path.stem}.{language}{path.suffix}"


def run_walkthrough(script: Path, folder: Path) -> str:
    """Run a lesson's walkthrough as a program of its own; what it writes goes into the folder.

    Returns:
        What it printed.

    Raises:
        ValueError: it failed, and its last words.
    """
    done = subprocess.run(
        child_command(str(script)),
        cwd=folder,
        env=python_variables(**{ENVIRONMENT: str(folder)}),
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise ValueError(f"{script.parent.name}/{script.name} failed:\n{words}")
    return str(done.stdout)
