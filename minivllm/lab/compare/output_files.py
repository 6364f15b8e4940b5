"""What each comparison writes if it is asked to: all its numbers as JSON, and a picture.

Read next: `commands.py`.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivllm.files import write_file
from minivllm.terminal import Console
from minivllm.validation import check_output_files


def check_files(*, json: Path | None, plot: Path | None, **others: Path | None) -> None:
    """Before the work, and not after it: raise `ValueError` unless all of them can be written."""
    from minivllm.lab.drawing import check_picture

    if plot is not None:
        check_picture(plot)
    check_output_files(json=json, plot=plot, **others)


def write_files(
    console: Console,
    *,
    json: Path | None,
    data: Callable[[], Any],
    plot: Path | None,
    draw: Callable[[Path], None],
) -> None:
    """Write what was asked for, and say where it is.

    Args:
        data: makes everything that goes into the JSON file.
        draw: draws the picture.
    """
    if json is not None:
        write_file(json, json_module.dumps(data(), indent=1), "json")
        console.print(f"Everything is in {json}.", highlight=False)
    if plot is not None:
        draw(plot)
        console.print(f"The picture is in {plot}.", highlight=False)
