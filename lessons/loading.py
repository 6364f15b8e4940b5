"""Loading code into the place of `subject`: the learner's, the reference, a mutant.

`checks.py` is run in place, never copied, and anew for each subject: it says `import subject`, and gets
whatever is in that place.

Read next: `judge.py`.
"""

from __future__ import annotations

import importlib.util
import linecache
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lessons.catalogue import Lesson

if TYPE_CHECKING:  # it brings Hypothesis, without which a lesson can still be read and started
    from lessons.story import Property

SUBJECT = "subject"


def load_module(path: Path, name: str, source: str | None = None) -> ModuleType:
    """Run a file as the module `name`, wherever it lies; with another text in its place if given."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    text = path.read_text(encoding="utf-8") if source is None else source
    # What looks for the source of a function (inspect, the microscope) must find this text.
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def load_properties(lesson: Lesson, subject: ModuleType) -> list[Property]:
    """The lesson's properties, for this subject."""
    from lessons.story import properties_of

    sys.modules[SUBJECT] = subject
    return properties_of(load_module(lesson.checks, f"checks_of_{lesson.name}"))


def load_reference(lesson: Lesson) -> ModuleType:
    """The right solution."""
    return load_module(lesson.reference, SUBJECT)
