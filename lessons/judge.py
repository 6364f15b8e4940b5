"""The judge: plays stories with the learner's code until a property breaks, and tells what it sees.

It is a process of its own, `python -m lessons.judge LESSON FILE`, and says what happens as lines of JSON,
because the learner's code may do anything to the process that it runs in:

    ready ─► loaded ─► case of P1 … ─► judged: P1 passed ─► case of P2 … ─► judged: P2 failed, steps, …
                                                        └─► all passed ─► trial … ─► done, with the secret

Read next: `playing.py`, how a property is judged; `runner.py`, which starts and watches this process.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from lessons import refusals
from lessons.catalogue import Lesson, find_lesson
from lessons.guard import Printed, bound_memory, guarded
from lessons.loading import SUBJECT, load_module, load_properties, load_reference
from lessons.playing import FEW_STORIES, judge_property, play_once
from lessons.shape import missing_parts
from lessons.story import Property
from lessons.trial import SEED
from lessons.verdict import FAILED, IMPORT_SECONDS, PASSED, Verdict, import_problem

Tell = Callable[[dict[str, Any]], None]


def load_subject(path: Path, source: str) -> ModuleType:
    """The learner's file as a module; raises whatever it raises, or `TooLong`."""
    with guarded(IMPORT_SECONDS, Printed()):
        return load_module(path, SUBJECT, source)


def judge(
    lesson: Lesson,
    path: Path,
    tell: Tell,
    earlier: Mapping[str, Sequence[Any]],
    shrink: float,
    share: float,
    number_of_seed: int,
) -> bool:
    """Judge a file, property by property, up to the first that fails. Returns whether all passed."""
    subject = _loaded(path, tell)
    if subject is None:
        return False
    missing = missing_parts(lesson.exercise.read_text(encoding="utf-8"), subject)
    properties = load_properties(lesson, subject)
    told = [(prop.number, prop.name, prop.sentence) for prop in properties]
    tell({"event": "loaded", "missing": missing, "properties": told})
    if missing:
        return False
    statuses = []
    for prop in properties:

        def playing(case: Any, number: str = prop.number) -> None:
            tell({"event": "case", "number": number, "case": case})

        verdict = judge_property(
            replace(prop, examples=max(FEW_STORIES, int(share * prop.examples))),
            str(path),
            earlier=earlier.get(prop.name, ()),
            number_of_seed=number_of_seed,
            shrink=shrink,
            playing=playing,
            is_playable=_played_by_reference(lesson, prop.number),
        )
        tell({"event": "judged", **verdict.to_data(), "steps": _steps(verdict), "kernels": _kernels(verdict)})
        statuses.append(verdict.status)
        if verdict.status == FAILED:
            break
    return all(status == PASSED for status in statuses)


def _played_by_reference(lesson: Lesson, number: str) -> Callable[[Any, float], bool]:
    """Whether the right solution plays a case to its end. It is loaded only when that is asked."""

    @cache
    def by_reference() -> Property:
        learners = dict(sys.modules)
        try:
            properties = load_properties(lesson, load_reference(lesson))
        finally:
            sys.modules.update(learners)
        return next(one for one in properties if one.number == number)

    def is_playable(case: Any, seconds: float) -> bool:
        return play_once(by_reference(), case, str(lesson.reference), seconds) is None

    return is_playable


def judge_once(lesson: Lesson, path: Path, tell: Tell, number: str, case: Any) -> None:
    """Play one story of one property, in this process in which there was no other."""
    subject = _loaded(path, tell)
    if subject is None:
        return
    prop = next(one for one in load_properties(lesson, subject) if one.number == number)
    tell({"event": "once", "holds": play_once(prop, case, str(path)) is None})


def judge_known(lesson: Lesson, path: Path, number: str, source: str) -> bool:
    """Whether a solution of which we know what it is passes one property here, after the learner's."""
    subject = load_module(path, SUBJECT, source)
    prop = next(one for one in load_properties(lesson, subject) if one.number == number)
    return judge_property(prop, str(path), number_of_seed=SEED, shrink=0).status == PASSED


def _loaded(path: Path, tell: Tell) -> ModuleType | None:
    """The learner's file as a module; None if it cannot be judged, which is told."""
    refusals.WORK[:] = [str(path)]
    try:
        source = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        for line, name in refusals.refused_imports(source):
            raise refusals.Refused(f"{refusals.OWN} import {name} (line {line})")
        return load_subject(path, source)
    except BaseException as error:
        tell({"event": "not importable", "error": import_problem(error, path), "raw": traceback.format_exc()})
        return None


def _steps(verdict: Verdict) -> list[Any]:
    return msgspec.to_builtins(verdict.story.steps) if verdict.story else []


def _kernels(verdict: Verdict) -> str:
    """The learner's kernel under the microscope, in a file that the runner takes over."""
    if not verdict.story or not verdict.story.kernels:
        return ""
    from lessons.kernels import keep_kernels

    return keep_kernels(verdict.story)


def main(arguments: Sequence[str]) -> None:
    """`LESSON FILE`; on standard input a line of wishes, and after a pass a line with the trial."""
    lesson, path = find_lesson(arguments[0]), Path(arguments[1])
    asked = os.fdopen(os.dup(0), "r", encoding="utf-8")
    # Our words go to the real standard output; whatever the learner's code writes there goes nowhere.
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, *(() if os.environ.get("MINIVLLM_DEBUG") else (2,))):
        os.dup2(nowhere, stream)
    sys.stdin = io.StringIO()

    def tell(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message).encode() + b"\n")

    wishes = json.loads(asked.readline() or "{}")
    refusals.watch_process()
    bound_memory()
    tell({"event": "ready"})
    secret = ""
    if "once" in wishes:
        judge_once(lesson, path, tell, *wishes["once"])
    elif "mutants" in wishes:
        from lessons.mutation_judge import answer_all

        answer_all(lesson, asked, tell)
    elif judge(lesson, path, tell, **wishes):
        tell({"event": "all passed"})
        trial = json.loads(asked.readline() or "{}")
        for known in trial.get("sources", ()):
            tell({"event": "tried", "passes": judge_known(lesson, path, **known)})
        secret = trial.get("secret", "")
    tell({"event": "done", "secret": secret})


if __name__ == "__main__":
    main(sys.argv[1:])
