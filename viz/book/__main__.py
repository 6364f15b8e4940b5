"""`python -m viz.book --out site/`: the book as a static site (`minivllm book` starts this)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lessons.catalogue import find_lesson, lessons
from minivllm.files import CannotWrite, check_new_folder
from viz.book.site import make_book


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the book; 1 if there is no room for it, 2 if it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="minivllm book",
        description="Write lessons, glossary and figures as one static site, with every picture playing.",
    )
    parser.add_argument("--out", type=Path, default=Path("site"), help="a new or an empty folder (site)")
    parser.add_argument(
        "--lesson", action="append", default=[], help="only this one, by number or name; may be repeated"
    )
    parser.add_argument(
        "--traces", type=Path, help="traces that the walkthroughs have left; they are run if it is left out"
    )
    given = parser.parse_args(arguments)
    try:
        chosen = [find_lesson(name) for name in given.lesson] or list(lessons())
        out = check_new_folder(given.out, "out")
        if given.traces is not None and not given.traces.is_dir():
            raise ValueError(f"traces: there is no folder {str(given.traces)!r}")
        size = make_book(out, chosen, given.traces)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, CannotWrite) else 2
    print(f"Wrote {out / 'index.html'} ({size / 1e6:.1f} MB): open it, or put the folder on any static host.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
