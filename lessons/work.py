"""The learner's desk: the folder `work/`, what lies in it, and how far each lesson has come.

    work/04_paging.py               the solution that is being written; never overwritten
    work/04_paging_property.py      the property that is to catch a wrong solution
    work/04_paging_walkthrough.ipynb
    work/04_paging.story.jsonl      the last failing story, for `minivllm lesson see`
    work/progress.json              what was passed, which hints were read, which stories failed

Read next: `runner.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lessons.catalogue import Lesson, relative
from lessons.notebook import as_notebook
from lessons.seal import digest
from minivllm.files import CannotWrite, write_file

MOST_KEPT_STORIES = 5
ENVIRONMENT = "MINIVLLM_WORK"


class _Known(msgspec.Struct):
    """What `progress.json` says of a lesson, where it says it."""

    state: str = ""
    passed: int = 0
    of: int = 0
    checks: str = ""
    own_property: str = ""
    failing: str = ""
    symptoms: list[str] = []
    hints: dict[str, int] = {}
    stories: dict[str, list[Any]] = {}


def work_folder() -> Path:
    """`work/` where the command is run, unless the environment says another."""
    return Path(os.environ.get(ENVIRONMENT) or "work")


@dataclass(frozen=True)
class Desk:
    """A folder with solutions."""

    folder: Path = field(default_factory=work_folder)

    def solution(self, lesson: Lesson) -> Path:
        return self.folder / f"{lesson.name}.py"

    def own_property(self, lesson: Lesson) -> Path:
        return self.folder / f"{lesson.name}_property.py"

    def notebook(self, lesson: Lesson) -> Path:
        return self.folder / f"{lesson.name}_walkthrough.ipynb"

    def story(self, lesson: Lesson) -> Path:
        return self.folder / f"{lesson.name}.story.jsonl"

    def start(self, lesson: Lesson) -> bool:
        """Put the exercise on the desk; False if it lies there already, and nothing was touched.

        Raises:
            ValueError: the folder cannot be written to.
        """
        from lessons.catching import template

        fresh = not self.solution(lesson).exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: half a file would lie there already when the disk has room again.
            if fresh:
                write_file(self.solution(lesson), lesson.exercise.read_bytes(), "work")
            if not self.own_property(lesson).exists():
                write_file(self.own_property(lesson), template(lesson), "work")
            if not self.notebook(lesson).exists():
                script = lesson.walkthrough.read_text(encoding="utf-8")
                write_file(self.notebook(lesson), as_notebook(script), "work")
        except OSError as error:
            raise ValueError(
                f"work: {relative(self.folder)} cannot be written to: {error.strerror}"
            ) from error
        return fresh

    def reset(self, lesson: Lesson) -> Path | None:
        """Begin the lesson anew; the old solution is put aside, under the name that is returned."""
        solution = self.solution(lesson)
        aside: Path | None = None
        try:
            if solution.exists():
                number = 1
                while (free := solution.with_suffix(f".old{number}.py")).exists():
                    number += 1
                aside = solution.rename(free)
        except OSError as error:
            raise ValueError(f"work: {relative(solution)} cannot be put aside: {error.strerror}") from error
        self.story(lesson).unlink(missing_ok=True)
        everything = self._read()
        everything.pop(lesson.name, None)
        self._write(everything)
        self.start(lesson)
        return aside

    # ── progress ──────────────────────────────────────────────────────────────────────────────────────

    def progress(self, lesson: Lesson) -> dict[str, Any]:
        """What is known of a lesson: state, passed, of, hints, stories, failing."""
        found: dict[str, Any] = self._read().get(lesson.name, {})
        try:
            msgspec.convert(found, _Known)
        except msgspec.ValidationError:  # edited by hand
            return {}
        return found

    def state(self, lesson: Lesson) -> str:
        """ "not started", "started", "3/5" or "passed"."""
        known = self.progress(lesson)
        if not self.solution(lesson).exists():
            return "not started"
        if known.get("state") == "passed":
            return "passed"
        return f"{known['passed']}/{known.get('of', '?')}" if known.get("passed") else "started"

    def note(self, lesson: Lesson, **news: Any) -> None:
        """Keep what has become known."""
        everything = self._read()
        everything[lesson.name] = {**self.progress(lesson), **news}
        self._write(everything)

    def stories(self, lesson: Lesson) -> dict[str, Any]:
        """Cases that failed before, by property. Those of other checks would mean something else."""
        known = self.progress(lesson)
        return known.get("stories", {}) if known.get("checks") == digest(lesson.checks) else {}

    def keep_story(self, lesson: Lesson, name: str, case: Any) -> None:
        """A case that failed will be tried first next time."""
        stories = self.stories(lesson)
        kept = [case, *(other for other in stories.get(name, []) if other != case)]
        news = {**stories, name: kept[:MOST_KEPT_STORIES]}
        self.note(lesson, stories=news, checks=digest(lesson.checks))

    def drop_stories(self, lesson: Lesson, name: str, cases: Sequence[Any]) -> None:
        """Cases that the right solution cannot play either are not tried again."""
        stories = self.stories(lesson)
        left = [case for case in stories.get(name, []) if case not in cases]
        if left != stories.get(name, []):
            self.note(lesson, stories={**stories, name: left})

    @property
    def _file(self) -> Path:
        return self.folder / "progress.json"

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (
            OSError,
            ValueError,
            RecursionError,
        ):  # none yet, or edited until it is no JSON: it begins anew
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, everything: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"work: {relative(self.folder)} cannot be made: {error.strerror}") from error
        write_file(self._file, json.dumps(everything, indent=1), "work")
