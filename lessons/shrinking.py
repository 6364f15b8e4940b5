"""Shortening a large story that broke a property: parts of its lists are left out while it stays broken.

    stories = shorter_stories(case)
    case = next(stories)                 the story itself
    case = stories.send(it_is_broken)    a shorter one, until there is none

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), `ddmin`, with the
halves that are left out getting smaller and smaller.

Read next: `playing.py`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

SHRINK_SECONDS = 4.0
"""From the beginning of the first story that broke the property: one that never ends leaves time for few."""


def shorter_stories(case: Any) -> Generator[Any, bool | None, None]:
    """The case, then shorter ones that differ from the last broken one in one list; told what each did.

    A case is a dictionary whose longer lists hold what happens; what else is in it stays.
    """
    is_broken = yield case
    if not is_broken or not isinstance(case, dict):
        return
    for name in [name for name, value in case.items() if isinstance(value, list)]:
        part = len(case[name]) // 2
        while part:
            # From the end: what comes after the fault is left out first.
            start = len(case[name]) - part
            while start >= 0:
                left = [*case[name][:start], *case[name][start + part :]]
                is_broken = yield {**case, name: left}
                if is_broken:
                    case = {**case, name: left}
                start -= part
            part //= 2
