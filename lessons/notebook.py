"""A walkthrough as a notebook: cells of a py:percent script become cells of an `.ipynb` file.

    # %% [markdown]        a cell of text: the comments that follow, without their `# `
    # %%                   a cell of code

Editors that know py:percent open the script itself; this is for all the others.

Source: the notebook format, version 4.5 (nbformat's documentation).
"""

from __future__ import annotations

import json
from typing import Any


def as_notebook(script: str) -> str:
    """The notebook that belongs to a script."""
    cells = [_cell(number, kind, lines) for number, (kind, lines) in enumerate(_split(script))]
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": cells,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _split(script: str) -> list[tuple[str, list[str]]]:
    """`(kind, lines)` of each cell."""
    parts: list[tuple[str, list[str]]] = []
    for line in script.splitlines():
        if line.startswith("# %%"):
            parts.append(("markdown" if "[markdown]" in line else "code", []))
        elif parts:
            parts[-1][1].append(line)
    return [(kind, _trimmed(lines)) for kind, lines in parts]


def _trimmed(lines: list[str]) -> list[str]:
    text = "\n".join(lines).strip("\n")
    return text.split("\n") if text else []


def _cell(number: int, kind: str, lines: list[str]) -> dict[str, Any]:
    if kind == "markdown":
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    source = [line + "\n" for line in lines[:-1]] + lines[-1:]
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell
