"""What is done at the desk, for the command line and for the dashboard's page "Lessons".

Judging finds something; here it becomes progress, a story to look at, the next hint, the last task, the diff.
Nothing is printed here, and Hypothesis is needed only by what judges.

Read next: `commands.py`, which prints it.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from lessons.catalogue import Lesson, relative
from lessons.catching import Catch, judge_own_property
from lessons.language import in_language
from lessons.runner import PASSED, Result, need_test_extra
from lessons.work import Desk


def keep(desk: Desk, result: Result) -> None:
    """What was found becomes progress, and a failing story a file. Another file's passing is no progress."""
    from lessons.comparing import write_comparison

    lesson, failed = result.lesson, result.failed
    desk.note(lesson, failing=failed.number if failed else "", symptoms=failed.symptoms if failed else [])
    if result.path == desk.solution(lesson).resolve():
        state = "passed" if result.code == PASSED else "started"
        desk.note(lesson, state=state, passed=result.num_passed, of=len(result.outcomes))
    desk.story(lesson).unlink(missing_ok=True)
    for outcome in result.outcomes:
        desk.drop_stories(lesson, outcome.name, outcome.unplayable)
    if failed and failed.case is not None:
        write_comparison(result, failed, desk.story(lesson))
        if failed.fault:
            desk.drop_stories(lesson, failed.name, [failed.case])
        else:
            desk.keep_story(lesson, failed.name, failed.case)


def keep_catch(desk: Desk, lesson: Lesson) -> Catch | None:
    """Judge the learner's own property, and note what came of it; None if there is no such file."""
    path = desk.own_property(lesson)
    if not path.exists():
        return None
    need_test_extra()
    catch = judge_own_property(lesson, path)
    desk.note(lesson, own_property=catch.status)
    return catch


def wrong_solution(lesson: Lesson) -> str:
    """What the wrong solution is called that the learner is to catch, such as “takes before it refuses”."""
    from lessons.mutant import load_mutants

    return f"“{load_mutants(lesson).to_catch.name.replace('_', ' ')}”"


class Ladder(NamedTuple):
    """The hints for the property that failed: for how it failed, then from a nudge to nearly the answer."""

    property: str
    """Its number and sentence."""
    hints: tuple[str, ...]
    num_read: int
    name: str
    """What is read is counted under it: a ladder of its own for each symptom that has a hint."""

    def next_number(self) -> int:
        """Of the hint to be read next, counted from 1; the last one stays."""
        return min(self.num_read + 1, len(self.hints))


def ladder(desk: Desk, lesson: Lesson, language: str = "en") -> Ladder:
    """The hints for the property that failed last, in this language.

    Raises:
        ValueError: nothing has failed, or Hypothesis is not installed.
    """
    need_test_extra()
    from lessons.comparing import properties_with_reference

    known = desk.progress(lesson)
    prop = next((p for p in properties_with_reference(lesson) if p.number == known.get("failing")), None)
    if prop is None:
        raise ValueError(
            f"lesson {lesson.number} has no property that failed: `minivllm lesson check {lesson.number}` "
            f"looks for one"
        )
    symptoms = known.get("symptoms", [])
    symptom = next((one for one in symptoms if one in prop.when), "")
    name = f"{prop.number} {symptom}".strip()
    hints = tuple(in_language(lesson, hint, language) for hint in prop.hints_for(symptoms))
    num_read = min(known.get("hints", {}).get(name, 0), len(hints))
    return Ladder(f"{prop.number} {in_language(lesson, prop.sentence, language)}", hints, num_read, name)


def next_hint(desk: Desk, lesson: Lesson, language: str = "en") -> tuple[str, int, int, str]:
    """`(hint, number, of how many, property)`; the last one stays.

    Raises:
        ValueError: nothing has failed, or Hypothesis is not installed.
    """
    found = ladder(desk, lesson, language)
    number = found.next_number()
    read = desk.progress(lesson).get("hints", {})
    desk.note(lesson, hints={**read, found.name: number})
    return found.hints[number - 1], number, len(found.hints), found.property


def diff_lines(desk: Desk, lesson: Lesson) -> list[str]:
    """The learner's solution beside the reference, as a unified diff.

    Raises:
        ValueError: the lesson has not been passed yet, or the solution cannot be read.
    """
    solution = desk.solution(lesson)
    if desk.state(lesson) != "passed":
        raise ValueError(
            f"the reference is shown once you have passed: `minivllm lesson check {lesson.number}` says how "
            f"far you are"
        )
    yours, reference = read_text(solution).splitlines(), read_text(lesson.reference).splitlines()
    return list(
        difflib.unified_diff(yours, reference, relative(solution), relative(lesson.reference), lineterm="")
    )


def read_text(path: Path) -> str:
    """A solution as it is.

    Raises:
        ValueError: it cannot be read, and why.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{relative(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{relative(path)} is not a text in UTF-8: {error.reason}") from error
