"""The pictures of the lessons' texts: `python -m viz.lesson_pictures [LESSON …]`.

A drawing made by hand is wrong after the next change. So each walkthrough says which figures its text shows,
and this draws them from the traces that the walkthrough itself has just written, once in each language:

    TRACES = ("04_paging.jsonl",)
    PICTURES = {"table.svg": ("block_table", 0, -1)}                       figure, number of the trace, step
    PICTURES = {"table.svg": ("block_table", 0, 12, {"request": "0"})}     and options (see `pictures.py`)

A negative step counts from the end. A comparison takes the trace of that number and the next one. The
English text has `table.svg`, the Chinese one `table.zh.svg`: of one run, so their numbers are the same.

Read next: `pictures.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lessons.catalogue import Lesson, find_lesson, lessons
from lessons.walkthroughs import picture_file, run_walkthrough
from minivllm.scratch import ScratchFolder
from viz.language import LANGUAGES, speaking
from viz.pictures import draw, find_figure


def make_pictures(lesson: Lesson) -> list[Path]:
    """Run a lesson's walkthrough, and draw what its texts show, beside them.

    Raises:
        ValueError: the walkthrough fails, or a picture cannot be drawn, and why.
    """
    constants = lesson.constants()
    wanted, names = constants.get("PICTURES", {}), constants.get("TRACES", ())
    where = f"{lesson.name}/walkthrough.py"
    for file, entry in wanted.items():  # before minutes are spent on running it
        _checked(f"{where}, picture {file}", entry, names)
    if not wanted:
        return []
    with ScratchFolder("pictures") as folder:
        run_walkthrough(lesson.walkthrough, folder)
        drawn = {}
        for file, entry in wanted.items():
            for language in LANGUAGES:
                try:
                    with speaking(language):
                        svg = _draw(entry, [folder / name for name in names])
                except ValueError as error:
                    raise ValueError(f"{where}, picture {file}: {error}") from error
                drawn[picture_file(file, language)] = svg
    for file, svg in drawn.items():
        (lesson.folder / file).write_text(svg + "\n", encoding="utf-8")
    return [lesson.folder / file for file in drawn]


def _checked(where: str, entry: Any, names: Sequence[str]) -> None:
    if not isinstance(entry, tuple) or len(entry) not in (3, 4):
        raise ValueError(
            f"{where}: must be (figure, number of the trace, step), perhaps with options, got {entry!r}"
        )
    figure, number, _, options = (*entry, {})[:4]
    try:
        count = find_figure(figure, options).num_traces
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if number not in range(len(names) - count + 1):
        raise ValueError(
            f"{where}: {figure} takes {count} of TRACES from number {number}; TRACES has {len(names)}"
        )


def _draw(entry: Any, paths: Sequence[Path]) -> str:
    name, number, step, options = (*entry, {})[:4]
    return draw(name, paths[number : number + find_figure(name, options).num_traces], step, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and say what; 2 if something could not be drawn."""
    parser = argparse.ArgumentParser(
        prog="python -m viz.lesson_pictures", description="Draw the pictures of the lessons' texts."
    )
    parser.add_argument("lesson", nargs="*", help="number or name; all that have a walkthrough if left out")
    given = parser.parse_args(arguments)
    failed = False
    try:
        chosen = [find_lesson(name) for name in given.lesson]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for lesson in chosen or lessons():
        if not lesson.walkthrough.is_file():
            print(f"{lesson.name} has no walkthrough", file=sys.stderr)
            failed |= bool(given.lesson)
            continue
        try:
            drawn = make_pictures(lesson)
            print(
                "\n".join(f"{lesson.name}/{path.name}" for path in drawn) or f"{lesson.name} has no PICTURES"
            )
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
