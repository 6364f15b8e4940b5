"""The catalogue: which lessons there are, and where their parts lie.

A lesson is a folder `NN_topic/`. Its name, stars and times are the first lines of its text; what its
walkthrough leaves behind, and the page that shows it, are constants of that file. Nothing is imported here.

Read next: `runner.py`.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
LANGUAGES = {"en": "lesson.md", "zh": "lesson.zh.md"}


@dataclass(frozen=True)
class Lesson:
    """One lesson."""

    folder: Path

    @property
    def name(self) -> str:
        """Such as "04_paging": its folder, and the learner's file."""
        return self.folder.name

    @property
    def number(self) -> str:
        return self.name[:2]

    def heading(self, language: str = "en") -> str:
        """Such as "04 Paging"."""
        return self.text(language).splitlines()[0].removeprefix("#").strip()

    def about(self, language: str = "en") -> str:
        """Stars and minutes."""
        return self.text(language).splitlines()[2].strip()

    def text(self, language: str = "en") -> str:
        return (self.folder / LANGUAGES[language]).read_text(encoding="utf-8")

    @property
    def checks(self) -> Path:
        return self.folder / "checks.py"

    def sentences(self, language: str) -> Path:
        """What `checks.py` says, in another language."""
        return self.folder / f"checks.{language}.json"

    @property
    def reference(self) -> Path:
        return self.folder / "reference.py"

    @property
    def exercise(self) -> Path:
        return self.folder / "exercise.py"

    @property
    def mutants(self) -> Path:
        return self.folder / "mutants.py"

    @property
    def walkthrough(self) -> Path:
        return self.folder / "walkthrough.py"

    def constants(self) -> dict[str, Any]:
        """What the walkthrough says of itself: TRACES (files that it writes), PAGE and PICTURES."""
        found: dict[str, Any] = {}
        for node in ast.parse(self.walkthrough.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name in ("TRACES", "PAGE", "PICTURES"):
                    found[name] = ast.literal_eval(node.value)
        return found


@cache
def lessons() -> tuple[Lesson, ...]:
    """All lessons, in their order."""
    folders = sorted(
        path for path in ROOT.iterdir() if path.name[:2].isdigit() and (path / "checks.py").is_file()
    )
    return tuple(Lesson(folder) for folder in folders)


def find_lesson(wanted: str) -> Lesson:
    """By number ("4", "04") or name ("04_paging", "paging").

    Raises:
        ValueError: there is none; the nearest are named.
    """
    asked = wanted.strip().lower().replace("-", "_").replace(" ", "_")
    for lesson in lessons():
        if asked in (lesson.number, lesson.number.lstrip("0"), lesson.name, lesson.name[3:]):
            return lesson
    raise ValueError(f"there is no lesson {wanted!r} (yet); the nearest: {', '.join(_nearest(asked))}")


def _nearest(asked: str) -> list[str]:
    if asked.isdigit() and len(asked) < 10:
        near = sorted(lessons(), key=lambda lesson: abs(int(lesson.number) - int(asked)))[:3]
    else:
        names = {lesson.name[3:]: lesson for lesson in lessons()}
        near = [names[name] for name in difflib.get_close_matches(asked, names, 3, 0.3)] or list(lessons())
    return [lesson.heading() for lesson in sorted(near, key=lambda lesson: lesson.number)]


def relative(path: Path) -> str:
    """As short as can be, for people."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
