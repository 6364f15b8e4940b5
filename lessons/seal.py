"""The seal: checks that were changed do not judge by accident.

`seals.json` has a digest of each `checks.py` and `reference.py`. It forbids nothing; it keeps a learner
who has tried things in the wrong file from believing a verdict.

    python -m lessons.seal           after a change of a lesson

Read next: `shape.py`.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from lessons.catalogue import ROOT, Lesson, lessons, relative

SEALS = ROOT / "seals.json"


def digest(path: Path) -> str:
    """Of the text: line ends may differ between systems."""
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    return sha256(text.encode()).hexdigest()[:16]


def current_seals() -> dict[str, str]:
    """What the seals would be now, by file."""
    return {
        path.relative_to(ROOT).as_posix(): digest(path)
        for lesson in lessons()
        for path in (lesson.checks, lesson.reference)
    }


def edited_files(lesson: Lesson) -> list[str]:
    """Files of a lesson that are not as they were released."""
    seals = json.loads(SEALS.read_text(encoding="utf-8"))
    files = (lesson.checks, lesson.reference)
    return [relative(path) for path in files if seals.get(path.relative_to(ROOT).as_posix()) != digest(path)]


if __name__ == "__main__":
    SEALS.write_text(json.dumps(current_seals(), indent=1) + "\n", encoding="utf-8")
    print(f"{len(lessons())} lessons sealed")
